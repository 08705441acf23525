"""A guided random search of the model: deeper, wider and with more that goes wrong than can be looked at exhaustively.

A run draws its members, then moves until nothing is left or it was long enough. What it is fond of is drawn too (swarm
testing: Groce et al., 2012), and for a while at a time only some of the members can be reached. Every run is its number:
number n of seed s is the same run for ever, whoever ran before.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from simulations.certificate_model_guards import Act, Move
from simulations.certificate_model_rules import Rule
from simulations.certificate_model_search import Finding, Model
from simulations.certificate_model_settings import draw_setting
from simulations.certificate_model_settling import Settling
from simulations.certificate_model_states import Bounds, Kind, Role, World, members_of

_STEPS_MAX: Final = 90
_SETTLE_EVERY: Final = 8
"""So many runs for each that is led to its end, which takes as long as several."""
_REIGNS: Final = (0.0, 0.0, 0.1, 0.95)
_CUTS: Final = (0.05, 0.12, 0.3)
_OPTIONAL: Final = (Act.PROPOSE, Act.VOTE, Act.LEARN, Act.BELIEVE, Act.CRASH, Act.LOSE)
_UNREST: Final = (Act.STAND, Act.GRANT, Act.CRASH, Act.LOSE)
"""What does not happen while it is calm and somebody leads: without calm few blocks get to the end of their way."""
_LEFT_OUT: Final = 0.15
_PART_WAY: Final = 0.4
_STALL: Final = "stall: nobody lied, everybody is back, and nothing becomes final any more"
_WEIGHTS: Final = {
    Act.STAND: 1.5,
    Act.GRANT: 6.0,
    Act.LEAD: 10.0,
    Act.PROPOSE: 3.0,
    Act.ACKNOWLEDGE: 10.0,
    Act.VOTE: 6.0,
    Act.LEARN: 4.0,
    Act.BELIEVE: 2.0,
    Act.CRASH: 0.3,
    Act.LOSE: 0.2,
    Act.REJOIN: 5.0,
}


@dataclass(slots=True)
class Tally:
    """What a search has done.

    `hostile`: settled runs with a liar and without a loss; `split`: those after which nothing becomes final without its help.
    """

    runs: int = 0
    steps: int = 0
    seconds: float = 0.0
    hostile: int = 0
    split: int = 0
    situations: Counter[str] = field(default_factory=Counter)
    finding: Finding | None = None
    found_in: int | None = None
    model: Model | None = None


class Run:
    """One run: the model that it drew, and the moves it makes."""

    def __init__(
        self,
        seed: int,
        number: int,
        without: frozenset[Rule] = frozenset(),
        *,
        may_lie: bool = True,
        promise: str = "",
    ) -> None:
        self._rng = random.Random(f"{seed}/{number}")
        rng = self._rng
        setting = draw_setting(rng, may_lie=may_lie)
        bounds = Bounds(
            terms=rng.choice((2, 3, 4, 6, 9)),
            heights=rng.choice((2, 3, 4, 6, 9)),
            stands=rng.choice((3, 8, 20)),
            lying_tips=rng.choice((1, 2)),
            crashes=1,
            losses=rng.choice((0, 1)) if setting.stands_a_loss() else 0,
            part_way=rng.random() < _PART_WAY,
        )
        self.model = Model(setting, bounds, without, promise=promise)
        self.world = self.model.first_world()
        self.trace: list[Move] = []
        weights = {act: weight * 2 ** rng.uniform(-2, 2) for act, weight in _WEIGHTS.items()}
        self._inverse_weights = {
            act: 1 / weight
            for act, weight in weights.items()
            if act not in _OPTIONAL or rng.random() > _LEFT_OUT
        }
        self._steps = rng.randrange(20, _STEPS_MAX)
        self._highest, self._calm, self._is_calm = rng.random(), rng.random(), True
        self._reigns, self._cut = rng.choice(_REIGNS), rng.choice(_CUTS)
        self._broken: str | None = None
        self._awake = setting.honest

    def go(self) -> str | None:
        """Make moves until a promise is broken, which is returned, or the run is over."""
        rng, everybody = self._rng, self.model.setting.honest
        while self._broken is None and len(self.trace) < self._steps:
            if rng.random() < self._cut:
                self._awake = self._reachable()
                self._is_calm = rng.random() < self._calm
            if rng.random() < self._reigns:
                self._awake = self._reachable()
                self._reign()
                continue
            move = self._choose(self._awake)
            if move is not None:
                self._take(move)
            elif self._awake != everybody:
                self._awake = everybody
            elif self._is_calm:
                self._is_calm = False
            else:
                break
        return self._broken

    def _take(self, move: Move) -> None:
        self.trace.append(move)
        self.world, self._broken = self.model.steps.after(self.world, move)

    def _reign(self) -> None:
        """Let one of those who can be reached lead a term, and some of them follow for a while: what time-outs aim at."""
        liar = self.model.setting.liar
        if liar >= 0 and self._rng.random() < 0.5:
            self._follow_liar(liar)
            return
        candidate = self._rng.choice(self._awake)
        if self.world.nodes[candidate].role is Role.LEADER:
            self._take(Move(Act.CRASH, candidate))
        highest = max(self.world.nodes[member].term for member in self._awake)
        while self.world.nodes[candidate].term <= highest:
            if not self._take_one(candidate, Act.STAND):
                return
        for member in self._awake:
            self._take_one(member, Act.GRANT, lambda move: move.other == candidate)
        if self._take_one(candidate, Act.LEAD):
            self._follow(candidate)

    def _follow_liar(self, liar: int) -> None:
        """Let those who can be reached elect the liar, with a tip and in a term that it chooses, and follow it for a while."""
        wanted: tuple[int, int] | None = None
        for member in self._awake:
            granting = self.model.moves.possible(self.world, Act.GRANT, (member,))
            moves = [move for move in granting if move.other == liar]
            if wanted is None and moves:
                move = self._rng.choice(moves)
                wanted = move.block, move.detail
            for move in moves:
                if (move.block, move.detail) == wanted and self._broken is None:
                    self._take(move)
        self._follow(liar)

    def _follow(self, leader: int) -> None:
        """Let the leader make some blocks, and some of those who can be reached acknowledge, vote and learn some of them."""
        rng, chance = self._rng, self._rng.choice((0.0, 0.5, 0.9))
        own = leader in self._awake and self._take_one(leader, Act.ACKNOWLEDGE)
        while own and rng.random() < 0.5:
            own = self._take_one(leader, Act.PROPOSE) and self._take_one(leader, Act.ACKNOWLEDGE)
        for member in self._awake:
            if member != leader and rng.random() < chance:
                self._take_one(member, Act.ACKNOWLEDGE, lambda move: self._made_by(move.other) == leader)
        for act in (Act.VOTE, Act.LEARN):
            chance = rng.choice((0.0, 0.0, 0.5, 0.9))
            for member in self._awake:
                if rng.random() < chance:
                    self._take_one(member, act)

    def _take_one(self, member: int, act: Act, only: Callable[[Move], bool] = lambda _: True) -> bool:
        """Take one of a member's moves of a kind; return whether there was one, and no promise was broken before."""
        moves = [move for move in self.model.moves.possible(self.world, act, (member,)) if only(move)]
        if self._broken is not None or not moves:
            return False
        self._take(self._pick(moves))
        return True

    def _made_by(self, block: int) -> int:
        return self.model.chain.leader[block]

    def _reachable(self) -> tuple[int, ...]:
        honest, rng = self.model.setting.honest, self._rng
        # A bare majority half the time: those left behind are who forks and overtakes.
        count = len(honest) // 2 + 1 if rng.random() < 0.5 else rng.randint(1, len(honest))
        return tuple(rng.sample(honest, count))

    def _choose(self, members: tuple[int, ...]) -> Move | None:
        """Return a move of one of the members, or None when they have none."""
        rng, weights = self._rng, self._inverse_weights
        nodes = (self.world.nodes[member] for member in self.model.setting.honest)
        if self._is_calm and any(node.role is Role.LEADER for node in nodes):
            weights = {act: weight for act, weight in weights.items() if act not in _UNREST}
        for member in rng.sample(members, len(members)):
            # A weighted order without replacement (Efraimidis and Spirakis, 2006).
            for act in sorted(weights, key=lambda act: rng.random() ** weights[act], reverse=True):
                moves = list(self.model.moves.possible(self.world, act, (member,)))
                if moves:
                    return self._pick(moves)
        return None

    def _pick(self, moves: list[Move]) -> Move:
        """Return one of the moves: of one candidate, of one kind of block, and half the time about the highest block."""
        rng, height = self._rng, self.model.chain.height
        if moves[0].act in (Act.GRANT, Act.PROPOSE):
            other = rng.choice(sorted({move.other for move in moves}))
            moves = [move for move in moves if move.other == other]
        if rng.random() < self._highest:
            highest = max(height[move.block] for move in moves)
            moves = [move for move in moves if height[move.block] == highest]
        return rng.choice(moves)


def walk(
    *,
    seed: int,
    runs: int,
    seconds: float,
    without: frozenset[Rule] = frozenset(),
    may_lie: bool = True,
    first: int = 0,
    promise: str = "",
) -> Tally:
    """Make runs until there were so many, the time is over, or one breaks the promise (any, when it is empty); that one is shortened."""
    began, tally = time.perf_counter(), Tally()
    for number in range(first, first + runs):
        if time.perf_counter() - began > seconds:
            break
        run = Run(seed, number, without, may_lie=may_lie, promise=promise)
        broken = run.go()
        tally.runs += 1
        tally.steps += len(run.trace)
        if broken is None:
            broken = _settled(run, tally) if number % _SETTLE_EVERY == 0 else None
            _note(run, tally)
        if broken is not None and broken.startswith(promise):
            tally.found_in, tally.model = number, run.model
            tally.finding = shortened(run.model, Finding(broken, tuple(run.trace)))
            break
    tally.seconds = time.perf_counter() - began
    return tally


def _settled(run: Run, tally: Tally) -> str | None:
    """Return the sentence of a stall, or None; a liar's is only counted."""
    goes_on = Settling(run.model.rules).goes_on(run.world)
    if run.model.setting.liar < 0:
        return None if goes_on else _STALL
    if not any(
        node.incarnation for node in run.world.nodes
    ):  # a silent member and a silent liar are one too many
        tally.hostile += 1
        tally.split += not goes_on
    return None


def _note(run: Run, tally: Tally) -> None:
    """Count what was met: a search that never gets there proves nothing."""
    world, chain, situations = run.world, run.model.chain, tally.situations
    nodes = [world.nodes[member] for member in run.model.setting.honest]
    kinds = Counter(chain.blocks[block].kind for block in members_of(world.final))
    situations["a block of a later term is final"] += any(
        chain.term[block] > 1 for block in members_of(world.final)
    )
    situations["a switch is final"] += kinds[Kind.SWITCH] > 0
    situations["two switches are final"] += kinds[Kind.SWITCH] > 1
    situations["a member came back by its Rejoin block"] += any(
        node.incarnation and not node.is_silent for node in nodes
    )
    situations["an honest member voted on two branches"] += any(
        chain.conflict(one.block, other.block)
        for node in nodes
        for one in node.statements.votes
        for other in node.statements.votes
    )
    situations["two branches are proven"] += any(
        chain.conflict(one, other) for one in members_of(world.proven) for other in members_of(world.final)
    )


# --- the smallest run ---------------------------------------------------------------------------------------------------


def shortened(model: Model, finding: Finding) -> Finding:
    """Return what is left when every move without which the same kind of promise is broken has been taken out."""
    best, size = finding, max(1, len(finding.trace) // 2)
    is_stall = finding.category == "stall"
    while size:
        start = len(best.trace) - size
        while start >= 0:
            shorter = _replayed(model, best.trace[:start] + best.trace[start + size :], settles=is_stall)
            if shorter is not None and shorter.category == finding.category:
                best = shorter
            start = min(start - size, len(best.trace) - size)
        size //= 2
    return best


def _replayed(model: Model, trace: tuple[Move, ...], *, settles: bool) -> Finding | None:
    """Take those moves of a trace that are possible; return what they break, or that nothing goes on after them."""
    world: World = model.first_world()
    taken: list[Move] = []
    for move in trace:
        if move not in model.moves.possible(world, move.act):
            continue
        taken.append(move)
        world, broken = model.steps.after(world, move)
        if broken is not None:
            return Finding(broken, tuple(taken))
    if settles and not Settling(model.rules).goes_on(world):
        return Finding(_STALL, tuple(taken))
    return None
