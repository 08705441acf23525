"""What is verified elsewhere is the same as what `transaction.check` verifies, for every kind."""

import dataclasses

import pytest

from protocol import claims, codec, transaction
from protocol.errors import Invalid, Malformed
from protocol.transaction import RecordCommit, SignedTransaction
from tests.protocol import chain

SIGNED = (
    *chain.transactions(), chain.of_erasing(), *chain.of_governing(), chain.of_rejoining()
)  # fmt: skip
RAW = tuple(codec.encode(transaction.sign(entry, chain.NETWORK, *keys)) for entry, keys in SIGNED)


@pytest.mark.parametrize("raw", RAW, ids=[type(entry).__name__ for entry, _ in SIGNED])
def test_the_claims_of_a_transaction_hold_and_each_of_them_is_needed(raw: bytes) -> None:
    signed, txid, claimed = claims.check(raw, chain.NETWORK)
    assert (signed, txid) == transaction.check(raw, chain.NETWORK)
    assert claims.hold(claimed)
    of_body = len(signed.transaction.receipts) if isinstance(signed.transaction, RecordCommit) else 0
    assert len(claimed) == len(signed.signatures) + of_body
    for place, claim in enumerate(claimed):
        forged = claim._replace(signature=claim.signature[:-1] + bytes([claim.signature[-1] ^ 1]))
        assert not claims.hold((*claimed[:place], forged, *claimed[place + 1 :]))


def forged(raw: bytes) -> bytes:
    signed = codec.decode(raw, SignedTransaction)
    first = dataclasses.replace(signed.signatures[0], signature=bytes(64))
    return codec.encode(dataclasses.replace(signed, signatures=(first, *signed.signatures[1:])))


@pytest.mark.parametrize("raw", RAW, ids=[type(entry).__name__ for entry, _ in SIGNED])
def test_a_forged_signature_is_claimed_and_does_not_hold(raw: bytes) -> None:
    assert not claims.hold(claims.check(forged(raw), chain.NETWORK)[2])
    with pytest.raises(Invalid):
        transaction.check(forged(raw), chain.NETWORK)


def test_what_is_wrong_beside_the_signatures_is_found_at_once() -> None:
    with pytest.raises(Malformed):
        claims.check(b"garbage", chain.NETWORK)
    with pytest.raises(Invalid, match="over the limit"):
        claims.check(bytes(10_000_000), chain.NETWORK)
