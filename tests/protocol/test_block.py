"""Blocks: golden headers, and every rule of validity (ledger.md 1.1 P2) broken once."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from protocol import block, codec, limits
from protocol.block import Block
from protocol.errors import Invalid, Malformed, RemoteFault
from protocol.identifiers import ZERO, NetworkId, NodeId
from protocol.merkle import EMPTY_ROOT, Frontier
from tests.protocol import chain

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "header.json").read_text())
CHAIN = chain.build()
GENESIS, OPENING, FULL, EMPTY = CHAIN


def signed_again(entry: Block, **changes: Any) -> Block:
    """Return the block with other header fields, signed by its leader as if it meant it."""
    header = dataclasses.replace(entry.header, **changes)
    signer = next(voter for voter in chain.VOTERS if NodeId(voter.public) == entry.header.leader)
    return Block(header, signer.sign(block.header_form(header)), entry.opening, entry.transactions)


def check(entry: Block, *, predecessor: Block = OPENING, frontier: Frontier | None = None) -> None:
    block.check_link(entry, predecessor.header, predecessor.hash, frontier or Frontier(), chain.CONFIGURATION)


ODD: tuple[object, ...] = (
    None,
    True,
    1.5,
    -1,
    "text",
    {},
    (),
    msgpack.ExtType(1, b""),
    (b"", msgpack.ExtType(1, b"")),
)


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_value_of_another_kind_is_refused_wherever_it_stands_in_a_block(odd: Any) -> None:
    plain = codec.unpack(FULL.raw)
    header, transactions = plain[0], plain[3]
    spoilt = [(*plain[:place], odd, *plain[place + 1 :]) for place in range(3)]
    spoilt += [((*header[:place], odd, *header[place + 1 :]), *plain[1:]) for place in range(len(header))]
    spoilt.append((*plain[:3], (*transactions, odd)))
    if odd != ():  # a block may be empty
        spoilt.append((*plain[:3], odd))
    for values in spoilt:
        with pytest.raises(Malformed):
            Block.decode(msgpack.packb(values, use_bin_type=True))


@pytest.mark.parametrize("entry", CHAIN, ids=["genesis", "opening", "full", "empty"])
def test_headers_and_blocks_have_their_golden_bytes(entry):
    golden = VECTORS[entry.height]
    assert codec.encode(entry.header).hex() == golden["header"]
    assert block.header_form(entry.header).hex() == golden["form"]
    assert entry.hash.hex() == golden["hash"]
    assert entry.raw.hex() == golden["block"]


@pytest.mark.parametrize("entry", CHAIN, ids=["genesis", "opening", "full", "empty"])
def test_a_block_is_read_as_it_was_written(entry):
    again = Block.decode(entry.raw)
    assert again == entry
    assert (again.header, again.signature, again.opening, again.transactions) == (
        entry.header,
        entry.signature,
        entry.opening,
        entry.transactions,
    )


def test_a_valid_chain_passes_every_check():
    frontier = Frontier()
    for predecessor, entry in itertools.pairwise(CHAIN):
        check(entry, predecessor=predecessor, frontier=frontier)
        block.check_body(entry)
        frontier = frontier.append(entry.leaves())
    assert frontier.size == len(FULL.transactions) == 7


def test_genesis_is_made_from_the_configuration_alone():
    assert block.genesis_block(chain.CONFIGURATION) == GENESIS
    assert GENESIS.header.net == chain.NETWORK
    assert (GENESIS.term, GENESIS.header.tree_root, GENESIS.signature) == (0, EMPTY_ROOT, b"")


@pytest.mark.parametrize(
    "changes",
    [
        {"net": NetworkId(ZERO)},
        {"epoch": 1},
        {"height": 3},
        {"height": 1},
        {"prev_hash": ZERO},
        {"term": 2},
        {"term": 4},
        {"time_ms": OPENING.header.time_ms},
        {"tree_size": 1},
        {"tree_root": ZERO},
        {"config_hash": ZERO},
        {"next_config_hash": b"\x01" * 32},
        {"app_version": 2},
    ],
    ids=str,
)
def test_a_header_that_breaks_a_rule_is_refused(changes):
    check(FULL)
    with pytest.raises(Invalid):
        check(signed_again(FULL, **changes))


def test_only_a_voter_cuts_and_only_with_its_own_signature():
    stranger = dataclasses.replace(FULL.header, leader=NodeId(chain.OWNER.public))
    with pytest.raises(Invalid, match="not cut by a voter"):
        check(Block(stranger, chain.OWNER.sign(block.header_form(stranger)), b"", FULL.transactions))
    with pytest.raises(Invalid, match="signature"):
        check(Block(FULL.header, bytes(64), b"", FULL.transactions))
    with pytest.raises(Invalid, match="signature"):
        check(Block(FULL.header, b"", b"", FULL.transactions))


def test_within_a_term_only_its_leader_cuts():
    with pytest.raises(Invalid, match="another leader"):
        check(chain.successor(OPENING, Frontier(), leader=1))


def test_a_term_opens_with_an_election_certificate_and_only_then():
    with pytest.raises(Invalid, match="opens"):
        check(chain.successor(OPENING, Frontier(), term=4))
    with pytest.raises(Invalid, match="opens"):
        check(chain.successor(OPENING, Frontier(), opening=OPENING.opening))


@pytest.mark.parametrize(
    ("header", "opening", "transactions"),
    [
        ({}, b"", FULL.transactions[:-1]),
        ({}, b"", FULL.transactions[::-1]),
        ({"n_tx": 6}, b"", FULL.transactions),
        ({}, b"", (*FULL.transactions[:-1], FULL.transactions[0])),
        ({}, OPENING.opening, FULL.transactions),
        ({}, OPENING.opening, ()),
    ],
)
def test_a_body_its_header_does_not_commit_to_is_refused(header, opening, transactions):
    head = dataclasses.replace(FULL.header, **header)
    with pytest.raises(Invalid):
        block.check_body(Block(head, FULL.signature, opening, transactions))


def test_a_transaction_stands_once_in_a_block():
    with pytest.raises(Invalid, match="twice"):
        block.check_body(chain.successor(OPENING, Frontier(), body=(FULL.transactions[3],) * 2))


def read_and_check(raw: bytes) -> None:
    entry = Block.decode(raw)
    block.check_body(entry)
    check(entry)


def test_no_changed_byte_of_a_block_goes_unnoticed():
    for index in range(0, len(FULL.raw), 7):
        raw = FULL.raw[:index] + bytes([FULL.raw[index] ^ 0x41]) + FULL.raw[index + 1 :]
        with pytest.raises(RemoteFault):
            read_and_check(raw)


@pytest.mark.parametrize(
    "plain",
    [
        (),
        (codec.to_plain(FULL.header), bytes(64), b""),
        (b"", bytes(64), b"", ()),
        (codec.to_plain(FULL.header), bytes(63), b"", ()),
        (codec.to_plain(FULL.header), bytes(64), None, ()),
        (codec.to_plain(FULL.header), bytes(64), b"", b""),
        (codec.to_plain(FULL.header), bytes(64), b"", ("text",)),
        (codec.to_plain(FULL.header)[:-1], bytes(64), b"", ()),
    ],
)
def test_what_is_no_block_is_malformed(plain):
    with pytest.raises(Malformed):
        Block.decode(codec.pack(*plain))


def test_time_never_falls_behind_the_predecessor():
    late = chain.successor(FULL, Frontier())
    assert late.header.time_ms == FULL.header.time_ms + 1


def test_a_block_takes_what_fits_and_at_least_one():
    size = limits.TRANSACTION_BYTES_MAX
    assert block.take([bytes(size)] * 100) == limits.BLOCK_BYTES_MAX // size
    assert block.take([b"x"] * 3000) == limits.BLOCK_TRANSACTIONS_MAX
    assert block.take([bytes(2 * limits.BLOCK_BYTES_MAX)]) == 1
    assert block.take([]) == 0
