"""What a signer asks at every start: whether others know of something that it has signed and forgotten (ledger.md 7.3).

Its store opens and checks, and LevelDB cannot tell a torn tail from an acknowledged record that a lying disk has lost, nor
anybody a home from an older copy of it, or an empty one from one that never was. So it asks every other signer what that
one has seen of its acknowledgements and commit votes. If it lacks one of them it begins anew (`node.rejoin`). If not, it
takes the highest term that anybody knows, with the vote of that term spent: a vote it may have forgotten cannot be cast twice.

It waits for all answers for `GRACE_MS`, then for as many as make a quorum with its own. A member that is away for long
must not keep another one from starting again; the price is that a disk that lies and the absence of the only voters that
could know are one failure more than three voters withstand. (A leader that knows an acknowledgement is one of those asked,
or leads with it itself. One that still lies unread in that leader's socket while it answers is not seen.) It tells others
what it has seen while it asks: after a blackout all of them do so at once.

The answers also say whether another process with this key speaks still (`node.tips`): then the one that starts ends.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import trio

from node.ports import Clock, PeerTransport
from node.tips import INTERVAL_MS, Heard, Tips
from protocol import codec
from protocol.certificate import Acknowledgement, acknowledgement_valid
from protocol.codec import wire
from protocol.configuration import Configuration
from protocol.errors import CarechainError
from protocol.finality import CommitVote, vote_valid
from protocol.identifiers import ZERO, Height, NodeId, Term
from protocol.raft.machine import Raft
from protocol.raft.state import HardState
from protocol.rejoining import incarnation_of
from protocol.tip_statement import TipStatement
from storage.ledger_store import LedgerStore

CHANNEL = "watermark"
GRACE_MS = 2_000
"""About an election time-out: what a voter that starts while another one is away costs at most."""
_SPOKE_LATELY_MS = 2 * INTERVAL_MS
_SILENCE_MS = 3 * INTERVAL_MS
"""Whoever is alive has said something more by then, even where two processes with one key take each other's connections."""
_UNHEARD_MS = 8 * INTERVAL_MS
_ASK_AGAIN_MS = 250
_TIMEOUT_MS = 3_000


@wire("watermark")
@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a member's log and term have come, and the newest statements of the asker's that it has seen.

    `tip_age_ms` is how long ago it heard `tip`.
    """

    term: Term
    tip_height: Height
    ack: Acknowledgement | None = None
    vote: CommitVote | None = None
    tip: TipStatement | None = None
    tip_age_ms: int = 0


def watermark_of(raft: Raft, store: LedgerStore, asker: NodeId, heard: Heard | None) -> bytes:
    """Return this member's answer to one that asks, of which it has `heard`."""
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
            max(acks, key=lambda ack: (ack.incarnation, ack.term, ack.height), default=None),
            max(votes, key=lambda vote: (vote.incarnation, vote.height), default=None),
            heard.statement if heard is not None else None,
            heard.age_ms if heard is not None else 0,
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

    async def once(self, node: NodeId) -> Watermark | None:
        """Ask one member once; None when it does not answer: it is away, or begins anew itself."""
        try:
            answer = await self._transport.call(node, CHANNEL, b"", timeout_ms=_TIMEOUT_MS)
            return codec.decode(answer, Watermark)
        except CarechainError:
            return None

    async def _ask(self, node: NodeId) -> None:
        while (mark := await self.once(node)) is None:
            await self._clock.sleep_ms(_ASK_AGAIN_MS)
        self.marks[node] = mark
        answered, self.answered = self.answered, trio.Event()
        answered.set()


class Recall:
    """Finds out whether a signer that starts still knows what it signed."""

    def __init__(
        self,
        configuration: Configuration,
        transport: PeerTransport,
        clock: Clock,
        store: LedgerStore,
        tips: Tips,
    ) -> None:
        self._configuration = configuration
        # Witnesses too: a vote may have become part of a certificate that only they made.
        self._questions = Questions(configuration.signers, transport, clock)
        self._clock = clock
        self._store = store
        self._tips = tips
        self.is_sure = False
        """Whether every other signer has answered."""

    async def wait(self, hard_state: HardState) -> HardState | None:
        """Return the hard state to go on with, or None when this member has forgotten something that it signed.

        Raises:
            Superseded: another process with this member's key is running.
        """
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
        await self._look_for_another()
        if incarnation_of(self._store.state, questions.me).number > hard_state.incarnation:
            return None  # it was begun anew with another copy of this ledger
        marks = questions.marks.values()
        if any(self._is_forgotten(mark.ack, hard_state) for mark in marks):
            return None
        if any(self._is_vote_forgotten(mark.vote, hard_state) for mark in marks):
            return None
        return self._of_newest_term(hard_state)

    def _of_newest_term(self, hard_state: HardState) -> HardState:
        term = max((mark.term for mark in self._questions.marks.values()), default=Term(0))
        is_unspent = term == hard_state.term > 0 and hard_state.vote == ZERO
        if term > hard_state.term or is_unspent:
            return dataclasses.replace(hard_state, term=term, vote=self._questions.me)
        return hard_state

    async def _look_for_another(self) -> None:
        """Whoever was heard under this key a moment ago is this member's last life, or another process: that speaks again."""
        questions = self._questions
        marks = {node: mark for node, mark in questions.marks.items() if mark.tip is not None}
        self._tips.begin_after([mark.tip for mark in marks.values() if mark.tip is not None])
        lately = {node: mark for node, mark in marks.items() if mark.tip_age_ms < _SPOKE_LATELY_MS}
        if not lately:
            return

        silent_ms = dict.fromkeys(lately, 0)

        async def ask(node: NodeId) -> None:
            mark = await questions.once(node)
            if mark is not None and mark.tip is not None:
                silent_ms[node] = mark.tip_age_ms
                self._tips.take_own(mark.tip, after=marks[node].tip)

        with trio.move_on_after(_UNHEARD_MS / 1000):  # who has heard it may have gone away
            # No word that reached one of them: two processes with one key take each other's connections.
            while min(silent_ms.values()) < _SILENCE_MS:
                with trio.move_on_after(_ASK_AGAIN_MS / 1000):
                    async with trio.open_nursery() as nursery:
                        for node in lately:
                            nursery.start_soon(ask, node)
                self._tips.check()
                await self._clock.sleep_ms(_ASK_AGAIN_MS)

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
        if ack.incarnation < hard_state.incarnation:
            return False  # forgotten for good, and made worthless
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
        if vote.incarnation < hard_state.incarnation:
            return False
        if vote.height <= max(hard_state.last_vote_height, self._store.applied().height):
            return False
        return vote_valid(vote, self._store.network)
