"""What a member has of a record in its ledger database, and how all of it goes: one batch, then the tables rewritten.

Envelope, list of chunks and references; at the author also its note and the fingerprint of the file, so that the same
file may be added again. An envelope holds the wrapped key of the record, a row of the queue the key itself: their
former bytes must not stay in the tables.
"""

from node.record_index import RecordIndex
from protocol import chunk_exchange as exchange
from protocol import codec
from protocol.identifiers import Cid, NodeId, Rid
from storage.chunk_index import ChunkIndex
from storage.chunk_store import ChunkStore
from storage.envelope_store import EnvelopeStore
from storage.key_value import Batch, KeyValue
from storage.keyspace import (
    CHUNK_LIST,
    ENVELOPE,
    ENVELOPE_OF_RECORD,
    LACKING,
    RECORD_NOTE,
    RECORD_QUEUE,
    UNDER_REPLICATED,
    WATCH_MARK,
    prefix_range,
)
from storage.ledger_store import LedgerStore

COUNTED = WATCH_MARK + b"references"
_ROWS_PER_BATCH = 10_000


class ErasedRows:
    """Stages the end of a record's rows and rewrites the tables around them. All methods are fit for a worker thread."""

    def __init__(
        self,
        *,
        me: NodeId,
        ledger: LedgerStore,
        rows: KeyValue,
        chunks: ChunkStore,
        envelopes: EnvelopeStore,
        index: RecordIndex,
    ) -> None:
        self._me = me
        self._ledger = ledger
        self._rows = rows
        self._chunks = chunks
        self._envelopes = envelopes
        self._index = index

    def count_references(self) -> None:
        """Note once which records name which chunks, in a store that an older version began or a rescue filled."""
        if self._rows.get(COUNTED) is not None:
            return
        batch = Batch()
        for key, row in self._rows.scan(*prefix_range(CHUNK_LIST)):
            ChunkIndex.refer(
                batch, codec.decode(row, exchange.PlacedChunks).cids, Rid(key[len(CHUNK_LIST) :])
            )
            if len(batch.writes) >= _ROWS_PER_BATCH:
                self._rows.write(batch, sync=False)
                batch = Batch()
        batch.put(COUNTED, b"")
        self._rows.write(batch, sync=True)

    def stage(self, batch: Batch, rid: Rid, cids: tuple[Cid, ...]) -> tuple[bytes, ...]:
        """Stage that all rows of a record go; return the keys whose former bytes must leave the tables.

        Raises:
            Corruption: a row of this facility does not open.
        """
        keys: list[bytes] = []
        record = self._ledger.record(rid)
        if record is not None:
            batch.delete(ENVELOPE + record.env_hash)
            keys.append(ENVELOPE + record.env_hash)
            if self._ledger.configurations.is_same(record.author, self._me):
                keys.append(RECORD_QUEUE + rid)
        self._envelopes.delete_envelope(batch, rid)
        ChunkIndex.release_references(batch, cids, rid)
        for prefix in (CHUNK_LIST, LACKING, UNDER_REPLICATED):
            batch.delete(prefix + rid)
        note = self._index.note(rid)
        if note is not None:
            if not self._index.has_file(note):
                fingerprint = self._index.file_of(rid)
                if fingerprint is not None:
                    self._index.forget_file(batch, fingerprint)
            self._index.forget(batch, note)
        return tuple(keys)

    def compact(self, keys: tuple[bytes, ...]) -> bool:
        """Rewrite the tables that hold what was deleted under these keys; return whether it is gone from the files.

        Not while the rows are being scanned (a backup, a snapshot): the former tables stay until that has ended.
        """
        # All of them, also behind one that is read: the scan's end removes what was replaced.
        gone = [self._rows.compact(key, key + b"\0") for key in keys]
        return all(gone)

    def only_here(self, cids: tuple[Cid, ...], rid: Rid) -> tuple[Cid, ...]:
        """Return those of a record's chunks that are here and that no other record names."""
        return tuple(
            cid
            for cid in cids
            if self._chunks.has(cid) and all(other == rid for other in self._chunks.index.references(cid))
        )

    def is_back(self, rid: Rid) -> bool:
        """Whether there is an envelope, a list of chunks or a note of a record."""
        record = self._ledger.record(rid)
        keys = (ENVELOPE_OF_RECORD + rid, CHUNK_LIST + rid, RECORD_NOTE + rid)
        envelope = self._rows.get(ENVELOPE + record.env_hash) if record is not None else None
        return envelope is not None or any(self._rows.get(key) is not None for key in keys)
