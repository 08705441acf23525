"""The ledger part of a node, assembled from ports: consensus or following, applying, announcing, serving blocks.

`daemon` builds it on real ports, `simulations` on virtual ones: it is the same node. Wiring only, no behaviour.
"""

from dataclasses import dataclass, replace

import trio

from node.applier import Applier
from node.awaiting_disk import RoomAwaitingDisk
from node.block_server import CHANNEL as BLOCKS
from node.block_server import BlockServer
from node.catchup import Follower
from node.comparison import Comparison
from node.consensus import Consensus
from node.damage_notice import DamageNotice
from node.event_log import EventLog
from node.forks import Forks
from node.hearing import Hearing
from node.history import History
from node.pacing import Pace, Traffic
from node.participation import Outside, Participation
from node.pool import Place
from node.ports import Clock, Disk, Entropy, PeerTransport, Workers
from node.receipts import AGAIN, Receipts, Submitter
from node.receipts import CHANNEL as SUBMIT
from node.signature_processes import SignatureProcesses
from node.snapshot_claims import Claims, StateCheck
from node.snapshot_install import Installer
from node.snapshots import SnapshotMaker, SnapshotServer, SnapshotSpace
from node.standing import Standing
from node.standstill import TAIL_CHANNEL as TAIL
from node.standstill import Standstill
from node.tips import Tips
from node.verification import Verification
from node.watermark import CHANNEL as WATERMARK
from node.watermark import watermark_of
from protocol import codec, limits
from protocol.configuration import Configuration
from protocol.errors import NotFinal, NotLeader, Unavailable
from protocol.identifiers import Height, NodeId, Txid
from protocol.raft.machine import Raft
from protocol.signing import SigningKey
from protocol.tip_statement import Presence
from storage.ledger_store import LedgerStore
from storage.snapshot_store import SnapshotStore

READ_MS = 8_000


@dataclass(frozen=True, slots=True)
class Ports:
    """The seams of one node, real or virtual. `disk` is that of the ledger database.

    Without `snapshots` the node makes none and installs none: it follows by blocks alone. Without `processes` its threads
    verify all there is.
    """

    transport: PeerTransport
    disk: Disk
    workers: Workers
    clock: Clock
    entropy: Entropy
    log: EventLog
    snapshots: SnapshotSpace | None = None
    processes: SignatureProcesses | None = None


class Core:
    """One node's ledger.

    Voters, learners and witnesses run `consensus`; observers, and whoever has to rejoin, `follower` (`node.participation`).
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
        self._maker = self._snapshot_maker(ports.snapshots) if ports.snapshots is not None else None
        self.applier = Applier(store, self._disk, self.receipts, self._maker)
        self.verification = Verification(
            self.network,
            ports.workers,
            ports.log,
            ports.entropy if samples_history else None,
            None if samples_history else ports.processes,  # a sixteenth is not worth starting them
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
        self.hearing = Hearing()
        self.tips = Tips(key, self.network, ports.transport, ports.clock, ports.entropy)
        self.forks = Forks(store, self._disk, ports.transport, ports.log, self.hearing)
        self.follower = Follower(
            store=store,
            applier=self.applier,
            transport=ports.transport,
            verification=self.verification,
            clock=ports.clock,
            entropy=ports.entropy,
            log=ports.log,
            forks=self.forks,
            hearing=self.hearing,
            installer=self._installer,
        )
        self._participation = Participation(
            Outside(ports.transport, self._disk, ports.clock, ports.entropy, ports.log),
            store,
            key,
            applier=self.applier,
            verification=self.verification,
            follower=self.follower,
            installer=self._installer,
            damage=self.damage,
            is_waiting=lambda: self.receipts.is_waited_for,
            hearing=self.hearing,
            tips=self.tips,
        )
        self.pace = Pace(ports.clock, self._traffic)
        self.standstill = Standstill(store, self._disk)
        self.standing = Standing(NodeId(key.public), store, lambda: self.applier.mark.height, self._raft)
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
    def consensus(self) -> Consensus | None:
        """What runs Raft here; None while this member takes no part in it."""
        return self._participation.consensus

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
            key=self._key,
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

    def _raft(self) -> Raft | None:
        return self.consensus.raft if self.consensus is not None else None

    def _traffic(self) -> Traffic:
        raft, mark = self._raft(), self.applier.mark
        ahead = max(0, raft.tip_height - mark.height) if raft is not None else 0
        return Traffic(mark.time_ms, ahead, self.receipts.is_waited_for)

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
        return self._participation.is_voting

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

    def place_of(self, txid: Txid) -> Place | None:
        """Return where this node, as leader, will put a transaction that waits here; None where it can say nothing."""
        return self.consensus.place_of(txid) if self.consensus is not None else None

    async def _answer_submit(self, _peer: NodeId, body: bytes) -> bytes:
        raw = codec.unpack_byte_strings(body, limits.CONSENSUS_INPUTS_MAX)
        try:
            await self.propose(raw)
        except Unavailable:
            return AGAIN  # an error would read as a refusal of the bytes
        return b""

    async def _answer_watermark(self, peer: NodeId, body: bytes) -> bytes:
        raft = self._raft()
        if raft is None and self.ports.transport.me in self.store.configuration.participants:
            raise Unavailable("this member is itself rejoining")
        asker = codec.decode(body, Presence).nonce if body else b""
        if asker:
            self.tips.hear_presence(peer, asker)
        heard = self.tips.of(peer)
        if heard is not None and heard.statement.nonce == asker:
            heard = None
        mark = watermark_of(raft, self.store, peer, heard, is_sure=self.is_voting)
        return codec.encode(replace(mark, beside_ms=self.tips.presences.before_ms(peer, asker)))

    def say_farewell(self) -> None:
        """Tell the others that this process ends: its next life then starts without waiting whether this one still speaks."""
        self.tips.end(self.store.configuration.participants)

    async def run(self) -> None:
        """Run until cancelled."""
        transport, space = self.ports.transport, self.ports.snapshots
        unit = space.unit if space is not None else None
        transport.serve_stream(BLOCKS, BlockServer(self.store, self.ports.log, unit, self.damage).serve)
        transport.serve(WATERMARK, self._answer_watermark)
        transport.serve(SUBMIT, self._answer_submit)
        transport.serve_stream(TAIL, self.standstill.serve_tail)
        if space is not None:
            SnapshotServer(space, self.ports.workers).serve(transport)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.submitter.run)
            nursery.start_soon(self._history.run)
            nursery.start_soon(self.tips.listen)
            nursery.start_soon(Comparison(self.store, self.tips.of, self.forks, self.ports.clock).run)
            nursery.start_soon(
                self.tips.say, self._participation.standpoint, lambda: self.store.configuration.participants
            )
            if self._maker is not None and self._installer is not None:
                nursery.start_soon(self._maker.run)
                nursery.start_soon(self._installer.run)
            if self.state_check is not None:
                nursery.start_soon(self.state_check.run)
            nursery.start_soon(self.standstill.run, self._participation.run, self._participation.stop)
