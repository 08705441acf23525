"""Following the ledger without voting: announced blocks are verified and applied, missing ones pulled from any member.

Every member serves; nobody is believed (`protocol.catchup`). Observers and witnesses follow all the time; a voter gets
its blocks from the leader through Raft and only serves here.
"""

import math
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
    Run,
    Segment,
)
from protocol.certificate import CommitProof, check_commit_proof
from protocol.configuration import network_id
from protocol.errors import Invalid, Malformed, RemoteFault, Unavailable
from protocol.identifiers import Height, NodeId
from storage.ledger_store import LedgerStore

CHANNEL = "blocks"
_POLL_MS = 2_000
"""How long an observer trusts that silence means nothing happened."""
_STALL_S = 10.0
"""A peer that brings nothing for so long is given up for now."""
_BYTES_PER_S_MIN = 64 * 1024
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
        if height == 0:
            raise Invalid("genesis is made from the configuration, not asked for")
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
        self._network = network_id(store.configuration)
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
        poll_at = trio.current_time() + _POLL_MS / 1000
        while True:
            heard: tuple[NodeId, bytes] | None = None
            with trio.move_on_at(poll_at):
                heard = await announcements.receive()
            before = self._applier.mark.height
            if heard is None or not await self._take(*heard):
                await self._pull()
            # Only what brought us further counts as news: who repeats old announcements must not keep us from polling.
            if heard is None or self._applier.mark.height > before:
                poll_at = trio.current_time() + _POLL_MS / 1000

    async def _take(self, publisher: NodeId, body: bytes) -> bool:
        """Apply an announcement that continues what we hold; return False when something has to be pulled."""
        try:
            announcement = codec.decode(body, Announce)
            proof = announcement.proof
            if proof.header.height <= self._applier.mark.height:
                return True
            blocks = tuple(Block.decode(raw) for raw in announcement.blocks)
            new = tuple(block for block in blocks if block.height > self._applier.mark.height)
            run = self._run()
            if not new or new[0].height > self._applier.mark.height + 1:
                check_commit_proof(proof, self._network, self._store.configuration)
                # Proven to lead, so that submissions find it; what it announces is pulled.
                self.last_leader = proof.header.leader
                return False
            run.extend(new)
            await self._apply(run.prove(proof), proof)
        except RemoteFault as fault:
            # Not worth a pull: who sends what does not hold could make us pull for ever.
            self._verification.reject(publisher, fault)
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
            except Unavailable as reason:
                self._log.debug("catching up elsewhere", peer=peer.hex()[:16], reason=str(reason))
            except RemoteFault as fault:
                self._verification.reject(peer, fault)
            if self._applier.mark.height > before:
                self._log.info(
                    "caught up", height=self._applier.mark.height, blocks=self._applier.mark.height - before
                )
                return

    async def _pull_from(self, peer: NodeId) -> None:
        """Apply what one peer can prove, as long as it comes fast enough.

        Raises:
            Unavailable: the peer went away, or is too slow to wait for.
            RemoteFault: what it sent does not hold. What was proven before that is applied.
        """
        request = codec.encode(BlocksFrom(Height(self._applier.mark.height + 1)))
        with trio.move_on_after(_STALL_S) as patience:
            async with self._transport.fetch(peer, CHANNEL, request) as frames:
                await self._take_segments(frames, patience)
        if patience.cancelled_caught:
            raise Unavailable("it brought too little for too long")

    async def _take_segments(self, frames: AsyncIterator[bytes], patience: trio.CancelScope) -> None:
        run, size, since = self._run(), 0, trio.current_time()
        async for frame in frames:
            segment = codec.decode(frame, Segment)
            size += len(frame)
            if size > _RUN_BYTES_MAX:
                raise Invalid("sends blocks without ever proving them")
            run.extend(map(Block.decode, segment.blocks))
            if segment.proof is not None:
                patience.deadline = math.inf  # our own work is not the peer's delay
                await self._apply(run.prove(segment.proof), segment.proof)
                size, since = 0, trio.current_time()
            # Whoever drips blocks, genuine ones even, gets no more time than a slow line would need for them.
            patience.deadline = since + _STALL_S + size / _BYTES_PER_S_MIN

    def _run(self) -> Run:
        mark = self._applier.mark
        position = Position(self._store.header(mark.height), mark.hash, mark.frontier)
        return Run(position, self._store.configuration)

    async def _apply(self, blocks: tuple[Block, ...], proof: CommitProof) -> None:
        for block in blocks:
            try:
                await self._verification.check_block(block)
            except Malformed as error:
                raise Invalid(f"block {block.height}: {error}") from None
        await self._applier.apply(Committed(blocks, proof, is_stored=False))
        self.last_leader = blocks[-1].header.leader
