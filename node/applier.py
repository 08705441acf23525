"""Applies certified blocks: the only task that advances the applied height, in one batch with the rows it explains.

Input: groups of blocks with the commit proof of the last, from `consensus` (voters) or `catchup` (everybody else).
Output: receipts, and the applied height that watchers wait on. Nothing calls back: who must act on a transaction (open
a grant, fetch an envelope) keeps a mark of its own and reads the blocks above it, so that a crash loses no effect.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from node.ports import Disk
from node.receipts import Receipts
from protocol import ledger_state
from protocol.block import Block
from protocol.certificate import CommitProof
from protocol.errors import LocalFault
from protocol.identifiers import Height
from storage.key_value import Batch
from storage.ledger_store import AppliedMark, LedgerStore


@dataclass(frozen=True, slots=True)
class Committed:
    """Blocks in order, none missing after the applied height, and the proof of the last one.

    `is_stored` is false for blocks that came by catch-up: they are written in the same batch as what they mean.
    """

    blocks: tuple[Block, ...]
    proof: CommitProof
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
    """The task between commit and effect."""

    def __init__(self, store: LedgerStore, disk: Disk, receipts: Receipts) -> None:
        self._store = store
        self._disk = disk
        self._receipts = receipts
        self.mark = store.applied()
        self.height = AppliedHeight(self.mark.height)

    async def run(
        self, source: trio.MemoryReceiveChannel[Committed], announce: Callable[[Committed], Awaitable[None]]
    ) -> None:
        """Apply what comes, in order, until cancelled; then hand it to `announce` (the next stage of the pipeline)."""
        async for committed in source:
            await self.apply(committed)
            await announce(committed)

    async def apply(self, committed: Committed) -> None:
        """Apply one group. Blocks at or below the applied height are passed over: applying is exactly-once."""
        blocks = tuple(block for block in committed.blocks if block.height > self.mark.height)
        if not blocks:
            return
        batch, writes, outcomes = Batch(), dict[bytes, bytes | None](), list[ledger_state.Outcome]()

        def rows(key: bytes) -> bytes | None:
            return writes[key] if key in writes else self._store.state(key)

        frontier = self.mark.frontier
        previous = self.mark.height, self.mark.hash
        for block in blocks:
            if (block.height - 1, block.header.prev_hash) != previous:
                raise LocalFault(f"block {block.height} does not follow applied block {previous[0]}")
            applied = ledger_state.apply(rows, self._store.configuration, block)
            writes.update(applied.writes)
            outcomes.extend(applied.outcomes)
            frontier = frontier.append(block.leaves())
            previous = block.height, block.hash
            block.forget()
        last = blocks[-1]
        mark = AppliedMark(last.height, last.hash, last.header.time_ms, frontier.size, frontier.peaks)
        if not committed.is_stored:
            self._store.put_blocks(batch, blocks)
        self._store.put_applied(batch, writes, mark, committed.proof)
        # Not synchronised: the blocks are durable on a quorum, and rows and mark are in one batch, so that a crash
        # only means applying them again.
        await self._disk.commit(batch, sync=not committed.is_stored)
        self.mark = mark
        self._receipts.resolve(outcome.receipt for outcome in outcomes if outcome.is_binding)
        self.height.advance(last.height)
