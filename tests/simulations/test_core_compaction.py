"""Tier A with members that hold only their newest blocks: snapshots are offered, installed, and nothing is lost."""

import pytest

from simulations import core_compaction
from simulations.core_world import simulate_core
from simulations.runner import Options, Verdict, story_of
from simulations.story import Load
from simulations.story_text import parse

LAGGING = "\n".join(
    f"at {at} cut both {node} for 4" for at, node in zip(range(2, 40, 5), (0, 1, 2, 3) * 2, strict=True)
)


def told(seed: int, lines: str) -> Verdict:
    options = Options(seed, 40.0, voters=3, observers=1, tier="a")
    events = parse(f"world tier=a seed={seed} nodes=3 observers=1 seconds=40\n{lines}").events
    return simulate_core(options, events, load=Load(3, 0.2))


def test_members_that_lag_are_told_so_and_go_on_from_what_they_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those cut off need what their leader has dropped meanwhile; some seeds drop often."""
    monkeypatch.setattr(core_compaction, "_SEEDS", 1.0)
    monkeypatch.setattr(core_compaction, "_EVERY_S", (0.5,))
    counts = {"behind": 0, "install": 0, "history": 0}
    for seed in range(6):
        verdict = told(seed, LAGGING)
        assert verdict.violations == ()
        counts = {kind: count + verdict.events.get(kind, 0) for kind, count in counts.items()}
    assert counts["behind"] >= 6
    assert counts["install"] > counts["behind"]  # some unasked
    assert counts["history"] > 100


def test_seeds_meet_it_and_others_do_not() -> None:
    met = set()
    for seed in range(12):
        options = Options(seed, 20.0, voters=3, tier="a")
        met.add("history" in simulate_core(options, story_of(options).events).events)
    assert met == {True, False}


def test_a_seed_that_drops_and_installs_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_compaction, "_SEEDS", 1.0)
    first, second = told(3, LAGGING), told(3, LAGGING)
    assert first.history_sha256 == second.history_sha256
    assert first.events["history"] > 0
