"""Chunks by content id: payloads in one database, their index in another, and nothing lost between the two.

Order of writing: payload (synchronised), index, ledger reference; reading goes the other way (storage.md 2). A crash
after the payload leaves a tail behind the cursor, which `ChunkStore` indexes when it is made. Index rows and cursor
are in one batch that need not be synchronised: lost together, they are replayed together. Deleting goes index first
(synchronised, with a note of what to reclaim), payload second; an interrupted deletion is finished at the next start.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from protocol.cid import cid_text
from protocol.errors import Corruption, Invalid, LocalFault
from protocol.identifiers import Cid
from storage import growth
from storage.chunk_index import ChunkIndex, Location
from storage.key_value import Batch, KeyValue
from storage.payload_store import PayloadStore

_INDEX_ROWS_PER_BATCH = 1_000
_UNREADABLE_TAIL_MAX = 2**20
_RECLAIM_AT_ONCE = 256
"""Payloads, at most 256 MiB: what one turn of rewriting tables gives back."""


@dataclass(frozen=True, slots=True)
class ChunkStatistics:
    """What the store holds, and what is wrong with it.

    `corruptions` counts failed readings since the start, `quarantined` payloads set aside, `unreclaimed` deleted
    payloads whose bytes are still in the files.
    """

    chunks: int
    bytes: int
    corruptions: int
    quarantined: int
    unreclaimed: int


class ChunkStore:
    """Stores and serves chunks. Any thread may read; writers take turns. Opening it replays the payload tail.

    `index` is the same rows as the applier and the scrub see them.
    """

    def __init__(self, payloads: KeyValue, ledger: KeyValue) -> None:
        self.index = ChunkIndex(ledger)
        self._ledger = ledger
        self._payloads = PayloadStore(payloads)
        self._writing = threading.Lock()
        self._reclaiming = threading.Lock()
        self._chunks = 0
        self._bytes = 0
        self._corruptions = 0
        for _, location in self.index.locations():
            self._count(location.size)
        if self._payloads.is_empty:
            # Moved aside (`--rebuild payloads`), or new: sequences begin anew, and rows about old ones would be lies.
            self._forget_payloads()
        self._replay_tail()
        self._payloads.next_sequence = max(self._payloads.next_sequence, self.index.cursor())
        if self._payloads.end_is_unreadable:
            # Payloads behind the cursor may exist that nobody can read: keep clear of their numbers.
            self._payloads.next_sequence += _UNREADABLE_TAIL_MAX
        self._finish_deletions()

    def has(self, cid: Cid) -> bool:
        """Whether the chunk is here and not known to be bad."""
        return self.index.locate(cid) is not None

    def get(self, cid: Cid, *, is_hashed: bool = True) -> bytes | None:
        """Return a chunk's ciphertext, checked against its id, or None when it is not here.

        Without `is_hashed` only the engine's checksum is looked at: to be sent to a member, which hashes what it takes.

        Raises:
            Corruption: the stored bytes fail their check; `quarantine` it, then repair from another member.
        """
        location = self.index.locate(cid)
        if location is None:
            return None
        try:
            data = self._payloads.read(location.sequence, cid, is_hashed=is_hashed)
        except Corruption as error:
            self._corruptions += 1
            raise Corruption(f"chunk {cid_text(cid)} is damaged (payload {location.sequence})") from error
        if data is None:
            if self.index.locate(cid) != location:  # deleted or repaired since we looked
                return self.get(cid, is_hashed=is_hashed)
            self._corruptions += 1
            raise Corruption(f"chunk {cid_text(cid)} is damaged (payload {location.sequence} is missing)")
        return data

    def put_many(self, chunks: Sequence[tuple[Cid, bytes]], *, trusted: bool = False) -> int:
        """Store chunks that are not here yet, durably on return; return how many were new.

        A chunk in quarantine counts as not here: storing it again is its repair. `trusted` skips hashing, for
        chunks that this process has just sealed and hashed itself.

        Raises:
            Invalid: a chunk does not match its content id; nothing was stored.
            StorageFull: nothing, or a first part, was stored.
        """
        if not trusted:
            for cid, data in chunks:
                if hashlib.sha256(data).digest() != cid:
                    raise Invalid(f"the bytes of chunk {cid_text(cid)} do not match its content id")
        with self._writing:
            new = {cid: data for cid, data in chunks if not self.has(cid)}
            if not new:
                return 0
            sequences = self._payloads.append(tuple(new.items()), sync=True)
            # A crash here leaves payloads behind the cursor: the next start indexes them.
            batch = Batch()
            for (cid, data), sequence in zip(new.items(), sequences, strict=True):
                self.index.place(batch, cid, Location(sequence, len(data)))
                self._count(len(data))
            self.index.move_cursor(batch, self._payloads.next_sequence)
            self._ledger.write(batch, sync=False)
            return len(new)

    def cids(self) -> Iterator[Cid]:
        """Yield the content ids of all chunks here, sorted."""
        for cid, _ in self.index.locations():
            yield cid

    def statistics(self) -> ChunkStatistics:
        """Return the figures of the store, kept up to date in memory."""
        quarantined, unreclaimed = len(self.index.quarantined()), len(self.index.to_reclaim())
        return ChunkStatistics(self._chunks, self._bytes, self._corruptions, quarantined, unreclaimed)

    def quarantine(self, cid: Cid) -> None:
        """Stop counting on a bad chunk: `has` is False until `put_many` brings it anew.

        Its old payload is left where it is: deleting it would make LevelDB merge the damaged table, fail, and refuse
        all further writes.
        """
        with self._writing:
            location = self.index.locate(cid)
            if location is None:
                return
            batch = Batch()
            self.index.quarantine(batch, cid, location.sequence)
            self._ledger.write(batch, sync=True)
            self._count(-location.size)

    def delete(self, cids: Sequence[Cid]) -> int:
        """Delete chunks for good, also their bytes in the files; return how many were here.

        The caller checked references. Next to damaged payloads the bytes stay (`ChunkStatistics.unreclaimed`) until
        the payloads are rebuilt.
        """
        with self._writing:
            batch = Batch()
            sequences: list[int] = []
            for cid in dict.fromkeys(cids):
                location = self.index.locate(cid)
                if location is not None:
                    self.index.forget(batch, cid, location.sequence)
                    self._count(-location.size)
                    sequences.append(location.sequence)
            if sequences:
                # Synchronised before the payloads go: an index row must never outlive its payload.
                self._ledger.write(batch, sync=True)
                self._payloads.delete(sequences)
        # Not among writers: rewriting tables takes a second for 256 MiB, and what was deleted is out of their way.
        self._reclaim(tuple(sequences))
        return len(sequences)

    def lingering(self, cids: Sequence[Cid]) -> frozenset[Cid]:
        """Return those of deleted chunks whose bytes are still in the files, after trying once more to be rid of them.

        Only damage keeps them there: of a table that cannot be merged, or of the payload itself (quarantine).
        """
        left = self.index.lingering().intersection(cids)
        if left:
            self._reclaim(self.index.to_reclaim())
            left = self.index.lingering().intersection(cids)
        return left

    def rebuild_index(self) -> None:
        """Throw away where chunks lie and read it back from the payloads; references and scrub times stay."""
        with self._writing:
            batch = Batch()
            # The cursor first: after a crash in between, the next start indexes again what is thrown away here.
            self.index.move_cursor(batch, 0)
            self._ledger.write(batch, sync=True)
            batch = Batch()
            for cid in self.cids():
                self.index.displace(batch, cid)
                if len(batch.writes) >= _INDEX_ROWS_PER_BATCH:
                    self._ledger.write(batch, sync=False)
                    batch = Batch()
            self._ledger.write(batch, sync=True)
            self._chunks = self._bytes = 0
            self._replay_tail()

    def flush(self) -> None:
        """Give back the memory of the payload buffer: call when idle."""
        self._payloads.flush()

    def _forget_payloads(self) -> None:
        batch = Batch()
        for sequence, _ in self.index.quarantined():
            self.index.release(batch, sequence)
        growth.forget_all(batch, self._ledger)
        self._ledger.write(batch, sync=True)
        if self._chunks:
            self.rebuild_index()

    def _replay_tail(self) -> None:
        """Index the payloads behind the cursor, except those deleted or set aside."""
        ignored = {*self.index.to_reclaim(), *(sequence for sequence, _ in self.index.quarantined())}
        batch = Batch()
        rows = 0
        for sequence, cid, size in self._payloads.replay_tail(self.index.cursor()):
            if sequence in ignored:
                continue
            known = self.index.locate(cid)
            if known is None:
                self._count(size)
            self.index.place(batch, cid, Location(sequence, size))
            self.index.move_cursor(batch, sequence + 1)
            rows += 1
            if rows % _INDEX_ROWS_PER_BATCH == 0:
                self._ledger.write(batch, sync=False)
                batch = Batch()
        if batch.writes:
            self._ledger.write(batch, sync=True)

    def _finish_deletions(self) -> None:
        sequences = self.index.to_reclaim()
        if sequences:
            self._payloads.delete(sequences)
            self._reclaim(sequences)

    def _reclaim(self, sequences: Sequence[int]) -> None:
        """Give back the space of deleted payloads, a bounded part at a time."""
        for start in range(0, len(sequences), _RECLAIM_AT_ONCE):
            with self._reclaiming:
                batch = Batch()
                for sequence in self._payloads.reclaim(sequences[start : start + _RECLAIM_AT_ONCE]):
                    self.index.reclaimed(batch, sequence)
                self._ledger.write(batch, sync=True)

    def _count(self, size: int) -> None:
        self._chunks += 1 if size >= 0 else -1
        self._bytes += size
        if self._chunks < 0:
            raise LocalFault("fewer chunks than none")
