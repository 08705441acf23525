"""The headers that a node saw lately, whoever's they are: enough to show where two blocks stand to each other."""

from collections import OrderedDict
from collections.abc import Iterable

from protocol import limits
from protocol.block import Header, header_hash
from protocol.evidence_lines import Fork, Point
from protocol.identifiers import Digest, Height


class HeaderWindow:
    """Headers by hash; the ones seen longest ago give way. `None` as an answer means that headers are missing here."""

    def __init__(self, most: int = limits.NOTEBOOK_HEADERS_MAX) -> None:
        self._most = most
        self._headers: OrderedDict[Digest, Header] = OrderedDict()
        self._hashes: dict[Header, Digest] = {}
        """Of the same headers: most of them come many times, and packing one to hash it takes ten times as long as looking it up."""

    def __contains__(self, block: Digest) -> bool:
        return block in self._headers

    def add(self, headers: Iterable[Header]) -> None:
        """Take headers in; whether their blocks are valid is nobody's question here."""
        for header in headers:
            found = self._hashes.get(header)
            if found is None:
                found = self._hashes[header] = header_hash(header)
                self._headers[found] = header
            self._headers.move_to_end(found)
            if len(self._headers) > self._most:
                del self._hashes[self._headers.popitem(last=False)[1]]

    def line(self, above: Height, block: Point) -> tuple[Header, ...] | None:
        """Return the headers above a height up to a block's; empty when the block is not above it."""
        if block.height - above > limits.EVIDENCE_HEADERS_MAX:
            return None
        line: list[Header] = []
        at = block.hash
        for _ in range(block.height - above):
            header = self._headers.get(at)
            if header is None:
                return None
            line.append(header)
            at = header.prev_hash
        return tuple(reversed(line))

    def ancestor(self, block: Point, at: Height) -> Digest | None:
        """Return the hash of a block's ancestor at a height that is not above it."""
        line = self.line(at, block)
        if line is None:
            return None
        return line[0].prev_hash if line else block.hash

    def are_one_chain(self, one: Point, other: Point) -> bool | None:
        """Return whether one of two blocks is the other or its ancestor."""
        low, high = sorted((one, other), key=lambda point: point.height)
        below = self.ancestor(high, low.height)
        return None if below is None else below == low.hash

    def fork(self, one: Point, other: Point) -> Fork | None:
        """Return the headers from the parting of two blocks to each; also None when they are on one chain."""
        if self.are_one_chain(one, other) is not False:
            return None
        start = Height(min(one.height, other.height) - 1)
        first, second = self.line(start, one), self.line(start, other)
        while first and second and first[0].prev_hash != second[0].prev_hash:
            before = self._headers.get(first[0].prev_hash), self._headers.get(second[0].prev_hash)
            if before[0] is None or before[1] is None:
                return None
            first, second = (before[0], *first), (before[1], *second)
            if max(len(first), len(second)) > limits.EVIDENCE_HEADERS_MAX:
                return None
        return Fork(first, second) if first and second else None
