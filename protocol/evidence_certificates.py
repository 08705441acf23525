"""Evidence that needs certificates: E3b, two conflicting certificates, and E6, two trees of one size (ledger.md 1.2).

A certificate is checked with the configuration in force for its block, which the caller knows by its digest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from protocol.block import config_hash_above, header_hash
from protocol.codec import Size, wire
from protocol.configuration import Configuration
from protocol.errors import Invalid
from protocol.evidence_lines import Fork, HeadersField, Point, is_within
from protocol.evidence_statements import check_vote, demand
from protocol.finality import Certificate, CommitVote, check_certificate
from protocol.identifiers import ZERO, Digest, Height, NetworkId, NodeId

Configurations = Mapping[Digest, Configuration]
"""Configurations that are, or were, in force, by their digests."""


@wire("false-base")
@dataclass(frozen=True, slots=True)
class FalseBase:
    """E3b: a vote whose base conflicts with a certified block.

    `line` are the headers above the lower of the two, up to the higher one. Only a certificate for that base clears the
    signer (`ConflictingCertificates.accused`): then a fork has been certified, and that convicts others.
    """

    vote: CommitVote
    certificate: Certificate
    line: HeadersField

    def check(self, network: NetworkId, configurations: Configurations) -> NodeId:
        """Return the signer. The block it voted for may conflict: a signer votes for what is proven where it stands."""
        base = Point(self.vote.base_height, self.vote.base_hash)
        demand(self.vote.epoch == self.certificate.header.epoch, "a vote and a certificate of two epochs")
        demand(base.height > 0, "genesis is everybody's base")
        certified = check_known(self.certificate, network, configurations)
        low, high = sorted((base, certified), key=lambda point: point.height)
        demand(not is_within(low, high, self.line), "the base is on the certified chain")
        check_vote(self.vote, network)
        return self.vote.signer


@wire("conflicting-certificates")
@dataclass(frozen=True, slots=True)
class ConflictingCertificates:
    """Two certificates for blocks on two branches: the fork that more than b liars can make, and who did it.

    `accused` ZERO, or a signer with an E3b whose base one of the two makes final.
    """

    one: Certificate
    other: Certificate
    fork: Fork
    accused: Annotated[NodeId, Size(32)]

    def check(self, network: NetworkId, configurations: Configurations) -> tuple[NodeId, ...]:
        """Return the signers that voted on both branches from below the parting, sorted; may be nobody.

        Not all that are common to both: a signer that voted on one branch, and then learned of an earlier certificate on
        the other, votes there on that base, and is honest (P4 (1)).
        """
        demand(self.one.header.epoch == self.other.header.epoch, "certificates of two epochs")
        points = [check_known(each, network, configurations) for each in (self.one, self.other)]
        parting = self.fork.parting(*points)
        first, second = (
            {vote.signer for vote in each.votes if vote.base_height < parting}
            for each in (self.one, self.other)
        )
        return tuple(sorted(first & second))

    def clears(self, claim: bytes) -> bool:
        """Return whether one of the branches holds a claim that convicted somebody: a base, or the root of a tree."""
        headers = (*self.fork.one, *self.fork.other)
        return any(claim in (header_hash(header), header.tree_root) for header in headers)


def check_known(certificate: Certificate, network: NetworkId, configurations: Configurations) -> Point:
    """Check a certificate with the configurations known; return the block that it makes final.

    Raises:
        Invalid: it does not hold, or its configuration is not known here.
    """
    header = certificate.header
    needed = {header.config_hash, config_hash_above(header)}
    if not needed <= set(configurations):
        raise Invalid("a certificate of a configuration that is not known here")
    following = None if header.next_config_hash == ZERO else configurations[config_hash_above(header)]
    final = check_certificate(certificate, network, configurations[header.config_hash], following)
    return Point(Height(header.height), final)
