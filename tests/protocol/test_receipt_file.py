"""Receipts as files: what they prove, their one spelling, and the refusal of every other (ledger.md 1.5)."""

import base64
import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.bench.made_history import BEGIN_MS, MadeHistory, transactions
from protocol import codec, receipt_file, transaction
from protocol.errors import Invalid, Malformed, RemoteFault
from protocol.merkle import leaf_hash

CHAIN = MadeHistory.of("one", "two", "three")
CHAIN.cut(*transactions(3, CHAIN.network))
BODY = transactions(11, CHAIN.network)
CHAIN.rotate(2)
CHAIN.cut(*BODY)
HEIGHT = 4
RECEIPT = CHAIN.receipt(HEIGHT, 5)
DATA = receipt_file.encode(RECEIPT)


def test_the_file_has_golden_bytes():
    """Receipts are kept for decades: what changes these bytes leaves those that were handed out behind."""
    assert (
        hashlib.sha256(DATA).hexdigest() == "660789df4fe6538011d2c54c464f4cb17451b3a88c1808bf5038ad0b722c808a"
    )


def test_a_receipt_proves_index_height_time_and_transaction():
    finding = receipt_file.check(receipt_file.decode(DATA), CHAIN.network)

    assert (finding.network, finding.height, finding.index) == (CHAIN.network, HEIGHT, 3 + 5)
    assert finding.time_ms == CHAIN.blocks[HEIGHT].header.time_ms > BEGIN_MS
    assert finding.txid == transaction.parse(BODY[5], CHAIN.network)[1]
    assert finding.kind == "Revoke"


def test_every_transaction_of_a_block_has_a_receipt():
    found = [receipt_file.check(CHAIN.receipt(HEIGHT, n)).index for n in range(len(BODY))]

    assert found == list(range(3, 3 + len(BODY)))


def test_a_receipt_may_tell_the_leaf_alone():
    receipt = CHAIN.receipt(HEIGHT, 5, told=False)
    data = receipt_file.encode(receipt)

    finding = receipt_file.check(receipt_file.decode(data))

    assert (finding.leaf, finding.txid, finding.kind) == (leaf_hash(BODY[5]), None, None)
    assert BODY[5] not in base64.b64decode(data.split(b"\n\n")[1].split(b"\n", 1)[1])


def test_encode_and_decode_are_each_other_s_inverse():
    assert receipt_file.decode(DATA) == RECEIPT
    assert receipt_file.encode(receipt_file.decode(DATA)) == DATA


def test_what_the_trusted_network_is_decides():
    with pytest.raises(Invalid, match="another network"):
        receipt_file.check(RECEIPT, MadeHistory.of("one", "two", nonce="other").network)


def test_a_receipt_without_its_transaction_repr_tells_nothing_of_it():
    assert repr(RECEIPT) == "ReceiptFile(index=8, height=4)"


@pytest.mark.parametrize("index", [0, 2, 14, 2**64])
def test_an_index_outside_of_the_block_is_refused(index):
    with pytest.raises(Invalid, match="no transaction of block 4 has index"):
        receipt_file.check(replace(RECEIPT, index=index))


def test_another_index_inside_of_the_block_is_refused():
    with pytest.raises(Invalid, match="inclusion proof"):
        receipt_file.check(replace(RECEIPT, index=RECEIPT.index + 1))


def test_a_transaction_of_no_known_kind_is_told_by_the_id_that_its_bytes_have():
    raw = codec.pack("tx", ("Unheard", b"field", 7), (("signature", bytes(32), bytes(64)),))
    CHAIN_OF_ONE.cut(raw)

    finding = receipt_file.check(CHAIN_OF_ONE.receipt(1))

    assert finding.kind == "Unheard"


CHAIN_OF_ONE = MadeHistory.of("one")


def test_bytes_that_are_no_transaction_have_no_receipt_that_tells_them():
    chain = MadeHistory.of("one", nonce="no transaction")
    chain.cut(b"\x01")

    with pytest.raises(Malformed):
        receipt_file.check(chain.receipt(1))


LINES = DATA.decode().split("\n")
OTHER_SPELLINGS = {
    "nothing": b"",
    "another version": DATA.replace(b"@v1", b"@v2"),
    "no final line break": DATA[:-1],
    "a line break more": DATA + b"\n",
    "carriage returns": DATA.replace(b"\n", b"\r\n"),
    "a space in the armour": DATA[:-10] + b" " + DATA[-10:],
    "a comment": DATA + b"# checked by nobody\n",
    "a field more": DATA.replace(b"\nindex", b"\nnote hello\nindex", 1),
    "a leading zero": DATA.replace(b"index 8", b"index 08"),
    "a plus": DATA.replace(b"index 8", b"index +8"),
    "lines of another width": b"\n".join([*DATA.split(b"\n")[:9], b"".join(DATA.split(b"\n")[9:])]),
    "leaf and transaction": DATA.replace(
        b"\ntransaction", b"\nleaf " + base64.b64encode(RECEIPT.leaf) + b"\ntransaction", 1
    ),
    "neither": DATA.replace(b"transaction ", b"", 1),
    "an empty transaction": DATA.replace(LINES[2].encode(), b"transaction ", 1),
    "a shorter path": DATA.replace(LINES[3].encode() + b"\n", b"", 1),
    "a path of another length": DATA.replace(LINES[3].encode(), LINES[3].encode() + b"AAAA", 1),
    "another count of bytes": DATA.replace(b"\nproof ", b"\nproof 1", 1),
    "a unicode digit": DATA.replace(b"index 8", "index ８".encode()),
}


@pytest.mark.parametrize("name", OTHER_SPELLINGS)
def test_every_other_spelling_is_refused(name):
    assert OTHER_SPELLINGS[name] != DATA
    with pytest.raises(RemoteFault):
        receipt_file.check(receipt_file.decode(OTHER_SPELLINGS[name]))


def test_the_bits_that_base64_leaves_over_are_spelled_one_way():
    data = receipt_file.encode(CHAIN.receipt(HEIGHT, 5, told=False))
    at = data.index(b"=\n") - 1
    altered = data[:at] + bytes([data[at] + 1]) + data[at + 1 :]

    assert base64.b64decode(altered[: at + 2].split(b" ")[-1]) == RECEIPT.leaf
    with pytest.raises(Malformed, match="one spelling"):
        receipt_file.decode(altered)


@given(cut=st.integers(0, len(DATA) - 1))
@settings(max_examples=60, deadline=None)
def test_a_receipt_cut_short_anywhere_is_refused_as_malformed(cut):
    with pytest.raises(Malformed):
        receipt_file.decode(DATA[:cut])


def test_a_receipt_cut_short_says_so():
    with pytest.raises(Malformed, match=r"cut short: it holds \d+ of \d+ bytes"):
        receipt_file.decode(DATA[:-66])


@given(at=st.integers(0, len(DATA) - 1), byte=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_no_byte_can_be_altered(at, byte):
    altered = DATA[:at] + bytes([DATA[at] ^ byte]) + DATA[at + 1 :]

    with pytest.raises(RemoteFault):
        receipt_file.check(receipt_file.decode(altered), CHAIN.network)


@given(data=st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_hostile_bytes_are_refused_and_never_crash(data):
    for hostile in (
        data,
        b"carechain/receipt@v1\n" + data,
        b"carechain/receipt@v1\nindex 1\n\nproof 3\n" + data,
    ):
        with pytest.raises(RemoteFault):
            receipt_file.decode(hostile)
