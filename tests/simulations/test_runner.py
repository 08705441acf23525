import json

import pytest
import trio

from protocol.identifiers import Term
from simulations import __main__ as command
from simulations import determinism, faults
from simulations.faults import SCENARIOS
from simulations.runner import Options, simulate
from simulations.world import World


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


def test_plans_of_a_swarm_differ_and_leave_faults_out() -> None:
    rng = determinism.stream(1, "plans")
    plans = {faults.draw("mixed", rng) for _ in range(20)}
    assert len(plans) > 15
    assert any(plan.crash_every_s == 0 < plan.partition_every_s for plan in plans)
    with pytest.raises(ValueError, match="no scenario"):
        faults.draw("earthquake", rng)


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
