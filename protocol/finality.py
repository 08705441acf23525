"""Commit votes and certificates: what makes a block final, whoever led and whoever lied (ledger.md 1.1, P4 and P5).

A commit proof (`protocol.certificate`) survives crashes. It says nothing against a leader that lies: only votes that are
cast after it, each naming the *base* on which it stands, cannot be brought together for two histories.
"""

import functools
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Annotated

from protocol import limits, signing
from protocol.block import Header, header_hash
from protocol.codec import Bytes64, Size, wire
from protocol.configuration import Configuration
from protocol.errors import Invalid
from protocol.identifiers import Digest, Height, NetworkId, NodeId, Term

DigestField = Annotated[Digest, Size(32)]


@wire("commit-vote")
@dataclass(frozen=True, slots=True)
class CommitVote:
    """A signer's word for the block at `height` and every ancestor above its base (P4).

    The base is the highest block on the voted block's own chain that the signer knows to be certified, genesis at first.
    """

    signer: Annotated[NodeId, Size(32)]
    epoch: int
    incarnation: int
    height: Height
    header_hash: DigestField
    base_height: Height
    base_hash: DigestField
    signature: Bytes64


def cast_vote(
    key: signing.SigningKey,
    network: NetworkId,
    *,
    epoch: int,
    incarnation: int,
    height: Height,
    tip: Digest,
    base_height: Height,
    base: Digest,
) -> CommitVote:
    """Return a signed commit vote. It must be durable before it is sent, and the proof of its block checked."""
    fields = epoch, incarnation, height, tip, base_height, base
    form = signing.signed_form("commit-vote", network, *fields)
    return CommitVote(NodeId(key.public), *fields, key.sign(form))


@functools.lru_cache(maxsize=limits.VERDICTS_CACHED)
def vote_valid(vote: CommitVote, network: NetworkId) -> bool:
    """Return whether the signature of a commit vote verifies. It comes as such, in a certificate, and as evidence."""
    form = signing.signed_form(
        "commit-vote",
        network,
        vote.epoch,
        vote.incarnation,
        vote.height,
        vote.header_hash,
        vote.base_height,
        vote.base_hash,
    )
    return signing.verify(vote.signer, form, vote.signature)


@wire("certificate")
@dataclass(frozen=True, slots=True)
class Certificate:
    """Proof that a block, and with it every ancestor, is final (P5).

    `header` is the block's; `links` are the headers of its descendants, in order, up to the highest one voted for. The
    votes are sorted by signer, and none of them is more than needed. Certificates of one block differ in which votes they
    hold: they are never hashed into anything.
    """

    header: Header
    links: Annotated[tuple[Header, ...], Size(0, limits.UNCERTIFIED_BLOCKS_MAX)]
    votes: Annotated[tuple[CommitVote, ...], Size(1, limits.MEMBERS_MAX)]

    @property
    def height(self) -> Height:
        """Height of the block that it certifies."""
        return self.header.height

    @property
    def newest_term(self) -> Term:
        """The newest term of a header in it: no lower than the one in which its block was acknowledged (P3)."""
        return max(header.term for header in (self.header, *self.links))

    def stands_without(self, member: NodeId, configuration: Configuration) -> bool:
        """Return whether it would still be one without the vote of `member`, under the configuration of its block (ledger.md 7.3)."""
        others = {vote.signer for vote in self.votes} - {member}
        return len(others & set(configuration.signers)) >= configuration.certificate_quorum


def check_certificate(
    certificate: Certificate,
    network: NetworkId,
    configuration: Configuration,
    following: Configuration | None = None,
    verified: Collection[CommitVote] = (),
) -> Digest:
    """Check a certificate; return the header hash of the block that it makes final.

    `configuration` is the one in force for the block: set by the last configuration block below it, which the caller knows
    to be final (ledger.md 7.2, 4 and 5). For a configuration block `following` is the one that it sets: a quorum of
    either must have voted. `verified` are votes whose signatures need no second look.

    Raises:
        Invalid: which check failed.
    """
    header = certificate.header
    if header.net != network:
        raise Invalid("a certificate of another network")
    if header.config_hash != configuration.digest:
        raise Invalid("a certificate for a block of another configuration")
    if (header.next_config_hash != bytes(32)) != (following is not None):
        raise Invalid("a certificate is checked with the configuration that its block sets, and only then")
    final = header_hash(header)
    heights = linked_heights(header, certificate.links)
    signers = [vote.signer for vote in certificate.votes]
    if signers != sorted(set(signers)):
        raise Invalid("a certificate holds votes of distinct signers, sorted")
    check_quorums(signers, [one for one in (configuration, following) if one is not None])
    for vote in certificate.votes:
        if vote.epoch != header.epoch:
            raise Invalid("a vote of another epoch certifies nothing")
        if heights.get(vote.header_hash) != vote.height:
            raise Invalid("a vote in a certificate is for something else")
        if vote.base_height >= header.height:
            raise Invalid("a vote in a certificate stands upon the block itself, or above it")
        if vote not in verified and not vote_valid(vote, network):
            raise Invalid("a vote in a certificate does not verify")
    return final


def linked_heights(header: Header, links: Iterable[Header]) -> dict[Digest, Height]:
    """Return the heights of a chain of headers by their hashes.

    Raises:
        Invalid: they are not one chain.
    """
    tip, height = header_hash(header), header.height
    heights = {tip: height}
    for link in links:
        if link.prev_hash != tip or link.height != height + 1:
            raise Invalid("the headers of a certificate are not one chain")
        tip, height = header_hash(link), link.height
        heights[tip] = height
    return heights


def check_quorums(signers: Collection[NodeId], configurations: Collection[Configuration]) -> None:
    """Check that `signers` are a certificate quorum of every one of `configurations`, with none more than needed.

    One certificate has exactly one form for a set of voters: whoever re-encodes it gets the bytes it came in.

    Raises:
        Invalid: too few, one too many, or one that signs in none of them.
    """
    needed: set[NodeId] = set()
    for configuration in configurations:
        counted = set(signers) & set(configuration.signers)
        if len(counted) < configuration.certificate_quorum:
            raise Invalid(
                f"a certificate needs the votes of {configuration.certificate_quorum} signers and holds {len(counted)}"
            )
        if len(counted) == configuration.certificate_quorum:
            needed |= counted
    if not set(signers) <= needed:
        raise Invalid(
            "a certificate holds a vote that it does not need, or one of a member that does not sign"
        )
