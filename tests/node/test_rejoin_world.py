"""Whole nodes that begin anew: a ledger that was lost, an older copy of it, and a process that a later one has replaced."""

import trio

from node.receipts import VALID_MS
from protocol.identifiers import Height
from protocol.raft.state import HardState
from protocol.rejoining import Rejoin, incarnation_of
from protocol.transaction import sign
from simulations.world import Node, World
from storage.key_value import Batch
from storage.keyspace import SEQUENCE_END
from storage.memory import MemoryStore
from tests.node.test_core import caught_up, core_of, elected, submitted

_WAIT_S = 60


def copied(rows: MemoryStore) -> MemoryStore:
    batch = Batch()
    for row, value in rows.scan(b"", SEQUENCE_END):
        batch.put(row, value)
    copy = MemoryStore()
    copy.write(batch, sync=True)
    return copy


async def restored(world: World, node: Node, rows: MemoryStore) -> None:
    """Put an older copy of its ledger in the place of a node's own, and start it."""
    await world.crash(node)
    node.rows = rows
    node.is_forgetful = True
    world.durable.forgot(node.id)
    await world.start(node)


async def signs(node: Node) -> HardState:
    """Wait until a node signs; return its hard state."""
    with trio.fail_after(_WAIT_S):
        while not core_of(node).is_voting:
            await trio.sleep(0.1)
    hard_state = core_of(node).store.hard_state()
    assert hard_state is not None
    return hard_state


def follower_of(world: World, leader: Node) -> Node:
    return next(node for node in world.nodes if node is not leader)


async def test_a_voter_whose_ledger_was_lost_signs_only_after_its_rejoin_is_certified_without_it(
    autojump_clock,
) -> None:
    world = World(91, voters=3, observers=0)

    async def story() -> None:
        lost = follower_of(world, await elected(world))
        await submitted(lost, "before")
        await world.rebuild(lost)
        hard_state = await signs(lost)
        store = core_of(lost).store
        incarnation = incarnation_of(store.state, lost.id)
        assert incarnation.number == hard_state.incarnation == 1
        certificate = store.certificate_at_or_above(incarnation.height)
        assert certificate is not None
        assert lost.id not in {vote.signer for vote in certificate.votes}
        assert hard_state.term >= store.header(incarnation.height).term
        receipt = await submitted(lost, "after")
        assert receipt.is_accepted
        # What it signs now counts: with one of the others gone, its votes are needed.
        await world.crash(next(node for node in world.nodes if node is not lost))
        assert (await submitted(lost, "with its vote")).height > receipt.height

    await world.run(story)
    assert world.violations == []


async def test_a_voter_with_an_older_copy_of_its_ledger_begins_anew_each_time(autojump_clock) -> None:
    world = World(92, voters=4, observers=0)

    async def story() -> None:
        node = follower_of(world, await elected(world))
        old = copied(node.rows)
        for number in (1, 2):
            for count in range(3):
                await submitted(node, f"vault {number} {count}")
            await restored(world, node, copied(old))
            hard_state = await signs(node)
            assert hard_state.incarnation == number
        await submitted(node, "last")

    await world.run(story)
    assert world.violations == []


async def test_a_voter_that_merely_crashed_is_what_it_was(autojump_clock) -> None:
    world = World(93, voters=3, observers=0)

    async def story() -> None:
        node = follower_of(world, await elected(world))
        await submitted(node, "before")
        await world.crash(node)
        await world.start(node)
        hard_state = await signs(node)
        assert hard_state.incarnation == 0
        await submitted(node, "after")
        assert incarnation_of(core_of(node).store.state, node.id).number == 0

    await world.run(story)
    assert world.violations == []


async def test_a_witness_begins_anew_too(autojump_clock) -> None:
    world = World(94, voters=3, observers=0, witnesses=1)

    async def story() -> None:
        await elected(world)
        witness = world.nodes[3]
        await submitted(world.nodes[0], "before")
        await world.rebuild(witness)
        assert (await signs(witness)).incarnation == 1

    await world.run(story)
    assert world.violations == []


async def test_two_voters_alone_ask_each_other_instead(autojump_clock) -> None:
    world = World(95, voters=2, observers=0)

    async def story() -> None:
        lost = follower_of(world, await elected(world))
        await submitted(lost, "before")
        await world.rebuild(lost)
        assert (await signs(lost)).incarnation == 0
        assert (await submitted(lost, "after")).is_accepted

    await world.run(story)
    assert world.violations == []


async def test_the_process_that_a_rejoin_has_replaced_ends_and_the_others_go_on(autojump_clock) -> None:
    world = World(96, voters=4, observers=0)

    async def story() -> None:
        leader = await elected(world)
        older = follower_of(world, leader)
        core = core_of(leader)
        # Made by a second process with the key of `older`, and handed in through another member.
        rejoin = Rejoin(older.id, 1, bytes(32), core.ports.clock.now_ms() + VALID_MS)
        receipt = await core.submitter.submit(sign(rejoin, core.network, older.key))
        assert receipt.is_accepted
        with trio.fail_after(_WAIT_S):
            while older.life is not None:
                await trio.sleep(0.1)
        await submitted(leader, "after")
        assert core.applier.mark.height > Height(receipt.height)

    await world.run(story)
    (violation,) = world.violations
    assert "Superseded: block" in violation
    assert "another process has its key, and this one has ended" in violation


# --- two of three at once ---------------------------------------------------------------------------------------------


class TwoOfThree:
    """Two voters whose ledgers are replaced by older copies at the same time; the third one holds what is final."""

    def __init__(self, seed: int, *, observers: int) -> None:
        self.world = World(seed, voters=3, observers=observers)
        self.third: Node
        self.two: tuple[Node, Node]
        self.final: list[bytes] = []

    async def write(self) -> None:
        """Make blocks final of which the copies know nothing."""
        self.third = await elected(self.world)
        one, other = (node for node in self.world.nodes[:3] if node is not self.third)
        self.two = one, other
        await submitted(self.third, "before")
        self._copies = [copied(node.rows) for node in self.two]
        for number in range(4):
            receipt = await submitted(self.third, f"after {number}")
        for node in self.world.nodes[3:]:
            await caught_up(node, receipt.height)
        self.final = self._held(core_of(self.third).store.applied().height)

    def _held(self, height: int) -> list[bytes]:
        store = core_of(self.third).store
        return [store.hash(Height(at)) for at in range(1, min(height, store.tip_height()) + 1)]

    def is_kept(self) -> bool:
        """Whether the third one has all that was final before."""
        return self._held(len(self.final)) == self.final

    async def restore(self, unheard_s: float) -> None:
        """Start both from their copies; for so long nothing passes between them and the third one."""
        for node in self.two:
            await self.world.crash(node)
        for node, rows in zip(self.two, self._copies, strict=True):
            node.rows, node.is_forgetful = rows, True
            self.world.durable.forgot(node.id)
            between = [(self.third.id, node.id), (node.id, self.third.id)]
            self.world.network.cut_for(between, unheard_s)
        for node in self.two:
            await self.world.start(node)


async def test_two_of_three_restored_at_once_sign_nothing_and_catch_up_with_the_third(autojump_clock) -> None:
    house = TwoOfThree(97, observers=0)

    async def story() -> None:
        await house.write()
        # Each hears of the other at once, who has forgotten as much.
        await house.restore(unheard_s=6)
        for node in house.two:
            await caught_up(node, len(house.final))
        await trio.sleep(30)
        assert [core_of(node).is_voting for node in house.two] == [False, False], "a recovery is for people"
        assert house.is_kept()

    await house.world.run(story)
    assert house.world.violations == []


async def test_what_an_observer_holds_keeps_two_of_three_from_signing_while_the_third_is_away(
    autojump_clock,
) -> None:
    house = TwoOfThree(98, observers=1)

    async def story() -> None:
        await house.write()
        await house.world.crash(house.third)
        await house.restore(unheard_s=0.1)
        await trio.sleep(40)
        # A certificate has the votes of two: of one of these at the least, and then neither is a quorum.
        assert not all(core_of(node).is_voting for node in house.two)
        await house.world.start(house.third)
        await trio.sleep(20)
        assert house.is_kept()

    await house.world.run(story)
    assert house.world.violations == []


async def test_two_that_nobody_could_warn_are_named_by_the_third(autojump_clock) -> None:
    house = TwoOfThree(99, observers=0)

    async def story() -> None:
        await house.write()
        await house.restore(unheard_s=40)
        for node in house.two:
            await signs(node)
        await submitted(house.two[0], "another history")
        store = core_of(house.third).store
        with trio.fail_after(120):
            while not store.forks():
                await trio.sleep(0.5)
        (fork,) = store.forks()
        assert set(fork.liars) <= {node.id for node in house.two}
        assert fork.liars
        assert house.is_kept()

    await house.world.run(story)
    assert any("certified twice" in violation for violation in house.world.violations)
