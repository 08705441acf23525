"""A disk that takes its time and forgets what was not synchronised: the virtual `Disk` port.

As the real one it has one writer that groups what waits. A batch becomes visible when its write has ended. Power may
fail at any moment: then what is being written may or may not be there, and of the batches that were not synchronised an
arbitrary prefix survives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import trio

from storage.key_value import Batch
from storage.memory import MemoryStore

_BATCHES_MAX = 1_024
_UNSYNCED_MS = 0.05
"""A write into the operating system's cache."""


@dataclass(slots=True)
class DiskSpeed:
    """What `faults` changes while the disk is used: the mean time of a synchronised write."""

    sync_ms: float = 2.0


class _Request:
    __slots__ = ("batch", "done", "scope", "sync")

    def __init__(self, batch: Batch, *, sync: bool) -> None:
        self.batch = batch
        self.sync = sync
        self.done = trio.Event()
        self.scope = trio.CancelScope(shield=True)


class VirtualDisk:
    """One incarnation's use of one store. `written` is called with each group of writes, and whether it was synchronised, once it is visible."""

    def __init__(
        self, rows: MemoryStore, speed: DiskSpeed, rng: Random, written: Callable[[Batch, bool], None]
    ) -> None:
        self._rows = rows
        self._speed = speed
        self._rng = rng
        self._written = written
        self._send, self._requests = trio.open_memory_channel[_Request](_BATCHES_MAX)
        self._waiting: dict[_Request, None] = {}
        self._writing: Batch | None = None
        self._begun = trio.Event()
        self._is_dead = False

    def read(self, key: bytes) -> bytes | None:
        """Return the value of a key."""
        return self._rows.get(key)

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        """Write a batch atomically, together with what else is waiting. Only a crash cancels it once it is queued."""
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
        await self._write(merged, sync=any(request.sync for request in group))
        for request in group:
            request.done.set()

    async def _write(self, batch: Batch, *, sync: bool) -> None:
        self._writing = batch
        begun, self._begun = self._begun, trio.Event()
        begun.set()
        mean_ms = self._speed.sync_ms if sync else _UNSYNCED_MS
        await trio.sleep(mean_ms * self._rng.uniform(0.5, 1.5) / 1000)
        if self._is_dead:
            return
        self._rows.write(batch, sync=sync)
        self._writing = None
        self._written(batch, sync)

    async def next_write(self) -> None:
        """Wait until a write begins: the moment when a crash is most interesting."""
        await self._begun.wait()

    def power_off(self) -> None:
        """Stop here and now: nothing is written any more and nobody hears that something was."""
        self._is_dead = True
        for request in self._waiting:
            request.scope.shield = False

    def lose_unsynced(self) -> None:
        """Decide what the crash left. To be called once nothing runs on this disk."""
        assert self._is_dead
        if self._writing is not None and self._rng.random() < 0.5:
            self._rows.write(self._writing, sync=False)
        self._rows.crash(self._rng.randint(0, self._rows.unsynced))
