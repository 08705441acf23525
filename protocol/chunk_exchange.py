"""What members say to each other about chunks and envelopes, and what must hold before one gives its word.

Author and holder, channel "chunks" (a request is answered by one message):

    PutChunks ───────►  stored durably, then `Stored`
    ConfirmChunks ───►  `Confirmed`: for each record `StorageReceipt` when all of its list are here, else `Lacking`
    GetChunks ───────►  `Chunks`, an empty one for each that is not here or is damaged

and channel "envelopes":

    OfferEnvelopes ──►  `Answered`: for each `EnvelopeReceipt`, given only when the chunks are confirmed and the label is
                        the ledger's; `NotYet` from a member that has not applied the vault yet; or `Declined`
    GetEnvelope ─────►  `EnvelopeCopy`, or `NoEnvelope`

Two receipts, two names (storage.md 4): a *storage receipt* says "these chunks are on my disk", an *envelope receipt*
goes into the RecordCommit. Everything here is ciphertext, and every byte is checked against its hash by whoever
receives it, so that any member may ask any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from protocol import limits, merkle, placement, signing
from protocol.codec import Bytes32, Bytes64, Size, wire
from protocol.errors import Invalid
from protocol.identifiers import Cid, Digest, NetworkId, NodeId
from protocol.transaction import EnvelopeReceipt, NodeField, RidField, VidField

CHUNKS_CHANNEL = "chunks"
ENVELOPES_CHANNEL = "envelopes"
CHUNKS_PER_MESSAGE_MAX = 4
"""Asked for at once: with two such messages in flight a peer holds `limits.CHUNKS_IN_FLIGHT_PER_PEER` chunks."""
PUT_BYTES_MAX = 2 * limits.MIB
"""Of chunks in one message: a larger one keeps the receiver's other work waiting for longer while it is decoded."""
SMALL_CHUNKS_PER_MESSAGE_MAX = 512
"""Chunks of small records travel together, and are stored by one synchronised write."""
RECORDS_PER_MESSAGE_MAX = 64
"""Small records whose chunks are confirmed, and whose envelopes are offered, together."""
RECORD_CIDS_MAX = 66_000
"""Chunks of a record of 64 GiB, its manifest and the pages of it."""

CidField = Annotated[Cid, Size(32)]
CidList = Annotated[tuple[CidField, ...], Size(1, RECORD_CIDS_MAX)]


@wire("put-chunks")
@dataclass(frozen=True, slots=True)
class PutChunks:
    """Store these chunks durably. Their ids are their SHA-256, which the receiver computes."""

    chunks: Annotated[
        tuple[Annotated[bytes, Size(1, limits.CHUNK_BYTES_MAX)], ...], Size(1, SMALL_CHUNKS_PER_MESSAGE_MAX)
    ]


@wire("stored")
@dataclass(frozen=True, slots=True)
class Stored:
    """They are on stable storage."""


@wire("confirm-lists")
@dataclass(frozen=True, slots=True)
class ConfirmChunks:
    """Say of each record's list that all of it is with you."""

    lists: Annotated[tuple[CidList, ...], Size(1, RECORDS_PER_MESSAGE_MAX)]


@wire("storage-receipt")
@dataclass(frozen=True, slots=True)
class StorageReceipt:
    """A member's word that a list of chunks is on its stable storage; `root` is the RFC 9162 root of the ids."""

    node: NodeField
    root: Bytes32
    signature: Bytes64


@wire("lacking")
@dataclass(frozen=True, slots=True)
class Lacking:
    """These of the chunks are not here."""

    cids: CidList


@wire("confirmed")
@dataclass(frozen=True, slots=True)
class Confirmed:
    """The answer for each list, in order."""

    answers: Annotated[tuple[StorageReceipt | Lacking, ...], Size(1, RECORDS_PER_MESSAGE_MAX)]


@wire("get-chunks")
@dataclass(frozen=True, slots=True)
class GetChunks:
    """Send these chunks."""

    cids: Annotated[tuple[CidField, ...], Size(1, CHUNKS_PER_MESSAGE_MAX)]


@wire("chunks")
@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks asked for, in order; empty where one is not here."""

    chunks: Annotated[
        tuple[Annotated[bytes, Size(0, limits.CHUNK_BYTES_MAX)], ...], Size(1, CHUNKS_PER_MESSAGE_MAX)
    ]


@wire("offer-envelope")
@dataclass(frozen=True, slots=True)
class OfferEnvelope:
    """The author's envelope of a record, all its chunks, and who has confirmed them."""

    vid: VidField
    rid: RidField
    epoch: int
    author: NodeField
    envelope: Annotated[bytes, Size(1, limits.ENVELOPE_BYTES_MAX)]
    cids: CidList
    receipts: Annotated[tuple[StorageReceipt, ...], Size(1, limits.MEMBERS_MAX)]


@wire("offer-envelopes")
@dataclass(frozen=True, slots=True)
class OfferEnvelopes:
    """Envelopes of several records, each with its own answer."""

    offers: Annotated[tuple[OfferEnvelope, ...], Size(1, RECORDS_PER_MESSAGE_MAX)]


@wire("not-yet")
@dataclass(frozen=True, slots=True)
class NotYet:
    """Our ledger has not come to the vault or epoch; offer it again in a moment."""


@wire("declined")
@dataclass(frozen=True, slots=True)
class Declined:
    """It breaks a rule: offering it again is of no use."""

    reason: Annotated[str, Size(1, 200)]


@wire("answered")
@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to each offer, in order."""

    answers: Annotated[tuple[EnvelopeReceipt | NotYet | Declined, ...], Size(1, RECORDS_PER_MESSAGE_MAX)]


@wire("get-envelope")
@dataclass(frozen=True, slots=True)
class GetEnvelope:
    """Send the envelope of a committed record."""

    rid: RidField


@wire("envelope-copy")
@dataclass(frozen=True, slots=True)
class EnvelopeCopy:
    """An envelope and the list of the record's chunks."""

    envelope: Annotated[bytes, Size(1, limits.ENVELOPE_BYTES_MAX)]
    cids: CidList


@wire("no-envelope")
@dataclass(frozen=True, slots=True)
class NoEnvelope:
    """It is not here."""


ChunkRequest = PutChunks | ConfirmChunks | GetChunks
EnvelopeRequest = OfferEnvelopes | GetEnvelope


@wire("placed-chunks")
@dataclass(frozen=True, slots=True)
class PlacedChunks:
    """All chunks of a record, and by what rule they are placed."""

    cids: CidList
    author: NodeField
    replicas: int

    def share_of(self, node: NodeId, storing: tuple[NodeId, ...]) -> tuple[Cid, ...]:
        """Return the chunks that `node` stores, in the record's order."""
        if min(self.replicas, len(storing)) == len(storing):
            return self.cids if node in storing else ()  # everybody has everything: nothing to hash
        return tuple(
            cid for cid in self.cids if node in placement.replicas(cid, storing, self.replicas, self.author)
        )

    def holders(self, storing: tuple[NodeId, ...]) -> dict[NodeId, tuple[Cid, ...]]:
        """Return what each storing member stores, members without a share left out."""
        if min(self.replicas, len(storing)) == len(storing):
            return dict.fromkeys(storing, self.cids)
        shares: dict[NodeId, list[Cid]] = {}
        for cid in self.cids:
            for node in placement.replicas(cid, storing, self.replicas, self.author):
                shares.setdefault(node, []).append(cid)
        return {node: tuple(shares[node]) for node in sorted(shares)}

    def replica_sets(self, storing: tuple[NodeId, ...]) -> frozenset[frozenset[NodeId]]:
        """Return the different sets of members that chunks are placed on: few, however many chunks there are."""
        if min(self.replicas, len(storing)) == len(storing):
            return frozenset((frozenset(storing),))
        return frozenset(
            frozenset(placement.replicas(cid, storing, self.replicas, self.author)) for cid in self.cids
        )


def storage_receipt(cids: Sequence[Cid], key: signing.SigningKey, network: NetworkId) -> StorageReceipt:
    """Return a receipt for chunks that are on stable storage."""
    root = merkle.root_of(cids)
    return StorageReceipt(
        NodeId(key.public), root, key.sign(_receipt_form(network, NodeId(key.public), root))
    )


def check_storage_receipt(receipt: StorageReceipt, cids: Sequence[Cid], network: NetworkId) -> None:
    """Check that a receipt is its member's word for exactly these chunks.

    Raises:
        Invalid: it is for others, or its signature does not verify.
    """
    if receipt.root != merkle.root_of(cids):
        raise Invalid("a storage receipt is for other chunks")
    if not signing.verify(
        receipt.node, _receipt_form(network, receipt.node, receipt.root), receipt.signature
    ):
        raise Invalid("a storage receipt does not verify")


def unconfirmed(
    placed: PlacedChunks, confirmed: frozenset[NodeId], storing: tuple[NodeId, ...]
) -> tuple[Cid, ...]:
    """Return the chunks that fewer than w of their replicas have confirmed."""
    needed = placement.confirmations_needed(storing, placed.replicas)
    if min(placed.replicas, len(storing)) == len(storing):
        return () if len(confirmed & frozenset(storing)) >= needed else placed.cids
    return tuple(
        cid
        for cid in placed.cids
        if len(confirmed.intersection(placement.replicas(cid, storing, placed.replicas, placed.author)))
        < needed
    )


def check_confirmed(
    placed: PlacedChunks,
    receipts: tuple[StorageReceipt, ...],
    storing: tuple[NodeId, ...],
    network: NetworkId,
) -> None:
    """Check that w replicas of every chunk are vouched for: what a member demands before its envelope receipt.

    Raises:
        Invalid: a receipt does not hold, or a chunk has too few.
    """
    if len({receipt.node for receipt in receipts}) != len(receipts):
        raise Invalid("two storage receipts of one member")
    shares = placed.holders(storing)
    for receipt in receipts:
        check_storage_receipt(receipt, shares.get(receipt.node, ()), network)
    lacking = unconfirmed(placed, frozenset(receipt.node for receipt in receipts), storing)
    if lacking:
        raise Invalid(f"{len(lacking)} chunks of a record are on too few members")


def _receipt_form(network: NetworkId, node: NodeId, root: Digest | bytes) -> bytes:
    return signing.signed_form("storage-receipt", network, node, root)
