"""`python -m simulations.explorer`: look at every world of three voters, or two and a witness, that can be reached within bounds.

    python -m simulations.explorer --depth 40 --states 300000 --json
    python -m simulations.explorer --root half-way --order breadth --drops 1 --duplicates 1
    python -m simulations.explorer --root witnessed --notices 1 --states 50000
    python -m simulations.explorer --replay trace.txt --root half-way

The real `protocol.raft.machine.Raft` takes every step: deliveries in any order, losses, duplicates, time-outs, heartbeats,
notices of votes and certificates, proposals, writes that take their time, crashes with the loss of what was not durable, restarts. After each one the
invariants of ledger.md section 3 are checked. A violation is printed with the steps that lead to it from the first start; the
same steps, one a line, can be played again. Exit code 1 means a violation.

Reading order: `explorer_graph` (copies), `explorer_node` (one node), `explorer_moves` (steps of nodes, remembered),
`explorer_history` (invariants between nodes), `explorer_stage` (roots, traces), `explorer_search`.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from simulations.determinism import fake_signatures
from simulations.explorer_history import Histories
from simulations.explorer_moves import Moves
from simulations.explorer_search import Bounds, Budget, Order, Report, Search, Violation
from simulations.explorer_stage import ROOTS, Stage, roles_of, root_of

_ALL = "all"
_TERMS = 2


def main(arguments: list[str] | None = None) -> int:
    """Search, or replay, as the command line says; return the exit code."""
    given = _parser().parse_args(arguments)
    if given.replay is not None:
        return _replay(given.replay, given.root)
    roots = tuple(ROOTS) if given.root == _ALL else (given.root,)
    reports = {
        root: explore(_bounds(given, root, len(roots)), root=root, order=given.order) for root in roots
    }
    if given.json:
        print(json.dumps(document(reports, given.order)))
    else:
        for root, report in reports.items():
            print(_paragraph(root, report))
    return 1 if any(report.violations for report in reports.values()) else 0


def explore(bounds: Bounds, *, root: str = "start", order: Order = Order.BREADTH) -> Report:
    """Search from a root of `explorer_stage.ROOTS`; return what was seen, a violation with a trace that has no step too many."""
    with fake_signatures():
        search = Search(bounds, order=order, roles=roles_of(root))
        report = search.run(root_of(root, search.moves, search.histories))
        report.violations = [
            Violation(found.sentence, shortened(found, search.moves, search.histories))
            for found in report.violations
        ]
        return report


def shortened(found: Violation, moves: Moves, histories: Histories) -> tuple[str, ...]:
    """Return what is left of a trace when every step without which it shows the same violation has been taken out."""
    trace = found.trace
    at = len(trace) - 1
    while at > 0:
        at -= 1
        shorter = trace[:at] + trace[at + 1 :]
        if _shows(shorter, found.sentence, moves, histories):
            trace, at = shorter, len(shorter) - 1  # what was needed for this step may be needed no longer
    return trace


def _shows(trace: tuple[str, ...], sentence: str, moves: Moves, histories: Histories) -> bool:
    stage = Stage(moves, histories)
    for step in trace:
        if stage.sentence is not None:
            return False
        try:
            stage.play(step)
        except ValueError:
            return False  # not possible without the step taken out
    return stage.sentence == sentence


def replay(trace: tuple[str, ...], root: str = "start") -> str | None:
    """Play the steps of a trace from the first world; return the violation that the last one shows, or None.

    `root` is where the search began that found it: it says who is a witness.

    Raises:
        ValueError: a step is not possible where it stands.
    """
    with fake_signatures():
        moves = Moves(roles_of(root))
        stage = Stage(moves, Histories(moves))
        for step in trace:
            if stage.sentence is not None:
                raise ValueError(f"{step!r} comes after a violation: {stage.sentence}")
            stage.play(step)
        return stage.sentence


def document(reports: dict[str, Report], order: Order) -> dict[str, object]:
    """Return what `--json` prints: sums over the roots, and each root's own. Only times differ between two runs."""
    states = sum(report.states for report in reports.values())
    seconds = sum(report.seconds for report in reports.values())
    return {
        "order": str(order),
        "states": states,
        "transitions": sum(report.transitions for report in reports.values()),
        "depth": max(report.depth for report in reports.values()),
        "frontier": sum(report.frontier for report in reports.values()),
        "seconds": round(seconds, 3),
        "states_per_second": round(states / seconds) if seconds else 0,
        "violations": [
            {"root": root, "sentence": violation.sentence, "trace": list(violation.trace)}
            for root, report in reports.items()
            for violation in report.violations
        ],
        "roots": {root: _document(report) for root, report in reports.items()},
    }


def _document(report: Report) -> dict[str, object]:
    plain = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    del plain["violations"]
    return {**plain, "seconds": round(report.seconds, 3), "complete": report.is_complete}


def _paragraph(root: str, report: Report) -> str:
    rate = report.states / report.seconds if report.seconds else 0
    lines = [
        f"from {root!r}: {report.states} states, {report.transitions} transitions, depth {report.depth}",
        f"  complete below level {report.levels}, {report.frontier} states not looked at, {rate:.0f} states/s",
        f"  {report.node_states} states of nodes, {report.core_steps} steps of the core",
        *[f"  {count} times: {name}" for name, count in sorted(report.situations.items())],
    ]
    for violation in report.violations:
        lines += [f"VIOLATION: {violation.sentence}", *[f"  {step}" for step in violation.trace]]
    return "\n".join(lines)


def _replay(path: Path, root: str) -> int:
    """Play a file of steps, one a line, empty ones and those that begin with # left out."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    try:
        sentence = replay(tuple([line for line in lines if line and not line.startswith("#")]), root)
    except ValueError as error:
        print(f"the trace cannot be played: {error}", file=sys.stderr)
        return 2
    print("no violation" if sentence is None else f"VIOLATION: {sentence}")
    return 0 if sentence is None else 1


def _bounds(given: argparse.Namespace, root: str, count: int) -> Bounds:
    """Return the bounds of one root: the states and the time are shared out evenly."""
    return Bounds(
        depth=given.depth,
        states=max(1, given.states // count),
        seconds=given.seconds / count,
        terms=given.terms if given.terms is not None else max(_TERMS, ROOTS[root][1] + 1),
        in_flight=given.in_flight,
        lost=frozenset(given.lost),
        budget=Budget(**{name: getattr(given, name) for name in Budget._fields}),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.explorer", description=__doc__.split("\n")[0]
    )
    bounds, budget = Bounds(), Budget()
    add = parser.add_argument
    add("--root", choices=(_ALL, *ROOTS), default=_ALL, help="where to begin (default: each in turn)")
    add("--order", type=Order, choices=tuple(Order), default=Order.DEVIATIONS, help="what to look at next")
    add("--depth", type=int, default=bounds.depth, help="steps after the root")
    add("--states", type=int, default=bounds.states, help="worlds to visit, over all roots")
    add("--seconds", type=float, default=bounds.seconds, help="time, over all roots")
    add("--terms", type=int, help="highest term (default: 2, or one more than at the root)")
    add("--in-flight", type=int, default=bounds.in_flight, help="messages in flight at once")
    add(
        "--lost",
        nargs="*",
        default=(),
        metavar="TAG",
        help="kinds of messages that never arrive, as heartbeat",
    )
    for name in Budget._fields:
        text = f"{name.replace('_', ' ')} in one trace (default: %(default)s)"
        add(f"--{name.replace('_', '-')}", type=int, default=getattr(budget, name), help=text)
    add("--json", action="store_true", help="print one JSON document")
    add("--replay", type=Path, metavar="FILE", help="play the steps in a file instead")
    return parser


if __name__ == "__main__":
    sys.exit(main())
