"""What goes wrong, and when: a plan drawn from a seed, carried out against the wall clock.

The plan is the same for a seed; what the machine does between two of its lines is not, so that a failing seed is a
good place to look, not a recording.
"""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.real.daemons import MEMBERS, VOTERS, Consortium

Kind = Literal["kill", "kill-all", "stop", "deaf", "mute", "one-way", "isolate", "slow-disk"]
_KINDS: tuple[tuple[Kind, int], ...] = (
    ("kill", 6), ("kill-all", 1), ("stop", 4), ("deaf", 3), ("mute", 3), ("one-way", 3), ("isolate", 2), ("slow-disk", 3),
)  # fmt: skip
"""Kind of fault, and how often it is drawn beside the others."""
_LEADER_SHARE = 0.5
"""How often the leader is chosen, whoever it is then."""
_TOGETHER_SHARE = 0.3
"""How often a second fault begins beside the first."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `target` is a voter's number, or None for whoever leads then. Times are in seconds."""

    kind: Kind
    target: int | None
    other: int
    """The second daemon of a line that is cut one way: an offset from the target, 1 … members - 1."""
    seconds: float
    writes_per_s: int

    def __str__(self) -> str:
        whom = "leader" if self.target is None else MEMBERS[self.target][0]
        return f"{self.kind} {'everybody' if self.kind == 'kill-all' else whom} for {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Round:
    """Faults that begin together, and how long it is calm after they have ended."""

    faults: tuple[Fault, ...]
    calm_s: float

    @property
    def seconds(self) -> float:
        """How long the faults last, at most."""
        return max(fault.seconds for fault in self.faults)


def plan(seed: int, seconds: float) -> tuple[Round, ...]:
    """Return the rounds that fill `seconds`."""
    draw = random.Random(seed)
    rounds: list[Round] = []
    left = seconds
    while left > 0:
        faults = [_fault(draw)]
        if draw.random() < _TOGETHER_SHARE:
            faults.append(_fault(draw))
        drawn = Round(tuple(faults), draw.uniform(0.5, 4.0))
        rounds.append(drawn)
        left -= drawn.seconds + drawn.calm_s
    return tuple(rounds)


def _fault(draw: random.Random) -> Fault:
    (kind,) = draw.choices([kind for kind, _ in _KINDS], [weight for _, weight in _KINDS])
    target = None if draw.random() < _LEADER_SHARE else draw.randrange(VOTERS)
    seconds = draw.uniform(0.2, 3.0) if kind.startswith("kill") else draw.uniform(1.0, 7.0)
    return Fault(kind, target, draw.randrange(1, len(MEMBERS)), seconds, draw.choice((8, 15, 30)))


def carry_out(
    consortium: Consortium, drawn: Round, say: Callable[[str], None], stop: threading.Event
) -> None:
    """Begin the faults of a round, wait, heal, and let it be calm; return early when told to stop."""
    leader = consortium.leader()
    for fault in drawn.faults:
        say(str(fault))
        target = fault.target if fault.target is not None else leader if leader is not None else 0
        _begin(consortium, fault, target)
    stop.wait(drawn.seconds)
    consortium.heal()
    stop.wait(drawn.calm_s)


def _begin(consortium: Consortium, fault: Fault, target: int) -> None:
    others = [number for number in range(len(MEMBERS)) if number != target]
    match fault.kind:
        case "kill":
            consortium.kill(target)
        case "kill-all":
            for number in range(len(MEMBERS)):
                consortium.kill(number)
        case "stop":
            consortium.pause(target)
        case "slow-disk":
            consortium.slow_down(target, fault.writes_per_s)
        case "one-way":
            consortium.links.cut(target, (target + fault.other) % len(MEMBERS))
        case "deaf" | "mute" | "isolate":
            for number in others:
                if fault.kind != "mute":
                    consortium.links.cut(number, target)
                if fault.kind != "deaf":
                    consortium.links.cut(target, number)
