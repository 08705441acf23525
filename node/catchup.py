"""Following the ledger without voting: announced blocks are verified and applied, missing ones pulled from any member.

Every member serves; nobody is believed (`protocol.catchup`). Observers and witnesses follow all the time; a voter gets
its blocks from the leader through Raft and only serves here.
"""

import math
from collections.abc import AsyncIterator

import trio

from node.applier import Applier, Committed
from node.damage_notice import DamageNotice
from node.event_log import EventLog
from node.gossip import TOPIC
from node.ports import Clock, Entropy, PeerTransport
from node.snapshot_install import Installer
from node.verification import Verification
from protocol import codec
from protocol.block import Block, check_body, check_shape
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
from protocol.errors import Corruption, Invalid, Malformed, RemoteFault, Unavailable
from protocol.identifiers import Height, NodeId
from protocol.snapshot import newest_snapshot_height
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
_GATHERED_BYTES = 1024 * 1024
"""Blocks served under one proof: some hundred transactions, so that applying them takes no long turn of the event loop."""
_CHECKED_TRANSACTIONS = 1_000
"""Checked together: enough for all worker threads, few enough that what is parsed of them stays small."""
_PROVEN_MAX = 1
"""Runs checked and not yet applied; when full, checking waits, and with it the peer."""


class BlockServer:
    """Answers `BlocksFrom` out of the ledger store, up to the applied height.

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

    async def serve(self, _peer: NodeId, body: bytes) -> AsyncIterator[bytes]:
        """Yield segments from the height asked for to the newest applied block that has its own proof."""
        height = codec.decode(body, BlocksFrom).height
        if height == 0:
            raise Invalid("genesis is made from the configuration, not asked for")
        while True:
            try:
                proof, segments = self._proven(height)
            except Corruption as damage:
                self._tell(damage)
                return
            if proof is None:
                return
            for segment in segments:
                yield codec.encode(segment)
                await trio.lowlevel.checkpoint()
            height = Height(proof.header.height + 1)

    def _proven(self, height: Height) -> tuple[CommitProof | None, list[Segment]]:
        """Return the segments from `height` to the next block that has its own proof, and that proof; None above the last."""
        applied = self._store.applied().height
        history = self._store.history
        if history is not None and height < history.until:
            applied = history.height  # what lies between is on its way here itself
        if height > applied:
            return None, []
        gathered = self._gathered(height, applied)
        if gathered is not None:
            return gathered.proof, [gathered]
        proof = self._store.proof_at_or_above(height)
        if proof is None or proof.header.height > applied:
            return None, []
        return proof, self._segments(height, proof)

    def _gathered(self, first: Height, applied: Height) -> Segment | None:
        """Return many blocks under one proof, the highest within a bound; None where none is so near.

        Nearly every block has a proof of its own. Who catches up checks, and synchronises its disk, once for each it gets.
        """
        raw: list[bytes] = []
        size = 0
        last = min(applied, first + SEGMENT_BLOCKS_MAX - 1)
        if self._unit is not None:
            # Such a block has a proof of its own, and who takes it under that proof makes a snapshot there as well.
            last = newest_snapshot_height(first, last, self._unit) or last
        try:
            for block in self._store.blocks(first, Height(last)):
                raw.append(block.raw)
                size += len(block.raw)
                if size >= _GATHERED_BYTES:
                    break
        except Corruption:
            if not raw:  # else it is met again, as the first one, when what lies before it has been served
                raise
        proof = self._store.proof(Height(first + len(raw) - 1))
        if proof is None or proof.header.height < first:
            return None
        return Segment(tuple(raw[: proof.header.height - first + 1]), proof)

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
        installer: Installer | None = None,
    ) -> None:
        self._store = store
        self._installer = installer
        self._looks_for_snapshot = False
        self._is_behind = False
        self._lag = 1
        self._announcements: trio.MemoryReceiveChannel[tuple[NodeId, bytes]] | None = None
        self._network = network_id(store.configuration)
        self._applier = applier
        self._transport = transport
        self._verification = verification
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self.last_leader: NodeId | None = None

    async def run(self, *, is_behind: bool = False) -> None:
        """Follow until cancelled; may be run again afterwards. `is_behind`: the next blocks may be nowhere to be had."""
        self._looks_for_snapshot = True
        self._is_behind = is_behind
        self._lag = 1 if is_behind or self._installer is None else self._installer.lag
        if self._announcements is None:
            self._announcements = self._transport.subscribe(TOPIC, _ANNOUNCEMENTS_MAX)
        announcements = self._announcements
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
                self._looks_for_snapshot |= proof.header.height >= self._applier.mark.height + self._lag
                return False
            run.extend(new)
            await self._apply(run.prove(proof), proof)
        except RemoteFault as fault:
            # Not worth a pull: who sends what does not hold could make us pull for ever.
            self._verification.reject(publisher, fault)
        return True

    async def _pull(self) -> None:
        """Pull from connected members, one after the other, until one has brought us further or none could.

        Far behind, the state itself is looked for first; where no quorum states one, blocks bring us as far.
        """
        connected = [peer.node for peer in self._transport.peers() if peer.connected]
        if not connected:
            self._looks_for_snapshot = True  # who is alone may be far behind when that ends
            return
        if self._installer is not None and self._looks_for_snapshot:
            is_installed = await self._installer.attempt(Height(self._applier.mark.height + self._lag))
            # Who cannot go on by blocks has nothing else to hope for.
            self._looks_for_snapshot = self._is_behind and not is_installed
        start = self._entropy.bytes(1)[0] % len(connected)
        # The leader last: it has more to do than the others, and they have nearly all that it has.
        for peer in sorted(connected[start:] + connected[:start], key=lambda node: node == self.last_leader):
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
        """Apply what one peer can prove, as long as it comes fast enough. What comes is checked while the last is applied.

        Raises:
            Unavailable: the peer went away, or is too slow to wait for.
            RemoteFault: what it sent does not hold. What was proven before that is applied.
        """
        trouble: Unavailable | RemoteFault | None = None
        send, receive = trio.open_memory_channel[Committed](_PROVEN_MAX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._apply_all, receive)
            async with send:
                try:
                    await self._fetch(peer, send)
                except (Unavailable, RemoteFault) as error:
                    trouble = error
        if trouble is not None:
            raise trouble

    async def _fetch(self, peer: NodeId, proven: trio.MemorySendChannel[Committed]) -> None:
        request = codec.encode(BlocksFrom(Height(self._applier.mark.height + 1)))
        with trio.move_on_after(_STALL_S) as patience:
            async with self._transport.fetch(peer, CHANNEL, request) as frames:
                await self._take_segments(frames, patience, proven)
        if patience.cancelled_caught:
            raise Unavailable("it brought too little for too long")

    async def _take_segments(
        self,
        frames: AsyncIterator[bytes],
        patience: trio.CancelScope,
        proven: trio.MemorySendChannel[Committed],
    ) -> None:
        run, size, since = self._run(), 0, trio.current_time()
        async for frame in frames:
            segment = codec.decode(frame, Segment)
            size += len(frame)
            if size > _RUN_BYTES_MAX:
                raise Invalid("sends blocks without ever proving them")
            run.extend(map(Block.decode, segment.blocks))
            if segment.proof is not None:
                patience.deadline = math.inf  # our own work is not the peer's delay
                blocks = run.prove(segment.proof)
                await check_bodies(blocks, self._verification)
                await proven.send(Committed(blocks, segment.proof, is_stored=False))
                size, since = 0, trio.current_time()
            # Whoever drips blocks, genuine ones even, gets no more time than a slow line would need for them.
            patience.deadline = since + _STALL_S + size / _BYTES_PER_S_MIN

    def _run(self) -> Run:
        mark = self._applier.mark
        position = Position(self._store.header(mark.height), mark.hash, mark.frontier)
        return Run(position, self._store.configuration)

    async def _apply_all(self, proven: trio.MemoryReceiveChannel[Committed]) -> None:
        async for committed in proven:
            await self._applier.apply(committed)
            self.last_leader = committed.blocks[-1].header.leader

    async def _apply(self, blocks: tuple[Block, ...], proof: CommitProof) -> None:
        await check_bodies(blocks, self._verification)
        await self._applier.apply(Committed(blocks, proof, is_stored=False))
        self.last_leader = blocks[-1].header.leader


async def check_bodies(blocks: tuple[Block, ...], verification: Verification) -> None:
    """Check the bodies of proven blocks, many transactions at a time; how many signatures is `verification`'s policy.

    Raises:
        Invalid: a body is not that of its header, or a transaction in it does not hold.
    """
    first = count = 0
    for end, block in enumerate(blocks, start=1):
        count += len(block.transactions)
        if count >= _CHECKED_TRANSACTIONS or end == len(blocks):
            await _check_together(blocks[first:end], verification)
            first, count = end, 0


async def _check_together(blocks: tuple[Block, ...], verification: Verification) -> None:
    try:
        for block in blocks:
            check_shape(block)  # before a signature is verified
        raw = tuple([entry for block in blocks for entry in block.transactions])
        entries = await verification.check_proven(raw)
        start = 0
        for block in blocks:
            end = start + len(block.transactions)
            check_body(block, entries[start:end])
            start = end
    except Malformed as error:
        raise Invalid(f"blocks {blocks[0].height} to {blocks[-1].height}: {error}") from None
