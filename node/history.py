"""Filling in the blocks below an installed snapshot, from the lowest one up, while the member serves and votes already.

Any member may send them, nobody is believed: they are a chain from the last block held below to the snapshot's own, which
a quorum has stated, and each portion comes with its certificate (`protocol.catchup.Run`). Each portion is stored with the
mark that says how far it goes, so that a restart goes on there.

The signatures of their transactions are verified as those of all blocks that a quorum has confirmed: all, or a share of them
where `history = "sampled"` stands in config.toml (`node.verification`). The blocks themselves are checked whole either way.
"""

from collections.abc import AsyncIterator

import trio

from node.applier import Applier
from node.block_server import CHANNEL
from node.catchup import check_bodies
from node.event_log import EventLog
from node.ports import Clock, Disk, PeerTransport
from node.verification import Verification
from protocol import codec
from protocol.block import Block
from protocol.catchup import BlocksFrom, Position, Run, Segment
from protocol.errors import Corruption, Invalid, RemoteFault, Unavailable
from protocol.finality import Certificate
from protocol.identifiers import Digest, Height, NodeId
from storage.key_value import Batch
from storage.ledger_store import HistoryMark, LedgerStore
from storage.tree_store import put_leaves

_RETRY_MS = 2_000
_PAUSE_MS = 20
"""After each portion of about a megabyte: nothing urgent waits for history."""
_STALL_S = 10.0
_UNCERTIFIED_BYTES_MAX = 64 * 1024 * 1024


class History:
    """The task that fetches what is missing below a snapshot. It sleeps while nothing is."""

    def __init__(
        self,
        ledger: LedgerStore,
        applier: Applier,
        *,
        disk: Disk,
        changing: trio.Lock,
        transport: PeerTransport,
        verification: Verification,
        clock: Clock,
        log: EventLog,
    ) -> None:
        """`changing` is held by whoever changes what is known of the history: this task, or who installs a snapshot."""
        self._ledger = ledger
        self._applier = applier
        self._disk = disk
        self._changing = changing
        self._transport = transport
        self._verification = verification
        self._clock = clock
        self._log = log

    async def run(self) -> None:
        """Fetch until cancelled."""
        while True:
            installed = self._applier.installed
            while self._ledger.history is not None:
                before = self._ledger.history_height()
                await self._fill()
                if self._ledger.history is not None and self._ledger.history_height() == before:
                    await self._clock.sleep_ms(_RETRY_MS)
            await installed.wait()

    async def _fill(self) -> None:
        """Take what each connected member has, one after the other, until nothing is missing."""
        for peer in [peer.node for peer in self._transport.peers() if peer.connected]:
            mark = self._ledger.history
            if mark is None:
                return
            try:
                await self._fill_from(peer, mark)
            except (Unavailable, Corruption) as reason:  # a damaged block is mended by whoever finds it
                self._log.debug("history from elsewhere", peer=peer.hex()[:16], reason=str(reason))
            except RemoteFault as fault:
                self._verification.reject(peer, fault)

    async def _fill_from(self, peer: NodeId, mark: HistoryMark) -> None:
        request = codec.encode(BlocksFrom(Height(mark.height + 1)))
        with trio.move_on_after(_STALL_S) as patience:
            async with self._transport.fetch(peer, CHANNEL, request) as frames:
                await self._take(frames, mark, patience)
        if patience.cancelled_caught:
            raise Unavailable("it brought no block for too long")

    async def _take(
        self, frames: AsyncIterator[bytes], mark: HistoryMark, patience: trio.CancelScope
    ) -> None:
        position = Position(self._ledger.header(mark.height), mark.hash, mark.frontier)
        run, size = Run(position, self._ledger.configuration_at(Height(mark.height + 1))), 0
        async for frame in frames:
            segment = codec.decode(frame, Segment)
            size += len(frame)
            if size > _UNCERTIFIED_BYTES_MAX:
                raise Invalid("sends blocks without ever certifying them")
            run.extend(map(Block.decode, segment.blocks))
            if segment.certificate is not None:
                blocks = run.certify(segment.certificate)
                await check_bodies(blocks, self._verification)
                following = await self._store(blocks, segment.certificate, mark)
                if following is None:
                    return
                mark, size = following, 0
                await self._clock.sleep_ms(_PAUSE_MS)
            patience.deadline = trio.current_time() + _STALL_S

    async def _store(
        self, blocks: tuple[Block, ...], certificate: Certificate, mark: HistoryMark
    ) -> HistoryMark | None:
        """Store a certified portion; return the new mark, None when no more is to be taken from here.

        Raises:
            Invalid: the chain does not lead to the snapshot's block: both cannot be the ledger.
        """
        async with self._changing:
            if self._ledger.history != mark:
                return None  # another snapshot was installed meanwhile
            until = self._ledger.block(mark.until)
            below = tuple(block for block in blocks if block.height < mark.until)
            last, leaves, batch = mark.hash, list[Digest](), Batch()
            for block in below:
                last = block.hash
                leaves += block.leaves()
                block.forget()
            frontier = put_leaves(batch, mark.frontier, leaves)
            height = below[-1].height if below else mark.height
            following = HistoryMark(height, last, frontier.size, frontier.peaks, mark.until)
            if height == mark.until - 1:
                head = until.header
                if (head.prev_hash, head.tree_size, head.tree_root) != (last, frontier.size, frontier.root()):
                    raise Invalid("the blocks below the snapshot do not lead to it")
            is_whole = height == mark.until - 1
            if is_whole:
                put_leaves(
                    batch, frontier, until.leaves()
                )  # the snapshot came with its block, not with its nodes
            self._ledger.put_history(batch, below, None if is_whole else following)
            if certificate.header.height < mark.until:
                self._ledger.put_certificate(batch, certificate)
            await self._disk.commit(batch, sync=False)
            self._applier.note_history()
        if is_whole:
            self._log.info("the history of the ledger is whole", height=mark.until)
        return None if is_whole else following
