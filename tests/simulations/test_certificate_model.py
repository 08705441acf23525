"""The model of certificates: what it visits, what it merges, that what it finds can be found again, and its command."""

import json
import random

import pytest

from simulations.__main__ import main
from simulations.certificate_model_evidence import Evidence
from simulations.certificate_model_guards import Act, Move
from simulations.certificate_model_rules import MEANINGS, Rule, Rules
from simulations.certificate_model_search import Finding, Model, Report, Search
from simulations.certificate_model_settling import Settling
from simulations.certificate_model_stages import STAGES
from simulations.certificate_model_states import (
    GENESIS,
    Acknowledgement,
    Bounds,
    Chain,
    Configuration,
    Grant,
    Kind,
    Request,
    Setting,
    Statements,
    Vote,
)
from simulations.certificate_model_symmetry import Symmetry
from simulations.certificate_model_walk import Run, shortened, walk

FOUR = Setting(4, (Configuration((0, 1, 2, 3)),), (), 3)


def looked_at(stage: str, *without: Rule, states: int = 8_000, promise: str = "") -> tuple[Model, Report]:
    """Search a stage until something is found or so many worlds are seen."""
    chosen = STAGES[stage]
    model = Model(chosen.setting, chosen.bounds, without, promise=promise)
    search = Search(model, root=chosen.root(model.chain, model.setting))
    return model, search.run(states=states, seconds=120)


# --- quorums (ledger.md 1.3)


@pytest.mark.parametrize(
    ("voters", "witnesses", "r", "b", "q"),
    [
        (2, 0, 2, 0, 2),
        (3, 0, 2, 0, 2),
        (4, 0, 3, 1, 3),
        (5, 0, 3, 1, 4),
        (6, 0, 4, 1, 4),
        (7, 0, 4, 2, 5),
        (9, 0, 5, 2, 6),
        (3, 1, 2, 1, 3),
        (3, 2, 2, 1, 4),
        (4, 1, 3, 1, 4),
        (5, 1, 3, 1, 4),
        (5, 2, 3, 2, 5),
    ],
)
def test_quorums_are_those_of_the_table(voters: int, witnesses: int, r: int, b: int, q: int) -> None:
    members = tuple(range(voters + witnesses))
    configuration = Configuration(members[:voters], members[voters:])

    assert configuration.raft_quorum == r
    assert configuration.liars_tolerated == b
    assert configuration.certificate_quorum == q


# --- what is visited


@pytest.mark.parametrize(
    ("stage", "at_least", "acts"),
    [
        ("rejoin", 3_000, {"vote", "learn", "lose", "rejoin"}),
        ("led", 4_000, {"stand", "grant", "lead", "vote"}),
        ("left", 4_000, {"stand", "grant", "vote", "learn", "leave", "crash"}),
    ],
)
def test_a_stage_is_searched_to_its_end_and_the_published_rules_hold(
    stage: str, at_least: int, acts: set[str]
) -> None:
    _, report = looked_at(stage, states=100_000)

    assert report.finding is None
    assert report.is_complete
    assert report.states > at_least
    assert acts <= report.acts.keys()


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_breaks_a_promise_in_its_first_worlds(stage: str) -> None:
    _, report = looked_at(stage, states=1_500)

    assert report.finding is None
    assert report.states >= 1_500 or report.is_complete


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["switch", "one-height", "equivocated"])
def test_larger_stages_are_searched_to_their_end(stage: str) -> None:
    _, report = looked_at(stage, states=400_000)

    assert report.finding is None
    assert report.is_complete
    assert report.states > 40_000


def test_merging_worlds_that_differ_in_who_is_who_leaves_out_most_and_changes_no_verdict() -> None:
    bounds = Bounds(terms=1, heights=1, stands=1)
    merged = Search(Model(FOUR, bounds)).run(states=50_000, seconds=60)
    plain = Search(Model(FOUR, bounds), merges=False).run(states=50_000, seconds=60)

    assert merged.is_complete
    assert plain.is_complete
    assert (merged.renamings, plain.renamings) == (6, 1)
    assert 3 * merged.states < plain.states <= 6 * merged.states
    assert merged.acts.keys() == plain.acts.keys()


def test_without_merging_the_same_promise_is_broken_after_as_many_moves() -> None:
    bounds = Bounds(terms=1, heights=2, stands=0)
    lengths = []
    for merges in (True, False):
        report = Search(Model(FOUR, bounds, [Rule.MARKER]), merges=merges).run(states=50_000, seconds=60)
        assert report.finding is not None
        assert report.finding.category == "conviction E2"
        lengths.append(len(report.finding.trace))

    assert lengths[0] == lengths[1]


def test_a_renaming_turns_moves_into_moves() -> None:
    rng = random.Random(5)
    for number in range(12):
        run = Run(11, number)
        run.go()
        model = run.model
        symmetry = Symmetry(model.setting, model.chain)
        renaming = rng.randrange(len(symmetry.renamings))
        world = renamed = model.first_world()
        for move in run.trace:
            other = symmetry.move(renaming, move)
            assert other in model.moves.possible(renamed, other.act)
            world, _ = model.steps.after(world, move)
            renamed, _ = model.steps.after(renamed, other)

        assert symmetry.known(world).key == symmetry.known(renamed).key


def test_a_search_repeats_itself() -> None:
    first, second = (walk(seed=3, runs=15, seconds=60) for _ in range(2))

    assert first.steps == second.steps > 0
    assert first.situations == second.situations


def test_a_trace_with_a_move_that_the_rules_forbid_is_refused() -> None:
    model = Model(FOUR, Bounds())

    with pytest.raises(ValueError, match="not possible here"):
        model.play([Move(Act.VOTE, 0, GENESIS)])


def test_a_shortened_trace_needs_each_of_its_moves() -> None:
    tally = walk(seed=1, runs=400, seconds=60, without=frozenset({Rule.EXACT_ACKNOWLEDGEMENTS}))

    assert tally.model is not None
    assert tally.finding is not None
    assert tally.model.play(tally.finding.trace)[1] == tally.finding.sentence
    for at in range(len(tally.finding.trace) - 1):
        trace = tally.finding.trace[:at] + tally.finding.trace[at + 1 :]
        try:
            broken = tally.model.play(trace)[1]
        except ValueError:
            continue  # not even possible without it
        assert broken is None
    assert shortened(tally.model, tally.finding) == tally.finding


def test_a_world_of_honest_members_goes_on_and_one_with_too_few_voices_does_not() -> None:
    setting = Setting(2, (Configuration((0, 1)),))
    model = Model(setting, Bounds(losses=1))
    world, _ = model.play([Move(Act.STAND, 0)])
    silent, _ = model.play([Move(Act.STAND, 0), Move(Act.LOSE, 0)])

    assert Settling(model.rules).goes_on(world)
    assert not Settling(model.rules).goes_on(silent)  # two members and one store lost: section 7.4


# --- evidence (ledger.md 1.2), as values that a recorded trace gives too


class Fork:
    """Two branches upon one opening: a1-a2 of member 1 in term 1, b2-b3 of member 2 in term 2."""

    def __init__(self, *without: Rule) -> None:
        self.chain = Chain(FOUR)
        self.opening = self.chain.child(GENESIS, 1, 0, Kind.OPENING)
        self.a2 = self.chain.child(self.opening, 1, 0, Kind.DATA)
        self.b2 = self.chain.child(self.opening, 2, 1, Kind.OPENING)
        self.b3 = self.chain.child(self.b2, 2, 1, Kind.DATA)
        self.evidence = Evidence(self.chain, frozenset(without))

    def names(self, said: Statements, *headers: int, certified: int = 1) -> list[str]:
        made = sum(1 << header for header in headers)
        return list(self.evidence.convictions(said, made, certified))


def test_two_headers_of_one_height_and_term_convict() -> None:
    fork = Fork()
    twin = fork.chain.child(fork.opening, 1, 0, Kind.DATA, 1)

    assert fork.names(Statements(), fork.a2, twin) == ["E1"]
    assert fork.names(Statements(), fork.opening, fork.a2) == []
    assert Fork(Rule.EXACT_HEADERS).names(Statements(), 1, 2) == ["E1"]


def test_two_acknowledgements_convict_within_a_term_and_an_incarnation_only() -> None:
    fork = Fork()
    pairs = {
        (0, 1, 0, 1): ["E2"],
        (0, 1, 0, 2): [],
        (0, 1, 1, 1): [],
    }

    for (one, term, other, later), names in pairs.items():
        said = (Acknowledgement(one, term, fork.a2), Acknowledgement(other, later, fork.b2))
        assert fork.names(Statements(acknowledgements=said)) == names


def test_two_votes_convict_unless_a_base_lies_above_where_they_part() -> None:
    fork = Fork()
    without_excuse = Statements(votes=(Vote(0, fork.a2, GENESIS), Vote(0, fork.b3, fork.opening)))
    excused = Statements(votes=(Vote(0, fork.a2, GENESIS), Vote(0, fork.b3, fork.b2)))

    assert fork.names(without_excuse) == ["E3"]
    assert fork.names(excused) == []
    assert Fork(Rule.EXACT_VOTES).names(excused) == ["E3"]


def test_a_base_that_conflicts_with_a_certificate_convicts_and_a_vote_that_does_is_none() -> None:
    fork = Fork()
    certified = 1 | 1 << fork.a2

    assert fork.names(Statements(votes=(Vote(0, fork.b3, fork.b2),)), certified=certified) == ["E3b"]
    assert fork.names(Statements(votes=(Vote(0, fork.b3, fork.opening),)), certified=certified) == []


def test_two_grants_convict_within_an_incarnation_only() -> None:
    fork = Fork()
    twice = Statements(grants=(Grant(0, 2, 0, GENESIS), Grant(0, 2, 1, GENESIS)))
    restored = Statements(grants=(Grant(0, 2, 0, GENESIS), Grant(1, 2, 1, GENESIS)))

    assert fork.names(twice) == ["E4"]
    assert fork.names(restored) == []


def test_a_request_convicts_who_hides_a_term_or_a_log_and_heeds_certificates() -> None:
    fork = Fork()
    acknowledged = (Acknowledgement(0, 1, fork.a2),)

    def names(request: Request, *headers: int) -> list[str]:
        return fork.names(Statements(acknowledged, requests=(request,)), *headers)

    assert names(Request(0, 3, fork.b3, 0, GENESIS)) == ["E5a"]
    assert names(Request(0, 3, fork.b3, 1, fork.opening)) == ["E5b"]
    assert names(Request(0, 3, fork.opening, 1, fork.opening)) == ["E5b"]
    assert names(Request(0, 3, fork.b3, 1, fork.b2)) == []
    assert names(Request(1, 3, fork.b3, 0, GENESIS)) == []
    assert names(Request(0, 2, fork.a2, 1, GENESIS), fork.b2) == ["E5c"]


# --- the command


def test_the_command_searches_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "--search", "20", "--seed", "7", "--json"]) == 0

    printed = json.loads(capsys.readouterr().out)
    assert printed["runs"] == 20
    assert printed["steps"] > 100
    assert printed["broken"] is None
    assert printed["situations"]["a block of a later term is final"] > 0


def test_the_command_looks_at_every_stage_and_says_how_far(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "--exhaustive", "--states", "800", "--json"]) == 0

    printed = json.loads(capsys.readouterr().out)
    assert printed["stages"].keys() == STAGES.keys()
    assert all(stage["states"] > 1 and stage["broken"] is None for stage in printed["stages"].values())


def test_the_command_tells_how_a_promise_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model", "--exhaustive", "--stage", "equivocated", "--states", "9000", "--without", "two-phase"]

    assert main(words) == 1
    printed = capsys.readouterr().out
    assert "BROKEN: fork: " in printed
    assert "member 4 lies" in printed
    assert "member 1 grants term 1 to member 4, who shows genesis" in printed


def test_every_rule_can_be_left_out_and_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["model", "--help"])

    printed = capsys.readouterr().out
    assert all(f"{rule}: {MEANINGS[rule]}" in printed for rule in Rule)
    assert all(not Rules(FOUR, Chain(FOUR), [rule]).has(rule) for rule in Rule)


def test_a_finding_has_the_category_of_its_promise() -> None:
    assert Finding("conviction: E5b names member 1, who", ()).category == "conviction E5b"
    assert Finding("order undone: a and b", ()).category == "order undone"
