"""The Raft log: recent blocks in memory, older ones read back from the store, and what of it is durable.

```
     genesis … │ evicted: read through LogReader │ cached, certified │ cached, ordered │ cached, neither │
               first()                                       certified         committed               tip
```
What is certified is never truncated, nor unlearnt: a start begins there. `committed` is what a commit proof has ordered; it
is forgotten in a restart, and `persisted` may lie anywhere.
Whoever was installed from a snapshot holds nothing between genesis and `first()` until history has been fetched.
Every block above `certified` carries the Merkle frontier after it, so that the next block can be cut or checked without
reading the tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol import limits
from protocol.block import Block, Header
from protocol.errors import LocalFault
from protocol.finality import Certificate
from protocol.identifiers import Digest, Height, Term
from protocol.merkle import Frontier

_GENESIS = Height(0)


class LogReader(Protocol):
    """Durable blocks, read from the ledger store (or, in a simulation, from memory).

    Asked only for heights below the cached tail and not below `first()`, or for genesis (height 0). May raise Corruption.
    """

    def first(self) -> Height:
        """Return the lowest height from which every block up to the tip is held; 0 with the whole history.

        It falls while history is fetched, may rise while the log lives, never above the height certified at its start,
        and is asked for often.
        """
        ...

    def header(self, height: Height) -> Header:
        """Return the header of the block at `height`."""
        ...

    def hash(self, height: Height) -> Digest:
        """Return the header hash of the block at `height`."""
        ...

    def block(self, height: Height) -> Block:
        """Return the block at `height`."""
        ...

    def certificate(self, height: Height) -> Certificate | None:
        """Return the stored certificate with the greatest height at or below `height`, if there is one.

        With it a follower that was away applies while it catches up, instead of holding everything until it has the tip.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Entry:
    block: Block
    frontier: Frontier  # after this block


class Log:
    """The log of one voter. Knows nothing of terms of leaders, quorums or messages."""

    def __init__(
        self,
        reader: LogReader,
        certified: Height,
        frontier_at_certified: Frontier,
        tail: Sequence[Block] = (),
    ) -> None:
        """`tail` holds the durable blocks above `certified`, in order, as they were checked before they were stored."""
        self._reader = reader
        self._entries: dict[int, _Entry] = {}
        self._first = certified + 1
        self._bytes = 0
        self._frontier_at_certified = frontier_at_certified
        self._certified = self._committed = certified
        self._persisted: int = certified
        self._tip = reader.header(certified)
        self._tip_hash = reader.hash(certified)
        self._uncertified_bytes = 0
        self._written: int = certified  # the highest height handed out for writing, and not rewritten since
        self._truncate_from: Height | None = None
        for block in tail:
            self.append(block)
        self._written = self._persisted = self.tip_height

    @property
    def tip(self) -> Header:
        """Header of the last block."""
        return self._tip

    @property
    def tip_height(self) -> Height:
        """Height of the last block."""
        return self._tip.height

    @property
    def tip_hash(self) -> Digest:
        """Header hash of the last block."""
        return self._tip_hash

    @property
    def committed(self) -> Height:
        """Height up to which blocks are ordered, as a commit proof has shown."""
        return self._committed

    @property
    def certified(self) -> Height:
        """Height up to which blocks are certified: they are never truncated."""
        return self._certified

    @property
    def persisted(self) -> Height:
        """Height up to which this log, as it is now, is durable here."""
        return Height(self._persisted)

    @property
    def uncommitted_count(self) -> int:
        """Blocks above the committed one."""
        return self.tip_height - self._committed

    @property
    def uncertified_count(self) -> int:
        """Blocks above the certified one."""
        return self.tip_height - self._certified

    @property
    def uncertified_bytes(self) -> int:
        """Bytes of the blocks above the certified one."""
        return self._uncertified_bytes

    def first(self) -> Height:
        """Return the lowest height from which this log holds every block: below it nothing may be asked for, but genesis."""
        first = self._reader.first()
        return first if first > 1 else _GENESIS

    def header(self, height: Height) -> Header:
        """Return the header at `height`, which must not be above the tip nor below `first()`."""
        entry = self._entries.get(height)
        return entry.block.header if entry else self._stored(height).header(height)

    def hash(self, height: Height) -> Digest:
        """Return the header hash at `height`, which must not be above the tip nor below `first()`."""
        if height == self._tip.height:
            return self._tip_hash
        entry = self._entries.get(height)
        return entry.block.hash if entry else self._stored(height).hash(height)

    def block(self, height: Height) -> Block:
        """Return the block at `height`, which must not be above the tip nor below `first()`."""
        entry = self._entries.get(height)
        return entry.block if entry else self._stored(height).block(height)

    def term(self, height: Height) -> Term:
        """Return the term of the block at `height`."""
        return self.header(height).term

    def certificate(self, height: Height) -> Certificate | None:
        """Return the stored certificate with the greatest height at or below `height`."""
        return self._reader.certificate(height)

    def holds(self, height: int, digest: bytes) -> bool:
        """Return whether the block with this header hash is here at `height`; False where this log has nothing to compare."""
        is_here = height == _GENESIS or self.first() <= height <= self.tip_height
        return is_here and self.hash(Height(height)) == digest

    def frontier(self, height: Height) -> Frontier:
        """Return the Merkle frontier after the block at `height`, which must not be below the certified one."""
        if height == self._certified:
            return self._frontier_at_certified
        if height < self._certified:
            raise LocalFault(f"the frontier at {height} is gone; {self._certified} is certified")
        return self._entries[height].frontier

    def append(self, block: Block, frontier: Frontier | None = None) -> None:
        """Add a checked block at the tip. `frontier` is the one after it, when the caller has computed it already."""
        assert block.header.prev_hash == self._tip_hash, "a block is appended to its predecessor"
        if frontier is None:
            frontier = self.frontier(self.tip_height).append(block.leaves())
        self._entries[block.height] = _Entry(block, frontier)
        self._bytes += len(block.raw)
        self._uncertified_bytes += len(block.raw)
        self._tip, self._tip_hash = block.header, block.hash
        self._evict()

    def truncate_from(self, height: Height) -> None:
        """Remove the block at `height` and all above it, ordered ones too: only a certificate is for ever.

        Raises:
            LocalFault: one of them is certified. The caller has refused such a message before (P4).
        """
        if height <= self._certified:
            raise LocalFault(f"truncation at {height} would remove certified blocks up to {self._certified}")
        for gone in range(height, self.tip_height + 1):
            size = len(self._entries.pop(gone).block.raw)
            self._bytes -= size
            self._uncertified_bytes -= size
        below = Height(height - 1)
        self._committed = min(self._committed, below)
        entry = self._entries.get(below)
        self._tip = entry.block.header if entry else self._reader.header(below)
        self._tip_hash = entry.block.hash if entry else self._reader.hash(below)
        if height <= self._written:
            # A write of these heights is durable or under way: what the disk holds there is no longer this log.
            self._truncate_from = height if self._truncate_from is None else min(self._truncate_from, height)
            self._written = below
            self._persisted = min(self._persisted, below)

    def commit(self, height: Height) -> None:
        """Move the committed height up to `height`: only a truncation moves it down."""
        assert self._committed <= height <= self.tip_height, "it only rises, and within the log"
        self._committed = height

    def certify(self, height: Height) -> None:
        """Move the certified height up to `height`, and the committed one at least as far. Never moves it down."""
        assert self._certified <= height <= self.tip_height, (
            "the certified height only rises, and within the log"
        )
        frontier = self.frontier(height)
        self._uncertified_bytes -= sum(
            len(self._entries[above].block.raw) for above in range(self._certified + 1, height + 1)
        )
        self._frontier_at_certified = frontier
        self._certified = height
        self._committed = max(self._committed, height)
        self._evict()

    @property
    def has_unpersisted(self) -> bool:
        """Whether `take_unpersisted` would return anything."""
        return self._truncate_from is not None or self._written != self._tip.height

    def take_unpersisted(self) -> tuple[Height | None, tuple[Block, ...]]:
        """Return (truncate from, blocks to append) for one durable batch; the next call starts after it."""
        if not self.has_unpersisted:
            return None, ()
        blocks = tuple(
            [self._entries[height].block for height in range(self._written + 1, self.tip_height + 1)]
        )
        truncate_from, self._truncate_from = self._truncate_from, None
        self._written = self.tip_height
        return truncate_from, blocks

    def mark_persisted(self, blocks: Sequence[Block]) -> None:
        """Note that a batch from `take_unpersisted` is durable.

        Blocks of it that were truncated since do not count, even if the same heights were written anew (etcd's
        "async append ABA"): only heights handed out and not rewritten since lie at or below `_written`.
        """
        if blocks:
            self._persisted = max(self._persisted, min(blocks[-1].height, self._written))

    def _stored(self, height: Height) -> LogReader:
        if height >= self._first:
            raise LocalFault(f"block {height} is not in a log that ends at {self.tip_height}")
        return self._reader

    def _evict(self) -> None:
        # Uncertified blocks stay: they may be truncated, cut upon or handed on. Their bytes are bounded elsewhere.
        while self._bytes > limits.LOG_CACHE_BYTES_MAX and self._first <= min(
            self._certified, self._persisted
        ):
            self._bytes -= len(self._entries.pop(self._first).block.raw)
            self._first += 1
