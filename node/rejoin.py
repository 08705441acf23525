"""A voter whose ledger was rebuilt signs nothing until it has caught up past what its peers saw.

Its votes and acknowledgements are forgotten, and a block may be committed, or a leader elected, on the strength of one
of them. So it follows like an observer, asks *every* other voter for its newest block and term, and takes part again when
what it applied has reached the highest answer, in the highest term, with the vote of that term spent.

Every one, not n - r + 1: a forgotten acknowledgement still counts for the leader that holds it, together with those that
other voters give *after* they have answered here. Only that leader surely knows the block, only the candidate surely knows
the term; either may be the one that was not asked. (ledger.md 7.3; a Rejoin transaction replaces this when certificates
exist: its new incarnation makes the forgotten signatures worthless.)
"""

from dataclasses import dataclass

import trio

from node.applier import AppliedHeight
from node.ports import Clock, PeerTransport
from protocol import codec
from protocol.codec import wire
from protocol.configuration import Configuration
from protocol.errors import CarechainError
from protocol.identifiers import Height, NodeId, Term
from protocol.raft.machine import Raft
from protocol.raft.state import HardState

CHANNEL = "watermark"
_ASK_AGAIN_MS = 1_000
_TIMEOUT_MS = 3_000


@wire("watermark")
@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a voter's log and term have come."""

    term: Term
    tip_height: Height


def watermark_of(raft: Raft) -> bytes:
    """Return this voter's answer to a rejoining one."""
    return codec.encode(Watermark(raft.term, raft.tip_height))


class Rejoin:
    """Finds the watermark and waits until it is reached."""

    def __init__(
        self, configuration: Configuration, transport: PeerTransport, clock: Clock, applied: AppliedHeight
    ) -> None:
        self._configuration = configuration
        self._transport = transport
        self._clock = clock
        self._applied = applied

    async def wait(self) -> HardState:
        """Return the hard state to begin with, once it is safe to sign again."""
        marks: dict[NodeId, Watermark] = {}
        others = [node for node in self._configuration.voters if node != self._transport.me]
        while len(marks) < len(others):
            async with trio.open_nursery() as nursery:
                for node in [other for other in others if other not in marks]:
                    nursery.start_soon(self._ask, node, marks)
            await self._clock.sleep_ms(_ASK_AGAIN_MS)
        goal = max((mark.tip_height for mark in marks.values()), default=Height(0))
        if goal > 0:
            await self._applied.wait_above(Height(goal - 1))
        term = max((mark.term for mark in marks.values()), default=Term(0))
        fresh = HardState.initial()
        return HardState(
            fresh.epoch,
            fresh.incarnation,
            term,
            self._transport.me,  # spent: whoever asks for this term's vote is refused
            fresh.ack_term,
            fresh.ack_height,
            fresh.ack_hash,
            fresh.last_vote_height,
            fresh.last_vote_hash,
            fresh.certificate_height,
            fresh.certificate_hash,
        )

    async def _ask(self, node: NodeId, marks: dict[NodeId, Watermark]) -> None:
        try:
            answer = await self._transport.call(node, CHANNEL, b"", timeout_ms=_TIMEOUT_MS)
            marks[node] = codec.decode(answer, Watermark)
        except CarechainError:
            return  # away, or itself rejoining: asked again in a second
