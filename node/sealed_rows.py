"""This facility's own rows about records: which patient, which category, which file. Sealed, because the ledger has none of it.

A row is nonce[24] ‖ XChaCha20-Poly1305 under a key of the facility, bound to its key in the database, so that rows can
neither be read from a stolen disk nor swapped. The rows go with the facility: they are in no replica and no message.
"""

import hashlib
import hmac
from collections.abc import Iterator

from node.ports import Entropy
from protocol.errors import Corruption
from protocol.key_derivation import hkdf
from protocol.passphrase import NONCE_BYTES, WrongKeyError, open_secret, seal_secret
from storage.key_value import Batch, KeyValue
from storage.keyspace import prefix_range


class SealedRows:
    """Reads and stages sealed rows of the ledger database. `secret` is the facility's fingerprint secret (32 bytes)."""

    def __init__(self, rows: KeyValue, secret: bytes, entropy: Entropy) -> None:
        self._rows = rows
        self._key = hkdf(secret, b"carechain/v1/local-rows")
        self._fingerprint_key = hkdf(secret, b"carechain/v1/fingerprint")
        self._entropy = entropy

    def fingerprint(self, sha256: bytes, length: int) -> bytes:
        """Return the keyed fingerprint of a file: means nothing to whoever lacks the facility's secret."""
        return hmac.digest(self._fingerprint_key, sha256 + length.to_bytes(8, "big"), hashlib.sha256)

    def put(self, batch: Batch, key: bytes, plain: bytes) -> None:
        """Stage a row."""
        nonce = self._entropy.bytes(NONCE_BYTES)
        batch.put(key, nonce + seal_secret(self._key, nonce, key, plain))

    def get(self, key: bytes) -> bytes | None:
        """Return a row, or None.

        Raises:
            Corruption: its bytes do not open.
        """
        row = self._rows.get(key)
        return None if row is None else self._open(key, row)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key without prefix, row) in the order of keys.

        Raises:
            Corruption: at a row that does not open.
        """
        for key, row in self._rows.scan(*prefix_range(prefix)):
            yield key[len(prefix) :], self._open(key, row)

    def keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield the keys of a family of rows, without the prefix."""
        for key, _ in self._rows.scan(*prefix_range(prefix)):
            yield key[len(prefix) :]

    def _open(self, key: bytes, row: bytes) -> bytes:
        try:
            return open_secret(self._key, row[:NONCE_BYTES], key, row[NONCE_BYTES:])
        except WrongKeyError:
            raise Corruption(
                f"row {key[:1].decode()}:{key[1:].hex()[:16]} of the ledger database is damaged"
            ) from None

    def __repr__(self) -> str:
        return "SealedRows(…)"
