"""The ledger part of a node, assembled from ports: consensus or following, applying, announcing, serving blocks.

`daemon` builds it on real ports, `simulations` on virtual ones: it is the same node. Wiring only, no behaviour.
"""

from dataclasses import dataclass
from functools import partial

import trio

from node.applier import Applier, Committed
from node.awaiting_disk import RoomAwaitingDisk
from node.catchup import CHANNEL as BLOCKS
from node.catchup import BlockServer, Follower
from node.consensus import Consensus
from node.damage_notice import DamageNotice
from node.event_log import EventLog
from node.gossip import Announcer
from node.history import History
from node.ports import Clock, Disk, Entropy, PeerTransport, Workers
from node.receipts import AGAIN, Receipts, Submitter
from node.receipts import CHANNEL as SUBMIT
from node.rejoin import CHANNEL as WATERMARK
from node.rejoin import Recall, Rejoin, watermark_of
from node.snapshot_claims import Claims, StateCheck
from node.snapshot_install import Installer
from node.snapshots import SnapshotMaker, SnapshotServer, SnapshotSpace
from node.verification import Verification
from protocol import codec, limits
from protocol.configuration import network_id
from protocol.errors import NotLeader, Unavailable
from protocol.identifiers import Height, NodeId
from protocol.raft.log import Log
from protocol.raft.machine import Raft
from protocol.raft.state import HardState
from protocol.signing import SigningKey
from storage.key_value import Batch
from storage.ledger_store import LedgerStore
from storage.snapshot_store import SnapshotStore

_COMMITTED_MAX = 64
"""Groups of committed blocks waiting for the applier; when full, consensus waits: the ledger never outruns its state."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The seams of one node, real or virtual. `disk` is that of the ledger database.

    Without `snapshots` the node makes none and installs none: it follows by blocks alone.
    """

    transport: PeerTransport
    disk: Disk
    workers: Workers
    clock: Clock
    entropy: Entropy
    log: EventLog
    snapshots: SnapshotSpace | None = None


class Core:
    """One node's ledger. A voter runs `consensus`; everybody else, and a voter that has to rejoin, `follower`."""

    def __init__(
        self, ports: Ports, store: LedgerStore, key: SigningKey, *, samples_history: bool = False
    ) -> None:
        """With `samples_history` only a share of the signatures in proven blocks is verified (`node.verification`)."""
        self.ports = ports
        self.store = store
        self.network = network_id(store.configuration)
        self.receipts = Receipts()
        self.damage = DamageNotice(is_whole=not store.has_lost_blocks())
        self._disk = RoomAwaitingDisk(ports.disk, ports.clock)
        self._key = key
        self._is_voter = NodeId(key.public) in store.configuration.voters
        self._maker = self._snapshot_maker(ports.snapshots) if ports.snapshots is not None else None
        self.applier = Applier(store, self._disk, self.receipts, self._maker)
        self.verification = Verification(
            self.network, ports.workers, ports.log, ports.entropy if samples_history else None
        )
        changing_history = trio.Lock()
        self._installer: Installer | None = None
        self.state_check: StateCheck | None = None
        if ports.snapshots is not None and self._maker is not None:
            claims = self._claims(ports.snapshots)
            self._installer = self._snapshot_installer(ports.snapshots, claims, changing_history)
            self.state_check = StateCheck(
                ports.snapshots, self._maker, claims, clock=ports.clock, log=ports.log
            )
        self._history = History(
            store,
            self.applier,
            disk=self._disk,
            changing=changing_history,
            transport=ports.transport,
            verification=self.verification,
            clock=ports.clock,
            log=ports.log,
        )
        self.consensus: Consensus | None = None
        self._is_voting = False
        self.follower = Follower(
            store=store,
            applier=self.applier,
            transport=ports.transport,
            verification=self.verification,
            clock=ports.clock,
            entropy=ports.entropy,
            log=ports.log,
            installer=self._installer,
        )
        if self._is_voter and not store.is_rebuilt():
            self.consensus = self._voter()
        self.submitter = Submitter(
            ledger=self.network,
            store=store,
            receipts=self.receipts,
            transport=ports.transport,
            clock=ports.clock,
            leader=self.leader,
            propose=self.propose,
        )

    def _snapshot_maker(self, space: SnapshotSpace) -> SnapshotMaker:
        ports = self.ports
        return SnapshotMaker(
            space,
            self.store,
            key=self._key if self._is_voter else None,
            workers=ports.workers,
            clock=ports.clock,
            log=ports.log,
        )

    def _claims(self, space: SnapshotSpace) -> Claims:
        ports = self.ports
        return Claims(
            SnapshotStore(space.rows),
            self.store.configuration,
            transport=ports.transport,
            verification=self.verification,
            clock=ports.clock,
        )

    def _snapshot_installer(
        self, space: SnapshotSpace, claims: Claims, changing_history: trio.Lock
    ) -> Installer:
        ports = self.ports
        return Installer(
            space,
            self.store,
            self.applier,
            claims,
            disk=self._disk,
            changing_history=changing_history,
            transport=ports.transport,
            verification=self.verification,
            workers=ports.workers,
            clock=ports.clock,
            entropy=ports.entropy,
            log=ports.log,
        )

    def _voter(self) -> Consensus:
        mark = self.applier.mark
        tail = tuple(self.store.blocks(Height(mark.height + 1), self.store.tip_height()))
        raft = Raft(
            key=self._key,
            network=self.network,
            configuration=self.store.configuration,
            hard_state=self.store.hard_state() or HardState.initial(),
            log=Log(self.store, mark.height, mark.frontier, tail),
            timeout_seed=self.ports.entropy.bytes(32),
        )
        return Consensus(
            raft=raft,
            store=self.store,
            disk=self._disk,
            transport=self.ports.transport,
            verification=self.verification,
            clock=self.ports.clock,
            applied=self.applier.height,
        )

    def leader(self) -> NodeId | None:
        """Return who leads, as far as this node knows; None when nobody does."""
        if self.consensus is not None:
            return self.consensus.raft.leader
        return self.follower.last_leader

    @property
    def is_voting(self) -> bool:
        """Whether this voter has made sure that it remembers what it signed, and signs."""
        return self._is_voting

    async def propose(self, raw: tuple[bytes, ...]) -> None:
        """Check transactions and queue those that hold for the next block.

        Raises:
            RemoteFault: one does not hold; the others were queued.
            NotLeader: this node does not lead.
            Unavailable: it has more to do than it can.
        """
        if self.consensus is None or self.leader() != self.ports.transport.me:
            raise NotLeader(self.leader())
        entries, held, fault = await self.verification.sift_transactions(raw)
        if held:
            self.consensus.propose(entries, held)
        if fault is not None:
            raise fault

    async def _answer_submit(self, _peer: NodeId, body: bytes) -> bytes:
        raw = codec.unpack_byte_strings(body, limits.CONSENSUS_INPUTS_MAX)
        try:
            await self.propose(raw)
        except Unavailable:
            return AGAIN  # an error would read as a refusal of the bytes
        return b""

    async def _answer_watermark(self, peer: NodeId, _body: bytes) -> bytes:
        if self.consensus is None:
            raise Unavailable("this voter is itself rejoining")
        return watermark_of(self.consensus.raft, self.store, peer)

    async def run(self) -> None:
        """Run until cancelled."""
        transport, space = self.ports.transport, self.ports.snapshots
        unit = space.unit if space is not None else None
        transport.serve_stream(BLOCKS, BlockServer(self.store, self.ports.log, unit, self.damage).serve)
        if self._is_voter:
            transport.serve(WATERMARK, self._answer_watermark)
            transport.serve(SUBMIT, self._answer_submit)
        if space is not None:
            SnapshotServer(space, self.ports.workers).serve(transport)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.submitter.run)
            nursery.start_soon(self._history.run)
            if self._maker is not None and self._installer is not None:
                nursery.start_soon(self._maker.run)
                nursery.start_soon(self._installer.run)
            if self.state_check is not None and self._is_voter:
                nursery.start_soon(self.state_check.run)
            if not self._is_voter:
                await self.follower.run()
            await self.damage.whole.wait()  # a voter acknowledges nothing that it does not hold
            if self.consensus is not None:
                self.consensus = await self._recall(await self._begun(self.consensus))
            if self.consensus is None:
                self.consensus = await self._rejoin()
            while True:
                behind = await self._vote(self.consensus)
                self.consensus = None
                self.consensus = await self._follow_past(behind)

    async def _begun(self, consensus: Consensus) -> Consensus:
        """Return the voter to run: one that has never taken part begins with a snapshot where the network is far ahead."""
        if self._installer is None or self.store.hard_state() is not None:
            return consensus
        is_installed = await self._installer.attempt(Height(self._installer.lag))
        return self._voter() if is_installed else consensus

    async def _recall(self, consensus: Consensus) -> Consensus | None:
        """Make sure that this voter knows what it has signed; None when it does not and has to rejoin."""
        hard_state = self.store.hard_state()
        if hard_state is None:
            return consensus  # who has signed nothing has forgotten nothing
        recall = Recall(self.store.configuration, self.ports.transport, self.ports.clock, self.store)
        known = await recall.wait(hard_state)
        if not recall.is_sure:
            self.ports.log.info("voting again without the word of every other voter")
        if known == hard_state:
            return consensus
        batch = Batch()
        if known is None:
            self.ports.log.warning(
                "this ledger lacks what this voter had acknowledged: its disk has lost it, or it is an older copy"
            )
            self.store.put_forgotten(batch)
        else:
            self.store.put_hard_state(batch, known)
        await self._disk.commit(batch, sync=True)
        return self._voter() if known is not None else None

    async def _rejoin(self) -> Consensus:
        """Follow until it is safe to sign again, then return the voter to run."""
        self.ports.log.warning(
            "the ledger was rebuilt, or lacks its end: this voter signs nothing until it has caught up"
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.follower.run)
            rejoin = Rejoin(
                self.store.configuration, self.ports.transport, self.ports.clock, self.applier.height
            )
            hard_state = await rejoin.wait()
            nursery.cancel_scope.cancel()
        batch = Batch()
        self.store.put_hard_state(batch, hard_state)
        self.store.clear_rebuilt(batch)
        await self._disk.commit(batch, sync=True)
        self.ports.log.info("caught up; voting again", height=self.applier.height.value)
        return self._voter()

    async def _vote(self, consensus: Consensus) -> Height:
        """Vote until the leader says that it has no more blocks for this log; return about how far it has come."""
        transport = self.ports.transport
        announcer = Announcer(transport, consensus.raft, self.ports.log)
        # Voters have the blocks from the leader; a voter that rejoins pulls.
        followed = any(member.role != "voter" for member in self.store.configuration.members)
        send, receive = trio.open_memory_channel[Committed](_COMMITTED_MAX)
        self._is_voting = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announcer.run)
            nursery.start_soon(
                self.applier.run, receive, announcer.announce if followed else _announce_to_nobody
            )
            nursery.start_soon(consensus.run, send)
            behind = await consensus.wait_behind()
            nursery.cancel_scope.cancel()
        self._is_voting = False
        return behind

    async def _follow_past(self, height: Height) -> Consensus:
        """Follow, by a snapshot or by blocks of any member, until past `height`; return the voter to run, which has kept its promises."""
        self.ports.log.info("the leader lacks the next blocks; following other members", height=height)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(self.follower.run, is_behind=True))
            await self.applier.height.wait_above(Height(height - 1))
            nursery.cancel_scope.cancel()
        self.ports.log.info("caught up; voting again", height=self.applier.height.value)
        return self._voter()


async def _announce_to_nobody(_committed: Committed) -> None:
    """Announce nothing: a signed gossip message for each block, and nobody who follows."""
