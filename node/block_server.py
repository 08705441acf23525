"""Serving certified blocks to whoever asks: members that follow, catch up, or lack a block that was damaged.

Every member serves; nobody is believed (`protocol.catchup`).
"""

from collections.abc import AsyncIterator

import trio

from node.damage_notice import DamageNotice
from node.event_log import EventLog
from protocol import codec
from protocol.catchup import SEGMENT_BLOCKS_MAX, SEGMENT_BYTES_MAX, BlocksFrom, Segment, StoryFrom
from protocol.errors import Corruption, Invalid
from protocol.finality import Certificate
from protocol.identifiers import Height, NodeId
from protocol.snapshot import newest_snapshot_height
from storage.ledger_store import LedgerStore

CHANNEL = "blocks"
_GATHERED_BYTES = 1024 * 1024
"""Blocks served under one certificate: some hundred transactions, so that applying them takes no long turn of the event loop."""


class BlockServer:
    """Answers `BlocksFrom` and `StoryFrom` out of the ledger store, up to the applied height.

    What is damaged is served to nobody: the answer ends before it, the asker goes on at another member, and the log says so
    once. `damage` hears of it every time (`block_repair`).
    """

    def __init__(
        self, store: LedgerStore, log: EventLog, unit: int | None = None, damage: DamageNotice | None = None
    ) -> None:
        """`unit` is the grid of snapshot heights (`protocol.snapshot`), None where no snapshots are made."""
        self._damage = damage or DamageNotice()
        self._store = store
        self._log = log
        self._unit = unit
        self._has_told = False

    async def serve(self, peer: NodeId, body: bytes) -> AsyncIterator[bytes]:
        """Yield segments from the height asked for to the newest applied block that has its own certificate.

        A former member gets no more than the block that let it go, and what certifies it.
        """
        left = self._store.configurations.left_at(peer)
        last = self._store.certificate_at_or_above(left) if left is not None else None
        limit = last.header.height if last is not None else None
        asked: BlocksFrom | StoryFrom = codec.decode_union(body, BlocksFrom | StoryFrom)
        height, is_story = asked.height, isinstance(asked, StoryFrom)
        if height == 0:
            raise Invalid("genesis is made from the configuration, not asked for")
        while True:
            try:
                certificate, segments = self._certified(height, limit, gathers=not is_story)
            except Corruption as damage:
                self._tell(damage)
                return
            if certificate is None:
                return
            for segment in segments:
                yield codec.encode(segment)
                await trio.lowlevel.checkpoint()
            if is_story:
                return
            height = Height(certificate.header.height + 1)

    def _certified(
        self, height: Height, limit: Height | None, *, gathers: bool
    ) -> tuple[Certificate | None, list[Segment]]:
        """Return the segments from `height` to a block that has its own certificate, and that certificate; None above the last.

        It is the next such block, or, to gather many under one certificate, a later one.
        """
        applied = self._store.applied().height
        if limit is not None:
            applied = min(applied, limit)
        history = self._store.history
        if history is not None and height < history.until:
            applied = history.height  # what lies between is on its way here itself
        if height > applied:
            return None, []
        gathered = self._gathered(height, applied) if gathers else None
        if gathered is not None:
            return gathered.certificate, [gathered]
        certificate = self._store.certificate_at_or_above(height)
        if certificate is None or certificate.header.height > applied:
            return None, []
        return certificate, self._segments(height, certificate)

    def _gathered(self, first: Height, applied: Height) -> Segment | None:
        """Return many blocks under one certificate, the highest within a bound; None where none is so near.

        Many blocks have a certificate of their own. Who catches up checks, and synchronises its disk, once for each it gets.
        A configuration block ends them: its certificate alone tells who signs above it.
        """
        raw: list[bytes] = []
        size = 0
        last = min(applied, first + SEGMENT_BLOCKS_MAX - 1)
        if self._unit is not None:
            # Not far beyond it: who takes blocks under a certificate makes a snapshot there as well, if it is near enough.
            last = newest_snapshot_height(first, last, self._unit) or last
        try:
            for block in self._store.blocks(first, Height(last)):
                raw.append(block.raw)
                size += len(block.raw)
                if size >= _GATHERED_BYTES or block.is_configuration:
                    break
        except Corruption:
            if not raw:  # else it is met again, as the first one, when what lies before it has been served
                raise
        certificate = self._store.certificate(Height(first + len(raw) - 1))
        if certificate is None or certificate.header.height < first:
            return None
        return Segment(tuple(raw[: certificate.header.height - first + 1]), certificate)

    def _tell(self, damage: Corruption) -> None:
        if self._store.has_lost_blocks():
            return  # known, and being fetched
        self._damage.tell()
        if not self._has_told:
            self._log.error(
                "the ledger holds damaged blocks: they are served to nobody until they are repaired",
                problem=str(damage),
            )
        self._has_told = True

    def _segments(self, first: Height, certificate: Certificate) -> list[Segment]:
        segments: list[Segment] = []
        raw: list[bytes] = []
        last = certificate.header.height
        for block in self._store.blocks(first, last):
            raw.append(block.raw)
            full = len(raw) == SEGMENT_BLOCKS_MAX or sum(map(len, raw)) >= SEGMENT_BYTES_MAX
            if full or block.height == last:
                segments.append(Segment(tuple(raw), certificate if block.height == last else None))
                raw = []
        return segments
