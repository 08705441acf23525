"""`python -m simulations model`: look for a fork, a wrong conviction or a stall in the rules of certificates, before they are code.

    python -m simulations model --exhaustive --states 200000
    python -m simulations model --exhaustive --stage lying-leader --without two-phase
    python -m simulations model --search 20000 --seed 7 --json
    python -m simulations model --search 20000 --seed 7 --without own-term --honest
    python -m simulations model --trace 7 --seeds 100

The model is ledger.md 1.1 P0 to P5, 1.2 E1 to E5, the switch of 7.2 and the Rejoin of 7.3 as pure values: no bytes, clocks,
signatures, snapshots or recovery. Each rule has a name (`certificate_model_rules.Rule`) and can be left out, and the search
must then find what the rule is for: a check that cannot fail says nothing. Exit code 1 means that a promise is broken.

How a trace of the real core maps on the model
----------------------------------------------
Nothing signed is ever taken back, so a trace is the list of what each member signed, in the order in which each did, and
of what it made durable. Members are numbers in the order of genesis; a block is a number too: `Chain.number` of its header's
(parent by `prev_hash`, height, term, leader, kind), with `detail` counting headers that agree in all of these.
`certificate_trace` writes it down, `certificate_replay` takes it through the model and says what the model leaves out.

| the core | the model |
|---|---|
| stands for election | STAND, and a `Request`: tip, `ack_term`, base |
| ElectionGrant of another | GRANT, and a `Grant`: term, candidate, tip |
| opening block made | LEAD: needs grants of a Raft quorum at its parent |
| any other block made | PROPOSE upon its `prev_hash` |
| marker, or Acknowledgement, of a block in a term | ACKNOWLEDGE: `other` is any block of that term's leader from there on |
| commit vote | VOTE: its base must be what the member knows to be certified |
| certified height rises; a state is installed | LEARN |
| tail given up for a certificate | LEAVE |
| commit proof taken | the block is in `World.proven` |
| a term heard of, leadership given up | HEAR; CRASH that costs nothing |
| restart | CRASH, down to the certified block that the disk remembers |

`Evidence.convictions` takes the statements of one member, in the same values, and is to answer as the product's own E1 to
E5 do.

Reading order: `certificate_model_states`, `_rules`, `_evidence`, `_guards`, `_moves`, `_steps`; `_symmetry` and `_search` (exhaustive), `_stages`;
`_settings`, `_walk` and `_settling` (guided); `_text`; `certificate_trace`, `certificate_replay`, `certificate_trace_search`.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from simulations import certificate_trace_search
from simulations.certificate_model_rules import MEANINGS, Rule
from simulations.certificate_model_search import Finding, Model, Report, Search
from simulations.certificate_model_stages import STAGES
from simulations.certificate_model_text import describe, sentence
from simulations.certificate_model_walk import Tally, walk

_ALL = "all"
PROMISES = ("fork", "order undone", "conviction", "stall")
"""How the sentences begin that say what is broken."""


def main(arguments: Sequence[str]) -> int:
    """Search as the words after `model` say; return the exit code."""
    given = _parser().parse_args(arguments)
    without = frozenset(Rule(name) for name in given.without)
    if given.trace is not None:
        return certificate_trace_search.search(given.trace, given.seeds, as_json=given.json)
    if given.search is None:
        return _exhaustive(given, without)
    tally = walk(
        seed=given.seed,
        runs=given.search,
        first=given.first,
        seconds=given.seconds,
        without=without,
        may_lie=not given.honest,
        promise=given.promise,
    )
    if given.json:
        print(json.dumps(tally_document(tally, given.seed)))
    else:
        print(*_tally_lines(tally, given.seed), sep="\n")
    return 0 if tally.finding is None else 1


def story(model: Model, finding: Finding) -> list[str]:
    """Return a way to a broken promise as people read it: who takes part, a line for each move, and the promise."""
    lines, world = [describe(model.setting)], model.first_world()
    for move in finding.trace:
        lines.append(f"  {sentence(model.chain, world, move)}")
        world, _ = model.steps.after(world, move)
    return [*lines, f"BROKEN: {finding.sentence}"]


# --- exhaustive -------------------------------------------------------------------------------------------------------


def _exhaustive(given: argparse.Namespace, without: frozenset[Rule]) -> int:
    """Look at one stage or each in turn, the states and the time shared out evenly."""
    names = tuple(STAGES) if given.stage == _ALL else (given.stage,)
    documents, is_broken = {}, False
    for name in names:
        model = Model(STAGES[name].setting, STAGES[name].bounds, without, promise=given.promise)
        search = Search(model, root=STAGES[name].root(model.chain, model.setting))
        report = search.run(states=max(1, given.states // len(names)), seconds=given.seconds / len(names))
        is_broken = is_broken or report.finding is not None
        documents[name] = report_document(model, report)
        if not given.json:
            print(*_report_lines(name, model, report), sep="\n")
    if given.json:
        print(json.dumps({"without": sorted(without), "stages": documents}))
    return int(is_broken)


def report_document(model: Model, report: Report) -> dict[str, object]:
    """Return what `--json` prints of one stage. Only the seconds differ between two runs."""
    return {
        "states": report.states,
        "transitions": report.transitions,
        "depth": report.depth,
        "complete": report.is_complete,
        "renamings": report.renamings,
        "seconds": round(report.seconds, 3),
        "moves": dict(sorted(report.acts.items())),
        "broken": None if report.finding is None else report.finding.sentence,
        "trace": [] if report.finding is None else story(model, report.finding),
    }


def _report_lines(name: str, model: Model, report: Report) -> list[str]:
    how_far = "all there are" if report.is_complete else f"all within {report.depth} moves"
    line = (
        f"{name}: {report.states} worlds, {how_far}; {report.transitions} moves, {report.renamings} renamings merged, "
        f"{report.seconds:.1f} s"
    )
    return [line] if report.finding is None else [line, *story(model, report.finding)]


# --- guided -----------------------------------------------------------------------------------------------------------


def tally_document(tally: Tally, seed: int) -> dict[str, object]:
    """Return what `--json` prints of a guided search. Only the seconds differ between two searches."""
    has_found = tally.finding is not None and tally.model is not None
    return {
        "seed": seed,
        "runs": tally.runs,
        "steps": tally.steps,
        "seconds": round(tally.seconds, 3),
        "hostile_settled": tally.hostile,
        "hostile_split": tally.split,
        "situations": dict(sorted(tally.situations.items())),
        "found_in": tally.found_in,
        "broken": tally.finding.sentence if tally.finding is not None else None,
        "trace": story(tally.model, tally.finding) if has_found and tally.model and tally.finding else [],
    }


def _tally_lines(tally: Tally, seed: int) -> list[str]:
    lines = [
        f"seed {seed}: {tally.runs} runs, {tally.steps} moves, {tally.seconds:.1f} s",
        f"  {tally.split} of {tally.hostile} runs with a liar ended with honest votes split for good",
        *[f"  {count} runs: {name}" for name, count in sorted(tally.situations.items())],
    ]
    if tally.finding is None or tally.model is None:
        return lines
    return [*lines, f"run {tally.found_in}", *story(tally.model, tally.finding)]


# --- the command line -------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulations model",
        description="The rules of certificates as a model: every world within bounds, a guided random search, or traces of real cores.",
        epilog="\n".join(["rules that can be left out:", *[f"  {rule}: {MEANINGS[rule]}" for rule in Rule]]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--exhaustive", action="store_true", help="look at every world within the bounds of each stage"
    )
    way.add_argument("--search", type=int, metavar="N", help="make N runs of the guided random search")
    way.add_argument(
        "--trace",
        type=int,
        metavar="SEED",
        help="hold what real cores do in a seed's world against the model",
    )
    parser.add_argument("--seeds", type=int, default=1, help="trace: so many seeds from there on (default 1)")
    parser.add_argument("--stage", choices=(_ALL, *STAGES), default=_ALL, help="exhaustive: one stage alone")
    parser.add_argument("--states", type=int, default=100_000, help="exhaustive: worlds, over all stages")
    parser.add_argument("--seed", type=int, default=0, help="search: the seed (default 0)")
    parser.add_argument(
        "--first", type=int, default=0, help="search: the number of the first run (default 0)"
    )
    parser.add_argument(
        "--promise",
        choices=PROMISES,
        default="",
        help="look for this one alone",
    )
    parser.add_argument("--honest", action="store_true", help="search: nobody lies")
    parser.add_argument("--seconds", type=float, default=600.0, help="time, over all stages or runs")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=[*map(str, Rule)],
        metavar="RULE",
        help="leave a rule out",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
