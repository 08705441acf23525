import dataclasses
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import pytest
import trio

from node.verification import _AT_ONCE, _VERDICTS_MAX, INLINE_MAX, SAMPLED_ONE_IN, Verification
from protocol import block as blocks
from protocol import codec, limits
from protocol.errors import Invalid, RemoteFault
from protocol.identifiers import Vid
from protocol.merkle import Frontier
from protocol.transaction import SignedTransaction, VaultOpen, sign
from tests.node.ledger_double import InlineWorkers, SilentLog
from tests.protocol import chain
from tests.protocol.chain import FACILITY, NETWORK, OWNER, filled

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class CountingWorkers(InlineWorkers):
    """Counts what is handed over to threads."""

    def __init__(self) -> None:
        self.calls = 0

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        self.calls += 1
        return await super().run(function, *args)


def vaults(count: int) -> tuple[bytes, ...]:
    pattern = chain.transactions()[0][0]
    assert isinstance(pattern, VaultOpen)
    return tuple(
        codec.encode(
            sign(dataclasses.replace(pattern, vid=Vid(filled(f"vault {n}"))), NETWORK, OWNER, FACILITY)
        )
        for n in range(count)
    )


def forged(raw: bytes) -> bytes:
    signed = codec.decode(raw, SignedTransaction)
    bad = dataclasses.replace(signed.signatures[0], signature=bytes(64))
    return codec.encode(dataclasses.replace(signed, signatures=(bad, *signed.signatures[1:])))


@pytest.fixture
def verification() -> Verification:
    return Verification(NETWORK, InlineWorkers(), SilentLog())


async def test_one_bad_transaction_refuses_a_block_and_spares_the_others_of_a_submission(
    verification,
) -> None:
    good = vaults(5)
    mixed = (*good[:3], forged(good[3]), b"garbage", good[4])
    with pytest.raises(RemoteFault):
        await verification.check_transactions(mixed)
    entries, raw, fault = await verification.sift_transactions(mixed)
    assert raw == (*good[:3], good[4])
    assert len(entries) == 4
    assert isinstance(fault, RemoteFault)


@pytest.mark.parametrize("beside", [0, INLINE_MAX])
async def test_a_bad_verdict_is_never_remembered_as_a_good_one(verification, beside) -> None:
    good = vaults(beside + 1)
    bad = forged(good[-1])
    for _ in range(2):
        with pytest.raises(Invalid):
            await verification.check_transactions((*good[:beside], bad))
    entries = await verification.check_transactions(good)
    assert len(entries) == beside + 1


async def test_others_run_while_transactions_are_checked_where_they_are(verification, nursery) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    raw = vaults(INLINE_MAX)
    nursery.start_soon(other)
    await trio.lowlevel.checkpoint()
    before = turns
    assert len(await verification.check_transactions(raw)) == INLINE_MAX
    assert turns - before >= INLINE_MAX // _AT_ONCE - 1


class LoadedDice:
    """Draws the same byte every time."""

    def __init__(self, byte: int) -> None:
        self.byte = byte

    def bytes(self, count: int) -> bytes:
        return bytes([self.byte]) * count


@pytest.mark.parametrize("beside", [0, INLINE_MAX])
async def test_of_proven_transactions_those_that_are_drawn_are_verified(beside) -> None:
    raw = (*vaults(beside), forged(vaults(beside + 1)[-1]))
    for sampling in (None, LoadedDice(SAMPLED_ONE_IN)):
        with pytest.raises(Invalid, match="signature"):
            await Verification(NETWORK, InlineWorkers(), SilentLog(), sampling).check_certified(raw)
    sampled = Verification(NETWORK, InlineWorkers(), SilentLog(), LoadedDice(1))
    assert len(await sampled.check_certified(raw)) == len(raw)
    # What was not verified is not known to hold: as a submission, or in a block to be acknowledged, it is checked whole.
    with pytest.raises(Invalid, match="signature"):
        await sampled.check_transactions(raw)


async def test_what_is_not_drawn_is_checked_in_everything_but_its_signatures() -> None:
    sampled = Verification(NETWORK, InlineWorkers(), SilentLog(), LoadedDice(1))
    signed = codec.decode(vaults(1)[0], SignedTransaction)
    short = dataclasses.replace(signed, signatures=signed.signatures[:1])
    assert isinstance(signed.transaction, VaultOpen)
    flagged = dataclasses.replace(signed, transaction=dataclasses.replace(signed.transaction, flags=1))
    for bad in (
        b"garbage",
        codec.encode(short),
        codec.encode(flagged),
        vaults(1)[0] + bytes(limits.TRANSACTION_BYTES_MAX),
    ):
        with pytest.raises(RemoteFault):
            await sampled.check_certified((bad,))


def test_one_draw_in_sixteen_is_verified() -> None:
    assert 256 % SAMPLED_ONE_IN == 0, "every transaction is drawn with the same probability"


async def test_the_memory_of_good_verdicts_is_bounded(verification, monkeypatch) -> None:
    monkeypatch.setattr("node.verification._VERDICTS_MAX", 8)
    await verification.check_transactions(vaults(20))
    assert len(verification._known) == 8
    assert _VERDICTS_MAX > limits.BLOCK_TRANSACTIONS_MAX * 4


async def test_every_mutation_of_a_transaction_is_a_remote_fault_and_nothing_else(verification) -> None:
    raw = vaults(1)[0]
    for position in range(0, len(raw), 3):
        mutated = raw[:position] + bytes([raw[position] ^ 0x41]) + raw[position + 1 :]
        with pytest.raises(RemoteFault):
            await verification.check_transactions((mutated,))
    assert not verification._known


async def test_an_oversized_block_costs_no_signature_checks() -> None:
    workers = CountingWorkers()
    verification = Verification(NETWORK, workers, SilentLog())
    many = vaults(3) * 400
    block = blocks.cut(
        many, predecessor=chain.build()[1].header, predecessor_hash=chain.build()[1].hash,
        frontier=Frontier(), term=chain.build()[1].term, key=chain.VOTERS[0], now_ms=chain.NOW_MS,
    )  # fmt: skip
    with pytest.raises(Invalid, match="counts 1200"):
        await verification.check_block(block)
    assert workers.calls == 0
    assert not verification._known


async def test_a_block_that_carries_a_transaction_twice_is_refused(verification) -> None:
    opening = chain.build()[1]
    block = chain.successor(opening, Frontier(), body=vaults(1) * 2)
    with pytest.raises(Invalid, match="twice"):
        await verification.check_block(block)


async def test_faults_are_counted_per_peer(verification) -> None:
    for _ in range(3):
        verification.reject(chain.NODES[1], Invalid("nonsense"))
    assert verification.faults == {chain.NODES[1]: 3}
