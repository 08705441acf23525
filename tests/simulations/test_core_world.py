"""Tier A: cores on a heap of events. It repeats itself, carries out the story language, and finds broken cores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from protocol import limits
from simulations import faults, story
from simulations.core_world import simulate_core
from simulations.runner import Options, Verdict, story_of
from simulations.story_text import StoryError, parse

ROOT = Path(__file__).parent.parent.parent
HASH = (
    "from simulations.runner import *; print(simulate(Options(5, 12.0, voters=5, tier='a')).history_sha256)"
)


def told(text: str) -> Verdict:
    """Return the verdict on a story of tier A."""
    tale = parse(text)
    options = Options(tale.seed, tale.seconds, voters=tale.nodes, observers=tale.observers, tier="a")
    return simulate_core(options, tale.events, quality=tale.quality, load=tale.load, settle_s=tale.settle_s)


def test_a_calm_run_has_one_leader_and_loses_nothing() -> None:
    verdict = told("world tier=a seed=1 nodes=5 observers=0 seconds=20\nload clients=3 mean_s=0.3")
    assert verdict.violations == ()
    assert verdict.leader_changes == 1
    assert verdict.acked > 50
    assert verdict.events["agreed"] == 1
    assert verdict.events["read"] > 10


@pytest.mark.parametrize("seed", range(12))
def test_seeds_with_everything_that_goes_wrong_find_nothing(seed: int) -> None:
    options = Options(seed, 15.0, voters=5, observers=1, tier="a")
    verdict = simulate_core(options, story_of(options).events)
    assert verdict.violations == ()
    assert verdict.commits > 0


def test_two_runs_of_a_seed_are_equal_and_two_seeds_are_not() -> None:
    def run(seed: int) -> Verdict:
        options = Options(seed, 8.0, voters=3, tier="a")
        return simulate_core(options, story_of(options).events)

    assert run(3).history_sha256 == run(3).history_sha256
    assert run(3).events == run(3).events
    assert run(3).history_sha256 != run(4).history_sha256


@pytest.mark.slow
def test_two_processes_agree_whatever_their_hashes_are_seeded_with() -> None:
    def digest(seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = (sys.executable, "-c", HASH)
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    assert digest("1") == digest("2")


@pytest.mark.parametrize(
    ("line", "kind", "least"),
    [
        ("at 3 cut both leader for 4", "cut", 1),
        ("at 3 cut in 0 1 for 2", "cut", 1),
        ("at 3 bridge 2 for 5", "bridge", 1),
        ("at 3 flap 0 1 every 0.1 for 3", "flap", 1),
        ("at 3 clog 0 1 for 2", "clog", 1),
        ("at 3 link 0 1 loss=0.5 for 2", "link", 1),
        ("at 3 quality loss=0.1 reorder=0.3 duplicate=0.2", "quality", 1),
        ("at 3 crash leader for 1.5", "crash", 1),
        ("at 3 crash leader for 1.5 in-write", "crash", 1),
        ("at 3 crash leader", "crash", 1),
        ("at 3 blackout for 2", "crash", 5),
        ("at 3 pause leader for 4", "pause", 1),
        ("at 3 clock 2 +3600000ms", "clock", 1),
        ("at 3 drift 2 0.01", "drift", 1),
        ("at 3 slow leader 500ms for 3.2", "slow", 1),
        ("at 3 disk-error leader for 1", "disk-error", 1),
        ("at 3 disk-full leader for 3", "disk-full", 1),
        ("at 3 transfer follower", "leader", 2),
        ("at 3 add-voter 5", "add-voter", 1),
        ("at 3 remove-voter 2", "remove-voter", 1),
        ("at 5 heal", "agreed", 2),
    ],
)
def test_every_kind_of_event_happens_and_does_no_harm(line: str, kind: str, least: int) -> None:
    verdict = told(f"world tier=a seed=2 nodes=5 observers=1 seconds=12\nload mean_s=0.3\n{line}")
    assert verdict.violations == ()
    assert verdict.events[kind] >= least


@pytest.mark.parametrize("line", ["at 3 disk-lies 1", "at 3 bit-rot 2"])
def test_what_needs_more_than_a_core_is_refused_with_a_reason(line: str) -> None:
    with pytest.raises(StoryError, match=rf"tier a cannot carry out '{line}': .*use tier b"):
        told(f"world tier=a seed=2 nodes=5 seconds=12\n{line}")


def test_every_kind_that_is_drawn_for_tier_a_is_carried_out() -> None:
    carried = set(story.EVENT_KINDS) - {story.DiskLies.kind, story.BitRot.kind}
    for seed in range(40):
        stage = faults.Stage("a", 5, 6, 0.0, 60.0, 0)
        assert {event.kind for event in story_of(Options(seed, 60.0, voters=5, tier="a")).events} <= carried
        assert stage.tier == "a"


def test_a_voter_added_counts_and_one_removed_does_not() -> None:
    verdict = told(
        "world tier=a seed=4 nodes=3 observers=1 seconds=20\nload mean_s=0.3\n"
        "at 3 add-voter 3\nat 6 remove-voter 0\nat 9 remove-voter 1\n"
        # Of 2 and 3 both must be there: one alone is no quorum of the two that are left.
        "at 14 crash 2 for 3"
    )
    assert verdict.violations == ()
    assert verdict.events["leader"] >= 1


def test_a_run_keeps_what_a_picture_is_drawn_from_and_leaves_the_limits_as_they_were() -> None:
    before = {name: getattr(limits, name) for name in dir(limits) if name.isupper()}
    options = Options(6, 5.0, voters=3, tier="a", keeps_history=True)
    verdict = simulate_core(options, ())
    assert [kind for _, kind, _ in verdict.happenings].count("start") == 4
    assert verdict.log[0].startswith("limits ")
    assert {name: getattr(limits, name) for name in dir(limits) if name.isupper()} == before
