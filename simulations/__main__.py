"""`python -m simulations`: run one seed, many, or a story, and say what came of it. Exit code 1 means a violation.

    python -m simulations --seed 7 --hours 1 --json
    python -m simulations --seeds 200 --seconds 60 --jobs 2 --tier a
    python -m simulations --seed 7 --seconds 60 --plot run.svg
    python -m simulations replay simulations/stories/13_14_isolated_leader.story
    python -m simulations model --search 2000 --seed 7
    python -m simulations liar --seeds 1000 --jobs 2

The verdict goes to standard output, progress and whatever is needed to understand a violation to standard error: the
commit, and the smallest story that still fails.
"""

import argparse
import dataclasses
import functools
import json
import multiprocessing
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import Final

from simulations import certificate_model, liar_search
from simulations.faults import SCENARIOS
from simulations.minimise import category, minimise
from simulations.plot import draw_svg
from simulations.runner import (
    Options,
    Verdict,
    options_of,
    simulate,
    simulate_one_of_many,
    story_of,
    tell,
)
from simulations.story import Story
from simulations.story_text import StoryError, format_story, parse

_SECONDS_PER_HOUR: Final = 3600
_TAIL_LINES: Final = 40
_MINIMISE_S: Final = 60.0
_VOTERS: Final = {"a": 5, "b": 3}
_OBSERVERS: Final = {"a": 0, "b": 1}


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["replay"]:
        return _replay(words[1:])
    if words[:1] == ["model"]:
        return certificate_model.main(words[1:])
    if words[:1] == ["liar"]:
        return liar_search.main(words[1:])
    parser = _parser()
    given = parser.parse_args(words)
    if given.plot is not None and given.seeds > 1:
        parser.error("--plot draws one seed")
    options = _options(given)
    if given.story:
        print(*(format_story(story_of(each)) for each in options), sep="\n", end="")
        return 0
    return _tell_verdicts(_run_all(options, given.jobs), given)


def document(verdict: Verdict) -> dict[str, object]:
    """Return a verdict as the JSON object that `--json` prints. Only `real_seconds` differs between runs of a seed."""
    options = verdict.options
    return {
        "seed": options.seed,
        "tier": options.tier,
        "hours": round(options.virtual_s / _SECONDS_PER_HOUR, 6),
        "scenario": options.scenario,
        "nodes": options.voters,
        "witnesses": options.witnesses,
        "observers": options.observers,
        "signatures": "real" if options.real_signatures else "fake",
        "history_sha256": verdict.history_sha256,
        "virtual_seconds": verdict.virtual_seconds,
        "real_seconds": verdict.real_seconds,
        "commits": verdict.commits,
        "leader_changes": verdict.leader_changes,
        "acked": verdict.acked,
        "events": verdict.events,
        "violations": list(verdict.violations),
    }


# --- the command line -------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulations",
        description="Whole nodes, or Raft cores alone, in an imaginary world; one seed decides everything.",
        epilog="python -m simulations replay FILE runs a story, python -m simulations model searches the rules of "
        "certificates, python -m simulations liar puts one liar among cores; each has its own --help.",
    )
    parser.add_argument("--seed", type=int, default=0, help="the seed, or the first of many (default 0)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--hours", type=float, default=0.02, help="virtual hours (default 0.02)")
    length.add_argument("--seconds", type=float, help="virtual seconds, instead of hours")
    parser.add_argument("--seeds", type=_positive, default=1, help="run so many seeds (default 1)")
    parser.add_argument(
        "--tier", choices=("a", "b"), default="b", help="a: Raft cores alone, fast; b: whole nodes (default)"
    )
    parser.add_argument("--scenario", choices=SCENARIOS, default="mixed")
    parser.add_argument("--nodes", type=_positive, help="voters (default 3; 5 in tier a)")
    parser.add_argument(
        "--witnesses", type=int, default=0, help="members that only sign certificates (tier b)"
    )
    parser.add_argument(
        "--observers", type=int, help="members that follow without a vote (default 1; 0 in tier a)"
    )
    parser.add_argument(
        "--jobs", type=_positive, default=1, help="processes that share the seeds (default 1)"
    )
    parser.add_argument("--story", action="store_true", help="print the seed's story, and do not run it")
    _add_common(parser)
    return parser


def _replay_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulations replay", description="Run one story; exit code 1 means a violation."
    )
    parser.add_argument("file", type=Path, help="a story, as in simulations/stories/")
    _add_common(parser)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--signatures", choices=("fake", "real"), default="fake")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the run as lanes over time")
    parser.add_argument(
        "--minimise",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"after a violation, look up to {_MINIMISE_S:g} s for the smallest story that fails (first seed only)",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _options(given: argparse.Namespace) -> list[Options]:
    seconds = given.seconds if given.seconds is not None else given.hours * _SECONDS_PER_HOUR
    return [
        Options(
            seed=seed,
            virtual_s=seconds,
            scenario=given.scenario,
            voters=given.nodes if given.nodes is not None else _VOTERS[given.tier],
            witnesses=given.witnesses,
            observers=given.observers if given.observers is not None else _OBSERVERS[given.tier],
            real_signatures=given.signatures == "real",
            tier=given.tier,
            keeps_history=given.plot is not None,
        )
        for seed in range(given.seed, given.seed + given.seeds)
    ]


def _replay(words: list[str]) -> int:
    given = _replay_parser().parse_args(words)
    try:
        story = parse(given.file.read_text(encoding="utf-8"))
        options = options_of(
            story, real_signatures=given.signatures == "real", keeps_history=given.plot is not None
        )
        verdict = tell(story, options, _say_time)
    except (StoryError, OSError, UnicodeDecodeError) as error:
        print(f"{given.file}: {error}", file=sys.stderr)
        return 2
    return _tell_verdicts([verdict], given)


# --- running ----------------------------------------------------------------------------------------------------------


def _run_all(options: list[Options], jobs: int) -> list[Verdict]:
    if len(options) == 1:
        return [simulate(options[0], _say_time)]
    if jobs == 1:
        return _collect(map(simulate_one_of_many, options), len(options))
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(options))) as pool:
        return _collect(pool.imap(simulate_one_of_many, options), len(options))


def _collect(verdicts: Iterable[Verdict], count: int) -> list[Verdict]:
    collected: list[Verdict] = []
    for verdict in verdicts:
        collected.append(verdict)
        print(f"{len(collected)}/{count}: {_sentence(verdict)}", file=sys.stderr)
    return collected


def _say_time(now_s: float) -> None:
    print(f"{now_s:.0f} s", file=sys.stderr)


def _smallest(verdict: Verdict, story: Story) -> Story:
    """Return the smallest story found, within the budget, that fails as the verdict does; say how far it is."""
    wanted = category(verdict.violations[0])
    options = dataclasses.replace(verdict.options, keeps_history=False)

    def fails(candidate: Story) -> bool:
        return any(category(found) == wanted for found in tell(candidate, options).violations)

    started = perf_counter()

    def may_go_on(runs: int, best: Story) -> bool:
        spent = perf_counter() - started
        print(f"minimising: {runs} runs, {len(best.events)} events, {spent:.0f} s", file=sys.stderr)
        return spent < _MINIMISE_S

    return minimise(story, fails, may_go_on, ended_s=verdict.virtual_seconds)


# --- telling ----------------------------------------------------------------------------------------------------------


def _tell_verdicts(verdicts: list[Verdict], given: argparse.Namespace) -> int:
    """Print what came of it, draw it where asked, and return the exit code."""
    failed = [verdict for verdict in verdicts if verdict.violations]
    for verdict in failed:
        _explain(verdict, shorten=given.minimise and verdict is failed[0])
    if given.plot is not None:
        given.plot.write_text(draw_svg(verdicts[0]), encoding="utf-8")
    if given.json:
        documents = [document(verdict) for verdict in verdicts]
        print(json.dumps(documents[0] if len(documents) == 1 else _summary(documents)))
    else:
        for verdict in verdicts:
            print(_sentence(verdict))
    return 1 if failed else 0


def _sentence(verdict: Verdict) -> str:
    outcome = f"{len(verdict.violations)} VIOLATIONS" if verdict.violations else "no violation"
    undecided = verdict.measure("linearizable-unknown")
    return (
        f"seed {verdict.options.seed}, {verdict.options.scenario}: {outcome}; {verdict.virtual_seconds:.0f} virtual s "
        f"in {verdict.real_seconds:.1f} s, {verdict.commits} blocks, {verdict.acked} acknowledged, "
        f"{verdict.leader_changes} leaders, {f'{undecided} histories undecided, ' if undecided else ''}"
        f"history {verdict.history_sha256[:16]}"
    )


def _summary(documents: list[dict[str, object]]) -> dict[str, object]:
    return {
        "seeds": len(documents),
        "failed": [d["seed"] for d in documents if d["violations"]],
        "runs": documents,
    }


def _explain(verdict: Verdict, *, shorten: bool) -> None:
    """Print what is needed to see a violation again and to understand it: a story for `replay` comes last."""
    say = functools.partial(print, sep="\n", file=sys.stderr)
    say(*verdict.log, *verdict.tail[-_TAIL_LINES:])
    say(*(f"VIOLATION {violation}" for violation in verdict.violations))
    say(f"seed {verdict.options.seed}", f"commit {_commit()}")
    if verdict.options.scenario != "story":
        say(f"again: {_command(verdict.options)}")
    if verdict.story is not None:
        story = _smallest(verdict, verdict.story) if shorten else verdict.story
        say(f"# {verdict.violations[0]}", format_story(story))


def _command(options: Options) -> str:
    return (
        f"python -m simulations --tier {options.tier} --seed {options.seed} --seconds {options.virtual_s:g} "
        f"--scenario {options.scenario} --nodes {options.voters} --witnesses {options.witnesses} --observers {options.observers} "
        f"--signatures {'real' if options.real_signatures else 'fake'}"
    )


def _commit() -> str:
    """Return the git commit of the code that runs, or "unknown"."""
    command = ("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()  # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
