import os
import threading
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from node.chunk_writer import ChunkWriter
from node.system import ThreadWorkers
from protocol import limits
from protocol.cid import cid_of
from protocol.errors import StorageFull
from protocol.identifiers import Cid
from storage.chunk_store import ChunkStore
from storage.memory import MemoryStore

Named = list[tuple[Cid, bytes]]


class GatedChunks(ChunkStore):
    """A store whose writes wait for a gate, fail as told, and are counted."""

    def __init__(self) -> None:
        super().__init__(MemoryStore(), MemoryStore())
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.failure: Exception | None = None
        self.writes: list[int] = []

    def put_many(self, chunks: Sequence[tuple[Cid, bytes]], *, trusted: bool = False) -> int:
        self.begun.set()
        assert self.gate.wait(5)
        self.writes.append(len(chunks))
        if self.failure is not None:
            raise self.failure
        return super().put_many(chunks, trusted=trusted)


def named(count: int, size: int = 100) -> Named:
    return [(cid_of(data), data) for data in (os.urandom(size) for _ in range(count))]


async def while_one_is_written(
    chunks: GatedChunks, writer: ChunkWriter, others: list[Named]
) -> list[BaseException | None]:
    """Put one chunk, the others while it is being written, and return what became of each."""
    outcomes: list[BaseException | None] = [None] * (len(others) + 1)

    async def put(at: int, part: Named) -> None:
        try:
            await writer.put(part)
        except StorageFull as error:
            outcomes[at] = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, 0, named(1))
        await trio.to_thread.run_sync(chunks.begun.wait)
        for at, part in enumerate(others, 1):
            nursery.start_soon(put, at, part)
            await trio.testing.wait_all_tasks_blocked()
        chunks.gate.set()
    return outcomes


async def test_what_waits_for_a_write_shares_the_next_one() -> None:
    chunks = GatedChunks()
    parts = [named(2), named(3), named(4)]

    await while_one_is_written(chunks, ChunkWriter(chunks, ThreadWorkers(1)), parts)

    assert chunks.writes == [1, 9]
    assert all(chunks.get(cid) == data for part in parts for cid, data in part)


async def test_a_write_takes_eight_mebibytes_and_no_more() -> None:
    chunks = GatedChunks()
    parts = [named(3, limits.MIB), named(3, limits.MIB), named(3, limits.MIB)]

    await while_one_is_written(chunks, ChunkWriter(chunks, ThreadWorkers(1)), parts)

    assert chunks.writes == [1, 6, 3]


async def test_everybody_in_a_write_hears_that_the_disk_is_full() -> None:
    chunks = GatedChunks()
    chunks.failure = StorageFull("no room")

    outcomes = await while_one_is_written(chunks, ChunkWriter(chunks, ThreadWorkers(1)), [named(1), named(1)])

    assert [str(outcome) for outcome in outcomes] == ["no room"] * 3


async def test_who_gives_up_while_others_are_written_stores_nothing_and_keeps_nobody() -> None:
    chunks = GatedChunks()
    writer = ChunkWriter(chunks, ThreadWorkers(1))
    given_up, kept = named(1), named(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.put, named(1))
        await trio.to_thread.run_sync(chunks.begun.wait)
        with trio.move_on_after(0):
            await writer.put(given_up)
        nursery.start_soon(writer.put, kept)
        await trio.testing.wait_all_tasks_blocked()
        chunks.gate.set()

    assert not chunks.has(given_up[0][0])
    assert chunks.has(kept[0][0])


async def test_deleting_comes_after_what_is_being_written() -> None:
    chunks = GatedChunks()
    writer, part = ChunkWriter(chunks, ThreadWorkers(1)), named(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.put, part)
        await trio.to_thread.run_sync(chunks.begun.wait)
        nursery.start_soon(writer.delete, [part[0][0]])
        await trio.testing.wait_all_tasks_blocked()
        chunks.gate.set()

    assert chunks.writes == [1]
    assert not chunks.has(part[0][0])


@pytest.mark.parametrize("size", [0, 5])
async def test_a_put_of_anything_is_durable_on_return(size: int) -> None:
    chunks = GatedChunks()
    chunks.gate.set()
    part = named(size)

    await ChunkWriter(chunks, ThreadWorkers(1)).put(part)

    assert all(chunks.has(cid) for cid, _ in part)
