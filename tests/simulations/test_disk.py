import errno
import random

import pytest
import trio

from protocol.errors import StorageFull
from simulations.disk import DiskFaults, DiskSpeed, VirtualDisk
from storage.key_value import Batch
from storage.memory import MemoryStore


def row(key: bytes, value: bytes = b"1") -> Batch:
    batch = Batch()
    batch.put(key, value)
    return batch


def disk_on(rows: MemoryStore, *, seed: int = 1, sync_ms: float = 10.0) -> VirtualDisk:
    return VirtualDisk(rows, DiskSpeed(sync_ms), random.Random(seed), lambda *_: None)


async def test_a_synchronised_write_takes_its_time_and_survives(
    nursery: trio.Nursery, autojump_clock
) -> None:
    rows = MemoryStore()
    disk = disk_on(rows)
    nursery.start_soon(disk.run)
    await disk.commit(row(b"a"), sync=True)
    disk.power_off()
    disk.lose_unsynced()
    assert 0.004 < trio.current_time() < 0.016
    assert rows.get(b"a") == b"1"


async def test_what_waits_is_written_together(nursery: trio.Nursery, autojump_clock) -> None:
    rows = MemoryStore()
    disk = disk_on(rows, sync_ms=1_000)
    nursery.start_soon(disk.run)
    async with trio.open_nursery() as writers:
        for number in range(50):
            writers.start_soon(lambda number=number: disk.commit(row(bytes([number])), sync=True))
    assert trio.current_time() < 4
    assert rows.unsynced == 0


@pytest.mark.parametrize("seed", range(5))
async def test_a_crash_keeps_a_prefix_of_what_was_not_synchronised(
    seed: int, nursery: trio.Nursery, autojump_clock
) -> None:
    rows = MemoryStore()
    disk = disk_on(rows, seed=seed)
    nursery.start_soon(disk.run)
    await disk.commit(row(b"\x00"), sync=True)
    for number in range(1, 10):
        await disk.commit(row(bytes([number])), sync=False)
    disk.power_off()
    disk.lose_unsynced()
    kept = [number for number in range(10) if rows.get(bytes([number])) is not None]
    assert kept == list(range(len(kept)))
    assert kept


async def test_what_is_being_written_when_the_power_fails_may_or_may_not_be_there(autojump_clock) -> None:
    outcomes = set()
    for seed in range(20):
        rows = MemoryStore()
        disk = disk_on(rows, seed=seed)
        async with trio.open_nursery() as life:
            life.start_soon(disk.run)
            life.start_soon(lambda disk=disk: disk.commit(row(b"a"), sync=True))
            await trio.sleep(0.001)
            disk.power_off()
            life.cancel_scope.cancel()
        disk.lose_unsynced()
        outcomes.add(rows.get(b"a"))
    assert outcomes == {None, b"1"}


async def test_nobody_hears_of_a_write_after_the_power_has_failed(autojump_clock) -> None:
    rows = MemoryStore()
    disk = disk_on(rows)
    heard = []

    async def write() -> None:
        await disk.commit(row(b"a"), sync=True)
        heard.append(True)

    async with trio.open_nursery() as life:
        life.start_soon(disk.run)
        disk.power_off()
        life.start_soon(write)
        await trio.sleep(1)
        life.cancel_scope.cancel()
    assert not heard
    assert rows.get(b"a") is None


async def test_cancelling_a_writer_does_not_undo_what_it_has_queued(
    nursery: trio.Nursery, autojump_clock
) -> None:
    rows = MemoryStore()
    disk = disk_on(rows)
    nursery.start_soon(disk.run)
    with trio.move_on_after(0.001):
        await disk.commit(row(b"a"), sync=True)
    assert rows.get(b"a") == b"1"


async def test_a_disk_that_ends_holds_nobody_back(autojump_clock) -> None:
    rows = MemoryStore()
    disk = disk_on(rows)
    async with trio.open_nursery() as life:
        life.start_soon(disk.run)
        life.start_soon(lambda: disk.commit(row(b"a"), sync=True))
        await trio.sleep(0.001)
        life.cancel_scope.cancel()
    assert trio.current_time() < 0.002


async def failing(disk: VirtualDisk, key: bytes, *, sync: bool = True) -> type[Exception] | None:
    try:
        await disk.commit(row(key), sync=sync)
    except (OSError, StorageFull) as error:
        return type(error)
    return None


async def test_after_one_failed_fsync_nothing_more_is_written(nursery: trio.Nursery, autojump_clock) -> None:
    rows, faults, failures = MemoryStore(), DiskFaults(fails_next=True), []
    disk = VirtualDisk(
        rows,
        DiskSpeed(),
        random.Random(1),
        lambda *_: None,
        faults=faults,
        failed=lambda: failures.append(1),
    )
    nursery.start_soon(disk.run)
    assert await failing(disk, b"a", sync=False) is None
    assert [await failing(disk, key) for key in (b"b", b"c")] == [OSError, OSError]
    assert await failing(disk, b"d", sync=False) is OSError
    assert failures == [1]
    assert disk.failure is not None
    assert disk.failure.errno == errno.EIO
    assert [rows.get(key) for key in (b"b", b"c", b"d")] == [None] * 3
    # The next incarnation of the database works again.
    assert not faults.fails_next


async def test_whether_a_failed_write_is_there_is_unknown(autojump_clock) -> None:
    outcomes = set()
    for seed in range(20):
        rows = MemoryStore()
        disk = VirtualDisk(
            rows, DiskSpeed(), random.Random(seed), lambda *_: None, faults=DiskFaults(fails_next=True)
        )
        async with trio.open_nursery() as life:
            life.start_soon(disk.run)
            assert await failing(disk, b"a") is OSError
            life.cancel_scope.cancel()
        disk.lose_unsynced()
        outcomes.add(rows.get(b"a"))
    assert outcomes == {None, b"1"}


async def test_a_full_disk_refuses_before_it_writes_and_still_deletes(
    nursery: trio.Nursery, autojump_clock
) -> None:
    rows, faults = MemoryStore(), DiskFaults()
    disk = VirtualDisk(rows, DiskSpeed(), random.Random(1), lambda *_: None, faults=faults)
    nursery.start_soon(disk.run)
    await disk.commit(row(b"a"), sync=True)
    faults.is_full = True
    assert await failing(disk, b"b") is StorageFull
    deletion = Batch()
    deletion.delete(b"a")
    await disk.commit(deletion, sync=True)
    assert (rows.get(b"a"), rows.get(b"b")) == (None, None)
    faults.is_full = False
    assert await failing(disk, b"b") is None


async def test_a_lying_disk_loses_the_latest_of_what_it_said_was_synchronised(autojump_clock) -> None:
    lost_since = set()
    for seed in range(20):
        rows, faults = MemoryStore(), DiskFaults()
        disk = VirtualDisk(rows, DiskSpeed(), random.Random(seed), lambda *_: None, faults=faults)
        async with trio.open_nursery() as life:
            life.start_soon(disk.run)
            await disk.commit(row(b"honest"), sync=True)
            faults.lies = True
            lied_at = trio.current_time()
            for number in range(200):
                await disk.commit(row(bytes([number])), sync=True)
            disk.power_off()
            life.cancel_scope.cancel()
        since = disk.lose_unsynced()
        kept = [number for number in range(200) if rows.get(bytes([number])) is not None]
        assert rows.get(b"honest") == b"1"
        assert kept == list(range(len(kept)))
        assert len(kept) >= 200 - 64
        assert (since is None) == (len(kept) == 200)
        assert since is None or since > lied_at
        lost_since.add(since is not None)
    assert True in lost_since
