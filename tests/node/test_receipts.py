from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from node.receipts import AGAIN, Receipts, Submitter
from protocol import codec
from protocol.errors import Invalid, NotFinal, NotLeader, RemoteFault
from protocol.identifiers import Height, NodeId, Txid
from protocol.ledger_rows import Receipt, receipt_key
from protocol.signing import sha256
from protocol.transaction import SignedTransaction, txid_of
from storage import keyspace
from storage.key_value import Batch
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore
from tests.node.ledger_double import DoubleClock
from tests.node.scripted_transport import ScriptedTransport
from tests.protocol import chain
from tests.protocol.chain import CONFIGURATION, NETWORK, NODES

ME, LEADER, OTHER = NODES
SIGNED = tuple(codec.decode(raw, SignedTransaction) for raw in chain.signed())
TXIDS = tuple(txid_of(one.transaction, NETWORK) for one in SIGNED)


def receipt(txid: Txid, verdict: str = "accepted") -> Receipt:
    return Receipt(txid, Height(7), 0, chain.NOW_MS, verdict)


class House:
    """A submitter whose leader and whose leader's answers a test decides."""

    def __init__(self) -> None:
        self.rows = MemoryStore()
        self.receipts = Receipts()
        self.transport = ScriptedTransport(ME)
        self.leader: NodeId | None = LEADER
        self.propose: Callable[[tuple[bytes, ...]], Awaitable[None]] = self.refuse
        self.submitter = Submitter(
            ledger=NETWORK, store=LedgerStore(self.rows, CONFIGURATION), receipts=self.receipts,
            transport=self.transport, clock=DoubleClock(), leader=lambda: self.leader,
            propose=self.take_proposal,
        )  # fmt: skip

    async def take_proposal(self, raw: tuple[bytes, ...]) -> None:
        await self.propose(raw)

    async def refuse(self, _raw: tuple[bytes, ...]) -> None:
        await trio.lowlevel.checkpoint()
        raise NotLeader(self.leader)

    def apply(self, raw: bytes, verdict: str = "accepted") -> None:
        """Do what the applier does for everything in a batch."""
        batch, found = Batch(), []
        for entry in codec.unpack_byte_strings(raw, 1_000):
            txid = txid_of(codec.decode(entry, SignedTransaction).transaction, NETWORK)
            found.append(receipt(txid, verdict))
            batch.put(keyspace.STATE + receipt_key(txid), codec.encode(found[-1]))
        self.rows.write(batch, sync=True)
        self.receipts.resolve(found)

    async def orders(self, raw: bytes) -> bytes:
        self.apply(raw)
        return b""


@pytest.fixture
async def house(nursery: trio.Nursery) -> House:
    house = House()
    nursery.start_soon(house.submitter.run)
    return house


async def test_every_waiter_gets_its_receipt_and_cancelled_ones_leave_no_trace(autojump_clock) -> None:
    receipts = Receipts()
    txid, other = Txid(sha256(b"1")), Txid(sha256(b"2"))
    got: list[Receipt] = []

    async def wait(patience_s: float) -> None:
        with receipts.expect((txid, other)) as waiter, trio.move_on_after(patience_s):
            await waiter.done.wait()
            got.extend(waiter.receipts.values())

    async with trio.open_nursery() as nursery:
        for patience_s in (1, 1, 9, 9):
            nursery.start_soon(wait, patience_s)
        await trio.sleep(2)
        receipts.resolve([receipt(txid), receipt(Txid(sha256(b"nobody waits")))])
        receipts.resolve([receipt(other), receipt(other)])
    assert [one.txid for one in got] == [txid, other] * 2
    assert receipts._waiting == {}


async def test_a_receipt_is_returned_accepted_or_refused(house: House, autojump_clock) -> None:
    house.transport.calls[LEADER] = house.orders
    assert (await house.submitter.submit(SIGNED[0])).is_accepted

    async def refuses(raw: bytes) -> bytes:
        house.apply(raw, "refused: vault exists")
        return b""

    house.transport.calls[LEADER] = refuses
    assert (await house.submitter.submit(SIGNED[1])).verdict == "refused: vault exists"
    assert house.receipts._waiting == {}


async def test_what_is_final_already_is_not_handed_to_anybody(house: House, autojump_clock) -> None:
    house.transport.calls[LEADER] = house.orders
    first = await house.submitter.submit(SIGNED[0])
    asked = len(house.transport.asked)
    assert await house.submitter.submit(SIGNED[0]) == first
    assert len(house.transport.asked) == asked


async def test_without_a_leader_it_is_not_final_in_time_and_may_be_submitted_again(
    house: House, autojump_clock
) -> None:
    house.leader = None
    started = trio.current_time()
    with pytest.raises(NotFinal) as error:
        await house.submitter.submit(SIGNED[0], timeout_ms=3_000)
    assert trio.current_time() - started == pytest.approx(3.0, abs=0.1)
    assert error.value.ids == (TXIDS[0].hex(),)
    assert house.receipts._waiting == {}
    house.leader = LEADER
    house.transport.calls[LEADER] = house.orders
    assert (await house.submitter.submit(SIGNED[0])).is_accepted


async def test_a_member_that_no_longer_leads_is_left_at_once_for_the_new_leader(
    house: House, autojump_clock
) -> None:
    async def stale(_raw: bytes) -> bytes:
        house.leader = OTHER
        return AGAIN

    house.transport.calls = {LEADER: stale, OTHER: house.orders}
    started = trio.current_time()
    assert (await house.submitter.submit(SIGNED[0])).is_accepted
    assert trio.current_time() - started < 0.2


async def test_a_leader_that_dies_with_the_transaction_is_followed_by_the_next(
    house: House, autojump_clock
) -> None:
    async def swallows(_raw: bytes) -> bytes:
        house.leader = OTHER
        return b""

    house.transport.calls = {LEADER: swallows, OTHER: house.orders}
    assert (await house.submitter.submit(SIGNED[0], timeout_ms=4_000)).is_accepted
    assert [peer for peer, _, _ in house.transport.asked] == [LEADER, OTHER]


async def test_a_refusal_of_bad_bytes_ends_the_hand_over_and_not_the_submitter(
    house: House, autojump_clock
) -> None:
    async def refuses(_raw: bytes) -> bytes:
        raise RemoteFault("a signature does not verify")

    house.transport.calls[LEADER] = refuses
    with pytest.raises(NotFinal):
        await house.submitter.submit(SIGNED[0], timeout_ms=2_000)
    house.transport.calls[LEADER] = house.orders
    assert (await house.submitter.submit(SIGNED[1])).is_accepted


@pytest.mark.parametrize("error", [Invalid("bytes"), NotLeader(None)])
async def test_a_leader_itself_survives_what_it_is_given(
    house: House, error: Exception, autojump_clock
) -> None:
    proposed: list[tuple[bytes, ...]] = []

    async def propose(raw: tuple[bytes, ...]) -> None:
        await trio.lowlevel.checkpoint()
        proposed.append(raw)
        if len(proposed) == 1:
            raise error
        house.apply(codec.pack(*raw))

    house.leader, house.propose = ME, propose
    assert (await house.submitter.submit(SIGNED[0])).is_accepted
    assert len(proposed) == 2


async def test_many_are_submitted_in_few_calls_and_come_back_in_order(house: House, autojump_clock) -> None:
    house.transport.calls[LEADER] = house.orders
    found = await house.submitter.submit_all(SIGNED)
    assert tuple(one.txid for one in found) == TXIDS
    assert len(house.transport.asked) == 1
    assert await house.submitter.submit_all(()) == ()
    assert [one.txid for one in await house.submitter.submit_all((SIGNED[0], SIGNED[0]))] == [TXIDS[0]] * 2


async def test_of_many_those_that_are_not_final_are_named(house: House, autojump_clock) -> None:
    async def orders_one(raw: bytes) -> bytes:
        house.apply(codec.pack(*codec.unpack_byte_strings(raw, 10)[:1]))
        house.leader = None
        return b""

    house.transport.calls[LEADER] = orders_one
    with pytest.raises(NotFinal) as error:
        await house.submitter.submit_all(SIGNED[:3], timeout_ms=2_000)
    assert error.value.ids == tuple(sorted(txid.hex() for txid in TXIDS[1:3]))
    assert house.receipts._waiting == {}


async def test_two_who_submit_the_same_get_the_same_receipt(house: House, autojump_clock) -> None:
    house.transport.calls[LEADER] = house.orders
    found: list[Receipt] = []

    async def submit() -> None:
        found.append(await house.submitter.submit(SIGNED[0]))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(submit)
    assert found == [found[0]] * 3
