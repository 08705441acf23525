"""Ciphertext chunks under increasing sequence numbers, in a database of their own.

LevelDB moves a table down without rewriting it when its key range overlaps nothing. Content ids are random, so under
them every byte is rewritten level by level; under a sequence it is written twice, log and table, which is the floor
(storage.md 1: 978 MiB/s against 41). Which sequence a chunk has is the business of `chunk_index`.

A value is `cid[32] ‖ ciphertext`: the index can be rebuilt from the payloads alone.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress

from protocol import limits
from protocol.errors import Corruption
from protocol.identifiers import Cid
from storage.key_value import Batch, KeyValue
from storage.keyspace import SEQUENCE_END, sequence_key

CID_BYTES = 32
BATCH_BYTES_MAX = limits.MIB
"""Payloads in one engine batch, small ones together: the engine's buffer for it doubles, copying, until it holds them."""
_TABLE_BYTES_MAX = 80 * limits.MIB
"""A table is a full write buffer and what the last batch added to it, and the next table's first block."""
_DAMAGED_RUN_MAX = 65_536
"""Payloads one damaged table can hold: 64 MiB of the smallest padding bucket."""


class PayloadStore:
    """Appends payloads and reads them back by sequence. Appending is for one thread at a time, reading for many.

    `next_sequence` is the number the next payload gets; the caller raises it when it remembers a higher one, and must
    when `end_is_unreadable`: then it is not known here.
    """

    def __init__(self, database: KeyValue) -> None:
        self._database = database
        self.next_sequence = 0
        self.is_empty = False
        self.end_is_unreadable = False
        try:
            last = next(database.scan(b"", SEQUENCE_END, reverse=True), None)
        except Corruption:
            # One damaged payload at the end must not keep a daemon from starting: its chunk is found by reading it.
            self.end_is_unreadable = True
            return
        self.is_empty = last is None
        if last is not None:
            self.next_sequence = int.from_bytes(last[0], "big") + 1

    def append(self, chunks: Sequence[tuple[Cid, bytes]], *, sync: bool) -> tuple[int, ...]:
        """Store payloads and return their sequences; with `sync` they, and all before them, are durable on return.

        Raises:
            StorageFull: the rest was not written; what was, is found by `replay_tail`.
        """
        sequences = []
        batch = Batch()
        for cid, data in chunks:
            if batch.bytes + len(data) > BATCH_BYTES_MAX and batch.writes:
                # Not synchronised: the last batch makes this one durable, and until then it may be lost.
                self._database.write(batch, sync=False)
                batch = Batch()
            batch.put(sequence_key(self.next_sequence), cid + data)
            sequences.append(self.next_sequence)
            self.next_sequence += 1
        if batch.writes:
            self.is_empty = False
            self._database.write(batch, sync=sync)
        return tuple(sequences)

    def read(self, sequence: int, cid: Cid, *, is_hashed: bool = True) -> bytes | None:
        """Return the payload, checked against its content id, or None when there is none under the sequence.

        Without `is_hashed` only the engine's checksum stands behind it: for who hands it to somebody that hashes it.

        Raises:
            Corruption: the stored bytes are not those that were stored.
        """
        value = self._database.get(sequence_key(sequence))
        if value is None:
            return None
        if value[:CID_BYTES] != cid:
            raise Corruption(f"payload {sequence} belongs to another chunk")
        data = value[CID_BYTES:]
        if is_hashed and hashlib.sha256(data).digest() != cid:
            raise Corruption(f"payload {sequence} does not match its content id")
        return data

    def replay_tail(self, sequence: int) -> Iterator[tuple[int, Cid, int]]:
        """Yield (sequence, cid, bytes of ciphertext) of every readable payload from a sequence on; pass damaged ones."""
        following: int | None = sequence
        while following is not None:
            sequence = following
            try:
                for key, value in self._database.scan(sequence_key(sequence), SEQUENCE_END):
                    sequence = int.from_bytes(key, "big") + 1
                    yield sequence - 1, Cid(value[:CID_BYTES]), len(value) - CID_BYTES
            except Corruption:
                following = self._readable_after(sequence)
            else:
                following = None

    def _readable_after(self, sequence: int) -> int | None:
        """Return the next sequence whose payload can be read: sequences are dense, so each is tried."""
        for candidate in range(sequence, sequence + _DAMAGED_RUN_MAX):
            with suppress(Corruption):  # that payload is what we are passing; reading its chunk reports it
                if self._database.get(sequence_key(candidate)) is not None:
                    return candidate
        return None

    def delete(self, sequences: Sequence[int]) -> None:
        """Forget payloads, durably; their space comes back with `reclaim`."""
        batch = Batch()
        for sequence in sequences:
            batch.delete(sequence_key(sequence))
        self._database.write(batch, sync=True)

    def reclaim(self, sequences: Sequence[int]) -> tuple[int, ...]:
        """Rewrite the tables around deleted payloads without them; return those whose bytes are gone from the files.

        Tables that hold a damaged payload are left alone: merging one fails, and after a failed merge LevelDB takes
        no more writes.
        """
        reclaimed: list[int] = []
        for first, last in _runs(sequences):
            start, stop = sequence_key(first), sequence_key(last) + b"\0"
            if self._is_readable_around(first, last) and self._database.compact(start, stop):
                reclaimed.extend(sequence for sequence in sequences if first <= sequence <= last)
        return tuple(reclaimed)

    def _is_readable_around(self, first: int, last: int) -> bool:
        """Whether all payloads can be read in every table that the range may reach into."""
        # At most one table sticks out on either side, and it is no longer than this many bytes.
        after = self._database.scan(sequence_key(first), SEQUENCE_END)
        before = self._database.scan(b"", sequence_key(first), reverse=True)
        try:
            for rows in (after, before):
                passed = 0
                for key, value in rows:
                    passed += len(value) if not first <= int.from_bytes(key, "big") <= last else 0
                    if passed > _TABLE_BYTES_MAX:
                        break
        except Corruption:
            return False
        return True

    def flush(self) -> None:
        """Write the buffer out as a table: when idle, its memory comes back."""
        self._database.flush()


def _runs(sequences: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of the runs in a set of sequences; gaps shorter than a table's worth do not split one."""
    gap = 64
    first = last = -1
    for sequence in sorted(sequences):
        if first >= 0 and sequence - last > gap:
            yield first, last
            first = -1
        if first < 0:
            first = sequence
        last = sequence
    if first >= 0:
        yield first, last
