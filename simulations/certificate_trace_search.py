"""`python -m simulations model --trace SEED --seeds N`: worlds of real cores, each recorded and held against the model.

A seed draws its world: members, what goes wrong, changes of members and small limits as in tier A, or a liar among cores
that are honest (`liar_world`). A difference is printed with the last moves before it; exit code 1 means that there was one.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from simulations import determinism, faults
from simulations.certificate_replay import Comparison, Replay
from simulations.certificate_trace import Recorder
from simulations.core_cluster import Cluster
from simulations.core_world import simulate_core
from simulations.liar import Lie
from simulations.liar_world import LyingCluster, tell
from simulations.runner import Options, story_of

VIRTUAL_S: Final = 15.0
_LIES: Final = 0.35
_SUMS: Final = ("records", "lost", "blocks", "switches", "repeated", "beside")
_LYING_VOTERS: Final = (3, 4, 4, 5)
"""With three a liar forks what is final; the model says so too, and then they agree in that."""


@dataclass(frozen=True, slots=True)
class Traced:
    """One seed: the world it drew, in words, and what came of the comparison."""

    seed: int
    world: str
    comparison: Comparison
    violations: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command that runs it again."""
        return f"python -m simulations model --trace {self.seed}"


def trace(seed: int, virtual_s: float = VIRTUAL_S) -> Traced:
    """Run the world that a seed draws, and replay what its cores did."""
    rng = determinism.stream(seed, "trace")
    if rng.random() < _LIES:
        return trace_liar(seed, rng.choice(tuple(Lie)), voters=rng.choice(_LYING_VOTERS), virtual_s=virtual_s)
    scenario = rng.choice(faults.SCENARIOS) if rng.random() < 0.5 else "mixed"
    options = Options(
        seed,
        virtual_s,
        scenario,
        voters=rng.choice((1, 2, 3, 3, 4, 5)),
        observers=rng.choice((0, 1, 2)),
        tier="a",
    )
    return trace_honest(options)


def trace_honest(options: Options) -> Traced:
    """Run one seed of tier A and replay it."""
    recorders = list[Recorder]()

    def watch(cluster: Cluster) -> None:
        recorders.append(Recorder(cluster))

    story = story_of(options)
    verdict = simulate_core(options, story.events, load=story.load, watch=watch)
    world = f"{options.scenario}, {options.voters} voters, {options.observers} beside"
    return Traced(options.seed, world, Replay(recorders[0]).run(), verdict.violations)


def trace_liar(seed: int, lie: Lie, *, voters: int, virtual_s: float = VIRTUAL_S) -> Traced:
    """Run one seed of a world with a liar, member 1, and replay what the others did."""
    with determinism.fake_signatures():
        cluster = LyingCluster(seed, lie, voters=voters)
        recorder = Recorder(cluster, untold=(0,))
        tell(cluster, virtual_s)
    return Traced(seed, f"{lie}, {voters} voters", Replay(recorder).run(), ())


def search(seed: int, seeds: int, *, as_json: bool = False) -> int:
    """Trace so many seeds and say what came of it; return the exit code."""
    began, moves, worlds, sums = perf_counter(), Counter[str](), Counter[str](), Counter[str]()
    documents = list[dict[str, object]]()
    for number in range(seed, seed + seeds):
        traced = trace(number)
        comparison = traced.comparison
        moves.update(comparison.moves)
        worlds[traced.world.split(",")[0]] += 1
        sums.update({name: getattr(comparison, name) for name in _SUMS})
        sums["ended early"] += comparison.ended is not None
        if comparison.difference is not None:
            documents.append(_document(traced))
            if not as_json:
                print(*_lines(traced), sep="\n", flush=True)
    figures: dict[str, object] = {
        "seeds": seeds,
        "differing": len(documents),
        "seconds": round(perf_counter() - began, 1),
        **sums,
        "moves": dict(sorted(moves.items())),
        "worlds": dict(sorted(worlds.items())),
    }
    if as_json:
        print(json.dumps(figures | {"differences": documents}))
    else:
        print(*(f"{name}: {figure}" for name, figure in figures.items()), sep="\n")
    return int(bool(documents))


def _lines(traced: Traced) -> Iterator[str]:
    comparison = traced.comparison
    yield f"seed {traced.seed} ({traced.world})"
    yield from (f"  {line}" for line in comparison.tail)
    yield from (f"VIOLATION {violation}" for violation in traced.violations)
    yield f"DIFFERENCE {comparison.difference}; again: {traced.command}"


def _document(traced: Traced) -> dict[str, object]:
    comparison = traced.comparison
    return {
        "seed": traced.seed,
        "world": traced.world,
        "difference": comparison.difference,
        "violations": list(traced.violations),
        "tail": list(comparison.tail),
    }
