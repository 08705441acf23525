"""What other members send to the task that owns Raft: heard only from members that take part, checked before it queues.

Messages are checked several at a time, blocks' bodies in worker threads, and queued in the order they came.
"""

import trio

from node.consensus_inputs import ConsensusInput, Distrust, FromPeer
from node.hearing import Hearing
from node.ports import PeerTransport
from node.verification import Verification
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

    async def run(self) -> None:
        """Listen until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            nursery.start_soon(self._receive_urgent)

    def _is_heard(self, sender: NodeId) -> bool:
        """Return whether a member takes part in consensus, by what is applied or what is in the log, or has done so."""
        known = (self._store.configuration, self._raft.configuration)
        # Who was let go while it was away asks for votes; the core tells it, if it remembers.
        return (
            any(sender in one.participants for one in known)
            or self._store.configurations.left_at(sender) is not None
        )

    async def _receive(self) -> None:
        """Check what peers send, several messages at a time, and queue it in the order it came."""
        ordered, slots = trio.open_memory_channel[_Slot](_CHECKS_IN_FLIGHT)

        async def deliver() -> None:
            async for slot in slots:
                await slot.done.wait()
                if slot.input is not None:
                    await self._inputs.send(slot.input)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(deliver)
            async with self._transport.inbox(CHANNEL, limits.CONSENSUS_INPUTS_MAX) as inbox:
                async for sender, body in inbox:
                    slot = _Slot()
                    await ordered.send(slot)
                    nursery.start_soon(self._check, sender, body, slot)

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
                    await self._inputs.send(FromPeer(sender, message))

    async def _check(self, sender: NodeId, body: bytes, slot: "_Slot") -> None:
        try:
            if not self._is_heard(sender):
                raise Invalid("a Raft message from a member that takes no part in consensus")
            message: Message = codec.decode_union(body, Message)
            if not isinstance(message, AppendEntries):
                slot.input = FromPeer(sender, message)
            elif message.leader != sender:
                raise Invalid("a Raft message from somebody other than the leader it names")
            else:
                slot.input = FromPeer(sender, await self._checked(message))
        except RemoteFault as fault:
            self._verification.reject(sender, fault)
            slot.input = Distrust(sender)
        finally:
            slot.done.set()

    async def _checked(self, message: AppendEntries) -> CheckedAppend:
        # Blocks ahead of our clock go in as well: Raft holds them, and gives up a leader that stays ahead.
        blocks = tuple(Block.decode(raw) for raw in message.blocks)
        for block in blocks:
            try:
                await self._verification.check_block(block)
            except RemoteFault:
                self._hearing.refused(blocks)
                raise
        return CheckedAppend(message, blocks)


class _Slot:
    """The place of one received message in the order, filled when it has been checked."""

    __slots__ = ("done", "input")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.input: ConsensusInput | None = None
