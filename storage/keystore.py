"""Secrets at rest: identities, team keys, custody wallets. One master key seals them; a passphrase seals that.

    passphrase --Argon2id--> key --opens--> master key --opens--> every secret
    key file (0600, `--no-passphrase`) --opens--> master key
    recovery key (kept elsewhere) --opens--> master key, when the passphrase is lost or the machine is

Changing the passphrase re-seals one row. Names are public (they are keys of the database): they hold identifiers,
never personal data. Each secret is bound to its name, so rows cannot be swapped.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from protocol import hpke
from protocol.codec import pack, unpack
from protocol.errors import Corruption, Invalid, Malformed, Refused
from protocol.identifiers import PublicKey
from protocol.passphrase import (
    KEY_BYTES,
    NONCE_BYTES,
    SALT_BYTES,
    STANDARD,
    Hardness,
    WrongKeyError,
    key_of_passphrase,
    open_secret,
    seal_secret,
)
from storage.directories import sync_directory
from storage.key_value import Batch, KeyValue
from storage.keyspace import MASTER_KEY, RECOVERY, SECRET, SEQUENCE_END, prefix_range

Entropy = Callable[[int], bytes]
"""Returns that many unpredictable bytes."""

_BY_PASSPHRASE = "argon2id"  # noqa: S105 - the name of a method
_BY_KEY_FILE = "keyfile"
_NAME_CHARACTERS_MAX = 200


class Keystore:
    """An opened keystore. One thread. Made by `create` or `unlock`, never directly."""

    def __init__(self, database: KeyValue, master: bytes, entropy: Entropy) -> None:
        self._database = database
        self._master = master
        self._entropy = entropy

    @classmethod
    def create(
        cls,
        database: KeyValue,
        passphrase: str | None,
        entropy: Entropy,
        *,
        key_file: Path | None = None,
        hardness: Hardness = STANDARD,
    ) -> "Keystore":
        """Make a keystore in an empty database. Without a passphrase, a new `key_file` (mode 0600) opens it.

        Raises:
            Refused: there is a keystore already, the passphrase is empty, or the key file exists.
        """
        if database.get(MASTER_KEY) is not None:
            raise Refused("this home has keys already: they are never overwritten")
        store = cls(database, entropy(KEY_BYTES), entropy)
        if passphrase is not None:
            store.change_passphrase(passphrase, hardness=hardness)
        else:
            assert key_file is not None, "without a passphrase there must be a key file"
            key = entropy(KEY_BYTES)
            _write_key_file(key_file, key)
            store._write_master(_BY_KEY_FILE, key, bytes(SALT_BYTES), Hardness(0, 0))
        return store

    @classmethod
    def unlock(
        cls, database: KeyValue, passphrase: str | None, entropy: Entropy, *, key_file: Path | None = None
    ) -> "Keystore":
        """Open a keystore. The passphrase is ignored when the home was made without one.

        Raises:
            Refused: no keystore, no passphrase, the wrong one, or no key file.
            Corruption: the row of the master key is unreadable.
        """
        how, salt, hardness, nonce, sealed = _read_master(database)
        if how == _BY_KEY_FILE:
            key = _read_key_file(key_file)
        elif passphrase is None:
            raise Refused("these keys are sealed under a passphrase: give it with --passphrase-file")
        else:
            key = key_of_passphrase(passphrase, salt, hardness)
        try:
            master = open_secret(key, nonce, _master_name(how, salt, hardness), sealed)
        except WrongKeyError:
            what = "key file" if how == _BY_KEY_FILE else "passphrase"
            raise Refused(f"wrong {what}: it does not open the keys of this home") from None
        return cls(database, master, entropy)

    @classmethod
    def recover(cls, database: KeyValue, recovery_secret: bytes, entropy: Entropy) -> "Keystore":
        """Open a keystore with the recovery key, whatever the passphrase was.

        Raises:
            Refused: this keystore has another recovery key, or none.
            Corruption: the row of the recovery key is unreadable.
        """
        row = _read_recovery(database)
        if row is None or row[0] != hpke.x25519_public(recovery_secret):
            raise Refused("these keys were not sealed to this recovery key; find the right one")
        try:
            master = hpke.open_sealed(recovery_secret, _recovery_name(row[0]), row[1])
        except Invalid:
            raise Corruption(
                "the row of the recovery key is damaged: open the key store with its passphrase"
            ) from None
        return cls(database, master, entropy)

    @staticmethod
    def needs_passphrase(database: KeyValue) -> bool:
        """Whether `unlock` needs a passphrase (else the key file does it)."""
        return _read_master(database)[0] == _BY_PASSPHRASE

    def get(self, name: str) -> bytes | None:
        """Return a secret, or None when there is none of that name.

        Raises:
            Corruption: the row does not open under the master key.
        """
        row = self._database.get(SECRET + name.encode())
        if row is None:
            return None
        try:
            return open_secret(self._master, row[:NONCE_BYTES], name.encode(), row[NONCE_BYTES:])
        except WrongKeyError:
            raise Corruption(
                f"the secret {name} of the key store is damaged: restore it from a copy"
            ) from None

    def put(self, name: str, secret: bytes) -> None:
        """Store a secret durably, replacing another of that name (whose sealed bytes may stay on disk until deleted)."""
        self.put_many({name: secret})

    def put_many(self, secrets: dict[str, bytes]) -> None:
        """Store several secrets durably, together or not at all."""
        batch = Batch()
        for name, secret in secrets.items():
            assert 0 < len(name) <= _NAME_CHARACTERS_MAX
            nonce = self._entropy(NONCE_BYTES)
            sealed = seal_secret(self._master, nonce, name.encode(), secret)
            batch.put(SECRET + name.encode(), nonce + sealed)
        self._database.write(batch, sync=True)

    def delete(self, name: str) -> None:
        """Remove a secret for good, also its sealed bytes in the files; no error when there is none.

        What the device itself keeps of overwritten blocks is beyond reach; there, the passphrase protects.
        """
        key = SECRET + name.encode()
        batch = Batch()
        batch.delete(key)
        self._database.write(batch, sync=True)
        self._database.compact(key, key + b"\0")

    def erase_former(self, name: str) -> None:
        """Remove from the files what `put` has replaced under this name: a key that must not come back."""
        key = SECRET + name.encode()
        self._database.compact(key, key + b"\0")

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names that begin with a prefix, sorted."""
        start, stop = prefix_range(SECRET + prefix.encode())
        for key, _ in self._database.scan(start, stop):
            yield key[len(SECRET) :].decode()

    def change_passphrase(self, passphrase: str, *, hardness: Hardness = STANDARD) -> None:
        """Seal the master key under a new passphrase; the row under the old one leaves the files.

        Raises:
            Refused: the passphrase is empty.
        """
        if not passphrase:
            raise Refused("the passphrase is empty: choose one, or use --no-passphrase")
        salt = self._entropy(SALT_BYTES)
        self._write_master(_BY_PASSPHRASE, key_of_passphrase(passphrase, salt, hardness), salt, hardness)
        self._database.compact(MASTER_KEY, MASTER_KEY + b"\0")

    def recovery_key(self) -> PublicKey | None:
        """Return the public recovery key that backups are sealed to, or None when none has been made.

        Raises:
            Corruption: its row is unreadable.
        """
        row = _read_recovery(self._database)
        return None if row is None else row[0]

    def set_recovery_key(self, public: PublicKey) -> None:
        """Seal the master key to a recovery key, durably; an earlier recovery key opens earlier copies only.

        Raises:
            Invalid: not an X25519 key.
        """
        sealed = hpke.seal(public, _recovery_name(public), self._master, seed32=self._entropy(KEY_BYTES))
        batch = Batch()
        batch.put(RECOVERY, pack(public, sealed))
        self._database.write(batch, sync=True)
        self._database.compact(RECOVERY, RECOVERY + b"\0")

    def check_passphrase(self, passphrase: str | None) -> None:
        """Check that somebody knows what seals these keys; whoever may read the key file needs to know nothing.

        Raises:
            Refused: wrong or missing.
        """
        if self.needs_passphrase(self._database):
            Keystore.unlock(self._database, passphrase, self._entropy)

    def copy_rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every row as it is stored, sealed, from a snapshot taken at the first step: for a backup."""
        yield from self._database.scan(b"", SEQUENCE_END)

    def _write_master(self, how: str, key: bytes, salt: bytes, hardness: Hardness) -> None:
        nonce = self._entropy(NONCE_BYTES)
        sealed = seal_secret(key, nonce, _master_name(how, salt, hardness), self._master)
        batch = Batch()
        batch.put(MASTER_KEY, pack(how, salt, hardness.operations, hardness.memory_bytes, nonce, sealed))
        self._database.write(batch, sync=True)

    def __repr__(self) -> str:
        return "Keystore(…)"


def _master_name(how: str, salt: bytes, hardness: Hardness) -> bytes:
    return pack("carechain/v1/keystore", how, salt, hardness.operations, hardness.memory_bytes)


def _recovery_name(public: bytes) -> bytes:
    return pack("carechain/v1/keystore-recovery", public)


def _read_recovery(database: KeyValue) -> tuple[PublicKey, bytes] | None:
    row = database.get(RECOVERY)
    if row is None:
        return None
    try:
        public, sealed = unpack(row)
    except (Malformed, ValueError):
        raise Corruption("the row of the recovery key is damaged: make a new recovery key") from None
    return PublicKey(public), sealed


def _read_master(database: KeyValue) -> tuple[str, bytes, Hardness, bytes, bytes]:
    row = database.get(MASTER_KEY)
    if row is None:
        raise Refused("this home has no keys: run `carechain init` first")
    try:
        how, salt, operations, memory_bytes, nonce, sealed = unpack(row)
    except (Malformed, ValueError):
        raise Corruption("the master key of the key store is damaged: restore it from a copy") from None
    return how, salt, Hardness(operations, memory_bytes), nonce, sealed


def _write_key_file(path: Path, key: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Refused(f"{path.name} exists already: keys are never overwritten") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        # Persist before the database refers to it: a master key sealed under a lost file is lost.
        os.fsync(file.fileno())
    sync_directory(path.parent)


def _read_key_file(path: Path | None) -> bytes:
    try:
        key = path.read_bytes() if path is not None else b""
    except FileNotFoundError:
        key = b""
    if len(key) != KEY_BYTES:
        raise Refused("the key file of this home is missing or not one: restore it from a copy")
    return key
