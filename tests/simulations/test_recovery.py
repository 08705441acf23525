"""Drills of majority loss on virtual nodes: q - 1 members are lost, q, all but one; then those who were lost return."""

from dataclasses import replace
from random import Random

import pytest
import trio

from node.core import Core
from node.receipt_proofs import ReceiptProofs
from node.recovery_base import Freezer, Reach, recovery_above
from node.recovery_desk import RecoveryDesk
from node.recovery_file import Collected, Consent, Plan, file_text, parse_file
from node.recovery_plan import Custodian, plan_document
from node.recovery_watch import RecoveryWatch
from protocol.configuration import Configuration, network_id
from protocol.errors import NotFinal, Refused
from protocol.identifiers import Height, Term
from protocol.passphrase import Hardness
from protocol.recovery import Recovery, SignedRecovery, consent, freeze
from protocol.signing import SigningKey, sha256
from protocol.transaction import parse
from simulations.world import Node, World
from storage import keyspace
from storage.key_value import Batch
from storage.keystore import Keystore
from storage.memory import MemoryStore
from tests.interop import standalone_verifier
from tests.node.test_core import core_of, elected, submitted, vault


class House:
    """A node's recovery desk and watch, for one life of it."""

    def __init__(self, node: Node) -> None:
        core = self.core = core_of(node)

        def governance_key(_configuration: Configuration) -> SigningKey:
            return node.key

        freezer = Freezer(core.store, core.standstill, node.key)
        reach = Reach(core.store, core.applier, core.ports.transport, core.verification)
        entropy = Random(node.index).randbytes
        keystore = Keystore.create(MemoryStore(), "x", entropy, hardness=Hardness(1, 8192))
        self.desk = RecoveryDesk(core, Custodian(keystore, governance_key, node.id), freezer, reach)
        self.watch = RecoveryWatch(core, reach)
        self.desk.serve()
        self.watch.serve()
        assert node.life is not None
        node.life.nursery.start_soon(self.watch.run)


async def collected(houses: list[House]) -> str:
    """Freeze all that are left, one after the other, and merge what each has heard."""
    files: list[str] = []
    for house in houses:
        files.append((await house.desk.collect(files, freeze=True))["statements"])
    document = await houses[0].desk.collect(files, freeze=True)
    assert document["settled"], document["why"]
    return str(document["statements"])


def consented(world: World, plan: str) -> list[str]:
    """Return the consents of everybody: members' nodes burn, governance keys lie in a safe elsewhere."""
    parsed = parse_file(plan, Plan, network_id(world.configuration))
    signers = [node for node in world.nodes if node.id in parsed.before.signers]
    consents = [(node, consent(node.key, parsed.network, parsed.recovery, node.id)) for node in signers]
    before = parsed.earlier.signers if parsed.earlier is not None else ()
    return [
        file_text(Consent(parsed.network, one, one if node.id in before else None)) for node, one in consents
    ]


async def recovered(world: World, left: list[Node], away: list[Node]) -> None:
    """Go on with those that are left; every one of them is told by its operator."""
    houses = [House(node) for node in left]
    gone = [f"member-{node.index}" for node in away]
    statements = await collected(houses)
    plan = houses[0].desk.propose([statements], lost=(), gone=gone, cards=(), reason="drill")["plan"]
    consents = consented(world, plan)
    with pytest.raises(Refused, match="needs the consent"):
        await houses[0].desk.apply(plan, consents[:1])
    for number, house in enumerate(houses):
        # Whose consents came first differs from member to member; the block that begins the epoch does not.
        needed = plan_document(parse_file(plan, Plan, house.core.network))["consents_needed"]
        enough = consents[number % 2 :] if len(consents) > needed else consents
        await house.desk.apply(plan, enough)


def chain_of(node: Node, height: Height) -> list[bytes]:
    store = core_of(node).store
    return [store.hash(Height(at)) for at in range(height + 1)]


async def at_epoch(node: Node, epoch: int, height: int) -> None:
    with trio.fail_after(120):
        core = core_of(node)
        while core.store.epochs.current < epoch or core.applier.mark.height < height:
            await trio.sleep(0.2)


@pytest.mark.parametrize(("voters", "lost"), [(3, 1), (3, 2), (5, 3), (5, 4)])
async def test_the_network_goes_on_with_those_that_are_left_and_the_others_come_back(
    autojump_clock, voters: int, lost: int
) -> None:
    world = World(voters * 10 + lost, voters=voters, observers=1)

    async def story() -> None:
        await elected(world)
        first = await submitted(world.nodes[0], "before")
        assert first.is_accepted
        world.excuse()  # its checkers know one epoch
        left, away = list(world.nodes[lost:]), list(world.nodes[:lost])
        for node in away:
            await world.crash(node)
        await recovered(world, left[:-1], away)
        if voters == 5:
            House(left[-1])  # the observer hears of it; else it follows by certified blocks alone
        await elected(world)
        after = await submitted(left[0], "after")
        assert after.is_accepted
        for node in away:
            await world.start(node)
            House(node)
        for node in left:
            await at_epoch(node, 1, after.height)
        began = after.height - 1
        for node in away:  # who was let go is shown what let it go, and no more
            await at_epoch(node, 1, began)
        assert len({tuple(chain_of(node, Height(began))) for node in world.nodes}) == 1
        assert len({tuple(chain_of(node, after.height)) for node in left}) == 1
        for node in away:
            assert node.id not in core_of(node).store.configuration.by_node

    await world.run(story)


async def test_a_member_that_lost_its_store_has_nothing_to_state(autojump_clock) -> None:
    world = World(77, voters=3, observers=0)

    async def story() -> None:
        await elected(world)
        house, batch = House(world.nodes[0]), Batch()
        batch.put(keyspace.REBUILT, b"")
        await house.core.ports.disk.commit(batch, sync=True)
        with pytest.raises(Refused, match="has lost its store"):
            await house.desk.collect((), freeze=True)
        assert not house.core.standstill.is_frozen

    await world.run(story)


async def test_a_statement_that_was_shown_binds_and_one_that_was_not_does_not(autojump_clock) -> None:
    world = World(77, voters=3, observers=0)

    async def story() -> None:
        await elected(world)
        await submitted(world.nodes[0], "before")
        house, other = House(world.nodes[0]), House(world.nodes[1])
        await house.core.standstill.freeze()
        assert house.core.consensus is None
        assert await house.desk.cancel() == {"frozen": False}
        await elected(world)
        assert (await submitted(world.nodes[0], "again")).is_accepted
        document = await other.desk.collect((), freeze=False)
        assert (document["frozen"], document["settled"]) == ([], False)
        files = [(await house.desk.collect((), freeze=True))["statements"]]
        everybody = [f"member-{node.index}" for node in world.nodes]
        for given, lost, reason, refusal in (
            ((), [], "fire", "no freeze statement"),
            (files, everybody, "fire", "no voter would be left"),
            (files, ["nobody"], "fire", "no facility of this network"),
            (files, everybody[1:], "", "give a --reason"),
        ):
            with pytest.raises(Refused, match=refusal):
                house.desk.propose(given, lost=lost, gone=(), cards=(), reason=reason)
        store, stale = house.core.store, older_statement(house.core, world.nodes[0].key)
        for given in (
            [*files, stale],
            [stale, *files],
        ):  # an older file hides nothing, in whatever order they are named
            plan = house.desk.propose(given, lost=everybody[1:], gone=(), cards=(), reason="fire")
            assert plan["base_height"] >= store.applied().height
        plan = house.desk.propose(files, lost=(), gone=everybody[1:], cards=(), reason="fire")
        late = parse_file(str(plan["plan"]), Plan, house.core.network)
        late = replace(late, recovery=replace(late.recovery, time_ms=late.recovery.time_ms + 60_000))
        with pytest.raises(Refused, match="ahead of this facility's clock"):
            other.desk.sign(file_text(late))
        with pytest.raises(Refused, match="ahead of this facility's clock"):
            await house.desk.apply(file_text(late), consented(world, file_text(late)))
        document = await other.desk.collect((), freeze=False)
        assert document["frozen"] == ["member-0"]
        with pytest.raises(Refused, match="only a recovery"):
            await house.desk.cancel()
        # Frozen for good, also after a crash.
        await world.crash(world.nodes[0])
        await world.start(world.nodes[0])
        assert core_of(world.nodes[0]).standstill.is_frozen
        await trio.sleep(10)
        assert core_of(world.nodes[0]).consensus is None

    await world.run(story)


def older_statement(core: Core, key: SigningKey) -> str:
    """Return a file with a freeze statement of one who knows of the first certificate only."""
    certificate = core.store.certificate_at_or_above(Height(1))
    term = Term(certificate.newest_term if certificate is not None else 0)
    statement = freeze(
        key, core.network, epoch=0, incarnation=0, term=term, certificate=certificate, links=(), vote=None
    )
    return file_text(Collected(core.network, (statement,)))


async def test_a_member_that_has_believed_a_recovery_takes_part_again_when_the_network_has_gone_on(
    autojump_clock,
) -> None:
    world = World(52, voters=3, observers=0)

    async def story() -> None:
        leader = await elected(world)
        await submitted(leader, "before")
        late = next(node for node in world.nodes if node is not leader)
        for node in world.nodes:
            world.network.cut(node.id, late.id)
            world.network.cut(late.id, node.id)
        house, before = House(late), world.configuration
        applied = core_of(late).store.applied()
        after = replace(before, members=before.members[1:], number=before.number + 1)
        step = Recovery(
            1, Height(applied.height + 1), sha256(b"given up by all"), Term(99), applied.time_ms + 60_000, before.digest, after,
            (), (), "a plan that was not needed in the end",
        )  # fmt: skip
        consents = [consent(node.key, house.core.network, step, node.id) for node in world.nodes]
        signed = SignedRecovery(step, tuple(sorted(consents, key=lambda one: one.node)))
        final = await submitted(leader, "the network goes on")
        final = await submitted(leader, "above the base that nobody has")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.watch.hear, signed)
            await trio.sleep(1)
            assert core_of(late).standstill.is_frozen
            world.network.heal()
        assert not core_of(late).standstill.is_frozen
        assert "does not follow" in str(core_of(late).standstill.trouble)
        await at_epoch(late, 0, final.height)

    await world.run(story)


async def test_whoever_holds_final_blocks_that_a_recovery_gives_up_keeps_them_and_says_so(
    autojump_clock,
) -> None:
    world = World(91, voters=3, observers=0)

    async def story() -> None:
        await elected(world)
        await submitted(world.nodes[0], "before")
        world.excuse()  # two histories are what this is about
        left, away = world.nodes[2], list(world.nodes[:2])
        for node in away:
            world.network.cut(node.id, left.id)
            world.network.cut(left.id, node.id)
        await trio.sleep(10)
        kept = await submitted(away[0], "final on the other side")
        with trio.fail_after(10):
            while core_of(away[1]).store.receipt(kept.txid) is None:
                await trio.sleep(0.1)
        # What is applied is made durable by the next block, and a crash could make one of them forget that it was final.
        await submitted(away[0], "another")
        for node in away:
            await world.crash(node)
        await recovered(world, [left], away)
        world.network.heal()
        for node in away:
            await world.start(node)
        houses = [House(node) for node in away]
        with trio.fail_after(60):
            while any(house.core.standstill.trouble is None for house in houses):
                await trio.sleep(0.5)
        for house in houses:
            assert "give up what is final" in str(house.core.standstill.trouble)
            assert house.core.store.epochs.current == 0
            assert house.core.store.receipt(kept.txid) == kept
        assert core_of(left).store.receipt(kept.txid) is None

    await world.run(story)


async def test_two_plans_of_one_epoch_are_noticed_where_they_meet(autojump_clock) -> None:
    world = World(17, voters=3, observers=0)

    async def story() -> None:
        await elected(world)
        world.excuse()
        for node in world.nodes:
            await world.crash(node)
        for node in world.nodes[:2]:
            world.network.cut(node.id, world.nodes[1 - node.index].id)
            await world.start(node)
            await recovered(world, [node], [other for other in world.nodes if other is not node])
        world.network.heal()
        with trio.fail_after(60):
            while any(core_of(node).standstill.trouble is None for node in world.nodes[:2]):
                await trio.sleep(0.5)
        assert "by another plan" in str(core_of(world.nodes[0]).standstill.trouble)

    await world.run(story)


async def test_what_only_a_survivor_held_becomes_final_by_the_recovery_and_is_proven_by_a_receipt(
    autojump_clock,
) -> None:
    world = World(23, voters=3, observers=0)

    async def story() -> None:
        leader = await elected(world)
        await submitted(leader, "before")
        world.excuse()
        away = [node for node in world.nodes if node is not leader]
        for node in away:
            await world.crash(node)
        core = core_of(leader)
        with pytest.raises(NotFinal):
            await core.submitter.submit(vault(core, "tail", leader.key), timeout_ms=2_000)
        held = core.store.tip_height()
        assert held > core.applier.mark.height
        await recovered(world, [leader], away)
        began = recovery_above(core.store, 0)
        assert began is not None
        assert began.height == held + 1
        (raw,) = core.store.block(held).transactions
        txid = parse(raw, core.network)[1]
        receipt = core.store.receipt(txid)
        assert receipt is not None
        assert receipt.height == held
        await elected(world)
        await submitted(leader, "after")
        proofs = ReceiptProofs(core.store, core.ports.workers, core.store.certificate_at_or_above)
        made = await proofs.make(txid.hex(), told=True)
        assert made.finding.height == held
        assert standalone_verifier.verify(made.data)["height"] == held

    await world.run(story)
