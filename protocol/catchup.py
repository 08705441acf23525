"""What a member that was away asks, and how it checks the answer: ranges of blocks up to a commit proof.

No peer is believed: every block must follow the chain we hold, and a run of blocks counts only with the commit proof
of its last one. A sender of gaps, wrong order, wrong bodies or endless data fails a check within one segment.
"""

from dataclasses import dataclass
from typing import Annotated

from protocol import limits
from protocol.block import Block, Header, check_link
from protocol.certificate import CommitProof, ElectionCertificate, check_commit_proof, check_election
from protocol.codec import Size, decode, wire
from protocol.configuration import Configuration
from protocol.errors import Invalid
from protocol.identifiers import Digest, Height, NetworkId
from protocol.merkle import Frontier

SEGMENT_BLOCKS_MAX = 256
SEGMENT_BYTES_MAX = 4 * limits.MIB


@wire("blocks-from")
@dataclass(frozen=True, slots=True)
class BlocksFrom:
    """Ask for the blocks from `height` up, as far as the answerer can prove."""

    height: Height


@wire("segment")
@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive blocks. Only the last segment up to a proven block carries that block's proof."""

    blocks: Annotated[tuple[bytes, ...], Size(1, SEGMENT_BLOCKS_MAX)]
    proof: CommitProof | None


@wire("announce")
@dataclass(frozen=True, slots=True)
class Announce:
    """Gossip: block `proof.header` is committed; the blocks that were not announced before ride along if they are small."""

    proof: CommitProof
    blocks: Annotated[tuple[bytes, ...], Size(0, limits.APPEND_BLOCKS_MAX)]


@dataclass(frozen=True, slots=True)
class Position:
    """Where a follower stands: its last block's header and hash, and the tree after it."""

    header: Header
    hash: Digest
    frontier: Frontier


def check_run(
    position: Position, blocks: tuple[Block, ...], proof: CommitProof, configuration: Configuration
) -> None:
    """Check that `blocks` continue `position` and that `proof` proves the last of them; bodies are checked elsewhere.

    Raises:
        Invalid: a link, root, signature, election certificate or proof does not hold.
    """
    network = NetworkId(position.header.net)
    header, digest, frontier = position.header, position.hash, position.frontier
    for block in blocks:
        check_link(block, header, digest, frontier, configuration)
        if block.opening:
            check_opening(block, configuration)
        header, digest, frontier = block.header, block.hash, frontier.append(block.leaves())
    if not blocks or check_commit_proof(proof, network, configuration) != digest:
        raise Invalid("the commit proof is for another block than the last one sent")


def check_opening(block: Block, configuration: Configuration) -> None:
    """Check the election certificate in the block that opens a term (P0).

    Raises:
        Invalid: it does not elect the block's leader, in its term, on its predecessor.
    """
    certificate = decode(block.opening, ElectionCertificate)
    header = block.header
    if (certificate.term, certificate.candidate, certificate.tip_hash) != (
        header.term,
        header.leader,
        header.prev_hash,
    ):
        raise Invalid(f"block {header.height} opens its term with the election of somebody else")
    check_election(certificate, NetworkId(header.net), configuration)
