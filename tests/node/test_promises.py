"""A leader's promises: kept by an honest pool, asked for by who waits for long, and proof against a leader that breaks one (E8)."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from node.evidence import EvidenceDesk, convicted
from node.hearing import Hearing
from node.pool import Place
from node.promises import ASK_EVERY_MS, CHANNEL, PromiseRequest, Promises, PromisesGiven
from protocol import codec, transaction
from protocol.errors import NotFinal, RemoteFault
from protocol.evidence_blocks import Promise, promise
from protocol.governance import Propose, SetMinB
from protocol.identifiers import Height, NodeId, Term, Txid
from protocol.signing import SigningKey
from protocol.transaction import SignedTransaction
from tests.node.ledger_double import LedgerDouble, MemberDouble, running

PlaceOf = Callable[[Txid], Place | None]


class House:
    """Four members. The first voter leads; what it says of its pool is up to each test."""

    def __init__(self) -> None:
        self.ledger = LedgerDouble(4)
        by_id = sorted(self.ledger.members, key=lambda member: member.member.node)
        self.leader, self.asker = by_id[:2]
        self.has_said = 0
        self.place_of: PlaceOf = lambda _txid: None
        hearing = Hearing()
        member = self.asker
        self.desk = EvidenceDesk(
            key=SigningKey(member.identity.node), hearing=hearing, store=member.store, rows=member.rows,
            disk=member.disk, submitter=member.submitter, transport=member.transport, workers=member.workers,
            clock=member.clock, log=member.log,
        )  # fmt: skip
        self.promises = self.promises_of(member)
        self.promises_of(self.leader).serve()

    def promises_of(self, member: MemberDouble) -> Promises:
        return Promises(
            key=SigningKey(member.identity.node), store=member.store, receipts=member.receipts,
            applied=member.applier.height, transport=member.transport,
            leader=lambda: NodeId(self.leader.member.node), place_of=self.place, take=self.desk.take,
            clock=member.clock, log=member.log,
        )  # fmt: skip

    def place(self, txid: Txid) -> Place | None:
        self.has_said += 1
        return self.place_of(txid)

    def wish(self, min_b: int = 1) -> SignedTransaction:
        """Return a transaction of the asker's."""
        me, store = self.asker, self.asker.store
        now_ms, valid_until = me.clock.now_ms(), me.submitter.valid_until()
        body = Propose(
            me.member.node, SetMinB(min_b), now_ms + 60_000, store.configuration.digest, True, valid_until
        )
        return transaction.sign(body, store.network, SigningKey(me.identity.governance))

    @property
    def tip(self) -> Height:
        return self.leader.store.applied().height

    def soon(self, _txid: Txid) -> Place:
        return Place(Term(1), self.tip, Height(self.tip + 2))


@pytest.fixture
def house() -> House:
    return House()


async def wait_for(house: House, signed: SignedTransaction, timeout_ms: int) -> None:
    with suppress(NotFinal):  # what it is that a leader lets a member wait for is what these tests are about
        await house.asker.submitter.submit(signed, timeout_ms=timeout_ms)


@asynccontextmanager
async def waiting(house: House, timeout_ms: int = 10_000) -> AsyncIterator[SignedTransaction]:
    """Run a network that orders nothing of what is submitted, with a transaction that is waited for."""
    async with running(house.ledger), trio.open_nursery() as tasks:
        house.ledger.has_quorum = False
        for task in (house.desk.run, house.promises.run):
            tasks.start_soon(task)
        signed = house.wish()
        tasks.start_soon(wait_for, house, signed, timeout_ms)
        yield signed
        tasks.cancel_scope.cancel()


async def rounds(count: int) -> None:
    await trio.sleep(count * ASK_EVERY_MS / 1000 + 0.1)


async def test_a_leader_that_breaks_its_promise_stands_convicted_on_every_members_ledger(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    house.place_of = house.soon
    async with waiting(house):
        await rounds(2)
        assert [one.leader for one in house.promises.held] == [house.leader.member.node]
        await house.ledger.order(())
        await rounds(1)
        assert convicted(house.asker.store) == ()
        await house.ledger.order((codec.encode(house.wish(2)),))
        await rounds(1)
        house.ledger.has_quorum = True
        await trio.sleep(40)
    found = [[(one.kind, one.node) for one in convicted(each.store)] for each in house.ledger.members]
    assert found == [[("E8", house.leader.member.node)]] * 4


async def test_a_promise_that_is_kept_is_forgotten(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    house.place_of = house.soon
    async with waiting(house) as signed:
        await rounds(2)
        assert len(house.promises.held) == 1
        await house.ledger.order(())
        await house.ledger.order((codec.encode(signed),))
        await rounds(1)
        assert not house.promises.held
        await trio.sleep(30)
    assert convicted(house.asker.store) == ()


async def test_what_the_leader_says_nothing_about_is_no_promise(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    async with waiting(house):
        await rounds(3)
        assert house.has_said > 0
        assert house.promises.held == ()
        assert any("are not promised" in event for _, event, _ in house.asker.log.events)


async def test_nobody_is_asked_about_what_becomes_final_in_time(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    async with waiting(house, timeout_ms=1_000):
        await rounds(4)
    assert house.has_said == 0


def foreign(given: Promise, house: House) -> Promise:
    return by(house.asker, given, house)


def far(given: Promise, house: House) -> Promise:
    return by(house.leader, given, house, height=Height(given.since + 1_000))


def other(given: Promise, house: House) -> Promise:
    return by(house.leader, given, house, txid=Txid(bytes(32)))


def unsigned(given: Promise, _house: House) -> Promise:
    return codec.decode(codec.encode(given)[:-64] + bytes(64), Promise)


def by(
    member: MemberDouble,
    given: Promise,
    house: House,
    *,
    height: Height | None = None,
    txid: Txid | None = None,
) -> Promise:
    return promise(
        SigningKey(member.identity.node), house.ledger.network, epoch=given.epoch, term=given.term,
        txid=txid or given.txid, since=given.since, height=height or given.height,
    )  # fmt: skip


@pytest.mark.parametrize("change", [foreign, far, other, unsigned])
async def test_what_is_not_the_leaders_word_about_what_was_asked_is_not_held(
    house: House, change: Callable[[Promise, House], Promise], autojump_clock: trio.testing.MockClock
) -> None:
    async def answer(_peer: NodeId, body: bytes) -> bytes:
        (txid,) = codec.decode(body, PromiseRequest).txids
        key = SigningKey(house.leader.identity.node)
        tip = house.tip
        given = promise(
            key, house.ledger.network, epoch=0, term=Term(1), txid=txid, since=tip, height=Height(tip + 2)
        )
        house.has_said += 1
        return codec.encode(PromisesGiven((change(given, house),)))

    house.leader.transport.serve(CHANNEL, answer)
    async with waiting(house):
        await rounds(3)
        assert (house.has_said > 0, house.promises.held) == (True, ())


async def test_bytes_that_are_no_question_are_refused(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(RemoteFault):
        await house.asker.transport.call(house.leader.member.node, CHANNEL, b"\xc1", timeout_ms=1_000)
    assert house.has_said == 0
