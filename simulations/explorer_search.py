"""The search: every world that can be reached within bounds, each looked at once, with the invariants between nodes.

A world is packed into a byte string: three states of nodes, history, what is left of the bounds, and the messages in flight
as a sorted multiset, since any of them may come next. Visited worlds are kept whole; only the state of a node is known by a hash, of 128 bits.

Two kinds of steps are left out, because they show nothing new: a delivery that changes nothing and answers nothing, and
one to a node that is down. But for the bound on messages in flight, the world that keeps the message can do all that the
world without it can; `Budget.drops` is for that bound.
"""

import dataclasses
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

from simulations.explorer_history import Histories
from simulations.explorer_moves import NODES, VOTERS, Kind, Moves
from simulations.explorer_stage import Root

_HEAD: Final = NODES + 2
_CLOCK_EVERY: Final = 256


class Order(StrEnum):
    """Which known world is looked at next.

    BREADTH: the one nearest to its root. DEPTH: the one met last. DEVIATIONS: the one with the fewest steps other than the
    next delivery in a fixed order and what time alone brings (delay bounding: Emmi, Qadeer and Rakamarić, POPL 2011), which
    goes deep and still is exhaustive up to the number of deviations reached.
    """

    BREADTH = "breadth"
    DEPTH = "depth"
    DEVIATIONS = "deviations"


class Way(IntEnum):
    """How a step happens. SLOW: the write that it brings about stays under way. DUPLICATE: the message stays in flight too."""

    PLAIN = 0
    SLOW = 1
    DUPLICATE = 2
    DROP = 3


class Budget(NamedTuple):
    """How often each thing may happen along one trace. A loss needs no budget: a message may stay in flight for ever."""

    time_outs: int = 3
    proposals: int = 1
    crashes: int = 1
    drops: int = 0
    duplicates: int = 0
    slow_writes: int = 1
    heartbeats: int = 1
    transfers: int = 0
    reads: int = 0
    notices: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where a search ends: `depth` steps after its root, `states` worlds, `seconds`; and what is no longer entered.

    Messages of the kinds in `lost` never arrive, as tags of the wire: fewer worlds, deeper searches.
    """

    depth: int = 40
    states: int = 300_000
    seconds: float = 600.0
    terms: int = 2
    in_flight: int = 8
    lost: frozenset[str] = frozenset()
    budget: Budget = dataclasses.field(default_factory=Budget)


@dataclass(frozen=True, slots=True)
class Violation:
    """What must never be, and the steps that lead there from the start, as `Search.replay` takes them."""

    sentence: str
    trace: tuple[str, ...]


@dataclass(slots=True)
class Report:
    """What a search has seen. `beyond` counts steps that were not taken, by the bound that forbade them.

    `levels`: all worlds at fewer steps (BREADTH) or deviations (DEVIATIONS) than this from a root have been looked at.
    """

    states: int = 0
    transitions: int = 0
    depth: int = 0
    levels: int = 0
    frontier: int = 0
    seconds: float = 0.0
    node_states: int = 0
    core_steps: int = 0
    pruned: int = 0
    beyond: Counter[str] = dataclasses.field(default_factory=Counter)
    situations: Counter[str] = dataclasses.field(default_factory=Counter)
    violations: list[Violation] = dataclasses.field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every world within the bounds was looked at: no count, depth or time ended the search."""
        return self.frontier == 0 and not self.beyond["depth"]


class _Step(NamedTuple):
    action: int
    after: bytes
    sentence: str | None


_EXPECTED: Final = (Kind.SILENCE, Kind.RESTART, Kind.WRITE)
"""What time alone brings: no deviation."""
_SPENDS: Final = {
    Kind.TIME_OUT: "time_outs",
    Kind.HEARTBEAT: "heartbeats",
    Kind.PROPOSE: "proposals",
    Kind.CRASH: "crashes",
    Kind.CRASH_UNAPPLIED: "crashes",
    Kind.TRANSFER_NEXT: "transfers",
    Kind.TRANSFER_PREVIOUS: "transfers",
    Kind.READ: "reads",
    Kind.NOTICE: "notices",
}


class _Frontier:
    """Known worlds that nobody has looked at, by cost; one that was met again by a cheaper way also stands where it stood.

    `count`: worlds, each once. `cost`: that of the world popped last, the least there is.
    """

    def __init__(self, *, last_first: bool) -> None:
        self._buckets: list[deque[int]] = [deque()]
        self._last_first = last_first
        self.cost = 0
        self.count = 0

    def push(self, index: int, cost: int) -> None:
        while len(self._buckets) <= cost:
            self._buckets.append(deque())
        self._buckets[cost].append(index)

    def pop(self) -> int:
        """Return one of the cheapest."""
        while not self._buckets[self.cost]:
            self.cost += 1
        bucket = self._buckets[self.cost]
        return bucket.pop() if self._last_first else bucket.popleft()


class Search:
    """One search of the worlds that can be reached from one root."""

    def __init__(
        self, bounds: Bounds, *, order: Order = Order.BREADTH, roles: tuple[str, ...] = VOTERS
    ) -> None:
        self.bounds = bounds
        self.moves = Moves(roles)
        self.histories = Histories(self.moves)
        self.report = Report()
        self._order = order
        self._budgets = [bounds.budget]
        self._budget_numbers = {bounds.budget: 0}
        self._spent: dict[tuple[int, str], int | None] = {}
        self._keys: list[bytes] = []
        self._parents = array("l")
        self._actions = array("q")
        self._depths = array("H")
        self._costs: dict[bytes, int] = {}
        self._root_trace: tuple[str, ...] = ()
        self._met: Counter[tuple[int, int, int, int]] = Counter()

    # --- the search -----------------------------------------------------------------------------------------------

    def run(self, root: Root) -> Report:
        """Look at everything reachable from `root`; return what was seen, ending at the first violation."""
        began, report, bounds = time.perf_counter(), self.report, self.bounds
        frontier = _Frontier(last_first=self._order is Order.DEPTH)
        key = array("I", [*root.nodes, root.history, 0, *sorted(root.in_flight)]).tobytes()
        self._root_trace = root.trace
        self._meet(key, 0, -1, 0, 0, frontier)
        looked = 0
        while frontier.count and not report.violations and len(self._costs) < bounds.states:
            looked += 1
            if not looked % _CLOCK_EVERY and time.perf_counter() - began > bounds.seconds:
                break
            self._look(frontier.pop(), frontier)
        report.frontier, report.levels = frontier.count, frontier.cost
        report.seconds = time.perf_counter() - began
        report.states = len(self._costs)
        report.node_states, report.core_steps = self.moves.node_states, self.moves.steps
        for world, count in self._met.items():
            for name in self.histories.situations(world):
                report.situations[name] += count
        return report

    def _look(self, index: int, frontier: _Frontier) -> None:
        """Take every step that leads out of a world."""
        key, costs, report = self._keys[index], self._costs, self.report
        base = frontier.cost
        if costs[key] != base:
            return  # met again, and looked at, by a cheaper way
        frontier.count -= 1
        depth = self._depths[index] + 1
        if depth > self.bounds.depth:
            report.beyond["depth"] += 1
            return
        is_first, order = True, self._order
        for action, after, sentence in self._steps(key):
            report.transitions += 1
            if sentence is not None:
                trace = (*self.trace(index), self.label(action))
                report.violations.append(Violation(sentence, trace))
                return
            cost = base
            if order is Order.BREADTH:
                cost += 1
            elif order is Order.DEVIATIONS:
                cost += not (is_first and _is_delivery(action)) and action >> 5 not in _EXPECTED
                is_first = False
            self._meet(after, cost, index, action, depth, frontier)

    def _meet(  # noqa: PLR0917 - once a step: names would cost more than the rest
        self, key: bytes, cost: int, parent: int, action: int, depth: int, frontier: _Frontier
    ) -> None:
        """Note a world that is new, or that was met in a more expensive way."""
        known = self._costs.get(key)
        if known is not None and known <= cost:
            return
        self._costs[key] = cost
        frontier.push(len(self._keys), cost)
        self._keys.append(key)
        self._parents.append(parent)
        self._actions.append(action)
        self._depths.append(depth)
        if known is not None:
            return
        frontier.count += 1
        self.report.depth = max(self.report.depth, depth)
        head = array("I", key[: 4 * _HEAD])
        views = self.moves.views
        self._met[views[head[0]], views[head[1]], views[head[2]], head[NODES]] += 1

    # --- steps ----------------------------------------------------------------------------------------------------

    def _steps(self, key: bytes) -> Iterator[_Step]:
        """Return the steps out of a world, as far as the bounds let them be taken."""
        world = array("I", key)
        in_flight = world[_HEAD:]
        before = -1
        for at, number in enumerate(in_flight):
            if number == before:
                continue  # another copy of the same message
            before = number
            rest = in_flight[:at] + in_flight[at + 1 :]
            target = self.moves.envelopes[number].target
            if self.moves.view[self.moves.views[world[target]]].is_up:
                code = Kind.DELIVER + number
                yield from self._step(world, target, code, rest, None)
                yield from self._duplicate(world, target, code, in_flight)
            left = self._spend(world[NODES + 1], "drops")
            if left is not None:
                action = _action(Kind.DELIVER + number, target, Way.DROP)
                yield _Step(action, _packed(world, left, rest), None)
        for n in range(NODES):
            for kind in self.moves.inputs[world[n]]:
                yield from self._step(world, n, kind, in_flight, kind)

    def _step(
        self, world: "array[int]", n: int, code: int, in_flight: "array[int]", kind: Kind | None
    ) -> Iterator[_Step]:
        """Yield the step in which node `n` takes an input, and the one in which the write it brings about is slow."""
        moves, state = self.moves, world[n]
        left: int | None = world[NODES + 1]
        if kind in _SPENDS:
            left = self._spend(world[NODES + 1], _SPENDS[kind])
            if left is None:
                return
        move = moves.move(state, code)
        if move.after == state and not move.sent and move.broken is None:
            self.report.pruned += 1
            return
        assert left is not None
        done = self._arrive(world, _action(code, n, Way.PLAIN), left, in_flight)
        if done is not None:
            yield done
        if move.wrote and kind is not Kind.WRITE:
            left = self._spend(left, "slow_writes")
            if left is not None:
                slow = self._arrive(world, _action(code, n, Way.SLOW), left, in_flight)
                if slow is not None:
                    yield slow

    def _duplicate(self, world: "array[int]", n: int, code: int, in_flight: "array[int]") -> Iterator[_Step]:
        """Yield the step in which a message arrives and stays in flight."""
        left = self._spend(world[NODES + 1], "duplicates")
        if left is not None:
            done = self._arrive(world, _action(code, n, Way.DUPLICATE), left, in_flight)
            if done is not None:
                yield done

    def _arrive(self, world: "array[int]", action: int, left: int, in_flight: "array[int]") -> _Step | None:
        """Return the step with its world, checked; None when a bound forbids it. `in_flight` is what remains under way."""
        moves, n = self.moves, action >> 2 & 7
        move = moves.move(world[n], action >> 5, slow=action & 3 == Way.SLOW)
        if move.broken is not None:
            return _Step(action, b"", move.broken)
        if move.sent:
            sent = [number for number in move.sent if moves.envelopes[number].kind not in self.bounds.lost]
            in_flight = array("I", sorted([*in_flight, *sent]))
            if len(in_flight) > self.bounds.in_flight:
                self.report.beyond["in_flight"] += 1
                return None
        after = array("I", world[:_HEAD])
        after[n], after[NODES + 1] = move.after, left
        if move.truncated:
            self.report.situations["a tail was truncated"] += 1
        if moves.views[move.after] != moves.views[world[n]] or move.asked or move.answers:
            if moves.view[moves.views[move.after]].term > self.bounds.terms:
                self.report.beyond["terms"] += 1
                return None
            views = tuple([moves.views[state] for state in after[:NODES]])
            history, sentence = self.histories.after(world[NODES], n, views, move)
            if sentence is not None:
                return _Step(action, b"", sentence)
            after[NODES] = history
        after.extend(in_flight)
        return _Step(action, after.tobytes(), None)

    def _spend(self, left: int, name: str) -> int | None:
        """Return the budget after one more of something, or None when there is no more of it."""
        key = left, name
        if key not in self._spent:
            budget = self._budgets[left]
            remaining: int = getattr(budget, name)
            if remaining <= 0:
                self._spent[key] = None
            else:
                spent = budget._replace(**{name: remaining - 1})
                number = self._spent[key] = self._budget_numbers.setdefault(spent, len(self._budgets))
                if number == len(self._budgets):
                    self._budgets.append(spent)
        return self._spent[key]

    # --- traces ---------------------------------------------------------------------------------------------------

    def trace(self, index: int) -> tuple[str, ...]:
        """Return the steps from the first world to a visited one."""
        labels: list[str] = []
        while self._parents[index] >= 0:
            labels.append(self.label(self._actions[index]))
            index = self._parents[index]
        return (*self._root_trace, *reversed(labels))

    def label(self, action: int) -> str:
        """Return a step as people read it and `replay` takes it; nodes are counted from 1."""
        code, n, way = action >> 5, action >> 2 & 7, Way(action & 3)
        if code < Kind.DELIVER:
            text = f"{Kind(code).name.lower()} {n + 1}"
        else:
            verb = {Way.DUPLICATE: "duplicate", Way.DROP: "drop"}.get(way, "deliver")
            text = f"{verb} {self.moves.envelopes[code - Kind.DELIVER].name}"
        return text + (" slow" if way is Way.SLOW else "")


def _action(code: int, n: int, way: Way) -> int:
    return code << 5 | n << 2 | way


def _is_delivery(action: int) -> bool:
    return action & 3 == Way.PLAIN and action >> 5 >= Kind.DELIVER


def _packed(world: "array[int]", left: int, in_flight: "array[int]") -> bytes:
    after = array("I", world[:_HEAD])
    after[NODES + 1] = left
    after.extend(in_flight)
    return after.tobytes()
