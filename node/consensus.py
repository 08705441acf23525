"""The one task that owns Raft: persist, then send, then hand on (etcd/raft's contract; ledger.md decision 5).

Inputs come through one bounded queue: ticks, peers' messages (their blocks' bodies already checked in worker threads),
proposals. Every turn steps all that is queued, cuts a block when one may be cut, and persists everything that came of
it in ONE synchronised batch: group commit. Messages leave only after that; committed blocks then go to the applier.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import trio

from node.applier import AppliedHeight, Committed
from node.pool import Pool
from node.ports import Clock, Disk, PeerTransport
from node.verification import Verification
from protocol import codec, limits
from protocol.block import Block, Entries
from protocol.errors import Invalid, NotLeader, RemoteFault, Unavailable
from protocol.identifiers import Height, NodeId, Term
from protocol.raft.machine import Raft
from protocol.raft.messages import AppendEntries, CheckedAppend, Input, Message
from protocol.raft.state import Ready
from storage.key_value import Batch
from storage.ledger_store import LedgerStore

CHANNEL = "consensus"
_BLOCKS_IN_FLIGHT = 4
"""Blocks cut and not yet committed before the next waits for a free slot: deep enough to hide fsync and one hop."""
_CHECKS_IN_FLIGHT = 64
"""Messages of peers being checked at once; when as many wait, the transport's inbox fills and drops (Raft re-sends)."""


@dataclass(frozen=True, slots=True)
class _Tick:
    now_ms: int


@dataclass(frozen=True, slots=True)
class _FromPeer:
    sender: NodeId
    message: Input


@dataclass(frozen=True, slots=True)
class _Distrust:
    leader: NodeId


@dataclass(frozen=True, slots=True)
class _Proposal:
    entries: Entries
    transactions: tuple[bytes, ...]


_Input = _Tick | _FromPeer | _Distrust | _Proposal


class Consensus:
    """Drives one voter's Raft core."""

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
    ) -> None:
        self.raft = raft
        self._store = store
        self._disk = disk
        self._transport = transport
        self._verification = verification
        self._clock = clock
        self._applied = applied
        self._pool = Pool()
        self._send_input, self._inputs = trio.open_memory_channel[_Input](limits.CONSENSUS_INPUTS_MAX)
        self._led_term: Term | None = None
        self._queued_bytes = 0
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
            self._send_input.send_nowait(_Proposal(entries, transactions))
        except trio.WouldBlock:
            raise Unavailable("the leader has more to do than it can; retry in a moment") from None
        self._queued_bytes += size

    async def run(self, committed: trio.MemorySendChannel[Committed]) -> None:
        """Run until cancelled; what is committed leaves through `committed`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            nursery.start_soon(self._receive)
            await self._drive(committed)

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep_ms(limits.TICK_MS)
            await self._send_input.send(_Tick(self._clock.now_ms()))

    async def _receive(self) -> None:
        """Check what peers send, several messages at a time, and queue it in the order it came."""
        ordered, slots = trio.open_memory_channel[_Slot](_CHECKS_IN_FLIGHT)

        async def deliver() -> None:
            async for slot in slots:
                await slot.done.wait()
                if slot.input is not None:
                    await self._send_input.send(slot.input)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(deliver)
            async for sender, body in self._transport.inbox(CHANNEL, limits.CONSENSUS_INPUTS_MAX):
                slot = _Slot()
                await ordered.send(slot)
                nursery.start_soon(self._check, sender, body, slot)

    async def _check(self, sender: NodeId, body: bytes, slot: "_Slot") -> None:
        try:
            if sender not in self._store.configuration.voters:
                raise Invalid("a Raft message from a member that does not vote")
            message: Message = codec.decode_union(body, Message)
            if not isinstance(message, AppendEntries):
                slot.input = _FromPeer(sender, message)
            elif message.leader != sender:
                raise Invalid("a Raft message from somebody other than the voter it names")
            else:
                slot.input = _FromPeer(sender, await self._checked(message))
        except RemoteFault as fault:
            self._verification.reject(sender, fault)
            slot.input = _Distrust(sender)
        finally:
            slot.done.set()

    async def _checked(self, message: AppendEntries) -> CheckedAppend:
        # Blocks ahead of our clock go in as well: Raft holds them, and gives up a leader that stays ahead.
        blocks = tuple(Block.decode(raw) for raw in message.blocks)
        for block in blocks:
            await self._verification.check_block(block)
        return CheckedAppend(message, blocks)

    async def _drive(self, committed: trio.MemorySendChannel[Committed]) -> None:
        while True:
            turn = [await self._inputs.receive()]
            while len(turn) < limits.CONSENSUS_INPUTS_MAX:
                try:
                    turn.append(self._inputs.receive_nowait())
                except trio.WouldBlock:
                    break
            for item in turn:
                self._take(item)
            self._pool.applied(self._applied.value)
            self._lead()
            while (ready := self.raft.ready()) is not None:
                await self._fulfil(ready, committed)
                self._lead()

    def _take(self, item: _Input) -> None:
        match item:
            case _Tick(now_ms):
                self.raft.tick(now_ms)
            case _FromPeer(sender, message):
                try:
                    self.raft.step(sender, message, self._clock.now_ms())
                except RemoteFault as fault:
                    self._verification.reject(sender, fault)
            case _Distrust(leader):
                self.raft.distrust(leader)
            case _Proposal(entries, transactions):
                self._queued_bytes -= sum(map(len, transactions))
                for (signed, txid), raw in zip(entries, transactions, strict=True):
                    # A full pool drops the rest: whoever submitted it retries (back-pressure, no error to a stranger).
                    try:
                        self._pool.add(txid, raw, signed)
                    except Unavailable:
                        break

    def _lead(self) -> None:
        """Cut a block when there is something to order and a slot is free; not on a timer."""
        leads = self.raft.leader == self._transport.me
        led_term = self.raft.term if leads else None
        # Also when leadership was lost and won back within one turn: what the old term had in flight may be truncated.
        if led_term is None or led_term != self._led_term:
            self._pool.clear()
            self._cut.clear()
        self._led_term = led_term
        while (
            leads
            and len(self._pool)
            and self.raft.may_propose
            and self.raft.uncommitted_count < _BLOCKS_IN_FLIGHT
        ):
            entries, transactions = self._pool.take()
            height = self.raft.propose(transactions, self._clock.now_ms())
            self._pool.ordered(height, entries, transactions)
            self._cut[height] = transactions, entries

    async def _fulfil(self, ready: Ready, committed: trio.MemorySendChannel[Committed]) -> None:
        # A leader's frames promise nothing: its followers write while it does. (Its own acknowledgement, in the
        # proofs, waits for its own disk: `Log.persisted`.)
        self._send(message for message in ready.messages if isinstance(message[1], AppendEntries))
        if ready.hard_state is not None or ready.append or ready.truncate_from is not None:
            batch = Batch()
            if ready.truncate_from is not None:
                self._store.truncate(batch, ready.truncate_from)
            self._store.put_blocks(batch, ready.append)
            if ready.hard_state is not None:
                self._store.put_hard_state(batch, ready.hard_state)
            # Persist before sending: a vote or acknowledgement forgotten in a crash could be given twice (Raft §5.2).
            await self._disk.commit(batch, sync=True)
        self._send(message for message in ready.messages if not isinstance(message[1], AppendEntries))
        self._recall(ready.append)
        if ready.committed:
            assert ready.proof is not None, "what is committed is proven"
            await committed.send(Committed(ready.committed, ready.proof, is_stored=True))
        self.raft.advance(ready)

    def _send(self, messages: Iterable[tuple[NodeId, Message]]) -> None:
        encoded: dict[int, bytes] = {}
        for peer, message in messages:
            # The same message to several followers is encoded once.
            body = encoded.get(id(message))
            if body is None:
                body = encoded[id(message)] = codec.encode(message)
            self._transport.send(peer, CHANNEL, body)

    def _recall(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            transactions, entries = self._cut.pop(block.height, ((), ()))
            # Of the very tuple it was cut from, and of no other block that came to stand at its height.
            if transactions and block.transactions is transactions:
                block.remember(entries)


class _Slot:
    """The place of one received message in the order, filled when it has been checked."""

    __slots__ = ("done", "input")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.input: _Input | None = None
