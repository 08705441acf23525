"""What a signer asks at every start: whether others know of something that it has signed and forgotten (ledger.md 7.3).

Its store opens and checks, and LevelDB cannot tell a torn tail from an acknowledged record that a lying disk has lost, nor
anybody a home from an older copy of it, or an empty one from one that never was. So it asks every other signer what that
one has seen of its acknowledgements and commit votes. If it lacks one of them it begins anew (`node.rejoin`). If not, it
takes the highest term that anybody knows, with the vote of that term spent: a vote it may have forgotten cannot be cast twice.

It waits for all answers for `GRACE_MS`, then for as many as make a quorum with its own, and of those that ask themselves
only after `UNSURE_GRACE_MS`: two that were restored at once know nothing of each other. A member that is away for long must
not keep another one from starting again; the price is that a disk that lies and the absence of the only voters that could
know are one failure more than three voters withstand. (A leader that knows an acknowledgement is one of those asked, or leads
with it itself. One that still lies unread in that leader's socket while it answers is not seen.) It tells others what it has
seen while it asks: after a blackout all of them do so at once. Whoever does not sign is asked as well, and not waited for:
the certificates that an observer holds prove votes.

The answers also say whether another process with this key speaks still (`node.fence`): then the one that starts ends. And
whether others have begun a later epoch: then the step into it comes first (`node.recovery_watch`).
"""

import dataclasses
from collections.abc import Callable

import trio

from node.fence import Fence
from node.ports import Clock, PeerTransport
from node.tips import Tips
from node.watermark import Questions
from protocol.certificate import Acknowledgement, acknowledgement_valid
from protocol.configuration import Configuration
from protocol.finality import CommitVote, vote_valid
from protocol.identifiers import ZERO, Term
from protocol.raft.state import HardState
from protocol.rejoining import incarnation_of
from storage.ledger_store import LedgerStore

GRACE_MS = 2_000
"""About an election time-out: what a voter that starts while another one is away costs at most."""
UNSURE_GRACE_MS = 10_000
"""After a blackout, what those that are back wait for one that is not: its word would be worth more than theirs."""
_STEP_MS = 10_000
"""The step into a later epoch is taken, or refused with a word to the operator, well within that; a lie costs no more."""


class Recall:
    """Finds out whether a signer that starts still knows what it signed, and is the only one that signs with its key."""

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
        nonce, signers = tips.session.nonce, configuration.signers
        self._questions = Questions(signers, transport, clock, nonce=nonce)
        onlookers = [node for node in configuration.by_node if node not in signers]
        self._onlookers = Questions(onlookers, transport, clock, nonce=nonce)
        self._fence = Fence(self._questions.once, tips, clock, liars=configuration.liars_tolerated)
        self._clock = clock
        self._store = store
        self.is_sure = False
        """Whether every other signer has answered."""

    async def wait(self, hard_state: HardState) -> HardState | None:
        """Return the hard state to go on with, or None when this member has forgotten something that it signed.

        Raises:
            Superseded: another process with this member's key is running.
        """
        questions = self._questions
        await self._ask(
            self._configuration.raft_quorum - 1
        )  # what the quorum needs besides this voter itself
        marks = {**self._onlookers.marks, **questions.marks}
        await self._fence.pass_with(marks)
        if any(mark.epoch > self._store.epochs.current for mark in marks.values()):
            await self._clock.sleep_ms(_STEP_MS)  # the step ends this wait, and this run
        if incarnation_of(self._store.state, questions.me).number > hard_state.incarnation:
            return None  # it was begun anew with another copy of this ledger
        if any(self._is_forgotten(mark.ack, hard_state) for mark in marks.values()):
            return None
        if any(self._is_vote_forgotten(mark.vote, hard_state) for mark in marks.values()):
            return None
        return self._of_newest_term(hard_state)

    async def make_sure_of_being_alone(self) -> None:
        """Ask only whether another process with this member's key speaks: this one knows that it has forgotten.

        Raises:
            Superseded: it does.
        """
        await self._ask(min(1, len(self._questions.others)))
        await self._fence.pass_with({**self._onlookers.marks, **self._questions.marks})

    async def _ask(self, needed: int) -> None:
        """Ask until all signers have answered; or, after a while, as many voters as are `needed`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._questions.run)
            nursery.start_soon(self._onlookers.run)
            if not await self._until(self._have_all_answered, GRACE_MS):
                rest_ms = UNSURE_GRACE_MS - GRACE_MS
                if not await self._until(lambda: self._voters(sure=True) >= needed, rest_ms):
                    await self._until(lambda: self._voters() >= needed)
            self.is_sure = self._have_all_answered()
            nursery.cancel_scope.cancel()

    async def _until(self, is_enough: Callable[[], bool], patience_ms: int | None = None) -> bool:
        """Wait until there are answers enough; return whether they came in time."""
        with trio.CancelScope() as patience:
            if patience_ms is not None:
                patience.deadline = trio.current_time() + patience_ms / 1000
            while not is_enough():
                await self._questions.answered.wait()
        return is_enough()

    def _have_all_answered(self) -> bool:
        return len(self._questions.marks) == len(self._questions.others)

    def _voters(self, *, sure: bool = False) -> int:
        """Return how many other voters have answered; with `sure`, of those that have forgotten nothing."""
        marks = self._questions.marks
        return sum(node in marks and (marks[node].is_sure or not sure) for node in self._configuration.voters)

    def _of_newest_term(self, hard_state: HardState) -> HardState:
        term = max((mark.term for mark in self._questions.marks.values()), default=Term(0))
        is_unspent = term == hard_state.term > 0 and hard_state.vote == ZERO
        if term > hard_state.term or is_unspent:
            return dataclasses.replace(hard_state, term=term, vote=self._questions.me)
        return hard_state

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
