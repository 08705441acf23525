# ruff: noqa: SLF001 - whoever explores all states of a machine has to see and to set them
"""One node of the explorer: the real Raft core, its driver and its disk, moved by one input at a time.

Time is what the explorer says it is: time-outs, silences and heartbeat intervals are inputs, so that the numbers of ticks
between them need not be told apart. `rest` brings them to one of two ages, fresh and stale. Whatever it
leaves out of the state it resets in the machine as well: equal fingerprints therefore mean equal machines.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from protocol import limits
from protocol.block import Block
from protocol.certificate import Acknowledgement, ElectionGrant, check_commit_proof
from protocol.configuration import Configuration, Member, network_id
from protocol.finality import CommitVote, check_certificate
from protocol.identifiers import Height, NetworkId, NodeId, PublicKey, Term
from protocol.raft.log import Log
from protocol.raft.machine import Raft
from protocol.raft.messages import (
    AppendEntries,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Input,
    InstallSnapshot,
    Message,
    RequestVote,
    VoteNotice,
    VoteReply,
)
from protocol.raft.state import ReadState, Ready, Role
from protocol.signing import SigningKey
from simulations.explorer_disk import Broken, Disk, demand

NOW_MS: Final = 1_700_000_000_000
"""The one time of day. Block times rise by a millisecond each, which no clock minds."""
_READIES_MAX: Final = 100
_FRESH: Final = 1_000 * limits.HEARTBEAT_TICKS
_STALE: Final = _FRESH - limits.ELECTION_TICKS_MIN


@dataclass(frozen=True, slots=True)
class Members:
    """Who takes part: keys and configuration of the nodes, by their numbers from 0."""

    keys: tuple[SigningKey, ...]
    configuration: Configuration
    network: NetworkId

    @staticmethod
    def of(roles: Sequence[str]) -> "Members":
        """Return members of these roles."""
        keys = tuple([SigningKey(hashlib.sha256(b"explorer %d" % n).digest()) for n in range(len(roles))])
        stands = PublicKey(bytes(32))
        members = [
            Member(f"{role} {n}", "hospital", role, NodeId(key.public), stands, stands, stands, stands, ())
            for n, (role, key) in enumerate(zip(roles, keys, strict=True))
        ]
        ordered = tuple(sorted(members, key=lambda member: member.node))
        configuration = Configuration(1, ordered, 0, (0,), bytes(32))
        return Members(keys, configuration, network_id(configuration))


class Node:
    """One voter: what its disk holds and, while it is up, its machine and the write under way.

    `voted`, `acknowledged` and `certifying` are what it last promised to others: no part of the node, but of what was seen of it.
    """

    def __init__(self, index: int, members: Members, genesis: Block) -> None:
        self.index = index
        self.members = members
        self.disk = Disk(genesis)
        self.raft: Raft | None = None
        self.waiting: Ready | None = None
        self.voted: tuple[Term, NodeId] | None = None
        self.acknowledged: Acknowledgement | None = None
        self.certifying: CommitVote | None = None
        self.lives = 0
        self.sent: list[tuple[NodeId, Message]] = []
        self.asked: list[int] = []
        self.answers: list[ReadState] = []
        self.start()

    # --- inputs ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start from what is on disk."""
        self.disk.applied_at_start = self.disk.applied
        self.lives += 1
        self.raft = Raft(
            key=self.members.keys[self.index],
            network=self.members.network,
            configuration=self.members.configuration,
            hard_state=self.disk.hard_state,
            log=self.disk.log(),
            timeout_seed=self.lives.to_bytes(32, "big"),  # draws do not count here, the numbers of reads do
        )

    def crash(self, *, applied: bool) -> None:
        """Stop at once. The write under way is lost; so is what had been applied in this life, unless `applied`."""
        self.raft = self.waiting = None
        if not applied:
            self.disk.forget_applied()

    def deliver(self, sender: NodeId, message: Input) -> None:
        """Give the machine a message."""
        self._up.step(sender, message, NOW_MS)

    def propose(self, transaction: bytes) -> None:
        """Let a leader cut a block of one transaction."""
        self._up.propose((transaction,), NOW_MS)

    def transfer(self, target: int) -> None:
        """Let a leader begin to hand over to another node."""
        self._up.transfer_leadership(NodeId(self.members.keys[target].public))

    def read(self) -> None:
        """Ask for the height that a read which begins now must see."""
        self.asked.append(self._up.read_index())

    def time_out(self) -> None:
        """Let time pass until an election begins or, at a leader, until it has heard nobody for too long."""
        raft = self._up
        leads = raft.role is Role.LEADER
        term, queued = raft.term, len(raft._voter.outbox)
        for _ in range(limits.ELECTION_TICKS_MAX + 1):
            raft.tick(NOW_MS)
            if leads and raft.role is not Role.LEADER:
                return
            if not leads and (len(raft._voter.outbox) > queued or raft.term > term):
                return
        # Who knows of a certified block that it does not hold does not stand for election.
        demand(not raft._may_campaign, "a time-out never came")

    def fall_silent(self) -> None:
        """Let the leader's lease run out, without an election of one's own yet."""
        for _ in range(limits.ELECTION_TICKS_MIN):
            self._up.tick(NOW_MS)

    def heartbeat(self) -> None:
        """Let a heartbeat interval pass."""
        for _ in range(limits.HEARTBEAT_TICKS):
            self._up.tick(NOW_MS)

    def notice(self) -> None:
        """Let the own vote, or the lack of anything to vote for, have stood so long that all signers are told (P6)."""
        certifying = self._up._certifying
        certifying._since_tick = self._up._voter.tick - limits.VOTE_NOTICE_TICKS
        certifying.tick(limits.VOTE_NOTICE_AGAIN_TICKS)

    def finish_write(self) -> None:
        """Let the write under way end."""
        ready, self.waiting = self.waiting, None
        assert ready is not None, "only a write under way can end"
        self._finish(ready)

    # --- driver ---------------------------------------------------------------------------------------------------

    def drain(self, *, slow: bool) -> bool:
        """Do what a driver does until there is nothing to do; return whether anything was written or is to be.

        `slow`: the write that comes up stays under way.
        """
        raft, wrote = self._up, False
        for _ in range(_READIES_MAX):
            before = raft.commit_height
            ready = raft.ready()
            self._check_commit(raft, before)
            if ready is None:
                return wrote
            wrote = wrote or ready.must_persist
            if slow and ready.must_persist:
                self.waiting = ready
            else:
                self._finish(ready)
        raise Broken("a node is ready for ever")

    def _finish(self, ready: Ready) -> None:
        members = self.members
        if ready.certificate is not None:
            final = check_certificate(ready.certificate, members.network, members.configuration)
            demand(final == ready.certified[-1].hash, "a certificate is not for the last block handed on")
        demand(not ready.contradictions, "a lie was found where nobody lies")
        self.disk.write(ready)
        for target, message in ready.messages:
            self._check_promise(message)
            self.sent.append((target, message))
        self.disk.apply(ready)
        self.answers += ready.reads
        self._up.advance(ready)

    def rest(self) -> None:
        """Bring what time and use have left in the machine to a normal form; what is reset here no behaviour hangs on."""
        raft = self.raft
        if raft is None:
            return
        voter, election = raft._voter, raft._election
        heard = voter.leader is not None and voter.tick - voter.leader_heard_tick < limits.ELECTION_TICKS_MIN
        voter.leader_heard_tick = _FRESH if heard else _STALE
        if raft._leadership is not None:
            for progress in raft._leadership._progress.values():
                fresh = voter.tick - progress.heard_tick < limits.ELECTION_TICKS_MIN
                progress.heard_tick = _FRESH if fresh else _STALE
            raft._leadership._signatures.clear()  # a cache
        voter.tick = _FRESH
        voter.now_ms = NOW_MS
        # Each time-out is an input of its own; whichever was drawn, it may or may not come first.
        election._elapsed, election._draws, election._heard_leader = 0, 0, True
        election._timeout = limits.ELECTION_TICKS_MAX
        if raft.role is not Role.PRE_CANDIDATE:
            election._pre_votes = set()  # a pre-candidacy begins by setting them
        if raft.role is not Role.CANDIDATE:
            election._grants = {}  # and so does a candidacy
        if election._granted is not None and election._granted.term < voter.term:
            election._granted = None  # nobody asks for it again
        pending = raft._forwarded._pending
        raft._forwarded._pending = {number: (asked, _FRESH) for number, (asked, _) in pending.items()}
        # A notice of a vote or certificate is never due by itself: it is an input.
        raft._certifying._since_tick = 2 * _FRESH
        raft._certifying.seen.clear()  # for others to see
        raft._patience._heard.clear()
        raft._patience._begin()
        raft._patience._certified = voter.log.certified
        raft._patience.stalled_ticks = -_FRESH
        raft._following._own.clear()  # a cache of signatures already known to be good

    # --- invariants that one node shows by itself -----------------------------------------------------------------

    def _check_commit(self, raft: Raft, before: Height) -> None:
        after = raft.commit_height
        demand(after >= before, "commit monotone: the committed height fell")
        if after > before and raft.role is Role.LEADER:
            demand(
                raft._voter.log.term(after) == raft.term,
                f"own term: a leader of term {raft.term} counted a block of term {raft._voter.log.term(after)}",
            )

    def _check_promise(self, message: Message) -> None:
        """No message leaves before what it promises is durable (Raft §5.2, P2)."""
        match message:
            case VoteReply(grant=ElectionGrant() as grant):
                self._check_vote(grant.term, grant.candidate)
            case RequestVote():
                self._check_vote(message.term, message.candidate)
            case AppendEntries() | InstallSnapshot() | Heartbeat() | HeartbeatReply():
                if isinstance(message, AppendEntries) and message.proof is not None:
                    check_commit_proof(message.proof, self.members.network, self.members.configuration)
                durable = self.disk.hard_state.term >= message.term
                demand(durable, f"terms: a message of term {message.term} left before that was durable")
            case AppendReply():
                if message.ack is not None:
                    self._check_acknowledgement(message.ack)
                if message.vote is not None:
                    self._check_commit_vote(message.vote)
            case VoteNotice():
                self._check_commit_vote(message.vote)
            case _:
                pass  # promises nothing

    def _check_vote(self, term: Term, candidate: NodeId) -> None:
        hard = self.disk.hard_state
        # A higher term that is durable keeps the promise too: whoever has it votes in this one never again.
        held = hard.term > term or (hard.term == term and hard.vote == candidate)
        demand(held, "votes: a vote left before it was durable")
        once = self.voted is None or self.voted[0] < term or self.voted == (term, candidate)
        demand(once, f"votes: two candidates of term {term} got one voter's vote")
        self.voted = term, candidate

    def _check_acknowledgement(self, ack: Acknowledgement) -> None:
        disk, before = self.disk, self.acknowledged
        block = disk.blocks.get(ack.height)
        marker = disk.hard_state.ack_term, disk.hard_state.ack_height
        durable = block is not None and block.hash == ack.header_hash and marker >= (ack.term, ack.height)
        demand(durable, "acknowledgements: one left before its block was durable")
        if before is not None and before.term == ack.term:
            below, above = sorted((before, ack), key=lambda one: one.height)
            known = disk.blocks.get(below.height)
            same_chain = known is not None and known.hash == below.header_hash
            demand(same_chain, f"acknowledgements: two of term {ack.term} contradict each other")
            ack = above
        self.acknowledged = ack

    def _check_commit_vote(self, vote: CommitVote) -> None:
        """A vote is durable with its base, for a block of this log, and descends from the one before (P4)."""
        disk, hard, before = self.disk, self.disk.hard_state, self.certifying
        block = disk.blocks.get(vote.height)
        durable = block is not None and block.hash == vote.header_hash
        demand(durable and hard.last_vote_height >= vote.height, "a commit vote left before it was durable")
        demand(hard.certificate_height >= vote.base_height, "a base that a crash would forget was named")
        if before is not None:
            known = disk.blocks.get(before.height)
            demand(
                known is not None and known.hash == before.header_hash and before.height <= vote.height,
                "a commit vote does not descend from the one before",
            )
        self.certifying = vote

    @property
    def _up(self) -> Raft:
        assert self.raft is not None, "a node that is down takes no input"
        return self.raft

    # --- views ----------------------------------------------------------------------------------------------------

    @property
    def id(self) -> NodeId:
        """Its node id."""
        return NodeId(self.members.keys[self.index].public)

    @property
    def log(self) -> Log:
        """Its log, as it would be after a start when it is down."""
        return self.raft._voter.log if self.raft is not None else self.disk.log()

    @property
    def is_leased(self) -> bool:
        """Whether it follows a leader that it has heard of late."""
        return self.raft is not None and self.raft._voter.leader_heard_tick == _FRESH

    @property
    def has_notice(self) -> bool:
        """Whether it waits for a certificate, and has a vote or a certificate to show."""
        if self.raft is None:
            return False
        log = self.log
        has_certificate = self.raft._voter.certificate_at(log.certified) is not None
        return self.raft._certifying.uncertified_vote is not None or (
            log.uncertified_count > 0 and has_certificate
        )

    def votes(self, index: int) -> bool:
        """Return whether a node votes in elections."""
        return NodeId(self.members.keys[index].public) in self.members.configuration.voters

    @property
    def term(self) -> Term:
        """Its term, durable or not."""
        return self.raft.term if self.raft is not None else self.disk.hard_state.term
