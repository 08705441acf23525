"""After any byte of a stopped database was changed, it is named or harmless; a wrong value is never served."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.cid import cid_of, cid_text
from protocol.errors import Corruption
from protocol.identifiers import Rid
from storage.chunk_store import ChunkStore
from storage.databases import open_payloads
from storage.envelope_store import EnvelopeStore
from storage.key_value import Batch
from storage.keyspace import ENVELOPE, SEQUENCE_END, sequence_key
from storage.leveldb import LevelDb
from storage.memory import MemoryStore
from storage.payload_store import PayloadStore
from storage.scrub import Part, verify_envelopes, verify_payloads, verify_rows
from storage.write_ahead_log import BLOCK_BYTES, damaged_logs

REBUILD = "carechain run --rebuild"
Make = Callable[[Path], LevelDb]


def make_payloads(path: Path) -> LevelDb:
    """Fill a payload database with chunks of all sizes."""
    source = random.Random(1)
    database = open_payloads(path.parent, create=True)
    chunks = [source.randbytes(source.choice((16, 300, 5_000, 20_000))) for _ in range(40)]
    store = PayloadStore(database)
    for position in range(0, len(chunks), 4):
        store.append([(cid_of(chunk), chunk) for chunk in chunks[position : position + 4]], sync=True)
    return database


def make_ledger(path: Path) -> LevelDb:
    """Fill a ledger-like database: small rows, rewritten and deleted, several tables and levels."""
    source = random.Random(2)
    database = LevelDb(path, create=True, rebuild=f"{REBUILD} ledger", write_buffer=64 * 1024)
    for step in range(150):
        batch = Batch()
        batch.put(b"hard state", source.randbytes(40))
        batch.put(b"b" + sequence_key(step), source.randbytes(source.choice((50, 400, 3_000))))
        batch.put(b"t" + source.randbytes(32), sequence_key(step))
        if step % 7 == 0:
            batch.delete(b"b" + sequence_key(step // 2))
        database.write(batch, sync=step % 3 == 0)
    return database


def reopen(path: Path) -> LevelDb:
    if path.name == "payloads":
        return open_payloads(path.parent, create=False)
    return LevelDb(path, create=False, rebuild=f"{REBUILD} ledger", write_buffer=64 * 1024)


def judge(path: Path, rows: dict[bytes, bytes]) -> str:
    """Return what happened to a changed database: refused, named, harmless; or fail."""
    try:
        database = reopen(path)
    except Corruption as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert f"database {path.name} does not open" in refusal
        assert f"{REBUILD} {path.name}" in refusal
        return "refused"
    try:
        damaged = 0
        for key, value in rows.items():
            try:
                assert database.get(key) == value, f"a wrong value under {key.hex()}"
            except Corruption:
                damaged += 1
        problems = verify_rows(database, path.name, f"{REBUILD} {path.name}")
        assert bool(problems) >= bool(damaged), "damage that the walk does not name"
        if not problems:
            assert dict(database.scan(b"", SEQUENCE_END)) == rows
        return "named" if problems else "harmless"
    finally:
        database.close()


def flip(path: Path, position: int, change: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ change]))


def stopped(tmp_path: Path, make: Make, name: str, *, killed: bool) -> tuple[Path, dict[bytes, bytes]]:
    """Make a database; return its folder, closed or as kill -9 leaves it, and its rows."""
    folder = tmp_path / "made" / name
    database = make(folder)
    rows = dict(database.scan(b"", SEQUENCE_END))
    if killed:
        shutil.copytree(folder, tmp_path / "killed" / name)
        folder = tmp_path / "killed" / name
    database.close()
    return folder, rows


def outcomes_of_flips(
    folder: Path, rows: dict[bytes, bytes], tmp_path: Path, flips: list[tuple[str, int, int]]
) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    copy = tmp_path / "copy" / folder.name
    for name, position, change in flips:
        shutil.copytree(folder, copy)
        flip(copy / name, position, change)
        try:
            outcomes[judge(copy, rows)] += 1
        except AssertionError as error:
            raise AssertionError(f"{name} byte {position} ^ {change:#x}: {error}") from error
        shutil.rmtree(copy)
    return outcomes


def seeded_flips(folder: Path, pattern: str, count: int) -> list[tuple[str, int, int]]:
    source = random.Random(3)
    files = [path for path in sorted(folder.glob(pattern)) if path.stat().st_size]
    assert files, f"nothing to damage in {folder.name}"
    drawn = []
    for _ in range(count):
        path = source.choice(files)
        size = path.stat().st_size
        # Half of the changes among the last bytes: a table's index and footer, a log's torn-looking tail.
        position = (
            source.randrange(size) if source.random() < 0.5 else size - 1 - source.randrange(min(size, 400))
        )
        drawn.append((path.name, position, source.randrange(1, 256)))
    return drawn


@pytest.mark.parametrize(("make", "name"), [(make_payloads, "payloads"), (make_ledger, "ledger")])
@pytest.mark.parametrize(("pattern", "killed"), [("*.ldb", False), ("*.log", True), ("MANIFEST-*", False)])
def test_a_changed_byte_is_named_or_harmless(
    tmp_path: Path, make: Make, name: str, pattern: str, killed: bool
) -> None:
    folder, rows = stopped(tmp_path, make, name, killed=killed)

    outcomes = outcomes_of_flips(folder, rows, tmp_path, seeded_flips(folder, pattern, 60))

    assert outcomes["refused"] + outcomes["named"] > 20, outcomes


def test_a_changed_length_in_the_last_block_of_a_log_is_not_taken_for_a_torn_tail(tmp_path: Path) -> None:
    """The family behind it: LevelDB drops the rest of the block when a length reaches beyond the end of the file."""
    folder, rows = stopped(tmp_path, make_ledger, "ledger", killed=True)
    log = max(folder.glob("*.log"))
    flips = [
        (log.name, header + 5, change)
        for header in headers_of_last_block(log)
        for change in (0x10, 0x40, 0x80, 0xFF)
    ]

    outcomes = outcomes_of_flips(folder, rows, tmp_path, flips)

    assert outcomes == {"refused": len(flips)}


def test_a_torn_tail_still_opens(tmp_path: Path) -> None:
    folder, rows = stopped(tmp_path, make_ledger, "ledger", killed=True)
    log = max(folder.glob("*.log"))
    last = headers_of_last_block(log)[-1]
    content = log.read_bytes()
    for end in range(last, len(content), 37):
        log.write_bytes(content[:end])
        assert damaged_logs(folder) == ()
    database = reopen(folder)
    assert all(rows[key] == value for key, value in database.scan(b"b", b"c"))
    database.close()


def headers_of_last_block(log: Path) -> list[int]:
    content = log.read_bytes()
    position = len(content) - len(content) % BLOCK_BYTES
    headers = []
    while position + 7 <= len(content):
        headers.append(position)
        position += 7 + int.from_bytes(content[position + 4 : position + 6], "little")
    assert headers
    return headers


def test_a_damaged_chunk_is_named_by_its_content_id(tmp_path: Path) -> None:
    ledger = MemoryStore()
    payloads = open_payloads(tmp_path, create=True)
    chunks = [bytes([number]) * 5_000 for number in range(8)]
    ChunkStore(payloads, ledger).put_many([(cid_of(chunk), chunk) for chunk in chunks])
    payloads.close()
    table = next((tmp_path / "payloads").glob("*.ldb"))
    tables = [path for path in (tmp_path / "payloads").glob("*.ldb") if chunks[3] in path.read_bytes()]
    table = tables[0]
    flip(table, table.read_bytes().index(chunks[3]) + 100, 1)

    payloads = open_payloads(tmp_path, create=False)
    store = ChunkStore(payloads, ledger)
    problems = verify_payloads(store)
    assert [problem.cid for problem in problems] == [cid_of(chunks[3])]
    assert cid_text(cid_of(chunks[3])) in problems[0].sentence
    store.quarantine(cid_of(chunks[3]))
    assert "in quarantine" in verify_payloads(store)[0].sentence
    store.put_many([(cid_of(chunks[3]), chunks[3])])
    assert verify_payloads(store) == ()
    assert store.get(cid_of(chunks[3])) == chunks[3]
    payloads.close()


def test_a_wrong_envelope_is_named_by_its_record() -> None:
    ledger = MemoryStore()
    store = EnvelopeStore(ledger)
    batch = Batch()
    good, bad = Rid(bytes(32)), Rid(b"\1" * 32)
    store.put_envelope(batch, good, b"good")
    digest = store.put_envelope(batch, bad, b"bad")
    attachment = store.put_attachment(batch, b"wrap")
    ledger.write(batch, sync=True)
    seen: list[tuple[int, int]] = []
    assert verify_envelopes(store, lambda things, size: seen.append((things, size))) == ()
    assert seen == [(1, 4), (2, 7), (3, 11)]

    batch = Batch()
    batch.put(ENVELOPE + digest, b"bed")
    batch.put(b"a" + attachment, b"warp")
    ledger.write(batch, sync=True)
    problems = verify_envelopes(store)
    assert [(problem.part, problem.rid) for problem in problems] == [
        (Part.ENVELOPE, bad),
        (Part.ATTACHMENT, None),
    ]
    assert bad.hex() in problems[0].sentence
