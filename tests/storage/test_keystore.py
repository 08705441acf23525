import random
from pathlib import Path

import pytest

from protocol.errors import Corruption, Refused
from protocol.limits import MIB
from protocol.passphrase import Hardness
from storage.key_value import Batch
from storage.keyspace import SECRET
from storage.keystore import Keystore
from storage.leveldb import LevelDb
from storage.memory import MemoryStore

QUICK = Hardness(operations=1, memory_bytes=MIB)


entropy = random.Random(7).randbytes


def made(database=None) -> tuple[MemoryStore, Keystore]:
    database = database or MemoryStore()
    return database, Keystore.create(database, "correct horse", entropy, hardness=QUICK)


def test_secrets_survive_a_restart_under_the_passphrase() -> None:
    database, store = made()
    store.put("node", b"seed")
    store.put_many({"wallet/1": b"one", "wallet/2": b"two"})

    again = Keystore.unlock(database, "correct horse", entropy)
    assert Keystore.needs_passphrase(database)
    assert again.get("node") == b"seed"
    assert again.get("absent") is None
    assert list(again.names("wallet/")) == ["wallet/1", "wallet/2"]
    assert list(again.names()) == ["node", "wallet/1", "wallet/2"]


def test_wrong_and_missing_passphrases_are_refused() -> None:
    database, _ = made()
    with pytest.raises(Refused, match="wrong passphrase"):
        Keystore.unlock(database, "wrong horse", entropy)
    with pytest.raises(Refused, match="give it with --passphrase-file"):
        Keystore.unlock(database, None, entropy)
    with pytest.raises(Refused, match="carechain init"):
        Keystore.unlock(MemoryStore(), "x", entropy)
    with pytest.raises(Refused, match="never overwritten"):
        made(database)
    with pytest.raises(Refused, match="empty"):
        Keystore.create(MemoryStore(), "", entropy)


def test_without_a_passphrase_a_private_key_file_opens_it(tmp_path: Path) -> None:
    database, file = MemoryStore(), tmp_path / "master.key"
    Keystore.create(database, None, entropy, key_file=file).put("node", b"seed")

    assert file.stat().st_mode & 0o777 == 0o600
    assert not Keystore.needs_passphrase(database)
    assert Keystore.unlock(database, "ignored", entropy, key_file=file).get("node") == b"seed"
    with pytest.raises(Refused, match="never overwritten"):
        Keystore.create(MemoryStore(), None, entropy, key_file=file)
    file.write_bytes(bytes(32))
    with pytest.raises(Refused, match="wrong key file"):
        Keystore.unlock(database, None, entropy, key_file=file)
    file.unlink()
    with pytest.raises(Refused, match="key file of this home is missing"):
        Keystore.unlock(database, None, entropy, key_file=file)


def test_changing_the_passphrase_keeps_the_secrets() -> None:
    database, store = made()
    store.put("node", b"seed")
    store.change_passphrase("battery staple", hardness=QUICK)

    assert Keystore.unlock(database, "battery staple", entropy).get("node") == b"seed"
    with pytest.raises(Refused, match="wrong passphrase"):
        Keystore.unlock(database, "correct horse", entropy)


def test_a_secret_moved_to_another_name_or_changed_is_corruption() -> None:
    database, store = made()
    store.put("a", b"one")
    row = database.get(SECRET + b"a")
    assert row is not None
    batch = Batch()
    batch.put(SECRET + b"b", row)
    batch.put(SECRET + b"a", row[:-1] + bytes([row[-1] ^ 1]))
    database.write(batch, sync=True)

    for name in "ab":
        with pytest.raises(Corruption, match="restore it from a copy"):
            store.get(name)


def test_a_deleted_secret_leaves_the_files(tmp_path: Path) -> None:
    database = LevelDb(tmp_path / "keys", create=True, rebuild=None)
    store = Keystore.create(database, "correct horse", entropy, hardness=QUICK)
    store.put("wallet", b"s" * 64)
    store.put("node", b"n" * 64)
    sealed = database.get(SECRET + b"wallet")
    assert sealed is not None
    database.flush()
    store.delete("wallet")

    assert store.get("wallet") is None
    assert store.get("node") == b"n" * 64
    files = b"".join(path.read_bytes() for path in (tmp_path / "keys").iterdir() if path.is_file())
    assert sealed[24:40] not in files
    assert b"ssss" not in files
    database.close()


def test_its_repr_shows_nothing() -> None:
    _, store = made()
    store.put("node", b"seed")
    assert repr(store) == "Keystore(…)"


def test_a_replaced_secret_leaves_the_files(tmp_path: Path) -> None:
    database = LevelDb(tmp_path / "keys", create=True, rebuild=None)
    store = Keystore.create(database, "correct horse", entropy, hardness=QUICK)
    store.put("patient", b"s" * 64)
    sealed = database.get(SECRET + b"patient")
    assert sealed is not None
    database.flush()
    store.put("patient", b"t" * 64)

    store.erase_former("patient")

    assert store.get("patient") == b"t" * 64
    files = b"".join(path.read_bytes() for path in (tmp_path / "keys").iterdir() if path.is_file())
    assert sealed[24:40] not in files
    database.close()
