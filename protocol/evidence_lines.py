"""Lines of headers: what shows, to somebody without the chain, where two blocks stand to each other.

A signed statement names a block by height and hash. Headers that are linked by their hashes down from it are vouched for by
whoever signed the statement: nobody else can put other ones in their place.
"""

import itertools
from dataclasses import dataclass
from typing import Annotated

from protocol import limits, signing
from protocol.block import Header, header_form, header_hash
from protocol.codec import Bytes64, Size, wire
from protocol.errors import Invalid
from protocol.identifiers import Digest, Height, NetworkId

HeadersField = Annotated[tuple[Header, ...], Size(0, limits.EVIDENCE_HEADERS_MAX)]


@dataclass(frozen=True, slots=True)
class Point:
    """A block as statements name it."""

    height: Height
    hash: Digest


@wire("signed-header")
@dataclass(frozen=True, slots=True)
class SignedHeader:
    """A header with the signature of the leader that cut it."""

    header: Header
    signature: Bytes64

    @property
    def point(self) -> Point:
        """The block it is the header of."""
        return Point(self.header.height, header_hash(self.header))

    def check(self, network: NetworkId) -> None:
        """Check that the header is of this network, and signed by its leader.

        Raises:
            Invalid: it is not.
        """
        if self.header.net != network:
            raise Invalid("a header of another network is no evidence here")
        if not signing.verify(self.header.leader, header_form(self.header), self.signature):
            raise Invalid("the signature of a header in evidence does not verify")


@wire("fork")
@dataclass(frozen=True, slots=True)
class Fork:
    """Two lines of headers that part: from the lowest height at which they differ up to one block each."""

    one: Annotated[tuple[Header, ...], Size(1, limits.EVIDENCE_HEADERS_MAX)]
    other: Annotated[tuple[Header, ...], Size(1, limits.EVIDENCE_HEADERS_MAX)]

    def parting(self, one: Point, other: Point) -> Height:
        """Return the lowest height at which the chains of two blocks differ.

        Raises:
            Invalid: the headers do not show that they part.
        """
        _check_line(self.one, one)
        _check_line(self.other, other)
        first, second = self.one[0], self.other[0]
        if first.height != second.height or first.prev_hash != second.prev_hash:
            raise Invalid("two lines of headers do not begin upon one block")
        if header_hash(first) == header_hash(second):
            raise Invalid("two lines of headers begin with the same block: they part higher up, if at all")
        return first.height


def ancestor(block: Point, line: tuple[Header, ...], at: Height) -> Digest:
    """Return the hash of a block's ancestor at height `at`; `line` are the headers above it, up to the block's own.

    Raises:
        Invalid: the headers do not lead from there to the block.
    """
    if len(line) != block.height - at:
        raise Invalid("the headers in evidence do not reach from one block to the other")
    if not line:
        return block.hash
    _check_line(line, block)
    return line[0].prev_hash


def is_within(low: Point, high: Point, line: tuple[Header, ...]) -> bool:
    """Return whether the lower block is the higher one or its ancestor; `line` are the headers above the lower height.

    Raises:
        Invalid: `low` is the higher one, or the headers do not lead from there to the other.
    """
    return ancestor(high, line, low.height) == low.hash


def _check_line(line: tuple[Header, ...], end: Point) -> None:
    for low, high in itertools.pairwise(line):
        if high.prev_hash != header_hash(low) or high.height != low.height + 1:
            raise Invalid("the headers in evidence are not one chain")
    if Point(line[-1].height, header_hash(line[-1])) != end:
        raise Invalid("the headers in evidence do not lead to the block that the statement names")
