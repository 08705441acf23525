from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations import faults
from simulations.faults import DRAWN, SCENARIOS, Stage
from simulations.runner import Options, story_of
from simulations.story import Crash, DiskLies, Event, RemoveVoter, SetQuality, Story, Tier
from simulations.story_text import check, format_story, parse

STAGE = Stage("b", voters=3, members=4, start_s=0, end_s=60, liar=1)


def drawn(scenario: str, seed: int, stage: Stage = STAGE) -> tuple[Event, ...]:
    return faults.draw(scenario, Random(seed), stage)


def test_the_plans_of_a_swarm_differ_and_leave_faults_out() -> None:
    kinds = [frozenset(event.kind for event in drawn("mixed", seed)) for seed in range(40)]
    assert len(set(kinds)) > 20
    assert any("crash" in some and "cut" not in some for some in kinds)
    assert any("cut" in some and "crash" not in some for some in kinds)


@pytest.mark.parametrize("tier", ["a", "b"])
def test_over_many_seeds_every_kind_comes(tier: Tier) -> None:
    stage = Stage(tier, voters=3, members=5, start_s=0, end_s=60, liar=1)
    kinds = {event.kind for seed in range(300) for event in drawn("mixed", seed, stage)}
    assert DRAWN[tier] - {"members", "leader-crash", "clock"} <= kinds
    assert {"quality"} <= kinds


def test_a_scenario_knows_its_own_faults_only() -> None:
    assert {event.kind for event in drawn("partition", 1)} == {"cut"}
    assert {event.kind for event in drawn("slow-disk", 1)} == {"slow"}
    assert all(isinstance(e, Crash) and e.node == "leader" for e in drawn("leader-crash", 1))
    with pytest.raises(ValueError, match="no scenario earthquake; there are mixed"):
        drawn("earthquake", 1)


def test_events_are_within_their_round_and_in_order() -> None:
    stage = Stage("a", voters=5, members=5, start_s=120, end_s=220)
    for seed in range(20):
        times = [event.at_s for event in drawn("mixed", seed, stage)]
        assert times == sorted(times)
        assert all(120 <= at_s < 220 for at_s in times)


def test_at_most_one_disk_of_a_run_lies_and_then_loses_its_power() -> None:
    stories = [story_of(Options(seed=seed, virtual_s=600)) for seed in range(40)]
    liars = [{event.node for event in story.events if isinstance(event, DiskLies)} for story in stories]
    assert any(liars)
    assert all(len(each) <= 1 for each in liars)


@given(
    st.integers(0, 2**32),
    st.sampled_from(SCENARIOS),
    st.sampled_from(("a", "b")),
    st.integers(1, 5),
    st.integers(0, 2),
    st.sampled_from((10.0, 60.0, 300.0)),
)
def test_every_seed_is_a_story_that_its_text_tells(
    seed: int, scenario: str, tier: Tier, voters: int, observers: int, seconds: float
) -> None:
    story = story_of(Options(seed, seconds, scenario, voters, observers, tier=tier))
    check(story)
    assert parse(format_story(story)) == story
    assert not (tier == "b" and any(isinstance(event, RemoveVoter) for event in story.events))


def test_one_seed_is_one_story() -> None:
    options = Options(seed=5, virtual_s=60)
    assert story_of(options) == story_of(options)
    assert story_of(options) != story_of(Options(seed=6, virtual_s=60))
    assert isinstance(story_of(options), Story)


def test_qualities_differ_between_seeds() -> None:
    qualities = {e.changes for seed in range(30) for e in drawn("mixed", seed) if isinstance(e, SetQuality)}
    assert len(qualities) > 15
