"""Applies certified blocks: the only task that advances the applied height, in one batch with the rows it explains.

Input: groups of blocks with the certificate of the last, from `consensus` (voters) or `catchup` (everybody else).
Output: receipts, and the applied height that watchers wait on. Nothing calls back: who must act on a transaction (open
a grant, fetch an envelope) keeps a mark of its own and reads the blocks above it, so that a crash loses no effect.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from node.ports import Disk
from node.receipts import Receipts
from node.snapshots import SnapshotMaker
from protocol import ledger_state
from protocol.block import Block
from protocol.errors import LocalFault
from protocol.finality import Certificate
from protocol.identifiers import Digest, Height
from protocol.merkle import Head
from protocol.recovery_block import configuration_set_by
from protocol.snapshot import links_above
from storage.key_value import Batch
from storage.ledger_store import AppliedMark, LedgerStore
from storage.tree_store import put_leaves


@dataclass(frozen=True, slots=True)
class Certified:
    """Blocks in order, none missing after the applied height, and the certificate of the last one.

    `is_stored` is false for blocks that came by catch-up: they are written in the same batch as what they mean.
    """

    blocks: tuple[Block, ...]
    certificate: Certificate
    is_stored: bool


class AppliedHeight:
    """The applied height, to look at or to wait for."""

    def __init__(self, height: Height) -> None:
        self.value = height
        self._changed = trio.Event()

    def advance(self, height: Height) -> None:
        """Set a new height and wake everybody who waits. Called by the applier alone."""
        self.value = height
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def wait_above(self, height: Height) -> Height:
        """Wait until the applied height is above `height`, and return it."""
        while self.value <= height:
            await self._changed.wait()
        return self.value


class Applier:
    """The task between commit and effect. With `snapshots`, it stops for a moment at the heights at which one is made."""

    def __init__(
        self, store: LedgerStore, disk: Disk, receipts: Receipts, snapshots: SnapshotMaker | None = None
    ) -> None:
        self._store = store
        self._disk = disk
        self._receipts = receipts
        self._snapshots = snapshots
        self.mark = store.applied()
        self.height = AppliedHeight(self.mark.height)
        self.history = AppliedHeight(store.history_height())
        """The height up to which *every* block is applied and here: behind `height` after a snapshot was installed, until
        what lies below it has been fetched. Who reads all blocks, one after the other, waits for this one."""
        self.second: Head | None = None
        """The tree before the newest block of a second of ledger time in which there was none yet: all members see the same."""
        self.installed = trio.Event()
        """Set, and replaced, when a snapshot was installed."""

    async def run(
        self, source: trio.MemoryReceiveChannel[Certified], announce: Callable[[Certified], Awaitable[None]]
    ) -> None:
        """Apply what comes, in order, until cancelled; then hand it to `announce` (the next stage of the pipeline)."""
        async for certified in source:
            await self.apply(certified)
            await announce(certified)

    async def apply(self, certified: Certified) -> None:
        """Apply one group. Blocks at or below the applied height are passed over: applying is exactly-once."""
        blocks = tuple(block for block in certified.blocks if block.height > self.mark.height)
        if not blocks:
            return
        snapshots, certificate = self._snapshots, certified.certificate
        # All of them are written with the first: a certificate stands nowhere without its block.
        unwritten = () if certified.is_stored else blocks
        due = snapshots.height_in(blocks[0].height, blocks[-1].height) if snapshots is not None else None
        links = links_above(blocks, due) if due is not None else None
        if snapshots is not None and due is not None and links is not None:
            count = due - blocks[0].height + 1
            await self._apply(blocks[:count], certificate, unwritten)
            snapshots.offer(blocks[count - 1], links, certificate, self.mark.frontier)
            blocks, unwritten = blocks[count:], ()
        if blocks:
            await self._apply(blocks, certificate, unwritten)

    async def recover(self, blocks: tuple[Block, ...]) -> None:
        """Apply checked blocks above the applied one, of which the last begins an epoch: in one batch, synchronised.

        What is stored above and does not continue them goes with it, and so does the hard state of the old epoch.
        """
        await self._apply(blocks, None, blocks)

    async def _apply(
        self, blocks: tuple[Block, ...], certificate: Certificate | None, unwritten: tuple[Block, ...]
    ) -> None:
        batch, writes, outcomes = Batch(), dict[bytes, bytes | None](), list[ledger_state.Outcome]()

        def rows(key: bytes) -> bytes | None:
            return writes[key] if key in writes else self._store.state(key)

        leaves: list[Digest] = []
        second, time_s = self.second, self.mark.time_ms // 1000
        previous = self.mark.height, self.mark.hash
        configuration = self._store.configuration
        for block in blocks:
            if (block.height - 1, block.header.prev_hash) != previous:
                raise LocalFault(f"block {block.height} does not follow applied block {previous[0]}")
            applied = ledger_state.apply(rows, configuration, block)
            if block.is_configuration:
                configuration = configuration_set_by(block)
            writes.update(applied.writes)
            outcomes.extend(applied.outcomes)
            leaves += block.leaves()
            if (now_s := block.header.time_ms // 1000) != time_s:
                second, time_s = Head(block.header.tree_size, block.header.tree_root), now_s
            previous = block.height, block.hash
            block.forget()
        last = blocks[-1]
        frontier = put_leaves(batch, self.mark.frontier, leaves)
        mark = AppliedMark(last.height, last.hash, last.header.time_ms, frontier.size, frontier.peaks)
        if unwritten:
            # A voter that follows for a while may hold blocks that lost: its log must not begin with them again.
            self._store.put_unlinked_removal(batch, unwritten[-1])
            self._store.put_blocks(batch, unwritten)
        self._store.put_applied(batch, writes, mark, certificate)
        # Stored blocks are durable on a quorum, and rows and mark are in one batch: a crash only means applying again.
        await self._disk.commit(batch, sync=bool(unwritten))
        if configuration is not self._store.configuration:
            self._store.refresh()
        self._receipts.resolve(outcome.receipt for outcome in outcomes if outcome.is_binding)
        self.second = second
        self._advance(mark)

    def adopt(self) -> None:
        """Go on from the snapshot that was installed, by whoever keeps `apply` from running meanwhile."""
        self._store.refresh()
        self._advance(self._store.applied())
        installed, self.installed = self.installed, trio.Event()
        installed.set()

    def note_history(self) -> None:
        """Hear that blocks below an installed snapshot have come."""
        self._store.refresh()
        self.history.advance(self._store.history_height())

    def _advance(self, mark: AppliedMark) -> None:
        self.mark = mark
        self.height.advance(mark.height)
        if self._store.history is None:
            self.history.advance(mark.height)
