"""Following the ledger without voting: announced blocks are verified and applied, missing ones pulled from any member.

Every member serves; nobody is believed (`protocol.catchup`). Observers and witnesses follow all the time; a voter gets
its blocks from the leader through Raft and only serves here.
"""

import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import trio

from node.applier import Applier, Certified
from node.block_server import CHANNEL
from node.event_log import EventLog
from node.forks import Forks, contradicts
from node.gossip import TOPIC
from node.hearing import Hearing
from node.ports import Clock, Entropy, PeerTransport
from node.snapshot_install import Installer
from node.verification import Verification
from protocol import codec
from protocol.block import Block, check_body, check_shape
from protocol.catchup import (
    Announce,
    BlocksFrom,
    Position,
    Run,
    Segment,
)
from protocol.claims import Claim
from protocol.errors import Invalid, Malformed, OtherChain, RemoteFault, Unavailable
from protocol.finality import Certificate, check_certificate
from protocol.identifiers import ZERO, Digest, Height, NodeId
from storage.ledger_store import LedgerStore

_POLL_MS = 2_000
"""How long an observer trusts that silence means nothing happened."""
_STALL_S = 10.0
"""A peer that brings nothing for so long is given up for now."""
_PROGRESS_S = 10.0
"""A long catch-up says so often how far it has come."""
_BYTES_PER_S_MIN = 64 * 1024
_ANNOUNCEMENTS_MAX = 64
_RUN_BYTES_MAX = 64 * 1024 * 1024
"""Uncertified blocks held while waiting for the certificate above them: the uncertified tail is bounded (ledger.md P6)."""
_CHECKED_TRANSACTIONS = 1_000
"""Checked together: enough for all worker threads, few enough that what is parsed of them stays small."""
_CHECKED_MAX = 1
"""Runs that wait behind the one being applied, beside the one that came last: these are checked meanwhile, no more are taken."""
_MUCH = 5_000
"""Blocks and transactions of one peer's answer, from which on it is worth having processes verify them."""


class _Checking:
    """A run that was certified, what its leaders are claimed to have signed, and what came of checking both."""

    def __init__(self, certified: Certified, claimed: list[Claim]) -> None:
        self.certified = certified
        self.claimed = claimed
        self.done = trio.Event()
        self.fault: RemoteFault | None = None


class _Pull:
    """What comes of one peer's answer: runs are checked as they come, and applied in their order."""

    def __init__(
        self, checks: trio.Nursery, runs: trio.MemorySendChannel[_Checking], processes: AsyncExitStack
    ) -> None:
        self.checks = checks
        self.runs = runs
        self.processes = processes
        self.taken = 0


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
        forks: Forks,
        hearing: Hearing | None = None,
        installer: Installer | None = None,
    ) -> None:
        """`hearing` is told of blocks that do not hold."""
        self._store = store
        self._forks = forks
        self._hearing = hearing
        self._installer = installer
        self._looks_for_snapshot = False
        self._is_behind = False
        self._lag = 1
        self._announcements: trio.MemoryReceiveChannel[tuple[NodeId, bytes]] | None = None
        self._network = store.network
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
        await self.pull()
        poll_at = trio.current_time() + _POLL_MS / 1000
        while True:
            heard: tuple[NodeId, bytes] | None = None
            with trio.move_on_at(poll_at):
                heard = await announcements.receive()
            before = self._applier.mark.height
            if heard is None or not await self._take(*heard):
                await self.pull()
            # Only what brought us further counts as news: who repeats old announcements must not keep us from polling.
            if heard is None or self._applier.mark.height > before:
                poll_at = trio.current_time() + _POLL_MS / 1000

    async def _take(self, publisher: NodeId, body: bytes) -> bool:
        """Apply an announcement that continues what we hold; return False when something has to be pulled."""
        try:
            announcement = codec.decode(body, Announce)
            certificate = announcement.certificate
            if publisher in self._forks.shunned:
                return True
            if certificate.height <= self._applier.mark.height:
                await self._compare(publisher, certificate)
                return True
            blocks = tuple(Block.decode(raw) for raw in announcement.blocks)
            new = tuple(block for block in blocks if block.height > self._applier.mark.height)
            if not new or new[0].height > self._applier.mark.height + 1:
                if not self._is_of_known_signers(certificate):
                    # Not to be judged yet, and no fault of who sent it; blocks that are polled say who signs there.
                    return True
                check_certificate(certificate, self._network, self._store.configuration)
                # A voter has led there for certain, so that submissions find it; what it announces is pulled.
                self.last_leader = certificate.header.leader
                self._looks_for_snapshot |= certificate.header.height >= self._applier.mark.height + self._lag
                return False
            run = self._run()
            self._extend(run, new)
            await self._apply(run.certify(certificate), certificate)
        except RemoteFault as fault:
            # Not worth a pull: who sends what does not hold could make us pull for ever.
            await self._fault(publisher, fault)
        return True

    def _is_of_known_signers(self, certificate: Certificate) -> bool:
        header = certificate.header
        return header.config_hash == self._store.configuration.digest and header.next_config_hash == ZERO

    async def _fault(self, peer: NodeId, fault: RemoteFault) -> None:
        self._verification.reject(peer, fault)
        if isinstance(fault, OtherChain):
            await self._forks.look_into(peer)

    async def _compare(self, publisher: NodeId, certificate: Certificate) -> None:
        """Look into an announcement of a height that is applied, when it is for another block than ours."""
        if not contradicts(self._store, certificate):
            return
        set_by = Digest(certificate.header.next_config_hash)
        following = self._store.configurations.by_digest().get(set_by)
        if set_by != ZERO and following is None:
            await self._forks.look_into(publisher)  # who signs for it only its block says, which is asked for
            return
        configuration = self._store.configuration_at(certificate.height)
        check_certificate(certificate, self._network, configuration, following)
        await self._forks.look_into(publisher, certificate)

    async def pull(self) -> None:
        """Pull from connected members, one after the other, until one has brought us further or none could.

        Far behind, the state itself is looked for first; where no quorum states one, blocks bring us as far.
        """
        connected = [
            peer.node
            for peer in self._transport.peers()
            if peer.connected and peer.node not in self._forks.shunned
        ]
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
                await self._fault(peer, fault)
            if self._applier.mark.height > before:
                self._log.info(
                    "caught up", height=self._applier.mark.height, blocks=self._applier.mark.height - before
                )
                return

    async def shown_final(self) -> tuple[Block, ...]:
        """Return certified blocks above the applied height that a connected member can show; none when nobody can."""
        for peer in self._transport.peers():
            if not peer.connected or peer.node in self._forks.shunned:
                continue
            try:
                with trio.move_on_after(_STALL_S):
                    blocks = await self._shown_by(peer.node)
                    if blocks:
                        return blocks
            except Unavailable as reason:
                self._log.debug("looking elsewhere", peer=peer.node.hex()[:16], reason=str(reason))
            except RemoteFault as fault:
                await self._fault(peer.node, fault)
        return ()

    async def _shown_by(self, peer: NodeId) -> tuple[Block, ...]:
        run, size = self._run(), 0
        request = codec.encode(BlocksFrom(Height(self._applier.mark.height + 1)))
        async with self._transport.fetch(peer, CHANNEL, request) as frames:
            async for frame in frames:
                segment = codec.decode(frame, Segment)
                size += len(frame)
                if size > _RUN_BYTES_MAX:
                    raise Invalid("sends blocks without ever certifying them")
                self._extend(run, tuple(map(Block.decode, segment.blocks)))
                if segment.certificate is not None:
                    return run.certify(segment.certificate)
        return ()

    async def _pull_from(self, peer: NodeId) -> None:
        """Apply what one peer can prove final, as long as it comes fast enough. What comes is checked while the last is applied.

        Raises:
            Unavailable: the peer went away, or is too slow to wait for.
            RemoteFault: what it sent does not hold. What was final before that is applied.
        """
        trouble = list[Unavailable | RemoteFault]()
        send, receive = trio.open_memory_channel[_Checking](_CHECKED_MAX)
        fetching = trio.CancelScope()
        async with AsyncExitStack() as processes, trio.open_nursery() as nursery:
            nursery.start_soon(self._apply_all, receive, fetching, trouble)
            async with send:
                try:
                    with fetching:
                        await self._fetch(peer, _Pull(nursery, send, processes))
                except (Unavailable, RemoteFault) as error:
                    trouble.append(error)
        if trouble:
            raise trouble[-1]

    async def _fetch(self, peer: NodeId, pull: _Pull) -> None:
        request = codec.encode(BlocksFrom(Height(self._applier.mark.height + 1)))
        with trio.move_on_after(_STALL_S) as patience:
            async with self._transport.fetch(peer, CHANNEL, request) as frames:
                await self._take_segments(frames, patience, pull)
        if patience.cancelled_caught:
            raise Unavailable("it brought too little for too long")

    async def _take_segments(
        self, frames: AsyncIterator[bytes], patience: trio.CancelScope, pull: _Pull
    ) -> None:
        run, size, since = self._run(), 0, trio.current_time()
        async for frame in frames:
            segment = codec.decode(frame, Segment)
            size += len(frame)
            if size > _RUN_BYTES_MAX:
                raise Invalid("sends blocks without ever certifying them")
            # Who sends no certificate with them must show at once that a leader signed these blocks.
            claimed = list[Claim]() if segment.certificate is not None else None
            self._extend(run, tuple(map(Block.decode, segment.blocks)), claimed)
            if segment.certificate is not None:
                patience.deadline = math.inf  # our own work is not the peer's delay
                blocks = run.certify(segment.certificate)
                certified = Certified(blocks, segment.certificate, is_stored=False)
                await self._begin(_Checking(certified, claimed or []), pull)
                size, since = 0, trio.current_time()
            # Whoever drips blocks, genuine ones even, gets no more time than a slow line would need for them.
            patience.deadline = since + _STALL_S + size / _BYTES_PER_S_MIN

    async def _begin(self, checking: _Checking, pull: _Pull) -> None:
        """Begin to check a run; return when there is room for the next one."""
        processes, before = self._verification.processes, pull.taken
        pull.taken += sum(1 + len(block.transactions) for block in checking.certified.blocks)
        if processes is not None and before < _MUCH <= pull.taken:
            await pull.processes.enter_async_context(processes.running())
        pull.checks.start_soon(self._check_run, checking)
        await pull.runs.send(checking)

    async def _check_run(self, checking: _Checking) -> None:
        try:
            await self._check(checking.certified.blocks, checking.claimed)
        except RemoteFault as fault:
            checking.fault = fault
        checking.done.set()

    def _run(self) -> Run:
        mark = self._applier.mark
        position = Position(self._store.header(mark.height), mark.hash, mark.frontier)
        return Run(position, self._store.configuration)

    async def _apply_all(
        self,
        source: trio.MemoryReceiveChannel[_Checking],
        fetching: trio.CancelScope,
        trouble: list[Unavailable | RemoteFault],
    ) -> None:
        """Apply runs in their order, up to the first that does not hold: that is noted, and nothing more fetched."""
        told_at = trio.current_time()
        async for checking in source:
            await checking.done.wait()
            if checking.fault is not None:
                trouble.append(checking.fault)
                fetching.cancel()
                return
            await self._applier.apply(checking.certified)
            newest = checking.certified.blocks[-1].header
            self.last_leader = newest.leader
            if trio.current_time() >= told_at + _PROGRESS_S:
                told_at = trio.current_time()
                behind_ms = self._clock.now_ms() - newest.time_ms
                self._log.info("catching up", height=newest.height, behind_ms=behind_ms)

    async def _apply(self, blocks: tuple[Block, ...], certificate: Certificate) -> None:
        await self._check(blocks, [])
        await self._applier.apply(Certified(blocks, certificate, is_stored=False))
        self.last_leader = blocks[-1].header.leader

    def _extend(self, run: Run, blocks: tuple[Block, ...], deferred: list[Claim] | None = None) -> None:
        try:
            run.extend(blocks, deferred)
        except OtherChain:
            raise
        except RemoteFault:
            self._refuse(blocks)
            raise

    async def _check(self, blocks: tuple[Block, ...], claimed: list[Claim]) -> None:
        try:
            await self._verification.check_leaders(blocks, claimed)
            await check_bodies(blocks, self._verification)
        except RemoteFault:
            self._refuse(blocks)
            raise

    def _refuse(self, blocks: tuple[Block, ...]) -> None:
        """Have blocks looked into that do not hold: what is wrong may stand under their leader's signature (E7)."""
        if self._hearing is not None:
            self._hearing.refused(blocks)


async def check_bodies(blocks: tuple[Block, ...], verification: Verification) -> None:
    """Check the bodies of certified blocks, many transactions at a time; how many signatures is `verification`'s policy.

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
        entries = await verification.check_certified(raw)
        start = 0
        for block in blocks:
            end = start + len(block.transactions)
            check_body(block, entries[start:end])
            start = end
    except Malformed as error:
        raise Invalid(f"blocks {blocks[0].height} to {blocks[-1].height}: {error}") from None
