"""What a driver asks of its machine besides giving it time and messages: proposals, reads, changes of membership and leader."""

from protocol.configuration import Configuration
from protocol.errors import NotLeader, Refused
from protocol.identifiers import Digest, Height, NodeId
from protocol.raft.following import Following
from protocol.raft.read_index import ForwardedReads
from protocol.raft.view import View
from protocol.raft.voter import Voter


class Requests(View):
    """The machine as its driver's clients know it; none of this changes the role."""

    def __init__(self, voter: Voter, timeout_seed: bytes) -> None:
        """`timeout_seed` differs between nodes and starts."""
        super().__init__(voter)
        self._following = Following(voter, self._certifying)
        self._forwarded = ForwardedReads(voter, timeout_seed)

    def propose(self, transactions: tuple[bytes, ...], now_ms: int) -> Height:
        """Cut one block of `transactions`, which the caller has checked and counted; return its height.

        Raises:
            NotLeader: forward them to the leader it names.
            Unavailable: 64 blocks or 16 MiB wait to become final already.
        """
        self._voter.now_ms = now_ms
        if self._leadership is None:
            raise NotLeader(self._voter.leader)
        return self._leadership.propose(transactions)

    def read_index(self) -> int:
        """Ask up to which height a read that starts now must see the ledger; return the number that `Ready.reads` answers with.

        The answer has been confirmed by a quorum after this call (ReadIndex, Raft thesis §6.4); no clock and no lease is
        trusted. When the leadership ends or a leader elsewhere stays silent for ELECTION_TICKS_MAX it says that it is not
        known; how long to wait for a quorum is the caller's choice.

        Raises:
            NotLeader: no leader is known; wait one election time-out.
            Unavailable: too many reads wait already.
        """
        request = self._forwarded.number()
        if self._leadership is not None:
            self._leadership.reads.add(self._voter.me, request)
        else:
            self._forwarded.forward(request)
        return request

    def propose_configuration(self, following: Configuration, now_ms: int) -> Height:
        """Change the membership by one configuration block; return its height. Who may wish that is not asked here.

        Raises:
            NotLeader: this node does not lead.
            Refused: it is not the expected one, more than one voter would change, or a new one was no learner.
            Unavailable: nothing of this term is certified yet, blocks are under way, or the learner to promote lags.
        """
        self._voter.now_ms = now_ms
        if self._leadership is None:
            raise NotLeader(self._voter.leader)
        if following.digest != self._following.expected:
            raise Refused("this configuration is not the one that the ledger's state says is pending")
        return self._leadership.propose_configuration(following)

    def expect_configuration(self, digest: Digest | None) -> None:
        """Hear which configuration is pending in the applied state (ledger.md 7.1): no other is proposed or taken.

        To be said after each start, and whenever it changes; a block that comes before is held, and sent again.
        """
        self._following.expected = digest

    def commit_acknowledged(self) -> None:
        """Commit what a quorum has acknowledged and certify what q have voted for, as `ready` does first.

        Called before a block is cut, it gives that block the free slot, and its frames proof and certificate: else each
        costs a frame, and its answer, of its own.
        """
        if self._leadership is not None:
            self._leadership.advance_commit()
        self._certifying.count()

    def transfer_leadership(self, target: NodeId) -> None:
        """Hand the leadership to `target`: proposals stop, it is brought up to date and told to campaign (thesis §3.10).

        After ELECTION_TICKS_MIN without success the leader takes proposals again. Asking again for the same target
        changes nothing, for another one starts anew, for this node gives the transfer up.

        Raises:
            NotLeader: this node does not lead.
            Refused: `target` does not vote.
        """
        if self._leadership is None:
            raise NotLeader(self._voter.leader)
        self._leadership.transfer_to(target)

    def distrust(self, sender: NodeId) -> None:
        """Hear that the body of a block in a frame of `sender` was invalid: if it leads, it is dead for the term (P2)."""
        if sender == self._voter.term_leader and sender != self._voter.me:
            self._voter.condemn_leader()
