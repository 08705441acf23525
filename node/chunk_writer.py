"""Writes chunks in a thread of its own, what waits meanwhile together: one synchronised write for all of them.

    uploads, other members' pushes ──► put… ──► one batch up to 8 MiB ──► durable, all of them answered

Beside the worker threads on purpose. A write of some MiB waits for the disk and, now and then, for LevelDB to write a
table; two of them would take both workers, and blocks would wait to be verified behind a bulk copy.
"""

from collections import deque
from collections.abc import Sequence

import trio

from node.idle_memory import release_free_memory
from node.ports import Workers
from protocol import limits
from protocol.identifiers import Cid
from storage.chunk_store import ChunkStore

_GROUP_BYTES_MAX = 8 * limits.MIB
"""Written together: a synchronised write more costs little beside it, and the ledger's own wait behind it on the same disk."""

_RELEASE_BYTES = 256 * limits.MIB
"""Written between two looks for memory that is free: in a record of 10 GiB it would add up to more than a daemon may take."""


class _Request:
    __slots__ = ("chunks", "error", "is_taken", "size")

    def __init__(self, chunks: Sequence[tuple[Cid, bytes]]) -> None:
        self.chunks = chunks
        self.size = sum(len(data) for _, data in chunks)
        self.is_taken = False
        self.error: Exception | None = None


class ChunkWriter:
    """Stores and deletes chunks. `thread` runs one call at a time, and nobody else's."""

    def __init__(self, chunks: ChunkStore, thread: Workers) -> None:
        self._chunks = chunks
        self._thread = thread
        self._waiting: deque[_Request] = deque()
        self._turn = trio.Lock()
        self._since_release = 0

    async def put(self, chunks: Sequence[tuple[Cid, bytes]]) -> None:
        """Store chunks whose ids this process has computed itself; durable on return.

        Cancelled while it waits, nothing is stored; while others write it, it is. `delete` comes after that.

        Raises:
            StorageFull: nothing, or a part, was stored; so for everybody in the same write.
        """
        request = _Request(chunks)
        self._waiting.append(request)
        try:
            # Who has the turn writes for all that wait; the others find, at theirs, that it is done.
            async with self._turn:
                if not request.is_taken:
                    await self._write(self._group())
        finally:
            if not request.is_taken:
                self._waiting.remove(request)
        if request.error is not None:
            raise request.error

    async def delete(self, cids: Sequence[Cid]) -> None:
        """Delete chunks; the caller checked that nothing names them."""
        async with self._turn:
            await self._thread.run(self._chunks.delete, tuple(cids))

    def _group(self) -> list[_Request]:
        group = [self._waiting.popleft()]
        size = group[0].size
        while self._waiting and size + self._waiting[0].size <= _GROUP_BYTES_MAX:
            group.append(self._waiting.popleft())
            size += group[-1].size
        for request in group:
            request.is_taken = True
        return group

    async def _write(self, group: list[_Request]) -> None:
        chunks = [chunk for request in group for chunk in request.chunks]
        error: Exception | None = None
        # Others of the group must not hear "not stored" because one of them was cancelled.
        with trio.CancelScope(shield=True):
            try:
                await self._thread.run(self._put, chunks)
            except Exception as failure:  # noqa: BLE001 - whatever it is, all of them must hear of it
                error = failure
        for request in group:
            request.error = error

    def _put(self, chunks: list[tuple[Cid, bytes]]) -> None:
        self._chunks.put_many(chunks, trusted=True)
        self._since_release += sum(len(data) for _, data in chunks)
        if self._since_release >= _RELEASE_BYTES:
            self._since_release = 0
            release_free_memory()
