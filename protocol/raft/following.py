"""The follower's side of replication: what is taken from a leader, and what is promised in return (Raft §5.3; P0, P2, P3).

A frame is taken whole or in part (a prefix of its blocks), never changed. Nothing is truncated before the blocks that
take its place have been checked, and never at or below what is certified, or this term's marker; nor at or below what is
proven or voted for here, but for a certificate (P4).
"""

from collections import deque

from protocol import certificate, limits, signing
from protocol.block import Block, Header, check_link, header_form
from protocol.certificate import Acknowledgement, CommitProof
from protocol.errors import Invalid, RemoteFault
from protocol.finality import Certificate
from protocol.identifiers import Digest, Height, NodeId
from protocol.raft.certifying import Certifying
from protocol.raft.leader_forms import append_valid, offer_valid
from protocol.raft.messages import (
    AppendEntries,
    AppendReply,
    CertificateNotice,
    CheckedAppend,
    Heartbeat,
    Hint,
    InstallSnapshot,
    Refusal,
)
from protocol.raft.snapshot import check_offer
from protocol.raft.state import Contradiction
from protocol.raft.voter import Voter


class Following:
    """Takes frames of the term's leader into the log and owes it one reply per Ready.

    Replies are made when the driver asks for work, not per frame: however many frames came in between, one batch is
    written and one acknowledgement, for the highest block, is signed.
    """

    def __init__(self, voter: Voter, certifying: Certifying) -> None:
        self._voter = voter
        self._certifying = certifying
        self.expected: Digest | None = None
        """The configuration that is pending in the state applied here; no other is taken (ledger.md 7.1)."""
        self._reply_to: NodeId | None = None
        self._refusal: Refusal | None = None
        self._own: deque[Acknowledgement] = deque(maxlen=limits.OWN_ACKNOWLEDGEMENTS_CACHED)
        self._offered = Height(0)  # of the highest offer that the driver has been told of
        self._held_since_tick: int | None = None
        self._held_block: Block | None = None  # since then: the first that is too far ahead of the own clock

    def accept_leader(self, message: AppendEntries | InstallSnapshot | Heartbeat) -> bool:
        """Return whether the sender is the verified leader of the current term (P0), else owe it a refusal.

        Raises:
            RemoteFault: a second leader of the term, a bad signature, or a certificate that does not elect the sender.
        """
        voter = self._voter
        if voter.term_leader not in (None, message.leader):
            raise Invalid(f"a second leader of term {message.term}")
        if message.epoch != voter.hard.epoch:
            raise Invalid("a leader of another epoch")
        if isinstance(message, AppendEntries) and not append_valid(message, voter.network):
            raise Invalid("a frame's signature does not verify")
        if isinstance(message, InstallSnapshot) and not offer_valid(message, voter.network):
            raise Invalid("an offer's signature does not verify")
        if voter.term_leader is None:
            if message.election is None:
                # The leader takes this node for one that knows it already: it forgot in a restart.
                self._owe(message.leader, Refusal(voter.log.tip_height, needs_election=True, hints=()))
                return False
            check_elects(voter, message)
            voter.term_leader = message.leader
        return not voter.is_leader_dead()

    def take(self, checked: CheckedAppend) -> None:
        """Take a frame of the term's verified leader; a leader that breaks a rule is treated as dead for the term.

        Raises:
            RemoteFault: which rule the frame breaks. Of a frame with a bad block nothing was taken.
        """
        voter, message = self._voter, checked.message
        try:
            if message.certificate is not None and not self._learn(message, message.certificate):
                return
            matched = self._extend(message, checked.blocks)
            if matched is not None:
                voter.mark(matched, voter.log.hash(matched))
            self._certifying.catch_up()
            self._commit(message.proof)
        except RemoteFault:
            if not voter.leader_dead:
                voter.condemn_leader()
            raise
        self._owe(message.leader, self._refusal)

    def take_offer(self, offer: InstallSnapshot) -> None:
        """Take an offer of the term's verified leader: nothing is promised for it.

        Raises:
            RemoteFault: it offers what it cannot have; such a leader is treated as dead for the term.
        """
        voter = self._voter
        try:
            check_offer(voter, offer)
            # Its block may be in this log, above what the leader takes for its end.
            if not self._learn(offer, offer.certificate):
                return
        except RemoteFault:
            if not voter.leader_dead:
                voter.condemn_leader()
            raise
        # From what this log has certified the leader may have the blocks: the offer came late, and the reply says so.
        if voter.log.certified < offer.first and offer.height > self._offered:
            self._offered = voter.behind = offer.height
        self._owe(offer.leader, self._refusal)

    def answer_notice(self, notice: CertificateNotice) -> None:
        """Let a leader that leaves know, when it is durable, what this node holds: it waits for that (`departures`)."""
        if notice.sender == self._voter.leader:
            self._owe(notice.sender, self._refusal)

    def send_reply(self) -> None:
        """Queue the reply owed, if any. It must not leave before the log, the marker and the vote are durable."""
        target = self._reply_to
        if target is None:
            return
        refusal, self._refusal, self._reply_to = self._refusal, None, None
        self._send(target, self._acknowledgement(), refusal, is_following=True)

    def send_term(self, leader: NodeId) -> None:
        """Answer somebody who leads a term that is over: it learns so from the reply, and steps down."""
        self._send(leader, None, None)

    def _send(
        self,
        target: NodeId,
        ack: Acknowledgement | None,
        refusal: Refusal | None,
        *,
        is_following: bool = False,
        certificate: Certificate | None = None,
        proof: CommitProof | None = None,
    ) -> None:
        voter, log = self._voter, self._voter.log
        vote = self._certifying.uncertified_vote if is_following else None
        reply = AppendReply(
            voter.term, voter.me, ack, log.committed, refusal, vote, log.certified, certificate, proof
        )
        voter.send(target, reply)

    def _learn(self, message: AppendEntries | InstallSnapshot, certificate: Certificate) -> bool:
        """Learn the leader's certificate; return whether its term is still the current one (P5)."""
        if certificate.header.term > message.term:
            raise Invalid("a certificate of a later term than its sender leads")
        self._certifying.learn(certificate)
        if self._voter.term == message.term:
            return True
        self.forget()
        self.send_term(message.leader)
        return False

    def forget(self) -> None:
        """Owe nothing more: the term or the role has changed, and an acknowledgement of the old one is worthless."""
        self._reply_to = self._refusal = self._held_since_tick = None

    def _owe(self, leader: NodeId, refusal: Refusal | None) -> None:
        self._reply_to, self._refusal = leader, refusal

    def _acknowledgement(self) -> Acknowledgement | None:
        voter = self._voter
        height = voter.marked_height()
        if height is None or (height < voter.log.certified and height < voter.log.first()):
            return None  # or acknowledged before the log began where it now does: the next frame raises the marker
        if not self._own or (self._own[-1].term, self._own[-1].height) != (voter.term, height):
            self._own.append(voter.acknowledge(height))
        return self._own[-1]

    def _extend(self, append: AppendEntries, blocks: tuple[Block, ...]) -> Height | None:
        """Take what is new of the frame; return up to where the log now equals the leader's, None if prev is not here."""
        log = self._voter.log
        if append.tip_hash != (blocks[-1].hash if blocks else append.prev_hash):
            raise Invalid("a frame's tip is not that of its blocks")
        if append.prev_height < log.certified and append.prev_height < log.first():
            # Sent before this log began where it now does: there is nothing here to compare it with, nor any need.
            self._refusal = self._refuse(append)
            return None
        if append.prev_height > log.tip_height:
            # What follows a held block is not refused: the leader would send both again at once, over and over.
            held = None if self._held_since_tick is None else self._held_block
            if held is None or not self._held(held):
                self._refusal = self._refuse(append)
            return None
        if log.hash(append.prev_height) != append.prev_hash:
            if self._must_leave(append.prev_height, blocks):
                self._leave_tail(append)
                return None
            self._check_unbound(append.prev_height, append)
            self._refusal = self._refuse(append)
            return None
        known = self._known(append, blocks)
        first_new = Height(append.prev_height + known + 1)
        if known < len(blocks) and first_new <= log.tip_height:
            self._note_two_headers(blocks[known])
            if self._must_leave(first_new, blocks):
                self._leave_tail(append)
                return None
            self._check_unbound(first_new, append)
        taken = self._append_checked(append, blocks[known:], first_new)
        return Height(append.prev_height + known + taken)

    def _known(self, append: AppendEntries, blocks: tuple[Block, ...]) -> int:
        """Return how many of the frame's blocks the log holds already. A short frame never shortens a matching log."""
        log = self._voter.log
        for index, block in enumerate(blocks):
            height = append.prev_height + 1 + index
            if block.height != height:
                raise Invalid("the blocks of a frame do not follow each other")
            if height > log.tip_height or log.hash(Height(height)) != block.hash:
                return index
        return len(blocks)

    def _append_checked(self, append: AppendEntries, blocks: tuple[Block, ...], first: Height) -> int:
        """Check blocks from height `first` on, then put them in the log's place from there; return how many were taken."""
        voter = self._voter
        log, taken = voter.log, []
        if not blocks:
            return 0
        below = Height(first - 1)
        predecessor, predecessor_hash, frontier = log.header(below), log.hash(below), log.frontier(below)
        configuration = voter.membership.at(below)
        is_changing = voter.changing and voter.membership.height <= below
        room = 2 * limits.UNCERTIFIED_BYTES_MAX - log.uncertified_bytes
        for block in blocks:
            room -= len(block.raw)
            if self._held(block) or room < 0 or self._must_wait(block, is_changing=is_changing):
                break  # not refused: the leader sends it again, and meanwhile this voter does not acknowledge it
            self._check_certified(block, predecessor)
            check_link(block, predecessor, predecessor_hash, frontier, configuration)
            if block.term > append.term or (
                block.term == append.term and block.header.leader != append.leader
            ):
                raise Invalid(f"block {block.height} is of a term or leader that its sender cannot have")
            if block.opening:
                certificate.check_opening(block, configuration)
            frontier = frontier.append(block.leaves())
            taken.append((block, frontier))
            predecessor, predecessor_hash, below = block.header, block.hash, block.height
            if block.is_configuration:
                configuration, is_changing = block.next_configuration(), True
        if taken and first <= log.tip_height:
            voter.truncate_from(first)
        for block, after in taken:
            voter.append(block, after)
        return len(taken)

    def _held(self, block: Block) -> bool:
        """Return whether a block is too far ahead of the own clock to be acknowledged yet (ledger.md 1.1, Time).

        Raises:
            Invalid: it has been so for too long, in this term.
        """
        voter = self._voter
        if block.header.time_ms <= voter.now_ms + limits.CLOCK_AHEAD_MS_MAX:
            self._held_since_tick = None
            return False
        if self._held_since_tick is None:
            self._held_block, self._held_since_tick = block, voter.tick
        if voter.tick - self._held_since_tick > limits.CLOCK_AHEAD_HOLD_TICKS_MAX:
            voter.condemn_leader(until_ms=block.header.time_ms - limits.CLOCK_AHEAD_MS_MAX)
            raise Invalid(f"block {block.height} has stayed ahead of the clock")
        return True

    def _must_wait(self, block: Block, *, is_changing: bool) -> bool:
        """Return whether a block may be taken only when more is certified or applied here (ledger.md 7.2, 1 and 2)."""
        if is_changing:
            return not block.opening
        if not block.is_configuration:
            return False
        return block.height > self._voter.log.certified + 1 or block.header.next_config_hash != self.expected

    def _check_certified(self, block: Block, predecessor: Header) -> None:
        """Check a block against the certificate that is remembered (P4, 2), and a configuration's term (7.2, 1).

        Raises:
            Invalid: it conflicts with that certificate, or is not of its predecessor's term.
        """
        ahead = self._certifying.ahead
        if ahead is not None and block.height == ahead.height and block.header != ahead.header:
            raise Invalid(f"block {block.height} conflicts with a certificate")
        if block.is_configuration and block.term != predecessor.term:
            raise Invalid(f"configuration block {block.height} is not of its predecessor's term")

    def _must_leave(self, height: Height, blocks: tuple[Block, ...]) -> bool:
        """Return whether a frame that differs at `height` from what binds this log is right: it holds a certified block."""
        ahead, voter = self._certifying.ahead, self._voter
        if ahead is None or not voter.base_height < height <= voter.bound:
            return False
        return any(block.header == ahead.header for block in blocks)

    def _leave_tail(self, append: AppendEntries) -> None:
        """Give up the own tail, which may have been voted for: a certificate has shown that the frame's chain is the one."""
        self._certifying.give_up_tail()
        if self._voter.term == append.term:
            self._refusal = self._refuse(append)

    def _check_unbound(self, height: Height, append: AppendEntries) -> None:
        """Check that the leader may differ from this log at `height`; what forbids it is sent first (Refusal).

        An honest leader may not know the branch: it learns it so, and steps down.

        Raises:
            Invalid: the block there is certified or proven, was voted for (P4, 3), or acknowledged in this term (P2).
        """
        voter, log = self._voter, self._voter.log
        if height <= voter.base_height:
            certificate = voter.certificate_at(log.certified)
            self._send(append.leader, None, None, certificate=certificate)
            raise Invalid(f"a frame conflicts with the certified block {height}")
        if height <= voter.bound:
            self._send(append.leader, None, None, proof=voter.proof)
            raise Invalid(f"a frame conflicts with block {height}, proven to be committed")
        marked = voter.marked_height()
        if marked is not None and height <= marked:
            raise Invalid(f"a frame conflicts with block {marked}, acknowledged in this term")

    def _note_two_headers(self, block: Block) -> None:
        """Keep what convicts a leader that has signed two blocks of one height in one term (E1)."""
        voter = self._voter
        mine = voter.log.header(block.height)
        theirs = block.header
        is_same_place = (mine.leader, mine.epoch, mine.term) == (theirs.leader, theirs.epoch, theirs.term)
        if is_same_place and signing.verify(theirs.leader, header_form(theirs), block.signature):
            voter.contradictions.append(Contradiction("E1", voter.log.block(block.height), block))

    def _refuse(self, append: AppendEntries) -> Refusal:
        log = self._voter.log
        hints: list[Hint] = []
        height = min(append.prev_height, log.tip_height)
        while height > log.certified and len(hints) < limits.REFUSAL_HINTS_MAX - 1:
            term = log.term(height)
            hints.append(Hint(height, term, log.hash(height)))
            while height > log.certified and log.term(height) == term:
                height = Height(height - 1)
        # The certified block is common to this log and every leader's that the others will follow (P5).
        hints.append(Hint(log.certified, log.term(log.certified), log.hash(log.certified)))
        return Refusal(append.prev_height, needs_election=False, hints=tuple(hints))

    def _commit(self, proof: CommitProof | None) -> None:
        """Commit on a verified proof whose block is in the log; one for a block not here yet is left for later."""
        voter, log = self._voter, self._voter.log
        if proof is None:
            return
        height = proof.header.height
        is_new = log.committed < height <= log.tip_height
        if not is_new or proof.header != log.header(height):
            return
        configuration = voter.membership.at(height)
        certificate.check_commit_proof(proof, voter.network, configuration, self._own)
        voter.commit(proof)


def check_elects(voter: Voter, message: AppendEntries | InstallSnapshot | Heartbeat) -> None:
    """Check that the election certificate in a leader's message elects its sender in its term (P0).

    Raises:
        Invalid: it does not, or there is none.
    """
    election = message.election
    if election is None or (election.term, election.candidate) != (message.term, message.leader):
        raise Invalid("an election certificate is of another election than its sender's")
    log = voter.log
    for height in range(log.tip_height, log.certified - 1, -1):
        if log.hash(Height(height)) == election.tip_hash:
            certificate.check_election(election, voter.network, voter.membership.at(Height(height)))
            return
    # Won upon a log that this one has not got, perhaps with configurations that it has not got, and fewer voters: whom
    # somebody known here has elected is listened to. What it sends is checked block by block, each opening in the
    # configuration that it stands upon, and only an opening that holds makes anything committed in this term.
    certificate.check_grants(election, voter.network)
    if not any(voter.membership.remembers(grant.voter) for grant in election.grants):
        raise Invalid("an election certificate without a grant of anybody known here")
