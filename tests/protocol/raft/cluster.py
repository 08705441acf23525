"""A deterministic cluster of Raft machines in memory: a lossy network, disks that forget what was not persisted, checks.

Every message crosses the wire codec. The invariants are checked as the run goes, so that a test only has to arrange its story.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from protocol import codec
from protocol.certificate import (
    acknowledge,
)
from protocol.errors import RemoteFault
from protocol.identifiers import ZERO, Digest, Height, NodeId, Txid, Vid
from protocol.limits import TICK_MS
from protocol.raft.log import Log
from protocol.raft.machine import Raft
from protocol.raft.messages import (
    AppendEntries,
    AppendReply,
    CheckedAppend,
    Message,
    check_append,
)
from protocol.raft.state import Ready, Role
from protocol.transaction import Revoke, sign
from tests.protocol.raft.invariants import Invariants
from tests.protocol.raft.members import configuration_of, configuration_with, evict, key_of

START_MS = 1_700_000_000_000


class Cluster(Invariants):
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
        keys = {n: key_of(n) for n in (*range(1, count + 1), *learners, *witnesses, *spare)}
        super().__init__(configuration_of(count, learners, witnesses), keys)
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
        self.expects = True  # whether the state of everybody says that a configuration that comes is pending
        self.behind: dict[int, list[int]] = {n: [] for n in self.keys}
        self.transactions = 0
        for n in self.keys:
            if n not in spare:
                self.start(n)

    # --- membership

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
