"""The one task that owns Raft: persist, then send, then hand on (etcd/raft's contract; ledger.md decision 5).

Inputs come through one bounded queue: ticks, peers' messages (their blocks' bodies already checked in worker threads),
proposals. Every turn steps all that is queued, cuts a block when one may be cut, and persists everything that came of
it in ONE synchronised batch: group commit. Messages leave only after that; what is final then goes to the applier.
While the disk works the task goes on: heartbeats, frames and reads promise nothing and do not wait for it.
"""

import contextlib
from collections.abc import Callable, Iterable

import trio

from node.applier import AppliedHeight, Certified
from node.consensus_inputs import (
    Change,
    ConsensusInput,
    Distrust,
    FromPeer,
    Proposal,
    Read,
    Tick,
    Transfer,
    Written,
)
from node.consensus_reception import CHANNEL, URGENT_CHANNEL, Reception
from node.hearing import Hearing
from node.pool import Place, Pool
from node.ports import Clock, Disk, PeerTransport
from node.queueing import queue
from node.verification import Verification
from protocol import codec, limits
from protocol.block import Block, Entries
from protocol.configuration import Configuration
from protocol.errors import CarechainError, NotLeader, Refused, RemoteFault, Unavailable
from protocol.identifiers import Digest, Height, NodeId, Term, Txid
from protocol.raft.machine import Raft
from protocol.raft.messages import CheckedAppend, Message, is_urgent
from protocol.raft.state import ReadState, Ready
from storage.key_value import Batch
from storage.ledger_store import LedgerStore

_BLOCKS_IN_FLIGHT = 4
"""Blocks cut and not yet committed before the next waits for a free slot: deep enough to hide fsync and one hop."""
_WORTH_A_SLOT = 32
"""Transactions that a block carries before the one ahead of it is committed. Fewer wait for that: at 200 single submits a
second each block of its own cost the voters so much that they queued (p50 51 -> 21 ms, p99 93 -> 32 ms)."""
_PROMISED_BLOCKS, _OTHER_BLOCKS = 4, 4
"""A leader promises what goes into so many next blocks; between them may stand a configuration, and blocks that tell the time."""
_CHANGE_HOLD_MS = 1_000
"""So long a leader cuts no block while a configuration waits for what is under way."""


class Consensus:
    """Drives the Raft core of one voter, learner or witness."""

    def __init__(
        self,
        *,
        raft: Raft,
        store: LedgerStore,
        disk: Disk,
        transport: PeerTransport,
        verification: Verification,
        clock: Clock,
        applied: AppliedHeight,
        is_waiting: Callable[[], bool] = lambda: False,
        hearing: Hearing | None = None,
        expected: Callable[[], Digest | None] = lambda: None,
    ) -> None:
        """`is_waiting`: whether somebody here waits for a transaction to become final (P6).

        `expected` is the digest of the configuration that is pending in the applied state (ledger.md 7.1).
        """
        self.raft = raft
        self._store = store
        self._disk = disk
        self._transport = transport
        self._verification = verification
        self._clock = clock
        self._applied = applied
        self._is_waiting = is_waiting
        self._hearing = hearing or Hearing()
        self._expected = expected
        self._pool = Pool()
        self._send_input, self._inputs = trio.open_memory_channel[ConsensusInput](limits.CONSENSUS_INPUTS_MAX)
        # One at a time: a Ready that must be written comes only when the one before has been advanced.
        self._send_write, self._writes = trio.open_memory_channel[Ready](1)
        self._reception = Reception(
            raft,
            self._send_input,
            store=store,
            transport=transport,
            verification=verification,
            hearing=self._hearing,
        )
        self._reads: dict[int, Read] = {}
        self._led_term: Term | None = None
        self._queued_bytes = 0
        self._behind = Height(0)
        self._is_behind = trio.Event()
        self._change: Change | None = None
        # What this leader has cut and not yet written: parsed when it was checked, it need not be parsed again.
        self._cut: dict[Height, tuple[tuple[bytes, ...], Entries]] = {}

    def propose(self, entries: Entries, transactions: tuple[bytes, ...]) -> None:
        """Queue checked transactions, parsed and as bytes, for the next block.

        Raises:
            NotLeader: this node does not lead.
            Unavailable: the queue is full.
        """
        if self.raft.leader != self._transport.me:
            raise NotLeader(self.raft.leader)
        size = sum(map(len, transactions))
        try:
            if self._queued_bytes + size > limits.POOL_BYTES_MAX:
                raise trio.WouldBlock
            self._send_input.send_nowait(Proposal(entries, transactions))
        except trio.WouldBlock:
            raise Unavailable("the leader has more to do than it can; retry in a moment") from None
        self._queued_bytes += size

    def place_of(self, txid: Txid) -> Place | None:
        """Return where a transaction that waits here will stand; None where this node does not lead, or cannot promise it.

        The pool is first come first served, and nothing leaves it but into a block as long as this term lasts.
        """
        raft = self.raft
        if raft.leader != self._transport.me or raft.term != self._led_term:
            return None
        number = self._pool.blocks_until(txid, _PROMISED_BLOCKS)
        since = raft.tip_height
        return Place(raft.term, since, Height(since + number + _OTHER_BLOCKS)) if number else None

    async def read_index(self) -> Height:
        """Return the height that must be applied here before a read that begins now (ReadIndex, ledger.md decision 5).

        The caller limits the time: while no quorum answers, this waits.

        Raises:
            Unavailable: no leader is known, or the leadership moved meanwhile; ask again.
        """
        read = Read()
        await self._send_input.send(read)
        await read.done.wait()
        if read.height is None:
            raise Unavailable("no leader could confirm the newest height; retry in a moment")
        return read.height

    async def transfer_leadership(self, target: NodeId) -> None:
        """Ask the core to hand the leadership over; whether it happens shows in `raft.leader`.

        Raises:
            NotLeader: this node does not lead.
        """
        if self.raft.leader != self._transport.me:
            raise NotLeader(self.raft.leader)
        await self._send_input.send(Transfer(target))

    async def reconfigure(self, following: Configuration) -> None:
        """Propose a configuration block; while it waits for what is under way, no other block is cut.

        Raises:
            NotLeader: this node does not lead.
            Unavailable: it waited for too long, or a learner to promote has not caught up; ask again.
            Refused: it does not lawfully follow.
        """
        if self.raft.leader != self._transport.me:
            raise NotLeader(self.raft.leader)
        change = Change(following, self._clock.now_ms() + _CHANGE_HOLD_MS)
        await self._send_input.send(change)
        await change.done.wait()
        if change.refusal is not None:
            raise change.refusal

    async def wait_behind(self) -> Height:
        """Wait until the leader has said that it holds no more blocks for this log; return about how far it has come.

        The driver then ends this machine, follows others past that height and makes a new one (`protocol.raft`, 6).
        """
        await self._is_behind.wait()
        return self._behind

    async def run(self, certified: trio.MemorySendChannel[Certified]) -> None:
        """Run until cancelled; what is certified leaves through `certified`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            nursery.start_soon(self._reception.run)
            nursery.start_soon(self._write)
            await self._drive(certified)

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep_ms(limits.TICK_MS)
            await self._send_input.send(Tick(self._clock.now_ms()))

    async def _drive(self, certified: trio.MemorySendChannel[Certified]) -> None:
        while True:
            turn = [await self._inputs.receive()]
            while len(turn) < limits.CONSENSUS_INPUTS_MAX:
                try:
                    turn.append(self._inputs.receive_nowait())
                except trio.WouldBlock:
                    break
            for item in turn:
                if isinstance(item, Written):
                    await self._finish(item.ready, certified)
                else:
                    self._take(item)
            self._pool.applied(self._applied.value)
            self.raft.expect_configuration(self._expected())
            self._lead()
            while (ready := self.raft.ready()) is not None:
                await self._fulfil(ready, certified)
                if not self._lead() and ready.must_persist:
                    break  # what needs no write left before it: nothing else comes out until this is written

    def _take(self, item: Tick | FromPeer | Distrust | Proposal | Transfer | Read | Change) -> None:
        match item:
            case Tick(now_ms):
                self.raft.tick(now_ms, waiting=self._is_waiting())
            case FromPeer(sender, message):
                try:
                    self.raft.step(sender, message, self._clock.now_ms())
                except RemoteFault as fault:
                    self._verification.reject(sender, fault)
                    if isinstance(message, CheckedAppend):
                        self._hearing.refused(message.blocks)
                else:
                    self._hearing.hear(sender, message)
            case Distrust(leader):
                self.raft.distrust(leader)
            case Transfer(target):
                with contextlib.suppress(
                    NotLeader, Refused
                ):  # lost the leadership, or the target has left, meanwhile
                    self.raft.transfer_leadership(target)
            case Change():
                if self._change is not None:
                    self._change.answer(Unavailable("another request to change the membership followed"))
                self._change = item
            case Read():
                try:
                    self._reads[self.raft.read_index()] = item
                except Unavailable:
                    item.answer(None)
            case Proposal(entries, transactions):
                self._queued_bytes -= sum(map(len, transactions))
                for (signed, txid), raw in zip(entries, transactions, strict=True):
                    # A full pool drops the rest: whoever submitted it retries (back-pressure, no error to a stranger).
                    try:
                        self._pool.add(txid, raw, signed)
                    except Unavailable:
                        break

    def _lead(self) -> bool:
        """Cut a block when there is something to order and a slot is free, not on a timer; return whether one was cut."""
        leads = self.raft.leader == self._transport.me
        led_term = self.raft.term if leads else None
        # Also when leadership was lost and won back within one turn: what the old term had in flight may be truncated.
        if led_term is None or led_term != self._led_term:
            self._pool.clear()
            self._cut.clear()
        self._led_term = led_term
        tip = self.raft.tip_height
        if self._change is not None and not self._has_changed(self._change):
            return False  # what is under way is certified and applied first
        if leads and len(self._pool):
            self.raft.commit_acknowledged()
        while leads and len(self._pool) and self.raft.may_propose and self._has_slot():
            entries, transactions = self._pool.take()
            height = self.raft.propose(transactions, self._clock.now_ms())
            self._pool.ordered(height, entries, transactions)
            self._cut[height] = transactions, entries
        return self.raft.tip_height != tip

    def _has_changed(self, change: Change) -> bool:
        """Propose the configuration that waits; return whether it waits no longer."""
        refusal: CarechainError | None = None
        try:
            if self._applied.value < self.raft.tip_height:
                raise Unavailable("what is under way is not applied yet")
            self.raft.propose_configuration(change.following, self._clock.now_ms())
        except Unavailable as reason:
            if self._clock.now_ms() < change.until_ms:
                return False
            refusal = reason
        except (NotLeader, Refused) as reason:
            refusal = reason
        self._change = None
        change.answer(refusal)
        return True

    def _has_slot(self) -> bool:
        slots = _BLOCKS_IN_FLIGHT if len(self._pool) >= _WORTH_A_SLOT else 1
        return self.raft.uncommitted_count < slots

    async def _fulfil(self, ready: Ready, certified: trio.MemorySendChannel[Certified]) -> None:
        if ready.must_persist:
            # Persist before sending: a vote or acknowledgement forgotten in a crash could be given twice (Raft §5.2).
            self._send_write.send_nowait(ready)
        else:
            await self._finish(ready, certified)

    async def _write(self) -> None:
        """Write what the core wants durable, beside the task that owns it; an error of the disk ends the voter."""
        async for ready in self._writes:
            batch = Batch()
            if ready.truncate_from is not None:
                self._store.truncate(batch, ready.truncate_from)
            self._store.put_blocks(batch, ready.append)
            if ready.hard_state is not None:
                self._store.put_hard_state(batch, ready.hard_state)
            for certificate in ready.keep:
                self._store.put_certificate(batch, certificate)
            await self._disk.commit(batch, sync=True)
            await queue(self._send_input, Written(ready))

    async def _finish(self, ready: Ready, certified: trio.MemorySendChannel[Certified]) -> None:
        """Do what was waiting for the disk, and tell the core."""
        self._send(ready.messages)
        self._recall(ready.append)
        self._hearing.follow(ready.append)
        if ready.certified:
            assert ready.certificate is not None, "what is final has its certificate"
            self._hearing.final(ready.certificate)
            await queue(certified, Certified(ready.certified, ready.certificate, is_stored=True))
        for contradiction in ready.contradictions:
            self._hearing.contradiction(contradiction)
        self._answer(ready.reads)
        if ready.behind is not None:
            self._behind = ready.behind
            self._is_behind.set()
        self.raft.advance(ready)

    def _answer(self, reads: Iterable[ReadState]) -> None:
        for read in reads:
            self._reads.pop(read.request).answer(read.height)

    def _send(self, messages: Iterable[tuple[NodeId, Message]]) -> None:
        encoded: dict[int, bytes] = {}
        for peer, message in messages:
            # The same message to several followers is encoded once.
            body = encoded.get(id(message))
            if body is None:
                body = encoded[id(message)] = codec.encode(message)
            self._transport.send(peer, URGENT_CHANNEL if is_urgent(message) else CHANNEL, body)

    def _recall(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            transactions, entries = self._cut.pop(block.height, ((), ()))
            # Of the very tuple it was cut from, and of no other block that came to stand at its height.
            if transactions and block.transactions is transactions:
                block.remember(entries)
