"""Whoever follows the ledger waits for room; only a database that takes no more writes ends it."""

import pytest
import trio
import trio.testing

from node.awaiting_disk import RoomAwaitingDisk
from protocol.errors import StorageFull
from storage.key_value import Batch
from storage.memory import MemoryStore


class TrioClock:
    def now_ms(self) -> int:
        return int(trio.current_time() * 1000)

    async def sleep_ms(self, duration_ms: int) -> None:
        await trio.sleep(duration_ms / 1000)


class FullDisk:
    """Refuses a number of writes before it takes one."""

    def __init__(self, refusals: int, *, until_restart: bool = False) -> None:
        self.rows = MemoryStore()
        self.refusals = refusals
        self._until_restart = until_restart

    def read(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        if self.refusals:
            self.refusals -= 1
            raise StorageFull("full", until_restart=self._until_restart)
        self.rows.write(batch, sync=sync)


def a_batch() -> Batch:
    batch = Batch()
    batch.put(b"k", b"v")
    return batch


async def test_a_write_waits_until_there_is_room(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    full = FullDisk(3)
    disk = RoomAwaitingDisk(full, TrioClock())

    await disk.commit(a_batch(), sync=True)

    assert disk.read(b"k") == b"v"
    assert trio.current_time() - began == pytest.approx(3.0)
    assert autojump_clock.autojump_threshold == 0


async def test_a_database_that_takes_no_more_writes_is_not_waited_for() -> None:
    disk = RoomAwaitingDisk(FullDisk(1, until_restart=True), TrioClock())

    with pytest.raises(StorageFull):
        await disk.commit(a_batch(), sync=True)
