"""The follower's side of replication: what is taken from a leader, and what is promised in return (Raft §5.3; P0, P2, P3).

A frame is taken whole or in part (a prefix of its blocks), never changed. Nothing is truncated before the blocks that
take its place have been checked, and never at or below the committed height or this term's marker.
"""

from collections import deque

from protocol import certificate, limits
from protocol.block import Block, check_link
from protocol.certificate import Acknowledgement, CommitProof
from protocol.errors import Invalid, RemoteFault
from protocol.identifiers import Height, NodeId
from protocol.raft.messages import (
    AppendEntries,
    AppendReply,
    CheckedAppend,
    Heartbeat,
    Hint,
    InstallSnapshot,
    Refusal,
    append_valid,
    offer_valid,
)
from protocol.raft.snapshot import check_offer
from protocol.raft.voter import Voter


class Following:
    """Takes frames of the term's leader into the log and owes it one reply per Ready.

    Replies are made when the driver asks for work, not per frame: however many frames came in between, one batch is
    written and one acknowledgement, for the highest block, is signed.
    """

    def __init__(self, voter: Voter) -> None:
        self._voter = voter
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
        voter = self._voter
        proof = checked.message.proof
        try:
            if proof is not None:
                self._commit(
                    proof
                )  # of blocks that are here: a configuration is taken only upon a committed block
            matched = self._extend(checked.message, checked.blocks)
            if matched is not None:
                voter.mark(matched, voter.log.hash(matched))
            if proof is not None:
                self._commit(proof)
        except RemoteFault:
            if not voter.leader_dead:
                voter.condemn_leader()
            raise
        self._owe(checked.message.leader, self._refusal)

    def take_offer(self, offer: InstallSnapshot) -> None:
        """Take an offer of the term's verified leader: nothing is truncated for it, and nothing promised.

        Raises:
            RemoteFault: it offers what it cannot have; such a leader is treated as dead for the term.
        """
        voter = self._voter
        try:
            check_offer(voter, offer)
            self._commit(offer.proof)  # its block may be in this log, above what the leader takes for its end
        except RemoteFault:
            if not voter.leader_dead:
                voter.condemn_leader()
            raise
        # From what this log has committed the leader may have the blocks: the offer came late, and the reply says so.
        if voter.log.committed < offer.first and offer.height > self._offered:
            self._offered = voter.behind = offer.height
        self._owe(offer.leader, self._refusal)

    def send_reply(self) -> None:
        """Queue the reply owed, if any. It must not leave before the log and the marker, as they are now, are durable."""
        target, voter = self._reply_to, self._voter
        if target is None:
            return
        refusal, self._refusal, self._reply_to = self._refusal, None, None
        voter.send(
            target, AppendReply(voter.term, voter.me, self._acknowledgement(), voter.log.committed, refusal)
        )

    def forget(self) -> None:
        """Owe nothing more: the term or the role has changed, and an acknowledgement of the old one is worthless."""
        self._reply_to = self._refusal = self._held_since_tick = None

    def _owe(self, leader: NodeId, refusal: Refusal | None) -> None:
        self._reply_to, self._refusal = leader, refusal

    def _acknowledgement(self) -> Acknowledgement | None:
        voter = self._voter
        height = voter.marked_height()
        if height is None or (height < voter.log.committed and height < voter.log.first()):
            return None  # or acknowledged before the log began where it now does: the next frame raises the marker
        if not self._own or (self._own[-1].term, self._own[-1].height) != (voter.term, height):
            self._own.append(voter.acknowledge(height))
        return self._own[-1]

    def _extend(self, append: AppendEntries, blocks: tuple[Block, ...]) -> Height | None:
        """Take what is new of the frame; return up to where the log now equals the leader's, None if prev is not here."""
        log = self._voter.log
        if append.tip_hash != (blocks[-1].hash if blocks else append.prev_hash):
            raise Invalid("a frame's tip is not that of its blocks")
        if append.prev_height < log.committed and append.prev_height < log.first():
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
            self._check_unbound(append.prev_height)
            self._refusal = self._refuse(append)
            return None
        known = self._known(append, blocks)
        first_new = Height(append.prev_height + known + 1)
        if known < len(blocks) and first_new <= log.tip_height:
            self._check_unbound(first_new)
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
        room = 2 * limits.UNCOMMITTED_BYTES_MAX - log.uncommitted_bytes
        for block in blocks:
            room -= len(block.raw)
            if self._held(block) or room < 0 or (block.is_configuration and below > log.committed):
                break  # not refused: the leader sends it again, and meanwhile this voter does not acknowledge it
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
                configuration = block.next_configuration()
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

    def _check_unbound(self, height: Height) -> None:
        """Check that the leader may differ from this log at `height`.

        Raises:
            Invalid: the block there is committed, or was acknowledged in this term (P2).
        """
        voter = self._voter
        if height <= voter.log.committed:
            raise Invalid(f"a frame conflicts with the committed block {height}")
        marked = voter.marked_height()
        if marked is not None and height <= marked:
            raise Invalid(f"a frame conflicts with block {marked}, acknowledged in this term")

    def _refuse(self, append: AppendEntries) -> Refusal:
        log = self._voter.log
        hints: list[Hint] = []
        height = min(append.prev_height, log.tip_height)
        while height > log.committed and len(hints) < limits.REFUSAL_HINTS_MAX - 1:
            term = log.term(height)
            hints.append(Hint(height, term, log.hash(height)))
            while height > log.committed and log.term(height) == term:
                height = Height(height - 1)
        # The committed block is common to this log and every leader's (Raft §5.4, leader completeness).
        hints.append(Hint(log.committed, log.term(log.committed), log.hash(log.committed)))
        return Refusal(append.prev_height, needs_election=False, hints=tuple(hints))

    def _commit(self, proof: CommitProof) -> None:
        """Commit on a verified proof whose block is in the log; one for a block not here yet is left for later."""
        voter, log = self._voter, self._voter.log
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
    for height in range(log.tip_height, log.committed - 1, -1):
        if log.hash(Height(height)) == election.tip_hash:
            certificate.check_election(election, voter.network, voter.membership.at(Height(height)))
            return
    # Won upon a log that this one has not got, perhaps with configurations that it has not got, and fewer voters: whom
    # somebody known here has elected is listened to. What it sends is checked block by block, each opening in the
    # configuration that it stands upon, and only an opening that holds makes anything committed in this term.
    certificate.check_grants(election, voter.network)
    if not any(voter.membership.remembers(grant.voter) for grant in election.grants):
        raise Invalid("an election certificate without a grant of anybody known here")
