"""One seed, from nothing to a verdict: its story is drawn, told, healed, and progress demanded.

`story_of` draws a story from a seed, `tell` carries a story out. Before each healing faults happen and clients use the
ledger. Then everything is made whole, clients stop, and within the story's `settle_s` virtual seconds every node must bring
a new transaction to its end and all must hold the same ledger. Long runs have many such rounds: faults for five sixths of
one, the rest in calm.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import trio

from protocol.identifiers import Digest, Height, NodeId
from simulations import checkers, determinism, faults
from simulations.executor import Executor, check_events, rounds_of
from simulations.faults import Stage
from simulations.history import Happening
from simulations.story import Event, Heal, Load, Story, Tier
from simulations.workload import Workload
from simulations.world import Node, World
from storage import keyspace
from storage.ledger_store import LedgerStore

ROUND_S = 120.0
SETTLE_S = 30.0
_FAULT_SHARE = 5 / 6
_LOOK_EVERY_S = 0.1
_PROBE_MS = 20_000

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What is simulated. `virtual_s` is how long the rounds last in virtual seconds.

    `keeps_history` has the verdict hold every event, for a picture.
    """

    seed: int
    virtual_s: float
    scenario: str = "mixed"
    voters: int = 3
    observers: int = 1
    real_signatures: bool = False
    tier: Tier = "b"
    keeps_history: bool = False
    witnesses: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of it. Everything but `real_seconds` depends on the options and the story alone."""

    options: Options
    history_sha256: str
    virtual_seconds: float
    real_seconds: float
    commits: int
    leader_changes: int
    acked: int
    events: dict[str, int]
    violations: tuple[str, ...]
    tail: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    happenings: tuple[Happening, ...] = ()
    story: Story | None = None

    def measure(self, name: str) -> int:
        """Return what an expectation of a story names: a figure, or how many events of a kind there were."""
        figures = {"commits": self.commits, "leader_changes": self.leader_changes, "acked": self.acked}
        return figures.get(name, self.events.get(name, 0))


def simulate(options: Options, progress: Progress = lambda _: None) -> Verdict:
    """Run one seed to its end or to its first violation. `progress` hears the virtual time after each round."""
    return tell(story_of(options), options, progress)


def simulate_one_of_many(options: Options) -> Verdict:
    """Run one seed; of a clean one return only what is counted, since there may be thousands of them."""
    verdict = simulate(options)
    return verdict if verdict.violations else dataclasses.replace(verdict, tail=(), log=(), story=None)


def story_of(options: Options) -> Story:
    """Return the story of a seed: everything that will happen, drawn in advance."""
    rng = determinism.stream(options.seed, "plans")
    members = options.voters + options.witnesses + options.observers
    rounds = max(1, round(options.virtual_s / ROUND_S))
    length_s = options.virtual_s / rounds
    liar = rng.randrange(options.voters)
    events: list[Event] = []
    for number in range(rounds):
        start_s, is_last = number * length_s, number == rounds - 1
        end_s = options.virtual_s if is_last else round(start_s + length_s * _FAULT_SHARE, 3)
        stage = Stage(options.tier, options.voters, members, start_s, end_s, liar)
        drawing = determinism.stream(options.seed, f"faults/{number}")
        events.extend(faults.draw(options.scenario, drawing, stage))
        if not is_last:
            events.append(Heal(end_s))
    return Story(
        seed=options.seed,
        tier=options.tier,
        nodes=options.voters,
        witnesses=options.witnesses,
        observers=options.observers,
        seconds=options.virtual_s,
        settle_s=SETTLE_S,
        load=Load(mean_s=rng.choice((0.3, 1.0, 3.0))),
        events=tuple(events),
    )


def options_of(story: Story, *, real_signatures: bool = False, keeps_history: bool = False) -> Options:
    """Return the options that a story stands for; its scenario is called `story`."""
    return Options(
        seed=story.seed,
        virtual_s=story.seconds,
        scenario="story",
        voters=story.nodes,
        witnesses=story.witnesses,
        observers=story.observers,
        real_signatures=real_signatures,
        tier=story.tier,
        keeps_history=keeps_history,
    )


def tell(story: Story, options: Options, progress: Progress = lambda _: None) -> Verdict:
    """Carry a story out, to its end or to its first violation. An expectation that does not hold is a violation.

    Raises:
        StoryError: the story has an event that its tier cannot carry out.
    """
    if story.tier == "a":
        from simulations.core_world import simulate_core  # noqa: PLC0415 - it speaks in the terms of this module

        verdict = simulate_core(
            options, story.events, quality=story.quality, load=story.load, settle_s=story.settle_s
        )
    else:
        check_events(story.events)
        verdict = _tell_whole_nodes(story, options, progress)
    broken = [
        f"expectation: {each.measure} {each.comparison} {each.value}, but it was {verdict.measure(each.measure)}"
        for each in story.expect
        if not each.holds(verdict.measure(each.measure))
    ]
    return dataclasses.replace(verdict, story=story, violations=(*verdict.violations, *broken))


def _tell_whole_nodes(story: Story, options: Options, progress: Progress) -> Verdict:
    started = perf_counter()
    with contextlib.nullcontext() if options.real_signatures else determinism.fake_signatures():
        run = determinism.run(story.seed, lambda: _run(story, options, progress))
    world = run.world
    counts = world.history.counts
    return Verdict(
        options=options,
        history_sha256=world.history.sha256,
        virtual_seconds=round(run.ended_s, 6),
        real_seconds=round(perf_counter() - started, 2),
        commits=world.chain.height,
        leader_changes=counts["leader"],
        acked=counts["ack"] + counts["refused"],
        events=dict(sorted(counts.items())),
        violations=tuple(world.violations),
        tail=tuple(world.history.tail),
        log=tuple(world.log),
        happenings=tuple(world.history.kept or ()),
    )


async def _run(story: Story, options: Options, progress: Progress) -> "_Run":
    run = _Run(story, options, progress)
    await run.world.run(run.run)
    return run


class _Run:
    """The rounds of one story in a world of whole nodes."""

    def __init__(self, story: Story, options: Options, progress: Progress) -> None:
        self._story = story
        self._progress = progress
        self.world = World(
            story.seed, voters=story.nodes, witnesses=story.witnesses, observers=story.observers
        )
        if options.keeps_history:
            self.world.history.kept = []
        self.ended_s = 0.0
        self._executor = Executor(self.world)
        self._workload = Workload(self.world, clients=story.load.clients, mean_s=story.load.mean_s)

    async def run(self) -> None:
        """Run round after round, until the story is over or something must never have been."""
        world = self.world
        world.network.quality = self._story.quality
        for events, heal_s in rounds_of(self._story.events, self._story.seconds):
            await self._round(events, heal_s)
            determinism.collect_garbage()
            self._progress(trio.current_time())
            if world.violations:
                break
        self.ended_s = trio.current_time()

    async def _round(self, events: tuple[Event, ...], heal_s: float) -> None:
        """Let clients and faults be until a virtual time, or until a violation; then heal and demand progress."""
        world = self.world
        with trio.move_on_at(heal_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._workload.run)
                nursery.start_soon(self._executor.run, events, heal_s)
                await world.violated.wait()
                nursery.cancel_scope.cancel()
        if world.violations:
            return
        await self._executor.heal()
        with trio.move_on_after(self._story.settle_s) as settling:
            await self._settle()
        if settling.cancelled_caught:
            world.report(
                f"progress: {self._story.settle_s:g} s after everything was healed there was none on all nodes"
            )
        elif not world.violations:
            self._check_agreement()

    async def _settle(self) -> None:
        world = self.world
        async with trio.open_nursery() as nursery:
            for node in world.nodes:
                nursery.start_soon(self._probe, node)
        # No task of any node may know that it is watched: nothing here is woken by them.
        while not world.violations and len({node.rows.get(keyspace.APPLIED) for node in world.nodes}) != 1:  # noqa: ASYNC110
            await trio.sleep(_LOOK_EVERY_S)

    async def _probe(self, node: Node) -> None:
        while node.life is not None and not self.world.violations:
            if await self._workload.probe(node.life, _PROBE_MS):
                return

    def _check_agreement(self) -> None:
        world = self.world
        states: dict[NodeId, tuple[Height, Digest, dict[bytes, bytes]]] = {}
        for node in world.nodes:
            store = LedgerStore(node.rows, world.configuration)
            mark = store.applied()
            states[node.id] = mark.height, mark.frontier.root(), dict(store.state_rows())
            world.promises.kept(node.id, store.receipt)
        checkers.agreed(world.report, world.chain, states)
        world.history.record("agreed", world.chain.height, states[world.nodes[0].id][1])
