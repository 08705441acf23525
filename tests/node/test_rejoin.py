"""A signer that has forgotten what it signed: it signs nothing before its promises can count no more."""

import dataclasses

import pytest
import trio
import trio.testing

from node.applier import AppliedHeight
from node.rejoin import Rejoining
from node.watermark import Watermark
from protocol import codec, transaction
from protocol.configuration import Configuration
from protocol.identifiers import ZERO, Height, NodeId, Term
from protocol.raft.state import HardState
from protocol.rejoining import Rejoin
from protocol.signing import SigningKey
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore
from tests.node.ledger_double import DoubleClock, LedgerDouble, SeededEntropy, SilentLog, running
from tests.node.scripted_transport import Answer, ScriptedTransport
from tests.protocol.ledgers import configuration, key

KEYS = tuple(key(f"n{number}") for number in range(5))


def says(term: int, height: int) -> Answer:
    async def answer(_body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return codec.encode(Watermark(Term(term), Height(height)))

    return answer


class House:
    """A voter that rejoins where nothing is final without every vote, and what the others tell it."""

    def __init__(self, voters: int) -> None:
        named = configuration(*(f"n{i}" for i in range(voters)))
        self.configuration: Configuration = dataclasses.replace(named, min_b=voters - 2)
        me, *self.others = self.configuration.voters
        self.transport = ScriptedTransport(NodeId(me))
        self.applied = AppliedHeight(Height(0))
        self.rejoining = Rejoining(
            LedgerStore(MemoryStore(), self.configuration),
            next(key for key in KEYS if NodeId(key.public) == me),
            transport=self.transport,
            clock=DoubleClock(),
            entropy=SeededEntropy("rejoin"),
            applied=self.applied,
            log=SilentLog(),
        )
        self.result: HardState | None = None

    async def run(self) -> None:
        self.result = await self.rejoining.wait()


@pytest.mark.parametrize("voters", [2, 3, 4, 5])
async def test_where_all_are_needed_it_signs_nothing_before_every_other_voter_has_answered(
    voters, nursery, autojump_clock
) -> None:
    house = House(voters)
    house.applied.advance(Height(100))
    house.transport.calls = {node: says(3, 7) for node in house.others[:-1]}
    nursery.start_soon(house.run)
    await trio.sleep(60)
    assert house.result is None
    # The one that holds a forgotten acknowledgement may be the very last.
    house.transport.calls[house.others[-1]] = says(9, 120)
    await trio.sleep(10)
    assert house.result is None
    house.applied.advance(Height(119))
    await trio.sleep(10)
    assert house.result is None
    house.applied.advance(Height(120))
    await trio.testing.wait_all_tasks_blocked()
    result: HardState | None = house.result
    assert result == dataclasses.replace(HardState.initial(), term=Term(9), vote=house.transport.me)


async def test_a_voter_that_has_answered_is_not_asked_again_and_may_go(nursery, autojump_clock) -> None:
    house = House(3)
    first, second = house.others
    house.transport.calls = {first: says(1, 0)}
    nursery.start_soon(house.run)
    await trio.sleep(10)
    del house.transport.calls[first]
    house.transport.calls[second] = says(2, 0)
    await trio.sleep(10)
    assert [peer for peer, _, _ in house.transport.asked].count(first) == 1
    assert house.result is not None
    assert (house.result.term, house.result.ack_hash) == (2, ZERO)


async def test_nonsense_and_silence_are_no_answers(nursery, autojump_clock) -> None:
    house = House(3)
    first, second = house.others

    async def nonsense(_body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"nonsense"

    async def silence(_body: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    house.transport.calls = {first: nonsense, second: silence}
    nursery.start_soon(house.run)
    await trio.sleep(30)
    assert house.result is None
    house.transport.calls = {first: says(0, 0), second: says(0, 0)}
    await trio.sleep(30)
    assert house.result is not None


class Certified:
    """A member that begins anew in a network of four; whoever it hands a Rejoin to orders it."""

    def __init__(self) -> None:
        self.ledger = LedgerDouble(4)
        self.me, *self.others = self.ledger.members
        self.refuses = 0
        self.others[0].transport.serve("submit", self.take)

    async def take(self, _peer: NodeId, body: bytes) -> bytes:
        """Order what is handed in, once; the first ones as a transaction that came after its number was used up."""
        (raw,) = codec.unpack_byte_strings(body, 1)
        signed, txid = transaction.check(raw, self.ledger.network)
        if self.me.store.receipt(txid) is not None:
            return b""
        if self.refuses:
            self.refuses -= 1
            assert isinstance(signed.transaction, Rejoin)
            another = dataclasses.replace(signed.transaction, nonce=bytes(32))
            rival = transaction.sign(another, self.ledger.network, SigningKey(self.me.identity.node))
            await self.ledger.order((codec.encode(rival), raw))
        else:
            await self.ledger.order((raw,))
        return b""

    async def rejoined(self) -> HardState:
        me = self.me
        rejoining = Rejoining(
            me.store,
            SigningKey(me.identity.node),
            transport=me.transport,
            clock=me.clock,
            entropy=me.entropy,
            applied=me.applier.height,
            log=me.log,
        )
        return await rejoining.wait()


async def test_it_signs_once_its_rejoin_is_certified_by_others(nursery, autojump_clock) -> None:
    house = Certified()
    async with running(house.ledger) as ledger:
        ledger.certify_without(house.me)
        hard_state = await house.rejoined()
    assert (hard_state.incarnation, hard_state.term, hard_state.vote) == (1, 1, house.me.member.node)
    assert (hard_state.ack_hash, hard_state.last_vote_height) == (ZERO, 0)


async def test_a_certificate_that_needs_its_own_vote_is_not_enough(nursery, autojump_clock) -> None:
    house = Certified()
    results: list[HardState] = []

    async def rejoin() -> None:
        results.append(await house.rejoined())

    async with running(house.ledger) as ledger:
        ledger.certify_with(house.me)
        nursery.start_soon(rejoin)
        await trio.sleep(30)
        assert house.me.store.applied().height == 2, "its Rejoin is final"
        assert results == []
        ledger.certify_without(house.me)
        await ledger.order(())
        await trio.sleep(1)
        assert [result.incarnation for result in results] == [1]


async def test_one_that_comes_too_late_is_followed_by_another(nursery, autojump_clock) -> None:
    house = Certified()
    house.refuses = 2
    async with running(house.ledger) as ledger:
        ledger.certify_without(house.me)
        hard_state = await house.rejoined()
    assert hard_state.incarnation == 3
