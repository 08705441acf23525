"""Compares this machine's clock with the other members', so that an operator hears of a wrong one before it matters.

Every ten seconds each connected member is asked for its time; the answer counts as taken in the middle of the round trip.
Nothing adjusts anything: blocks carry the leader's time within bounds that voters hold (ledger.md, time).
"""

import statistics

import trio

from node.ports import Clock, PeerTransport
from protocol import codec, limits
from protocol.errors import CarechainError, Malformed
from protocol.identifiers import NodeId

CHANNEL = "time"
_EVERY_MS = 10_000
_TIMEOUT_MS = 2_000


class ClockWatch:
    """Knows by how much the clocks of other members differ from ours, in milliseconds; ahead of ours is positive."""

    def __init__(self, transport: PeerTransport, clock: Clock) -> None:
        self._transport = transport
        self._clock = clock
        self._offsets: dict[NodeId, int] = {}
        transport.serve(CHANNEL, self._answer)

    def skew_ms(self) -> int:
        """Return the median difference to the members heard from, 0 when there are none.

        Of two or more, our own clock counts as one of the clocks: then one member that lies moves the median nowhere.
        """
        own = [0] if len(self._offsets) > 1 else []
        return round(statistics.median_low([*own, *self._offsets.values()])) if self._offsets else 0

    def is_off(self) -> bool:
        """Whether the clock of this machine is wrong by more than members should differ."""
        return abs(self.skew_ms()) > limits.CLOCK_SKEW_WARN_MS

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            connected = {peer.node for peer in self._transport.peers() if peer.connected}
            for node in self._offsets.keys() - connected:
                del self._offsets[node]
            async with trio.open_nursery() as nursery:
                for node in sorted(connected):
                    nursery.start_soon(self._ask, node)
            await self._clock.sleep_ms(_EVERY_MS if connected else 1_000)

    async def _ask(self, node: NodeId) -> None:
        asked = self._clock.now_ms()
        try:
            answer = await self._transport.call(node, CHANNEL, b"", timeout_ms=_TIMEOUT_MS)
            (theirs,) = codec.unpack(answer)
            if type(theirs) is not int:
                raise Malformed("a time is a number")
        except (CarechainError, ValueError):
            self._offsets.pop(node, None)  # away or of another version: it has no say about our clock
            return
        self._offsets[node] = theirs - (asked + self._clock.now_ms()) // 2

    async def _answer(self, _peer: NodeId, _body: bytes) -> bytes:
        return codec.pack(self._clock.now_ms())
