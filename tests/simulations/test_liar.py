"""One liar among real cores: what it does is proven, nobody else is accused, and the honest ones go on (ledger.md 3.3)."""

import functools
from random import Random

import pytest

from protocol import evidence
from protocol.configuration import network_id
from protocol.evidence_trees import TwoTrees
from protocol.identifiers import NodeId
from protocol.signing import SigningKey
from simulations.liar import Lie, two_checkpoints
from simulations.liar_world import LyingRun, run_lying
from tests.protocol.ledgers import configuration, key

SEEDS = range(3)
VIRTUAL_S = 12.0
PROVABLE = {
    Lie.EQUIVOCATE: "E1",
    Lie.FORGE_TIP: "E5c",
    Lie.INVALID_BLOCK: "E7",
    Lie.DOUBLE_VOTE: "E4",
}


@functools.cache
def runs(lie: Lie, voters: int) -> list[LyingRun]:
    return [run_lying(seed, lie, voters=voters, virtual_s=VIRTUAL_S) for seed in SEEDS]


@pytest.mark.parametrize("lie", Lie)
def test_whoever_lies_nobody_else_is_convicted_and_the_ledger_grows(lie: Lie) -> None:
    for run in runs(lie, 4):
        assert {node for found in run.convictions for node in found.nodes} <= {run.liar}
        assert run.forks == (), "of four, one liar makes no two histories"
        assert run.height > 10


@pytest.mark.parametrize(("lie", "kind"), PROVABLE.items())
def test_a_lie_that_was_told_is_proven(lie: Lie, kind: str) -> None:
    found = runs(lie, 3)

    assert sum(run.lies for run in found) > 0
    assert kind in {conviction.kind for run in found for conviction in run.convictions}


def test_a_commit_that_is_only_claimed_is_refused_and_nothing_applied() -> None:
    found = runs(Lie.FALSE_COMMIT, 3)

    assert any("commit proof" in reason for run in found for reason in run.refused)
    assert all(run.forks == () for run in found)


def test_a_fork_among_three_is_proven() -> None:
    """Two of three are a quorum: a liar can have two histories certified. Whoever compares them knows who did it."""
    forked = [run for run in runs(Lie.EQUIVOCATE, 3) if run.forks]

    assert forked
    for run in forked:
        assert {conviction.nodes for conviction in run.convictions} == {(run.liar,)}
        assert "E3" in {conviction.kind for conviction in run.convictions}


def test_two_checkpoints_of_one_size_convict_their_signer() -> None:
    genesis = configuration("hospital", "clinic", "lab")
    secret: SigningKey = key("clinic")
    network = network_id(genesis)
    one, other = two_checkpoints(secret, network, 7, Random(1))
    found = TwoTrees(NodeId(secret.public), one, other, 0, ())

    assert evidence.check(found, network, {genesis.digest: genesis}).nodes == (NodeId(secret.public),)


@pytest.mark.slow
def test_the_maker_of_a_certificate_that_others_lack_is_not_left_convicted() -> None:
    run = run_lying(3024, Lie.EQUIVOCATE, voters=3, virtual_s=60.0)

    assert run.forks
    assert {conviction.nodes for conviction in run.convictions} == {(run.liar,)}


@pytest.mark.slow
def test_two_that_stand_on_two_certified_chains_do_not_answer_each_other_without_end() -> None:
    """The core of a liar that shows another history takes each refusal for agreement, and would send the same once more."""
    run = run_lying(6017, Lie.EQUIVOCATE, voters=3, virtual_s=50.0)

    assert run.forks
    assert not run.is_stormy


@pytest.mark.slow
@pytest.mark.parametrize("lie", Lie)
def test_many_seeds_convict_nobody_but_the_liar(lie: Lie) -> None:
    for seed in range(100, 130):
        run = run_lying(seed, lie, voters=3 + seed % 3)
        assert {node for found in run.convictions for node in found.nodes} <= {run.liar}, f"seed {seed}"
        assert seed % 3 == 0 or run.forks == (), f"seed {seed}"
