"""A network that delays, loses, doubles, reorders and cuts: one medium, and a virtual `PeerTransport` for each node.

Every message takes a link's delay. In order within one link unless a plan says otherwise. Messages without an answer
may be lost or doubled. A clogged link holds what is sent and lets it go all at once. A cut link drops what is on its way; who calls across it waits for its time-out until the
connection is seen to be gone (`_PING_S`). A node that stops breaks the calls and streams it was part of.
"""

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import trio

from protocol import limits
from protocol.errors import Unavailable
from protocol.identifiers import NodeId

if TYPE_CHECKING:
    from simulations.transport import VirtualTransport

_PING_S = 3.0
"""How long a cut goes unnoticed: the interval and patience of health pings."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What a link does: the least delay, the mean of what comes on top, and chances per message."""

    delay_ms: float = 0.3
    jitter_ms: float = 0.4
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0


GOOD = Quality()


class _Link:
    """One direction between two nodes. It lets nothing through while anybody cuts it: faults may overlap."""

    __slots__ = ("clogs", "cut_at", "cuts", "held", "in_flight", "last_arrival", "quality")

    def __init__(self) -> None:
        self.cuts = 0
        self.cut_at: float | None = None
        self.clogs = 0
        self.held: list[Callable[[], None]] = []  # what is to be sent on when the last clog is gone
        self.quality: Quality | None = None
        self.last_arrival = 0.0
        self.in_flight = 0


class Network:
    """The medium between all nodes. `run` delivers."""

    def __init__(self, rng: Random) -> None:
        self.quality = GOOD
        """Of every link that has none of its own (`set_quality`)."""
        self._healed = 0
        self._rng = rng
        self._links: dict[tuple[NodeId, NodeId], _Link] = {}
        self._running: dict[NodeId, VirtualTransport] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._sleep = trio.CancelScope()

    # --- who is there ---------------------------------------------------------------------------------------------

    def attach(self, transport: "VirtualTransport") -> None:
        """Let a node's new incarnation take part."""
        self._running[transport.me] = transport

    def detach(self, transport: "VirtualTransport") -> None:
        """Take a node off the network at once; its peers' calls to it break."""
        if self._running.get(transport.me) is not transport:
            return
        del self._running[transport.me]
        for other in self._running.values():
            self.later(self._delay_s(self.quality), lambda other=other: other.lost(transport))  # type: ignore[misc]

    def running(self) -> tuple["VirtualTransport", ...]:
        """Return the transports of all running nodes, in the order they started."""
        return tuple(self._running.values())

    def is_connected(self, one: NodeId, other: NodeId) -> bool:
        """Whether a connection between two nodes stands, as far as both can tell."""
        if one not in self._running or other not in self._running:
            return False
        cuts = (self._link(one, other).cut_at, self._link(other, one).cut_at)
        return all(cut is None or trio.current_time() - cut < _PING_S for cut in cuts)

    def connected(self, source: NodeId, target: NodeId) -> "VirtualTransport":
        """Return the running incarnation of a connected node.

        Raises:
            Unavailable: there is no connection.
        """
        if not self.is_connected(source, target):
            raise Unavailable(f"{target.hex()[:16]} is not connected")
        return self._running[target]

    def is_present(self, transport: "VirtualTransport") -> bool:
        """Whether this incarnation is still running."""
        return self._running.get(transport.me) is transport

    # --- faults ---------------------------------------------------------------------------------------------------

    def cut(self, source: NodeId, target: NodeId) -> None:
        """Let nothing through from one node to another; the other direction is not touched."""
        link = self._link(source, target)
        link.cuts += 1
        if link.cut_at is None:
            link.cut_at = trio.current_time()

    def join(self, source: NodeId, target: NodeId) -> None:
        """Undo one `cut`; the link stays cut as long as another one stands. Nothing happens when none does."""
        link = self._link(source, target)
        link.cuts = max(0, link.cuts - 1)
        if not link.cuts:
            link.cut_at = None

    def cut_for(self, pairs: Iterable[tuple[NodeId, NodeId]], seconds: float | None) -> None:
        """Cut links (source, target) for a while; None: until `heal`."""
        links = tuple(pairs)
        for source, target in links:
            self.cut(source, target)

        def join() -> None:
            for source, target in links:
                self.join(source, target)

        self._until_healed(seconds, join)

    def clog(self, source: NodeId, target: NodeId, seconds: float | None = None) -> None:
        """Hold what is sent from one node to another from now on, and let it go all at once when the time is over.

        What cannot be repeated is dropped when more waits than a sender's queue holds. None: until `heal`.
        """
        self._link(source, target).clogs += 1
        self._until_healed(seconds, lambda: self.unclog(source, target))

    def unclog(self, source: NodeId, target: NodeId) -> None:
        """Undo one `clog`. Nothing happens when there is none."""
        link = self._link(source, target)
        link.clogs = max(0, link.clogs - 1)
        if not link.clogs:
            self._release(link)

    def flap(self, one: NodeId, other: NodeId, every_s: float, seconds: float | None = None) -> None:
        """Cut and join both directions between two nodes in turn, each for `every_s`, beginning with a cut.

        None: until `heal`.
        """
        end = math.inf if seconds is None else trio.current_time() + seconds

        def toggle(*, is_up: bool) -> None:
            for link in ((one, other), (other, one)):
                (self.cut if is_up else self.join)(*link)
            if is_up or trio.current_time() < end:
                self._until_healed(every_s, lambda: toggle(is_up=not is_up))

        toggle(is_up=True)

    def set_quality(self, source: NodeId, target: NodeId, quality: Quality | None) -> None:
        """Give one direction between two nodes a quality of its own; None takes it away."""
        self._link(source, target).quality = quality

    def heal(self) -> None:
        """Undo all cuts, clogs and flapping, and the qualities of single links."""
        self._healed += 1
        for link in self._links.values():
            link.cuts = link.clogs = 0
            link.cut_at = link.quality = None
            self._release(link)

    def _release(self, link: _Link) -> None:
        held, link.held = link.held, []
        for send in held:
            send()

    def _until_healed(self, after_s: float | None, action: Callable[[], object]) -> None:
        """Do something after a while, unless everything is healed before that."""
        healed = self._healed

        def act() -> None:
            if self._healed == healed:
                action()

        if after_s is not None:
            self.later(after_s, act)

    def is_cut(self, source: NodeId, target: NodeId) -> bool:
        """Whether messages from one node to another are dropped."""
        return self._link(source, target).cut_at is not None

    # --- messages -------------------------------------------------------------------------------------------------

    def post(
        self, source: NodeId, target: "VirtualTransport", deliver: Callable[[], None], *, lossy: bool
    ) -> None:
        """Call `deliver` when a message sent now would arrive, unless it does not.

        Calls and their answers ride on a connection that repeats what is lost: only cuts and crashes stop them.
        """
        link = self._link(source, target.me)
        quality, rng = link.quality or self.quality, self._rng
        copies = 1
        if lossy:
            if link.in_flight >= limits.PEER_QUEUE_MESSAGES_MAX or not self.is_connected(source, target.me):
                return
            if quality.loss and rng.random() < quality.loss:
                return
            if quality.duplicate and rng.random() < quality.duplicate:
                copies = 2

        def arrive() -> None:
            link.in_flight -= 1
            # A message that is on its way when the link is cut is lost with it.
            if link.cut_at is None and self._running.get(target.me) is target:
                deliver()

        for _ in range(copies):
            link.in_flight += 1
            self._send_on(link, arrive)

    def _send_on(self, link: _Link, arrive: Callable[[], None]) -> None:
        if link.clogs:
            link.held.append(lambda: self._send_on(link, arrive))
        else:
            self._at(self._arrival_s(link), arrive)

    def later(self, after_s: float, action: Callable[[], None]) -> None:
        """Call `action` after a while."""
        self._at(trio.current_time() + after_s, action)

    def _at(self, when: float, action: Callable[[], None]) -> None:
        """Call `action` at a virtual time; equal times in the order of asking."""
        self._sequence += 1
        heapq.heappush(self._due, (when, self._sequence, action))
        if when < self._sleep.deadline:  # noqa: PLR1730 - setting it costs more than looking at it
            self._sleep.deadline = when

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            while self._due and self._due[0][0] <= trio.current_time():
                heapq.heappop(self._due)[2]()
            with trio.CancelScope() as self._sleep:
                if self._due:
                    self._sleep.deadline = self._due[0][0]
                await trio.sleep_forever()

    async def carry(self, source: NodeId, target: NodeId) -> None:
        """Take the time that a piece of a stream takes on a link."""
        link = self._link(source, target)
        while link.clogs:
            free = trio.Event()
            link.held.append(free.set)
            await free.wait()
        await trio.sleep(self._arrival_s(link) - trio.current_time())

    def _arrival_s(self, link: _Link) -> float:
        quality = link.quality or self.quality
        arrival = trio.current_time() + self._delay_s(quality)
        if not (quality.reorder and self._rng.random() < quality.reorder):
            arrival = max(arrival, link.last_arrival)
            link.last_arrival = arrival
        return arrival

    def _delay_s(self, quality: Quality) -> float:
        return (quality.delay_ms + quality.jitter_ms * self._rng.expovariate(1)) / 1000

    def _link(self, source: NodeId, target: NodeId) -> _Link:
        link = self._links.get((source, target))
        if link is None:
            link = self._links[source, target] = _Link()
        return link
