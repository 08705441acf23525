"""One writer thread per database, and group commit: what waits while a batch is being synchronised shares the next one.

Several tasks write rows of the ledger database (consensus, applier, the stores of records). Their batches are merged in
the order they came, written once, synchronised when any of them asked for it.
"""

import errno

import trio

from node.event_log import EventLog
from node.queueing import queue
from node.threads import run_in_thread
from protocol.errors import StorageFull, Unavailable
from storage.key_value import Batch, KeyValue

_BATCHES_MAX = 1_024
_MERGED_BYTES_MAX = 16 * 1024 * 1024


class _Request:
    __slots__ = ("batch", "done", "error", "sync")

    def __init__(self, batch: Batch, *, sync: bool) -> None:
        self.batch = batch
        self.sync = sync
        self.done = trio.Event()
        self.error: Exception | None = None


class GroupCommitDisk:
    """The `Disk` port on a key-value store."""

    def __init__(self, rows: KeyValue, log: EventLog) -> None:
        self._rows = rows
        self._log = log
        self._send, self._requests = trio.open_memory_channel[_Request](_BATCHES_MAX)
        self.is_full = False
        self._failure: Exception | None = None

    def read(self, key: bytes) -> bytes | None:
        """Return the value of a key. Raises Corruption when its bytes fail their check."""
        return self._rows.get(key)

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        """Write a batch atomically, together with what else is waiting.

        Raises:
            StorageFull: nothing was written.
            Unavailable: nothing was written, the daemon is stopping.
            OSError, Corruption: the device or the database failed, and takes no more writes. The process must stop:
                after a failed fsync nobody knows what is on the disk.
        """
        request = _Request(batch, sync=sync)
        try:
            await queue(self._send, request)
        except trio.BrokenResourceError:
            raise Unavailable("the database is being closed") from None
        # The batch may be on its way to the disk already: a cancelled caller must not see "not written" for what was.
        with trio.CancelScope(shield=True):
            await request.done.wait()
        if request.error is not None:
            raise request.error

    async def run(self) -> None:
        """Write until cancelled; what was asked for before is written first."""
        try:
            async for request in self._requests:
                await self._write(self._with_waiting(request))
        finally:
            with trio.CancelScope(shield=True):
                while self._requests.statistics().current_buffer_used:
                    await self._write(self._with_waiting(self._requests.receive_nowait()))
            # Who comes later must not wait, shielded, for a writer that is gone.
            self._requests.close()

    def _with_waiting(self, first: _Request) -> list[_Request]:
        group, size = [first], first.batch.bytes
        while size < _MERGED_BYTES_MAX:
            try:
                group.append(self._requests.receive_nowait())
            except trio.WouldBlock:
                break
            size += group[-1].batch.bytes
        return group

    async def _write(self, group: list[_Request]) -> None:
        merged = Batch()  # never a caller's own: who is refused may come again with it
        for request in group:
            merged.extend(request.batch)
        sync = any(request.sync for request in group)
        error = self._failure
        if error is None:
            error = await self._write_merged(merged, sync=sync)
        for request in group:
            request.error = error
            request.done.set()

    async def _write_merged(self, merged: Batch, *, sync: bool) -> Exception | None:
        """Write one batch; return the error to tell everybody who is part of it."""
        try:
            with trio.CancelScope(shield=True):
                await run_in_thread(lambda: self._rows.write(merged, sync=sync))
        except StorageFull as full:
            is_news, self.is_full = not self.is_full, True
            if full.until_restart:
                self._failure = full
            if is_news:
                self._log.error("the disk is full: nothing is written until there is room")
            return full
        except Exception as failure:  # noqa: BLE001 - whatever it is, who waits must hear of it, or waits for ever
            code = errno.errorcode.get(failure.errno or 0, "?") if isinstance(failure, OSError) else ""
            self._log.error("the disk failed", error=type(failure).__name__, code=code)
            self._failure = failure  # an fsync error is never retried: what comes after it is not written
            return failure
        self.is_full = False
        return None
