"""A member's part in consensus begins and ends with the configuration in force."""

import contextlib
from random import Random

import trio

from node.core import Core
from node.membership_admission import governance_of
from protocol import evidence
from protocol.configuration import network_id
from protocol.governance import Ballot, ChangeRole, Propose, RemoveMember
from protocol.identifiers import Height, NodeId
from protocol.notebook import Notebook
from protocol.transaction import GovernanceTransaction, sign, txid_of
from simulations.liar import Liar, Lie
from simulations.lying_daemon import LyingTransport
from simulations.world import Node, World
from storage.snapshot_store import SnapshotStore
from tests.node.test_core import core_of, elected, submitted

Action = ChangeRole | RemoveMember


async def said(node: Node, transaction: GovernanceTransaction) -> None:
    core = core_of(node)
    signed = sign(transaction, core.network, node.key)
    assert (await core.submitter.submit(signed, timeout_ms=20_000)).is_accepted


async def in_force(world: World, action: Action, ballots: int) -> None:
    """Propose, give so many ballots in all, and let the leader change the configuration."""
    leader = await elected(world)
    core = core_of(leader)
    number = core.store.configuration.number
    valid_until = core.submitter.valid_until()
    proposal = Propose(
        leader.id, action, valid_until, core.store.configuration.digest, accept_risk=True, valid_until_ms=valid_until
    )  # fmt: skip
    await said(leader, proposal)
    others = [node for node in world.nodes if node is not leader and node.life is not None]
    for node in others[: ballots - 1]:
        ballot = Ballot(
            node.id, txid_of(proposal, core.network), is_yes=True, accept_risk=True, valid_until_ms=valid_until
        )  # fmt: skip
        await said(node, ballot)
    pending = governance_of(core.store).pending
    assert pending is not None
    await core.reconfigure(pending)
    with trio.fail_after(60):
        while core.store.configuration.number == number:
            await trio.sleep(0.1)


async def test_a_voter_let_go_while_it_was_away_learns_so_from_members_that_restarted_since(
    autojump_clock,
) -> None:
    world = World(71, voters=4, observers=0)

    async def story() -> None:
        leader = await elected(world)
        gone = next(node for node in world.nodes if node is not leader)
        await world.crash(gone)
        await in_force(world, RemoveMember(gone.id), 3)
        others = [node for node in world.nodes if node is not gone]
        await submitted(others[0], "afterwards")
        for node in others:
            await world.crash(node)
        for node in others:
            await world.start(node)
        await elected(world)
        await world.start(gone)
        with trio.fail_after(120):
            while gone.id in core_of(gone).store.configuration.voters:
                await trio.sleep(0.5)
            while core_of(gone).consensus is not None:
                await trio.sleep(0.5)
        assert gone.id not in core_of(gone).store.configuration.voters

    await world.run(story)


async def test_a_voter_let_go_while_it_was_away_learns_so_even_where_no_leader_hears_it(
    autojump_clock,
) -> None:
    world = World(72, voters=4, observers=0)

    async def story() -> None:
        leader = await elected(world)
        gone = next(node for node in world.nodes if node is not leader)
        await world.crash(gone)
        await in_force(world, RemoveMember(gone.id), 3)
        leader = await elected(world)
        world.clog(gone, leader)
        world.clog(leader, gone)
        await world.start(gone)
        with trio.fail_after(60):
            while core_of(gone).consensus is not None or gone.id in core_of(gone).store.configuration.voters:
                await trio.sleep(0.5)
        assert core_of(gone).store.configurations.left_at(gone.id) is not None

    await world.run(story)


async def test_who_becomes_a_voter_while_it_runs_states_what_the_state_is_from_then_on(
    autojump_clock,
) -> None:
    world = World(73, voters=3, observers=1)

    async def story() -> None:
        await elected(world)
        newcomer = world.nodes[3]
        core, statements = core_of(newcomer), SnapshotStore(newcomer.snapshot_rows).statements
        assert core.consensus is None
        await in_force(world, ChangeRole(newcomer.id, "learner"), 3)
        with trio.fail_after(60):
            while core.consensus is None:
                await trio.sleep(0.1)
        assert statements() == ()
        await in_force(world, ChangeRole(newcomer.id, "voter"), 3)
        with trio.fail_after(120):
            number = 0
            while not statements():
                number += 1
                await submitted(newcomer, f"vault {number}")
        assert core_of(newcomer) is core
        assert statements()[0].signer == newcomer.id

    await world.run(story)


async def test_whom_a_leader_tells_another_story_follows_the_others_and_shows_what_it_was_told(
    autojump_clock,
) -> None:
    """All that it hears of Raft comes from the liar, whose heartbeats go on (ledger.md 1.1, P6)."""
    world = World(74, voters=4, observers=0)
    liar, *honest = world.nodes
    lies = Liar(liar.key, network_id(world.configuration), world.configuration, Lie.EQUIVOCATE, Random(1))
    liar.wire = lambda transport: LyingTransport(transport, lies)

    async def story() -> None:
        while (leader := await elected(world)) is not liar:
            await world.crash(leader)
            while world.leader() is not liar:
                await trio.sleep(0.1)
            await world.start(leader)
        await submitted(liar, "one story for each")
        stores = [core_of(node).store for node in honest]
        with trio.fail_after(60):
            while min(store.applied().height for store in stores) < 3:
                await trio.sleep(0.1)
        assert len({store.hash(Height(3)) for store in stores}) == 1
        assert lies.told
        assert {node for one in honest for node in proven(core_of(one))} == {liar.id}

    await world.run(story)


def proven(core: Core) -> set[NodeId]:
    """Return who is convicted by what a member has heard."""
    configuration = core.store.configuration
    known = {configuration.digest: configuration}
    notes, nodes = Notebook(core.network, lambda: known), set[NodeId]()
    with contextlib.suppress(trio.WouldBlock):  # that was all
        while True:
            heard = core.hearing.heard.receive_nowait()
            for statement in heard.said:
                for found in notes.see(statement, heard.headers):
                    nodes |= set(evidence.check(found, core.network, known).nodes)
    return nodes
