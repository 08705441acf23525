"""The story language: what one run is made of, as frozen data and as text that a person writes and a failure prints.

    # A leader loses its power in the middle of a write, twice (Raft §5.2).
    world tier=b seed=7 nodes=3 observers=1 seconds=20 settle=30
    quality delay_ms=0.3 loss=0.1
    load clients=3 mean_s=0.5
    at 3.2 cut out 0 1 for 4
    at 5 crash leader for 1.5 in-write
    at 12 heal
    expect leader_changes >= 1

All times are virtual seconds from the start. A node is a number (voters from 0, then witnesses, then observers), or `leader` or
`follower`: whoever that is when it happens (the first in order; nothing happens when there is none). What has no `for`
lasts until everything is healed. At the end, and at each `heal`, everything is made whole and convergence and progress
are demanded within `settle` seconds. `parse` and `format_story` are each other's inverse for stories in order of time;
`simulations.story_text` has the grammar.

Story(world) = events, in order
    cut      what leaves (`out`), reaches (`in`), or both, for all nodes named together: they stay joined among themselves
    bridge   two halves that only one node joins (`halves`)
    flap     a link, both ways, that is cut and joined every so many seconds
    clog     a link, one way, whose messages are held and then come all at once
    link     a link, one way, whose quality is another; `quality` is that of all links
    crash    loses power; `in-write`: at its next disk write, or after a second
    blackout all lose power at once
    pause    stands still while its clock and its peers go on (SIGSTOP)
    clock    is set so far off the true time; `drift` gains so many seconds per second
    slow     a synchronised disk write takes so long on average
    disk-error   the next synchronised write fails, once; the node must stop, and comes back after a while
    disk-full    no space until that ends
    disk-lies    what is synchronised counts as unsynchronised when power is lost
    bit-rot      one stored row is damaged
    transfer     the leader is to hand over to this node
    add-voter, remove-voter    a change of members
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal, get_args

from simulations.network import GOOD, Quality

Role = Literal["leader", "follower"]
Target = int | Role
"""A node by number, or by what it is when it happens."""
Direction = Literal["out", "in", "both"]
Tier = Literal["a", "b"]
Comparison = Literal["<=", ">=", "=="]
Changes = tuple[tuple[str, float], ...]
"""Fields of `Quality` and their new values; the others stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lasting:
    """What ends by itself after `for_s` seconds, or when everything is healed (None)."""

    for_s: float | None = None


@dataclass(frozen=True, slots=True)
class Cut(Lasting):
    """Nothing passes between the nodes of one `side` and all others, in a direction seen from that side."""

    kind: ClassVar[str] = "cut"
    at_s: float
    direction: Direction
    side: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Bridge(Lasting):
    """Two halves of the others that only `node` joins."""

    kind: ClassVar[str] = "bridge"
    at_s: float
    node: Target


@dataclass(frozen=True, slots=True)
class Flap(Lasting):
    """A link is cut both ways, and joined, in turn every `every_s` seconds."""

    kind: ClassVar[str] = "flap"
    at_s: float
    node: Target
    peer: Target
    every_s: float


@dataclass(frozen=True, slots=True)
class Clog(Lasting):
    """Messages from `node` to `peer` are held, then come all at once."""

    kind: ClassVar[str] = "clog"
    at_s: float
    node: Target
    peer: Target


@dataclass(frozen=True, slots=True)
class LinkQuality(Lasting):
    """The link from `node` to `peer` has a quality of its own."""

    kind: ClassVar[str] = "link"
    at_s: float
    node: Target
    peer: Target
    changes: Changes


@dataclass(frozen=True, slots=True)
class SetQuality:
    """All links have this quality from now on."""

    kind: ClassVar[str] = "quality"
    at_s: float
    changes: Changes


@dataclass(frozen=True, slots=True)
class Crash(Lasting):
    """A node loses its power; with `in_write` in the middle of its next disk write, or after a second without one."""

    kind: ClassVar[str] = "crash"
    at_s: float
    node: Target
    in_write: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Blackout(Lasting):
    """All nodes lose their power at once, and come back together."""

    kind: ClassVar[str] = "blackout"
    at_s: float


@dataclass(frozen=True, slots=True)
class Pause(Lasting):
    """A node stands still; its clock and its peers go on."""

    kind: ClassVar[str] = "pause"
    at_s: float
    node: Target


@dataclass(frozen=True, slots=True)
class SetClock:
    """A node's clock is set to the true time plus `offset_ms`."""

    kind: ClassVar[str] = "clock"
    at_s: float
    node: Target
    offset_ms: int


@dataclass(frozen=True, slots=True)
class Drift:
    """A node's clock gains `drift` seconds per second from now on."""

    kind: ClassVar[str] = "drift"
    at_s: float
    node: Target
    drift: float


@dataclass(frozen=True, slots=True)
class SlowDisk(Lasting):
    """A synchronised write takes `sync_ms` on average."""

    kind: ClassVar[str] = "slow"
    at_s: float
    node: Target
    sync_ms: float


@dataclass(frozen=True, slots=True)
class DiskError(Lasting):
    """The next synchronised write fails with EIO, once. `for_s` is how long the node that must stop stays down."""

    kind: ClassVar[str] = "disk-error"
    at_s: float
    node: Target


@dataclass(frozen=True, slots=True)
class DiskFull(Lasting):
    """Nothing can be written for want of space."""

    kind: ClassVar[str] = "disk-full"
    at_s: float
    node: Target


@dataclass(frozen=True, slots=True)
class DiskLies:
    """What is synchronised from now on counts as unsynchronised at the next loss of power. At most one node may lie."""

    kind: ClassVar[str] = "disk-lies"
    at_s: float
    node: Target


@dataclass(frozen=True, slots=True)
class BitRot:
    """One stored row of a node is damaged so that reading it is noticed."""

    kind: ClassVar[str] = "bit-rot"
    at_s: float
    node: Target


@dataclass(frozen=True, slots=True)
class Transfer:
    """Whoever leads is asked to hand over to `node`."""

    kind: ClassVar[str] = "transfer"
    at_s: float
    node: Target


@dataclass(frozen=True, slots=True)
class AddVoter:
    """Whoever leads proposes that an observer votes."""

    kind: ClassVar[str] = "add-voter"
    at_s: float
    node: Target


@dataclass(frozen=True, slots=True)
class RemoveVoter:
    """Whoever leads proposes that a voter votes no more."""

    kind: ClassVar[str] = "remove-voter"
    at_s: float
    node: Target


@dataclass(frozen=True, slots=True)
class Heal:
    """Everything is made whole; what comes later waits until all nodes agree and go on, or `settle_s` have passed."""

    kind: ClassVar[str] = "heal"
    at_s: float


Event = (
    Cut
    | Bridge
    | Flap
    | Clog
    | LinkQuality
    | SetQuality
    | Crash
    | Blackout
    | Pause
    | SetClock
    | Drift
    | SlowDisk
    | DiskError
    | DiskFull
    | DiskLies
    | BitRot
    | Transfer
    | AddVoter
    | RemoveVoter
    | Heal
)
EVENT_KINDS: Final[dict[str, type[Event]]] = {kind.kind: kind for kind in get_args(Event)}


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients do: how many there are, and what each waits on average between two transactions."""

    clients: int = 3
    mean_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the verdict must show: a measure (`commits`, `leader_changes`, `acked`, or a kind of history event) and its bound."""

    measure: str
    comparison: Comparison
    value: int

    def holds(self, found: int) -> bool:
        """Whether a measured value is within the bound."""
        match self.comparison:
            case "<=":
                return found <= self.value
            case ">=":
                return found >= self.value
            case "==":
                return found == self.value


@dataclass(frozen=True, slots=True)
class Story:
    """One run: a world, its quality and load, and what happens in it, in order of time. `nodes` counts voters. `witnesses` sign certificates only."""

    seed: int
    tier: Tier = "b"
    nodes: int = 3
    observers: int = 1
    seconds: float = 60.0
    settle_s: float = 30.0
    quality: Quality = GOOD
    load: Load = Load()
    events: tuple[Event, ...] = ()
    expect: tuple[Expectation, ...] = ()
    witnesses: int = 0

    @property
    def members(self) -> int:
        """How many nodes there are in all."""
        return self.nodes + self.witnesses + self.observers


def halves(members: Sequence[int], bridge: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the two sides that a bridge joins: the other members in order, the first side the smaller one."""
    others = tuple(member for member in members if member != bridge)
    return others[: len(others) // 2], others[len(others) // 2 :]
