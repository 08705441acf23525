"""`python -m simulations`: run one seed, or many, and say what came of it. Exit code 1 means a violation.

    python -m simulations --seed 7 --hours 1 --json
    python -m simulations --seeds 200 --seconds 60 --jobs 2

The verdict goes to standard output, progress and whatever is needed to understand a violation to standard error.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from simulations.faults import SCENARIOS
from simulations.runner import Options, Verdict, simulate

_SECONDS_PER_HOUR = 3600
_TAIL_LINES = 40


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    given = _parser().parse_args(arguments)
    seconds = given.seconds if given.seconds is not None else given.hours * _SECONDS_PER_HOUR
    options = [
        Options(
            seed=seed,
            virtual_s=seconds,
            scenario=given.scenario,
            voters=given.nodes,
            observers=given.observers,
            real_signatures=given.signatures == "real",
        )
        for seed in range(given.seed, given.seed + given.seeds)
    ]
    verdicts = _run_all(options, given.jobs)
    for verdict in verdicts:
        if verdict.violations:
            _explain(verdict)
    if given.json:
        documents = [document(verdict) for verdict in verdicts]
        print(json.dumps(documents[0] if given.seeds == 1 else _summary(documents)))
    else:
        for verdict in verdicts:
            print(_sentence(verdict))
    return 1 if any(verdict.violations for verdict in verdicts) else 0


def document(verdict: Verdict) -> dict[str, object]:
    """Return a verdict as the JSON object that `--json` prints. Only `real_seconds` differs between runs of a seed."""
    options = verdict.options
    return {
        "seed": options.seed,
        "hours": round(options.virtual_s / _SECONDS_PER_HOUR, 6),
        "scenario": options.scenario,
        "nodes": options.voters,
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulations",
        description="Whole nodes in an imaginary world; one seed decides everything.",
    )
    parser.add_argument("--seed", type=int, default=0, help="the seed, or the first of many (default 0)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--hours", type=float, default=0.02, help="virtual hours (default 0.02)")
    length.add_argument("--seconds", type=float, help="virtual seconds, instead of hours")
    parser.add_argument("--seeds", type=_positive, default=1, help="run so many seeds (default 1)")
    parser.add_argument("--scenario", choices=SCENARIOS, default="mixed")
    parser.add_argument("--nodes", type=_positive, default=3, help="voters (default 3)")
    parser.add_argument(
        "--observers", type=int, default=1, help="members that follow without a vote (default 1)"
    )
    parser.add_argument("--signatures", choices=("fake", "real"), default="fake")
    parser.add_argument(
        "--jobs", type=_positive, default=1, help="processes that share the seeds (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _run_all(options: list[Options], jobs: int) -> list[Verdict]:
    if len(options) == 1:
        return [simulate(options[0], lambda now: print(f"{now:.0f} s", file=sys.stderr))]
    if jobs == 1:
        return _collect(map(simulate, options), len(options))
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(options))) as pool:
        return _collect(pool.imap(simulate, options), len(options))


def _collect(verdicts: Iterable[Verdict], count: int) -> list[Verdict]:
    collected: list[Verdict] = []
    for verdict in verdicts:
        collected.append(verdict)
        print(f"{len(collected)}/{count}: {_sentence(verdict)}", file=sys.stderr)
    return collected


def _sentence(verdict: Verdict) -> str:
    outcome = f"{len(verdict.violations)} VIOLATIONS" if verdict.violations else "no violation"
    return (
        f"seed {verdict.options.seed}, {verdict.options.scenario}: {outcome}; {verdict.virtual_seconds:.0f} virtual s "
        f"in {verdict.real_seconds:.1f} s, {verdict.commits} blocks, {verdict.acked} acknowledged, "
        f"{verdict.leader_changes} leaders, history {verdict.history_sha256[:16]}"
    )


def _summary(documents: list[dict[str, object]]) -> dict[str, object]:
    return {
        "seeds": len(documents),
        "failed": [d["seed"] for d in documents if d["violations"]],
        "runs": documents,
    }


def _explain(verdict: Verdict) -> None:
    """Print what is needed to see a violation again and to understand it."""
    options = verdict.options
    lines = [
        *verdict.log,
        *verdict.tail[-_TAIL_LINES:],
        *(f"plan {plan}" for plan in verdict.plans),
        *(f"VIOLATION {violation}" for violation in verdict.violations),
        f"commit {_commit()}",
        f"again: {_command(options)}",
    ]
    print(*lines, sep="\n", file=sys.stderr)


def _command(options: Options) -> str:
    return (
        f"python -m simulations --seed {options.seed} --seconds {options.virtual_s:g} "
        f"--scenario {options.scenario} --nodes {options.voters} --observers {options.observers} "
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
