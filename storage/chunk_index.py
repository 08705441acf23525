"""Where each chunk lies, who needs it, and how it fared: rows of the ledger database (`keyspace.TABLE`).

Functions that change rows only add them to a `Batch`: the caller commits them together with what they belong to.
Every row has one writer, so that no lock spans databases: the chunk store places, forgets and quarantines, who keeps
a record's list of chunks notes its references, the scrub notes readings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from protocol.codec import pack, unpack
from protocol.errors import Corruption, Malformed
from protocol.identifiers import Cid, Rid
from storage.key_value import Batch, KeyValue
from storage.keyspace import (
    CHUNK,
    CHUNK_CURSOR,
    CHUNK_QUARANTINE,
    CHUNK_RECLAIM,
    CHUNK_REFERENCES,
    CHUNK_SCRUBBED,
    prefix_range,
    sequence_key,
)

_CID_BYTES = 32


@dataclass(frozen=True, slots=True)
class Location:
    """Where a chunk lies among the payloads, and its length in bytes of ciphertext."""

    sequence: int
    size: int


class ChunkIndex:
    """Reads and stages the chunk rows of one ledger database. Holds nothing itself."""

    def __init__(self, ledger: KeyValue) -> None:
        self._ledger = ledger

    # --- location: written by the chunk store -----------------------------------------------------------------

    def locate(self, cid: Cid) -> Location | None:
        """Return where a chunk lies, or None when it is not here (or in quarantine)."""
        value = self._ledger.get(CHUNK + cid)
        return None if value is None else Location(*_numbers(value, 2, "chunk"))

    def place(self, batch: Batch, cid: Cid, location: Location) -> None:
        """Stage where a chunk lies."""
        batch.put(CHUNK + cid, pack(location.sequence, location.size))

    def displace(self, batch: Batch, cid: Cid) -> None:
        """Stage that it is unknown where a chunk lies, while the index is rebuilt."""
        batch.delete(CHUNK + cid)

    def forget(self, batch: Batch, cid: Cid, sequence: int) -> None:
        """Stage that a chunk is deleted and its payload waits to be reclaimed."""
        batch.delete(CHUNK + cid)
        batch.delete(CHUNK_SCRUBBED + cid)
        batch.put(CHUNK_RECLAIM + sequence_key(sequence), cid)

    def quarantine(self, batch: Batch, cid: Cid, sequence: int) -> None:
        """Stage that a chunk's payload is bad: the chunk is no longer here, and the payload is remembered."""
        batch.delete(CHUNK + cid)
        batch.delete(CHUNK_SCRUBBED + cid)
        batch.put(CHUNK_QUARANTINE + sequence_key(sequence), cid)

    def release(self, batch: Batch, sequence: int) -> None:
        """Stage that a bad payload exists no more."""
        batch.delete(CHUNK_QUARANTINE + sequence_key(sequence))

    def locations(self, after: bytes = b"") -> Iterator[tuple[Cid, Location]]:
        """Yield every chunk that is here, in the order of content ids; those behind `after` only, if one is given."""
        start, stop = prefix_range(CHUNK)
        for key, value in self._ledger.scan(start + after + b"\0" if after else start, stop):
            yield Cid(key[1:]), Location(*_numbers(value, 2, "chunk"))

    def cursor(self) -> int:
        """Return the sequence from which on payloads may not be indexed yet."""
        value = self._ledger.get(CHUNK_CURSOR)
        return 0 if value is None else _numbers(value, 1, "chunk cursor")[0]

    def move_cursor(self, batch: Batch, sequence: int) -> None:
        """Stage that every payload below a sequence is indexed."""
        batch.put(CHUNK_CURSOR, pack(sequence))

    def quarantined(self) -> tuple[tuple[int, Cid], ...]:
        """Return (sequence, cid) of the payloads that failed their check; bounded by the damage, not by the store."""
        rows = self._ledger.scan(*prefix_range(CHUNK_QUARANTINE))
        return tuple((int.from_bytes(key[1:], "big"), Cid(value)) for key, value in rows)

    def to_reclaim(self) -> tuple[int, ...]:
        """Return the sequences of deleted payloads whose space has not been given back."""
        return tuple(
            int.from_bytes(key[1:], "big") for key, _ in self._ledger.scan(*prefix_range(CHUNK_RECLAIM))
        )

    def lingering(self) -> frozenset[Cid]:
        """Return the deleted or quarantined chunks whose bytes are still in the files; bounded as their two lists are."""
        deleted = self._ledger.scan(*prefix_range(CHUNK_RECLAIM))
        return frozenset(Cid(cid) for _, cid in deleted if cid) | {cid for _, cid in self.quarantined()}

    def reclaimed(self, batch: Batch, sequence: int) -> None:
        """Stage that a deleted payload's space has been given back."""
        batch.delete(CHUNK_RECLAIM + sequence_key(sequence))

    # --- references: one row for each record that names a chunk, so that nobody reads a count, changes and writes it ---

    def references(self, cid: Cid) -> Iterator[Rid]:
        """Yield the records that name a chunk, sorted; neither they nor the chunk need be here."""
        for key, _ in self._ledger.scan(*prefix_range(CHUNK_REFERENCES + cid)):
            yield Rid(key[len(CHUNK_REFERENCES) + len(cid) :])

    def named(self, prefix: bytes = b"") -> Iterator[tuple[Cid, Rid]]:
        """Yield every chunk that a record names, with the record, where its id begins with a prefix; sorted.

        Neither the chunk nor the rest of the record need be here.
        """
        for key, _ in self._ledger.scan(*prefix_range(CHUNK_REFERENCES + prefix)):
            start = len(CHUNK_REFERENCES)
            yield Cid(key[start : start + _CID_BYTES]), Rid(key[start + _CID_BYTES :])

    @staticmethod
    def refer(batch: Batch, cids: Sequence[Cid], rid: Rid) -> None:
        """Stage that a record names these chunks."""
        for cid in cids:
            batch.put(CHUNK_REFERENCES + cid + rid, b"")

    @staticmethod
    def release_references(batch: Batch, cids: Sequence[Cid], rid: Rid) -> None:
        """Stage that a record names these chunks no more."""
        for cid in cids:
            batch.delete(CHUNK_REFERENCES + cid + rid)

    # --- scrub: written by the scrub --------------------------------------------------------------------------

    def scrubbed_ms(self, cid: Cid) -> int:
        """Return when a chunk was last read and found good (Unix ms), 0 for never."""
        value = self._ledger.get(CHUNK_SCRUBBED + cid)
        return 0 if value is None else _numbers(value, 1, "chunk scrub")[0]

    def mark_scrubbed(self, batch: Batch, cid: Cid, now_ms: int) -> None:
        """Stage that a chunk was read and found good."""
        batch.put(CHUNK_SCRUBBED + cid, pack(now_ms))


def _numbers(value: bytes, count: int, row: str) -> tuple[int, ...]:
    try:
        numbers = unpack(value)
    except Malformed:
        numbers = ()
    if len(numbers) != count or not all(type(number) is int for number in numbers):
        raise Corruption(
            f"a {row} row of the ledger database is unreadable: run `carechain run --rebuild ledger`"
        )
    return numbers
