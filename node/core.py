"""The ledger part of a node, assembled from ports: consensus or following, applying, announcing, serving blocks.

`daemon` builds it on real ports, `simulations` on virtual ones: it is the same node. Wiring only, no behaviour.
"""

from dataclasses import dataclass
from functools import partial

import trio

from node.applier import Applier, Certified
from node.awaiting_disk import RoomAwaitingDisk
from node.block_server import CHANNEL as BLOCKS
from node.block_server import BlockServer
from node.catchup import Follower
from node.consensus import Consensus
from node.damage_notice import DamageNotice
from node.event_log import EventLog
from node.forks import Forks
from node.gossip import Announcer
from node.history import History
from node.membership_leader import ExpectedConfiguration
from node.ports import Clock, Disk, Entropy, PeerTransport, Workers
from node.receipts import AGAIN, Receipts, Submitter
from node.receipts import CHANNEL as SUBMIT
from node.rejoin import CHANNEL as WATERMARK
from node.rejoin import Recall, Rejoin, watermark_of
from node.snapshot_claims import Claims, StateCheck
from node.snapshot_install import Installer
from node.snapshots import SnapshotMaker, SnapshotServer, SnapshotSpace
from node.standing import Standing
from node.verification import Verification
from protocol import codec, limits
from protocol.configuration import Configuration
from protocol.errors import NotFinal, NotLeader, Unavailable
from protocol.identifiers import Height, NodeId
from protocol.raft.log import Log
from protocol.raft.machine import Raft
from protocol.raft.state import Contradiction, HardState
from protocol.signing import SigningKey
from storage.key_value import Batch
from storage.ledger_store import LedgerStore
from storage.snapshot_store import SnapshotStore

_CERTIFIED_MAX = 64
"""Groups of certified blocks waiting for the applier; when full, consensus waits: the ledger never outruns its state."""

READ_MS = 8_000


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
    """One node's ledger.

    Voters, learners and witnesses run `consensus`; observers, and whoever has to rejoin, `follower`.
    """

    def __init__(
        self, ports: Ports, store: LedgerStore, key: SigningKey, *, samples_history: bool = False
    ) -> None:
        """With `samples_history` only a share of the signatures in certified blocks is verified (`node.verification`)."""
        self.ports = ports
        self.store = store
        self.network = store.network
        self.receipts = Receipts()
        self.damage = DamageNotice(is_whole=not store.has_lost_blocks())
        self._disk = RoomAwaitingDisk(ports.disk, ports.clock)
        self._key = key
        self._me = NodeId(key.public)
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
        self.forks = Forks(store, self._disk, ports.transport, ports.log)
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
            forks=self.forks,
            installer=self._installer,
        )
        if self._takes_part and not store.is_rebuilt():
            self.consensus = self._participant()
        self.standing = Standing(self._me, store, lambda: self.applier.mark.height, self._raft)
        self.submitter = Submitter(
            ledger=self.network,
            store=store,
            receipts=self.receipts,
            transport=ports.transport,
            clock=ports.clock,
            leader=self.leader,
            propose=self.propose,
            standing=self.standing,
        )

    @property
    def _takes_part(self) -> bool:
        """Whether this node takes part in consensus: as voter, learner or witness."""
        return self._me in self.store.configuration.participants

    @property
    def _is_signer(self) -> bool:
        return self._me in self.store.configuration.signers

    async def reconfigure(self, following: Configuration) -> None:
        """Propose a configuration block. Raises NotLeader, Unavailable, Refused as `Consensus.reconfigure`."""
        if self.consensus is None:
            raise NotLeader(self.leader())
        await self.consensus.reconfigure(following)

    def _snapshot_maker(self, space: SnapshotSpace) -> SnapshotMaker:
        ports = self.ports
        return SnapshotMaker(
            space,
            self.store,
            key=self._key if self._is_signer else None,
            workers=ports.workers,
            clock=ports.clock,
            log=ports.log,
        )

    def _claims(self, space: SnapshotSpace) -> Claims:
        ports = self.ports
        return Claims(
            SnapshotStore(space.rows),
            self.store,
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

    def _participant(self) -> Consensus:
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
            is_waiting=lambda: self.receipts.is_waited_for,
            contradicted=self._note_contradiction,
            expected=ExpectedConfiguration(self.store, self.applier.height).digest,
        )

    def _note_contradiction(self, contradiction: Contradiction) -> None:
        self.ports.log.error("a member has signed what contradicts itself", rule=contradiction.rule)

    def _raft(self) -> Raft | None:
        return self.consensus.raft if self.consensus is not None else None

    def leader(self) -> NodeId | None:
        """Return who leads, as far as this node knows; None when nobody does."""
        if self.consensus is not None:
            return self.consensus.raft.leader
        return self.follower.last_leader

    async def read_index(self, *, timeout_ms: int = READ_MS) -> Height:
        """Return the height of a linearizable read, once it is applied here (ledger.md decision 5).

        Raises:
            NotFinal: not in time; the text says how old the newest final block is.
            Unavailable: this member takes no part in consensus, or nobody leads.
        """
        with trio.move_on_after(timeout_ms / 1000):
            if self.consensus is None:
                raise Unavailable("this member follows by gossip; ask one that takes part in consensus")
            index = await self.consensus.read_index()
            await self.applier.height.wait_above(Height(index - 1))
            return index
        mark = self.applier.mark
        age_s = max(0, self.ports.clock.now_ms() - mark.time_ms) / 1000
        raise NotFinal(f"not final yet: the newest final block is {mark.height}, {age_s:.0f} s old")

    @property
    def is_voting(self) -> bool:
        """Whether this member has made sure that it remembers what it signed, and signs."""
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
            raise Unavailable("this member is itself rejoining")
        return watermark_of(self.consensus.raft, self.store, peer)

    async def run(self) -> None:
        """Run until cancelled."""
        transport, space = self.ports.transport, self.ports.snapshots
        unit = space.unit if space is not None else None
        transport.serve_stream(BLOCKS, BlockServer(self.store, self.ports.log, unit, self.damage).serve)
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
            if self.state_check is not None and self._is_signer:
                nursery.start_soon(self.state_check.run)
            await self.damage.whole.wait()  # who takes part signs for nothing that it does not hold
            if self.consensus is not None:
                self.consensus = await self._recall(await self._begun(self.consensus))
            if self.consensus is None and self._takes_part:
                self.consensus = await self._rejoin()
            while True:
                if self.consensus is None:
                    await self._follow_until_taking_part()
                    self.consensus = self._participant()
                behind = await self._vote(self.consensus)
                self.consensus = None
                if behind is not None:
                    self.consensus = await self._follow_past(behind)

    async def _follow_until_taking_part(self) -> None:
        """Follow the blocks of others until the configuration in force makes this node learner, voter or witness."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.follower.run)
            while not self._takes_part:
                await self.applier.height.wait_above(self.applier.height.value)
            nursery.cancel_scope.cancel()
        self.ports.log.info("taking part in consensus", height=self.applier.height.value)

    async def _until_let_go(self) -> None:
        while self._takes_part:
            await self.applier.height.wait_above(self.applier.height.value)

    async def _begun(self, consensus: Consensus) -> Consensus:
        """Return what to run: who has never taken part begins with a snapshot where the network is far ahead."""
        if self._installer is None or self.store.hard_state() is not None:
            return consensus
        is_installed = await self._installer.attempt(Height(self._installer.lag))
        return self._participant() if is_installed else consensus

    async def _recall(self, consensus: Consensus) -> Consensus | None:
        """Make sure that this member knows what it has signed; None when it does not and has to rejoin."""
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
        return self._participant() if known is not None else None

    async def _rejoin(self) -> Consensus:
        """Follow until it is safe to sign again, then return what to run."""
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
        return self._participant()

    async def _vote(self, consensus: Consensus) -> Height | None:
        """Take part until the leader says that it has no more blocks for this log; return about how far it has come.

        None when this node takes part no longer.
        """
        transport = self.ports.transport
        announcer = Announcer(transport, consensus.raft, self.ports.log)

        async def announce(certified: Certified) -> None:
            # Who takes part has the blocks from the leader: without others a gossip message for each block is for nobody.
            configuration = self.store.configuration
            if len(configuration.participants) < len(configuration.members):
                await announcer.announce(certified)

        behind: Height | None = None

        async def until_let_go() -> None:
            await self._until_let_go()
            nursery.cancel_scope.cancel()

        send, receive = trio.open_memory_channel[Certified](_CERTIFIED_MAX)
        self._is_voting = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announcer.run)
            nursery.start_soon(self.applier.run, receive, announce)
            nursery.start_soon(until_let_go)
            nursery.start_soon(consensus.run, send)
            behind = await consensus.wait_behind()
            nursery.cancel_scope.cancel()
        self._is_voting = False
        return behind

    async def _follow_past(self, height: Height) -> Consensus:
        """Follow, by a snapshot or by blocks of any member, until past `height`; return what to run, which has kept its promises."""
        self.ports.log.info("the leader lacks the next blocks; following other members", height=height)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(self.follower.run, is_behind=True))
            await self.applier.height.wait_above(Height(height - 1))
            nursery.cancel_scope.cancel()
        self.ports.log.info("caught up; voting again", height=self.applier.height.value)
        return self._participant()
