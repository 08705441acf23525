"""Whole nodes in the simulated world: snapshots among voters, and a leader that lacks the blocks a follower needs."""

import pytest
import trio

from node.history import History
from protocol.errors import Unavailable
from protocol.identifiers import Height
from simulations.world import Node, World
from storage.memory import MemoryStore
from tests.node.test_core import caught_up, core_of, elected, submitted


async def submitted_many(node: Node, label: str, count: int) -> None:
    for number in range(count):
        await submitted(node, f"{label} {number}")


async def voting(node: Node) -> None:
    with trio.fail_after(120):
        while node.life is None or not core_of(node).is_voting:
            await trio.sleep(0.1)


async def leading(world: World, node: Node) -> None:
    """Have a voter lead."""
    with trio.fail_after(120):
        while (leader := world.leader()) is not node:
            if leader is not None:
                consensus = core_of(leader).consensus
                assert consensus is not None
                await consensus.transfer_leadership(node.id)
            await trio.sleep(1)


async def whole(node: Node) -> None:
    with trio.fail_after(120):
        while core_of(node).store.history is not None:
            await trio.sleep(0.1)


def installed(world: World) -> int:
    return world.history.counts["installed"]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_rebuilt_voter_installs_votes_and_has_all_blocks_soon(autojump_clock, seed: int) -> None:
    world = World(seed, voters=3, observers=1)

    async def story() -> None:
        leader = await elected(world)
        await submitted_many(leader, "before", 40)
        await trio.sleep(1)
        rebuilt, other = [node for node in world.nodes[:3] if node is not leader]
        await world.rebuild(rebuilt)
        await voting(rebuilt)
        assert installed(world) == 1
        await whole(rebuilt)
        store = core_of(rebuilt).store
        assert store.first() == 0
        assert [block.height for block in store.blocks(Height(0), Height(40))] == list(range(41))
        await world.crash(other)
        assert (await submitted(rebuilt, "after")).is_accepted

    await world.run(story)
    assert world.violations == []


async def test_a_voter_that_comes_late_begins_with_a_snapshot(autojump_clock) -> None:
    world = World(4, voters=3, observers=0)

    async def story() -> None:
        late = world.nodes[2]
        await world.crash(late)
        late.rows, late.snapshot_rows = MemoryStore(), MemoryStore()
        leader = await elected(world)
        await submitted_many(leader, "before", 40)
        await trio.sleep(1)
        await world.start(late)
        await voting(late)
        assert installed(world) == 1
        await whole(late)
        await world.crash(next(node for node in world.nodes[:2] if node is not leader))
        assert (await submitted(late, "after")).is_accepted

    await world.run(story)
    assert world.violations == []


async def test_an_observer_that_was_cut_off_for_long_takes_the_state_without_a_restart(
    autojump_clock,
) -> None:
    world = World(5, voters=3, observers=1)

    async def story() -> None:
        leader, observer = await elected(world), world.nodes[3]
        await submitted_many(leader, "before", 3)
        await caught_up(observer, 3)
        for node in world.nodes[:3]:
            world.network.cut(observer.id, node.id)
            world.network.cut(node.id, observer.id)
        await submitted_many(leader, "meanwhile", 40)
        await trio.sleep(10)
        world.network.heal()
        await trio.sleep(1)
        last = await submitted(leader, "after")
        await caught_up(observer, last.height)
        assert installed(world) == 1
        await whole(observer)
        assert [block.height for block in core_of(observer).store.blocks(Height(0), last.height)] == list(
            range(last.height + 1)
        )

    await world.run(story)
    assert world.violations == []


async def test_36_a_leader_without_the_blocks_a_follower_needs_has_it_take_the_state(
    autojump_clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody fills in history: who has installed a snapshot lacks the blocks below it for the whole story.
    monkeypatch.setattr(History, "run", lambda _self: trio.sleep_forever())
    world = World(7, voters=7, observers=0)

    async def story() -> None:
        leader = await elected(world)
        behind, rebuilt = [node for node in world.nodes if node is not leader][:2]
        others = [node for node in world.nodes if node is not behind]
        await submitted_many(leader, "first", 4)
        for node in others:
            world.network.cut(behind.id, node.id)
            world.network.cut(node.id, behind.id)
        await submitted_many(leader, "second", 40)
        await trio.sleep(1)
        # The one that is behind answers the rebuilt one, and stays cut off from all who have every block.
        world.network.heal()
        for node in others:
            if node is not rebuilt:
                world.network.cut(behind.id, node.id)
                world.network.cut(node.id, behind.id)
        await world.crash(rebuilt)
        rebuilt.rows, rebuilt.snapshot_rows = MemoryStore(), MemoryStore()
        await world.rebuild(rebuilt)
        await voting(rebuilt)
        assert installed(world) == 1
        first = core_of(rebuilt).store.first()
        assert first > core_of(behind).applier.height.value + 1
        await leading(world, rebuilt)
        await caught_up(behind, first)
        await voting(behind)
        assert installed(world) == 2
        assert core_of(behind).store.first() >= first
        last = await submitted(rebuilt, "third")
        await caught_up(behind, last.height)
        # It votes again under the hard state that it had: with two of seven down, five make a certificate.
        for node in [node for node in others if node is not rebuilt][:2]:
            await world.crash(node)
        world.network.heal()
        assert (await submitted(rebuilt, "fourth")).is_accepted
        with pytest.raises(Unavailable, match="history of the ledger is still being fetched"):
            core_of(behind).store.block(Height(first - 1))

    await world.run(story)
    assert world.violations == []


async def test_a_restart_with_a_gap_goes_on_voting_and_filling_it(
    autojump_clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = History.run
    monkeypatch.setattr(History, "run", lambda _self: trio.sleep_forever())
    world = World(8, voters=3, observers=0)

    async def story() -> None:
        leader = await elected(world)
        await submitted_many(leader, "before", 40)
        await trio.sleep(1)
        rebuilt = next(node for node in world.nodes if node is not leader)
        await world.rebuild(rebuilt)
        await voting(rebuilt)
        assert core_of(rebuilt).store.first() > 0
        await world.crash(rebuilt)
        await world.start(rebuilt)
        await voting(rebuilt)
        await submitted_many(rebuilt, "between", 4)
        await world.crash(rebuilt)
        monkeypatch.setattr(History, "run", run)
        await world.start(rebuilt)
        await whole(rebuilt)
        assert core_of(rebuilt).store.first() == 0

    await world.run(story)
    assert world.violations == []
