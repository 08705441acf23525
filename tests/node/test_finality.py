"""Ordered and final are two things: what signers, witnesses and observers do and say between them (ledger.md decision 4)."""

import pytest
import trio

from protocol.errors import NotFinal, Unavailable
from protocol.finality import check_certificate
from protocol.raft.state import Role
from simulations.world import Node, World
from tests.node.test_core import caught_up, core_of, elected, submitted, vault


def three_and_a_witness(seed: int) -> World:
    """Q is 3 of 4: three voters, a witness and an observer."""
    return World(seed, voters=3, witnesses=1, observers=1)


def followers(world: World, leader: Node) -> list[Node]:
    return [node for node in world.nodes[:3] if node is not leader]


async def test_the_vote_of_a_witness_makes_blocks_final_while_a_voter_is_away(autojump_clock) -> None:
    world = three_and_a_witness(31)

    async def story() -> None:
        leader = await elected(world)
        away = followers(world, leader)[0]
        await world.crash(away)
        receipt = await submitted(world.nodes[4], "with a witness")
        core = core_of(leader)
        certificate = core.store.certificate_at_or_above(receipt.height)
        assert certificate is not None
        check_certificate(certificate, core.network, core.store.configuration)
        assert world.nodes[3].id in [vote.signer for vote in certificate.votes]
        assert away.id not in [vote.signer for vote in certificate.votes]

    await world.run(story)
    assert world.violations == []


async def test_a_witness_holds_and_applies_what_is_final_and_never_leads(autojump_clock) -> None:
    world = three_and_a_witness(32)

    async def story() -> None:
        leader, witness = await elected(world), world.nodes[3]
        receipt = await submitted(witness, "by a witness")
        await caught_up(witness, receipt.height)
        for node in world.nodes[:3]:
            await world.crash(node)
        await trio.sleep(30)
        consensus = core_of(witness).consensus
        assert consensus is not None
        assert consensus.raft.role is Role.FOLLOWER
        for node in world.nodes[:3]:
            await world.start(node)
        await elected(world)
        assert (await submitted(leader, "afterwards")).is_accepted

    await world.run(story)
    assert world.violations == []


async def test_what_is_ordered_and_not_final_says_so_and_becomes_final_when_a_signer_is_back(
    autojump_clock,
) -> None:
    world = three_and_a_witness(33)

    async def story() -> None:
        leader = await elected(world)
        await submitted(leader, "before")
        away = followers(world, leader)[0]
        await world.crash(away)
        await world.crash(world.nodes[3])
        core = core_of(leader)
        before = core.applier.mark.height
        signed = vault(core, "waits", leader.key)
        with pytest.raises(NotFinal, match="is ordered and waits for 1 of 3 signers"):
            await core.submitter.submit(signed, timeout_ms=3_000)
        assert core.standing.ordered_height > core.applier.mark.height == before
        said = core.submitter.waits_for("the grant", [signed])
        assert said == "the grant is ordered and waits for 1 of 3 signers; it becomes final by itself"
        assert core.submitter.is_ordered(signed)
        unknown = vault(core, "never handed in", leader.key)
        assert "it is queued" in core.submitter.waits_for("the grants", [signed, unknown])
        assert not core.submitter.is_ordered(unknown)
        with pytest.raises(NotFinal, match=rf"the newest final block is {before}, \d+ s old"):
            await core.read_index(timeout_ms=2_000)
        assert core.standing.pause(core.ports.clock.now_ms()) is None
        await trio.sleep(10)
        assert f"blocks {before + 1} to" in str(core.standing.pause(core.ports.clock.now_ms()))
        await world.start(world.nodes[3])
        receipt = await core.submitter.submit(signed, timeout_ms=20_000)
        assert receipt.is_accepted
        assert core.standing.pause(core.ports.clock.now_ms()) is None
        assert await core.read_index() >= receipt.height

    await world.run(story)
    assert world.violations == []


async def test_without_a_raft_quorum_a_transaction_is_received(autojump_clock) -> None:
    world = three_and_a_witness(34)

    async def story() -> None:
        leader = await elected(world)
        for node in followers(world, leader):
            await world.crash(node)
        core = core_of(leader)
        with pytest.raises(NotFinal, match="it is received"):
            await core.submitter.submit(vault(core, "alone", leader.key), timeout_ms=3_000)
        observer = core_of(world.nodes[4])
        with pytest.raises(Unavailable, match="follows by gossip"):
            await observer.read_index()
        assert observer.standing.ordered_height == observer.applier.mark.height

    await world.run(story)
    assert world.violations == []


async def test_a_rebuilt_witness_signs_again_when_it_is_past_what_it_may_have_signed(
    autojump_clock,
) -> None:
    world = three_and_a_witness(35)

    async def story() -> None:
        leader, witness = await elected(world), world.nodes[3]
        await submitted(leader, "first")
        await world.rebuild(witness)
        with trio.fail_after(60):
            while not core_of(witness).is_voting:
                await trio.sleep(0.1)
        await world.crash(followers(world, leader)[0])
        assert (await submitted(leader, "second")).is_accepted

    await world.run(story)
    assert world.violations == []
