"""Transactions: golden bytes of every kind, and the checks that need no state."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from protocol import codec, limits, transaction
from protocol.errors import Invalid, Malformed, RemoteFault
from protocol.identifiers import NetworkId
from protocol.signing import SigningKey
from protocol.transaction import Grant, Read, RecordCommit, SignedTransaction, VaultOpen
from tests.protocol import chain

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "transaction.json").read_text())
KINDS = (*chain.transactions(), chain.of_erasing(), *chain.of_governing(), chain.of_rejoining())
BY_KIND: dict[type, tuple[Any, tuple[SigningKey, ...]]] = {
    type(entry): (entry, keys) for entry, keys in KINDS
}


@pytest.mark.parametrize(("entry", "keys"), KINDS, ids=[type(entry).__name__ for entry, _ in KINDS])
def test_every_kind_has_its_golden_bytes_and_id(entry, keys):
    golden = VECTORS[type(entry).__name__]
    signed = transaction.sign(entry, chain.NETWORK, *keys)
    assert codec.encode(signed).hex() == golden["signed"]
    assert transaction.txid_of(entry, chain.NETWORK).hex() == golden["txid"]
    assert transaction.check(codec.encode(signed), chain.NETWORK) == (signed, bytes.fromhex(golden["txid"]))


@pytest.mark.parametrize(("entry", "keys"), KINDS, ids=[type(entry).__name__ for entry, _ in KINDS])
def test_a_transaction_of_another_network_or_with_a_wrong_signature_is_refused(entry, keys):
    signed = transaction.sign(entry, chain.NETWORK, *keys)
    with pytest.raises(Invalid):
        transaction.check(codec.encode(signed), NetworkId(bytes(32)))
    spoiled = dataclasses.replace(signed.signatures[0], signature=bytes(64))
    with pytest.raises(Invalid):
        transaction.check(
            codec.encode(dataclasses.replace(signed, signatures=(spoiled, *signed.signatures[1:]))),
            chain.NETWORK,
        )


def test_the_number_of_signatures_is_that_of_the_kind():
    entry, keys = BY_KIND[VaultOpen]
    with pytest.raises(Invalid, match="carries 1 signatures"):
        transaction.check(codec.encode(transaction.sign(entry, chain.NETWORK, keys[0])), chain.NETWORK)
    entry, keys = BY_KIND[RecordCommit]
    with pytest.raises(Invalid, match="carries 2 signatures"):
        transaction.check(
            codec.encode(transaction.sign(entry, chain.NETWORK, *keys, chain.OWNER)), chain.NETWORK
        )


def test_no_single_changed_byte_goes_unnoticed():
    raw = chain.signed()[3]
    for index in range(len(raw)):
        changed = raw[:index] + bytes([raw[index] ^ 1]) + raw[index + 1 :]
        with pytest.raises(RemoteFault):
            transaction.check(changed, chain.NETWORK)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (VaultOpen, {"flags": 1}),
        (VaultOpen, {"replicas": 0}),
        (VaultOpen, {"replicas": limits.MEMBERS_MAX + 1}),
        (Grant, {"exp": chain.NOW_MS}),
        (Grant, {"exp": chain.NOW_MS + limits.GRANT_MS_MAX + 1}),
        (Grant, {"kind": 2}),
        (Grant, {"rights": "WR"}),
        (Grant, {"rights": "X"}),
        (Grant, {"purposes": ("TREAT", "HPAYMT")}),
        (Grant, {"purposes": ("TREAT", "TREAT")}),
        (Grant, {"purposes": ("FUN",)}),
        (Read, {"purpose": "FUN"}),
    ],
)
def test_a_rule_of_the_schema_that_is_broken_is_refused(kind, changes):
    entry, keys = BY_KIND[kind]
    broken = dataclasses.replace(entry, **changes)
    with pytest.raises(Invalid):
        transaction.check(codec.encode(transaction.sign(broken, chain.NETWORK, *keys)), chain.NETWORK)


def test_a_read_names_each_record_once_and_receipts_are_of_distinct_members():
    read, keys = BY_KIND[Read]
    twice = dataclasses.replace(read, rids=read.rids * 2)
    with pytest.raises(Invalid):
        transaction.check(codec.encode(transaction.sign(twice, chain.NETWORK, *keys)), chain.NETWORK)
    commit, keys = BY_KIND[RecordCommit]
    for receipts in (commit.receipts[:1] * 2, commit.receipts[::-1]):
        changed = dataclasses.replace(commit, receipts=receipts)
        with pytest.raises(Invalid):
            transaction.check(codec.encode(transaction.sign(changed, chain.NETWORK, *keys)), chain.NETWORK)


def test_receipts_verify_for_their_record_only():
    commit, _ = BY_KIND[RecordCommit]
    assert transaction.receipts_valid(commit, chain.NETWORK)
    assert not transaction.receipts_valid(
        dataclasses.replace(commit, rid=chain.filled("other")), chain.NETWORK
    )


def test_an_oversized_transaction_is_refused_before_it_is_parsed():
    with pytest.raises(Invalid, match="over the limit"):
        transaction.check(bytes(limits.ACCUSATION_BYTES_MAX + 1), chain.NETWORK)


def test_a_transaction_is_nothing_but_a_transaction():
    with pytest.raises(Malformed):
        codec.decode(codec.encode(chain.CONFIGURATION), SignedTransaction)
