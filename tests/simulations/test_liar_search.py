"""`python -m simulations liar`: what counts as a violation, and how it is told."""

import dataclasses

import pytest

from protocol.evidence import Conviction
from protocol.identifiers import ZERO, Digest, Height, NodeId
from simulations import liar_search
from simulations.liar import Lie
from simulations.liar_search import LyingSeed, judge, main, summary, wrongs
from simulations.liar_world import LyingRun

LIAR, HONEST = NodeId(b"l" * 32), NodeId(b"h" * 32)
QUIET = LyingRun(0, LIAR, (), (), (), Height(40), {})


def against(node: NodeId) -> Conviction:
    return Conviction("E1", (node,), Height(7), Digest(ZERO))


@pytest.mark.parametrize(
    ("changes", "voters", "words"),
    [
        ({}, 4, ()),
        ({"convictions": (against(LIAR),)}, 4, ()),
        ({"convictions": (against(LIAR),), "forks": (Height(7),)}, 3, ()),
        ({"convictions": (against(HONEST),)}, 4, ("convicts somebody honest of E1",)),
        ({"forks": (Height(7),)}, 4, ("honest members have different final blocks at 7",)),
        (
            {"forks": (Height(7),), "unproven": (Height(7),)},
            3,
            ("a fork at 7 does not convict the liar at the first exchange",),
        ),
        ({"is_stormy": True}, 4, ("over 2000 messages within a second",)),
    ],
)
def test_a_fork_of_four_an_unproven_one_of_three_a_wrong_conviction_and_a_storm_are_violations(
    changes: dict[str, object], voters: int, words: tuple[str, ...]
) -> None:
    assert wrongs(dataclasses.replace(QUIET, **changes), voters) == words  # type: ignore[arg-type]  # by name


def test_a_seed_is_judged_and_counted_by_its_lie() -> None:
    verdict = judge(LyingSeed(2, Lie.DOUBLE_VOTE, 4, 6.0))

    assert (verdict.wrongs, verdict.kinds) == ((), ("E4",))
    (line,) = summary([verdict, verdict])
    assert line.startswith("double vote: 2 seeds")
    assert "proven in 2 (E4 in 2), forked in 0" in line


def test_the_command_ends_with_1_and_says_how_to_see_a_violation_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--seed", "1", "--seconds", "2", "--lie", "withhold"]) == 0
    assert "1 seeds of 2 virtual s, 4 signers" in capsys.readouterr().out

    monkeypatch.setattr(liar_search, "_SAFE_SIGNERS", 3)  # as if three could bear a liar
    code = main(["--seed", "1000", "--seconds", "30", "--lie", "equivocate", "--voters", "3"])

    said = capsys.readouterr().out
    assert code == 1
    assert "VIOLATION seed 1000, equivocating leader: honest members have different final blocks" in said
    assert "again: python -m simulations liar --seed 1000 --lie equivocate --voters 3 --seconds 30" in said
    assert said.rstrip().endswith("1 violation")
