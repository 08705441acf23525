"""What a signer that starts asks the others, and what they answer: how far they are, and what they have seen of it."""

from collections.abc import Iterable
from dataclasses import dataclass

import trio

from node.ports import Clock, PeerTransport
from node.tips import Heard
from protocol import codec
from protocol.certificate import Acknowledgement
from protocol.codec import wire
from protocol.errors import CarechainError
from protocol.finality import Certificate, CommitVote
from protocol.identifiers import Height, NodeId, Term
from protocol.raft.machine import Raft
from protocol.tip_statement import Presence, TipStatement
from storage.ledger_store import LedgerStore

CHANNEL = "watermark"
_ASK_AGAIN_MS = 250
_TIMEOUT_MS = 1_000
"""Of one try: several fit into the grace of `node.recall`."""
_CERTIFICATES_MAX = 16
"""So many are searched for a vote of the asker's: each holds those of a quorum."""


@wire("watermark")
@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a member's log and term have come, and the newest statements of the asker's that it has seen.

    `tip_age_ms` is how long ago it heard `tip`. `is_sure`: it has made sure that it has forgotten nothing itself. `beside_ms` is
    how long ago it heard another process with the asker's key that it has known for longer; None for none lately.
    """

    term: Term
    tip_height: Height
    ack: Acknowledgement | None = None
    vote: CommitVote | None = None
    tip: TipStatement | None = None
    tip_age_ms: int = 0
    is_sure: bool = False
    epoch: int = 0
    beside_ms: int | None = None


def watermark_of(
    raft: Raft | None, store: LedgerStore, asker: NodeId, heard: Heard | None, *, is_sure: bool
) -> Watermark:
    """Return this member's answer to one that asks, of which it has `heard`. Without `raft` it takes no part in consensus."""
    acks: list[Acknowledgement] = []
    votes = [vote for vote in (_certified_vote(store, asker),) if vote is not None]
    if raft is not None:
        proven = raft.commit_proof.acknowledgements if raft.commit_proof is not None else ()
        acks += [ack for ack in (raft.acknowledgement_of(asker), *proven) if ack is not None]
        votes += [vote for vote in (raft.last_vote_of(asker),) if vote is not None]
    return Watermark(
        raft.term if raft is not None else Term(0),
        raft.tip_height if raft is not None else store.applied().height,
        max(
            (ack for ack in acks if ack.voter == asker),
            key=lambda ack: (ack.incarnation, ack.term, ack.height),
            default=None,
        ),
        max(votes, key=lambda vote: (vote.incarnation, vote.height), default=None),
        heard.statement if heard is not None else None,
        heard.age_ms if heard is not None else 0,
        is_sure,
        store.epochs.current,
    )


def _certified_vote(store: LedgerStore, signer: NodeId) -> CommitVote | None:
    """Return the newest vote of a signer in the newest certificates here."""
    height = store.tip_height()
    for _ in range(_CERTIFICATES_MAX):
        certificate: Certificate | None = store.certificate(height)
        if certificate is None:
            return None
        for vote in certificate.votes:
            if vote.signer == signer:
                return vote
        height = Height(certificate.height - 1)
    return None


class Questions:
    """Asks other members until they have answered; `marks` are the answers so far."""

    def __init__(
        self, asked: Iterable[NodeId], transport: PeerTransport, clock: Clock, *, nonce: bytes | None = None
    ) -> None:
        """`nonce` is that of this process: whoever is asked can then tell it from others with its key."""
        self._transport = transport
        self._clock = clock
        self._body = codec.encode(Presence(nonce)) if nonce is not None else b""
        self.others = tuple(node for node in asked if node != transport.me)
        self.me = transport.me
        self.marks: dict[NodeId, Watermark] = {}
        self.answered = trio.Event()
        """Set, and replaced, with every answer."""

    async def run(self) -> None:
        """Ask until all have answered."""
        async with trio.open_nursery() as nursery:
            for node in self.others:
                nursery.start_soon(self._ask, node)

    async def once(self, node: NodeId) -> Watermark | None:
        """Ask one member once; None when it does not answer: it is away, or begins anew itself."""
        try:
            answer = await self._transport.call(node, CHANNEL, self._body, timeout_ms=_TIMEOUT_MS)
            return codec.decode(answer, Watermark)
        except CarechainError:
            return None

    async def _ask(self, node: NodeId) -> None:
        while (mark := await self.once(node)) is None:
            await self._clock.sleep_ms(_ASK_AGAIN_MS)
        self.marks[node] = mark
        answered, self.answered = self.answered, trio.Event()
        answered.set()
