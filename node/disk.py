"""One writer thread per database, and group commit: what waits while a batch is being synchronised shares the next one.

Several tasks write rows of the ledger database (consensus, applier, the stores of records). Their batches are merged in
the order they came, written once, synchronised when any of them asked for it.
"""

import errno

import trio

from node.event_log import EventLog
from protocol.errors import StorageFull
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
        self._limiter = trio.CapacityLimiter(1)

    def read(self, key: bytes) -> bytes | None:
        """Return the value of a key. Raises Corruption when its bytes fail their check."""
        return self._rows.get(key)

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        """Write a batch atomically, together with what else is waiting.

        Raises:
            StorageFull: nothing was written.
            OSError: the device failed. The process must stop: after a failed fsync nobody knows what is on the disk.
        """
        request = _Request(batch, sync=sync)
        await self._send.send(request)
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
        merged = group[0].batch
        for request in group[1:]:
            merged.extend(request.batch)
        sync = any(request.sync for request in group)
        error: Exception | None = None
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(
                    lambda: self._rows.write(merged, sync=sync), limiter=self._limiter
                )
            self.is_full = False
        except StorageFull as full:
            self.is_full, error = True, full
            self._log.error("the disk is full: nothing is written until there is room")
        except OSError as failure:
            error = failure
            self._log.error("the disk failed", code=errno.errorcode.get(failure.errno or 0, "?"))
        for request in group:
            request.error = error
            request.done.set()
