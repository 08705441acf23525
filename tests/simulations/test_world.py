"""What breaks in whole nodes, and what they make of it: ledger.md 3.1 and 3.2, by number."""

import pytest
import trio

from node.awaiting_disk import RoomAwaitingDisk
from node.recall import Recall
from protocol.identifiers import Height
from simulations import determinism
from simulations.world import Node, World
from storage import keyspace
from storage.key_value import Batch
from storage.ledger_store import LedgerStore
from tests.simulations.trials import elected, tell


def followers(world: World, leader: Node) -> list[Node]:
    return [node for node in world.nodes if node is not leader and node.id in world.configuration.voters]


def rows(node: Node, family: bytes) -> list[bytes]:
    return [key for key, _ in node.rows.scan(*keyspace.prefix_range(family))]


def votes(node: Node) -> bool:
    return node.life is not None and node.life.core.is_voting


# --- disks: 28 to 31, 57 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_leader", [True, False])
def test_a_node_whose_fsync_failed_ends_and_comes_back(of_leader: bool) -> None:
    lives = []

    async def story(world: World) -> None:
        leader = await elected(world)
        node = leader if of_leader else followers(world, leader)[0]
        await trio.sleep(1)
        world.fail_disk(node, down_s=2)
        await trio.sleep(1.5)
        lives.append(node.life is None)
        await trio.sleep(3)
        lives.append(votes(node))

    world = tell(30, story)
    assert world.violations == []
    assert world.history.counts["failed"] == 1
    assert lives == [True, True]


def test_a_node_that_went_on_after_its_fsync_failed_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def deaf(self: RoomAwaitingDisk, batch: Batch, *, sync: bool) -> None:
        try:
            await self._disk.commit(batch, sync=sync)
        except OSError:
            await trio.sleep_forever()

    async def story(world: World) -> None:
        world.fail_disk(await elected(world))
        await trio.sleep(4)

    monkeypatch.setattr(RoomAwaitingDisk, "commit", deaf)
    assert "goes on although its disk has failed" in tell(30, story).violations[0]


def test_a_full_disk_makes_a_voter_silent_and_it_goes_on_when_there_is_room() -> None:
    heights: list[int] = []

    async def story(world: World) -> None:
        leader = await elected(world)
        await trio.sleep(2)
        for node in world.nodes:
            world.fill_disk(node)
        await trio.sleep(1)
        heights.append(world.chain.height)
        await trio.sleep(4)
        heights.append(world.chain.height)
        assert all(node.life is not None for node in world.nodes), "silent, not dead"
        for node in world.nodes:
            world.free_disk(node)
        await trio.sleep(8)
        heights.append(world.chain.height)
        world.fill_disk(leader)
        await trio.sleep(4)
        await world.crash(leader)
        await world.start(leader)
        await trio.sleep(2)
        world.free_disk(leader)

    assert tell(31, story).violations == []
    assert heights[0] == heights[1] < heights[2]


@pytest.mark.slow
@pytest.mark.parametrize("family", [keyspace.BLOCK, keyspace.CERTIFICATE])
def test_damaged_blocks_are_served_to_nobody_and_do_not_count_as_a_breach(family: bytes) -> None:
    async def story(world: World) -> None:
        observer = world.nodes[3]
        await trio.sleep(4)
        await world.crash(observer)
        await trio.sleep(3)
        for node in world.nodes[:2]:
            node.rows.damage(rows(node, family)[-8:-6])
        await world.start(observer)
        await trio.sleep(10)
        assert observer.life is not None
        caught_up.append(observer.life.core.applier.height.value >= world.chain.height - 2)

    caught_up: list[bool] = []
    world = tell(29, story)
    assert world.violations == []
    assert caught_up == [True]


@pytest.mark.slow
def test_a_node_that_reads_a_damaged_row_of_state_ends_and_is_rebuilt_from_its_peers() -> None:
    async def story(world: World) -> None:
        await trio.sleep(4)
        node = world.nodes[0]
        node.rows.damage(rows(node, keyspace.STATE))
        await trio.sleep(15)
        rebuilt.append(votes(node) and not node.rows.damaged)

    rebuilt: list[bool] = []
    world = tell(29, story)
    assert world.violations == []
    assert world.history.counts["damaged"] == 1
    assert rebuilt == [True]


@pytest.mark.slow
@pytest.mark.parametrize("key", [keyspace.HARD_STATE, keyspace.APPLIED])
def test_a_voter_without_its_hard_state_or_mark_does_not_start_and_is_rebuilt(key: bytes) -> None:
    async def story(world: World) -> None:
        leader = await elected(world)
        await trio.sleep(2)
        await world.crash(leader)
        leader.rows.damage([key])
        await world.start(leader)
        assert leader.life is None
        await trio.sleep(15)
        assert votes(leader)

    world = tell(29, story)
    assert world.violations == []
    assert world.history.counts["rebuild"] == 1


@pytest.mark.parametrize("of_leader", [True, False])
@pytest.mark.parametrize("seed", [1, 2])
def test_what_a_lying_disk_forgot_is_asked_for_before_the_voter_signs_again(
    of_leader: bool, seed: int
) -> None:
    async def story(world: World) -> None:
        leader = await elected(world)
        liar = leader if of_leader else followers(world, leader)[0]
        world.lie_disk(liar)
        for _ in range(3):
            await trio.sleep(2.5)
            await world.crash(liar)
            await trio.sleep(0.2)
            await world.start(liar)

    world = tell(seed, story)
    assert world.violations == []
    assert world.history.counts["forgot"] >= 1
    assert world.history.counts["excuse"] == 0


@pytest.mark.slow
def test_a_voter_that_does_not_ask_after_a_lie_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def trusting(self: Recall, hard_state: object) -> object:
        self.is_sure = True
        await trio.lowlevel.checkpoint()
        return hard_state

    async def story(world: World) -> None:
        leader = await elected(world)
        liar, other = followers(world, leader)
        world.lie_disk(liar)
        await world.crash(other)
        await trio.sleep(2)
        await world.crash(liar)
        for link in ((leader, other), (leader, liar)):
            world.network.cut_for([(one.id, another.id) for one, another in (link, link[::-1])], None)
        await world.start(liar)
        await world.start(other)
        await trio.sleep(8)

    monkeypatch.setattr(Recall, "wait", trusting)
    monkeypatch.setattr(World, "excuse", lambda _: None)
    found = [tell(seed, story).violations for seed in range(3)]
    assert any("safety" in sentence or "completeness" in sentence for each in found for sentence in each)


def test_after_a_blackout_all_ask_each_other_at_once(autojump_clock: object) -> None:
    async def story(world: World) -> None:
        await trio.sleep(3)
        for node in world.nodes:
            await world.crash(node)
        for node in world.nodes:
            await world.start(node)
        await trio.sleep(1)
        assert all(votes(node) for node in world.nodes[:3])

    assert tell(57, story).violations == []


def test_a_voter_that_starts_while_another_is_away_votes_after_the_grace() -> None:
    async def story(world: World) -> None:
        leader = await elected(world)
        away, other = followers(world, leader)
        await trio.sleep(2)
        await world.crash(away)
        await world.crash(other)
        await world.start(other)
        await trio.sleep(1)
        assert not votes(other)
        await trio.sleep(4)
        assert votes(other)

    assert tell(57, story).violations == []


# --- processes and clocks: 45 -------------------------------------------------------------------------------------


def test_a_node_that_stands_still_does_nothing_and_then_finds_all_that_has_happened() -> None:
    async def story(world: World) -> None:
        leader = await elected(world)
        await trio.sleep(2)
        world.pause(leader)
        assert leader.life is not None
        core, clock_ms = leader.life.core, leader.clock.now_ms()
        before = core.applier.height.value, core.store.hard_state()
        await trio.sleep(6)
        assert (core.applier.height.value, core.store.hard_state()) == before
        assert leader.clock.now_ms() >= clock_ms + 5_900
        successor = world.leader()
        world.resume(leader)
        await trio.sleep(3)
        assert core.applier.height.value > before[0]
        led.append(core.leader())
        assert successor is not None

    led: list[object] = []
    world = tell(45, story)
    assert world.violations == []
    assert led[0] is not None
    assert world.history.counts["leader"] >= 2


def test_all_may_stand_still_and_one_that_does_may_crash() -> None:
    async def story(world: World) -> None:
        await trio.sleep(2)
        for node in world.nodes:
            world.pause(node)
        await trio.sleep(3)
        height = world.chain.height
        await trio.sleep(3)
        assert world.chain.height == height
        await world.crash(world.nodes[1])
        assert not world.nodes[1].is_paused
        for node in world.nodes:
            world.resume(node)
        await trio.sleep(3)
        world.pause(world.nodes[0])  # healing ends it

    assert tell(45, story).violations == []


def test_only_the_held_tasks_stand_still(autojump_clock: object) -> None:
    async def main() -> list[str]:
        seen: list[str] = []

        async def tick(name: str) -> None:
            while True:
                await trio.sleep(1)
                seen.append(name)

        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(tick, "free")
            inner.start_soon(tick, "held")
            await trio.sleep(1.5)
            determinism.hold_tasks(lambda task: task.parent_nursery is inner)
            await trio.sleep(3)
            seen.append("-")
            determinism.hold_tasks(None)
            await trio.sleep(0.1)
            outer.cancel_scope.cancel()
        return seen

    seen = determinism.run(1, main)
    assert sorted(seen[:2]) == ["free", "held"]
    assert seen[2:] == ["free", "free", "free", "-", "held"]


@pytest.mark.slow
@pytest.mark.parametrize("offset_ms", [3_600_000, -3_600_000])
def test_a_clock_that_jumps_an_hour_costs_at_most_the_leadership(offset_ms: int) -> None:
    async def story(world: World) -> None:
        leader = await elected(world)
        await trio.sleep(1)
        world.set_clock(leader, offset_ms=offset_ms)
        await trio.sleep(12)
        world.set_clock(await elected(world), drift=0.1)
        await trio.sleep(8)
        heights.append(world.chain.height)

    heights: list[Height] = []
    assert tell(45, story).violations == []
    assert heights[0] > 20


# --- links: 17, 18 ------------------------------------------------------------------------------------------------


def test_a_bridge_between_two_halves_of_five_keeps_the_ledger_going() -> None:
    async def story(world: World) -> None:
        await elected(world)
        world.bridge(world.nodes[2], 30)
        # Three of five order blocks; only a leader that reaches four makes them final. Whoever does stands for election.
        await trio.sleep(18)
        before = world.chain.height
        await trio.sleep(12)
        grown.append(world.chain.height > before)

    grown: list[bool] = []
    assert tell(17, story, voters=5, observers=0).violations == []
    assert grown == [True]


def test_a_flapping_or_clogged_link_raises_the_term_little() -> None:
    async def story(world: World) -> None:
        leader = await elected(world)
        one, other = followers(world, leader)
        world.flap(leader, one, 0.1, 8)
        world.clog(leader, other, 3)
        await trio.sleep(10)
        state = LedgerStore(world.nodes[0].rows, world.configuration).hard_state()
        assert state is not None
        terms.append(state.term)

    terms: list[int] = []
    assert tell(18, story).violations == []
    assert terms[0] < 8


@pytest.mark.slow
def test_a_seed_with_every_fault_is_the_same_twice() -> None:
    async def story(world: World) -> None:
        leader = await elected(world)
        one, other = followers(world, leader)
        world.lie_disk(one)
        world.set_clock(other, offset_ms=-3_600_000)
        world.clog(leader, other, 1)
        await trio.sleep(2)
        world.pause(leader)
        world.rot_disk(other)
        await trio.sleep(2)
        world.fill_disk(one)
        world.fail_disk(leader)
        world.resume(leader)
        await world.crash(one)
        await world.start(one)
        await trio.sleep(3)

    hashes = {tell(99, story).history.sha256 for _ in range(2)}
    assert len(hashes) == 1
