"""What one voter knows, whatever its role: identity, hard state, log, term's leader, proofs, clock.

The phases (`election`, `following`, `replication`) read and change it; `machine` alone decides which phase is in charge.
"""

import dataclasses
from collections import deque

from protocol import certificate
from protocol.block import Block
from protocol.certificate import Acknowledgement, CommitProof
from protocol.configuration import Configuration
from protocol.errors import Corruption
from protocol.identifiers import ZERO, Digest, Height, NetworkId, NodeId, Term
from protocol.merkle import Frontier
from protocol.raft.log import Log
from protocol.raft.membership import Membership
from protocol.raft.messages import Message
from protocol.raft.state import HardState, ReadState
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
        self.membership = Membership(log.committed, configuration)
        self.hard = hard_state
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
        self.behind: Height | None = None
        """Height of an offer of the leader's that the driver has not been told of."""
        self.acknowledgements: dict[NodeId, Acknowledgement] = {}
        """The newest one seen of each other voter: who asks after a crash what it had promised is told."""
        self.undelivered: deque[CommitProof] = deque()
        self.delivered = log.committed
        for height in range(log.committed + 1, log.tip_height + 1):
            self.membership.append(log.block(Height(height)))
        self._check_marker()

    def begin(self) -> None:
        """Take from the log what it says of terms: once, when what is in the hard state counts as durable."""
        tip = self.log.tip
        if tip.term > self.term:
            # What was installed may be of a term that this voter has not taken part in: it has no vote in it yet.
            self.enter_term(tip.term)
        # A block of the current term in the log was checked against its leader's election before it was stored.
        if tip.term == self.term and tip.height > 0:
            self.term_leader = tip.leader

    @property
    def term(self) -> Term:
        """The current term."""
        return self.hard.term

    @property
    def configuration(self) -> Configuration:
        """The configuration in force: the newest in the log, committed or not (ledger.md 7.2, 3)."""
        return self.membership.newest

    @property
    def is_voter(self) -> bool:
        """Whether this node counts in the configuration in force."""
        return self.me in self.configuration.voters

    @property
    def changing(self) -> bool:
        """Whether a configuration block waits to be committed."""
        return self.membership.height > self.log.committed

    @property
    def other_voters(self) -> tuple[NodeId, ...]:
        """The voters besides this node."""
        return tuple([node for node in self.configuration.voters if node != self.me])

    @property
    def receivers(self) -> tuple[NodeId, ...]:
        """To whom a leader sends blocks: the other voters, and the learners."""
        learners = [node for node in self.configuration.learners if node != self.me]
        return self.other_voters + tuple(learners)

    def may_lead(self, node: NodeId) -> bool:
        """Return whether a candidacy of `node` is heard.

        Also that of a learner, which may be a voter by a block that has not come here (Raft thesis §4.1).
        """
        return self._counts_or_leaves(node) or node in self.configuration.learners

    @property
    def may_campaign(self) -> bool:
        """Whether this node stands for election: a voter does, and one on its way out."""
        return self._counts_or_leaves(self.me)

    def _counts_or_leaves(self, node: NodeId) -> bool:
        # Until its leaving is committed, a voter that leaves may hold the only log that can win (Raft thesis §4.2.2).
        before = self.membership.replaced
        is_leaving = self.changing and before is not None and node in before.voters
        return is_leaving or node in self.configuration.voters

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
        """Take a verified proof for a block of this log; it and its ancestors are committed (P3)."""
        height = proof.header.height
        if height > self.log.committed:
            self.log.commit(height)
            self.membership.commit(height)
            self.undelivered.append(proof)
        if self.proof is None or height > self.proof.header.height:
            self.proof = proof

    def take_committed(self) -> tuple[tuple[Block, ...], CommitProof | None]:
        """Return committed blocks not handed out yet, as far as a proof reaches that lies within the durable log."""
        proof = None
        while self.undelivered and self.undelivered[0].header.height <= self.log.persisted:
            proof = self.undelivered.popleft()
            above = Height(proof.header.height + 1)
            if above <= self.log.tip_height and self.log.header(above).next_config_hash != ZERO:
                # The proof of the block below a configuration is handed out by itself, and so stored: whoever catches up
                # takes the configuration only upon that very proof (ledger.md 7.2, 1).
                break
        if proof is None:
            return (), None
        blocks = tuple(
            [self.log.block(Height(h)) for h in range(self.delivered + 1, proof.header.height + 1)]
        )
        self.delivered = proof.header.height
        return blocks, proof

    def _check_marker(self) -> None:
        # A marker is written in one batch with the blocks it speaks of, so a log without them was damaged, or restored
        # from an old image. Voting on could break a promise that others rely on (ledger.md 3.1 no. 28).
        hard, log = self.hard, self.log
        if hard.ack_hash == ZERO:
            return
        if hard.ack_height > log.tip_height or log.first() <= hard.ack_height:
            is_there = hard.ack_height <= log.tip_height and log.hash(hard.ack_height) == hard.ack_hash
            if not is_there and not self._has_lost(hard.ack_height):
                raise Corruption(
                    f"block {hard.ack_height} was acknowledged in term {hard.ack_term} and is not in the log"
                )

    def _has_lost(self, height: Height) -> bool:
        """Return whether the acknowledged block at `height` lost to what was installed here since.

        Terms never fall along a chain, so an acknowledged block has no committed one of a later term among its ancestors:
        it stood on another branch, and was rightly left (ledger.md 3.1 no. 37). Blocks that this log took later than the
        acknowledgement came with a newer marker, so there can be none above.
        """
        log = self.log
        has_lost = log.term(log.committed) > self.hard.ack_term
        return has_lost and (height <= log.committed or log.tip_height == log.committed)
