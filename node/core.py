"""The ledger part of a node, assembled from ports: consensus or following, applying, announcing, serving blocks.

`daemon` builds it on real ports, `simulations` on virtual ones: it is the same node. Wiring only, no behaviour.
"""

from dataclasses import dataclass

import trio

from node.applier import Applier, Committed
from node.awaiting_disk import RoomAwaitingDisk
from node.catchup import CHANNEL as BLOCKS
from node.catchup import BlockServer, Follower
from node.consensus import Consensus
from node.event_log import EventLog
from node.gossip import Announcer
from node.ports import Clock, Disk, Entropy, PeerTransport, Workers
from node.receipts import AGAIN, Receipts, Submitter
from node.receipts import CHANNEL as SUBMIT
from node.rejoin import CHANNEL as WATERMARK
from node.rejoin import Recall, Rejoin, watermark_of
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

_COMMITTED_MAX = 64
"""Groups of committed blocks waiting for the applier; when full, consensus waits: the ledger never outruns its state."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The seams of one node, real or virtual. `disk` is that of the ledger database."""

    transport: PeerTransport
    disk: Disk
    workers: Workers
    clock: Clock
    entropy: Entropy
    log: EventLog


class Core:
    """One node's ledger. A voter runs `consensus`; everybody else, and a voter that has to rejoin, `follower`."""

    def __init__(self, ports: Ports, store: LedgerStore, key: SigningKey) -> None:
        self.ports = ports
        self.store = store
        self.network = network_id(store.configuration)
        self.receipts = Receipts()
        self._disk = RoomAwaitingDisk(ports.disk, ports.clock)
        self.applier = Applier(store, self._disk, self.receipts)
        self.verification = Verification(self.network, ports.workers, ports.log)
        self._key = key
        self._is_voter = NodeId(key.public) in store.configuration.voters
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
        self.ports.transport.serve_stream(BLOCKS, BlockServer(self.store, self.ports.log).serve)
        if self._is_voter:
            self.ports.transport.serve(WATERMARK, self._answer_watermark)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.submitter.run)
            if not self._is_voter:
                await self.follower.run()
            if self.consensus is not None:
                self.consensus = await self._recall(self.consensus)
            if self.consensus is None:
                self.consensus = await self._rejoin()
            await self._vote(self.consensus)

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

    async def _vote(self, consensus: Consensus) -> None:
        self._is_voting = True
        transport = self.ports.transport
        transport.serve(SUBMIT, self._answer_submit)
        announcer = Announcer(transport, consensus.raft, self.ports.log)
        # Voters have the blocks from the leader; a voter that rejoins pulls.
        followed = any(member.role != "voter" for member in self.store.configuration.members)
        send, receive = trio.open_memory_channel[Committed](_COMMITTED_MAX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announcer.run)
            nursery.start_soon(
                self.applier.run, receive, announcer.announce if followed else _announce_to_nobody
            )
            nursery.start_soon(consensus.run, send)


async def _announce_to_nobody(_committed: Committed) -> None:
    """Announce nothing: a signed gossip message for each block, and nobody who follows."""
