"""One member of the simulated world: what outlives its crashes, and one life of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from node.core import Core
from node.ports import PeerTransport
from node.snapshots import SnapshotSpace
from protocol.configuration import Card, Configuration, Member, found
from protocol.errors import CarechainError, Corruption, Unavailable
from protocol.identifiers import NodeId, PublicKey
from protocol.signing import SigningKey
from simulations import determinism
from simulations.clock import VirtualClock
from simulations.disk import DiskFaults, DiskSpeed, VirtualDisk
from simulations.transport import VirtualTransport
from storage import keyspace
from storage.memory import MemoryStore

T = TypeVar("T")
SNAPSHOT_CHUNK_BYTES = 4_096
CLOCK_OFFSET_MS_MAX = 400
CLOCK_DRIFT_MAX = 100e-6
"""What NTP leaves in a bad week, and a cheap crystal."""
SNAPSHOT_UNIT = 2
"""Blocks: small, so that the seconds of a seed hold several snapshots and a node that is rebuilt installs one."""


class Crashed(Unavailable):
    """The node stopped before it answered; what it was asked may have happened."""


@dataclass(slots=True)
class Node:
    """One member: what outlives its crashes, and its present incarnation."""

    index: int
    key: SigningKey
    rows: MemoryStore
    clock: VirtualClock
    skew: tuple[int, float]
    """Offset in milliseconds and drift of its clock when nothing is wrong with it."""
    snapshot_rows: MemoryStore = field(default_factory=MemoryStore)
    disk_speed: DiskSpeed = field(default_factory=DiskSpeed)
    disk_faults: DiskFaults = field(default_factory=DiskFaults)
    lives: int = 0
    life: "Incarnation | None" = None
    is_starting: bool = False
    is_paused: bool = False
    is_forgetful: bool = False
    """It has lost what it had promised: by a lie of its disk, or with a ledger that was rebuilt."""
    was_lied_to: bool = False
    """Its disk has lost what it had said was synchronised, and only others can tell."""
    wire: Callable[[PeerTransport], PeerTransport] = lambda transport: transport
    """What its program speaks with others through, given what really does."""
    down_after_failure_s: float = 1.0
    """How long whoever looks after the machine takes to start it again when its disk has failed."""

    @property
    def id(self) -> NodeId:
        """Its node id."""
        return NodeId(self.key.public)

    @property
    def is_unwell(self) -> bool:
        """Whether stored rows are damaged, or were and are being fetched anew."""
        return bool(self.rows.damaged) or self.rows.get(keyspace.REBUILT) is not None


@dataclass(slots=True)
class Incarnation:
    """One life of a node."""

    core: Core
    transport: VirtualTransport
    disk: VirtualDisk
    snapshot_disk: VirtualDisk
    nursery: trio.Nursery
    started_s: float
    is_up: bool = True
    ended: trio.Event = field(default_factory=trio.Event)

    async def ask(self, question: Callable[[Core], Awaitable[T]]) -> T:
        """Return the answer to a question that runs inside the node.

        Raises:
            Crashed: the node stopped meanwhile, or met damage on its disk: the outcome is unknown.
            CarechainError: what the question raised.
        """
        answers: list[T] = []
        errors: list[CarechainError] = []
        damage: list[Corruption] = []
        done = trio.Event()

        async def run() -> None:
            try:
                answers.append(await question(self.core))
            except Corruption as error:
                damage.append(error)
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
        if damage:
            raise Crashed(str(damage[0]))
        if not answers:
            raise Crashed("the node stopped")
        return answers[0]


def snapshot_space(node: Node, disk: VirtualDisk) -> SnapshotSpace:
    """Return where a node keeps its snapshots: few blocks apart and in small chunks."""
    return SnapshotSpace(node.snapshot_rows, disk, SNAPSHOT_UNIT, SNAPSHOT_CHUNK_BYTES)


def new_node(seed: int, index: int, key: SigningKey) -> Node:
    """Return a member that has never run, with a clock of its own."""
    rng = determinism.stream(seed, f"clock/{index}")
    offset_ms = rng.randint(-CLOCK_OFFSET_MS_MAX, CLOCK_OFFSET_MS_MAX)
    drift = rng.uniform(-CLOCK_DRIFT_MAX, CLOCK_DRIFT_MAX)
    clock = VirtualClock(offset_ms=offset_ms, drift=drift)
    return Node(index, key, MemoryStore(), clock, (offset_ms, drift))


def found_network(seed: int, keys: list[SigningKey], voters: int, witnesses: int = 0) -> Configuration:
    """Return the genesis of a network whose first members vote, the next sign certificates, and the others follow."""
    roles = ["voter"] * voters + ["witness"] * witnesses + ["observer"] * len(keys)
    cards = []
    for index, key in enumerate(keys):
        public = PublicKey(key.public)
        member = Member(
            f"member-{index}", "clinic", roles[index], NodeId(public), public, public, public, public, ()
        )
        cards.append(Card.make(member, key))
    return found(tuple(cards), nonce=determinism.stream(seed, "nonce").randbytes(32))
