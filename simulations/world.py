"""N real nodes on virtual ports: they start, crash at any await, and start again from what their disks kept."""

import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from node import consensus
from node.core import Core, Ports
from protocol import codec
from protocol.block import Block, genesis_block
from protocol.configuration import Card, Configuration, Member, found
from protocol.errors import CarechainError, Unavailable
from protocol.identifiers import Digest, Height, NodeId, PublicKey
from protocol.raft.messages import AppendEntries, AppendReply, Heartbeat, Message, RequestVote, VoteReply
from protocol.raft.state import HardState, Role
from protocol.signing import SigningKey
from simulations import determinism
from simulations.checkers import (
    DurableState,
    ElectionSafety,
    LogMatching,
    PersistBeforeSend,
    Promises,
    StateMachineSafety,
)
from simulations.clock import VirtualClock, VirtualEntropy, VirtualWorkers
from simulations.disk import DiskSpeed, VirtualDisk
from simulations.history import History
from simulations.network import Network
from simulations.transport import VirtualTransport
from storage import keyspace
from storage.key_value import Batch
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore

T = TypeVar("T")
_CHANNELS = (consensus.CHANNEL, consensus.URGENT_CHANNEL)
_PROMISES = tuple(
    codec.tag_of(kind).encode() for kind in (RequestVote, VoteReply, AppendEntries, AppendReply, Heartbeat)
)
_VIOLATIONS_MAX = 20
_LOG_LINES_MAX = 200
CLOCK_OFFSET_MS_MAX = 400
CLOCK_DRIFT_MAX = 100e-6
"""What NTP leaves in a bad week, and a cheap crystal."""


class Crashed(Unavailable):
    """The node stopped before it answered; what it was asked may have happened."""


@dataclass(slots=True)
class Node:
    """One member: what outlives its crashes, and its present incarnation."""

    index: int
    key: SigningKey
    rows: MemoryStore
    clock: VirtualClock
    disk_speed: DiskSpeed = field(default_factory=DiskSpeed)
    lives: int = 0
    life: "Incarnation | None" = None

    @property
    def id(self) -> NodeId:
        """Its node id."""
        return NodeId(self.key.public)


@dataclass(slots=True)
class Incarnation:
    """One life of a node."""

    core: Core
    transport: VirtualTransport
    disk: VirtualDisk
    nursery: trio.Nursery
    is_up: bool = True
    ended: trio.Event = field(default_factory=trio.Event)

    async def ask(self, question: Callable[[Core], Awaitable[T]]) -> T:
        """Return the answer to a question that runs inside the node.

        Raises:
            Crashed: the node stopped meanwhile.
            CarechainError: what the question raised.
        """
        answers: list[T] = []
        errors: list[CarechainError] = []
        done = trio.Event()

        async def run() -> None:
            try:
                answers.append(await question(self.core))
            except CarechainError as error:
                errors.append(error)
            finally:
                done.set()

        if not self.is_up:
            raise Crashed("the node is down")
        self.nursery.start_soon(run)
        await done.wait()
        if errors:
            raise errors[0]
        if not answers:
            raise Crashed("the node stopped")
        return answers[0]


class World:
    """The nodes, the network between them, and the checkers that watch both."""

    def __init__(self, seed: int, *, voters: int, observers: int) -> None:
        self.seed = seed
        self.history = History()
        self.violations: list[str] = []
        self.violated = trio.Event()
        self.log: deque[str] = deque(maxlen=_LOG_LINES_MAX)
        self.network = Network(determinism.stream(seed, "network"))
        keys = [
            SigningKey(determinism.stream(seed, f"key/{i}").randbytes(32)) for i in range(voters + observers)
        ]
        self.configuration = _configuration(seed, keys, voters)
        rng = determinism.stream(seed, "clocks")
        self.nodes = tuple(
            Node(
                index,
                key,
                MemoryStore(),
                VirtualClock(
                    offset_ms=rng.randint(-CLOCK_OFFSET_MS_MAX, CLOCK_OFFSET_MS_MAX),
                    drift=rng.uniform(-CLOCK_DRIFT_MAX, CLOCK_DRIFT_MAX),
                ),
            )
            for index, key in enumerate(keys)
        )
        self.elections = ElectionSafety(self.report)
        self.logs = LogMatching(self.report)
        self.durable = DurableState(self.report)
        self.sends = PersistBeforeSend(self.report, self.durable)
        self.chain = StateMachineSafety(self.report, self.configuration, genesis_block(self.configuration))
        self.promises = Promises(self.report, self.chain)
        self._nursery: trio.Nursery | None = None

    def report(self, violation: str) -> None:
        """Note what must never be; the run ends at the next opportunity."""
        self.history.record("violation", violation)
        if len(self.violations) < _VIOLATIONS_MAX:
            self.violations.append(f"at {trio.current_time():.6f} s: {violation}")
        self.violated.set()

    # --- life and death -------------------------------------------------------------------------------------------

    async def run(self, story: Callable[[], Awaitable[None]]) -> None:
        """Run all nodes until the story has ended."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.network.run)
            for node in self.nodes:
                await self.start(node)
            await story()
            nursery.cancel_scope.cancel()

    def up(self) -> tuple[Incarnation, ...]:
        """Return the running nodes, in order."""
        return tuple(node.life for node in self.nodes if node.life is not None and node.life.is_up)

    def leader(self) -> Node | None:
        """Return who leads in the highest term, if anybody does."""
        best: tuple[int, Node] | None = None
        for node in self.nodes:
            consensus = node.life.core.consensus if node.life is not None and node.life.is_up else None
            if consensus is None or consensus.raft.role is not Role.LEADER:
                continue
            if best is None or consensus.raft.term > best[0]:
                best = consensus.raft.term, node
        return best[1] if best else None

    async def start(self, node: Node) -> None:
        """Start a node that is down, or going down."""
        assert self._nursery is not None
        if node.life is not None and not node.life.is_up:
            await node.life.ended.wait()
        if node.life is None:
            self.history.record("start", node.index)
            booted = trio.Event()
            self._nursery.start_soon(self._live, node, booted)
            await booted.wait()

    async def crash(self, node: Node) -> None:
        """Take a node's power away, wherever its tasks are, and let its disk forget."""
        life = node.life
        if life is None or not life.is_up:
            return
        self.history.record("crash", node.index)
        self._stop(life)
        await life.ended.wait()

    def _stop(self, life: Incarnation) -> None:
        life.is_up = False
        life.disk.power_off()
        self.network.detach(life.transport)
        life.nursery.cancel_scope.cancel()

    async def _live(self, node: Node, booted: trio.Event) -> None:
        life: Incarnation | None = None
        try:
            async with trio.open_nursery() as nursery:
                life = node.life = self._boot(node, nursery)
                nursery.start_soon(life.disk.run)
                nursery.start_soon(life.core.run)
                nursery.start_soon(self._watch, node, life.core)
                booted.set()
        except Exception as error:  # noqa: BLE001 - whatever ends a node is a finding
            self._failed(node, error)
        if life is not None:
            self._stop(life)
            life.disk.lose_unsynced()
            life.ended.set()
        node.rows = node.rows.reopened()
        node.life = None
        booted.set()

    def _boot(self, node: Node, nursery: trio.Nursery) -> Incarnation:
        node.lives += 1
        name = f"{node.index}/{node.lives}"
        members = tuple(member.id for member in self.nodes)
        transport = VirtualTransport(
            node.id,
            members,
            self.network,
            nursery,
            broke=lambda text: self.report(f"node {node.index}: {text}"),
            sent=lambda channel, body: self._sent(node, channel, body),
        )
        disk = VirtualDisk(
            node.rows,
            node.disk_speed,
            determinism.stream(self.seed, f"disk/{name}"),
            lambda batch, sync: self._written(node, batch, sync=sync),
        )
        ports = Ports(
            transport=transport,
            disk=disk,
            workers=VirtualWorkers(determinism.stream(self.seed, f"workers/{name}"), 0.1),
            clock=node.clock,
            entropy=VirtualEntropy(determinism.stream(self.seed, f"entropy/{name}")),
            log=_Log(self, node),
        )
        store = LedgerStore(node.rows, self.configuration)
        self.durable.started(node.id, store.hard_state())
        self.chain.started(node.id, store.applied().height)
        core = Core(ports, store, node.key)
        self.network.attach(transport)
        return Incarnation(core, transport, disk, nursery)

    def _failed(self, node: Node, error: BaseException) -> None:
        for line in "".join(traceback.format_exception(error)).splitlines():
            self.log.append(line)
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        self.report(f"node {node.index} failed: {type(error).__name__}: {error}")

    # --- what is seen ---------------------------------------------------------------------------------------------

    def _written(self, node: Node, batch: Batch, *, sync: bool) -> None:
        for key, value in batch.writes.items():
            if value is None:
                continue
            if key == keyspace.HARD_STATE:
                self.durable.written(node.id, codec.decode(value, HardState), sync=sync)
            elif key.startswith(keyspace.BLOCK):
                self._stored(node, Block.decode(value))

    def _stored(self, node: Node, block: Block) -> None:
        self.logs.stored(block)
        self.elections.led(block.term, block.header.leader)
        if block.opening and block.header.leader == node.id:
            self.history.record("leader", node.index, block.term)
            self.chain.led(block.term, node.id, lambda height: _hash_at(node, height))

    def _sent(self, node: Node, channel: str, body: bytes) -> None:
        # Only what promises something is worth decoding: a message's tag follows two bytes of MessagePack.
        if channel in _CHANNELS and body.startswith(_PROMISES, 2):
            message: Message = codec.decode_union(body, Message)
            self.sends.sent(node.id, message, lambda height: _hash_at(node, height))

    async def _watch(self, node: Node, core: Core) -> None:
        mark = core.applier.height.value
        while True:
            height = await core.applier.height.wait_above(mark)
            for block in core.store.blocks(Height(mark + 1), height):
                proof = core.store.proof_at_or_above(block.height)
                assert proof is not None, "applied with a proof"
                self.history.record("applied", node.index, block.height, block.hash, len(block.transactions))
                self.chain.applied(node.id, block, proof.header.term)
            mark = height


class _Log:
    """A node's log: kept for whoever reads a failure. Warnings and errors of honest nodes are findings."""

    def __init__(self, world: World, node: Node) -> None:
        self._world = world
        self._node = node

    def debug(self, event: str, **values: Any) -> None:
        """Drop it."""

    def info(self, event: str, **values: Any) -> None:
        """Keep it."""
        self._keep("info", event, values)

    def warning(self, event: str, **values: Any) -> None:
        """Keep it and report it: nobody lies here, so no peer can have broken the protocol."""
        self._keep("warning", event, values)
        self._world.report(f"node {self._node.index} warns: {event} {values}")

    def error(self, event: str, **values: Any) -> None:
        """Keep it and report it."""
        self._keep("error", event, values)
        self._world.report(f"node {self._node.index} reports an error: {event} {values}")

    def _keep(self, level: str, event: str, values: dict[str, Any]) -> None:
        self._world.log.append(f"{trio.current_time():.6f} {self._node.index} {level} {event} {values}")


def _hash_at(node: Node, height: Height) -> Digest | None:
    row = node.rows.get(keyspace.BLOCK + height.to_bytes(8, "big"))
    return Block.decode(row).hash if row is not None else None


def _configuration(seed: int, keys: list[SigningKey], voters: int) -> Configuration:
    cards = []
    for index, key in enumerate(keys):
        role = "voter" if index < voters else "observer"
        public = PublicKey(key.public)
        member = Member(f"member-{index}", "clinic", role, NodeId(public), public, public, public, ())
        cards.append(Card.make(member, key))
    return found(tuple(cards), nonce=determinism.stream(seed, "nonce").randbytes(32))
