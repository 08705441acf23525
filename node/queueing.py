"""How tasks hand values on whose every hop is on the way of a transaction."""

from typing import TypeVar

import trio

T = TypeVar("T")


async def queue(channel: trio.MemorySendChannel[T], item: T) -> None:
    """Send, and wait only when there is no room: `send` itself costs a turn of the event loop each time.

    For tasks that wait for something else between two items, and so keep nobody from running.

    Raises:
        trio.BrokenResourceError: nobody receives any more.
    """
    try:
        channel.send_nowait(item)
    except trio.WouldBlock:
        await channel.send(item)
