import json
from pathlib import Path

import pytest
import trio

from protocol.identifiers import Term
from simulations import __main__ as command
from simulations import determinism
from simulations.faults import SCENARIOS
from simulations.runner import Options, options_of, simulate, story_of, tell
from simulations.story import AddVoter, Crash, Cut, Expectation, Heal, Story
from simulations.story_text import StoryError, format_story, parse
from simulations.world import World

OPTIONS = Options(seed=1, virtual_s=8)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_ends_without_a_violation_and_with_progress(scenario: str) -> None:
    verdict = simulate(Options(seed=3, virtual_s=24, scenario=scenario))
    assert verdict.violations == ()
    assert verdict.virtual_seconds >= 24
    assert verdict.acked > 3
    assert verdict.events["agreed"] == 1


def test_each_scenario_makes_its_faults() -> None:
    kinds = {"partition": "cut", "leader-crash": "crash", "slow-disk": "slow"}
    for scenario, kind in kinds.items():
        verdict = simulate(Options(seed=4, virtual_s=24, scenario=scenario))
        assert verdict.events[kind] > 0
        assert {"cut", "crash", "slow"} & set(verdict.events) == {kind}


KEPT_SEEDS = {54: "two terms in one turn: the vote of the first is overtaken, not forgotten"}


@pytest.mark.parametrize("seed", KEPT_SEEDS, ids=str)
def test_a_seed_that_once_failed_stays_clean(seed: int) -> None:
    verdict = simulate(Options(seed=seed, virtual_s=60))
    assert verdict.violations == ()
    assert verdict.acked > 3


def test_real_signatures_hold_too() -> None:
    verdict = simulate(Options(seed=5, virtual_s=8, real_signatures=True))
    assert verdict.violations == ()
    assert verdict.commits > 0


def test_five_voters_and_two_observers_agree() -> None:
    verdict = simulate(Options(seed=6, virtual_s=10, scenario="leader-crash", voters=5, observers=2))
    assert verdict.violations == ()
    assert verdict.commits > 0


def test_a_long_run_is_healed_now_and_then_and_at_its_end() -> None:
    story = story_of(Options(seed=9, virtual_s=360, scenario="partition"))
    healed = [event.at_s for event in story.events if isinstance(event, Heal)]
    assert healed == [100, 220]
    assert not any(
        100 <= event.at_s < 120 or 220 < event.at_s < 240
        for event in story.events[:-1]
        if event.at_s not in healed
    )
    verdict = tell(
        Story(seed=1, seconds=8, events=(Crash(1, 0, for_s=1), Heal(3), Cut(4, "out", (1,)))), OPTIONS
    )
    assert verdict.violations == ()
    assert verdict.events["agreed"] == 2


def test_a_run_is_its_story() -> None:
    options = Options(seed=4, virtual_s=12)
    drawn = simulate(options)
    told = tell(parse(format_story(story_of(options))), options)
    assert told.history_sha256 == drawn.history_sha256
    assert told.story == drawn.story == story_of(options)


def test_an_expectation_that_does_not_hold_is_a_violation() -> None:
    expect = (Expectation("commits", ">=", 10_000), Expectation("crash", "==", 1))
    verdict = tell(Story(seed=1, seconds=4, events=(Crash(2, 1),), expect=expect), OPTIONS)
    assert len(verdict.violations) == 1
    assert verdict.violations[0].startswith("expectation: commits >= 10000, but it was ")


def test_tier_b_refuses_what_it_cannot_carry_out() -> None:
    with pytest.raises(StoryError, match="tier b cannot carry out 'at 1 add-voter 3'"):
        tell(Story(seed=1, seconds=4, events=(AddVoter(1, 3),)), OPTIONS)


def test_tier_a_runs_the_same_stories() -> None:
    story = Story(seed=1, tier="a", observers=0, seconds=8, events=(Crash(2, "leader", for_s=1),))
    verdict = tell(story, options_of(story, keeps_history=True))
    assert verdict.violations == ()
    assert verdict.events["crash"] == 1
    assert any(kind == "crash" for _, kind, _ in verdict.happenings)


def test_a_node_that_fails_is_a_violation_and_ends_the_run() -> None:
    async def main() -> World:
        world = World(1, voters=1, observers=0)

        async def story() -> None:
            life = world.up()[0]

            async def fail() -> None:
                raise ZeroDivisionError

            life.nursery.start_soon(fail)
            await world.violated.wait()

        await world.run(story)
        return world

    world = determinism.run(1, main)
    assert "node 0 failed: ZeroDivisionError" in world.violations[0]
    assert any("ZeroDivisionError" in line for line in world.log)


def test_a_voter_that_restarts_goes_on_from_what_its_disk_kept() -> None:
    async def main() -> tuple[Term, int, Term, int]:
        world = World(1, voters=1, observers=0)
        seen: list[int] = []

        async def story() -> None:
            for _ in range(2):
                await trio.sleep(10)
                core = world.up()[0].core
                assert core.consensus is not None
                seen.extend((core.consensus.raft.term, core.store.tip_height()))
                await world.crash(world.nodes[0])
                assert world.up() == ()
                await world.start(world.nodes[0])

        await world.run(story)
        assert world.violations == []
        return Term(seen[0]), seen[1], Term(seen[2]), seen[3]

    term, tip, next_term, next_tip = determinism.run(2, main)
    assert next_term > term
    assert next_tip > tip >= 1


def test_the_command_prints_one_document_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    code = command.main(["--seed", "8", "--seconds", "6", "--json", "--scenario", "slow-disk"])
    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert document["seed"] == 8
    assert document["violations"] == []
    assert len(document["history_sha256"]) == 64


def test_the_command_runs_many_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    code = command.main(["--seeds", "2", "--seconds", "4", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert document["seeds"] == 2
    assert document["failed"] == []
    assert [run["seed"] for run in document["runs"]] == [0, 1]


def test_processes_share_the_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--tier", "a", "--seeds", "2", "--seconds", "3", "--nodes", "3", "--json"]
    assert command.main([*words, "--jobs", "2"]) == 0
    shared = json.loads(capsys.readouterr().out)
    assert command.main(words) == 0
    alone = json.loads(capsys.readouterr().out)
    assert [run["history_sha256"] for run in shared["runs"]] == [
        run["history_sha256"] for run in alone["runs"]
    ]


def test_the_command_prints_a_story_that_it_replays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--seed", "3", "--seconds", "8", "--json"]) == 0
    drawn = json.loads(capsys.readouterr().out)
    assert command.main(["--seed", "3", "--seconds", "8", "--story"]) == 0
    file = tmp_path / "three.story"
    file.write_text(capsys.readouterr().out)
    assert command.main(["replay", str(file), "--json", "--plot", str(tmp_path / "three.svg")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["history_sha256"] == drawn["history_sha256"]
    assert "seed 3" in (tmp_path / "three.svg").read_text()


def test_a_story_that_fails_is_shown_at_its_smallest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lost.story"
    lines = ("world seed=2 nodes=2 observers=0 seconds=4 settle=0.01", "at 1 cut out 0 for 1", "at 3 crash 1")
    file.write_text("\n".join(lines))
    assert command.main(["replay", str(file)]) == 1
    shown = capsys.readouterr().err
    assert "VIOLATION" in shown
    assert "commit " in shown
    smallest = parse(shown[shown.rindex("# at") :])
    assert len(smallest.events) < 2


def test_a_file_that_is_no_story_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.story"
    file.write_text("world seed=1\nat 1 explode 2\n")
    assert command.main(["replay", str(file)]) == 2
    assert "line 2: nothing is called 'explode'" in capsys.readouterr().err
