import random
from pathlib import Path

import pytest

from protocol.errors import Corruption, Refused
from protocol.hpke import x25519_public
from protocol.limits import MIB
from protocol.passphrase import Hardness
from storage.key_value import Batch
from storage.keyspace import RECOVERY, SECRET
from storage.keystore import Keystore
from storage.leveldb import LevelDb
from storage.memory import MemoryStore

QUICK = Hardness(operations=1, memory_bytes=MIB)
RECOVERY_SECRET = bytes(range(32))


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


def test_the_recovery_key_opens_what_the_passphrase_did_and_any_passphrase_may_follow() -> None:
    database, store = made()
    store.put("wallet/1", b"one")
    assert store.recovery_key() is None
    store.set_recovery_key(x25519_public(RECOVERY_SECRET))

    recovered = Keystore.recover(database, RECOVERY_SECRET, entropy)
    recovered.change_passphrase("battery staple", hardness=QUICK)

    assert store.recovery_key() == x25519_public(RECOVERY_SECRET)
    assert Keystore.unlock(database, "battery staple", entropy).get("wallet/1") == b"one"
    # The passphrase may change as often as it likes: the recovery key seals what it seals.
    assert Keystore.recover(database, RECOVERY_SECRET, entropy).get("wallet/1") == b"one"


def test_another_recovery_key_opens_nothing() -> None:
    database, store = made()
    with pytest.raises(Refused, match="not sealed to this recovery key"):
        Keystore.recover(database, RECOVERY_SECRET, entropy)
    store.set_recovery_key(x25519_public(RECOVERY_SECRET))
    with pytest.raises(Refused, match="not sealed to this recovery key"):
        Keystore.recover(database, bytes(32), entropy)
    store.set_recovery_key(x25519_public(bytes(range(1, 33))))
    with pytest.raises(Refused, match="not sealed to this recovery key"):
        Keystore.recover(database, RECOVERY_SECRET, entropy)


def test_a_damaged_recovery_row_is_told_apart_from_a_wrong_key() -> None:
    database, store = made()
    store.set_recovery_key(x25519_public(RECOVERY_SECRET))
    row = database.get(RECOVERY)
    assert row is not None
    for damaged, match in (
        (row[:-1] + bytes([row[-1] ^ 1]), "open the key store with"),
        (b"x", "make a new"),
    ):
        batch = Batch()
        batch.put(RECOVERY, damaged)
        database.write(batch, sync=True)
        with pytest.raises(Corruption, match=match):
            Keystore.recover(database, RECOVERY_SECRET, entropy)


def test_who_changes_the_recovery_key_knows_the_passphrase(tmp_path: Path) -> None:
    _, store = made()
    store.check_passphrase("correct horse")
    for wrong in ("wrong horse", None):
        with pytest.raises(Refused):
            store.check_passphrase(wrong)
    with_file = Keystore.create(MemoryStore(), None, entropy, key_file=tmp_path / "key")
    with_file.check_passphrase(None)
    assert list(with_file.names()) == []
