"""A member's signed word that it holds an erased record no more, and how it is asked for (storage.md 4).

Collector and holder, channel "destructions" (a request is answered by one message):

    AskDestruction ──►  `Attestation`, given only once envelope and chunks are gone from the files;
                        `NotDestroyed` from a member that has not come to the erasure, or has not finished deleting

The word is transferable: whoever has the RecordErase on its ledger can check it. It says what a member deleted of its
own; what a reader copied out before is beyond every attestation.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from protocol import codec, signing
from protocol.chunk_exchange import RECORD_CIDS_MAX, CidField
from protocol.codec import Bytes64, Size, wire
from protocol.errors import Invalid
from protocol.identifiers import NetworkId, NodeId, Rid, Txid
from protocol.transaction import NodeField, RidField, TxidField

DESTRUCTIONS_CHANNEL = "destructions"
_TIME_MS_MAX = 253_402_300_799_999
"""The end of the year 9999."""


@wire("destruction")
@dataclass(frozen=True, slots=True)
class Attestation:
    """`node` destroyed what it held of `rid`, erased by transaction `txid`.

    `chunks` were deleted, `shared` were left because another record names them too; both are 0 at a member that held
    none. `time_ms` is the member's own clock (Unix milliseconds).
    """

    node: NodeField
    rid: RidField
    txid: TxidField
    chunks: int
    shared: int
    time_ms: int
    signature: Bytes64


@wire("ask-destruction")
@dataclass(frozen=True, slots=True)
class AskDestruction:
    """Say whether an erased record is gone from you. `cids` are chunks it had, as far as the asker knows."""

    rid: RidField
    cids: Annotated[tuple[CidField, ...], Size(0, RECORD_CIDS_MAX)]


@wire("not-destroyed")
@dataclass(frozen=True, slots=True)
class NotDestroyed:
    """It is not, or not yet; `reason` is a sentence for an operator, empty while it only takes its time."""

    reason: Annotated[str, Size(0, 300)]


def attest(
    key: signing.SigningKey,
    network: NetworkId,
    rid: Rid,
    txid: Txid,
    *,
    chunks: int,
    shared: int,
    time_ms: int,
) -> Attestation:
    """Return the word of the member whose node key is `key`."""
    word = Attestation(NodeId(key.public), rid, txid, chunks, shared, time_ms, bytes(64))
    return replace(word, signature=key.sign(_form(word, network)))


def check_attestation(
    attestation: Attestation, network: NetworkId, *, node: NodeId, rid: Rid, txid: Txid
) -> None:
    """Check that an attestation is a member's word for one erased record.

    Raises:
        Invalid: it is another's, for another record or erasure, of a time that no calendar has, or its signature does not verify.
    """
    if (attestation.node, attestation.rid, attestation.txid) != (node, rid, txid):
        raise Invalid("a destruction attestation is for something else")
    if attestation.time_ms > _TIME_MS_MAX:
        # Kept for good and shown to people: it would keep all other words from being shown.
        raise Invalid("a destruction attestation has a time that no calendar has")
    if not signing.verify(node, _form(attestation, network), attestation.signature):
        raise Invalid("a destruction attestation does not verify")


def _form(attestation: Attestation, network: NetworkId) -> bytes:
    """Return what is signed: all fields but the signature."""
    return signing.signed_form("destruction", network, *codec.fields_plain(attestation)[:-1])
