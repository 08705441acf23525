"""What a signer does before it signs again when it may have forgotten what it signed (ledger.md 7.3).

**At every start** (`Recall`): its store opens and checks, and LevelDB cannot tell a torn tail from an acknowledged record
that a lying disk has lost, nor anybody a home from an older copy of it. So it asks every other signer what that one has
seen of its acknowledgements and commit votes. If it lacks one of them it goes on as after a rebuild. If not, it takes the
highest term that anybody knows, with the vote of that term spent: a vote it may have forgotten cannot be cast twice.

It waits for all answers for `GRACE_MS`, then for as many as make a quorum with its own. A member that is away for long
must not keep another one from starting again; the price is that a disk that lies and the absence of the only voters that
could know are one failure more than three voters withstand. (A leader that knows an acknowledgement is one of those asked,
or leads with it itself. One that still lies unread in that leader's socket while it answers is not seen; only the new
incarnation of a Rejoin transaction makes that one worthless.) It tells others what it has seen while it asks: after a
blackout all of them do so at once.

**After a rebuild** (`Rejoin`): its votes and acknowledgements are all forgotten, and a block may be committed, or a leader
elected, on the strength of one of them. So it follows like an observer, asks *every* other voter for its newest block and
term (a witness votes only for what stands in their logs), and takes part again when what it applied has reached the highest answer, in the highest term, with the vote spent.

Every one, not n - r + 1: a forgotten acknowledgement still counts for the leader that holds it, together with those that
other voters give *after* they have answered here. Only that leader surely knows the block, only the candidate surely knows
the term; either may be the one that was not asked. (A Rejoin transaction will replace this: its new incarnation makes the
forgotten signatures worthless.)
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import trio

from node.applier import AppliedHeight
from node.ports import Clock, PeerTransport
from protocol import codec
from protocol.certificate import Acknowledgement, acknowledgement_valid
from protocol.codec import wire
from protocol.configuration import Configuration
from protocol.errors import CarechainError
from protocol.finality import CommitVote, vote_valid
from protocol.identifiers import ZERO, Height, NodeId, Term
from protocol.raft.machine import Raft
from protocol.raft.state import HardState
from storage.ledger_store import LedgerStore

CHANNEL = "watermark"
GRACE_MS = 2_000
"""About an election time-out: what a voter that starts while another one is away costs at most."""
_ASK_AGAIN_MS = 250
_TIMEOUT_MS = 3_000


@wire("watermark")
@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a member's log and term have come, and the newest statements of the asker's that it has seen."""

    term: Term
    tip_height: Height
    ack: Acknowledgement | None = None
    vote: CommitVote | None = None


def watermark_of(raft: Raft, store: LedgerStore, asker: NodeId) -> bytes:
    """Return this member's answer to one that asks."""
    proof, certificate = raft.commit_proof, store.certificate(raft.tip_height)
    proven = proof.acknowledgements if proof is not None else ()
    cast = certificate.votes if certificate is not None else ()
    acks = [
        ack for ack in (raft.acknowledgement_of(asker), *proven) if ack is not None and ack.voter == asker
    ]
    votes = [vote for vote in (raft.last_vote_of(asker), *cast) if vote is not None and vote.signer == asker]
    return codec.encode(
        Watermark(
            raft.term,
            raft.tip_height,
            max(acks, key=lambda ack: (ack.term, ack.height), default=None),
            max(votes, key=lambda vote: vote.height, default=None),
        )
    )


class Questions:
    """Asks other members until they have answered; `marks` are the answers so far."""

    def __init__(self, asked: Iterable[NodeId], transport: PeerTransport, clock: Clock) -> None:
        self._transport = transport
        self._clock = clock
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

    async def _ask(self, node: NodeId) -> None:
        while True:
            try:
                answer = await self._transport.call(node, CHANNEL, b"", timeout_ms=_TIMEOUT_MS)
                self.marks[node] = codec.decode(answer, Watermark)
            except CarechainError:
                await self._clock.sleep_ms(_ASK_AGAIN_MS)  # away, or itself rejoining
            else:
                answered, self.answered = self.answered, trio.Event()
                answered.set()
                return


class Recall:
    """Finds out whether a signer that starts still knows what it signed."""

    def __init__(
        self, configuration: Configuration, transport: PeerTransport, clock: Clock, store: LedgerStore
    ) -> None:
        self._configuration = configuration
        # Witnesses too: a vote may have become part of a certificate that only they made.
        self._questions = Questions(configuration.signers, transport, clock)
        self._clock = clock
        self._store = store
        self.is_sure = False
        """Whether every other signer has answered."""

    async def wait(self, hard_state: HardState) -> HardState | None:
        """Return the hard state to go on with, or None when this member has forgotten an acknowledgement or a vote."""
        questions = self._questions
        async with trio.open_nursery() as nursery:
            nursery.start_soon(questions.run)
            with trio.CancelScope() as patience:
                nursery.start_soon(self._lose_patience, patience)
                while len(questions.marks) < len(questions.others):
                    await questions.answered.wait()
            # What the quorum needs besides this voter itself.
            while self._voters_heard < self._configuration.raft_quorum - 1:
                await self._questions.answered.wait()
            nursery.cancel_scope.cancel()
        self.is_sure = len(questions.marks) == len(questions.others)
        marks = questions.marks.values()
        if any(self._is_forgotten(mark.ack, hard_state) for mark in marks):
            return None
        if any(self._is_vote_forgotten(mark.vote, hard_state) for mark in marks):
            return None
        term = max((mark.term for mark in marks), default=Term(0))
        if term > hard_state.term or (term == hard_state.term and hard_state.vote == ZERO):
            return dataclasses.replace(hard_state, term=term, vote=questions.me)
        return hard_state

    @property
    def _voters_heard(self) -> int:
        return sum(node in self._configuration.voters for node in self._questions.marks)

    async def _lose_patience(self, scope: trio.CancelScope) -> None:
        await self._clock.sleep_ms(GRACE_MS)
        scope.cancel()

    def _is_forgotten(self, ack: Acknowledgement | None, hard_state: HardState) -> bool:
        """Whether a peer holds an acknowledgement of ours that neither our marker nor our log knows."""
        if ack is None or (ack.voter, ack.epoch) != (self._questions.me, hard_state.epoch):
            return False
        if (hard_state.ack_term, hard_state.ack_height) >= (ack.term, ack.height):
            return False  # what stood there then may have been truncated since, in a later term
        if ack.height < self._store.first():
            return False  # below an installed snapshot: what was not committed there never will be
        if ack.height <= self._store.tip_height() and self._store.hash(ack.height) == ack.header_hash:
            return False
        return acknowledgement_valid(ack, self._store.network)

    def _is_vote_forgotten(self, vote: CommitVote | None, hard_state: HardState) -> bool:
        """Whether a peer holds a commit vote of ours above the last one that we know of, and nothing certified covers it."""
        if vote is None or (vote.signer, vote.epoch) != (self._questions.me, hard_state.epoch):
            return False
        if vote.height <= max(hard_state.last_vote_height, self._store.applied().height):
            return False
        return vote_valid(vote, self._store.network)


class Rejoin:
    """Finds the watermark and waits until it is reached."""

    def __init__(
        self, configuration: Configuration, transport: PeerTransport, clock: Clock, applied: AppliedHeight
    ) -> None:
        self._questions = Questions(configuration.voters, transport, clock)
        self._applied = applied

    async def wait(self) -> HardState:
        """Return the hard state to begin with, once it is safe to sign again."""
        await self._questions.run()
        marks = self._questions.marks
        goal = max((mark.tip_height for mark in marks.values()), default=Height(0))
        if goal > 0:
            await self._applied.wait_above(Height(goal - 1))
        term = max((mark.term for mark in marks.values()), default=Term(0))
        # The vote is spent: whoever asks for this term's is refused.
        return dataclasses.replace(HardState.initial(), term=term, vote=self._questions.me)
