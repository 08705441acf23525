"""The explorer itself: what it visits, that it visits it once, and that what it remembers is what the core does."""

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import Invalid
from protocol.identifiers import NodeId
from protocol.raft.election import Election
from protocol.raft.log import Log
from protocol.raft.machine import Raft
from protocol.raft.messages import author
from simulations.determinism import fake_signatures
from simulations.explorer import explore, main, replay
from simulations.explorer_graph import Graphs
from simulations.explorer_history import Histories
from simulations.explorer_moves import NODES, VOTERS, Envelope, Kind, Moves
from simulations.explorer_node import Members, Node
from simulations.explorer_search import Bounds, Budget, Order, Report, Search
from simulations.explorer_stage import ROOTS, Root, Stage, roles_of, root_of

NOTHING = Budget(*[0 for _ in Budget._fields])
NO_HEARTBEATS = frozenset({"heartbeat"})


def complete(root: str, terms: int, *, order: Order = Order.BREADTH, **budget: int) -> Report:
    """Search all that a small budget reaches, with room for every message."""
    bounds = Bounds(
        depth=200, terms=terms, in_flight=12, lost=NO_HEARTBEATS, budget=NOTHING._replace(**budget)
    )
    return explore(bounds, root=root, order=order)


def counts(report: Report) -> tuple[object, ...]:
    return tuple(
        getattr(report, field.name) for field in dataclasses.fields(report) if field.name != "seconds"
    )


# --- what is visited


def test_a_bounded_search_from_a_led_cluster_meets_the_dangerous_situations_and_no_violation() -> None:
    report = explore(Bounds(states=20_000), root="led", order=Order.DEVIATIONS)

    assert report.violations == []
    assert report.states >= 20_000
    assert report.transitions > report.states
    assert {
        "a leader of term 2",
        "a block of term 2 is committed",
        "a leader commits a block that is not on its own disk yet",
        "a node is down",
        "a tail was truncated",
        "diverging logs",
        "two leaders at once",
    } <= report.situations.keys()


@pytest.mark.parametrize(("root", "terms"), [("half-way", 2), ("figure-8", 3)])
def test_an_older_block_on_a_quorum_under_a_later_leader_is_met_and_not_committed_by_counting(
    root: str, terms: int
) -> None:
    report = complete(root, terms, time_outs=1)

    assert report.is_complete
    assert report.violations == []
    name = "an older block on a quorum, not committed, under a later leader (Figure 8)"
    assert report.situations[name] > 0


@pytest.mark.parametrize("root", ROOTS)
def test_every_root_is_a_world_without_violation_and_has_a_trace_that_leads_to_it(root: str) -> None:
    with fake_signatures():
        moves = Moves()
        first = root_of(root, moves, Histories(moves))
        stage = Stage(moves, Histories(moves))
        for step in first.trace:
            stage.play(step)

        assert stage.root() == first


def test_one_election_over_a_network_that_reorders_is_searched_to_the_end() -> None:
    report = complete("start", 1, time_outs=1)

    assert report.is_complete
    assert not report.beyond
    assert report.states > 10_000
    assert report.situations["a leader of term 1"] > 0


@pytest.mark.parametrize(
    ("root", "voters", "states"), [("unaware", (0, 1, 2), 3_000), ("witnessed", (0, 1), 10_000)]
)
def test_notices_are_told_and_answered_and_a_witness_takes_part(
    root: str, voters: tuple[int, ...], states: int
) -> None:
    budget = NOTHING._replace(heartbeats=1, notices=1)
    bounds = Bounds(depth=200, terms=1, in_flight=4, lost=NO_HEARTBEATS, budget=budget)
    with fake_signatures():
        search = Search(bounds, roles=roles_of(root))
        report = search.run(root_of(root, search.moves, search.histories))

    assert report.is_complete
    assert report.violations == []
    assert report.states > states
    assert {"vote-notice", "certificate-notice"} <= {envelope.kind for envelope in search.moves.envelopes}
    assert search.moves.voters == voters


@pytest.mark.slow
@pytest.mark.parametrize(("drops", "duplicates"), [(1, 0), (0, 1)])
def test_an_election_over_a_network_that_loses_or_doubles_is_searched_to_the_end(
    drops: int, duplicates: int
) -> None:
    report = complete("half-way", 2, time_outs=1, drops=drops, duplicates=duplicates)

    assert report.is_complete
    assert report.violations == []
    assert report.states > 10_000


@pytest.mark.slow
def test_two_terms_with_a_crash_and_a_slow_write_are_searched_to_the_end() -> None:
    budget = NOTHING._replace(time_outs=1, crashes=1, slow_writes=1)
    report = explore(Bounds(depth=200, terms=2, in_flight=5, budget=budget), root="cut-off")

    assert report.is_complete
    assert report.violations == []
    assert report.states > 50_000


# --- how it is visited


def test_all_orders_visit_the_same_worlds_when_they_come_to_an_end() -> None:
    visited = {
        order: complete("behind", 2, order=order, time_outs=1, slow_writes=1).states for order in Order
    }

    assert len(set(visited.values())) == 1, visited
    assert visited[Order.BREADTH] > 1_000


def test_a_search_repeats_itself() -> None:
    bounds = Bounds(states=3_000)

    assert counts(explore(bounds, order=Order.DEVIATIONS)) == counts(explore(bounds, order=Order.DEVIATIONS))


@pytest.mark.parametrize("more", Budget._fields)
def test_every_kind_of_step_leads_to_worlds_that_are_not_reached_without_it(more: str) -> None:
    # To drop or to double a message there must be one: the leader of this root speaks once an interval has passed.
    bounds = Bounds(depth=5, terms=2, budget=NOTHING._replace(heartbeats=1), lost=NO_HEARTBEATS)
    more_of_it = bounds.budget._replace(**{more: getattr(bounds.budget, more) + 1})

    base = explore(bounds, root="half-way")
    report = explore(dataclasses.replace(bounds, budget=more_of_it), root="half-way")

    assert report.states > base.states
    assert report.violations == []


@pytest.mark.slow
def test_a_search_is_the_same_in_every_process() -> None:
    command = [sys.executable, "-m", "simulations.explorer", "--states", "7000", "--json"]
    printed = [
        json.loads(
            subprocess.run(
                command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
            ).stdout
        )
        for seed in ("1", "2")
    ]
    for document in printed:
        for part in (document, *document["roots"].values()):
            part.pop("seconds")
            part.pop("states_per_second", None)

    assert printed[0] == printed[1]
    assert printed[0]["states"] >= 7_000


def test_a_search_stops_at_its_bounds_and_says_what_it_left() -> None:
    shallow = explore(Bounds(depth=3), root="led", order=Order.BREADTH)
    few = explore(Bounds(states=500), root="led", order=Order.BREADTH)

    assert shallow.depth == 3
    assert shallow.beyond["depth"] > 0
    assert not shallow.is_complete
    assert few.states >= 500
    assert few.frontier > 0
    assert not few.is_complete


# --- what is remembered is what the core does


def worlds(search: Search, count: int, seed: int) -> list[tuple[str, ...]]:
    """Return the traces of some visited worlds."""
    rng = random.Random(seed)
    return [search.trace(rng.randrange(search.report.states)) for _ in range(count)]


class Plain:
    """Three nodes that are never copied and remember nothing: the same steps, taken by the core each time."""

    def __init__(self, moves: Moves) -> None:
        members = moves._members  # the same objects: keys are told apart by identity
        self.nodes = [Node(n, members, moves.blocks.blocks[0]) for n in range(NODES)]
        self.numbers = {NodeId(key.public): n for n, key in enumerate(members.keys)}
        self.in_flight: list[Envelope] = []
        self.moves = moves
        for node in self.nodes:
            node.rest()

    def play(self, step: str) -> None:
        verb, _, rest = step.partition(" ")
        rest, slow = rest.removesuffix(" slow"), rest.endswith(" slow")
        if verb in {"deliver", "drop", "duplicate"}:
            envelope = next(each for each in self.in_flight if each.name == rest)
            if verb != "duplicate":
                self.in_flight.remove(envelope)
            if verb == "drop":
                return
            node = self.nodes[envelope.target]
            node.deliver(author(envelope.message), envelope.checked)
        else:
            node = self.nodes[int(rest) - 1]
            self.moves._give(node, Kind[verb.upper()])
        if node.raft is not None:
            node.drain(slow=slow)
        known = {(each.source, each.target, each.message): each for each in self.moves.envelopes}
        for target, message in node.sent:
            self.in_flight.append(known[node.index, self.numbers[target], message])
        for seen in (node.sent, node.asked, node.answers):
            seen.clear()
        node.rest()


def test_what_is_remembered_of_the_core_is_what_it_does_when_it_is_never_copied_nor_compared() -> None:
    bounds = Bounds(states=6_000, budget=Budget(drops=1, duplicates=1, transfers=1, reads=1))
    with fake_signatures():
        search = Search(bounds, order=Order.DEVIATIONS)
        search.run(root_of("led", search.moves, search.histories))
        for trace in worlds(search, 60, seed=1):
            stage, plain = Stage(search.moves, search.histories), Plain(search.moves)
            for step in trace:
                stage.play(step)
                plain.play(step)
            remembered: Root = stage.root()

            assert [search.moves._graphs.fingerprint(node) for node in plain.nodes] == [
                search.moves._graphs.fingerprint(search.moves._nodes[state]) for state in remembered.nodes
            ]
            assert [search.moves.envelopes[number] for number in remembered.in_flight] == plain.in_flight


def test_a_copy_shares_nothing_that_changes_and_has_the_same_fingerprint() -> None:
    with fake_signatures():
        graphs = Graphs()
        members = Members.of(VOTERS)
        node = Node(0, members, Moves().blocks.blocks[0])
        node.rest()
        copied = graphs.copy(node)
        before = graphs.fingerprint(node)

        assert graphs.fingerprint(copied) == before
        copied.time_out()
        assert graphs.fingerprint(node) == before
        assert graphs.fingerprint(copied) != before
        assert copied.raft is not None
        assert copied.raft._voter.log._reader is copied.disk  # what was one object is one object in the copy


def test_two_objects_and_one_met_twice_have_different_fingerprints() -> None:
    graphs = Graphs()
    one: list[int] = [1]

    assert graphs.fingerprint([one, one]) != graphs.fingerprint([[1], [1]])
    assert graphs.fingerprint([[1], [1]]) == graphs.fingerprint([[1], [1]])


def test_what_cannot_be_copied_soundly_is_refused() -> None:
    graphs = Graphs()

    with pytest.raises(TypeError):
        graphs.copy(random.Random(1))
    with pytest.raises(TypeError):
        graphs.fingerprint([([1],)])


# --- violations


def test_a_violation_comes_with_a_trace_that_shows_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Election, "_is_current", lambda *_: True)
    report = explore(Bounds(states=20_000), root="behind", order=Order.DEVIATIONS)

    (violation,) = report.violations
    assert "leader completeness" in violation.sentence
    assert replay(violation.trace) == violation.sentence
    for at in range(len(violation.trace) - 1):  # and every step of it is needed
        with contextlib.suppress(ValueError):  # not even possible without it
            assert replay(violation.trace[:at] + violation.trace[at + 1 :]) != violation.sentence
    monkeypatch.undo()
    with pytest.raises(ValueError, match="no such message"):  # the core as it is does not take that way
        replay(violation.trace)


def test_an_honest_node_that_is_taken_for_a_liar_and_a_core_that_fails_are_violations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_arguments: object) -> None:
        raise Invalid("nobody is believed")

    monkeypatch.setattr(Raft, "_on_pre_vote", refuse)
    assert "taken for a liar" in explore(Bounds(states=100)).violations[0].sentence
    monkeypatch.undo()

    def fail(*_arguments: object) -> None:
        raise KeyError(3)

    monkeypatch.setattr(Log, "take_unpersisted", fail)
    assert "failed" in explore(Bounds(states=100)).violations[0].sentence


# --- command line


def test_the_command_prints_one_document_and_says_by_its_exit_code_whether_all_is_well(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(["--depth", "6", "--states", "1200", "--json"])

    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert printed["violations"] == []
    assert printed["depth"] == 6
    assert printed["roots"].keys() == ROOTS.keys()
    assert printed["states"] == sum(root["states"] for root in printed["roots"].values())
    assert printed["states_per_second"] > 0
    assert printed["transitions"] > 0
    assert printed["frontier"] >= 0


def test_the_command_explains_a_violation_and_replays_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(Election, "_is_current", lambda *_: True)
    assert main(["--root", "behind", "--states", "20000"]) == 1
    printed = capsys.readouterr().out
    _, _, steps = printed.partition("VIOLATION: ")
    trace = tmp_path / "trace.txt"
    trace.write_text("# an older log wins\n" + "\n".join(steps.splitlines()[1:]), encoding="utf-8")

    assert main(["--replay", str(trace)]) == 1
    assert "leader completeness" in capsys.readouterr().out
    trace.write_text("time_out 1\n", encoding="utf-8")
    assert main(["--replay", str(trace)]) == 0
    trace.write_text("restart 1\n", encoding="utf-8")
    assert main(["--replay", str(trace)]) == 2
