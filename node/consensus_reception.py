"""What other members send to the task that owns Raft: heard only from members that take part, checked before it queues.

Messages are checked several at a time, blocks' bodies in worker threads, and queued in the order they came.
"""

from dataclasses import dataclass

import trio

from node.consensus_inputs import ConsensusInput, Distrust, FromPeer
from node.hearing import Hearing
from node.ports import PeerTransport
from node.queueing import queue
from node.verification import INLINE_MAX, Verification
from protocol import codec, limits
from protocol.block import Block
from protocol.errors import Invalid, RemoteFault
from protocol.identifiers import NodeId
from protocol.raft.machine import Raft
from protocol.raft.messages import AppendEntries, CheckedAppend, Message, is_urgent
from storage.ledger_store import LedgerStore

CHANNEL = "consensus"
URGENT_CHANNEL = "heartbeat"
"""Heartbeats and their answers: no block stands in their way, neither on the wire nor in the queue for verification."""
_CHECKS_IN_FLIGHT = 64
"""Messages of peers being checked at once; when as many wait, the transport's inbox fills and drops (Raft re-sends)."""


class Reception:
    """Run `run` beside the owner of `raft`; what holds goes to `inputs`, in the order it came."""

    def __init__(
        self,
        raft: Raft,
        inputs: trio.MemorySendChannel[ConsensusInput],
        *,
        store: LedgerStore,
        transport: PeerTransport,
        verification: Verification,
        hearing: Hearing,
    ) -> None:
        """`raft` is only looked at."""
        self._raft = raft
        self._inputs = inputs
        self._store = store
        self._transport = transport
        self._verification = verification
        self._hearing = hearing
        self._unchecked = 0
        """Messages that have a slot: what comes now waits behind them."""

    async def run(self) -> None:
        """Listen until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            nursery.start_soon(self._receive_urgent)

    def _is_heard(self, sender: NodeId) -> bool:
        """Return whether a member takes part in consensus, by what is applied or what is in the log, or has done so."""
        # Who was let go while it was away asks for votes; the core tells it, if it remembers.
        return (
            sender in self._store.configuration.participants
            or sender in self._raft.configuration.participants
            or self._store.configurations.left_at(sender) is not None
        )

    async def _receive(self) -> None:
        """Check what peers send, several messages at a time, and queue it in the order it came."""
        ordered, slots = trio.open_memory_channel[_Slot](_CHECKS_IN_FLIGHT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver, slots)
            async with self._transport.inbox(CHANNEL, limits.CONSENSUS_INPUTS_MAX) as inbox:
                async for sender, body in inbox:
                    read = self._read(sender, body)
                    if not self._unchecked and not (isinstance(read, _Append) and read.takes_long):
                        # Nothing to wait for and nothing ahead of it: a task of its own would cost more than the message.
                        checked = await self._checked(read) if isinstance(read, _Append) else read
                        await queue(self._inputs, checked)
                        continue
                    slot = _Slot()
                    self._unchecked += 1
                    await queue(ordered, slot)
                    nursery.start_soon(self._check, read, slot)

    async def _deliver(self, slots: "trio.MemoryReceiveChannel[_Slot]") -> None:
        async for slot in slots:
            await slot.done.wait()
            if slot.input is not None:
                await queue(self._inputs, slot.input)
            self._unchecked -= 1

    async def _receive_urgent(self) -> None:
        async with self._transport.inbox(URGENT_CHANNEL, limits.CONSENSUS_INPUTS_MAX) as inbox:
            async for sender, body in inbox:
                try:
                    message: Message = codec.decode_union(body, Message)
                    if not self._is_heard(sender) or not is_urgent(message):
                        raise Invalid("no heartbeat of a member that takes part in consensus")
                except RemoteFault as fault:
                    self._verification.reject(sender, fault)
                else:
                    await queue(self._inputs, FromPeer(sender, message))

    def _read(self, sender: NodeId, body: bytes) -> "ConsensusInput | _Append":
        """Return what a message is, or that its sender is not to be trusted; a frame's blocks are still to be checked."""
        try:
            if not self._is_heard(sender):
                raise Invalid("a Raft message from a member that takes no part in consensus")
            message: Message = codec.decode_union(body, Message)
            if not isinstance(message, AppendEntries):
                return FromPeer(sender, message)
            if message.leader != sender:
                raise Invalid("a Raft message from somebody other than the leader it names")
            # Blocks ahead of our clock go in as well: Raft holds them, and gives up a leader that stays ahead.
            blocks = tuple([Block.decode(raw) for raw in message.blocks])
            checked = CheckedAppend(message, blocks)
            return _Append(checked) if blocks else FromPeer(sender, checked)
        except RemoteFault as fault:
            self._verification.reject(sender, fault)
            return Distrust(sender)

    async def _check(self, read: "ConsensusInput | _Append", slot: "_Slot") -> None:
        try:
            slot.input = await self._checked(read)
        finally:
            slot.done.set()

    async def _checked(self, read: "ConsensusInput | _Append") -> ConsensusInput:
        if not isinstance(read, _Append):
            return read
        append = read.append
        sender = append.message.leader
        try:
            for number, block in enumerate(append.blocks):
                if number:  # small blocks are checked where they are, and may be many
                    await trio.lowlevel.checkpoint()
                await self._verification.check_block(block)
        except RemoteFault as fault:
            self._hearing.refused(append.blocks)
            self._verification.reject(sender, fault)
            return Distrust(sender)
        return FromPeer(sender, append)


@dataclass(frozen=True, slots=True)
class _Append:
    """A frame whose blocks were read, and not yet checked."""

    append: CheckedAppend

    @property
    def takes_long(self) -> bool:
        """Whether others can be checked meanwhile: in worker threads, or between two of its blocks."""
        return sum(len(block.transactions) for block in self.append.blocks) > INLINE_MAX


class _Slot:
    """The place of one received message in the order, filled when it has been checked."""

    __slots__ = ("done", "input")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.input: ConsensusInput | None = None
