"""What a leader signs of its frames and offers, and whether it did; the header of a block is another form."""

import functools

from protocol import limits, signing
from protocol.block import header_hash
from protocol.identifiers import Digest, Height, NetworkId, NodeId, Term
from protocol.raft.messages import AppendEntries, InstallSnapshot


def append_form(
    network: NetworkId, *, epoch: int, term: Term, leader: NodeId, prev_hash: Digest, tip_hash: Digest
) -> bytes:
    """Return the bytes a leader signs for each frame (ledger.md decision 3)."""
    return signing.signed_form("append-entries", network, epoch, term, leader, prev_hash, tip_hash)


def append_valid(append: AppendEntries, network: NetworkId) -> bool:
    """Return whether the leader's signature verifies."""
    return ends_valid(
        network,
        epoch=append.epoch,
        term=append.term,
        leader=append.leader,
        prev_hash=append.prev_hash,
        tip_hash=append.tip_hash,
        signature=append.signature,
    )


@functools.lru_cache(maxsize=limits.VERDICTS_CACHED)
def ends_valid(
    network: NetworkId,
    *,
    epoch: int,
    term: Term,
    leader: NodeId,
    prev_hash: Digest,
    tip_hash: Digest,
    signature: bytes,
) -> bool:
    """Return whether a leader signed that frames have these ends. It says so again with every frame that adds nothing."""
    form = append_form(network, epoch=epoch, term=term, leader=leader, prev_hash=prev_hash, tip_hash=tip_hash)
    return signing.verify(leader, form, signature)


def offer_form(
    network: NetworkId, *, epoch: int, term: Term, leader: NodeId, first: Height, offered_hash: Digest
) -> bytes:
    """Return the bytes a leader signs for an offer; `offered_hash` is the header hash of the certified block."""
    return signing.signed_form("install-snapshot", network, epoch, term, leader, first, offered_hash)


def offer_valid(offer: InstallSnapshot, network: NetworkId) -> bool:
    """Return whether the leader's signature verifies."""
    form = offer_form(
        network,
        epoch=offer.epoch,
        term=offer.term,
        leader=offer.leader,
        first=offer.first,
        offered_hash=header_hash(offer.certificate.header),
    )
    return signing.verify(offer.leader, form, offer.signature)
