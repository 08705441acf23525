"""A deterministic cluster of Raft machines in memory: a lossy network, disks that forget what was not persisted, checks.

Every message crosses the wire codec. The invariants of ledger.md section 3 are checked as the run goes, so that a test
only has to arrange its story.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from protocol import codec
from protocol.block import Block, config_hash_above, genesis_block
from protocol.certificate import (
    Acknowledgement,
    CommitProof,
    ElectionGrant,
    acknowledge,
    check_commit_proof,
)
from protocol.configuration import Configuration, network_id
from protocol.errors import RemoteFault
from protocol.finality import Certificate, CommitVote, check_certificate
from protocol.identifiers import ZERO, Digest, Height, NodeId, Txid, Vid
from protocol.limits import TICK_MS
from protocol.merkle import Frontier
from protocol.raft.log import Log
from protocol.raft.machine import Raft
from protocol.raft.messages import (
    AppendEntries,
    AppendReply,
    CheckedAppend,
    Message,
    VoteNotice,
    VoteReply,
    check_append,
)
from protocol.raft.state import Contradiction, Ready, Role
from protocol.transaction import Revoke, sign
from tests.protocol.raft.members import Disk, configuration_of, configuration_with, evict, key_of

START_MS = 1_700_000_000_000


class Cluster:
    """Voters numbered from 1, learners, and spare nodes that may become one. Nothing happens unless a method is called."""

    def __init__(
        self,
        count: int,
        seed: int = 0,
        *,
        learners: tuple[int, ...] = (),
        spare: tuple[int, ...] = (),
        witnesses: tuple[int, ...] = (),
    ) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.configuration = configuration_of(count, learners, witnesses)
        self.configurations = {0: self.configuration}  # by the height that set it, as ordered
        self.network = network_id(self.configuration)
        self.keys = {n: key_of(n) for n in (*range(1, count + 1), *learners, *witnesses, *spare)}
        self.number = {NodeId(key.public): n for n, key in self.keys.items()}
        genesis = genesis_block(self.configuration)
        self.disks = {n: Disk(genesis) for n in self.keys}
        self.rafts: dict[int, Raft] = {}
        self.starts = 0
        self.now_ms = START_MS
        self.skew_ms = dict.fromkeys(self.keys, 0)
        self.wires: list[tuple[int, int, bytes]] = []
        self.cut: set[tuple[int, int]] = set()
        self.frozen: set[int] = set()  # nodes whose disk has stalled
        self.waiting: dict[int, Ready] = {}
        self.faults: list[RemoteFault] = []
        self.trace: list[tuple[int, int, Message]] = []
        self.filter: Callable[[int, int, Message], bool] = lambda _source, _target, _message: True
        # what the invariants remember
        self.leader_of_term: dict[int, int] = {}
        self.chain: dict[int, Digest] = {0: genesis.hash}
        self.states: dict[int, tuple[Block, Frontier]] = {0: (genesis, Frontier())}
        self.proofs: dict[int, CommitProof] = {}
        self.certificates: dict[int, Certificate] = {}
        self.certified: dict[int, Digest] = {0: genesis.hash}
        self.votes: dict[int, list[CommitVote]] = {n: [] for n in self.keys}
        self.contradictions: list[tuple[int, Contradiction]] = []
        self.liars: set[int] = set()  # who acknowledges what it does not hold
        self.expects = True  # whether the state of everybody says that a configuration that comes is pending
        self.behind: dict[int, list[int]] = {n: [] for n in self.keys}
        self.granted: dict[tuple[int, int], NodeId] = {}
        self.acknowledged: dict[tuple[int, int], Acknowledgement] = {}
        self.transactions = 0
        self.reads: dict[
            tuple[int, int], int
        ] = {}  # (node, number): what was committed anywhere when it began
        self.read_answers: dict[int, dict[int, int | None]] = {n: {} for n in self.keys}
        for n in self.keys:
            if n not in spare:
                self.start(n)

    # --- membership

    def configuration_at(self, height: int) -> Configuration:
        """Return the ordered configuration that block `height` is acknowledged in."""
        return self.configurations[max(at for at in self.configurations if at <= height)]

    def change(self, n: int, **roles: str) -> Height:
        """Propose to the leader `n` that members have these roles ("" to leave), the others those they have."""
        raft = self.rafts[n]
        now = {str(self.number[m.node]): m.role for m in raft.configuration.members}
        wanted = {
            number: role for number, role in {**now, **{k[1:]: v for k, v in roles.items()}}.items() if role
        }
        number = raft.configuration.number + 1
        following = replace(configuration_with(**wanted), number=number)
        raft.expect_configuration(following.digest)
        return raft.propose_configuration(following, self.now_ms)

    # --- nodes

    def join(self, n: int) -> None:
        """Start a newcomer with what a joiner brings: the chain up to the block that made it a member (ledger.md 7.3)."""
        source, disk = self.disks[1], self.disks[n]
        height = max(self.configurations)
        disk.blocks.update({at: source.blocks[at] for at in range(1, height + 1)})
        disk.frontier = self.states[height][1]
        disk.certificates = {at: one for at, one in source.certificates.items() if at <= height}
        disk.applied = Height(height)
        self.start(n)

    def start(self, n: int) -> Raft:
        disk = self.disks[n]
        tail = [disk.blocks[at] for at in range(disk.applied + 1, max(disk.blocks) + 1)]
        self.starts += 1
        seed = hashlib.sha256(b"%d %d %d" % (self.seed, n, self.starts)).digest()
        self.rafts[n] = Raft(
            key=self.keys[n],
            network=self.network,
            configuration=self.configuration_at(disk.applied),
            hard_state=disk.hard_state,
            log=Log(disk, disk.applied, disk.frontier, tail),
            timeout_seed=seed,
        )
        return self.rafts[n]

    def drop(self, n: int, below: int) -> None:
        """Let a node hold the blocks from a height on, and no older ones."""
        self.disks[n].lowest = Height(below)
        if n in self.rafts:
            evict(self.rafts[n]._voter.log, below)

    def install(self, n: int, height: int) -> Raft:
        """Do what a driver does with state and blocks up to a certified height, and start anew there."""
        self.crash(n)
        self.disks[n].install(*self.states[height], self.certificates[height])
        return self.start(n)

    def crash(self, n: int) -> None:
        """Stop a node. What it had not persisted is gone; what it had sent is still under way."""
        self.rafts.pop(n, None)
        self.waiting.pop(n, None)
        self.frozen.discard(n)

    def node(self, n: int) -> NodeId:
        return NodeId(self.keys[n].public)

    # --- network

    def partition(self, *groups: tuple[int, ...]) -> None:
        of = {n: at for at, group in enumerate(groups) for n in group}
        self.cut = {(a, b) for a in self.keys for b in self.keys if a != b and of.get(a) != of.get(b)}

    def heal(self) -> None:
        self.cut.clear()

    def deliver(self, at: int = 0) -> None:
        """Deliver the message at a place in the queue."""
        source, target, raw = self.wires.pop(at)
        if (source, target) in self.cut or target not in self.rafts:
            return
        self.step(source, target, codec.decode(raw, Message))  # type: ignore[arg-type]

    def step(self, source: int, target: int, message: Message) -> None:
        raft, sender = self.rafts[target], self.node(source)
        try:
            checked = check_append(message) if isinstance(message, AppendEntries) else message
            if isinstance(checked, CheckedAppend) and self.expects:
                for block in checked.blocks:
                    if block.is_configuration:
                        raft.expect_configuration(Digest(block.header.next_config_hash))
            raft.step(sender, checked, self.now_ms + self.skew_ms[target])
        except RemoteFault as fault:
            self.faults.append(fault)
        self.check(target)

    # --- driver

    def drain(self, n: int) -> None:
        """Do what the driver does until there is nothing to do; a stalled disk leaves its Ready waiting."""
        if n not in self.rafts:
            return
        for _ in range(1000):
            ready = self.rafts[n].ready()
            self.check(n)
            if ready is None:
                return
            if n in self.frozen and ready.must_persist:
                self.waiting[n] = ready
                continue
            self.finish(n, ready)
        raise AssertionError("a node is never ready for ever")

    def finish(self, n: int, ready: Ready) -> None:
        for block in ready.certified:
            assert self.disks[n].blocks.get(block.height) == block, "handed out before it was durable"
        self.disks[n].persist(ready)
        for target, message in ready.messages:
            self.send(n, self.number[target], message)
        self.disks[n].apply(ready)
        self.note_certified(n, ready)
        self.contradictions += [(n, found) for found in ready.contradictions]
        if ready.behind is not None:
            self.behind[n].append(ready.behind)
        self.note_reads(n, ready)
        self.rafts[n].advance(ready)
        self.check(n)

    def thaw(self, n: int) -> None:
        """End the stall of a disk."""
        self.frozen.discard(n)
        if n in self.waiting:
            self.finish(n, self.waiting.pop(n))

    def send(self, source: int, target: int, message: Message) -> None:
        self.check_promise(source, message)
        if self.filter(source, target, message):
            self.trace.append((source, target, message))
            self.wires.append((source, target, codec.encode(message)))

    # --- time

    def tick(self, *numbers: int) -> None:
        for n in numbers or tuple(self.keys):
            if n in self.rafts:
                self.rafts[n].tick(self.now_ms + self.skew_ms[n])
                self.check(n)

    def settle(self, limit: int = 20_000) -> None:
        """Deliver everything, in order, until nothing moves."""
        for n in self.keys:
            self.drain(n)
        for _ in range(limit):
            if not self.wires:
                return
            target = self.wires[0][1]
            self.deliver()
            self.drain(target)
        raise AssertionError("the cluster never comes to rest")

    def run(self, ticks: int) -> None:
        for _ in range(ticks):
            self.now_ms += TICK_MS
            self.tick()
            self.settle()

    def run_until(self, condition: Callable[[], bool], ticks: int = 200) -> int:
        """Run until the condition holds; return after how many ticks."""
        for count in range(ticks):
            if condition():
                return count
            self.run(1)
        raise AssertionError(f"not within {ticks} ticks")

    # --- clients

    def transaction(self) -> bytes:
        self.transactions += 1
        owner = key_of(1000)
        revoke = Revoke(Vid(ZERO), Txid(hashlib.sha256(b"%d" % self.transactions).digest()), START_MS)
        return codec.encode(sign(revoke, self.network, owner))

    def propose(self, n: int, count: int = 1) -> Height:
        return self.rafts[n].propose(
            tuple(self.transaction() for _ in range(count)), self.now_ms + self.skew_ms[n]
        )

    def read(self, n: int) -> int:
        """Begin a linearizable read; return its number."""
        number = self.rafts[n].read_index()
        self.reads[n, number] = max(self.chain)
        return number

    def answers(self, n: int) -> dict[int, int | None]:
        """Return the answers to a node's reads so far."""
        return self.read_answers[n]

    def elect(self, n: int) -> None:
        """Make a node leader: the others have not heard of one for a while, and its time passes first."""
        for other, raft in self.rafts.items():
            if raft.role is Role.LEADER and other != n:
                raft._become_follower()
            if raft.role is not Role.LEADER:
                raft._voter.leader = None
        for _ in range(200):
            if self.rafts[n].role is Role.LEADER:
                return
            self.now_ms += TICK_MS
            self.tick(n)
            self.settle()
        raise AssertionError(f"{n} was not elected")

    def role(self, n: int) -> Role:
        return self.rafts[n].role

    @property
    def leaders(self) -> list[int]:
        return [n for n, raft in self.rafts.items() if raft.role is Role.LEADER]

    def leader(self) -> int:
        """Return the leader of the highest term."""
        return max(self.leaders, key=lambda n: self.rafts[n].term)

    def converged(self) -> bool:
        tips = {
            (raft.certified_height, raft.tip_height, self.disks[n].applied) for n, raft in self.rafts.items()
        }
        return len(tips) == 1 and len(set(next(iter(tips)))) == 1 and len(self.rafts) == len(self.keys)

    def led(self) -> bool:
        """Return whether there is a leader and everybody has certified all it has."""
        return bool(self.leaders) and self.converged()

    # --- invariants (ledger.md section 3)

    def check(self, n: int) -> None:
        raft = self.rafts[n]
        in_log = config_hash_above(raft._voter.log.tip)
        assert raft.configuration.digest == in_log, "the configuration in force is the newest in the log"
        if raft.role is Role.LEADER:
            first = self.leader_of_term.setdefault(raft.term, n)
            assert first == n, f"two leaders of term {raft.term}"
            height = max(self.chain)
            log = raft._voter.log
            newest = max(self.leader_of_term)
            if raft.term == newest and height > log.committed:
                assert log.tip_height >= height, "a leader lacks a committed block"
                assert log.hash(Height(height)) == self.chain[height], "a leader lacks a committed block"
        if raft.commit_proof is not None:
            self.proofs[raft.commit_proof.header.height] = raft.commit_proof
        committed = raft.commit_height
        assert committed >= self.disks[n].applied
        known = self.chain.get(committed)
        log = raft._voter.log
        if known is None:
            for height in range(max(self.chain) + 1, committed + 1):
                block = log.block(Height(height))
                self.chain[height] = block.hash
                self.states[height] = block, self.states[height - 1][1].append(block.leaves())
                if block.is_configuration:
                    self.configurations[height] = block.next_configuration()
            counted = self.configuration_at(committed)
            holders = sum(
                disk.blocks.get(committed) is not None and disk.hash(committed) == log.hash(committed)
                for disk in (self.disks[self.number[node]] for node in counted.voters)
            )
            assert holders + len(self.liars) >= counted.raft_quorum, (
                "committed without being durable on a quorum"
            )
        else:
            assert known == log.hash(committed), f"two blocks are committed at {committed}"

    def note_certified(self, n: int, ready: Ready) -> None:
        """No two conflicting blocks are certified anywhere; the certificate holds; ordering came first."""
        for block in ready.certified:
            assert self.chain[block.height] == block.hash, "a node hands out another block than was ordered"
            assert self.certified.setdefault(block.height, block.hash) == block.hash, "two certified blocks"
        certificate = ready.certificate
        assert (certificate is None) == (not ready.certified)
        if certificate is not None:
            counted = self.configuration_at(certificate.height - 1)
            following = self.configuration_at(certificate.height)
            is_switch = following is not counted
            digest = check_certificate(certificate, self.network, counted, following if is_switch else None)
            assert digest == ready.certified[-1].hash
            assert not any(block.is_configuration for block in ready.certified[:-1]), "a group ends with one"
            self.certificates[certificate.height] = certificate

    def note_reads(self, n: int, ready: Ready) -> None:
        for read in ready.reads:
            began = self.reads[n, read.request]
            assert read.request not in self.read_answers[n], "a read is answered once"
            assert read.height is None or read.height >= began, "a stale read"
            self.read_answers[n][read.request] = read.height

    def check_promise(self, source: int, message: Message) -> None:
        disk = self.disks[source]
        if isinstance(message, VoteReply) and message.grant is not None:
            self.check_grant(disk, source, message.grant)
        if isinstance(message, AppendReply) and message.ack is not None:
            self.check_acknowledgement(disk, source, message.ack)
        if isinstance(message, AppendReply | VoteNotice) and message.vote is not None:
            self.check_vote(disk, source, message.vote)
        proof = message.proof if isinstance(message, AppendEntries) else None
        if proof is not None:
            check_commit_proof(proof, self.network, self.configuration_at(proof.header.height))

    def check_vote(self, disk: Disk, source: int, vote: CommitVote) -> None:
        """A vote is durable when it leaves, for a block that was ordered; a signer's votes are one chain between bases (E3)."""
        hard = disk.hard_state
        assert (hard.last_vote_height, hard.last_vote_hash) == (vote.height, vote.header_hash) or (
            hard.last_vote_height > vote.height
        ), "a vote left before it was durable"
        assert hard.certificate_height >= vote.base_height, "a base that could be forgotten"
        assert self.chain.get(vote.height) == vote.header_hash, "a vote for what was never ordered"
        if vote not in self.votes[source]:
            assert all(before.height <= vote.height for before in self.votes[source])
            self.votes[source].append(vote)

    def check_grant(self, disk: Disk, source: int, grant: ElectionGrant) -> None:
        assert disk.hard_state.term >= grant.term, "a vote left before it was durable"
        assert disk.hard_state.term > grant.term or disk.hard_state.vote == grant.candidate
        assert self.granted.setdefault((source, grant.term), grant.candidate) == grant.candidate, (
            "two votes in one term"
        )

    def check_acknowledgement(self, disk: Disk, source: int, ack: Acknowledgement) -> None:
        """A promise is durable when it leaves, and no two of one term contradict each other (E2)."""
        assert disk.hash(ack.height) == ack.header_hash, (
            "an acknowledgement left before its block was durable"
        )
        hard = disk.hard_state
        assert hard.term >= ack.term
        assert hard.ack_term > ack.term or (hard.ack_term == ack.term and hard.ack_height >= ack.height)
        before = self.acknowledged.get((source, ack.term))
        if before is not None and disk.lowest <= before.height <= ack.height:
            assert disk.hash(before.height) == before.header_hash, (
                "two acknowledgements of one term are not on one chain"
            )
        if before is None or before.height < ack.height:
            self.acknowledged[source, ack.term] = ack

    # --- forged and hand-made messages

    def acknowledgement(self, n: int, leader: int, height: int) -> AppendReply:
        """Return the reply of voter `n` that acknowledges a block of a leader's log, without there being such a voter."""
        raft = self.rafts[leader]
        tip = raft._voter.log.hash(Height(height))
        ack = acknowledge(
            self.keys[n], self.network, epoch=0, incarnation=0, term=raft.term, height=Height(height), tip=tip
        )
        return AppendReply(raft.term, self.node(n), ack, Height(0), None)

    def sent(self, kind: type, source: int | None = None, target: int | None = None) -> list[Any]:
        """Return the messages of a kind that have been sent so far."""
        return [
            m for a, b, m in self.trace if isinstance(m, kind) and source in (None, a) and target in (None, b)
        ]
