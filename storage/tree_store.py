"""The Merkle tree over all transactions, stored so that a proof costs O(log n) reads (RFC 9162 section 2.1).

Every eighth level of the tree is kept, as C2SP tlog-tiles does: the leaves, the roots over 256 of them, over 65,536, and
so on; the levels between are hashed again when they are wanted. A row holds consecutive hashes of one such level, as many
as one write completed, and never crosses a *tile* of 256: so nothing is ever written twice, and a tile is one short scan.

Blocks are the truth and these rows follow from them: they may be dropped and computed again (`node.tree`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from protocol import codec, merkle
from protocol.codec import Size, wire
from protocol.errors import Corruption, Malformed
from protocol.identifiers import Digest, Height
from protocol.merkle import Frontier
from storage import keyspace
from storage.key_value import Batch, KeyValue

TILE_LEVELS = 8
TILE_HASHES = 1 << TILE_LEVELS
HASH_BYTES = 32
_MARK = keyspace.TREE + b"\xff"
"""After all nodes, so that whoever copies rows in order and meets a damaged node has not copied that nothing is missing."""
_WHOLE = b""
_TILES_KEPT = 32
"""Of one reader, which a proof for 2^63 leaves does not fill."""


@wire("tree-fill")
@dataclass(frozen=True, slots=True)
class TreeFill:
    """How far the nodes have been computed again: up to the block at `height`, after which the tree is as said."""

    height: Height
    tree_size: int
    peaks: tuple[Annotated[Digest, Size(32)], ...]

    @property
    def frontier(self) -> Frontier:
        """The Merkle frontier after the block at `height`."""
        return Frontier(self.tree_size, self.peaks)


EMPTY = TreeFill(Height(0), 0, ())


def put_leaves(batch: Batch, frontier: Frontier, leaves: Sequence[Digest]) -> Frontier:
    """Add the rows of leaves that follow a frontier to a batch; return the frontier after them."""

    def keep(level: int, index: int, root: Digest) -> None:
        if level and not level % TILE_LEVELS:
            batch.put(_key(level // TILE_LEVELS, index), root)

    index, start = frontier.size, 0
    while start < len(leaves):
        count = TILE_HASHES - index % TILE_HASHES
        run = leaves[start : start + count]
        batch.put(_key(0, index), b"".join(run))
        index, start = index + len(run), start + count
    return frontier.append(leaves, keep)


def put_whole(batch: Batch) -> None:
    """Add to a batch that no node of an applied block is missing."""
    batch.put(_MARK, _WHOLE)


def put_fill(batch: Batch, fill: TreeFill) -> None:
    """Add to a batch how far nodes have been computed again."""
    batch.put(_MARK, codec.encode(fill))


class TreeStore:
    """Reads the nodes. A reader is made for each proof, or each audit, because it keeps tiles that it has read as they were."""

    def __init__(self, rows: KeyValue) -> None:
        self._rows = rows
        self._tiles: dict[tuple[int, int], list[Digest]] = {}

    def fill(self) -> TreeFill | None:
        """Return how far the nodes have been computed again; None when none is missing."""
        row = self._rows.get(_MARK)
        if row is None:
            return EMPTY  # a ledger that is older than its tree, or one whose nodes were damaged
        if row == _WHOLE:
            return None
        try:
            return codec.decode(row, TreeFill)
        except Malformed:
            return EMPTY

    def subtree(self, level: int, index: int) -> Digest:
        """Return the root of the perfect subtree over leaves [index·2^level, (index+1)·2^level) (a `merkle.SubtreeRoot`).

        Raises:
            Corruption: a node that it needs is missing or damaged.
        """
        tile_level, above = divmod(level, TILE_LEVELS)
        first, count = index << above, 1 << above
        begin = first % TILE_HASHES
        hashes = self._tile(tile_level, first // TILE_HASHES)[begin : begin + count]
        if len(hashes) != count:
            raise Corruption(f"node {index} of level {level} of the ledger's tree is missing")
        return hashes[0] if count == 1 else merkle.root_of_leaves(hashes)

    def put_removal(self, batch: Batch, begin: int, end: int) -> None:
        """Add the removal of the leaves' rows that begin in [begin, end), to be written anew."""
        for key, _ in self._rows.scan(_key(0, begin), _key(0, end)):
            batch.delete(key)

    def _tile(self, tile_level: int, tile: int) -> list[Digest]:
        known = self._tiles.get((tile_level, tile))
        if known is not None:
            return known
        begin = tile * TILE_HASHES
        hashes: list[Digest] = []
        for key, value in self._rows.scan(_key(tile_level, begin), _key(tile_level, begin + TILE_HASHES)):
            if int.from_bytes(key[-8:], "big") != begin + len(hashes) or not value or len(value) % HASH_BYTES:
                break  # what is asked for behind a gap is missing
            hashes += [Digest(value[at : at + HASH_BYTES]) for at in range(0, len(value), HASH_BYTES)]
        if len(self._tiles) == _TILES_KEPT:
            del self._tiles[next(iter(self._tiles))]
        self._tiles[tile_level, tile] = hashes
        return hashes


def _key(tile_level: int, index: int) -> bytes:
    return keyspace.TREE + bytes([tile_level]) + keyspace.sequence_key(index)
