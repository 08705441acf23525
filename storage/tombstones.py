"""Erased records and superseded versions: the rows of ledger state that are listed, not looked up."""

from collections.abc import Iterator

from protocol import codec, ledger_rows
from protocol.errors import Corruption, Malformed
from protocol.identifiers import Rid
from protocol.ledger_rows import Erasure
from storage.key_value import KeyValue
from storage.keyspace import prefix_range
from storage.ledger_store import LedgerStore


class Tombstones:
    """Reads the state that `ledger` has in use. Holds nothing itself; any thread may read."""

    def __init__(self, rows: KeyValue, ledger: LedgerStore) -> None:
        self._rows = rows
        self._ledger = ledger

    def __iter__(self) -> Iterator[Erasure]:
        """Yield the tombstones of all erased records, by record id.

        Raises:
            Corruption: one of them does not decode.
        """
        for _, row in self._scan(ledger_rows.erasure_key(Rid(b""))):
            try:
                yield codec.decode(row, Erasure)
            except Malformed:
                raise Corruption("the row of an erased record does not decode") from None

    def versions_beside(self, rid: Rid) -> tuple[Rid, ...]:
        """Return the version that a record supersedes, and those that supersede it."""
        older = self._ledger.state(ledger_rows.older_version_key(rid))
        newer = [Rid(key) for key, _ in self._scan(ledger_rows.newer_version_key(rid, Rid(b"")))]
        return (*((Rid(older),) if older is not None else ()), *newer)

    def _scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        base = self._ledger.state_prefix + prefix
        for key, row in self._rows.scan(*prefix_range(base)):
            yield key[len(base) :], row
