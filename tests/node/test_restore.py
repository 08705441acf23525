"""What restoring refuses, and that a refusal or a crash leaves nothing that could be taken for a home."""

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.demo_network import until
from node.home import Home
from node.restore import Restored, restore
from protocol.backup import SEGMENT_BYTES, recovery_key_text
from protocol.errors import CarechainError, Corruption, Refused
from protocol.hpke import x25519_public
from protocol.limits import MIB
from protocol.passphrase import Hardness
from storage import databases, keyspace
from storage.backup_file import BackupWriter, Contents, Kind
from storage.chunk_store import ChunkStore
from storage.key_value import Batch
from storage.keystore import Keystore
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore
from tests.node.ledger_double import LedgerDouble

SECRET = bytes(range(32))
PUBLIC = x25519_public(SECRET)
Row = tuple[Kind, bytes, bytes]
FILES: list[Row] = [
    (Kind.FILE, b"config.toml", b"name"),
    (Kind.FILE, b"card.json", b"{}"),
    (Kind.FILE, b"keystore.key", bytes(32)),
]


@contextmanager
def unseen(_total: int) -> Iterator[Callable[[int], None]]:
    yield lambda _done: None


def rows_of_a_home() -> tuple[list[Row], list[Row]]:
    """Return rows of a key store and of a new ledger with two blocks that were never final."""
    keys, member = MemoryStore(), LedgerDouble(1).members[0]
    store = Keystore.create(keys, "x", random.Random(5).randbytes, hardness=Hardness(1, MIB))
    store.set_recovery_key(PUBLIC)
    store.put("patient/1", b"wallet")
    batch = Batch()
    batch.put(keyspace.BLOCK + keyspace.sequence_key(1), b"a block above the applied one")
    batch.put(keyspace.BLOCK + keyspace.sequence_key(2), b"another")
    member.rows.write(batch, sync=True)
    whole = b"", keyspace.SEQUENCE_END
    return (
        [(Kind.KEYS_ROW, *row) for row in keys.scan(*whole)],
        [(Kind.LEDGER_ROW, *row) for row in member.rows.scan(*whole)],
    )


KEYS, LEDGER = rows_of_a_home()
CHUNKS: list[Row] = [(Kind.CHUNK, bytes(32), bytes(SEGMENT_BYTES))]


def written(file: Path, *groups: list[Row]) -> Path:
    writer = BackupWriter(PUBLIC, random.Random(1).randbytes)
    parts = [writer.begin(Contents(1, "Clinic", bytes(32), 0, with_payloads=False))]
    parts += [writer.add(*entry) for group in groups for entry in group]
    file.write_bytes(b"".join([*parts, writer.finish()]))
    return file


def restored(home: Path, file: Path, secret: bytes = SECRET) -> Restored:
    return restore(Home(home), file, secret, passphrase=None, entropy=os.urandom, now_ms=0, started=unseen)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return written(tmp_path / "b", FILES, KEYS, LEDGER)


def test_blocks_that_were_not_final_are_not_restored(tmp_path: Path, whole: Path) -> None:
    assert restored(tmp_path / "h", whole).height == 0

    ledger = databases.open_ledger(tmp_path / "h", create=False)
    store = LedgerStore(ledger, LedgerDouble(1).genesis)
    assert (store.tip_height(), store.is_rebuilt(), store.hard_state()) == (0, True, None)
    ledger.close()


@pytest.mark.parametrize("cut", [1, 100, 1_000, -1])
def test_a_damaged_file_leaves_nothing(tmp_path: Path, whole: Path, cut: int) -> None:
    whole.write_bytes(whole.read_bytes()[:cut])
    (tmp_path / "empty").mkdir()

    for home in ("new", "empty"):
        with pytest.raises((Corruption, Refused)):
            restored(tmp_path / home, whole)

    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_file_damaged_at_its_very_end_leaves_nothing(tmp_path: Path) -> None:
    chunk = random.Random(2).randbytes(MIB)
    file = written(tmp_path / "b", FILES, KEYS, LEDGER, [(Kind.LEDGER_ROW, b"z", chunk)] * 3)
    file.write_bytes(file.read_bytes()[:-1] + b"x")

    with pytest.raises(Corruption, match="nothing was restored"):
        restored(tmp_path / "h", file)

    assert not (tmp_path / "h").exists()


def test_a_home_that_exists_is_not_touched(tmp_path: Path, whole: Path) -> None:
    for name in ("config.toml", "anything"):
        home = tmp_path / f"with-{name}"
        home.mkdir()
        home.chmod(0o755)
        (home / name).write_text("mine")

        with pytest.raises(Refused, match="overwrites nothing"):
            restored(home, whole)

        assert [path.name for path in home.iterdir()] == [name]
        assert (home / name).read_text() == "mine"
        assert home.stat().st_mode & 0o777 == 0o755


def test_a_home_is_restored_once(tmp_path: Path, whole: Path) -> None:
    restored(tmp_path / "h", whole)
    before = sorted((tmp_path / "h").rglob("*"))

    with pytest.raises(Refused, match="overwrites nothing"):
        restored(tmp_path / "h", whole)

    assert sorted((tmp_path / "h").rglob("*")) == before


@pytest.mark.parametrize("moved", [(), ("keys",), ("keys", "ledger", "payloads", "card.json")])
def test_a_killed_restore_is_repeated(tmp_path: Path, whole: Path, moved: tuple[str, ...]) -> None:
    home = Home(tmp_path / "h")
    restored(home.path, whole)
    # As a crash leaves it: the workshop is still there, the settings are not, some things have moved already.
    home.config.unlink()
    (home.path / "restoring").mkdir()
    for name in ("keys", "ledger", "payloads", "card.json", "keystore.key"):
        if name not in moved:
            (home.path / name).rename(home.path / "restoring" / name)
    with pytest.raises(Refused, match="no facility"):
        home.require()

    restored(home.path, whole)

    home.require()
    assert not (home.path / "restoring").exists()
    keys = databases.open_keys(home.path, create=False)
    assert Keystore.unlock(keys, "x", os.urandom).get("patient/1") == b"wallet"
    keys.close()


@pytest.mark.slow
def test_a_restore_that_was_killed_while_it_wrote_is_repeated(tmp_path: Path) -> None:
    draw, home = random.Random(3), Home(tmp_path / "h")
    payloads = [draw.randbytes(MIB) for _ in range(60)]
    chunks = [(Kind.CHUNK, hashlib.sha256(payload).digest(), payload) for payload in payloads]
    file = written(tmp_path / "b", FILES, KEYS, LEDGER, chunks)
    (tmp_path / "key").write_text(recovery_key_text(SECRET))
    command = [
        sys.executable, "-P", "-m", "node", "restore", str(file), "--recovery-key", str(tmp_path / "key"),
        "--home", str(home.path),
    ]  # fmt: skip
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workshop = home.path / "restoring" / "payloads"
    until("the restore to begin", lambda: workshop.exists() or killed.poll() is not None or None)
    killed.kill()
    killed.wait()
    with pytest.raises(Refused, match="no facility"):
        home.require()

    done = subprocess.run(command, capture_output=True, check=False)

    assert done.returncode == 0, done.stderr
    ledger = databases.open_ledger(home.path, create=False)
    stored = databases.open_payloads(home.path, create=False)
    assert ChunkStore(stored, ledger).statistics().chunks == len(chunks)
    ledger.close()
    stored.close()


def test_a_new_passphrase_takes_the_place_of_the_key_file(tmp_path: Path, whole: Path) -> None:
    home = Home(tmp_path / "h")
    restore(home, whole, SECRET, passphrase="battery staple", entropy=os.urandom, now_ms=0, started=unseen)

    keys = databases.open_keys(home.path, create=False)
    assert Keystore.unlock(keys, "battery staple", os.urandom).get("patient/1") == b"wallet"
    assert not home.key_file.exists()
    keys.close()


def test_a_home_that_is_being_restored_is_not_restored_twice(tmp_path: Path, whole: Path) -> None:
    home = Home(tmp_path / "h")
    home.path.mkdir()
    with home.lock(), pytest.raises(Refused, match="already running"):
        restored(home.path, whole)

    assert restored(home.path, whole).height == 0


@pytest.mark.parametrize(
    "groups",
    [
        (FILES, KEYS),
        (FILES, LEDGER),
        (FILES[1:], KEYS, LEDGER),
        (FILES, [(Kind.FILE, b"../../evil", b"x")], KEYS, LEDGER),
        (FILES, KEYS, LEDGER, [(Kind.CONTENTS, b"", b"")]),
        (),
    ],
)
def test_a_file_that_holds_no_whole_home_is_refused(tmp_path: Path, groups: tuple[list[Row], ...]) -> None:
    file = written(tmp_path / "b", *groups)

    with pytest.raises(Corruption, match="whole home"):
        restored(tmp_path / "h", file)

    assert {path.name for path in tmp_path.iterdir()} == {"b"}


def test_a_chunk_under_a_wrong_id_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "b", FILES, KEYS, LEDGER, CHUNKS)

    with pytest.raises(CarechainError, match="content id"):
        restored(tmp_path / "h", file)

    assert not (tmp_path / "h").exists()


def test_a_missing_file_and_another_key_are_refused_before_anything_is_made(
    tmp_path: Path, whole: Path
) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        restored(tmp_path / "h", tmp_path / "absent")
    with pytest.raises(Refused, match="another recovery key"):
        restored(tmp_path / "h", whole, bytes(32))

    assert not (tmp_path / "h").exists()
