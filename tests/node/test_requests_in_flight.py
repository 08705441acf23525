"""Scenarios 48 and 49 of ledger.md 3.2: with 1,000 requests in flight the leader changes, and everybody is told the truth.

The truth is one of three: a receipt, which every member then holds, for good; "not final yet", and it may be in the
ledger or not; or no answer, because the member that was asked is gone. In no case is anything done twice.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import trio

from node.applier import Applier
from node.receipts import Receipts
from protocol import codec
from protocol.errors import NotFinal, StorageFull
from protocol.identifiers import Height, NodeId, Txid
from protocol.ledger_rows import Receipt, receipt_key
from protocol.transaction import SignedTransaction, VaultTransaction, txid_of
from simulations import determinism
from simulations.machine import Crashed, Node
from simulations.world import World
from storage import keyspace
from storage.key_value import Batch
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore
from tests.node.ledger_double import InlineDisk
from tests.node.test_applier import CHAIN, certified
from tests.node.test_core import caught_up, core_of, elected, vault
from tests.protocol import chain

REQUESTS = 1_000
TIMEOUT_MS = 6_000


@dataclass
class Requests:
    """What was asked of whom, and what came of it."""

    world: World
    asked: dict[Txid, tuple[Node, SignedTransaction]] = field(default_factory=dict)
    final: dict[Txid, Receipt] = field(default_factory=dict)
    not_final: set[Txid] = field(default_factory=set)
    unanswered: set[Txid] = field(default_factory=set)

    @property
    def open_count(self) -> int:
        return len(self.asked) - len(self.final) - len(self.not_final) - len(self.unanswered)

    async def ask(self, node: Node, signed: SignedTransaction, timeout_ms: int = TIMEOUT_MS) -> None:
        txid = txid_of(signed.transaction, core_of(node).network)
        self.asked[txid] = node, signed
        assert node.life is not None
        try:
            receipt = await node.life.ask(lambda core: core.submitter.submit(signed, timeout_ms=timeout_ms))
        except NotFinal as unknown:
            self.not_final |= {Txid(bytes.fromhex(one)) for one in unknown.ids}
        except Crashed:
            self.unanswered.add(txid)
        else:
            self.final[txid] = receipt

    async def change_leader_under_load(self, change: Callable[[Node], Awaitable[None]]) -> None:
        """Ask every member for as much, change the leader when blocks are under way, and wait for all answers."""
        leader = await elected(self.world)
        raft = _raft(leader)
        async with trio.open_nursery() as nursery:
            for number in range(REQUESTS):
                node = self.world.nodes[number % len(self.world.nodes)]
                nursery.start_soon(self.ask, node, vault(core_of(node), f"{node.index}/{number}", node.key))
            while not raft.uncommitted_count:
                await trio.sleep(0.001)
            assert self.open_count > REQUESTS / 2
            await change(leader)

    async def check(self) -> None:
        """Check, when all members are up and hold the same, that nobody was told anything that is not so."""
        world = self.world
        assert self.open_count == 0
        height = max(core_of(node).applier.height.value for node in world.nodes)
        for node in world.nodes:
            await caught_up(node, height)
        for node in world.nodes:
            store = core_of(node).store
            for txid, receipt in self.final.items():
                assert receipt.is_accepted
                assert store.receipt(txid) == receipt
        store = core_of(world.nodes[0]).store
        ordered = [txid for block in store.blocks(Height(1), Height(height)) for _, txid in block.entries()]
        assert set(ordered) >= self.final.keys()
        for _, signed in self.asked.values():
            assert isinstance(signed.transaction, VaultTransaction)
            assert len(store.events_of(signed.transaction.vid)) <= 1, "done twice"

    async def ask_again_through_another(self) -> None:
        """Ask another member for all that was not answered with a receipt; what was final before stays as it was."""
        before = {txid: core_of(self.world.nodes[0]).store.receipt(txid) for txid in self.asked}
        open_ids = sorted(self.not_final | self.unanswered)
        self.not_final.clear()
        self.unanswered.clear()
        async with trio.open_nursery() as nursery:
            for txid in open_ids:
                node, signed = self.asked[txid]
                other = self.world.nodes[(node.index + 1) % len(self.world.nodes)]
                nursery.start_soon(self.ask, other, signed, 30_000)
        assert self.final.keys() == self.asked.keys()
        for txid, receipt in before.items():
            assert receipt in (None, self.final[txid])


def _raft(node: Node):
    consensus = core_of(node).consensus
    assert consensus is not None
    return consensus.raft


def _links(world: World, node: Node) -> tuple[tuple[NodeId, NodeId], ...]:
    others = [other.id for other in world.nodes if other is not node]
    return tuple([(node.id, other) for other in others] + [(other, node.id) for other in others])


async def crash(world: World, leader: Node) -> None:
    await world.crash(leader)
    await trio.sleep(5)
    await world.start(leader)


async def cut_off(world: World, leader: Node) -> None:
    """For longer than its clients wait: they are told "not final yet", and some of it never was ordered."""
    for source, target in _links(world, leader):
        world.network.cut(source, target)
    await trio.sleep(3 * TIMEOUT_MS / 1000)
    for source, target in _links(world, leader):
        world.network.join(source, target)


async def hand_over(world: World, leader: Node) -> None:
    consensus = core_of(leader).consensus
    assert consensus is not None
    successor = next(node for node in world.nodes[:3] if node is not leader)
    await consensus.transfer_leadership(successor.id)
    with trio.fail_after(60):
        while world.leader() is leader:
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (crash, {"final", "unanswered"}),
        (cut_off, {"final", "not final"}),
        (hand_over, {"final"}),
    ],
)
async def test_49_with_1000_requests_in_flight_a_change_of_leader_tells_nobody_an_untruth(
    autojump_clock, change, told
) -> None:
    with determinism.fake_signatures():  # thousands of them, and not what this is about
        world = World(49, voters=3, observers=1)
        requests = Requests(world)

        async def story() -> None:
            await requests.change_leader_under_load(lambda leader: change(world, leader))
            kinds = {
                "final": requests.final,
                "not final": requests.not_final,
                "unanswered": requests.unanswered,
            }
            assert {name for name, of_kind in kinds.items() if of_kind} == told
            await requests.check()
            await requests.ask_again_through_another()
            await requests.check()

        await world.run(story)
    assert world.violations == []
    assert len(requests.final) == REQUESTS


@pytest.mark.parametrize("reached", [False, True], ids=["lost", "late"])
async def test_48_a_request_that_timed_out_and_is_retried_through_another_member_is_done_once(
    autojump_clock, reached
) -> None:
    """`lost`: the first member was cut off; `late`: it was not, and its client had no patience."""
    world = World(48, voters=3, observers=1)

    async def story() -> None:
        await elected(world)
        first, second = world.nodes[3], world.nodes[0]
        signed = vault(core_of(first), "wanted", first.key)
        if not reached:
            for source, target in _links(world, first):
                world.network.cut(source, target)
        with pytest.raises(NotFinal):
            await core_of(first).submitter.submit(signed, timeout_ms=1 if reached else 5_000)
        receipt = await core_of(second).submitter.submit(signed, timeout_ms=30_000)
        assert receipt.is_accepted
        world.network.heal()
        assert isinstance(signed.transaction, VaultTransaction)
        for node in (*world.nodes, first):
            await caught_up(node, receipt.height)
            assert await core_of(node).submitter.submit(signed) == receipt
            assert len(core_of(node).store.events_of(signed.transaction.vid)) == 1

    await world.run(story)
    assert world.violations == []


async def test_48_the_verdict_on_a_copy_answers_nobody_who_waits_for_the_transaction() -> None:
    """It says "refused: already in the ledger", of something that may have been accepted."""
    rows, receipts = MemoryStore(), Receipts()
    store = LedgerStore(rows, chain.CONFIGURATION)
    (_, txid), *_ = CHAIN[2].entries()
    first, batch = Receipt(txid, Height(1), 0, 1, "accepted"), Batch()
    batch.put(keyspace.STATE + receipt_key(txid), codec.encode(first))
    rows.write(batch, sync=True)
    with receipts.expect((txid,)) as waiter:
        await Applier(store, InlineDisk(rows), receipts).apply(certified(1, 3))
        assert waiter.receipts == {}
    assert store.receipt(txid) == first


@pytest.mark.parametrize("is_stored", [False, True])
async def test_33_blocks_that_came_by_catch_up_are_synchronised_and_those_on_a_quorum_need_not_be(
    is_stored,
) -> None:
    rows = MemoryStore()
    store = LedgerStore(rows, chain.CONFIGURATION)
    await Applier(store, InlineDisk(rows), Receipts()).apply(certified(1, 3, is_stored=is_stored))
    assert store.applied().height == 3
    assert (rows.unsynced == 0) == (not is_stored)


async def test_33_49_nobody_is_told_of_what_could_not_be_written() -> None:
    class FullDisk(InlineDisk):
        async def commit(self, batch: Batch, *, sync: bool) -> None:
            raise StorageFull("full")

    rows, receipts = MemoryStore(), Receipts()
    applier = Applier(LedgerStore(rows, chain.CONFIGURATION), FullDisk(rows), receipts)
    txids = [txid for _, txid in CHAIN[2].entries()]
    with receipts.expect(txids) as waiter, pytest.raises(StorageFull):
        await applier.apply(certified(1, 3))
    assert txids
    assert waiter.receipts == {}
