"""One write at a time per database, in a thread, and group commit: what waits meanwhile shares the next one.

Several tasks write rows of the ledger database (consensus, applier, the stores of records). Their batches are merged in
the order they came, written once, synchronised when any of them asked for it.
"""

import errno
from collections import deque

import trio

from node.event_log import EventLog
from node.threads import finish_in_thread
from protocol.errors import StorageFull, Unavailable
from storage.key_value import Batch, KeyValue

_MERGED_BYTES_MAX = 16 * 1024 * 1024


class _Request:
    __slots__ = ("batch", "error", "is_written", "sync", "task")

    def __init__(self, batch: Batch, *, sync: bool) -> None:
        self.batch = batch
        self.sync = sync
        self.task = trio.lowlevel.current_task()
        self.is_written = False
        self.error: Exception | None = None


class GroupCommitDisk:
    """The `Disk` port on a key-value store.

    Who finds nobody writing writes itself, and who comes meanwhile waits; of those the first then writes for all: a task
    that did nothing but write would have to be woken twice for each batch, which is much of what a small block costs.
    """

    def __init__(self, rows: KeyValue, log: EventLog) -> None:
        self._rows = rows
        self._log = log
        self._waiting: deque[_Request] = deque()  # bounded by the tasks that wait
        self._is_writing = False
        self._is_closed = False
        self._idle = trio.Event()
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
        if self._is_closed:
            raise Unavailable("the database is being closed")
        # Others may write the batch: a cancelled caller must not see "not written" for what was, and so does not leave.
        request = _Request(batch, sync=sync)
        if self._is_writing:
            self._waiting.append(request)
            await trio.lowlevel.wait_task_rescheduled(lambda _raise: trio.lowlevel.Abort.FAILED)
        if not request.is_written:
            self._is_writing = True
            try:
                await self._write(self._with_waiting(request))
            finally:
                self._let_next_write()
        if request.error is not None:
            raise request.error

    async def run(self) -> None:
        """Keep the database open until cancelled; what was asked for before is written first."""
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                while self._is_writing:
                    await self._idle.wait()
            self._is_closed = True

    def _let_next_write(self) -> None:
        if self._waiting:
            # It is still writing: nobody else may begin before this one is awake.
            trio.lowlevel.reschedule(self._waiting.popleft().task)
        else:
            self._is_writing = False
            self._idle.set()
            self._idle = trio.Event()

    def _with_waiting(self, first: _Request) -> list[_Request]:
        group, size = [first], first.batch.bytes
        while self._waiting and size < _MERGED_BYTES_MAX:
            group.append(self._waiting.popleft())
            size += group[-1].batch.bytes
        return group

    async def _write(self, group: list[_Request]) -> None:
        first, *others = group
        merged = first.batch
        if others:
            merged = Batch()  # never a caller's own: who is refused may come again with it
            for request in group:
                merged.extend(request.batch)
        error = self._failure
        if error is None:
            error = await self._write_merged(merged, sync=any(request.sync for request in group))
        for request in group:
            request.is_written, request.error = True, error
        for request in others:
            trio.lowlevel.reschedule(request.task)

    async def _write_merged(self, merged: Batch, *, sync: bool) -> Exception | None:
        """Write one batch; return the error to tell everybody who is part of it."""
        try:
            await finish_in_thread(lambda: self._rows.write(merged, sync=sync))
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
