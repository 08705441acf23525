"""Every world of the model within bounds, breadth first: the first broken promise comes with a shortest way to it."""

import time
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from simulations.certificate_model_guards import Move
from simulations.certificate_model_moves import Moves
from simulations.certificate_model_rules import Rule, Rules
from simulations.certificate_model_states import Bounds, Chain, Grant, Role, Setting, World, first_world
from simulations.certificate_model_steps import Steps
from simulations.certificate_model_symmetry import IDENTITY, Key, Symmetry

_CLOCK_EVERY: Final = 256


class Model:
    """One setting under the rules in force: its chain, its moves and what they lead to.

    `promise`: how a sentence begins that is looked for; other promises may be broken on the way. All are, when it is empty.
    """

    def __init__(
        self,
        setting: Setting,
        bounds: Bounds,
        without: Iterable[Rule] = (),
        *,
        promise: str = "",
        convicts: bool = True,
    ) -> None:
        self.setting = setting
        self.bounds = bounds
        self.chain = Chain(setting)
        self.rules = Rules(setting, self.chain, without)
        self.moves = Moves(self.rules, bounds)
        self.promise = promise
        self.steps = Steps(self.moves, promise, convicts=convicts)

    def first_world(self) -> World:
        """Return the world before anything has happened."""
        return first_world(self.setting)

    def play(self, trace: Iterable[Move]) -> tuple[World, str | None]:
        """Take the moves of a trace from the first world; stop at the first broken promise.

        Raises:
            ValueError: a move is not possible where it stands.
        """
        world, broken = self.first_world(), None
        for move in trace:
            if broken is not None:
                raise ValueError(f"{move} comes after a broken promise: {broken}")
            if move not in self.moves.possible(world, move.act):
                raise ValueError(f"not possible here: {move}")
            world, broken = self.steps.after(world, move)
        return world, broken


@dataclass(frozen=True, slots=True)
class Finding:
    """A promise that is broken, and the moves that lead there from the first world."""

    sentence: str
    trace: tuple[Move, ...]

    @property
    def category(self) -> str:
        """Return what kind of promise it is: the words before the colon, and for a conviction the evidence."""
        kind, _, rest = self.sentence.partition(": ")
        return f"{kind} {rest.split()[0]}" if kind == "conviction" else kind


@dataclass(slots=True)
class Report:
    """What an exhaustive search has seen. `is_complete`: nothing within the bounds was left out."""

    states: int = 0
    transitions: int = 0
    depth: int = 0
    seconds: float = 0.0
    is_complete: bool = False
    renamings: int = 1
    acts: Counter[str] = field(default_factory=Counter)
    finding: Finding | None = None


class Search:
    """One search of all worlds of a model; `root` are moves made before it begins."""

    def __init__(self, model: Model, *, root: tuple[Move, ...] = (), merges: bool = True) -> None:
        self.model = model
        self.report = Report()
        self._root = root
        self._may_forget = not model.rules.without & {Rule.DURABLE, Rule.REJOIN, Rule.EXACT_GRANTS}
        self._symmetry = Symmetry(model.setting, model.chain, merges=merges)
        self._keys: list[Key] = []
        self._numbers: dict[Key, int] = {}
        self._parents = array("l")
        self._moves: list[Move] = []
        self._move_numbers: dict[Move, int] = {}
        self._how = array("l")
        self._renamings = array("h")

    def run(self, *, states: int, seconds: float) -> Report:
        """Look at worlds until all are seen, one breaks a promise, or there are so many or so much time has passed."""
        began, report = time.perf_counter(), self.report
        world, broken = self.model.play(self._root)
        assert broken is None, broken
        self._meet(world, -1, -1)
        at, level_ends = 0, 1
        while at < len(self._keys) and report.finding is None and len(self._keys) < states:
            if not at % _CLOCK_EVERY and time.perf_counter() - began > seconds:
                break
            if at == level_ends:
                report.depth, level_ends = report.depth + 1, len(self._keys)
            self._look(at)
            at += 1
        report.is_complete = at == len(self._keys) and report.finding is None
        report.states, report.renamings = len(self._keys), len(self._symmetry.renamings)
        report.seconds = time.perf_counter() - began
        return report

    def _look(self, at: int) -> None:
        """Take every move out of a world."""
        report, steps = self.report, self.model.steps
        world = self._symmetry.world(self._keys[at])
        for move in self.model.moves.possible(world):
            report.transitions += 1
            report.acts[move.act.name.lower()] += 1
            after, broken = steps.after(world, move)
            if broken is not None:
                report.finding = self._finding((*self._way(at), (move, IDENTITY)))
                return
            number = self._move_numbers.setdefault(move, len(self._moves))
            if number == len(self._moves):
                self._moves.append(move)
            self._meet(after, at, number)

    def _meet(self, world: World, parent: int, how: int) -> None:
        known = self._symmetry.known(self._without_the_past(world) if self._may_forget else world)
        if self._numbers.setdefault(known.key, len(self._keys)) < len(self._keys):
            return
        self._keys.append(known.key)
        self._parents.append(parent)
        self._how.append(how)
        self._renamings.append(known.renaming)

    def _without_the_past(self, world: World) -> World:
        """Return the world without grants that nobody can use any more: those to honest members that have moved on.

        Nothing convicts by them either: whoever gave one has spent its vote of that term, and remembers that.
        """
        for member in self.model.setting.honest:
            node = world.nodes[member]
            grants = tuple([grant for grant in node.statements.grants if self._is_of_use(world, grant)])
            if len(grants) < len(node.statements.grants):
                statements = node.statements._replace(grants=grants)
                world = world.with_node(member, node._replace(statements=statements))
        return world

    def _is_of_use(self, world: World, grant: Grant) -> bool:
        if grant.candidate == self.model.setting.liar:
            return True
        candidate = world.nodes[grant.candidate]
        return candidate.role is Role.CANDIDATE and candidate.term == grant.term

    def _way(self, at: int) -> tuple[tuple[Move, int], ...]:
        """Return the moves to a world, each with the renaming that was done after it; the first is that of the root."""
        way: list[tuple[Move, int]] = []
        while at > 0:
            way.append((self._moves[self._how[at]], self._renamings[at]))
            at = self._parents[at]
        return tuple(reversed(way))

    def _finding(self, way: tuple[tuple[Move, int], ...]) -> Finding:
        """Return the moves with the names as they were at the root, played once more to have the sentence in them."""
        symmetry, renamed = self._symmetry, self._renamings[0]
        trace = list(self._root)
        for move, renaming in way:
            trace.append(symmetry.move(symmetry.inverse(renamed), move))
            renamed = symmetry.then(renamed, renaming)
        _, sentence = self.model.play(trace)
        assert sentence is not None, "a way found is a way that can be gone again"
        return Finding(sentence, tuple(trace))
