"""A world played by hand: how a search gets its roots, and how a trace is played again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from simulations.explorer_history import Histories
from simulations.explorer_moves import NODES, VOTERS, Kind, Moves

_SETTLE_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Root:
    """A world that a search begins in, and the steps that lead there from the first one."""

    nodes: tuple[int, ...]
    history: int
    in_flight: tuple[int, ...]
    trace: tuple[str, ...]


class Stage:
    """One world, changed step by step. `sentence` is the violation that the last step showed, or None."""

    def __init__(self, moves: Moves, histories: Histories) -> None:
        self._moves = moves
        self._histories = histories
        self._nodes = list(moves.start)
        self._history = histories.first
        self._in_flight: list[int] = []
        self._trace: list[str] = []
        self.sentence: str | None = None

    def root(self) -> Root:
        """Return the world as it is."""
        return Root(tuple(self._nodes), self._history, tuple(self._in_flight), tuple(self._trace))

    def play(self, step: str) -> None:
        """Take one step of a trace.

        Raises:
            ValueError: there is no such step in this world.
        """
        verb, _, rest = step.partition(" ")
        rest, slow = rest.removesuffix(" slow"), rest.endswith(" slow")
        self._trace.append(step)
        if verb in ("deliver", "duplicate", "drop"):
            number = self._find(rest)
            if verb != "duplicate":
                self._in_flight.remove(number)
            if verb != "drop":
                self._take(self._moves.envelopes[number].target, Kind.DELIVER + number, slow=slow)
            return
        n = int(rest) - 1 if rest.isdecimal() else NODES
        if verb.upper() not in Kind.__members__ or not 0 <= n < NODES:
            raise ValueError(f"not a step: {step}")
        kind = Kind[verb.upper()]
        if kind not in self._moves.inputs[self._nodes[n]]:
            raise ValueError(f"not possible now: {step}")
        self._take(n, kind, slow=slow)

    def settle(self, *, until: Callable[["Stage"], bool] = lambda _: False) -> None:
        """Deliver all messages, oldest first, until none is left or `until` holds."""
        for _ in range(_SETTLE_MAX):
            up = [number for number in self._in_flight if self._is_up(self._moves.envelopes[number].target)]
            if not up or until(self):
                return
            self.play(f"deliver {self._moves.envelopes[up[0]].name}")
        raise ValueError("the world never comes to rest")

    def lose(self) -> None:
        """Drop all messages."""
        for number in tuple(self._in_flight):
            self.play(f"drop {self._moves.envelopes[number].name}")

    def deliver_from(self, n: int) -> None:
        """Deliver what node `n`, counted from 1, has in flight now."""
        for number in tuple(self._in_flight):
            if self._moves.envelopes[number].source == n - 1:
                self.play(f"deliver {self._moves.envelopes[number].name}")

    def leads(self, n: int) -> bool:
        """Return whether node `n`, counted from 1, leads."""
        return self._moves.view[self._moves.views[self._nodes[n - 1]]].leads

    def has_sent(self, n: int) -> bool:
        """Return whether a message of node `n`, counted from 1, is in flight."""
        return any(self._moves.envelopes[number].source == n - 1 for number in self._in_flight)

    def _is_up(self, n: int) -> bool:
        return self._moves.view[self._moves.views[self._nodes[n]]].is_up

    def _find(self, name: str) -> int:
        for number in self._in_flight:
            if self._moves.envelopes[number].name == name:
                return number
        raise ValueError(f"no such message is in flight: {name}")

    def _take(self, n: int, code: int, *, slow: bool) -> None:
        if not self._is_up(n) and code != Kind.RESTART:
            raise ValueError(f"node {n + 1} is down")
        move = self._moves.move(self._nodes[n], code, slow=slow)
        self.sentence = move.broken
        if move.broken is not None:
            return
        self._nodes[n] = move.after
        self._in_flight.extend(move.sent)
        views = tuple([self._moves.views[state] for state in self._nodes])
        self._history, self.sentence = self._histories.after(self._history, n, views, move)


def _led(stage: Stage) -> None:
    """Node 1 leads term 1, and everybody has its opening."""
    stage.play("time_out 1")
    stage.settle()


def _cut_off(stage: Stage) -> None:
    """Node 1 has besides a block that nobody else will hear of from it."""
    _led(stage)
    stage.play("propose 1")
    stage.lose()


def _half_way(stage: Stage) -> None:
    """Nodes 1 and 2 have a block besides, and neither knows it of the other."""
    _led(stage)
    stage.play("propose 1")
    stage.settle(until=lambda world: world.has_sent(2))
    stage.lose()


def _unaware(stage: Stage) -> None:
    """Node 1 has committed that block, and node 2 does not know; node 3 has never heard of it."""
    _led(stage)
    stage.play("propose 1")
    stage.settle(until=lambda world: world.has_sent(2))
    stage.deliver_from(2)
    stage.lose()


def _behind(stage: Stage) -> None:
    """Node 3 was down while a block was committed."""
    _led(stage)
    stage.play("crash 3")
    stage.play("propose 1")
    stage.settle()
    stage.lose()
    stage.play("restart 3")


def _figure_8(stage: Stage) -> None:
    """Node 1 had such a block and crashed, node 3 opened term 2 alone and crashed; 1 is back (Raft §5.4.2, Figure 8 a to b)."""
    _cut_off(stage)
    stage.play("crash 1")
    stage.play("silence 2")
    stage.play("time_out 3")
    stage.settle(until=lambda world: world.leads(3))
    stage.lose()
    stage.play("crash 3")
    stage.play("restart 1")


ROOTS: Final[dict[str, tuple[Callable[[Stage], None], int]]] = {
    "start": (lambda _: None, 0),
    "led": (_led, 1),
    "cut-off": (_cut_off, 1),
    "half-way": (_half_way, 1),
    "unaware": (_unaware, 1),
    "behind": (_behind, 1),
    "figure-8": (_figure_8, 2),
    "witnessed": (_half_way, 1),
}
"""Where a search may begin, and how many terms have passed there."""
_WITNESSED: Final = frozenset({"witnessed"})


def roles_of(root: str) -> tuple[str, ...]:
    """Return what the nodes of a root are: voters, but for node 3 where a witness takes part."""
    return (*VOTERS[1:], "witness") if root in _WITNESSED else VOTERS


def root_of(name: str, moves: Moves, histories: Histories) -> Root:
    """Return the root of a name in ROOTS."""
    stage = Stage(moves, histories)
    ROOTS[name][0](stage)
    assert stage.sentence is None, stage.sentence
    return stage.root()
