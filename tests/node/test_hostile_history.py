"""History that is told in two ways, and bytes that could be read in two: every node comes to one verdict (ledger.md 3.3)."""

import dataclasses
from typing import Any

import pytest
import trio

from node.forks import Forks
from node.hearing import Hearing
from node.verification import Verification
from protocol import codec, evidence, transaction
from protocol.block import Block, check_body
from protocol.errors import RemoteFault
from protocol.evidence import Conviction, Evidence
from protocol.identifiers import PublicKey
from protocol.merkle import Frontier
from protocol.notebook import Notebook
from protocol.overheard import holds
from protocol.transaction import Signature, SignedTransaction
from tests.node.ledger_double import InlineDisk, InlineWorkers, SilentLog
from tests.node.test_catchup import CHAIN, LIAR, House, segment, sending
from tests.node.test_forks import filled, house, served_other_chain  # noqa: F401 - fixtures
from tests.protocol import chain
from tests.protocol.chain import CONFIGURATION, NETWORK, NODES, certificate_of

CONFIGURATIONS = {CONFIGURATION.digest: CONFIGURATION}
ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the group of Ed25519: added to S it gives a second signature that careless verifiers take."""
GOOD = codec.decode(CHAIN[2].transactions[0], SignedTransaction)
SMALL_ORDER = Signature(PublicKey(bytes([1]) + bytes(31)), bytes([1]) + bytes(63))


def signed_by(*signatures: Signature) -> bytes:
    return codec.encode(dataclasses.replace(GOOD, signatures=signatures))


def malleable(signature: bytes) -> bytes:
    return signature[:32] + (int.from_bytes(signature[32:], "little") + ORDER).to_bytes(32, "little")


def longer(raw: bytes) -> bytes:
    """Return another spelling of the same value: the length of the array in three bytes in the place of one."""
    return b"\xdc" + (raw[0] & 0x0F).to_bytes(2, "big") + raw[1:]


FIRST = GOOD.signatures[0]
AMBIGUOUS = {
    "spelling": longer(CHAIN[2].transactions[0]),
    "trailing": CHAIN[2].transactions[0] + b"\xc0",
    "malleable": signed_by(dataclasses.replace(FIRST, signature=malleable(FIRST.signature)), *GOOD.signatures[1:]),
    "small-order": signed_by(SMALL_ORDER, *GOOD.signatures[1:]),
    "joined": b"".join(CHAIN[2].transactions[:2]),
}  # fmt: skip


@pytest.mark.parametrize("raw", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_55_bytes_that_could_be_read_in_two_ways_are_refused_on_whichever_way_they_come(
    raw: bytes, autojump_clock: Any
) -> None:
    observer, verification = House(), Verification(NETWORK, InlineWorkers(), SilentLog())
    block = chain.successor(CHAIN[1], Frontier(), body=(raw,))

    with pytest.raises(RemoteFault):  # a client's
        transaction.check(raw, NETWORK)
    assert (await verification.sift_transactions((raw,)))[1] == ()  # a member's, to the leader
    with pytest.raises(RemoteFault):  # a leader's, to a voter
        await verification.check_block(block)
    observer.transport.streams[LIAR] = sending(segment(CHAIN[1], block, certificate=certificate_of(block)))
    await observer.follower.pull()  # any member's, to an observer; certified or not
    assert observer.applier.height.value == 0


def test_55_a_body_with_other_borders_between_its_transactions_is_not_the_headers() -> None:
    """Fabric CVE-2023-46132: where the hash is that of all bytes in a row, borders can be moved unseen."""
    full = CHAIN[2]
    for body in (
        (b"".join(full.transactions),),
        (full.transactions[0] + full.transactions[1][:7], full.transactions[1][7:], *full.transactions[2:]),
    ):
        with pytest.raises(RemoteFault):
            check_body(Block(full.header, full.signature, b"", body))


async def test_56_a_second_source_exposes_a_forked_chain_and_what_it_shows_convicts_who_signed_both(
    filled: House,  # noqa: F811 - the fixture
    nursery: trio.Nursery,
    autojump_clock: Any,
) -> None:
    hearing = Hearing()
    filled.forks = Forks(filled.store, InlineDisk(filled.rows), filled.transport, filled.log, hearing)
    filled.follower._forks = filled.forks
    filled.transport.streams[LIAR] = await served_other_chain()
    nursery.start_soon(filled.follower.run)
    await trio.sleep(30)

    assert filled.applier.mark.hash == CHAIN[3].hash, "what is applied stays"
    assert LIAR in filled.forks.shunned
    assert {(one.kind, one.nodes) for one in convictions(hearing)} == {("E3", (NODES[1],))}


def convictions(hearing: Hearing) -> list[Conviction]:
    """Return of what a desk of evidence convicts, upon what it has been told."""
    notebook = Notebook(NETWORK, lambda: CONFIGURATIONS)
    heard = hearing.heard.receive_nowait()
    found = list[Evidence]()
    for statement in heard.said:
        assert holds(statement, NETWORK, CONFIGURATIONS)
        found += notebook.see(statement, heard.headers)
    return [evidence.check(one, NETWORK, CONFIGURATIONS) for one in found]


WRONG_BODY = Block(CHAIN[2].header, CHAIN[2].signature, b"", CHAIN[2].transactions[::-1])


@pytest.mark.parametrize(
    ("blocks", "certified"),
    [
        ((CHAIN[2], CHAIN[3]), CHAIN[3]),
        ((CHAIN[2], CHAIN[1]), CHAIN[1]),
        ((CHAIN[1], WRONG_BODY), CHAIN[2]),
        ((CHAIN[1], CHAIN[2]), CHAIN[3]),
    ],
    ids=["gap", "order", "body", "certificate-of-another"],
)
async def test_60_a_range_is_verified_to_its_certificate_and_who_sent_another_is_scored(
    blocks: tuple[Block, ...], certified: Block, autojump_clock: Any
) -> None:
    observer = House()
    observer.transport.streams = {LIAR: sending(segment(*blocks, certificate=certificate_of(certified)))}

    await observer.follower.pull()

    assert observer.applier.height.value == 0
    assert observer.verification.faults == {LIAR: 1}
