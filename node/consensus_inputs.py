"""What reaches the task that owns Raft, through its one bounded queue (`node.consensus`)."""

from dataclasses import dataclass, field

import trio

from protocol.block import Entries
from protocol.configuration import Configuration
from protocol.errors import CarechainError
from protocol.identifiers import Height, NodeId
from protocol.raft.messages import Input
from protocol.raft.state import Ready


@dataclass(frozen=True, slots=True)
class Tick:
    """So much time has passed: a turn of the clock, in milliseconds of Unix time."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class FromPeer:
    """What a member says, its blocks' bodies checked."""

    sender: NodeId
    message: Input


@dataclass(frozen=True, slots=True)
class Distrust:
    """A member sent what does not hold; if it leads, it is given up."""

    leader: NodeId


@dataclass(frozen=True, slots=True)
class Proposal:
    """Checked transactions for the next block, parsed and as bytes."""

    entries: Entries
    transactions: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Transfer:
    """Hand the leadership over."""

    target: NodeId


@dataclass(slots=True)
class Read:
    """A linearizable read, and what came of it: a height, or None when it cannot be known."""

    done: trio.Event = field(default_factory=trio.Event)
    height: Height | None = None

    def answer(self, height: Height | None) -> None:
        """Wake who waits."""
        self.height = height
        self.done.set()


@dataclass(slots=True)
class Change:
    """A configuration to propose, and why that could not be done, if so."""

    following: Configuration
    until_ms: int
    done: trio.Event = field(default_factory=trio.Event)
    refusal: CarechainError | None = None

    def answer(self, refusal: CarechainError | None = None) -> None:
        """Wake who waits; `refusal` is raised there."""
        self.refusal = refusal
        self.done.set()


@dataclass(frozen=True, slots=True)
class Written:
    """What the core wanted durable is."""

    ready: Ready


ConsensusInput = Tick | FromPeer | Distrust | Proposal | Transfer | Read | Change | Written
"""All that the owner of the core takes from its one queue."""
