"""Elections: time-outs, PreVote, votes and the election certificate (Raft §5.2, §5.4.1; thesis §4.2.3, §9.6; P0).

`Election` answers what to do; `machine` does it. Time-outs are drawn from SHA-256(seed ‖ counter): no two nodes share a
seed, and a simulation repeats them.
"""

import hashlib
from collections.abc import Collection

from protocol import certificate, limits
from protocol.block import Header, header_hash
from protocol.certificate import ElectionCertificate, ElectionGrant
from protocol.errors import Invalid
from protocol.identifiers import ZERO, Digest, NodeId, Term
from protocol.raft.messages import (
    PreVote,
    PreVoteReply,
    RequestVote,
    VoteReply,
    request_vote_form,
    request_vote_valid,
)
from protocol.raft.voter import Voter


class Election:
    """The time-out, and the votes gathered by this node as pre-candidate or candidate."""

    def __init__(self, voter: Voter, timeout_seed: bytes) -> None:
        self._voter = voter
        self._seed = timeout_seed
        self._draws = 0
        self._heard_leader = False
        self._elapsed = 0
        self.is_starved = False
        """Nothing has become final for too long: no leader is worth keeping (P6)."""
        self._pre_votes: set[NodeId] = set()
        self._grants: dict[NodeId, ElectionGrant] = {}
        self._granted: ElectionGrant | None = None
        """The newest grant to somebody else in this life."""
        self._timeout = self._draw()

    def heard_leader(self) -> None:
        """Note a frame of the live leader: the time-out starts again."""
        self._elapsed = 0
        if not self._heard_leader:
            self._heard_leader = True
            self._timeout = self._draw()  # the short first time-out has served its purpose

    def restart(self) -> None:
        """Start the time-out again with a new draw: after a vote, a campaign or a change of role."""
        self._elapsed = 0
        self._timeout = self._draw()

    def tick(self) -> bool:
        """Count a tick; return whether the time-out has passed (and start the next)."""
        self._elapsed += 1
        if self._elapsed < self._timeout:
            return False
        self.restart()
        return True

    def is_leased_against(self, candidate: NodeId) -> bool:
        """Return whether a leader other than `candidate` is alive, so that an election would only disturb (§6 of Raft).

        A leader holds its own lease: CheckQuorum ends it. A leader that asks for votes has given up leading.
        """
        voter = self._voter
        if self.is_starved:
            return False  # what this leader leads to is not certified (P6)
        if voter.leader == voter.me:
            return True
        recent = voter.tick - voter.leader_heard_tick < limits.ELECTION_TICKS_MIN
        return voter.leader not in (None, candidate) and recent

    def start_pre_vote(self) -> bool:
        """Ask everybody whether an election in the next term could succeed; return whether it could already. No term rises yet."""
        voter = self._voter
        self._pre_votes = {voter.me}
        for peer in voter.other_voters:
            voter.send(
                peer, PreVote(Term(voter.term + 1), voter.me, voter.log.tip.term, voter.log.tip_height)
            )
        return self._pre_vote_won()

    def start_campaign(self, *, transfer: bool) -> bool:
        """Enter the next term, vote for this node and ask for votes (Raft §5.2); return whether that won already.

        `transfer`: the leader itself asked for it (Raft thesis §3.10).
        """
        voter = self._voter
        voter.enter_term(Term(voter.term + 1), vote=voter.me)
        self._grants = {voter.me: self._grant(voter.me, voter.log.tip_hash)}
        for peer in voter.other_voters:
            voter.send(peer, self._request(transfer=transfer))
        return self._election_won()

    def answer_pre_vote(self, request: PreVote, *, leased: bool) -> None:
        """Grant when this node would vote so in an election now; nothing is remembered."""
        voter = self._voter
        granted = (
            not leased
            and voter.may_lead(request.candidate)
            and request.term > voter.term
            and self._is_current(request.tip_term, request.tip_height)
        )
        # A refusal names the own term: a node left behind in an old term must rise or nobody ever wins (etcd #8243).
        term = request.term if granted else voter.term
        voter.send(request.candidate, PreVoteReply(term, voter.me, granted))

    def count_pre_vote(self, reply: PreVoteReply) -> bool:
        """Count a granted PreVote for the next term; return whether a quorum has granted."""
        if reply.granted and reply.term == self._voter.term + 1:
            self._pre_votes.add(reply.voter)
        return self._pre_vote_won()

    def check_request(self, request: RequestVote) -> None:
        """Check the signature of a RequestVote and that its tip is what it says.

        Raises:
            Invalid: either does not hold.
        """
        if header_hash(request.tip) != request.tip_hash or request.tip.net != self._voter.network:
            raise Invalid("a RequestVote's tip hash is not that of its header")
        if not request_vote_valid(request, self._voter.network):
            raise Invalid("a RequestVote's signature does not verify")

    def answer_vote(self, request: RequestVote) -> bool:
        """Answer a RequestVote of the current or an older term; return whether the vote was granted.

        Granted when this voter has not voted in this term and the candidate's log is at least as up to date (Raft §5.4.1).
        The vote is part of the hard state that the driver persists before the reply leaves. A request that comes again is
        answered with the same grant, in the same life: signed for another tip, it would be a second vote (E4).
        """
        voter, granted = self._voter, self._granted
        if granted is not None and (granted.term, granted.candidate) == (voter.term, request.candidate):
            is_same = (request.term, request.tip_hash) == (granted.term, granted.tip_hash)
            voter.send(request.candidate, VoteReply(voter.term, voter.me, granted if is_same else None))
            return is_same
        free = voter.hard.vote == ZERO and voter.term_leader in (None, request.candidate)
        tip: Header = request.tip
        if request.term != voter.term or not free or not self._is_current(tip.term, tip.height):
            voter.send(request.candidate, VoteReply(voter.term, voter.me, None))
            return False
        voter.vote_for(request.candidate)
        self._granted = self._grant(request.candidate, request.tip_hash)
        voter.send(request.candidate, VoteReply(voter.term, voter.me, self._granted))
        return True

    def count_vote(self, reply: VoteReply) -> bool:
        """Count a granted vote of this term; return whether the election is won.

        Raises:
            Invalid: the grant is for something else, or its signature does not verify.
        """
        voter, grant = self._voter, reply.grant
        if grant is None or reply.term != voter.term or grant.voter in self._grants:
            return False
        expected = (reply.voter, voter.term, voter.me, voter.log.tip_hash)
        if (grant.voter, grant.term, grant.candidate, grant.tip_hash) != expected:
            raise Invalid("a grant for another election")
        if not certificate.grant_valid(grant, voter.network):
            raise Invalid("a grant's signature does not verify")
        self._grants[grant.voter] = grant
        return self._election_won()

    def certificate(self) -> ElectionCertificate:
        """Return the certificate of the election just won: the body of the block that opens the term (P0)."""
        voter = self._voter
        grants = tuple(self._grants[node] for node in sorted(self._counted(self._grants)))
        return ElectionCertificate(voter.term, voter.me, voter.log.tip_hash, grants)

    def _is_current(self, tip_term: Term, tip_height: int) -> bool:
        """Return whether a log with this tip is at least as up to date as the own (Raft §5.4.1)."""
        log = self._voter.log
        return (tip_term, tip_height) >= (log.tip.term, log.tip_height)

    def _pre_vote_won(self) -> bool:
        return len(self._counted(self._pre_votes)) >= self._voter.configuration.raft_quorum

    def _election_won(self) -> bool:
        return len(self._counted(self._grants)) >= self._voter.configuration.raft_quorum

    def _counted(self, voters: Collection[NodeId]) -> set[NodeId]:
        """Return those that count: a voter on its way out asks for votes, and its own is none (Raft thesis §4.2.2)."""
        return set(voters) & set(self._voter.configuration.voters)

    def _grant(self, candidate: NodeId, tip_hash: Digest) -> ElectionGrant:
        voter = self._voter
        return certificate.grant_vote(
            voter.key,
            voter.network,
            epoch=voter.hard.epoch,
            incarnation=voter.hard.incarnation,
            term=voter.term,
            candidate=candidate,
            tip=tip_hash,
        )

    def _request(self, *, transfer: bool = False) -> RequestVote:
        voter = self._voter
        hard, log = voter.hard, voter.log
        base_height, base = voter.base
        form = request_vote_form(
            voter.network,
            epoch=hard.epoch,
            incarnation=hard.incarnation,
            term=hard.term,
            candidate=voter.me,
            tip=log.tip,
            tip_hash=log.tip_hash,
            ack_term=hard.ack_term,
            base_height=base_height,
            base_hash=base,
        )
        return RequestVote(
            hard.epoch,
            hard.incarnation,
            hard.term,
            voter.me,
            log.tip,
            log.tip_hash,
            hard.ack_term,
            base_height,
            base,
            voter.key.sign(form),
            transfer,
        )

    def _draw(self) -> int:
        """Return the next time-out in ticks.

        ELECTION_TICKS_MIN to MAX; up to MIN while no leader has ever been heard, so that a network starts quickly:
        PreVote keeps an early riser from disturbing anybody.
        """
        digest = hashlib.sha256(self._seed + self._draws.to_bytes(8, "big")).digest()
        self._draws += 1
        draw = int.from_bytes(digest[:8], "big")
        low, high = limits.ELECTION_TICKS_MIN, limits.ELECTION_TICKS_MAX
        if not self._heard_leader:
            low, high = low // 2, low
        return low + draw % (high - low + 1)
