"""The loss of a majority in the middle of a change of members: who has a say, and receipts across it (ledger.md 7.2 and 7.4)."""

import pytest
import trio

from node.core import Core
from node.membership_admission import governance_of
from node.receipt_proofs import ReceiptProofs
from node.recovery_file import Plan, parse_file
from node.recovery_plan import plan_document
from protocol import receipt_file
from protocol.change_proof import CrossingRecovery
from protocol.configuration import Configuration
from protocol.errors import Refused
from protocol.governance import Ballot, ChangeRole, Propose
from protocol.identifiers import Txid
from protocol.receipt_file import ReceiptFile
from protocol.transaction import txid_of
from simulations.world import Node, World
from tests.interop import standalone_verifier
from tests.node.test_core import core_of, elected, submitted
from tests.node.test_participation import said
from tests.simulations.test_recovery import House, at_epoch, collected, consented


async def decided(world: World, leader: Node, newcomer: Node) -> Configuration:
    """Have the ballots decide that the observer becomes a learner; return what the leader may propose."""
    core = core_of(leader)
    until, digest = core.submitter.valid_until(), core.store.configuration.digest
    action = ChangeRole(newcomer.id, "learner")
    proposal = Propose(leader.id, action, until, digest, accept_risk=True, valid_until_ms=until)
    await said(leader, proposal)
    for node in world.nodes[:3]:
        if node is not leader:
            txid = txid_of(proposal, core.network)
            await said(node, Ballot(node.id, txid, is_yes=True, accept_risk=True, valid_until_ms=until))
    pending = governance_of(core.store).pending
    assert pending is not None
    return pending


async def receipt_of(core: Core, txid: Txid) -> ReceiptFile:
    """Return a receipt that both verifiers accept."""
    proofs = ReceiptProofs(core.store, core.ports.workers, core.store.certificate_at_or_above)
    made = await proofs.make(txid.hex(), told=True)
    assert standalone_verifier.verify(made.data, core.network)["txid"] == txid
    return receipt_file.decode(made.data)


async def test_a_change_that_only_the_recovery_makes_final_is_consented_to_by_those_before_it(
    autojump_clock,
) -> None:
    world = World(61, voters=3, observers=1)

    async def story() -> None:
        leader = await elected(world)
        first = await submitted(leader, "before")
        pending = await decided(world, leader, world.nodes[3])
        world.excuse()  # its checkers know one epoch
        away = [node for node in world.nodes[:3] if node is not leader]
        for node in away:
            await world.crash(node)
        core = core_of(leader)
        await core.reconfigure(pending)
        with trio.fail_after(10):
            while core.store.header(core.store.tip_height()).next_config_hash != pending.digest:
                await trio.sleep(0.01)
        changed = core.store.tip_height()

        house = House(leader)
        gone = [f"member-{node.index}" for node in away]
        proposed = house.desk.propose(
            [await collected([house])], lost=(), gone=gone, cards=(), reason="drill"
        )
        plan = parse_file(proposed["plan"], Plan, core.network)
        assert plan.earlier == core.store.configuration
        assert plan_document(plan)["earlier"]["consents_needed"] == 3
        consents = consented(world, proposed["plan"])
        with pytest.raises(Refused, match="needs the consent of 3"):
            await house.desk.apply(proposed["plan"], consents[:2])
        await house.desk.apply(proposed["plan"], consents)

        await elected(world)
        after = await submitted(leader, "after")
        receipt = await receipt_of(core, after.txid)
        assert any(isinstance(change, CrossingRecovery) for change in receipt.proof.changes)
        await receipt_of(core, first.txid)
        for node in away:  # they have never seen the change, and follow nobody but the organisations
            await world.start(node)
            House(node)
            await at_epoch(node, 1, changed + 1)
        await at_epoch(world.nodes[3], 1, after.height)
        await receipt_of(core_of(world.nodes[3]), first.txid)
        await receipt_of(core_of(world.nodes[3]), after.txid)

    await world.run(story)


async def test_who_stood_still_before_a_change_became_final_fetches_its_certificate_to_apply_the_plan(
    autojump_clock,
) -> None:
    world = World(62, voters=3, observers=1)

    async def story() -> None:
        leader = await elected(world)
        late = next(node for node in world.nodes[:3] if node is not leader)
        pending = await decided(world, leader, world.nodes[3])
        house = House(late)
        for node in world.nodes:
            world.network.cut(node.id, late.id)
            world.network.cut(late.id, node.id)
        files = [(await house.desk.collect((), freeze=True))["statements"]]
        await core_of(leader).reconfigure(pending)
        first = await submitted(leader, "above the change")
        assert core_of(leader).store.configuration == pending
        world.excuse()
        away = next(node for node in world.nodes[:3] if node not in (leader, late))
        await world.crash(away)
        maker = House(leader)
        files.append((await maker.desk.collect(files, freeze=True))["statements"])
        proposed = maker.desk.propose(files, lost=(), gone=[f"member-{away.index}"], cards=(), reason="drill")
        assert parse_file(proposed["plan"], Plan, core_of(leader).network).earlier is None
        consents = consented(world, proposed["plan"])
        with pytest.raises(Refused, match="nobody that answers has the certificate of the change"):
            await house.desk.apply(proposed["plan"], consents)
        assert core_of(late).standstill.is_frozen
        world.network.heal()
        for one in (maker, house):
            await one.desk.apply(proposed["plan"], consents)
            assert core_of(leader).store.epochs.current == 1

        assert (
            core_of(late).store.configurations.newest_height
            == core_of(leader).applier.mark.height
            > first.height
        )
        await elected(world)
        after = await submitted(late, "after")
        with trio.fail_after(60):
            while core_of(late).store.receipt(after.txid) is None:
                await trio.sleep(0.1)
        await receipt_of(core_of(late), after.txid)

    await world.run(story)
