"""State snapshots in a database of their own: the newest two that are whole, and what has been fetched of one to install.

A snapshot is its manifest and its chunks, compressed, under (height, index). The manifest of one that is whole is written
last; of one that is being fetched it stands apart, as the *target*, so that fetching goes on after a restart. All of it can
be made or fetched again: a database that is damaged is replaced by an empty one. This module reads rows and builds batches.
"""

from itertools import islice
from typing import TypeVar

from protocol import codec, limits
from protocol.errors import Corruption, Malformed
from protocol.identifiers import Height
from protocol.snapshot import SnapshotManifest, StateStatement, StateStatements
from storage.key_value import Batch, KeyValue
from storage.keyspace import (
    SNAPSHOT_BELIEVED,
    SNAPSHOT_CHUNK,
    SNAPSHOT_MANIFEST,
    SNAPSHOT_STATEMENT,
    SNAPSHOT_TARGET,
    prefix_range,
    sequence_key,
)

T = TypeVar("T")
_REMOVED_PER_BATCH = 256
_WHOLE_KEPT = 2


class SnapshotStore:
    """Reads snapshots and builds the batches that change them. Reads may run beside the writer."""

    def __init__(self, rows: KeyValue) -> None:
        self._rows = rows

    # --- reads ------------------------------------------------------------------------------------------------

    def newest(self) -> SnapshotManifest | None:
        """Return the manifest of the newest snapshot that is whole."""
        for _, row in self._rows.scan(*prefix_range(SNAPSHOT_MANIFEST), reverse=True):
            return _decoded(row, SnapshotManifest)
        return None

    def manifest(self, height: Height) -> SnapshotManifest | None:
        """Return the manifest of the whole snapshot at a height."""
        row = self._rows.get(SNAPSHOT_MANIFEST + sequence_key(height))
        return _decoded(row, SnapshotManifest) if row is not None else None

    def target(self) -> SnapshotManifest | None:
        """Return the manifest of the snapshot that is being fetched."""
        row = self._rows.get(SNAPSHOT_TARGET)
        return _decoded(row, SnapshotManifest) if row is not None else None

    def chunk(self, height: Height, index: int) -> bytes | None:
        """Return a compressed chunk as it is stored; whoever takes it checks its hash."""
        return self._rows.get(_chunk_key(height, index))

    def statements(self) -> tuple[StateStatement, ...]:
        """Return this voter's newest statements, newest first, and those for which another snapshot was fetched."""
        rows = self._rows.scan(*prefix_range(SNAPSHOT_STATEMENT), reverse=True)
        own = [_decoded(row, StateStatement) for _, row in islice(rows, limits.SNAPSHOT_STATEMENTS_MAX)]
        row = self._rows.get(SNAPSHOT_BELIEVED)
        others = _decoded(row, StateStatements).statements if row is not None else ()
        return (*own, *(one for one in others if one not in own))

    # --- batches ----------------------------------------------------------------------------------------------

    @staticmethod
    def put_chunk(batch: Batch, height: Height, index: int, data: bytes) -> None:
        """Add one compressed chunk."""
        batch.put(_chunk_key(height, index), data)

    def put_whole(
        self, batch: Batch, manifest: SnapshotManifest, statement: StateStatement | None = None
    ) -> None:
        """Add that all chunks of a snapshot are here; and the statement of the voter that made it, dropping old ones."""
        batch.put(SNAPSHOT_MANIFEST + sequence_key(manifest.height), codec.encode(manifest))
        if statement is None:
            return
        batch.put(SNAPSHOT_STATEMENT + sequence_key(statement.height), codec.encode(statement))
        stated = self._rows.scan(*prefix_range(SNAPSHOT_STATEMENT), reverse=True)
        for key, _ in islice(stated, limits.SNAPSHOT_STATEMENTS_MAX - 1, None):
            batch.delete(key)

    @staticmethod
    def put_target(batch: Batch, manifest: SnapshotManifest, stated: tuple[StateStatement, ...]) -> None:
        """Add which snapshot is being fetched from now on, and the statements that made it believed."""
        batch.put(SNAPSHOT_TARGET, codec.encode(manifest))
        batch.put(SNAPSHOT_BELIEVED, codec.encode(StateStatements(stated)))

    @staticmethod
    def clear_target(batch: Batch) -> None:
        """Add that none is being fetched any more."""
        batch.delete(SNAPSHOT_TARGET)

    def put_all_removed(self, batch: Batch) -> None:
        """Add that no snapshot is whole and nothing is stated any more; the chunks go with `put_removal`."""
        for prefix in (SNAPSHOT_MANIFEST, SNAPSHOT_STATEMENT):
            for key, _ in self._rows.scan(*prefix_range(prefix)):
                batch.delete(key)

    def put_removal(self, batch: Batch) -> bool:
        """Add the removal of some of what is no use any more; return whether there is any.

        Kept are the newest whole snapshot, the one before it, for whoever is fetching that one just now, and the target.
        """
        target = self.target()
        kept = {target.height} if target is not None else set()
        whole = self._rows.scan(*prefix_range(SNAPSHOT_MANIFEST), reverse=True)
        for number, (key, _) in enumerate(whole):
            if number < _WHOLE_KEPT:
                kept.add(Height(int.from_bytes(key[len(SNAPSHOT_MANIFEST) :], "big")))
            else:
                batch.delete(key)
        height = self._height_from(0)
        while height is not None and len(batch.writes) < _REMOVED_PER_BATCH:
            if height not in kept:
                first = SNAPSHOT_CHUNK + sequence_key(height)
                stop = SNAPSHOT_CHUNK + sequence_key(height + 1)
                for key, _ in islice(self._rows.scan(first, stop), _REMOVED_PER_BATCH):
                    batch.delete(key)
            height = self._height_from(height + 1)
        return bool(batch.writes)

    def give_back(self) -> None:
        """Give back the space of removed chunks, which all lie below the first that is stored. Takes long; fit for a thread."""
        first = self._height_from(0)
        if first is not None:
            self._rows.compact(SNAPSHOT_CHUNK, SNAPSHOT_CHUNK + sequence_key(first))

    def _height_from(self, height: int) -> int | None:
        """Return the lowest height at or above `height` that any chunk is stored under."""
        start = SNAPSHOT_CHUNK + sequence_key(height)
        for key, _ in self._rows.scan(start, prefix_range(SNAPSHOT_CHUNK)[1]):
            return int.from_bytes(key[len(SNAPSHOT_CHUNK) : len(SNAPSHOT_CHUNK) + 8], "big")
        return None


def _chunk_key(height: Height, index: int) -> bytes:
    return SNAPSHOT_CHUNK + sequence_key(height) + sequence_key(index)


def _decoded(row: bytes, kind: type[T]) -> T:
    try:
        return codec.decode(row, kind)
    except Malformed as error:
        raise Corruption(f"a {codec.tag_of(kind)} row of the snapshots does not decode: {error}") from None
