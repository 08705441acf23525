"""The leader's side of replication: frames out, acknowledgements and votes in, commit proofs (Raft §5.3, §5.4.2; P1, P3).

Frames are made when the driver asks for work, so that whatever came in before is in them; one signature and one
message object serve all followers that need the same frame.
"""

from protocol import block as blocks_module
from protocol import certificate, codec, limits
from protocol.block import Block
from protocol.certificate import CommitProof, ElectionCertificate
from protocol.configuration import Configuration, change_fault
from protocol.errors import Invalid, Refused, Unavailable
from protocol.finality import Certificate
from protocol.identifiers import Digest, Height, NodeId
from protocol.raft.certifying import Certifying
from protocol.raft.departures import Departures
from protocol.raft.heartbeat import Heartbeats
from protocol.raft.leader_forms import append_form
from protocol.raft.messages import AppendEntries, AppendReply, HeartbeatReply, Hint, TimeoutNow
from protocol.raft.progress import Progress
from protocol.raft.quorum import assemble_proof, quorum_height
from protocol.raft.read_index import LeaderReads
from protocol.raft.snapshot import Offers
from protocol.raft.transfer import Transfer
from protocol.raft.voter import Voter

_FrameKey = tuple[Height, Height, bool, Height, Height]


class Leadership:
    """One node's leadership of one term, from its opening block to its end."""

    def __init__(self, voter: Voter, certifying: Certifying, election: ElectionCertificate) -> None:
        self._voter = voter
        self._certifying = certifying
        self._election = election
        self._signatures: dict[tuple[Digest, Digest], bytes] = {}
        # A part of the leadership, and gone with it: one that outlived it would refuse writes for ever (hashicorp #696).
        self._transfer: Transfer | None = None
        after = Height(voter.log.tip_height + 1)
        self._progress = {node: Progress(after, voter.tick) for node in voter.receivers}
        self._heartbeats = Heartbeats(voter, self._progress, election)
        self._offers = Offers(voter, election)
        self.reads = LeaderReads(voter, self._heartbeats)
        self._departures = Departures(voter, self._progress)
        newest = voter.certificate_at(voter.log.certified)
        if newest is not None and not voter.certificates:
            voter.certificates.append(newest)
        # The opening commits the older terms' tail: counting alone may not (Raft §5.4.2, §8; canonical/raft #336).
        self._cut((), opening=codec.encode(election))

    def tick(self) -> bool:
        """Count a tick; return whether a quorum was heard within the least election time-out (CheckQuorum)."""
        voter, receivers = self._voter, self._voter.receivers
        if self._transfer is not None and self._transfer.tick():
            self._transfer = None
        for node in [node for node in self._progress if node not in receivers]:
            self._departures.add(node)
        self._departures.tick()
        for progress in self._progress.values():
            if voter.tick % limits.HEARTBEAT_TICKS == 0:
                progress.beat()
        return self._heartbeats.tick()

    @property
    def has_room(self) -> bool:
        """Whether another block may be cut before one is certified (P6)."""
        log = self._voter.log
        return (
            self._transfer is None
            and not self._voter.changing
            and self._voter.is_voter
            and log.uncertified_count < limits.UNCERTIFIED_BLOCKS_MAX
            and log.uncertified_bytes < limits.UNCERTIFIED_BYTES_MAX
        )

    @property
    def successor(self) -> NodeId | None:
        """Whom the leadership is being handed to, or None."""
        return self._transfer.target if self._transfer is not None else None

    def transfer_to(self, target: NodeId) -> None:
        """Start to hand over to `target`, a running transfer to another giving way; to itself means to stay.

        Raises:
            Refused: `target` does not vote.
        """
        if target == self._voter.me:
            self._transfer = None
        elif target not in self._voter.configuration.voters:
            raise Refused("the leadership can only be handed to a voter of this network; name one of them")
        elif self.successor != target:
            self._transfer = Transfer(target)

    def propose(self, transactions: tuple[bytes, ...]) -> Height:
        """Cut one block of `transactions` (P1); return its height.

        Raises:
            Unavailable: too much is not final yet, the membership changes, or the leadership is being handed over.
        """
        if self._voter.changing or not self._voter.is_voter:
            # Above a configuration that is not certified only the opening of a term may stand (ledger.md 7.2, 2);
            # and once its own leaving is, a leader cuts nothing, though it steps down at the next Ready only.
            raise Unavailable("the membership is being changed; retry in a moment")
        if self._transfer is not None:
            raise Unavailable("the leadership is being handed over; retry in a moment")
        if not self.has_room:
            raise Unavailable("too many blocks wait to become final; retry when one has")
        return self._cut(transactions)

    def propose_configuration(self, following: Configuration) -> Height:
        """Cut a configuration block (ledger.md 7.2); return its height. It counts from now on, certified or not.

        Raises:
            Refused: it does not lawfully follow the configuration in force.
            Unavailable: nothing of this term is certified yet, something is under way, or a learner to promote lags.
        """
        voter, log = self._voter, self._voter.log
        fault = change_fault(voter.configuration, following)
        if fault is not None:
            raise Refused(f"the membership cannot change like this: {fault}")
        # Until a block of its own term is certified a leader may not know of a change that its predecessor began; two
        # changes of one parent could then both be committed (the single-server bug of 2015; ledger.md 7.2, 1).
        is_under_way = (
            log.certified != log.tip_height or log.tip.term != voter.term or self._transfer is not None
        )
        if is_under_way or not voter.is_voter:
            raise Unavailable("the membership cannot change while blocks are under way; retry in a moment")
        for node in set(following.voters) - set(voter.configuration.voters):
            progress = self._progress.get(node)
            if progress is None or progress.match_height < log.certified:
                raise Unavailable(
                    "the learner to promote has not caught up; retry when it holds the newest block"
                )
        height = self._cut((), configuration=following)
        for node in voter.receivers:
            self._progress.setdefault(node, Progress(height, voter.tick))
        return height

    def readmit(self, node: NodeId) -> None:
        """Hear of a former member that has not heard of its leaving: it is sent the block that says so."""
        if node not in self._progress:
            self._progress[node] = Progress(Height(self._voter.log.tip_height + 1), self._voter.tick)
            self._departures.add(node)

    def name_successor(self) -> None:
        """Leaving, and done: call the voter with the longest log to campaign, rather than let all wait for a time-out."""
        voter = self._voter
        best = max(voter.other_voters, key=lambda node: self._progress[node].match_height)
        voter.send(best, TimeoutNow(voter.term, voter.me))

    def take_reply(self, reply: AppendReply) -> None:
        """Take a follower's reply of this term; what it says of proofs and certificates is for the machine.

        Raises:
            Invalid: its acknowledgement is not for this log, or a signature does not verify.
        """
        progress = self._progress.get(reply.voter)
        if progress is None:
            return  # it has left
        progress.heard_tick = self._voter.tick
        progress.take_heights(reply, self._voter.log.tip_height)
        if reply.ack is not None:
            self._take_acknowledgement(progress, reply)
        if reply.vote is not None:
            self._certifying.take_vote(reply.vote)
        self._offers.take_reply(progress)
        refusal = reply.refusal
        if refusal is None:
            return
        if refusal.needs_election:
            # It restarted and forgot. Should it say so again, the next heartbeat is soon enough.
            if not progress.election_due:
                progress.election_due = True
                progress.probe_from(Height(progress.match_height + 1), blocks=True)
            return
        # A refusal that an acknowledgement has overtaken is stale: taking it would only lose ground (CCF #5991).
        expected = refusal.prev_height == progress.next_height - 1 or progress.replicating
        if refusal.prev_height > progress.match_height and expected:
            common = self._common_height(refusal.hints, progress.match_height)
            progress.probe_from(Height(common + 1), blocks=True)
        elif refusal.hints and self._has_moved_on(progress, refusal.hints[-1]):
            progress.probe_from(Height(refusal.hints[-1].height + 1), blocks=True)

    def take_heartbeat_reply(self, reply: HeartbeatReply) -> None:
        """Take a follower's answer to a heartbeat of this term.

        Raises:
            Invalid: it names a round that has not begun.
        """
        self._heartbeats.take_reply(reply)

    def advance_commit(self) -> None:
        """Commit the highest block of this term that a quorum has acknowledged, with its proof (P3)."""
        voter, log = self._voter, self._voter.log
        if log.committed == log.tip_height:
            return
        heights = [self._progress[node].match_height for node in voter.other_voters]
        # The leader's own log counts up to where it is durable, like everybody's (ledger.md 3.1 no. 25); not when it leaves.
        own_height = [log.persisted] if voter.is_voter else []
        height = quorum_height([*own_height, *heights], voter.configuration.raft_quorum)
        if height <= log.committed or log.term(height) != voter.term:
            return
        own = voter.acknowledge(height) if voter.is_voter and log.persisted >= height else None
        acks = [(node, self._progress[node].ack) for node in voter.other_voters]
        others = {node: ack for node, ack in acks if ack is not None}
        voter.commit(assemble_proof(log, height, others, voter.configuration.raft_quorum, own))

    def send_frames(self) -> None:
        """Queue heartbeats that are due, and for every follower what it needs and its window allows."""
        self.reads.advance()
        self._heartbeats.send()
        if self._certifying.parting is not None and self._departures.is_kept():
            self._certifying.part()
        frames: dict[_FrameKey, AppendEntries] = {}
        log, proof = self._voter.log, self._voter.proof
        tip = log.tip_height
        proven = (
            proof.header.height if proof is not None and proof.header.height > log.certified else Height(0)
        )
        for node, progress in self._progress.items():
            is_new = progress.proof_height < proven < progress.next_height
            if not (is_new or progress.nudge_due) and progress.has_all(tip, log.certified):
                continue
            sent = False
            if progress.next_height <= log.committed and self._offers.serve(node, progress):
                continue
            while (
                progress.next_height <= tip if progress.replicating else not sent
            ) and progress.window_open():
                self._send(node, progress, frames, blocks=progress.replicating or progress.probe_blocks)
                sent = True
            nudge = progress.nudge_due and not progress.is_settled(log.committed, log.certified)
            # Proofs and certificates leave at once: a follower has them one hop after the leader, not one heartbeat.
            news = progress.replicating and (
                is_new or self._departures.certificate_for(node, Height(progress.next_height - 1)) is not None
            )
            if not sent and (nudge or news):
                self._send(node, progress, frames, blocks=False)
            progress.nudge_due = False
        self._send_timeout_now()

    def _send_timeout_now(self) -> None:
        """Tell the successor to campaign, as soon as its log equals this one and nothing more is added here."""
        transfer, voter = self._transfer, self._voter
        if transfer is None:
            return
        caught_up = self._progress[transfer.target].match_height == voter.log.tip_height
        if caught_up and transfer.take_due():
            voter.send(transfer.target, TimeoutNow(voter.term, voter.me))

    def _send(
        self, node: NodeId, progress: Progress, frames: dict[_FrameKey, AppendEntries], *, blocks: bool
    ) -> None:
        voter, prev = self._voter, Height(progress.next_height - 1)
        batch = self._batch(progress.next_height) if blocks else ()
        tip = Height(prev + len(batch))
        starts_anew = bool(batch) and batch[0].is_configuration
        certificate = self._departures.certificate_for(node, prev if starts_anew else tip)
        if certificate is not None:
            progress.certificate_height = certificate.height
        proof = self._proof_for(progress, prev if starts_anew else tip)
        if proof is not None:
            progress.proof_height = proof.header.height
        election = progress.election_due
        proven = proof.header.height if proof else Height(0)
        key = prev, tip, election, proven, certificate.height if certificate else Height(0)
        frame = frames.get(key)
        if frame is None:
            frame = frames[key] = self._frame(
                prev, batch, self._election if election else None, proof, certificate
            )
        if progress.replicating:
            if batch:
                progress.sent(tip, sum(len(block.raw) for block in batch))
        else:
            progress.probed(batch)
        voter.send(node, frame)

    def _frame(
        self,
        prev: Height,
        batch: tuple[Block, ...],
        election: ElectionCertificate | None,
        proof: CommitProof | None,
        certificate: Certificate | None,
    ) -> AppendEntries:
        voter = self._voter
        prev_hash = voter.log.hash(prev)
        tip_hash = batch[-1].hash if batch else prev_hash
        signature = self._signatures.get((prev_hash, tip_hash))
        epoch, term = voter.hard.epoch, voter.term
        if signature is None:
            if len(self._signatures) >= limits.FRAME_SIGNATURES_CACHED:
                self._signatures.clear()
            form = append_form(
                voter.network, epoch=epoch, term=term, leader=voter.me, prev_hash=prev_hash, tip_hash=tip_hash
            )
            signature = self._signatures[prev_hash, tip_hash] = voter.key.sign(form)
        raws = tuple([block.raw for block in batch])
        return AppendEntries(
            epoch, term, voter.me, prev, prev_hash, raws, tip_hash, election, proof, signature, certificate
        )

    def _batch(self, first: Height) -> tuple[Block, ...]:
        log = self._voter.log
        batch: list[Block] = []
        total = 0
        while len(batch) < limits.APPEND_BLOCKS_MAX and first + len(batch) <= log.tip_height:
            block = log.block(Height(first + len(batch)))
            total += len(block.raw)
            # A configuration stands alone in a frame: it needs the certificate of the block below it, and what stands above
            # needs its own (ledger.md 7.2, 1 and 2).
            if batch and (
                total > limits.APPEND_BYTES_MAX or block.is_configuration or batch[-1].is_configuration
            ):
                break
            batch.append(block)
        return tuple(batch)

    def _proof_for(self, progress: Progress, tip: Height) -> CommitProof | None:
        """Return the newest commit proof, if this follower may need it: not below a certificate that it gets or has."""
        proof = self._voter.proof
        if proof is None or proof.header.height > tip:
            return None
        known = max(progress.proof_height, progress.certificate_height)
        return proof if proof.header.height > known else None

    def _take_acknowledgement(self, progress: Progress, reply: AppendReply) -> None:
        voter, ack = self._voter, reply.ack
        assert ack is not None
        if ack == progress.ack:
            progress.acknowledged(ack)
            return
        if (ack.voter, ack.term, ack.epoch) != (reply.voter, voter.term, voter.hard.epoch):
            raise Invalid("an acknowledgement of another voter or term")
        if ack.height < progress.match_height:
            return  # delayed on the way: a newer one is here
        if ack.height < voter.log.certified and ack.height < voter.log.first():
            return  # not held here any more, so not to be compared; it counts for nothing that is not certified
        if ack.height > voter.log.tip_height or voter.log.hash(ack.height) != ack.header_hash:
            raise Invalid(f"an acknowledgement of block {ack.height} that is not in the leader's log")
        if not certificate.acknowledgement_valid(ack, voter.network):
            raise Invalid("an acknowledgement's signature does not verify")
        progress.acknowledged(ack)
        voter.acknowledgements[ack.voter] = ack

    def _common_height(self, hints: tuple[Hint, ...], match_height: Height) -> Height:
        """Return where this log and the follower's last agree, by what it says of its terms (Raft §5.3, end).

        Two logs that hold blocks of one term hold the same ones up to the shorter run's end (log matching). A wrong
        guess costs a round trip, nothing else; the search is bounded as a follower's uncertified tail is.
        """
        log = self._voter.log
        first = log.first()
        bottom = max(match_height, first)
        for hint in hints:
            if hint.height < first:
                return max(hint.height, match_height)  # below what is held: it needs a snapshot
            height = Height(min(hint.height, log.tip_height))
            if height == hint.height and log.hash(height) == hint.hash:
                return max(height, match_height)
            for _ in range(2 * limits.UNCERTIFIED_BLOCKS_MAX):
                if height <= bottom or log.term(height) <= hint.term:
                    break
                height = Height(height - 1)
            if height > match_height and log.term(height) == hint.term:
                # Our own last block of that term, unless it is the very one we differ in.
                return height if height < hint.height else Height(height - 1)
        return match_height

    def _has_moved_on(self, progress: Progress, certified: Hint) -> bool:
        """Return whether a follower has certified, of this log, what it was to be sent next: it was installed meanwhile."""
        log = self._voter.log
        is_held = max(progress.next_height, log.first()) <= certified.height <= log.tip_height
        return is_held and log.hash(certified.height) == certified.hash

    def _cut(
        self,
        transactions: tuple[bytes, ...],
        *,
        opening: bytes = b"",
        configuration: Configuration | None = None,
    ) -> Height:
        voter, log = self._voter, self._voter.log
        cut = blocks_module.cut(
            transactions,
            opening=opening,
            configuration=configuration,
            predecessor=log.tip,
            predecessor_hash=log.tip_hash,
            frontier=log.frontier(log.tip_height),
            term=voter.term,
            key=voter.key,
            now_ms=voter.now_ms,
        )
        voter.append(cut)
        # The marker goes to disk with the block: it is the leader's own acknowledgement (P2).
        voter.mark(cut.height, cut.hash)
        return cut.height
