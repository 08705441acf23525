"""The Raft machine: inputs in, Ready out. It alone decides which phase is in charge (drawn in the package docstring)."""

from typing import assert_never

from protocol import certificate as certificates
from protocol import limits
from protocol.block import config_hash_above
from protocol.configuration import Configuration
from protocol.errors import Invalid, LocalFault
from protocol.finality import Certificate
from protocol.identifiers import NetworkId, NodeId, Term
from protocol.raft.election import Election
from protocol.raft.following import check_elects
from protocol.raft.log import Log
from protocol.raft.messages import (
    AppendEntries,
    AppendReply,
    CertificateNotice,
    CheckedAppend,
    Heartbeat,
    HeartbeatReply,
    Input,
    InstallSnapshot,
    PreVote,
    PreVoteReply,
    ReadIndexReply,
    ReadIndexRequest,
    RequestVote,
    TimeoutNow,
    VoteNotice,
    VoteReply,
    author,
)
from protocol.raft.output import Output
from protocol.raft.patience import Patience
from protocol.raft.replication import Leadership
from protocol.raft.requests import Requests
from protocol.raft.state import HardState, Ready, Role
from protocol.raft.voter import Voter
from protocol.signing import SigningKey


class Raft(Requests):
    """One voter of one network. Never raises for a peer's message but RemoteFault; see the package for the driver's duties."""

    def __init__(
        self,
        *,
        key: SigningKey,
        network: NetworkId,
        configuration: Configuration,
        hard_state: HardState,
        log: Log,
        timeout_seed: bytes,
    ) -> None:
        """`configuration` is the one in force above the log's certified height; the log's tail may hold another.

        `log` and `hard_state` are what the last durable batch left; `timeout_seed` differs between nodes and starts.

        Raises:
            Corruption: the log lacks a block that the hard state says was acknowledged, voted for or certified.
            LocalFault: this node is neither voter, witness nor learner.
        """
        super().__init__(
            Voter(key=key, network=network, configuration=configuration, hard_state=hard_state, log=log),
            timeout_seed,
        )
        if not self._voter.membership.remembers(self._voter.me):
            raise LocalFault("only a voter, a witness or a learner runs Raft")
        self._election = Election(self._voter, timeout_seed)
        self._output = Output(self._voter)
        self._patience = Patience(self._voter)
        self._voter.begin()

    # --- inputs ---------------------------------------------------------------------------------------------------

    def tick(self, now_ms: int, *, waiting: bool = False) -> None:
        """Let limits.TICK_MS pass. `now_ms` is Unix time, used for block times only.

        `waiting`: a transaction that was received here waits to become final (P6).
        """
        voter = self._voter
        voter.tick += 1
        voter.now_ms = now_ms
        self._forwarded.tick()
        gives_up = self._patience.tick(waiting=waiting)
        self._certifying.tick(self._patience.stalled_ticks)
        self._election.is_starved = self._patience.is_starved
        if self._leadership is not None:
            if not self._leadership.tick():
                # CheckQuorum: a leader cut off must not go on for ever (ledger.md 3.1 no. 13, 15).
                self._become_follower()
        elif self._may_campaign and (
            self._election.tick() or gives_up or voter.configuration.voters == (voter.me,)
        ):
            self._start_election()

    def step(self, sender: NodeId, message: Input, now_ms: int) -> None:
        """Take one message that the transport has authenticated as `sender`'s.

        Raises:
            RemoteFault: it breaks a rule. Drop it and score the sender; this machine is unharmed.
            LocalFault: an AppendEntries with blocks came without having been checked (`messages.check_append`).
        """
        voter = self._voter
        voter.now_ms = now_ms
        if isinstance(message, AppendEntries):
            if message.blocks:
                raise LocalFault("an AppendEntries with blocks is checked before it is stepped")
            message = CheckedAppend(message, ())
        if sender != author(message) or sender == voter.me:
            raise Invalid("a Raft message from somebody other than the voter it names")
        if not voter.membership.remembers(sender) and not isinstance(
            message, CheckedAppend | InstallSnapshot | Heartbeat
        ):
            # A leader may be a voter by blocks that it is about to send; it is known by its election (P0).
            raise Invalid("a Raft message from somebody who takes no part in it here")
        self._patience.heard(sender)
        match message:  # the frequent ones first
            case CheckedAppend():
                self._on_append(message)
            case AppendReply() | HeartbeatReply():
                self._on_reply(message)
            case Heartbeat():
                self._on_heartbeat(message)
            case PreVote():
                self._on_pre_vote(message)
            case PreVoteReply():
                self._on_pre_vote_reply(message)
            case RequestVote():
                self._on_request_vote(message)
            case VoteReply():
                self._on_vote_reply(message)
            case InstallSnapshot():
                self._on_offer(message)
            case ReadIndexRequest():
                self._on_read_index_request(message)
            case ReadIndexReply():
                self._forwarded.take_reply(message)
            case TimeoutNow():
                self._on_timeout_now(message)
            case VoteNotice():
                self._on_vote_notice(message)
            case CertificateNotice():
                self._learn(message.certificate)
                self._following.answer_notice(message)
            case _:
                assert_never(message)

    @property
    def stalled_ticks(self) -> int:
        """For how many ticks something has waited here to become final without anything becoming so."""
        return self._patience.stalled_ticks

    # --- outputs --------------------------------------------------------------------------------------------------

    def ready(self) -> Ready | None:
        """Return the next work for the driver, or None.

        Frames, heartbeats and what reads need come first, in a Ready with nothing to write: they promise nothing, the
        followers write while the leader does (thesis §10.2.1), and without them a disk that stalls would cost the
        leadership (ledger.md 3.1 no. 32). While a Ready waits for `advance`, nothing else comes out.
        """
        self.commit_acknowledged()
        if self._leadership is not None:
            self._leadership.send_frames()
            self._leave_if_removed(self._leadership)
        prompt = self._output.prompt()
        if prompt is not None or self._output.is_waiting:
            return prompt
        self._certifying.cast()
        if self._leadership is None:
            self._following.send_reply()
        return self._output.everything()

    def advance(self, ready: Ready) -> None:
        """Hear that `ready` is durable, its messages sent and its certified blocks handed on."""
        self._output.advance(ready)

    # --- elections ------------------------------------------------------------------------------------------------

    @property
    def _may_campaign(self) -> bool:
        # Who knows of a certified block that it does not hold cannot lead: it would cut another in its place (P5).
        return self._voter.may_campaign and self._certifying.ahead is None

    def _start_election(self) -> None:
        self._become_follower()
        self._role = Role.PRE_CANDIDATE
        if self._election.start_pre_vote():
            self._campaign()

    def _campaign(self, *, transfer: bool = False) -> None:
        self._following.forget()
        self._role = Role.CANDIDATE
        if self._election.start_campaign(transfer=transfer):
            self._become_leader()

    def _become_leader(self) -> None:
        voter = self._voter
        self._role = Role.LEADER
        voter.leader = voter.term_leader = voter.me
        self._leadership = Leadership(voter, self._certifying, self._election.certificate())

    def _become_follower(self, term: Term | None = None) -> None:
        """Follow nobody, in `term` if that is higher than the current one."""
        voter = self._voter
        voter.leader = None
        if term is not None and term > voter.term:
            voter.enter_term(term)
        self._following.forget()
        if self._role is not Role.FOLLOWER:
            self._role = Role.FOLLOWER
            if self._leadership is not None:
                self._leadership.reads.abandon()
            self._leadership = None
            self._election.restart()

    def _on_pre_vote(self, request: PreVote) -> None:
        if self._voter.may_lead(request.candidate):
            leased = self._election.is_leased_against(request.candidate)
            self._election.answer_pre_vote(request, leased=leased)
        elif self._leadership is not None:
            # It was away when it left: it learns so from the block (ledger.md 3.1 no. 42).
            self._leadership.readmit(request.candidate)

    def _on_pre_vote_reply(self, reply: PreVoteReply) -> None:
        if not reply.granted:
            self._catch_up(reply.term)
        elif self._role is Role.PRE_CANDIDATE and self._election.count_pre_vote(reply) and self._may_campaign:
            # May still: it could have left its tail for a certificate since it asked (E5b).
            self._campaign()

    def _on_request_vote(self, request: RequestVote) -> None:
        leased = self._election.is_leased_against(request.candidate) and not request.transfer
        # Who has left must not even raise a term (hashicorp/raft #524).
        if leased or self._too_far(request.term) or not self._voter.may_lead(request.candidate):
            return
        self._election.check_request(request)
        self._catch_up(request.term)
        if self._election.answer_vote(request):
            self._election.restart()

    def _on_vote_reply(self, reply: VoteReply) -> None:
        newer = self._catch_up(reply.term)
        if not newer and self._role is Role.CANDIDATE and self._election.count_vote(reply):
            self._become_leader()

    def _on_timeout_now(self, message: TimeoutNow) -> None:
        # Only of the leader that is followed now: one that came late must not end the term of its sender's successor.
        voter = self._voter
        if message.term == voter.term and voter.leader == message.leader and self._may_campaign:
            self._become_follower()
            self._election.restart()
            self._campaign(transfer=True)

    # --- replication ----------------------------------------------------------------------------------------------

    def _on_append(self, checked: CheckedAppend) -> None:
        append = checked.message
        if append.term < self._voter.term:
            self._following.send_term(append.leader)
        elif self._follow(append):
            self._following.take(checked)

    def _on_offer(self, offer: InstallSnapshot) -> None:
        if offer.term < self._voter.term:
            self._following.send_term(offer.leader)
        elif self._follow(offer):
            self._following.take_offer(offer)

    def _on_heartbeat(self, heartbeat: Heartbeat) -> None:
        voter = self._voter
        if heartbeat.term < voter.term or self._follow(heartbeat):
            context = heartbeat.context if heartbeat.term == voter.term else 0
            log = voter.log
            kept = voter.keeping.reach(log.certified)  # it is answered before anything is written
            reply = HeartbeatReply(voter.term, voter.me, context, log.committed, kept)
            voter.send(heartbeat.leader, reply)

    def _follow(self, message: AppendEntries | InstallSnapshot | Heartbeat) -> bool:
        """Return whether the sender of a message of this or a higher term is followed now, having been verified (P0)."""
        voter = self._voter
        is_stranger = not voter.membership.remembers(message.leader)
        is_elected = (message.term, message.leader) == (voter.term, voter.term_leader)
        if self._too_far(message.term) or (is_stranger and not is_elected):
            check_elects(voter, message)
        if message.term > voter.term:
            self._become_follower(message.term)
        if not self._following.accept_leader(message):
            return False
        # Who asks for another leader because nothing becomes final is not stopped by hearing that this one lives (P6).
        if self._role is not Role.FOLLOWER and not (
            self._role is Role.PRE_CANDIDATE and self._patience.is_starved
        ):
            self._become_follower()
        voter.leader = message.leader
        voter.leader_heard_tick = voter.tick
        self._election.heard_leader()
        return True

    def _on_reply(self, reply: AppendReply | HeartbeatReply) -> None:
        if isinstance(reply, AppendReply):
            self._take_answer(reply)
        if self._catch_up(reply.term) or self._leadership is None or reply.term != self._voter.term:
            return
        if isinstance(reply, AppendReply):
            self._leadership.take_reply(reply)
        else:
            self._leadership.take_heartbeat_reply(reply)

    def _take_answer(self, reply: AppendReply) -> None:
        """Take what a frame was refused with: a leader that did not know the branch steps down (ledger.md 1.1, Refusal).

        Raises:
            Invalid: it does not hold.
        """
        if reply.certificate is not None:
            self._learn(reply.certificate)
        proof = reply.proof
        if proof is not None and proof.header.term > self._voter.term:
            configuration = self._voter.membership.of(config_hash_above(proof.header))
            if configuration is not None:
                certificates.check_commit_proof(proof, self._voter.network, configuration)
                self._become_follower(proof.header.term)

    def _learn(self, certificate: Certificate) -> None:
        """Take a certificate from anybody (P5): follow in its term, and lead no longer when it is not of this log.

        Raises:
            Invalid: it does not hold.
        """
        certifying = self._certifying
        is_left = certifying.learn(certificate)
        # Of a block that is here the term is known already.
        if certifying.ahead is certificate and certificate.header.term > self._voter.term:
            self._become_follower(certificate.header.term)
        elif is_left or (certifying.ahead is not None and self._role is not Role.FOLLOWER):
            self._become_follower()

    def _on_vote_notice(self, notice: VoteNotice) -> None:
        self._certifying.take_vote(notice.vote)
        signer = notice.vote.signer
        if not self._voter.is_leaving(signer):
            self._certifying.answer_notice(notice)
        elif self._leadership is not None:
            self._leadership.readmit(signer)  # it is told with the blocks, when it may be

    def _on_read_index_request(self, request: ReadIndexRequest) -> None:
        # Refused at once rather than left to its time-out: the asker knows an old leader, or this one has too much to do.
        if self._leadership is None or not self._leadership.reads.has_room:
            self._voter.send(request.voter, ReadIndexReply(self._voter.me, request.request, None))
        else:
            self._leadership.reads.add(request.voter, request.request)

    def _leave_if_removed(self, leadership: Leadership) -> None:
        """Step down once the own removal is certified (Raft thesis §4.2.2); until then nobody else may be able to lead."""
        if not self._voter.is_voter and not self._voter.changing:
            leadership.name_successor()
            self._become_follower()

    def _catch_up(self, term: Term) -> bool:
        """Become a follower in a higher term that a peer has named; return whether that happened (Raft §5.1)."""
        if term <= self._voter.term or self._too_far(term):
            return False
        self._become_follower(term)
        return True

    def _too_far(self, term: Term) -> bool:
        """Return whether a term is so far ahead that only a certificate makes it believable (ledger.md decision 12)."""
        return term > self._voter.term + limits.TERM_AHEAD_MAX
