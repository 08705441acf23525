"""Receipts made by a member from its own ledger: found by id, self-contained, and never handed out when they would not hold."""

from collections.abc import Callable

import pytest

from node.bench.made_history import MadeHistory, member, transactions, with_members
from node.receipt_proofs import ReceiptProofs
from protocol import codec, receipt_file, transaction
from protocol.ballots import configuration_key
from protocol.change_proof import CrossingRecovery, height_of
from protocol.errors import Corruption, Refused, Unavailable
from protocol.finality import Certificate
from protocol.identifiers import Height, Txid
from protocol.ledger_rows import ACCEPTED, Receipt, receipt_key
from storage.key_value import Batch
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore
from tests.interop import standalone_verifier
from tests.node.ledger_double import InlineWorkers


class Member:
    """A member's ledger store over a certified chain, as if it had applied all of it; `certified` are heights with a certificate."""

    def __init__(self, chain: MadeHistory, certified: set[int]) -> None:
        self.chain = chain
        self.rows = MemoryStore()
        self.store = LedgerStore(self.rows, chain.genesis)
        self.certificates: dict[int, Certificate] = {
            one.certificate.height: one.certificate for one in chain.certified_changes
        } | {height: chain.certificate(chain.blocks[height]) for height in certified}
        batch = Batch()
        self.store.put_blocks(batch, chain.blocks)
        for change in chain.changes:
            height = height_of(change)
            configuration = chain.in_force(height + 1)
            batch.put(self.store.state_prefix + configuration_key(height), codec.encode(configuration))
            if isinstance(change, CrossingRecovery):
                key = configuration_key(change.headers[0].height)
                batch.put(self.store.state_prefix + key, codec.encode(change.configuration))
        for block in chain.blocks:
            for index, (_, txid) in enumerate(block.entries()):
                receipt = Receipt(txid, block.height, index, block.header.time_ms, ACCEPTED)
                batch.put(self.store.state_prefix + receipt_key(txid), codec.encode(receipt))
        self.rows.write(batch, sync=True)
        self.store.refresh()
        self.proofs = ReceiptProofs(self.store, InlineWorkers(), self.certificate_at_or_above)

    def certificate_at_or_above(self, height: Height) -> Certificate | None:
        return next((self.certificates[at] for at in sorted(self.certificates) if at >= height), None)

    def damage(self, key: bytes, value: bytes) -> None:
        batch = Batch()
        batch.put(self.store.state_prefix + key, value)
        self.rows.write(batch, sync=True)


HEIGHT = 4


def grown() -> MadeHistory:
    """Return a chain with three changes of configuration, a block of five transactions at height 4, and three above it."""
    chain = MadeHistory.of("one", "two", "three")
    chain.rotate(3)
    chain.cut(*transactions(5, chain.network))
    for _ in range(3):
        chain.cut()
    return chain


CHAIN = grown()
TXIDS = [txid for _, txid in CHAIN.blocks[HEIGHT].entries()]


@pytest.mark.parametrize("certified", [4, 6])
async def test_every_transaction_has_a_receipt_that_anyone_can_check(certified):
    member = Member(CHAIN, {certified})

    for index, txid in enumerate(TXIDS):
        made = await member.proofs.make(txid.hex(), told=True)
        finding = receipt_file.check(receipt_file.decode(made.data), CHAIN.network)
        assert (finding.txid, finding.height, finding.index) == (txid, HEIGHT, index)
        assert made.receipt.verdict == ACCEPTED


async def test_who_caught_up_past_a_change_has_receipts_of_what_lies_before_it():
    # Many blocks then come under one certificate, and a configuration block ends them: that one names two quorums.
    chain = MadeHistory.of("one", "two", "three")
    chain.cut(*transactions(2, chain.network))
    chain.rotate(1)
    chain.cut()
    txid = chain.blocks[1].entries()[0][1]

    made = await Member(chain, {3}).proofs.make(txid.hex(), told=True)

    finding = receipt_file.check(receipt_file.decode(made.data), chain.network)
    assert (finding.txid, finding.height) == (txid, 1)
    assert standalone_verifier.verify(made.data, chain.network)["txid"] == txid
    with pytest.raises(Unavailable, match="not here yet"):
        await Member(chain, set()).proofs.make(txid.hex(), told=True)


async def test_a_receipt_of_after_a_recovery_brings_the_consents_along():
    chain = grown()
    chain.recover("newcomer 0")
    chain.cut(*transactions(6, chain.network)[5:])
    height = chain.blocks[-1].height
    (txid,) = [txid for _, txid in chain.blocks[height].entries()]

    made = await Member(chain, {4, height}).proofs.make(txid.hex(), told=True)

    finding = receipt_file.check(receipt_file.decode(made.data), chain.network)
    assert (finding.epoch, finding.height, finding.txid) == (1, height, txid)


@pytest.mark.parametrize("tail", [0, 2])
async def test_a_receipt_leads_across_a_configuration_block_that_a_recovery_alone_has_made_final(tail):
    chain = grown()
    chain.cut(*transactions(6, chain.network)[5:])
    chain.change(with_members(chain.configuration, (*chain.configuration.members, member("late", "learner"))))
    for _ in range(tail):  # only openings of terms stand above a change that is not certified
        chain.cut()
    chain.recover_across("newcomer 0")
    chain.cut(*transactions(7, chain.network)[6:])
    below, above = 8, chain.blocks[-1].height
    house = Member(chain, {4, above})

    for height in (below, above):
        ((_, txid),) = chain.blocks[height].entries()
        made = await house.proofs.make(txid.hex(), told=True)

        finding = receipt_file.check(receipt_file.decode(made.data), chain.network)
        assert (finding.in_force.epoch, finding.height, finding.txid) == (1, height, txid)
        assert standalone_verifier.verify(made.data, chain.network)["txid"] == txid


async def test_without_the_consents_of_those_before_no_receipt_leads_across_such_a_block():
    chain = MadeHistory.of("one", "two", "three")
    chain.rotate(1)
    chain.recover("three")
    chain.cut(*transactions(1, chain.network))
    height = chain.blocks[-1].height
    ((_, txid),) = chain.blocks[height].entries()
    member = Member(chain, {height})
    del member.certificates[1]

    with pytest.raises(Unavailable, match="certificate of configuration block 1 is not here"):
        await member.proofs.make(txid.hex(), told=True)


async def test_a_receipt_may_keep_the_transaction_to_itself():
    made = await Member(CHAIN, {4}).proofs.make(TXIDS[2].hex(), told=False)

    assert receipt_file.decode(made.data).transaction == b""
    assert made.finding.txid is None
    assert made.finding.leaf == CHAIN.blocks[HEIGHT].leaves()[2]


async def test_a_transaction_is_found_by_the_beginning_of_its_id_of_any_length():
    member = Member(CHAIN, {4})

    for length in (7, 8, 63):
        made = await member.proofs.make(TXIDS[0].hex()[:length].upper(), told=True)
        assert made.finding.txid == TXIDS[0]


async def test_a_certificate_loses_the_headers_that_nothing_signs():
    member = Member(CHAIN, set())
    plain = CHAIN.certificate(CHAIN.blocks[HEIGHT])
    member.certificates[HEIGHT] = Certificate(plain.header, (CHAIN.blocks[HEIGHT + 1].header,), plain.votes)

    made = await member.proofs.make(TXIDS[0].hex(), told=True)

    assert receipt_file.decode(made.data).proof.certificate == plain


@pytest.mark.parametrize("text", ["", "12", "zz" * 32, "ab" * 33, "12345-", " "])
async def test_what_is_no_id_is_refused(text):
    with pytest.raises(Refused, match="is no transaction id"):
        await Member(CHAIN, {4}).proofs.make(text, told=True)


async def test_a_transaction_that_is_not_final_here_is_refused():
    with pytest.raises(Refused, match="is final here"):
        await Member(CHAIN, {4}).proofs.make("00" * 32, told=True)


async def test_an_id_that_begins_two_transactions_is_refused():
    member = Member(CHAIN, {4})
    twin = Txid(TXIDS[0][:16] + bytes(16))
    member.damage(receipt_key(twin), codec.encode(Receipt(twin, Height(4), 0, 0, ACCEPTED)))

    with pytest.raises(Refused, match="more than one transaction"):
        await member.proofs.make(TXIDS[0].hex()[:32], told=True)


def without_certificate(member: Member) -> None:
    del member.certificates[HEIGHT]


def without_change(member: Member) -> None:
    del member.certificates[2]


SPOILED: dict[str, tuple[Callable[[Member], None], type[Exception], str]] = {
    "no certificate yet": (without_certificate, Unavailable, "not here yet"),
    "no certificate of a change": (without_change, Unavailable, "configuration block 2 is not here"),
    "another configuration": (
        lambda member: member.damage(configuration_key(2), codec.encode(CHAIN.genesis)),
        Corruption,
        "would prove nothing",
    ),
    "a receipt row of another place": (
        lambda member: member.damage(
            receipt_key(TXIDS[0]), codec.encode(Receipt(TXIDS[0], Height(HEIGHT), 1, 0, ACCEPTED))
        ),
        Corruption,
        "does not hold transaction",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
async def test_nothing_is_handed_out_that_proves_nothing(name):
    spoil, error, sentence = SPOILED[name]
    member = Member(CHAIN, {HEIGHT})
    spoil(member)
    member.store.refresh()

    with pytest.raises(error, match=sentence):
        await member.proofs.make(TXIDS[0].hex(), told=True)


async def test_a_gap_too_long_for_a_receipt_names_who_can_help(monkeypatch):
    monkeypatch.setattr("protocol.limits.PROOF_HEADERS_MAX", 2)

    with pytest.raises(Unavailable, match="ask a member that was there"):
        await Member(CHAIN, {7}).proofs.make(TXIDS[0].hex(), told=True)


def test_transactions_of_the_chain_are_what_the_ledger_parses():
    assert TXIDS[0] == transaction.parse(CHAIN.blocks[HEIGHT].transactions[0], CHAIN.network)[1]
