"""One seed, from nothing to a verdict: rounds of faults, healing and demanded progress.

A round makes faults for most of its time. Then everything is healed, clients stop, and within `SETTLE_S` virtual
seconds every node must bring a new transaction to its end and all must hold the same ledger. The rest of the round is calm.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

import trio

from protocol.identifiers import Digest, Height, NodeId
from simulations import checkers, determinism, faults
from simulations.faults import Faults, Plan
from simulations.workload import Workload
from simulations.world import Node, World
from storage import keyspace
from storage.ledger_store import LedgerStore

ROUND_S = 120.0
SETTLE_S = 30.0
_FAULT_SHARE = 5 / 6
_CLIENTS = 3
_LOOK_EVERY_S = 0.1
_PROBE_MS = 20_000


@dataclass(frozen=True, slots=True)
class Options:
    """What is simulated. `virtual_s` is how long the rounds last in virtual seconds."""

    seed: int
    virtual_s: float
    scenario: str = "mixed"
    voters: int = 3
    observers: int = 1
    real_signatures: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of it. Everything but `real_seconds` depends on the options alone."""

    options: Options
    history_sha256: str
    virtual_seconds: float
    real_seconds: float
    commits: int
    leader_changes: int
    acked: int
    events: dict[str, int]
    violations: tuple[str, ...]
    plans: tuple[str, ...]
    tail: tuple[str, ...]
    log: tuple[str, ...]


def simulate(options: Options, progress: Callable[[float], None] = lambda _: None) -> Verdict:
    """Run one seed to its end or to its first violation. `progress` hears the virtual time after each round."""
    started = perf_counter()
    with contextlib.nullcontext() if options.real_signatures else determinism.fake_signatures():
        story = determinism.run(options.seed, lambda: _tell(options, progress))
    world = story.world
    counts = world.history.counts
    return Verdict(
        options=options,
        history_sha256=world.history.sha256,
        virtual_seconds=round(story.ended_s, 6),
        real_seconds=round(perf_counter() - started, 2),
        commits=world.chain.height,
        leader_changes=counts["leader"],
        acked=counts["ack"] + counts["refused"],
        events=dict(sorted(counts.items())),
        violations=tuple(world.violations),
        plans=tuple(story.plans),
        tail=tuple(world.history.tail),
        log=tuple(world.log),
    )


async def _tell(options: Options, progress: Callable[[float], None]) -> "_Story":
    story = _Story(options, progress)
    await story.world.run(story.run)
    return story


class _Story:
    """The rounds of one run."""

    def __init__(self, options: Options, progress: Callable[[float], None]) -> None:
        self._options = options
        self._progress = progress
        self.world = World(options.seed, voters=options.voters, observers=options.observers)
        self.plans: list[str] = []
        self.ended_s = 0.0
        self._workload = Workload(self.world, clients=_CLIENTS, mean_s=1.0)
        self._rng = determinism.stream(options.seed, "plans")

    async def run(self) -> None:
        """Run round after round, until time is over or something must never have been."""
        rounds = max(1, round(self._options.virtual_s / ROUND_S))
        length = self._options.virtual_s / rounds
        for number in range(rounds):
            plan = faults.draw(self._options.scenario, self._rng)
            self.plans.append(f"from {trio.current_time():.3f} s: {plan.describe()}")
            await self._round(plan, number, (number + 1) * length)
            determinism.collect_garbage()
            self._progress(trio.current_time())
            if self.world.violations:
                break
        self.ended_s = trio.current_time()

    async def _round(self, plan: Plan, number: int, end_s: float) -> None:
        world = self.world
        made = Faults(world, plan, determinism.stream(world.seed, f"faults/{number}"))
        self._workload.mean_s = self._rng.choice((0.3, 1.0, 3.0))
        now = trio.current_time()
        await self._together(made.run, until_s=now + (end_s - now) * _FAULT_SHARE)
        if world.violations:
            return
        await made.heal()
        with trio.move_on_after(SETTLE_S) as settling:
            await self._settle()
        if settling.cancelled_caught:
            world.report(f"progress: {SETTLE_S:g} s after everything was healed there was none on all nodes")
        elif not world.violations:
            self._check_agreement()
            await self._together(trio.sleep_forever, until_s=end_s)

    async def _together(self, other: Callable[[], Awaitable[None]], *, until_s: float) -> None:
        """Let clients and something else run until a virtual time, or until a violation."""
        with trio.move_on_at(until_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._workload.run)
                nursery.start_soon(other)
                await self.world.violated.wait()
                nursery.cancel_scope.cancel()

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
            states[node.id] = mark.height, mark.frontier.root(), dict(_state_rows(node))
            world.promises.kept(node.id, store.receipt)
        checkers.agreed(world.report, world.chain, states)
        world.history.record("agreed", world.chain.height, states[world.nodes[0].id][1])


def _state_rows(node: Node) -> Iterator[tuple[bytes, bytes]]:
    for key, value in node.rows.scan(*keyspace.prefix_range(keyspace.STATE)):
        yield key[len(keyspace.STATE) :], value
