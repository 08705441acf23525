import errno
import threading
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from node.disk import GroupCommitDisk
from protocol.errors import Corruption, StorageFull, Unavailable
from storage.key_value import Batch
from storage.memory import MemoryStore
from tests.node.ledger_double import SilentLog


class GatedStore:
    """A store whose writes wait for a gate, fail as told, and are recorded in order."""

    def __init__(self) -> None:
        self.rows = MemoryStore()
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.failures: dict[bytes, Exception] = {}
        self.writes: list[tuple[tuple[bytes, ...], bool]] = []

    def write(self, batch: Batch, *, sync: bool) -> None:
        self.begun.set()
        self.gate.wait(5)
        for key in batch.writes:
            if key in self.failures:
                raise self.failures[key]
        self.writes.append((tuple(batch.writes), sync))
        self.rows.write(batch, sync=sync)

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return self.rows.scan(start, stop, reverse=reverse)

    def flush(self) -> None:
        self.rows.flush()

    def compact(self, start: bytes, stop: bytes) -> bool:
        return self.rows.compact(start, stop)

    def close(self) -> None:
        self.rows.close()


def put(key: bytes, value: bytes = b"value") -> Batch:
    batch = Batch()
    batch.put(key, value)
    return batch


@pytest.fixture
def store() -> GatedStore:
    return GatedStore()


@pytest.fixture
async def disk(store: GatedStore, nursery: trio.Nursery) -> GroupCommitDisk:
    disk = GroupCommitDisk(store, SilentLog())
    nursery.start_soon(disk.run)
    return disk


async def hold_first(disk: GroupCommitDisk, store: GatedStore, nursery: trio.Nursery) -> None:
    """Let one batch be in the middle of its write, so that what is asked for now waits together."""
    store.gate.clear()

    async def first() -> None:
        await disk.commit(put(b"first"), sync=False)

    nursery.start_soon(first)
    await trio.to_thread.run_sync(store.begun.wait, 5)


async def test_what_waits_shares_one_synchronised_write_and_the_last_write_to_a_key_wins(
    disk, store, nursery
) -> None:
    await hold_first(disk, store, nursery)
    async with trio.open_nursery() as callers:

        async def ask(value: bytes, sync: bool) -> None:
            await disk.commit(put(b"key", value), sync=sync)

        for value, sync in ((b"0", False), (b"1", True), (b"2", False)):
            callers.start_soon(ask, value, sync)
            await trio.testing.wait_all_tasks_blocked()
        store.gate.set()
    assert store.writes == [((b"first",), False), ((b"key",), True)]
    assert disk.read(b"key") == b"2"


async def test_a_full_disk_is_told_to_every_caller_and_leaves_nothing_half_written(
    disk, store, nursery
) -> None:
    await hold_first(disk, store, nursery)
    store.failures[b"a"] = StorageFull("full")
    told: list[bytes] = []

    async def ask(batch: Batch, name: bytes) -> None:
        with pytest.raises(StorageFull):
            await disk.commit(batch, sync=True)
        told.append(name)

    one, other = put(b"a"), put(b"b")
    async with trio.open_nursery() as callers:
        callers.start_soon(ask, one, b"a")
        await trio.testing.wait_all_tasks_blocked()
        callers.start_soon(ask, other, b"b")
        await trio.testing.wait_all_tasks_blocked()
        store.gate.set()
    assert sorted(told) == [b"a", b"b"]
    assert disk.is_full
    assert disk.read(b"b") is None
    # A caller that comes again brings its own rows only, not those of whom it waited with.
    assert (list(one.writes), list(other.writes)) == ([b"a"], [b"b"])
    store.failures.clear()
    await disk.commit(other, sync=True)
    assert (disk.is_full, disk.read(b"b"), disk.read(b"a")) == (False, b"value", None)


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "device"), Corruption("tables"), ValueError("a bug")])
async def test_after_a_failure_nothing_is_written_any_more_and_everybody_hears_of_it(
    disk, store, failure
) -> None:
    store.failures[b"a"] = failure
    with pytest.raises(type(failure)):
        await disk.commit(put(b"a"), sync=True)
    with trio.fail_after(60), pytest.raises(type(failure)):
        await disk.commit(put(b"b"), sync=True)
    assert disk.read(b"b") is None


async def test_a_cancelled_caller_waits_for_the_write_that_is_under_way(disk, store, nursery) -> None:
    await hold_first(disk, store, nursery)
    left = trio.Event()

    async def ask(scope: trio.CancelScope) -> None:
        with scope:
            await disk.commit(put(b"key"), sync=True)
        left.set()

    scope = trio.CancelScope()
    nursery.start_soon(ask, scope)
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert not left.is_set()
    store.gate.set()
    with trio.fail_after(60):
        await left.wait()
    assert disk.read(b"key") == b"value"


async def test_who_is_cancelled_before_it_asks_writes_all_the_same(disk) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await disk.commit(put(b"key"), sync=True)
    assert disk.read(b"key") == b"value"


async def test_of_many_callers_each_is_written_once_in_the_order_they_came_though_some_are_cancelled(
    disk, store, nursery
) -> None:
    asked: list[bytes] = []
    await hold_first(disk, store, nursery)
    async with trio.open_nursery() as callers:

        async def ask(number: int) -> None:
            with trio.CancelScope() as scope:
                if number % 3 == 0:
                    scope.cancel()
                asked.append(b"%d" % number)
                await disk.commit(put(asked[-1]), sync=number % 2 == 0)

        for number in range(50):
            callers.start_soon(ask, number)
        await trio.testing.wait_all_tasks_blocked()
        store.gate.set()
    assert [key for keys, _ in store.writes for key in keys] == [b"first", *asked]
    assert len(store.writes) == 2


async def test_stopping_writes_what_was_asked_for_and_refuses_what_comes_later(store) -> None:
    disk = GroupCommitDisk(store, SilentLog())
    async with trio.open_nursery() as nursery:
        writer = trio.CancelScope()

        async def run() -> None:
            with writer:
                await disk.run()

        async def ask() -> None:
            await disk.commit(put(b"late"), sync=True)

        nursery.start_soon(run)
        await hold_first(disk, store, nursery)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        writer.cancel()
        store.gate.set()
    assert disk.read(b"late") == b"value"
    with trio.fail_after(60), pytest.raises(Unavailable):
        await disk.commit(put(b"later"), sync=True)
