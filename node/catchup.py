"""Following the ledger without voting: announced blocks are verified and applied, missing ones pulled from any member.

Every member serves; nobody is believed (`protocol.catchup`). Observers and witnesses follow all the time; a voter gets
its blocks from the leader through Raft and only serves here.
"""

from collections.abc import AsyncIterator

import trio

from node.applier import Applier, Committed
from node.event_log import EventLog
from node.gossip import TOPIC
from node.ports import Clock, Entropy, PeerTransport
from node.verification import Verification
from protocol import codec
from protocol.block import Block
from protocol.catchup import (
    SEGMENT_BLOCKS_MAX,
    SEGMENT_BYTES_MAX,
    Announce,
    BlocksFrom,
    Position,
    Segment,
    check_run,
)
from protocol.certificate import CommitProof
from protocol.errors import Invalid, Malformed, RemoteFault, Unavailable
from protocol.identifiers import Height, NodeId
from storage.ledger_store import LedgerStore

CHANNEL = "blocks"
_POLL_MS = 2_000
"""How long an observer trusts that silence means nothing happened."""
_ANNOUNCEMENTS_MAX = 64
_RUN_BYTES_MAX = 64 * 1024 * 1024
"""Unproven blocks held while waiting for the proof above them: the uncertified tail is bounded (ledger.md P6)."""


class BlockServer:
    """Answers `BlocksFrom` out of the ledger store, up to the applied height."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store

    async def serve(self, _peer: NodeId, body: bytes) -> AsyncIterator[bytes]:
        """Yield segments from the height asked for to the newest applied block that has its own proof."""
        height = codec.decode(body, BlocksFrom).height
        while height <= self._store.applied().height:
            proof = self._store.proof_at_or_above(height)
            if proof is None:
                return
            for segment in self._segments(height, proof):
                yield codec.encode(segment)
                await trio.lowlevel.checkpoint()
            height = Height(proof.header.height + 1)

    def _segments(self, first: Height, proof: CommitProof) -> list[Segment]:
        segments: list[Segment] = []
        raw: list[bytes] = []
        last = proof.header.height
        for block in self._store.blocks(first, last):
            raw.append(block.raw)
            full = len(raw) == SEGMENT_BLOCKS_MAX or sum(map(len, raw)) >= SEGMENT_BYTES_MAX
            if full or block.height == last:
                segments.append(Segment(tuple(raw), proof if block.height == last else None))
                raw = []
        return segments


class Follower:
    """Keeps a member that does not vote at the newest final block."""

    def __init__(
        self,
        *,
        store: LedgerStore,
        applier: Applier,
        transport: PeerTransport,
        verification: Verification,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        self._store = store
        self._applier = applier
        self._transport = transport
        self._verification = verification
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self.last_leader: NodeId | None = None

    async def run(self) -> None:
        """Follow until cancelled."""
        announcements = self._transport.subscribe(TOPIC, _ANNOUNCEMENTS_MAX)
        await self._pull()
        while True:
            with trio.move_on_after(_POLL_MS / 1000):
                publisher, body = await announcements.receive()
                if await self._take(publisher, body):
                    continue
            await self._pull()

    async def _take(self, publisher: NodeId, body: bytes) -> bool:
        """Apply an announcement that continues what we hold; return False when something has to be pulled."""
        try:
            announcement = codec.decode(body, Announce)
            blocks = tuple(Block.decode(raw) for raw in announcement.blocks)
            self.last_leader = announcement.proof.header.leader
            if announcement.proof.header.height <= self._applier.mark.height:
                return True
            if not blocks or blocks[0].height > self._applier.mark.height + 1:
                return False
            await self._apply(
                tuple(block for block in blocks if block.height > self._applier.mark.height),
                announcement.proof,
            )
        except RemoteFault as fault:
            self._verification.reject(publisher, fault)
            return False
        return True

    async def _pull(self) -> None:
        """Pull from connected members, one after the other, until one has brought us further or none could."""
        connected = [peer.node for peer in self._transport.peers() if peer.connected]
        if not connected:
            return
        start = self._entropy.bytes(1)[0] % len(connected)
        for peer in connected[start:] + connected[:start]:
            before = self._applier.mark.height
            try:
                await self._pull_from(peer)
            except Unavailable:
                continue
            except RemoteFault as fault:
                self._verification.reject(peer, fault)
                continue
            if self._applier.mark.height > before:
                self._log.info(
                    "caught up", height=self._applier.mark.height, blocks=self._applier.mark.height - before
                )
                return

    async def _pull_from(self, peer: NodeId) -> None:
        request = codec.encode(BlocksFrom(Height(self._applier.mark.height + 1)))
        run: list[Block] = []
        size = 0
        async with self._transport.fetch(peer, CHANNEL, request) as frames:
            async for frame in frames:
                segment = codec.decode(frame, Segment)
                run.extend(Block.decode(raw) for raw in segment.blocks)
                size += len(frame)
                if size > _RUN_BYTES_MAX:
                    raise Invalid("sends blocks without ever proving them")
                if segment.proof is not None:
                    await self._apply(tuple(run), segment.proof)
                    run, size = [], 0

    async def _apply(self, blocks: tuple[Block, ...], proof: CommitProof) -> None:
        mark = self._applier.mark
        position = Position(self._store.header(mark.height), mark.hash, mark.frontier)
        check_run(position, blocks, proof, self._store.configuration)
        for block in blocks:
            try:
                await self._verification.check_block(block)
            except Malformed as error:
                raise Invalid(f"block {block.height}: {error}") from None
        await self._applier.apply(Committed(blocks, proof, is_stored=False))
        self.last_leader = blocks[-1].header.leader
