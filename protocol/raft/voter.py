"""What one voter knows, whatever its role: identity, hard state, log, term's leader, what is proven, clock.

The phases (`election`, `following`, `replication`) read and change it; `machine` alone decides which phase is in charge.
"""

import dataclasses
from collections import deque

from protocol import certificate, limits
from protocol.block import Block
from protocol.certificate import Acknowledgement, CommitProof
from protocol.configuration import Configuration
from protocol.errors import Corruption
from protocol.finality import Certificate
from protocol.identifiers import ZERO, Digest, Height, NetworkId, NodeId, Term
from protocol.merkle import Frontier
from protocol.raft.keeping import Keeping, kept_above
from protocol.raft.log import Log
from protocol.raft.membership import Membership
from protocol.raft.messages import Message
from protocol.raft.state import Contradiction, HardState, ReadState
from protocol.signing import SigningKey


class Voter:
    """The mutable state that all phases share; owned by one `Raft`."""

    def __init__(
        self,
        *,
        key: SigningKey,
        network: NetworkId,
        configuration: Configuration,
        hard_state: HardState,
        log: Log,
    ) -> None:
        self.key = key
        self.me = NodeId(key.public)
        self.network = network
        self.membership = Membership(log.certified, configuration)
        self.hard = self.durable = hard_state
        self.log = log
        self.outbox: list[tuple[NodeId, Message]] = []
        self.reads: list[ReadState] = []
        self.tick = 0
        self.now_ms = 0
        self.leader: NodeId | None = None
        """Whom this voter follows now (itself when leading)."""
        self.term_leader: NodeId | None = None
        """The one leader of this term whose election was verified (P0). Outlives losing touch with it."""
        self.leader_dead = False
        """The term's leader broke a rule: nothing more is taken from it in this term."""
        self.leader_dead_until_ms: int | None = None
        """When the rule was that of clocks: from when on, by the own clock, its blocks are not ahead any more."""
        self.leader_heard_tick = 0
        self.proof: CommitProof | None = None
        """The newest commit proof seen."""
        self.certificates: deque[Certificate] = deque(maxlen=limits.CERTIFICATES_CACHED)
        """The newest certificates of blocks in this log, rising; older ones are in the store."""
        self.contradictions: list[Contradiction] = []
        self.behind: Height | None = None
        """Height of an offer of the leader's that the driver has not been told of."""
        self.acknowledgements: dict[NodeId, Acknowledgement] = {}
        """The newest one seen of each other voter: who asks after a crash what it had promised is told."""
        self.undelivered: deque[Certificate] = deque()
        self.delivered = log.certified
        self.keeping = Keeping()
        for height in range(log.certified + 1, log.tip_height + 1):
            self.membership.append(log.block(Height(height)))
        for stored in kept_above(log):
            self.certify(stored, is_kept=True)
        self._check_promises()

    def begin(self) -> None:
        """Take from the log what it says of terms: once, when what is in the hard state counts as durable."""
        tip = self.log.tip
        if tip.term > self.term:
            # What was installed may be of a term that this voter has not taken part in: it has no vote in it yet.
            self.enter_term(tip.term)
        marked = self.marked_height()
        if marked is not None and not self.log.holds(marked, self.hard.ack_hash):
            # What was acknowledged in this term lies below what was installed since, or lost to it. If the term's leader
            # lied, this log may be another branch: nothing more is said in a term that cannot be compared (E2).
            self.enter_term(Term(self.term + 1))
        # A block of the current term in the log was checked against its leader's election before it was stored.
        if tip.term == self.term and tip.height > 0:
            self.term_leader = tip.leader

    @property
    def term(self) -> Term:
        """The current term."""
        return self.hard.term

    @property
    def configuration(self) -> Configuration:
        """The configuration in force: the newest in the log, certified or not (ledger.md 7.2, 3)."""
        return self.membership.newest

    @property
    def is_voter(self) -> bool:
        """Whether this node counts in the configuration in force."""
        return self.me in self.configuration.voters

    @property
    def changing(self) -> bool:
        """Whether a configuration block waits to be certified."""
        return self.membership.height > self.log.certified

    @property
    def base(self) -> tuple[Height, Digest]:
        """Height and hash of the highest block of this log that is known to be certified (P4).

        After a restart that may lie above what is applied: the hard state remembers it, its certificate is gone.
        """
        hard, certified = self.hard, self.log.certified
        if hard.certificate_height > certified:
            return hard.certificate_height, hard.certificate_hash
        return certified, self.log.hash(certified)

    @property
    def base_height(self) -> Height:
        """The height of `base`, for which no block is looked up."""
        remembered, certified = self.hard.certificate_height, self.log.certified
        return remembered if remembered > certified else certified  # noqa: FURB136 - max() costs a call at every turn

    @property
    def signers(self) -> frozenset[NodeId]:
        """Whose votes count now: while the membership changes, those before and those after (ledger.md 7.2, 4)."""
        before = self.membership.replaced if self.changing else None
        return frozenset([*self.configuration.signers, *(before.signers if before is not None else ())])

    @property
    def other_signers(self) -> tuple[NodeId, ...]:
        """Who is told of votes and certificates besides this node, in order."""
        return tuple(sorted(self.signers - {self.me}))

    @property
    def other_voters(self) -> tuple[NodeId, ...]:
        """The voters besides this node."""
        return tuple([node for node in self.configuration.voters if node != self.me])

    @property
    def receivers(self) -> tuple[NodeId, ...]:
        """To whom a leader sends blocks: the other voters, the witnesses and the learners.

        What the latter two acknowledge tells the leader what to send next, and is counted for nothing (P6). Who leaves
        is one of them until that is certified: its vote may be needed for it (ledger.md 7.2, 4).
        """
        before = self.membership.replaced if self.changing else None
        leaving = before.signers if before is not None else ()
        others = (*self.configuration.witnesses, *self.configuration.learners, *leaving)
        counted = {self.me, *self.configuration.voters}
        return self.other_voters + tuple(dict.fromkeys(node for node in others if node not in counted))

    def may_lead(self, node: NodeId) -> bool:
        """Return whether a candidacy of `node` is heard.

        Also that of a learner, which may be a voter by a block that has not come here (Raft thesis §4.1).
        """
        return self._counts_or_leaves(node) or node in self.configuration.learners

    @property
    def may_campaign(self) -> bool:
        """Whether this node stands for election: a voter does, and one on its way out.

        But not before it holds the certified block that made it leave its tail: what it would say of its log could not be
        told from a lie (E5b).
        """
        return self._counts_or_leaves(self.me) and self.base_height >= self.hard.left_height

    def _counts_or_leaves(self, node: NodeId) -> bool:
        # Until its leaving is certified, a voter that leaves may hold the only log that can win (Raft thesis §4.2.2).
        before = self.membership.replaced
        is_leaving = self.changing and before is not None and node in before.voters
        return is_leaving or node in self.configuration.voters

    def is_leaving(self, node: NodeId) -> bool:
        """Return whether the configuration in force, certified or not, has no part for `node`."""
        newest = self.configuration
        return node not in newest.signers and node not in newest.learners

    def append(self, block: Block, frontier: Frontier | None = None) -> None:
        """Add a checked block to the log; a configuration counts from here on."""
        self.log.append(block, frontier)
        self.membership.append(block)

    def truncate_from(self, height: Height) -> None:
        """Remove the block at `height` and all above it, and the configuration they set."""
        self.log.truncate_from(height)
        self.membership.truncate_from(height)

    def send(self, target: NodeId, message: Message) -> None:
        """Queue a message; it leaves after the Ready it is part of has been persisted."""
        self.outbox.append((target, message))

    def take_reads(self) -> tuple[ReadState, ...]:
        """Return the answers to this node's reads since the last call."""
        reads, self.reads = tuple(self.reads), []
        return reads

    def enter_term(self, term: Term, *, vote: bytes = ZERO) -> None:
        """Move to a higher term. The vote of the old one is forgotten, the marker is not."""
        assert term > self.hard.term, "a term only rises"
        self.hard = dataclasses.replace(self.hard, term=term, vote=vote)
        self.leader = self.term_leader = None
        self.leader_dead, self.leader_dead_until_ms = False, None

    def vote_for(self, candidate: NodeId) -> None:
        """Record the vote of this term (Raft §5.2: at most one)."""
        assert self.hard.vote in (ZERO, candidate), "a vote is cast once"
        if self.hard.vote != candidate:
            self.hard = dataclasses.replace(self.hard, vote=candidate)

    def mark(self, height: Height, tip: Digest) -> None:
        """Raise this term's marker: the log up to `height` equals the leader's (P2). Within one term it never falls."""
        hard = self.hard
        if hard.ack_term == hard.term and hard.ack_height >= height and hard.ack_hash != ZERO:
            return
        self.hard = dataclasses.replace(hard, ack_term=hard.term, ack_height=height, ack_hash=tip)

    def marked_height(self) -> Height | None:
        """Return up to where this voter is bound in the current term, or None when it has acknowledged nothing in it."""
        hard = self.hard
        return hard.ack_height if hard.ack_term == hard.term and hard.ack_hash != ZERO else None

    def condemn_leader(self, *, until_ms: int | None = None) -> None:
        """Treat the leader as dead for the term: the next election time-out runs as if it had fallen silent.

        With `until_ms`, only until the own clock shows that: of two clocks nobody knows which one is wrong.
        """
        self.leader_dead, self.leader_dead_until_ms = True, until_ms
        self.leader = None

    def is_leader_dead(self) -> bool:
        """Return whether the term's leader is still treated as dead."""
        if self.leader_dead_until_ms is not None and self.now_ms >= self.leader_dead_until_ms:
            # The own clock has been put right: or this voter would follow nobody until the term ends.
            self.leader_dead, self.leader_dead_until_ms = False, None
        return self.leader_dead

    def acknowledge(self, height: Height) -> Acknowledgement:
        """Sign that this log equals the term leader's up to `height`. It may leave only when that and the marker are durable."""
        hard = self.hard
        tip = self.log.hash(height)
        return certificate.acknowledge(
            self.key,
            self.network,
            epoch=hard.epoch,
            incarnation=hard.incarnation,
            term=hard.term,
            height=height,
            tip=tip,
        )

    def commit(self, proof: CommitProof) -> None:
        """Take a verified proof for a block of this log; it and its ancestors are ordered (P3)."""
        height = proof.header.height
        if height > self.log.committed:
            self.log.commit(height)
        if self.proof is None or height > self.proof.header.height:
            self.proof = proof

    def certify(self, certificate: Certificate, *, is_kept: bool = False) -> None:
        """Take a verified certificate for a block of this log above the certified height; all up to there is final (P5)."""
        self.log.certify(certificate.height)
        self.membership.certify(certificate.height)
        self.undelivered.append(certificate)
        self.certificates.append(certificate)
        if not is_kept:
            self.keeping.add(certificate)

    def certificate_for(self, known: Height, tip: Height) -> Certificate | None:
        """Return what somebody with certificates up to `known` and blocks up to `tip` needs next, or None.

        The newest for a block at or below `tip`; but above a configuration block nothing is certified before it is (ledger.md
        7.2, 4). Nobody holds more uncertified blocks than are looked through for one.
        """
        log = self.log
        if known >= min(tip, log.certified):
            return None
        for height in range(
            max(known, log.first()) + 1, min(tip, known + 2 * limits.UNCERTIFIED_BLOCKS_MAX) + 1
        ):
            if log.header(Height(height)).next_config_hash != ZERO:
                tip = Height(height)
                break
        newest = self.certificate_at(tip)
        return newest if newest is not None and newest.height > known else None

    def certificate_at(self, height: Height) -> Certificate | None:
        """Return the certificate with the greatest height at or below `height`, of those known here."""
        for known in reversed(self.certificates):
            if known.height <= height:
                return known
        return self.log.certificate(height)

    @property
    def bound(self) -> Height:
        """Height up to which this log is given up for nothing but a certificate: what is ordered or voted for (P4, 3)."""
        hard, log = self.hard, self.log
        if hard.last_vote_height > log.committed and log.holds(hard.last_vote_height, hard.last_vote_hash):
            return hard.last_vote_height
        return log.committed

    def roll_back(self, certificate: Certificate) -> None:
        """Give up the uncertified tail, some of it proven or voted for: another block is certified in its place (P5).

        That takes a liar. All of it goes, though the lower part may be common: that comes again. What was promised of it is
        undone in a way that contradicts nothing: this node says nothing more in a term in which it has acknowledged some of
        it (E2), and neither votes nor stands before it holds the certified block (E3, E5b).
        """
        base = self.base_height
        self.truncate_from(Height(base + 1))
        marked = self.marked_height()
        is_marked = marked is not None and marked > base
        self.hard = hard = self.hard.leaving(certificate.height)
        self.proof = None
        term = max(Term(hard.term + is_marked), certificate.header.term)
        if term > hard.term:
            self.enter_term(term)

    def note_certificate(self) -> None:
        """Bring the hard state's certificate up to date, because it is written anyway (ledger.md decision 6)."""
        height, digest = self.base
        if self.hard.certificate_height != height:
            self.hard = dataclasses.replace(self.hard, certificate_height=height, certificate_hash=digest)

    def take_certified(self) -> tuple[tuple[Block, ...], Certificate | None]:
        """Return certified blocks not handed out yet, as far as a certificate reaches that lies within the durable log."""
        certificate = None
        while self.undelivered and self.undelivered[0].height <= self.log.persisted:
            certificate = self.undelivered.popleft()
            if certificate.header.next_config_hash != ZERO:
                # Handed out by itself: whoever catches up takes what stands above only upon this one (ledger.md 7.2, 4).
                break
        if certificate is None:
            return (), None
        blocks = tuple([self.log.block(Height(h)) for h in range(self.delivered + 1, certificate.height + 1)])
        self.delivered = certificate.height
        return blocks, certificate

    def _check_promises(self) -> None:
        hard, log = self.hard, self.log
        if hard.certificate_height > log.certified and not log.holds(
            hard.certificate_height, hard.certificate_hash
        ):
            raise Corruption(f"block {hard.certificate_height} is certified and not in the log")
        self._check_marker()
        is_above = hard.last_vote_height > self.base_height
        if is_above and not log.holds(hard.last_vote_height, hard.last_vote_hash) and not hard.left_height:
            if not self._has_lost():
                raise Corruption(f"block {hard.last_vote_height} was voted for and is not in the log")
            # What was installed here is certified, and the tail that was voted for did not follow it (P4, 1).
            self.hard = hard.leaving(log.certified)

    def _check_marker(self) -> None:
        # A marker is written in one batch with the blocks it speaks of, so a log without them was damaged, or restored
        # from an old image. Voting on could break a promise that others rely on (ledger.md 3.1 no. 28). But up to what is
        # certified, or was when an installation replaced the tail, a certificate has undone it.
        hard, log = self.hard, self.log
        if hard.ack_hash == ZERO or hard.ack_height <= log.certified or hard.left_height:
            return
        if not log.holds(hard.ack_height, hard.ack_hash) and not self._has_lost():
            raise Corruption(
                f"block {hard.ack_height} was acknowledged in term {hard.ack_term} and is not in the log"
            )

    def _has_lost(self) -> bool:
        """Return whether what was acknowledged above the certified block lost to what was installed here since.

        Terms never fall along a chain, so an acknowledged block has no certified one of a later term among its ancestors:
        it stood on another branch, and was rightly left (ledger.md 3.1 no. 37). Blocks that this log took later than the
        acknowledgement came with a newer marker, so there can be none above.
        """
        log = self.log
        return log.term(log.certified) > self.hard.ack_term and log.tip_height == log.certified
