"""Signatures apart from the transactions that carry them: what has to verify, so that somebody else may do it.

Two signatures cost eight times what all other checks of a transaction do, and need nothing but bytes.
"""

from collections.abc import Iterable
from typing import NamedTuple

from protocol import signing, transaction
from protocol.identifiers import NetworkId, PublicKey, Txid
from protocol.transaction import RecordCommit, SignedTransaction


class Claim(NamedTuple):
    """That a key made a signature of these bytes."""

    key: PublicKey
    form: bytes
    signature: bytes


def check(raw: bytes, ledger: NetworkId) -> tuple[SignedTransaction, Txid, tuple[Claim, ...]]:
    """Check a transaction but for its signatures; where all the claims hold, `transaction.check` finds nothing wrong.

    Raises:
        Malformed: not a transaction.
        Invalid: a size or rule of the schema does not hold.
    """
    signed, form = transaction.check_unverified(raw, ledger)
    claims = [Claim(one.key, form, one.signature) for one in signed.signatures]
    commit = signed.transaction
    if isinstance(commit, RecordCommit):
        receipt = transaction.receipt_form(ledger, commit.vid, commit.rid, commit.env_hash)
        claims += [Claim(PublicKey(one.node), receipt, one.signature) for one in commit.receipts]
    return signed, Txid(signing.sha256(form)), tuple(claims)


def hold(claims: Iterable[Claim]) -> bool:
    """Return whether every signature verifies."""
    return all(signing.verify(key, form, signature) for key, form, signature in claims)
