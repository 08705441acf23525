"""Two connections of one member that were not dialled at once: which one is its own.

Nobody dials while connected. So for who has dialled the newer one the older one is dead; or that is another process with the
member's key, a copy of its home. A copy must not silence the process that it is a copy of: while the older connection lives,
the newer one is a guest. Its calls are answered, so that it learns why it has to end (`node.fence`), and nothing else is
said to it.
"""

from collections.abc import Callable, Iterator

import trio

from node.peer_session import PeerSession
from protocol.identifiers import NodeId

GUEST_S = 15
"""Longer than a process takes to learn that it is not the only one."""


class Guests:
    """The guests of one node: at most one of each member."""

    def __init__(self, present: Callable[[NodeId], PeerSession | None]) -> None:
        """`present` is the connection that counts."""
        self._present = present
        self._guests: dict[NodeId, PeerSession] = {}

    def __iter__(self) -> Iterator[PeerSession]:
        return iter(tuple(self._guests.values()))

    async def outlasts(self, old: PeerSession, new: PeerSession) -> bool:
        """Return whether `new` takes the place of `old`, which is dead then; else it was closed."""
        node = new.node
        if (before := self._guests.pop(node, None)) is not None:
            await before.close()
        self._guests[node] = new
        try:
            if await old.is_alive():
                with trio.move_on_after(GUEST_S):
                    await _first_closed(old, new)
        finally:
            is_replaced = self._guests.get(node) is not new
            if not is_replaced:
                del self._guests[node]
        present = self._present(node)
        is_taken = present not in (None, old) or (present is old and await old.is_alive())
        if is_replaced or is_taken or new.connection.event_closed.is_set():
            await new.close()
            return False
        return True


async def _first_closed(*sessions: PeerSession) -> None:
    """Wait until one of these connections has ended."""
    async with trio.open_nursery() as nursery:

        async def wait(session: PeerSession) -> None:
            await session.connection.event_closed.wait()
            nursery.cancel_scope.cancel()

        for session in sessions:
            nursery.start_soon(wait, session)
