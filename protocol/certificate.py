"""The signed forms that make an order provable: grants, acknowledgements, commit proofs (ledger.md 1.1, P0 to P3).

Every form begins with domain tag, network, epoch and incarnation. In this version *final* means committed with such a
proof and applied; the commit votes of P4 and the certificates of P5 build on these without changing them.
"""

import functools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from protocol import codec, limits, signing
from protocol.block import Block, Header, header_hash
from protocol.codec import Bytes64, Size, wire
from protocol.configuration import Configuration
from protocol.errors import Invalid
from protocol.identifiers import Digest, Height, NetworkId, NodeId, Term

NodeField = Annotated[NodeId, Size(32)]
DigestField = Annotated[Digest, Size(32)]


@wire("ack")
@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A voter's word that its durable log equals the leader's up to `height` (P2).

    `term` is that of the leader it follows, never the header's. One acknowledgement covers all ancestors.
    """

    voter: NodeField
    epoch: int
    incarnation: int
    term: Term
    height: Height
    header_hash: DigestField
    signature: Bytes64


def acknowledge(
    key: signing.SigningKey,
    network: NetworkId,
    *,
    epoch: int,
    incarnation: int,
    term: Term,
    height: Height,
    tip: Digest,
) -> Acknowledgement:
    """Return a signed acknowledgement. The log up to `height` must be durable before this is called."""
    form = signing.signed_form("ack", network, epoch, incarnation, term, height, tip)
    return Acknowledgement(NodeId(key.public), epoch, incarnation, term, height, tip, key.sign(form))


@functools.lru_cache(maxsize=limits.VERDICTS_CACHED)
def acknowledgement_valid(ack: Acknowledgement, network: NetworkId) -> bool:
    """Return whether the signature of an acknowledgement verifies. It comes as such, in a proof, and as evidence."""
    form = signing.signed_form(
        "ack", network, ack.epoch, ack.incarnation, ack.term, ack.height, ack.header_hash
    )
    return signing.verify(ack.voter, form, ack.signature)


@wire("election-grant")
@dataclass(frozen=True, slots=True)
class ElectionGrant:
    """A voter's vote in one term for one candidate with one tip (P0)."""

    voter: NodeField
    epoch: int
    incarnation: int
    term: Term
    candidate: NodeField
    tip_hash: DigestField
    signature: Bytes64


def grant_vote(
    key: signing.SigningKey,
    network: NetworkId,
    *,
    epoch: int,
    incarnation: int,
    term: Term,
    candidate: NodeId,
    tip: Digest,
) -> ElectionGrant:
    """Return a signed vote. It must be durable before this is sent (Raft §5.2)."""
    form = signing.signed_form("election-grant", network, epoch, incarnation, term, candidate, tip)
    return ElectionGrant(NodeId(key.public), epoch, incarnation, term, candidate, tip, key.sign(form))


def grant_valid(grant: ElectionGrant, network: NetworkId) -> bool:
    """Return whether the signature of a grant verifies."""
    form = signing.signed_form(
        "election-grant", network, grant.epoch, grant.incarnation, grant.term, grant.candidate, grant.tip_hash
    )
    return signing.verify(grant.voter, form, grant.signature)


@wire("election-certificate")
@dataclass(frozen=True, slots=True)
class ElectionCertificate:
    """Grants of a Raft quorum for one candidate, term and tip: the body of the block that opens the term (P0)."""

    term: Term
    candidate: NodeField
    tip_hash: DigestField
    grants: Annotated[tuple[ElectionGrant, ...], Size(1, limits.MEMBERS_MAX)]


def check_election(
    certificate: ElectionCertificate, network: NetworkId, configuration: Configuration
) -> None:
    """Check that the certificate elects its candidate.

    Raises:
        Invalid: too few grants, of others than voters, for something else, or with a bad signature.
    """
    voters = [grant.voter for grant in certificate.grants]
    if voters != sorted(set(voters)) or not set(voters) <= set(configuration.voters):
        raise Invalid("an election certificate holds grants of distinct voters, sorted")
    if len(voters) < configuration.raft_quorum:
        raise Invalid(
            f"an election certificate needs {configuration.raft_quorum} grants and holds {len(voters)}"
        )
    check_grants(certificate, network)


def check_grants(certificate: ElectionCertificate, network: NetworkId) -> None:
    """Check that each grant is for this election and signed by whom it names; whether they suffice is not asked.

    Raises:
        Invalid: one is not.
    """
    for grant in certificate.grants:
        if (grant.term, grant.candidate, grant.tip_hash) != (
            certificate.term,
            certificate.candidate,
            certificate.tip_hash,
        ):
            raise Invalid("a grant in an election certificate is for something else")
        if not grant_valid(grant, network):
            raise Invalid("a grant in an election certificate does not verify")


def check_opening(block: Block, configuration: Configuration) -> None:
    """Check that the body of a block that opens a term elects its leader upon its predecessor (P0).

    Raises:
        Invalid: the certificate is for another leader, term or tip, or does not elect.
        Malformed: the body is not an election certificate.
    """
    elected = codec.decode(block.opening, ElectionCertificate)
    if (elected.term, elected.candidate, elected.tip_hash) != (
        block.term,
        block.header.leader,
        block.header.prev_hash,
    ):
        raise Invalid(f"block {block.height} opens a term with the certificate of another election")
    check_election(elected, block.header.net, configuration)


@wire("commit-proof")
@dataclass(frozen=True, slots=True)
class CommitProof:
    """Proof that a block, and with it every ancestor, is committed (P3).

    `header` is the block's; `links` are the headers of its descendants, in order, up to the highest one acknowledged.
    """

    header: Header
    links: Annotated[tuple[Header, ...], Size(0, limits.UNCOMMITTED_BLOCKS_MAX)]
    acknowledgements: Annotated[tuple[Acknowledgement, ...], Size(1, limits.MEMBERS_MAX)]


def check_commit_proof(
    proof: CommitProof,
    network: NetworkId,
    configuration: Configuration,
    verified: Collection[Acknowledgement] = (),
) -> Digest:
    """Check a commit proof against the configuration in force; return the header hash of the block it proves.

    `verified` are acknowledgements whose signatures need no second look: a voter's own.

    (a) header.term = T; (b) acknowledgements of one term T from a Raft quorum; (c) each for the block or a descendant,
    with the linking headers. A block of an older term is never proven by counting for itself alone (Raft §5.4.2).

    Raises:
        Invalid: which of these does not hold.
    """
    if proof.header.net != network:
        raise Invalid("a commit proof of another network")
    proven = tip = header_hash(proof.header)
    heights = {tip: proof.header.height}
    for link in proof.links:
        if link.prev_hash != tip or link.height != heights[tip] + 1:
            raise Invalid("the headers of a commit proof are not one chain")
        tip = header_hash(link)
        heights[tip] = link.height
    voters = [ack.voter for ack in proof.acknowledgements]
    if voters != sorted(set(voters)) or not set(voters) <= set(configuration.voters):
        raise Invalid("a commit proof holds acknowledgements of distinct voters, sorted")
    if len(voters) < configuration.raft_quorum:
        raise Invalid(
            f"a commit proof needs {configuration.raft_quorum} acknowledgements and holds {len(voters)}"
        )
    for ack in proof.acknowledgements:
        if ack.term != proof.header.term or ack.epoch != proof.header.epoch:
            raise Invalid("an acknowledgement of another term than the block's proves nothing")
        if heights.get(ack.header_hash) != ack.height:
            raise Invalid("an acknowledgement in a commit proof is for something else")
        if ack not in verified and not acknowledgement_valid(ack, network):
            raise Invalid("an acknowledgement in a commit proof does not verify")
    return proven
