"""`storage reclaim`: the space of what nobody needs is given back now, and what cannot be given back is told.

Chunks that no record names are of uploads that nobody went on with: a refused file, an author that lost its queue. They are
deleted when they are older than a day, so that no upload that goes on loses one. What was deleted before is tried again.
"""

from collections.abc import AsyncGenerator, Callable
from itertools import islice
from typing import Any

from node.erased_rows import COUNTED
from node.ports import Workers
from protocol.identifiers import Cid
from storage.chunk_store import ChunkStore
from storage.key_value import KeyValue
from storage.keyspace import LACKING, prefix_range

Document = dict[str, Any]

_CHUNKS_PER_TURN = 2_048
_DELETED_AT_ONCE = 512
"""At most 512 MiB: tables are rewritten once for all of them."""


class Reclaiming:
    """Deletes what is abandoned and rewrites tables. `sequence_abandoned` tells below which payloads are old enough."""

    def __init__(
        self,
        *,
        rows: KeyValue,
        chunks: ChunkStore,
        workers: Workers,
        file_bytes: Callable[[], int],
        sequence_abandoned: Callable[[], int],
    ) -> None:
        self._rows = rows
        self._chunks = chunks
        self._workers = workers
        self._file_bytes = file_bytes
        self._sequence_abandoned = sequence_abandoned

    async def reclaim(self) -> AsyncGenerator[Document, None]:
        """Yield `{"progress": …}` now and then, at last `{"result": …}`.

        Raises:
            StorageFull, Corruption: the database takes no writes.
        """
        before = await self._workers.run(self._file_bytes)
        await self._workers.run(self._chunks.flush)
        total, done, abandoned = self._chunks.statistics().chunks, 0, list[Cid]()
        after: bytes | None = b""
        below = self._sequence_abandoned() if self._knows_references() else 0
        while below and after is not None:
            found, after = await self._workers.run(self._abandoned, after, below)
            abandoned += found
            done += _CHUNKS_PER_TURN
            yield {"progress": {"part": "chunks", "done": min(done, total), "total": total}}
        deleted = 0
        for start in range(0, len(abandoned), _DELETED_AT_ONCE):
            portion = tuple(abandoned[start : start + _DELETED_AT_ONCE])
            deleted += await self._workers.run(self._delete, portion)
            yield {"progress": {"part": "abandoned", "done": deleted, "total": len(abandoned)}}
        deletions = self._chunks.index.lingering()
        yield {"progress": {"part": "tables", "done": 0, "total": 1}}
        await self._workers.run(self._chunks.lingering, tuple(deletions))
        await self._workers.run(self._chunks.flush)
        statistics, now = self._chunks.statistics(), await self._workers.run(self._file_bytes)
        yield {
            "result": {
                "ok": not statistics.unreclaimed,
                "reclaimed_bytes": max(before - now, 0),
                "file_bytes": now,
                "bytes": statistics.bytes,
                "chunks": statistics.chunks,
                "abandoned": deleted,
                "unreclaimed": statistics.unreclaimed,
                "quarantined": statistics.quarantined,
            }
        }

    def _knows_references(self) -> bool:
        """Whether it is known of every chunk here which records name it.

        A list of chunks that is still to come may name any of them.
        """
        is_lacking = next(self._rows.scan(*prefix_range(LACKING)), None) is not None
        return self._rows.get(COUNTED) is not None and not is_lacking

    def _abandoned(self, after: bytes, below: int) -> tuple[list[Cid], bytes | None]:
        """Return those of the next chunks that are old and named by nobody, and where to go on, None at the end."""
        found = []
        portion = list(islice(self._chunks.index.locations(after), _CHUNKS_PER_TURN))
        for cid, location in portion:
            if location.sequence < below and self._is_unnamed(cid):
                found.append(cid)
        return found, portion[-1][0] if len(portion) == _CHUNKS_PER_TURN else None

    def _delete(self, cids: tuple[Cid, ...]) -> int:
        # Looked at once more: a record may have come since the search. One that comes from now on finds its chunk lacking.
        return self._chunks.delete([cid for cid in cids if self._is_unnamed(cid)])

    def _is_unnamed(self, cid: Cid) -> bool:
        return next(self._chunks.index.references(cid), None) is None
