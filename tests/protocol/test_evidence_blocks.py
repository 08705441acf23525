"""E7 and E8: invalid blocks and broken promises convict their leader; what others did to an honest leader's block does not."""

import dataclasses
from typing import Any

import pytest

from protocol import codec, limits, merkle
from protocol.block import Block, Header
from protocol.configuration import network_id
from protocol.errors import Invalid
from protocol.evidence_blocks import BrokenPromise, InvalidBlock, PlacedEntry, promise
from protocol.identifiers import ZERO, Digest, Height, NetworkId, Term, Txid
from protocol.merkle import Frontier
from protocol.transaction import parse
from tests.protocol.chain import CONFIGURATION, NETWORK, VOTERS, build, election, signed, successor
from tests.protocol.evidence_cast import headers, judged, node, resigned, signed_header

GENESIS, OPENING, FULL, EMPTY = build()
ENTRIES = signed()


def shown(entries: tuple[bytes, ...], *indexes: int) -> tuple[PlacedEntry, ...]:
    leaves = [merkle.leaf_hash(entry) for entry in entries]

    def subtree(level: int, at: int) -> Digest:
        return merkle.root_of_leaves(leaves[at << level : (at + 1) << level])

    return tuple(
        PlacedEntry(index, entries[index], merkle.inclusion_proof(index, len(entries), subtree))
        for index in indexes
    )


def found(
    block: Block, before: Block, special: bytes = b"", entries: tuple[PlacedEntry, ...] = (), **more: Any
) -> InvalidBlock:
    parts: dict[str, Any] = {"peaks": (), "leaves": (), **more}
    return InvalidBlock(signed_header(block), before.header, special, entries, **parts)


def lying(block: Block, before: Block, **changes: Any) -> InvalidBlock:
    """Return evidence of a header like that of an honest block with one lie in it, signed by its leader."""
    header: Header = dataclasses.replace(block.header, **changes)
    return InvalidBlock(resigned(header), before.header, block.special, (), (), ())


def body_of(*entries: bytes) -> Block:
    return successor(OPENING, Frontier(), body=entries)


@pytest.mark.parametrize(
    "changes",
    [
        {"term": Term(2)},
        {"time_ms": FULL.header.time_ms},
        {"height": Height(7)},
        {"tree_size": 3},
        {"tree_size": FULL.header.n_tx, "config_hash": Digest(bytes(32))},
        {"n_tx": limits.BLOCK_TRANSACTIONS_MAX + 1},
        {"net": NetworkId(network_id(CONFIGURATION)), "next_config_hash": bytes(31) + b"1"},
    ],
)
def test_a_header_that_does_not_fit_its_predecessor_convicts_its_leader(changes) -> None:
    conviction = judged(lying(EMPTY, FULL, **changes))

    assert (conviction.kind, conviction.nodes) == ("E7", (node(0),))


def test_a_term_without_an_election_convicts_its_leader() -> None:
    block = successor(EMPTY, Frontier().append(FULL.leaves()), term=4)

    assert judged(found(block, EMPTY)).kind == "E7"


def test_an_opening_with_too_few_grants_convicts_its_leader() -> None:
    opening = codec.encode(election(term=4, leader=0, tip=EMPTY.hash, by=(0,)))
    block = successor(EMPTY, Frontier().append(FULL.leaves()), term=4, opening=opening)

    assert judged(found(block, EMPTY, opening)).nodes == (node(0),)


def test_a_transaction_with_a_bad_signature_convicts_the_leader() -> None:
    good = codec.decode(ENTRIES[0], type(parse(ENTRIES[0], NETWORK)[0]))
    signatures = (dataclasses.replace(good.signatures[0], signature=bytes(64)), *good.signatures[1:])
    bad = codec.encode(dataclasses.replace(good, signatures=signatures))
    entries = (ENTRIES[1], bad, ENTRIES[2])

    assert judged(found(body_of(*entries), OPENING, entries=shown(entries, 1))).nodes == (node(0),)


def test_a_body_of_other_bytes_than_transactions_convicts_the_leader() -> None:
    entries = (b"no transaction",)

    assert judged(found(body_of(*entries), OPENING, entries=shown(entries, 0))).kind == "E7"


def test_a_transaction_that_stands_twice_convicts_the_leader() -> None:
    entries = (ENTRIES[0], ENTRIES[1], ENTRIES[0])

    assert judged(found(body_of(*entries), OPENING, entries=shown(entries, 0, 2))).kind == "E7"


def test_a_tree_that_is_not_the_predecessors_with_its_transactions_convicts_the_leader() -> None:
    header = dataclasses.replace(EMPTY.header, tree_root=Digest(bytes(32)))
    lie = InvalidBlock(resigned(header), FULL.header, b"", (), (), FULL.leaves())

    assert judged(lie).kind == "E7"


def test_a_tree_that_grew_by_nothing_is_seen_in_the_headers_alone() -> None:
    assert judged(lying(FULL, OPENING, tree_root=Digest(bytes(32)))).kind == "E7"


# --- honest leaders


@pytest.mark.parametrize(
    "honest",
    [
        found(OPENING, GENESIS, OPENING.special),
        found(FULL, OPENING),
        found(FULL, OPENING, entries=shown(ENTRIES, 0, 1)),
        found(FULL, OPENING, entries=shown(ENTRIES, 2, 2)),
        found(EMPTY, FULL),
        found(EMPTY, FULL, leaves=FULL.leaves()),
    ],
)
def test_the_block_of_an_honest_leader_does_not_convict_it(honest) -> None:
    with pytest.raises(Invalid, match="not shown to break"):
        judged(honest)


@pytest.mark.parametrize(
    ("mangled", "reason"),
    [
        # The short form: an honest header with the body that somebody else put beside it.
        (found(FULL, OPENING, entries=(PlacedEntry(0, b"no transaction", ()),)), "inclusion proof"),
        (found(FULL, OPENING, entries=(dataclasses.replace(shown(ENTRIES, 0)[0], index=1),)), "does not lead"),
        (found(OPENING, GENESIS, b"another opening"), "not the body"),
        (found(OPENING, GENESIS), "not the body"),
        (found(EMPTY, FULL, leaves=FULL.leaves()[1:]), "not the transactions"),
        (found(EMPTY, FULL, peaks=(Digest(ZERO),), leaves=FULL.leaves()), "not the tree before"),
        (found(EMPTY, OPENING), "predecessor"),
        (found(FULL, OPENING, entries=()), "not shown to break"),
    ],
)  # fmt: skip
def test_what_others_put_beside_an_honest_header_does_not_convict_its_leader(mangled, reason) -> None:
    with pytest.raises(Invalid, match=reason):
        judged(mangled)


def test_one_transaction_is_not_taken_for_an_opening_though_both_have_one_root() -> None:
    block = body_of(ENTRIES[0])

    with pytest.raises(Invalid, match="not shown as an opening"):
        judged(found(block, OPENING, ENTRIES[0]))


def test_an_opening_is_not_taken_for_one_transaction() -> None:
    entry = PlacedEntry(0, OPENING.special, ())

    with pytest.raises(Invalid, match="not in a tree of 0"):
        judged(found(OPENING, GENESIS, OPENING.special, (entry,)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"time_ms": EMPTY.header.time_ms + 10**12}, "not shown to break"),  # a clock is no evidence
        ({"app_version": 2}, "other rules"),  # a later program's
        ({"epoch": 1}, "epoch"),
    ],
)
def test_what_this_program_cannot_judge_convicts_nobody(changes, reason) -> None:
    with pytest.raises(Invalid, match=reason):
        judged(lying(EMPTY, FULL, **changes))


def test_a_block_of_an_unknown_configuration_convicts_nobody() -> None:
    other = dataclasses.replace(CONFIGURATION, nonce=bytes(31) + b"1")

    with pytest.raises(Invalid, match="not known here"):
        judged(found(FULL, OPENING), {other.digest: other})


def test_a_header_that_nobody_signed_convicts_nobody() -> None:
    forged = dataclasses.replace(lying(EMPTY, FULL, term=Term(2)), header=dataclasses.replace(
        resigned(dataclasses.replace(EMPTY.header, term=Term(2))), signature=bytes(64)))  # fmt: skip

    with pytest.raises(Invalid, match="signature"):
        judged(forged)


# --- E8

LEFT_OUT = Txid(bytes(32))


def given(txid: Txid, *, since: Block = OPENING, height: int = 3, term: int = 3):
    return promise(
        VOTERS[0], NETWORK, epoch=0, term=Term(term), txid=txid, since=since.height, height=Height(height)
    )


def test_a_leader_that_leaves_out_what_it_promised_is_convicted() -> None:
    broken = BrokenPromise(given(LEFT_OUT), signed_header(EMPTY), headers((FULL,)), (ENTRIES, ()))

    conviction = judged(broken)

    assert (conviction.kind, conviction.nodes, conviction.height) == ("E8", (node(0),), 3)


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (
            BrokenPromise(
                given(parse(ENTRIES[2], NETWORK)[1]), signed_header(EMPTY), headers((FULL,)), (ENTRIES, ())
            ),
            "was kept",
        ),
        (BrokenPromise(given(LEFT_OUT), signed_header(EMPTY), headers((FULL,)), ((), ())), "not complete"),
        (
            BrokenPromise(
                given(LEFT_OUT), signed_header(EMPTY), headers((FULL,)), ((*ENTRIES[1:], ENTRIES[0]), ())
            ),
            "not the one",
        ),
        (BrokenPromise(given(LEFT_OUT), signed_header(EMPTY), (), ((),)), "do not reach"),
        (BrokenPromise(given(LEFT_OUT, height=4), signed_header(EMPTY), headers((FULL,)), (ENTRIES, ())), "promised height"),
        # It lost its office before the height came: the blocks are another leader's, or of another term.
        (
            BrokenPromise(given(LEFT_OUT, term=2), signed_header(EMPTY), headers((FULL,)), (ENTRIES, ())),
            "another leader, epoch or term",
        ),
        (
            BrokenPromise(
                dataclasses.replace(given(LEFT_OUT), height=Height(2)), signed_header(FULL), (), (ENTRIES,)
            ),
            "does not verify",
        ),
    ],
)  # fmt: skip
def test_a_leader_that_kept_its_promise_or_could_not_is_not_convicted(kept, reason) -> None:
    with pytest.raises(Invalid, match=reason):
        judged(kept)
