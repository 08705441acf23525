"""`python -m simulations liar`: many seeds with one liar each; exit code 1 when a lie has done what none may do.

Of four signers or more, one liar brings no two honest members to different final blocks. Of three (q = 2) it can; then the
two certificates, shown to each other, convict it at once. Nobody honest is ever convicted, and no lie sets off messages without end. How often a lie was told
and proven is counted, not demanded: of what nobody received, or nobody compared in time, there is no proof.
"""

import argparse
import functools
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter

from simulations.liar import Lie
from simulations.liar_world import LyingCluster, LyingRun, run_lying

_SAFE_SIGNERS = 4
_FEWEST = 3
"""With two, every block needs the liar, and nobody is there to be told another story."""
_SAY_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class LyingSeed:
    """One seed to run, with everything that decides what happens in it."""

    seed: int
    lie: Lie
    voters: int
    virtual_s: float

    @property
    def command(self) -> str:
        """The command that runs it again."""
        return (
            f"python -m simulations liar --seed {self.seed} --lie {self.lie.name.lower()} "
            f"--voters {self.voters} --seconds {self.virtual_s:g}"
        )


@dataclass(frozen=True, slots=True)
class LyingVerdict:
    """What came of a seed; `wrongs` says in words what may never be."""

    one: LyingSeed
    lies: int
    kinds: tuple[str, ...]
    forks: int
    blocks: int
    wrongs: tuple[str, ...]


def wrongs(run: LyingRun, voters: int) -> tuple[str, ...]:
    """Return what came of a run that may never be."""
    found = []
    innocent = sorted({one.kind for one in run.convictions if set(one.nodes) - {run.liar}})
    if innocent:
        found.append(f"convicts somebody honest of {', '.join(innocent)}")
    if run.forks and voters >= _SAFE_SIGNERS:
        found.append(f"honest members have different final blocks at {run.forks[0]}")
    if run.is_stormy:
        found.append(f"over {LyingCluster.messages_per_s_max} messages within a second")
    if run.unproven:
        found.append(f"a fork at {run.unproven[0]} does not convict the liar at the first exchange")
    return tuple(found)


def judge(one: LyingSeed) -> LyingVerdict:
    """Run one seed."""
    run = run_lying(one.seed, one.lie, voters=one.voters, virtual_s=one.virtual_s)
    kinds = sorted({found.kind for found in run.convictions if run.liar in found.nodes})
    return LyingVerdict(one, run.lies, tuple(kinds), len(run.forks), run.height, wrongs(run, one.voters))


def main(words: list[str]) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = _parser()
    given = parser.parse_args(words)
    if min(given.seeds, given.jobs) < 1 or given.voters < _FEWEST:
        parser.error(f"at least 1 seed, 1 job and {_FEWEST} voters")
    lies = tuple(Lie) if given.lie == "all" else (Lie[given.lie.upper()],)
    seeds = [
        LyingSeed(seed, lies[seed % len(lies)], given.voters, given.seconds)
        for seed in range(given.seed, given.seed + given.seeds)
    ]
    started = perf_counter()
    verdicts = list(_told(_judged(seeds, given.jobs), len(seeds)))
    for line in summary(verdicts):
        print(line)
    failed = sum(bool(verdict.wrongs) for verdict in verdicts)
    print(
        f"{len(verdicts)} seeds of {given.seconds:g} virtual s, {given.voters} signers, in {perf_counter() - started:.0f} s: "
        f"{failed or 'no'} violation{'s' * (failed != 1)}"
    )
    return 1 if failed else 0


def summary(verdicts: Iterable[LyingVerdict]) -> Iterator[str]:
    """Return a line for each lie: in how many seeds it was told, proven, and led to a fork."""
    by_lie: dict[Lie, list[LyingVerdict]] = {}
    for verdict in verdicts:
        by_lie.setdefault(verdict.one.lie, []).append(verdict)
    for lie, found in by_lie.items():
        kinds = Counter(kind for verdict in found for kind in verdict.kinds)
        proven = ", ".join(f"{kind} in {count}" for kind, count in sorted(kinds.items())) or "nothing"
        yield (
            f"{lie}: {len(found)} seeds, {sum(verdict.blocks for verdict in found)} blocks; told in "
            f"{sum(verdict.lies > 0 for verdict in found)} ({sum(verdict.lies for verdict in found)} times), "
            f"proven in {sum(bool(verdict.kinds) for verdict in found)} ({proven}), "
            f"forked in {sum(verdict.forks > 0 for verdict in found)}"
        )


def _judged(seeds: list[LyingSeed], jobs: int) -> Iterator[LyingVerdict]:
    if jobs == 1:
        yield from map(judge, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(seeds))) as pool:
        yield from pool.imap_unordered(judge, seeds, chunksize=4)


def _told(verdicts: Iterable[LyingVerdict], count: int) -> Iterator[LyingVerdict]:
    """Pass verdicts on; print violations at once, and now and then how far it is."""
    say = functools.partial(print, file=sys.stderr, flush=True)
    said_at = perf_counter()
    for number, verdict in enumerate(verdicts, start=1):
        for wrong in verdict.wrongs:
            print(
                f"VIOLATION seed {verdict.one.seed}, {verdict.one.lie}: {wrong}; again: {verdict.one.command}"
            )
        if perf_counter() - said_at > _SAY_EVERY_S:
            said_at = perf_counter()
            say(f"{number}/{count}")
        yield verdict


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulations liar",
        description="One liar among Raft cores; exit code 1 means a violation.",
    )
    names = ("all", *(lie.name.lower() for lie in Lie))
    parser.add_argument("--seed", type=int, default=0, help="the seed, or the first of many (default 0)")
    parser.add_argument("--seeds", type=int, default=1, help="run so many seeds (default 1)")
    parser.add_argument("--seconds", type=float, default=60.0, help="virtual seconds (default 60)")
    parser.add_argument("--voters", type=int, default=4, help="signers, the liar among them (default 4)")
    parser.add_argument("--lie", choices=names, default="all", help="what it does; all: in turn, by the seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the seeds (default 1)")
    return parser
