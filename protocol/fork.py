"""Two certified histories side by side: what whoever judges needs, and nothing that only one side says (ledger.md 1.1, P5).

Certificates of q signatures conflict only where more than b signers signed twice. Who follows keeps both stories and goes
on with the one that it has applied; the signatures tell who did it.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

from protocol.block import Header, header_hash
from protocol.codec import Size, wire
from protocol.configuration import Configuration
from protocol.errors import Invalid
from protocol.evidence_certificates import Configurations
from protocol.finality import Certificate, check_certificate, linked_heights
from protocol.identifiers import Digest, Height, NetworkId, NodeId

FORK_HEADERS_MAX = 1_024
NONE_KNOWN: Configurations = MappingProxyType({})


@wire("certified-story")
@dataclass(frozen=True, slots=True)
class Story:
    """One history from the height at which the two differ: its headers up to the block of `certificate`."""

    headers: Annotated[tuple[Header, ...], Size(1, FORK_HEADERS_MAX)]
    certificate: Certificate

    @property
    def height(self) -> Height:
        """Where it begins."""
        return self.headers[0].height

    @property
    def hash(self) -> Digest:
        """Header hash of the block with which it begins."""
        return header_hash(self.headers[0])


@wire("certified-fork")
@dataclass(frozen=True, slots=True)
class CertifiedFork:
    """Two certified blocks of one height: the one that was applied here, and another one."""

    own: Story
    other: Story

    @property
    def height(self) -> Height:
        """The height at which both begin: the lowest at which they are known to differ."""
        return self.own.height

    @property
    def liars(self) -> tuple[NodeId, ...]:
        """Who voted for both blocks upon what lies below, as no honest signer does (ledger.md 1.2, E3), sorted.

        Nobody, where the two stories have parted further down already: then an honest vote may stand in both.
        """
        if self.own.headers[0].prev_hash != self.other.headers[0].prev_hash:
            return ()
        own, other = (
            {vote.signer for vote in story.certificate.votes if vote.base_height < self.height}
            for story in (self.own, self.other)
        )
        return tuple(sorted(own & other))


def check_story(
    story: Story, network: NetworkId, configuration: Configuration, known: Configurations = NONE_KNOWN
) -> None:
    """Check that a story ends in a block that is certified in `configuration`, which holds along it.

    `known` are configurations by their digests: among them has to be what the last block sets, if it sets one.

    Raises:
        Invalid: its headers are no chain, or the certificate is not for the last of them, or does not hold.
    """
    last = list(linked_heights(story.headers[0], story.headers[1:]))[-1]
    following = known.get(Digest(story.certificate.header.next_config_hash))
    if check_certificate(story.certificate, network, configuration, following) != last:
        raise Invalid("the certificate of a story is for another block than the last of its headers")


def check_fork(
    fork: CertifiedFork, network: NetworkId, configuration: Configuration, known: Configurations = NONE_KNOWN
) -> None:
    """Check that a fork is one: two stories that hold and begin with different blocks of one height. `known` as above.

    Raises:
        Invalid: it is none.
    """
    if fork.own.height != fork.other.height or fork.own.hash == fork.other.hash:
        raise Invalid("no fork: the stories do not begin with different blocks of one height")
    check_story(fork.own, network, configuration, known)
    check_story(fork.other, network, configuration, known)
