"""What a member that was away asks, and how it checks the answer: ranges of blocks up to a certificate.

No peer is believed: every block must follow the chain we hold, and a run of blocks counts only with the certificate
of its last one. A sender of gaps, wrong order, wrong bodies or endless data fails a check within one segment.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from protocol import limits
from protocol.block import Block, Header, check_link, header_hash, leader_claim
from protocol.certificate import check_opening
from protocol.claims import Claim
from protocol.codec import Size, wire
from protocol.configuration import Configuration
from protocol.errors import Invalid, OtherChain
from protocol.finality import Certificate, check_certificate
from protocol.identifiers import Digest, Height, NetworkId
from protocol.merkle import Frontier
from protocol.recovery_block import check_recovery_block

SEGMENT_BLOCKS_MAX = 256
SEGMENT_BYTES_MAX = 4 * limits.MIB


@wire("blocks-from")
@dataclass(frozen=True, slots=True)
class BlocksFrom:
    """Ask for the blocks from `height` up, as far as the answerer can certify."""

    height: Height


@wire("story-from")
@dataclass(frozen=True, slots=True)
class StoryFrom:
    """Ask for the blocks from `height` up to the next one that has its own certificate, and for nothing above.

    Its votes stand upon the lowest bases: where `height` is that of a fork, they convict who voted for both (E3).
    """

    height: Height


@wire("segment")
@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive blocks. Only the last segment up to a certified block carries that block's certificate."""

    blocks: Annotated[tuple[bytes, ...], Size(1, SEGMENT_BLOCKS_MAX)]
    certificate: Certificate | None


@wire("announce")
@dataclass(frozen=True, slots=True)
class Announce:
    """Gossip: block `certificate.header` is certified; the blocks that were not announced before ride along if they are small."""

    certificate: Certificate
    blocks: Annotated[tuple[bytes, ...], Size(0, limits.APPEND_BLOCKS_MAX)]


@dataclass(frozen=True, slots=True)
class Position:
    """Where a follower stands: its last block's header and hash, and the tree after it."""

    header: Header
    hash: Digest
    frontier: Frontier


class Run:
    """Blocks that continue a position, link by link, until a certificate of the last one makes them count.

    Every link is checked as it comes: who sends gaps, wrong order or blocks that no voter signed is found out at the
    first of them, not when the certificate does not come. Bodies are checked elsewhere (`block.check_body`).
    """

    def __init__(self, position: Position, configuration: Configuration) -> None:
        self._configuration = configuration
        self._following: Configuration | None = None
        self._network = NetworkId(position.header.net)
        self._tip = position
        self._blocks: list[Block] = []

    def extend(self, blocks: Iterable[Block], deferred: list[Claim] | None = None) -> None:
        """Add blocks after the last one. A configuration block ends the run: who signs above it, its certificate says.

        One that begins an epoch does not, for it says so itself; the certificate above is then under its configuration. Up to
        that one, openings of terms may stand above a configuration block that nobody has a certificate of (ledger.md 7.2, 2).

        The signatures of leaders are verified, or added to what is `deferred`.

        Raises:
            OtherChain: a block follows another one than the last.
            Invalid: a link, root, signature or election certificate does not hold.
            Malformed: the body of a block that opens a term is no election certificate.
        """
        for block in blocks:
            if block.is_recovery:
                self._recover(block)
                continue
            if self._following is not None and not block.opening:
                raise Invalid(f"block {block.height} stands above a configuration that is not certified")
            tip = self._tip
            if block.height == tip.header.height + 1 and block.header.prev_hash != tip.hash:
                raise OtherChain(f"block {block.height} does not follow the block below it here")
            check_link(
                block, tip.header, tip.hash, tip.frontier, self.configuration, signature=deferred is None
            )
            if deferred is not None:
                deferred.append(leader_claim(block))
            if block.opening:
                check_opening(block, self.configuration)
            self._tip = Position(block.header, block.hash, tip.frontier.append(block.leaves()))
            self._blocks.append(block)
            if block.is_configuration:
                self._following = block.next_configuration()

    def _recover(self, block: Block) -> None:
        """Add a block that begins an epoch: it makes everything below it final, by the word of governance keys (P4)."""
        tip = self._tip
        before, uncertified = self._configuration, None
        if self._following is not None:
            # One leader could have made it up: its word alone chooses nobody who has a say.
            before, uncertified = self._following, self._configuration
        signed = check_recovery_block(block, tip.header, tip.frontier, before, uncertified)
        self._configuration, self._following = signed.recovery.configuration, None
        self._tip = Position(block.header, block.hash, tip.frontier)
        self._blocks.append(block)

    @property
    def tip(self) -> Position:
        """Where the blocks lead that were added so far, certified or not."""
        return self._tip

    @property
    def configuration(self) -> Configuration:
        """The configuration in force above the tip."""
        return self._following or self._configuration

    def recovered(self) -> tuple[Block, ...]:
        """Return the blocks when the last of them begins an epoch: no certificate is needed then.

        Raises:
            Invalid: it does not.
        """
        if not self._blocks or not self._blocks[-1].is_recovery:
            raise Invalid("the blocks end in none that begins an epoch")
        blocks, self._blocks = tuple(self._blocks), []
        return blocks

    def certify(self, certificate: Certificate) -> tuple[Block, ...]:
        """Return the blocks, which `certificate` makes final, and begin the next run after them.

        Raises:
            Invalid: it does not hold, or is for another block than the last one.
        """
        if not self._blocks or header_hash(certificate.header) != self._tip.hash:
            raise Invalid("the certificate is for another block than the last one sent")
        check_certificate(certificate, self._network, self._configuration, self._following)
        self._configuration, self._following = self._following or self._configuration, None
        blocks, self._blocks = tuple(self._blocks), []
        return blocks


def check_run(
    position: Position, blocks: tuple[Block, ...], certificate: Certificate, configuration: Configuration
) -> None:
    """Check that `blocks` continue `position` and that `certificate` is for the last of them; bodies are checked elsewhere.

    Raises:
        Invalid: a link, root, signature, election certificate or certificate does not hold.
        Malformed: the body of a block that opens a term is no election certificate.
    """
    run = Run(position, configuration)
    run.extend(blocks)
    run.certify(certificate)
