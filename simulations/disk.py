"""A disk that takes its time and forgets what was not synchronised: the virtual `Disk` port.

As the real one it has one writer that groups what waits. A batch becomes visible when its write has ended. Power may
fail at any moment: then what is being written may or may not be there, and of the batches that were not synchronised an
arbitrary prefix survives.

A group of batches is there whole or not at all, because LevelDB writes it as one record of its log, with a checksum. So
a torn tail, a last record of which only a part reached the medium, is a group that is lost: after an honest fsync that
can only be the one whose write was under way. Only a disk that lies about fsync loses more.
"""

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import trio

from protocol.errors import StorageFull
from storage.key_value import Batch
from storage.memory import MemoryStore

_BATCHES_MAX = 1_024
_UNSYNCED_MS = 0.05
"""A write into the operating system's cache."""
_LYING_CACHE_BATCHES = 64
"""What a disk that lies keeps in its own cache; older groups have reached the medium by then."""


@dataclass(slots=True)
class DiskSpeed:
    """What `faults` changes while the disk is used: the mean time of a synchronised write."""

    sync_ms: float = 2.0


@dataclass(slots=True)
class DiskFaults:
    """What is wrong with a disk. It outlives the crashes of the node that uses it."""

    fails_next: bool = False
    """The next synchronised write ends in EIO, once. What it wrote may or may not be there."""
    is_full: bool = False
    """Batches that hold values are refused with StorageFull before anything is written; deleting stays possible."""
    lies: bool = False
    """Synchronised writes are only in the disk's cache: a power failure may lose the latest of them."""


class _Request:
    __slots__ = ("batch", "done", "error", "scope", "sync")

    def __init__(self, batch: Batch, *, sync: bool) -> None:
        self.batch = batch
        self.sync = sync
        self.done = trio.Event()
        self.error: Exception | None = None
        self.scope = trio.CancelScope(shield=True)


class VirtualDisk:
    """One incarnation's use of one store.

    `written` is called with each group of writes, and whether it was synchronised (as the disk says), once it is visible;
    `failed` when a write has ended in EIO.
    """

    def __init__(
        self,
        rows: MemoryStore,
        speed: DiskSpeed,
        rng: Random,
        written: Callable[[Batch, bool], None],
        *,
        faults: DiskFaults | None = None,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        self._rows = rows
        self._speed = speed
        self._faults = faults if faults is not None else DiskFaults()
        self._rng = rng
        self._written = written
        self._failed = failed
        self.failure: OSError | None = None
        """The error after which this incarnation of the database takes no more writes."""
        # Of each unsynchronised batch: when the disk said that it was synchronised, if it did.
        self._promised: deque[float | None] = deque()
        self._send, self._requests = trio.open_memory_channel[_Request](_BATCHES_MAX)
        self._waiting: dict[_Request, None] = {}
        self._writing: Batch | None = None
        self._begun = trio.Event()
        self._is_dead = False

    def read(self, key: bytes) -> bytes | None:
        """Return the value of a key."""
        return self._rows.get(key)

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        """Write a batch atomically, together with what else is waiting. Only a crash cancels it once it is queued.

        Raises:
            StorageFull: nothing was written.
            OSError: this write or an earlier one failed; no more are taken.
        """
        if self._is_dead:
            await trio.sleep_forever()
        request = _Request(batch, sync=sync)
        self._waiting[request] = None
        try:
            await self._send.send(request)
            with request.scope:
                await request.done.wait()
        finally:
            del self._waiting[request]
        if request.error is not None:
            raise request.error

    async def run(self) -> None:
        """Write until cancelled; whoever waits then is cancelled with it."""
        try:
            async for request in self._requests:
                await self._serve(request)
        finally:
            self.power_off()

    async def _serve(self, first: _Request) -> None:
        group = [first]
        while True:
            try:
                group.append(self._requests.receive_nowait())
            except trio.WouldBlock:
                break
        merged = Batch()
        for request in group:
            merged.extend(request.batch)
        error: Exception | None = None
        try:
            await self._write(merged, sync=any(request.sync for request in group))
        except (StorageFull, OSError) as refusal:
            error = refusal
        for request in group:
            request.error = error
            request.done.set()

    async def _write(self, batch: Batch, *, sync: bool) -> None:
        if self.failure is not None:
            raise self.failure  # an fsync error is never retried: what comes after it is not written
        if self._faults.is_full and any(value is not None for value in batch.writes.values()):
            raise StorageFull("the virtual disk is full: nothing was written")
        self._writing = batch
        begun, self._begun = self._begun, trio.Event()
        begun.set()
        mean_ms = self._speed.sync_ms if sync else _UNSYNCED_MS
        await trio.sleep(mean_ms * self._rng.uniform(0.5, 1.5) / 1000)
        if self._is_dead:
            return
        if sync and self._faults.fails_next:
            self._faults.fails_next = False
            self.failure = OSError(errno.EIO, "the virtual disk failed")
            self._failed()
            raise self.failure  # `_writing` stays: nobody knows whether it is there
        self._settle(batch, sync=sync)
        self._writing = None
        self._written(batch, sync)

    def _settle(self, batch: Batch, *, sync: bool) -> None:
        self._rows.write(batch, sync=sync and not self._faults.lies)
        if sync and not self._faults.lies:
            self._promised.clear()
        elif batch.writes:
            self._promised.append(trio.current_time() if sync else None)
        if self._faults.lies and len(self._promised) > _LYING_CACHE_BATCHES:
            self._rows.settle(_LYING_CACHE_BATCHES)
            self._promised.popleft()

    async def next_write(self) -> None:
        """Wait until a write begins: the moment when a crash is most interesting."""
        await self._begun.wait()

    def power_off(self) -> None:
        """Stop here and now: nothing is written any more and nobody hears that something was."""
        self._is_dead = True
        for request in self._waiting:
            request.scope.shield = False

    def lose_unsynced(self) -> float | None:
        """Decide what the crash left; return the time of the first lost write of which the disk had said it was synchronised.

        To be called once nothing runs on this disk.
        """
        assert self._is_dead
        survives = self._writing is not None and self._rng.random() < 0.5
        if survives and self._writing is not None:
            self._rows.write(self._writing, sync=False)
        keep = self._rng.randint(0, self._rows.unsynced)
        self._rows.crash(keep)
        return next((when for when in list(self._promised)[keep:] if when is not None), None)
