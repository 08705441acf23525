"""One changed byte in a ledger database: it is mended with identical rows, or refused; nothing stale, nothing missing unnoticed."""

import collections
import os
import random
import shutil
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from protocol import codec
from protocol.block import Block
from protocol.errors import Corruption
from protocol.identifiers import Digest, Height, NetworkId
from protocol.merkle import Frontier
from storage import table_file
from storage.key_value import Batch
from storage.keyspace import (
    APPLIED,
    BLOCK,
    CERTIFICATE,
    HARD_STATE,
    LOST,
    RECORD_QUEUE,
    SEQUENCE_END,
    STATE,
    TABLE,
    TREE,
)
from storage.ledger_store import AppliedMark
from storage.leveldb import LevelDb
from storage.memory import MemoryStore
from storage.mend import Damage, Survey, mend
from storage.tree_store import put_leaves, put_whole
from tests.protocol import chain

FLIPS = int(os.environ.get("CARECHAIN_FLIPS", "60"))
"""How many bytes are changed, each in a fresh copy; thousands by hand."""
HEIGHTS = 400
TAIL = 5
TREE_MARK = TREE + b"\xff"
GENESIS = chain.build()[0]
HEADER = chain.build()[3].header


@dataclass(frozen=True)
class Ledger:
    """A database as kill -9 left it, and the rows that it holds."""

    path: Path
    rows: dict[bytes, bytes]


def height_key(prefix: bytes, height: int) -> bytes:
    return prefix + height.to_bytes(8, "big")


def block_at(height: int, draw: random.Random) -> bytes:
    if height == 0:
        return GENESIS.raw
    header = replace(HEADER, height=Height(height))
    body = draw.randbytes(draw.choice((50, 300, 5_000)))
    return Block(header, bytes(64), b"", (body,)).raw


def opened(path: Path, *, create: bool = False) -> LevelDb:
    return LevelDb(path, create=create, rebuild="the cure", write_buffer=64 * 1024, max_file_size=1024 * 1024)


def batch_at(height: int, draw: random.Random, rows: dict[bytes, bytes]) -> Batch:
    """What one step writes: blocks (some of them cut again), state, hard state, mark and certificate, own rows come and gone."""
    batch = Batch()
    for above in range(height, height + TAIL):
        if draw.random() < 0.3 or height_key(BLOCK, above) not in rows:
            batch.put(height_key(BLOCK, above), block_at(above, draw))
    batch.put(HARD_STATE, draw.randbytes(40))
    for _ in range(4):
        batch.put(STATE + draw.randbytes(1) * 20, draw.randbytes(60))
    gone = STATE + draw.randbytes(1) * 20
    batch.delete(gone)
    if height % 9 == 0:
        batch.put(RECORD_QUEUE + draw.randbytes(32), draw.randbytes(200))
    elif height % 9 == 4 and (queued := [key for key in rows if key[:1] == RECORD_QUEUE]):
        batch.delete(draw.choice(queued))
    batch.put(APPLIED, codec.encode(AppliedMark(Height(height - 1), Digest(bytes(32)), 0, 0, ())))
    batch.put(height_key(CERTIFICATE, height - 1), draw.randbytes(300))
    batch.put(height_key(TREE + b"\0", height), random.Random(height).randbytes(32 * 40))
    return batch


@pytest.fixture(scope="module", params=["stopped", "killed"])
def ledger(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Ledger:
    folder, draw = tmp_path_factory.mktemp("mend"), random.Random(29)
    rows: dict[bytes, bytes] = {}
    database = opened(folder / "ledger", create=True)
    for height in range(HEIGHTS):
        batch = batch_at(height, draw, rows) if height else Batch()
        if not height:
            batch.put(height_key(BLOCK, 0), GENESIS.raw)
            put_whole(batch)
        database.write(batch, sync=False)
        for key, value in batch.writes.items():
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
    if request.param == "killed":
        photograph(folder / "ledger", folder / "kept")
    database.close()
    if request.param == "stopped":
        shutil.copytree(folder / "ledger", folder / "kept")
    return Ledger(folder / "kept", rows)


def photograph(running: Path, target: Path) -> None:
    """Copy the files of an open database: all as they are at one moment, though it compacts meanwhile."""
    while True:
        before = {path.name for path in running.iterdir()}
        with suppress(shutil.Error):  # a table was merged away under the copy: once more
            shutil.copytree(running, target)
            if {path.name for path in running.iterdir()} == before:
                return
        shutil.rmtree(target)


def copied(ledger: Ledger, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(ledger.path, target))


def flipped(target: Path, draw: random.Random) -> str:
    """Change one bit of one file, and say where."""
    files = [file for file in sorted(target.iterdir()) if file.suffix == ".ldb"]
    logs = [file for file in sorted(target.iterdir()) if file.suffix == ".log" and file.stat().st_size]
    file = draw.choices(files, [file.stat().st_size for file in files])[0]
    if logs and draw.random() < 0.05:
        file = draw.choice(logs)
    whole = bytearray(file.read_bytes())
    position = draw.randrange(len(whole))
    whole[position] ^= 1 << draw.randrange(8)
    file.write_bytes(whole)
    return f"{file.name} at {position} of {len(whole)}"


def mended(path: Path) -> tuple[dict[bytes, bytes], Damage] | None:
    """Return the rows of the mended database and what was lost, None when it is refused."""
    fresh = MemoryStore()
    try:
        with closing(opened(path)) as damaged:
            damage = mend(damaged, fresh, GENESIS)
    except Corruption:
        return None
    return dict(fresh.scan(b"", SEQUENCE_END)), damage


def outcome_of(path: Path, truth: dict[bytes, bytes]) -> str:
    result = mended(path)
    if result is None:
        return "refused"
    rows, damage = result
    noted = {int.from_bytes(key[1:], "big") for key in rows if key[:1] == LOST}
    for key in [key for key in rows if key[:1] == LOST]:
        del rows[key]
    missing = truth.keys() - rows.keys()
    # Nothing that was overwritten or deleted is back, and what is there is what was there.
    assert rows.items() <= truth.items()
    assert {key[:1] for key in missing} <= {BLOCK, CERTIFICATE, TREE}
    # Where a node is missing, so is the word that none is.
    assert TREE_MARK in missing or not any(key[:1] == TREE for key in missing)
    assert {int.from_bytes(key[1:], "big") for key in missing if key[:1] == BLOCK} <= noted
    assert {int.from_bytes(key[1:], "big") for key in missing if key[:1] == CERTIFICATE} <= set(
        damage.certificates
    )
    assert height_key(CERTIFICATE, damage.applied) in rows or damage.applied in noted
    if not damage.is_met:
        assert rows == truth
        return "of no consequence"
    return "mended"


@pytest.mark.parametrize("bits", [1, 4])
def test_changed_bits_are_mended_with_identical_rows_or_refused(
    ledger: Ledger, tmp_path: Path, bits: int
) -> None:
    draw = random.Random(4)
    outcomes: collections.Counter[str] = collections.Counter()
    for number in range(FLIPS // bits):
        target = copied(ledger, tmp_path / "ledger")
        where = [flipped(target, draw) for _ in range(bits)]
        try:
            outcomes[outcome_of(tmp_path / "ledger", ledger.rows)] += 1
        except AssertionError as failure:
            raise AssertionError(f"flip {number}, {where}: {failure}") from failure
    assert outcomes["mended"] > FLIPS // bits // 4


def test_a_table_with_a_damaged_index_or_filter_is_mended_or_refused(ledger: Ledger, tmp_path: Path) -> None:
    draw = random.Random(8)
    outcomes: collections.Counter[str] = collections.Counter()
    for file in sorted(ledger.path.glob("*.ldb")):
        size = file.stat().st_size
        for _ in range(3 if size else 0):  # a table that a kill -9 cut short before its first byte
            whole = bytearray(file.read_bytes())
            whole[draw.randrange(max(0, size - 3_000), size)] ^= 1 << draw.randrange(8)
            (copied(ledger, tmp_path / "ledger") / file.name).write_bytes(whole)
            outcomes[outcome_of(tmp_path / "ledger", ledger.rows)] += 1

    assert outcomes["refused"] > 0
    assert outcomes.total() >= 3 * 5


Versions = dict[bytes, list[tuple[int, Path, bytes]]]


def versions_in(path: Path) -> Versions:
    """Every version of every row in the tables, the newest first: sequence, table, value."""
    versions: Versions = collections.defaultdict(list)
    for file in path.glob("*.ldb"):
        for change in table_file.intact_changes(file.read_bytes(), lambda _first, _last: True, checked=False):
            versions[change.key].append((change.sequence, file, change.value or b""))
    return {key: sorted(found, reverse=True) for key, found in versions.items()}


def test_a_newer_row_that_is_damaged_never_gives_way_to_an_older_one(ledger: Ledger, tmp_path: Path) -> None:
    path = copied(ledger, tmp_path / "ledger")
    with closing(opened(path)) as database:
        database.flush()  # what a kill left in the log is in tables as well
    whole = Ledger(path, ledger.rows)
    rewritten = {
        key: found[0]
        for key, found in versions_in(path).items()
        if key in ledger.rows and len({value for _, _, value in found}) > 1
    }
    blocks = [key for key in rewritten if key[:1] == BLOCK][-5:]
    others = [key for key in rewritten if key[:1] == STATE][-3:]
    for key in (*blocks, *others, HARD_STATE, APPLIED):
        _, file, value = rewritten[key]
        assert value == ledger.rows[key]
        data = bytearray(file.read_bytes())
        data[data.index(value) + len(value) // 2] ^= 1
        target = copied(whole, tmp_path / "damaged")
        (target / file.name).write_bytes(data)

        result = mended(target)

        if key in blocks and result is not None:
            assert key not in result[0]
        else:
            assert result is None, key
    assert blocks


# --- one row at a time ---------------------------------------------------------------------------------------------


@pytest.fixture
def store(ledger: Ledger) -> MemoryStore:
    rows, batch = MemoryStore(), Batch()
    for key, value in ledger.rows.items():
        batch.put(key, value)
    rows.write(batch, sync=True)
    return rows


APPLIED_HEIGHT = HEIGHTS - 2


def mended_in_memory(store: MemoryStore) -> tuple[dict[bytes, bytes], Damage]:
    fresh = MemoryStore()
    damage = mend(store, fresh, GENESIS)
    return dict(fresh.scan(b"", SEQUENCE_END)), damage


def test_an_undamaged_ledger_is_copied_as_it_is(store: MemoryStore, ledger: Ledger) -> None:
    rows, damage = mended_in_memory(store)

    assert rows == ledger.rows
    assert (damage.is_met, damage.blocks, damage.certificates) == (False, [], [])


@pytest.mark.parametrize("height", [1, 2, 200, APPLIED_HEIGHT])
def test_a_lost_block_is_noted(store: MemoryStore, ledger: Ledger, height: int) -> None:
    store.damage([height_key(BLOCK, height)])

    rows, damage = mended_in_memory(store)

    assert damage.blocks == [height]
    assert Survey(store).read_portion() is False
    assert rows == {key: value for key, value in ledger.rows.items() if key != height_key(BLOCK, height)} | {
        height_key(LOST, height): b""
    }


def test_a_lost_certificate_is_left_out_and_the_newest_one_noted(store: MemoryStore, ledger: Ledger) -> None:
    lost = [height_key(CERTIFICATE, height) for height in (7, APPLIED_HEIGHT)]
    store.damage(lost)

    rows, damage = mended_in_memory(store)

    assert damage.certificates == [7, APPLIED_HEIGHT]
    assert rows == {key: value for key, value in ledger.rows.items() if key not in lost} | {
        height_key(LOST, APPLIED_HEIGHT): b""
    }


def test_a_certificate_above_the_applied_block_is_carried_over_and_may_be_lost(
    store: MemoryStore, ledger: Ledger
) -> None:
    above = height_key(CERTIFICATE, APPLIED_HEIGHT + 2)
    batch = Batch()
    batch.put(above, b"of a group that is half applied")
    store.write(batch, sync=True)
    whole = {**ledger.rows, above: b"of a group that is half applied"}
    assert mended_in_memory(store)[0] == whole

    store.damage([above])

    rows, damage = mended_in_memory(store)
    assert rows == ledger.rows
    assert (damage.is_met, damage.blocks, damage.certificates) == (True, [], [])


def test_a_newest_block_of_which_not_even_the_certificate_is_left_is_refused(store: MemoryStore) -> None:
    store.damage([height_key(prefix, APPLIED_HEIGHT) for prefix in (BLOCK, CERTIFICATE)])

    with pytest.raises(Corruption, match="neither"):
        mended_in_memory(store)


def test_a_lost_genesis_is_made_again(store: MemoryStore, ledger: Ledger) -> None:
    store.damage([height_key(BLOCK, 0)])

    assert mended_in_memory(store)[0] == ledger.rows


@pytest.mark.parametrize("gone", ["the newest block", "both"])
def test_genesis_is_not_made_again_for_a_ledger_that_may_be_anothers(store: MemoryStore, gone: str) -> None:
    keys = [height_key(BLOCK, 0), height_key(BLOCK, APPLIED_HEIGHT)]
    store.damage(keys if gone == "both" else keys[:1])
    batch = Batch()
    header = replace(HEADER, height=Height(APPLIED_HEIGHT), net=NetworkId(bytes(32)))
    if gone != "both":
        batch.put(keys[1], Block(header, bytes(64), b"", ()).raw)
    batch.put(height_key(CERTIFICATE, APPLIED_HEIGHT), b"not a certificate")
    store.write(batch, sync=True)

    with pytest.raises(Corruption):
        mended_in_memory(store)


@pytest.mark.parametrize(
    "prefix",
    sorted({rows.prefix for rows in TABLE if rows.database == "ledger"} - {BLOCK, CERTIFICATE, TREE}),
)
def test_anything_else_that_is_damaged_is_refused(store: MemoryStore, prefix: bytes) -> None:
    key = prefix if prefix in {APPLIED, HARD_STATE} else prefix + bytes(8)
    batch = Batch()
    batch.put(key, store.get(key) or b"x")
    store.write(batch, sync=True)
    store.damage([key])

    with pytest.raises(Corruption):
        mended_in_memory(store)
    with pytest.raises(Corruption):
        Survey(store).read_portion()


def test_where_a_node_of_the_tree_is_damaged_all_of_them_are_computed_again(store: MemoryStore) -> None:
    batch, leaves = Batch(), [Digest(bytes([n]) * 32) for n in range(3)]
    frontier = put_leaves(batch, Frontier(), leaves[:2])
    put_leaves(batch, frontier, leaves[2:])
    put_whole(batch)
    store.write(batch, sync=True)
    store.damage([next(key for key in batch.writes if key.endswith(b"\x02"))])

    fresh, damage = mended_in_memory(store)

    assert damage.is_met
    assert not damage.blocks
    assert TREE_MARK not in fresh


@pytest.mark.parametrize("height", range(APPLIED_HEIGHT + 1, HEIGHTS + TAIL - 1))
def test_a_damaged_block_that_is_not_applied_yet_is_refused(store: MemoryStore, height: int) -> None:
    store.damage([height_key(BLOCK, height)])

    with pytest.raises(Corruption):
        mended_in_memory(store)


def test_nothing_lies_below_the_blocks_but_the_applied_mark() -> None:
    # `intact_rows` reads that one key only: a table block that begins with it goes on with blocks.
    assert [rows.prefix for rows in TABLE if rows.database == "ledger" and rows.prefix < BLOCK] == [APPLIED]
