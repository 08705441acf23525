"""Standing still: a member that has promised to sign nothing more in an epoch takes no part in it (ledger.md 7.4).

    taking part ── freeze: durable row, then the task ends ──► frozen ── a recovery is applied ──► taking part, next epoch
                 ◄── thaw: nobody can hold the promise ───────┘

Whoever is frozen still serves blocks, also those that are not certified: somebody may need them to reach the base.
"""

from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from node.ports import Disk
from protocol import codec
from protocol.catchup import BlocksFrom
from protocol.errors import Corruption, Unavailable
from protocol.identifiers import Height, NodeId
from storage.key_value import Batch
from storage.ledger_store import LedgerStore

TAIL_CHANNEL = "recovery-tail"
"""Blocks from a height up to the tip, one in a frame."""


class Standstill:
    """Runs a member's part in consensus, or keeps it from running."""

    def __init__(self, store: LedgerStore, disk: Disk) -> None:
        self._store = store
        self._epochs = store.epochs
        self._disk = disk
        self._scope: trio.CancelScope | None = None
        self._ended = trio.Event()
        self._ended.set()
        self._freed = trio.Event()

        self.trouble: str | None = None
        """A later epoch that others have begun, and that this member cannot follow: for the operator."""

    @property
    def is_frozen(self) -> bool:
        """Whether this member signs nothing more in the present epoch."""
        return self._epochs.is_frozen()

    async def run(self, part: Callable[[], Awaitable[None]], end: Callable[[], None]) -> None:
        """Run `part` until cancelled, except while frozen; `end` clears up what it leaves when it is stopped."""
        while True:
            self._freed = trio.Event()
            if self.is_frozen:
                end()
                await self._freed.wait()
            self._ended = trio.Event()
            try:
                with trio.CancelScope() as self._scope:
                    await part()
            finally:
                self._scope = None
                self._ended.set()

    async def freeze(self) -> None:
        """Promise durably to sign nothing more in this epoch, and end what signs. Who is frozen stays as it is."""
        if self.is_frozen:
            return
        batch = Batch()
        self._epochs.put_frozen(batch, has_left=False)
        # Before the task ends: a crash in between must not start it again.
        await self._disk.commit(batch, sync=True)
        if self._scope is not None:
            self._scope.cancel()
        await self._ended.wait()

    async def show(self) -> None:
        """Note durably that the freeze statement is shown from now on: there is no way back."""
        if not self._epochs.may_have_left():
            batch = Batch()
            self._epochs.put_frozen(batch, has_left=True)
            await self._disk.commit(batch, sync=True)

    async def thaw(self) -> bool:
        """Take part again; return whether that could be: nobody can hold the freeze statement."""
        if self._epochs.may_have_left():
            return False
        batch = Batch()
        self._epochs.put_thawed(batch)
        await self._disk.commit(batch, sync=True)
        self._freed.set()
        return True

    def begin_epoch(self) -> None:
        """Go on after a recovery was applied."""
        self._freed.set()

    async def serve_tail(self, _peer: NodeId, body: bytes) -> AsyncIterator[bytes]:
        """Yield the stored blocks from the height asked for up to the tip; only while frozen those that are not final.

        Raises:
            Unavailable: a block is damaged here.
        """
        height = codec.decode(body, BlocksFrom).height
        tip = self._store.tip_height() if self.is_frozen else self._store.applied().height
        while height <= tip:
            try:
                raw = self._store.block(height).raw
            except Corruption:
                raise Unavailable(f"block {height} is damaged here") from None
            yield raw
            await trio.lowlevel.checkpoint()
            height = Height(height + 1)
