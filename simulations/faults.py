"""What goes wrong in a run: events drawn in advance from the seed, so that a seed is a story.

Swarm testing: each round of the scenario `mixed` first draws which kinds of faults it knows and how often they come, and
leaves most of them out, so that some seeds are hard in one way only; all faults at once mostly prevent everything and find
little. Every time, node and duration is drawn here and nothing later, except who leads when an event says `leader`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from simulations.network import GOOD
from simulations.story import (
    AddVoter,
    BitRot,
    Blackout,
    Bridge,
    Changes,
    Clog,
    Crash,
    Cut,
    Direction,
    DiskError,
    DiskFull,
    DiskLies,
    Drift,
    Event,
    Flap,
    LinkQuality,
    Pause,
    RemoveVoter,
    SetClock,
    SetQuality,
    SlowDisk,
    Target,
    Tier,
    Transfer,
)

SCENARIOS: Final = ("mixed", "partition", "leader-crash", "slow-disk")
_KIND_CHANCES: Final = (0.1, 0.25, 0.4)
"""How likely a round knows each kind of fault; drawn once a round."""
_HOUR_MS: Final = 3_600_000
_SKEW_MS_MAX: Final = 2_000
"""How far any clock may be off: two of them differ by less than `limits.CLOCK_AHEAD_MS_MAX`."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where and when events are drawn for: nodes by number, voters first, and the seconds of one round's faults.

    `liar` is the one voter of the run whose disk may lie or rot and whose clock may be an hour off. Nothing is promised when
    two of three cannot be relied on: a block whose time has not come, in one log, waits for that while another is rebuilt.
    """

    tier: Tier
    voters: int
    members: int
    start_s: float
    end_s: float
    liar: int | None = None


_Draw = Callable[[Stage, Random, float], list[Event]]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one kind of fault is drawn, and the least and most seconds between two on average."""

    draw: _Draw
    every_s: tuple[float, float]


def draw(scenario: str, rng: Random, stage: Stage) -> tuple[Event, ...]:
    """Return the events of one round of a scenario, in order of time.

    Raises:
        ValueError: there is no such scenario.
    """
    events: list[Event] = []
    if scenario == "mixed":
        events.extend(_quality(rng, stage))
    for kind, every_s in _plan(scenario, rng, stage.tier):
        at_s = stage.start_s + rng.expovariate(1) * every_s
        while at_s < stage.end_s:
            drawn = kind.draw(stage, rng, round(at_s, 3))
            events.extend(event for event in drawn if event.at_s < stage.end_s)
            at_s += _lasts_s(drawn) + rng.expovariate(1) * every_s
    return tuple(sorted(events, key=lambda event: event.at_s))


def _plan(scenario: str, rng: Random, tier: Tier) -> list[tuple[_Kind, float]]:
    """Return which kinds of faults a round knows, and the mean time between two of each."""
    match scenario:
        case "partition":
            return [(_KINDS["cut"], rng.uniform(3, 10))]
        case "leader-crash":
            return [(_KINDS["leader-crash"], rng.uniform(4, 12))]
        case "slow-disk":
            return [(_KINDS["slow"], rng.uniform(2, 8))]
        case "mixed":
            chance = rng.choice(_KIND_CHANCES)
            return [
                (kind, rng.uniform(*kind.every_s))
                for name, kind in _KINDS.items()
                if name in DRAWN[tier] and rng.random() < chance
            ]
        case _:
            raise ValueError(f"no scenario {scenario}; there are {', '.join(SCENARIOS)}")


def _lasts_s(drawn: list[Event]) -> float:
    return max((getattr(event, "for_s", None) or 0.0 for event in drawn), default=0.0)


# --- links ------------------------------------------------------------------------------------------------------------


def _quality(rng: Random, stage: Stage) -> list[Event]:
    def some(low: float, high: float) -> float:
        return rng.uniform(low, high) if rng.random() < 0.4 else 0.0

    drawn = {
        "delay_ms": GOOD.delay_ms + some(0, 60),
        "jitter_ms": GOOD.jitter_ms + some(0, 120),
        "loss": some(0, 0.2),
        "duplicate": some(0, 0.2),
        "reorder": some(0, 0.3),
    }
    changes: Changes = tuple(
        (name, round(value, 3)) for name, value in drawn.items() if value != getattr(GOOD, name)
    )
    return [SetQuality(round(stage.start_s, 3), changes)] if changes else []


def _cut(stage: Stage, rng: Random, at_s: float) -> list[Event]:
    if stage.members < 2:
        return []
    side: tuple[Target, ...]
    if rng.random() < 0.5:
        side = ("leader",)
    else:
        side = tuple(sorted(rng.sample(range(stage.members), rng.randint(1, stage.members - 1))))
    directions: tuple[Direction, ...] = ("both", "both", "out", "in")
    return [Cut(at_s, rng.choice(directions), side, for_s=_while(rng, 0.3, 4))]


def _bridge(stage: Stage, rng: Random, at_s: float) -> list[Event]:
    if stage.members < 3:
        return []
    return [Bridge(at_s, rng.randrange(stage.members), for_s=_while(rng, 1, 4))]


def _flap(stage: Stage, rng: Random, at_s: float) -> list[Event]:
    if stage.members < 2:
        return []
    node, peer = rng.sample(range(stage.members), 2)
    every_s = rng.choice((0.02, 0.05, 0.1, 0.3, 1.0))
    return [Flap(at_s, node, peer, every_s, for_s=_while(rng, 1, 3))]


def _clog(stage: Stage, rng: Random, at_s: float) -> list[Event]:
    if stage.members < 2:
        return []
    node, peer = rng.sample(range(stage.members), 2)
    return [Clog(at_s, node, peer, for_s=_while(rng, 0.1, 2))]


def _link(stage: Stage, rng: Random, at_s: float) -> list[Event]:
    if stage.members < 2:
        return []
    node, peer = rng.sample(range(stage.members), 2)
    changes: Changes = rng.choice(
        (
            (("delay_ms", float(rng.randint(20, 300))),),
            (("loss", round(rng.uniform(0.1, 0.9), 2)),),
            (("reorder", round(rng.uniform(0.2, 1), 2)), ("jitter_ms", float(rng.randint(5, 50)))),
        )
    )
    return [LinkQuality(at_s, node, peer, changes, for_s=_while(rng, 1, 4))]


# --- nodes ------------------------------------------------------------------------------------------------------------


def _crash(stage: Stage, rng: Random, at_s: float) -> list[Event]:
    return [_one_crash(rng, at_s, rng.randrange(stage.members))]


def _leader_crash(_: Stage, rng: Random, at_s: float) -> list[Event]:
    return [_one_crash(rng, at_s, "leader")]


def _one_crash(rng: Random, at_s: float, node: Target) -> Crash:
    return Crash(at_s, node, for_s=_while(rng, 0, 2), in_write=rng.random() < 0.5)


def _blackout(stage: Stage, rng: Random, at_s: float) -> list[Event]:
    """All at one instant, or all within a few milliseconds, back one by one."""
    if rng.random() < 0.3:
        return [Blackout(at_s, for_s=_while(rng, 0, 2))]
    nodes = list(range(stage.members))
    rng.shuffle(nodes)
    back_s = 0.0
    events: list[Event] = []
    for node in nodes:
        back_s += rng.expovariate(1)
        events.append(Crash(at_s, node, for_s=round(back_s, 3), in_write=not events))
        at_s = round(at_s + rng.uniform(0, 0.005), 4)
    return events


def _pause(stage: Stage, rng: Random, at_s: float) -> list[Event]:
    for_s = _while(rng, 0.2, 2)
    if rng.random() < 0.3:
        # A leader that wakes up deposed and cut off: nobody tells it that what it remembers is old (etcd #20418).
        asleep = Pause(round(at_s + 0.01, 3), "leader", for_s=round(for_s + 3, 3))
        return [Cut(at_s, "out", ("leader",), for_s=round(for_s + 4, 3)), asleep]
    node: Target = "leader" if rng.random() < 0.5 else rng.randrange(stage.members)
    return [Pause(at_s, node, for_s=for_s)]


def _clock(stage: Stage, rng: Random, at_s: float) -> list[Event]:
    node = rng.randrange(stage.members)
    draw = rng.random()
    if draw < 0.3:
        return [Drift(at_s, node, round(rng.uniform(-1e-3, 1e-3), 6))]
    if draw < 0.6 and stage.liar is not None:
        return [SetClock(at_s, stage.liar, rng.choice((-_HOUR_MS, _HOUR_MS)))]
    return [SetClock(at_s, node, rng.randint(-_SKEW_MS_MAX, _SKEW_MS_MAX))]


def _transfer(stage: Stage, rng: Random, at_s: float) -> list[Event]:
    return [Transfer(at_s, rng.randrange(stage.voters))]


def _members(stage: Stage, rng: Random, at_s: float) -> list[Event]:
    node = rng.randrange(stage.members)
    return [AddVoter(at_s, node) if rng.random() < 0.6 else RemoveVoter(at_s, node)]


# --- disks ------------------------------------------------------------------------------------------------------------


def _slow(stage: Stage, rng: Random, at_s: float) -> list[Event]:
    sync_ms = rng.choice((20, 100, 500, 2_000))
    return [SlowDisk(at_s, rng.randrange(stage.voters), sync_ms, for_s=_while(rng, 0.5, 4))]


def _disk_error(stage: Stage, rng: Random, at_s: float) -> list[Event]:
    return [DiskError(at_s, rng.randrange(stage.members), for_s=_while(rng, 0.5, 2))]


def _disk_full(stage: Stage, rng: Random, at_s: float) -> list[Event]:
    return [DiskFull(at_s, rng.randrange(stage.members), for_s=_while(rng, 0.5, 4))]


def _disk_lies(stage: Stage, rng: Random, at_s: float) -> list[Event]:
    """A disk that lies shows it only when its power is lost: so it is."""
    if stage.liar is None:
        return []
    crash_s = round(at_s + rng.uniform(0.5, 10), 3)
    return [DiskLies(at_s, stage.liar), Crash(crash_s, stage.liar, for_s=_while(rng, 0, 2))]


def _bit_rot(stage: Stage, _: Random, at_s: float) -> list[Event]:
    return [BitRot(at_s, stage.liar)] if stage.liar is not None else []


def _while(rng: Random, least_s: float, mean_s: float) -> float:
    return round(least_s + rng.expovariate(1) * mean_s, 3)


_KINDS: Final[Mapping[str, _Kind]] = {
    "cut": _Kind(_cut, (3, 20)),
    "bridge": _Kind(_bridge, (10, 40)),
    "flap": _Kind(_flap, (5, 30)),
    "clog": _Kind(_clog, (3, 20)),
    "link": _Kind(_link, (5, 20)),
    "crash": _Kind(_crash, (3, 20)),
    "leader-crash": _Kind(_leader_crash, (5, 30)),
    "blackout": _Kind(_blackout, (10, 60)),
    "pause": _Kind(_pause, (5, 30)),
    "clock": _Kind(_clock, (5, 30)),
    "transfer": _Kind(_transfer, (3, 20)),
    "members": _Kind(_members, (5, 20)),
    "slow": _Kind(_slow, (3, 20)),
    "disk-error": _Kind(_disk_error, (10, 40)),
    "disk-full": _Kind(_disk_full, (10, 40)),
    "disk-lies": _Kind(_disk_lies, (15, 60)),
    "bit-rot": _Kind(_bit_rot, (20, 60)),
}
DRAWN: Final[Mapping[Tier, frozenset[str]]] = {
    "a": frozenset(_KINDS) - {"bit-rot", "disk-lies"},
    "b": frozenset(_KINDS) - {"members"},
}
"""The kinds that `mixed` draws for each engine; a story may have any that its engine carries out."""
