"""The tree over all transactions: proofs from its stored nodes, and the task that computes nodes again from the blocks.

The applier writes the nodes of every block with the applied mark, `history` those below a snapshot. What is left is a
ledger older than its tree, and nodes that were damaged: blocks are the truth, and any portion of them says its nodes.
"""

from collections.abc import Sequence

import trio

from node.damage_notice import DamageNotice
from node.event_log import EventLog
from node.ports import Clock, Disk, Workers
from protocol import merkle
from protocol.errors import Corruption, Invalid, Unavailable
from protocol.identifiers import Digest, Height
from protocol.merkle import Frontier, Head
from storage.key_value import Batch, KeyValue
from storage.ledger_store import LedgerStore
from storage.tree_store import EMPTY, TILE_LEVELS, TreeFill, TreeStore, put_fill, put_leaves, put_whole

_BLOCKS_PER_PORTION = 64
_PAUSE_MS = 20
_RETRY_MS = 60_000
"""Where a block is damaged: by then it may have been fetched again."""


class Tree:
    """Answers proofs; run `run` beside it. Reads need no lock: rows of applied transactions never change."""

    def __init__(
        self,
        store: LedgerStore,
        rows: KeyValue,
        *,
        disk: Disk,
        workers: Workers,
        clock: Clock,
        log: EventLog,
        damage: DamageNotice,
    ) -> None:
        """`damage` hears of bytes that cannot be read: rows beside them may be worse hit than the tree."""
        self._store = store
        self._rows = rows
        self._disk = disk
        self._workers = workers
        self._clock = clock
        self._log = log
        self._damage = damage
        self._damaged = trio.Event()

    @property
    def head(self) -> Head:
        """The tree after the applied block."""
        frontier = self._store.applied().frontier
        return Head(frontier.size, frontier.root())

    def root(self, size: int) -> Digest:
        """Return the root over the first `size` transactions. Raises as `inclusion_proof`."""
        head = self.head
        if size == head.size:
            return head.root
        self._check_size(size, head)
        try:
            return merkle.range_root(0, size, TreeStore(self._rows).subtree) if size else merkle.EMPTY_ROOT
        except Corruption:
            raise self._missing() from None

    def is_head(self, size: int, root: Digest) -> bool:
        """Return whether `root` is that over the first `size` transactions. Raises as `inclusion_proof`.

        False is no damage of ours: the root that we compute is then one that our newest head continues.
        """
        if self.root(size) == root:
            return True
        self.consistency_proof(size, self.head)
        return False

    def inclusion_proof(self, index: int, head: Head) -> tuple[Digest, ...]:
        """Return the path from the transaction at `index` to the root of `head`, which holds.

        Raises:
            Unavailable: nodes are missing or damaged here, and are being computed again; or the ledger is not that far.
            ValueError: no such index.
        """
        self._check_size(head.size, self.head)
        tree = TreeStore(self._rows)
        try:
            path = merkle.inclusion_proof(index, head.size, tree.subtree)
            merkle.verify_inclusion(tree.subtree(0, index), index, head.size, path, head.root)
        except (Corruption, Invalid):
            raise self._missing() from None
        return path

    def consistency_proof(self, old: int, head: Head) -> tuple[Digest, ...]:
        """Return the proof that the tree of `old` leaves is a prefix of `head`, which holds. Raises as `inclusion_proof`."""
        self._check_size(head.size, self.head)
        tree = TreeStore(self._rows)
        try:
            proof = merkle.consistency_proof(old, head.size, tree.subtree)
            root = merkle.range_root(0, old, tree.subtree) if old else merkle.EMPTY_ROOT
            merkle.verify_consistency(old, head.size, root, head.root, proof)
        except (Corruption, Invalid):
            raise self._missing() from None
        return proof

    def reader(self) -> TreeStore:
        """Return a reader for `damaged_nodes`: one for each audit."""
        return TreeStore(self._rows)

    def damaged_nodes(self, reader: TreeStore, frontier: Frontier, leaves: Sequence[Digest]) -> list[str]:
        """Return which stored nodes are not what a block says, whose `leaves` follow `frontier`, as an operator reads them."""
        if reader.fill() is not None:
            return []  # not all are there yet
        expected: list[tuple[int, int, Digest]] = []
        frontier.append(leaves, lambda level, index, root: expected.append((level, index, root)))
        wrong: list[str] = []
        for level, index, root in expected:
            # Only every eighth level is stored. What the reader has kept may be older than the node: read it again.
            if level % TILE_LEVELS == 0 and not any(
                _is_node(one, level, index, root) for one in (reader, self.reader())
            ):
                wrong.append(f"node {index} of level {level} of the tree is not what the blocks say")
        return wrong

    def compute_again(self) -> None:
        """Have all nodes computed again from the blocks: some are damaged."""
        self._damaged.set()

    async def run(self) -> None:
        """Compute what is missing until cancelled."""
        while True:
            try:
                await self._fill()
            except (Corruption, Unavailable) as reason:
                if isinstance(reason, Corruption):
                    self._damage.tell()
                self._log.debug("the tree waits for blocks", reason=str(reason))
                await self._clock.sleep_ms(_RETRY_MS)
                continue
            await self._damaged.wait()
            self._log.warning("nodes of the tree are damaged and are computed again from the blocks")
            batch = Batch()
            put_fill(batch, EMPTY)
            await self._disk.commit(batch, sync=False)
            self._damaged = trio.Event()

    async def _fill(self) -> None:
        fill = TreeStore(self._rows).fill()
        if fill is None:
            return
        last = self._store.applied().height
        self._store.check_history(Height(self._store.history_height() + 1))
        # What is applied from here on is written with its nodes.
        while fill is not None:
            batch, fill = await self._workers.run(self._portion, fill, last)
            await self._disk.commit(batch, sync=False)
            await self._clock.sleep_ms(_PAUSE_MS)
        self._log.info("the nodes of the tree are whole", height=last)

    def _portion(self, fill: TreeFill, last: Height) -> tuple[Batch, TreeFill | None]:
        """Return the rows of the next blocks, and how far that comes; None when it is all."""
        batch, leaves, height = Batch(), list[Digest](), fill.height
        until = Height(min(height + _BLOCKS_PER_PORTION, last))
        for block in self._store.blocks(Height(height + 1), until):
            if block.header.tree_size != fill.tree_size + len(leaves):
                raise Corruption(f"block {block.height} does not continue the tree")
            leaves += block.leaves()
        begin = fill.tree_size
        TreeStore(self._rows).put_removal(batch, begin, begin + len(leaves))
        frontier = put_leaves(batch, fill.frontier, leaves)
        if until < last:
            following = TreeFill(until, frontier.size, frontier.peaks)
            put_fill(batch, following)
            return batch, following
        put_whole(batch)
        return batch, None

    def _missing(self) -> Unavailable:
        """Return the answer where a node is missing or damaged, and have them computed again unless that is under way."""
        if self._store.history is None and TreeStore(self._rows).fill() is None:
            self.compute_again()
        return Unavailable("nodes of the ledger's tree are being computed again from its blocks; retry later")

    @staticmethod
    def _check_size(size: int, head: Head) -> None:
        if size > head.size:
            raise Unavailable(f"the ledger here has {head.size} transactions yet, not {size}; retry later")


def _is_node(tree: TreeStore, level: int, index: int, root: Digest) -> bool:
    try:
        return tree.subtree(level, index) == root
    except Corruption:
        return False
