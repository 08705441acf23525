import dataclasses

import pytest
import trio

from node.core import Core
from protocol import codec
from protocol.errors import CarechainError, NotLeader, RemoteFault
from protocol.identifiers import Height, Vid
from protocol.ledger_rows import Receipt
from protocol.signing import SigningKey
from protocol.transaction import SignedTransaction, VaultOpen, sign, txid_of
from simulations.world import Node, World
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore
from tests.protocol.chain import filled, key

AUTH = key("auth")


def vault(core: Core, name: str, by: SigningKey) -> SignedTransaction:
    public = AUTH.public
    until = core.submitter.valid_until()
    node = core.ports.transport.me
    opening = VaultOpen(Vid(filled(name)), public, public, public, public, 0, node, (node,), 3, until)
    return sign(opening, core.network, AUTH, by)


def core_of(node: Node) -> Core:
    assert node.life is not None
    return node.life.core


async def elected(world: World) -> Node:
    """Wait until somebody leads and everybody of the majority knows it."""
    with trio.fail_after(60):
        while (leader := world.leader()) is None:
            await trio.sleep(0.1)
        await trio.sleep(1)
    return leader


async def submitted(node: Node, name: str) -> Receipt:
    core = core_of(node)
    return await core.submitter.submit(vault(core, name, node.key), timeout_ms=20_000)


async def caught_up(node: Node, height: int) -> None:
    with trio.fail_after(120):
        await core_of(node).applier.height.wait_above(Height(height - 1))


async def test_every_member_submits_and_everybody_applies_the_same(autojump_clock) -> None:
    world = World(1, voters=3, observers=1)

    async def story() -> None:
        await elected(world)
        receipts = [await submitted(node, f"vault {node.index}") for node in world.nodes]
        assert all(receipt.is_accepted for receipt in receipts)
        for node in world.nodes:
            await caught_up(node, receipts[-1].height)
        marks = {core_of(node).store.block(receipts[-1].height).hash for node in world.nodes}
        assert len(marks) == 1

    await world.run(story)
    assert world.violations == []


async def test_one_bad_transaction_in_a_batch_does_not_take_the_others_with_it(autojump_clock) -> None:
    world = World(2, voters=3, observers=0)

    async def story() -> None:
        leader = await elected(world)
        follower = next(node for node in world.nodes if node is not leader)
        for node in (leader, follower):
            core = core_of(node)
            good = vault(core, f"good {node.index}", node.key)
            forged = dataclasses.replace(
                vault(core, f"bad {node.index}", node.key),
                signatures=(good.signatures[0], good.signatures[0]),
            )
            txid = txid_of(good.transaction, core.network)
            with core.receipts.expect((txid,)) as waiter:
                # One hand-over is one call to the leader, and nobody submits the good one again.
                await core.submitter._hand_over([codec.encode(forged), codec.encode(good), b"garbage"])
                with trio.fail_after(60):
                    await waiter.done.wait()
            assert waiter.receipts[txid].is_accepted
            with pytest.raises(RemoteFault):
                await core_of(leader).propose((codec.encode(forged),))

    await world.run(story)
    assert world.violations == []


async def test_work_goes_on_when_the_leader_dies_and_the_dead_one_returns(autojump_clock) -> None:
    world = World(3, voters=3, observers=1)

    async def story() -> None:
        leader = await elected(world)
        first = await submitted(world.nodes[3], "before")
        await world.crash(leader)
        later = await submitted(world.nodes[3], "after")
        assert later.height > first.height
        await world.start(leader)
        await caught_up(leader, later.height)
        receipts = [core_of(leader).store.receipt(one.txid) for one in (first, later)]
        assert receipts == [first, later]

    await world.run(story)
    assert world.violations == []


async def test_only_the_leader_takes_proposals(autojump_clock) -> None:
    world = World(4, voters=3, observers=1)

    async def story() -> None:
        leader = await elected(world)
        for node in world.nodes:
            if node is not leader:
                with pytest.raises(NotLeader):
                    await core_of(node).propose((b"x",))

    await world.run(story)
    assert world.violations == []


async def test_a_rebuilt_voter_signs_nothing_until_all_others_answered_and_then_votes(autojump_clock) -> None:
    world = World(5, voters=3, observers=0)

    async def story() -> None:
        leader = await elected(world)
        last = await submitted(leader, "one")
        rebuilt, other = [node for node in world.nodes if node is not leader]
        await world.crash(rebuilt)
        rebuilt.rows = MemoryStore()
        LedgerStore.mark_rebuilt(rebuilt.rows)
        await world.start(rebuilt)
        core = core_of(rebuilt)
        await caught_up(rebuilt, last.height)
        with trio.fail_after(120):
            while core.consensus is None:
                await trio.sleep(0.1)
        assert not core.store.is_rebuilt()
        state = core.store.hard_state()
        assert state is not None
        assert state.term >= core_of(leader).store.header(last.height).term
        # It counts again: with the third voter down, its acknowledgements are needed.
        await world.crash(other)
        assert (await submitted(rebuilt, "two")).is_accepted

    await world.run(story)


async def test_a_rebuilt_voter_waits_while_one_of_the_others_is_down(autojump_clock) -> None:
    world = World(6, voters=5, observers=0)

    async def story() -> None:
        leader = await elected(world)
        last = await submitted(leader, "one")
        rebuilt, down = [node for node in world.nodes if node is not leader][:2]
        await world.crash(rebuilt)
        await world.crash(down)
        rebuilt.rows = MemoryStore()
        LedgerStore.mark_rebuilt(rebuilt.rows)
        await world.start(rebuilt)
        await caught_up(rebuilt, last.height)
        await trio.sleep(30)
        assert core_of(rebuilt).consensus is None
        with pytest.raises(CarechainError):
            await core_of(rebuilt)._answer_watermark(leader.id, b"")
        await world.start(down)
        with trio.fail_after(60):
            while core_of(rebuilt).consensus is None:
                await trio.sleep(0.1)

    await world.run(story)
