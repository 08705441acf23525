"""Handing on without a turn of the event loop, as long as there is room."""

import pytest
import trio
import trio.testing

from node.queueing import queue


async def test_with_room_nobody_else_runs_meanwhile() -> None:
    send, receive = trio.open_memory_channel[int](2)
    ran: list[str] = []

    async def other() -> None:
        ran.append("other")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await queue(send, 1)
        await queue(send, 2)
        assert ran == []
    assert [receive.receive_nowait(), receive.receive_nowait()] == [1, 2]


async def test_without_room_it_waits_and_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    send, receive = trio.open_memory_channel[int](1)
    await queue(send, 1)
    with trio.move_on_after(1) as patience:
        await queue(send, 2)
    assert patience.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue, send, 2)
        assert [await receive.receive(), await receive.receive()] == [1, 2]


async def test_nobody_who_receives_is_an_error() -> None:
    send, receive = trio.open_memory_channel[int](1)
    receive.close()
    with pytest.raises(trio.BrokenResourceError):
        await queue(send, 1)
