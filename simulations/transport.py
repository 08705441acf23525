"""The virtual `PeerTransport`: one incarnation of one node on the simulated network, with the real one's semantics."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import trio

from node.ports import CallHandler, PeerStatus, StreamHandler
from protocol import limits
from protocol.errors import CarechainError, LocalFault, RemoteFault, Unavailable
from protocol.identifiers import NodeId
from simulations.network import Network

_STALL_S = 5.0
"""A stream that brings nothing for so long is given up."""
_PIECES_MAX = 4
"""Pieces of a stream on their way: the window of flow control."""


class _Outcome:
    """What a call or a stream is waiting for."""

    __slots__ = ("answer", "done", "error", "peer")

    def __init__(self, peer: "VirtualTransport") -> None:
        self.peer = peer
        self.done = trio.Event()
        self.answer = b""
        self.error: CarechainError | None = None

    def fail(self, error: CarechainError) -> None:
        """End in an error, unless it has ended."""
        if not self.done.is_set():
            self.error = error
            self.done.set()

    def succeed(self, answer: bytes) -> None:
        """End with an answer, unless it has ended."""
        if not self.done.is_set():
            self.answer = answer
            self.done.set()


_Piece = bytes | CarechainError | None
"""A piece of a stream, its failure, or its orderly end."""


class VirtualTransport:
    """Messages of one incarnation. `nursery` is its own: what it serves ends with it."""

    def __init__(
        self,
        me: NodeId,
        members: tuple[NodeId, ...],
        network: Network,
        nursery: trio.Nursery,
        *,
        broke: Callable[[str], None] = lambda _: None,
        sent: Callable[[str, bytes], None] = lambda *_: None,
    ) -> None:
        """`broke` hears of handlers that ended in an error that is none of ours, `sent` of each message (channel, body)."""
        self._me = me
        self._others = tuple(sorted(node for node in members if node != me))
        self._network = network
        self._nursery = nursery
        self._broke = broke
        self._sent = sent
        self._handlers: dict[str, CallHandler] = {}
        self._stream_handlers: dict[str, StreamHandler] = {}
        self._inboxes: dict[str, trio.MemorySendChannel[tuple[NodeId, bytes]]] = {}
        self._topics: dict[str, trio.MemorySendChannel[tuple[NodeId, bytes]]] = {}
        self._calls: dict[int, _Outcome] = {}
        self._call_count = 0
        self._in_hand: dict[NodeId, int] = {}

    @property
    def me(self) -> NodeId:
        """This node's own id."""
        return self._me

    def peers(self) -> tuple[PeerStatus, ...]:
        """Return the status of every other member, sorted by node id."""
        status = []
        for node in self._others:
            up = self._network.is_connected(self._me, node)
            status.append(PeerStatus(node, up, _address(node), "genesis"))
        return tuple(status)

    def addresses(self) -> tuple[str, ...]:
        """Return the name under which the network knows this node; nobody dials it."""
        return (_address(self._me),)

    # --- one way --------------------------------------------------------------------------------------------------

    def send(self, peer: NodeId, channel: str, body: bytes) -> None:
        """Queue one message without an answer; dropped when the peer is away or its queue full."""
        _check_size(body, limits.MESSAGE_BYTES_MAX)
        network = self._network
        if network.is_present(self):
            self._sent(channel, body)
        if network.is_present(self) and network.is_connected(self._me, peer):
            target = network.connected(self._me, peer)
            network.post(self._me, target, lambda: target.take(channel, self._me, body), lossy=True)

    def inbox(self, channel: str, size: int) -> trio.MemoryReceiveChannel[tuple[NodeId, bytes]]:
        """Return the queue of messages on `channel`; when it is full, new ones are dropped."""
        return _queue(self._inboxes, channel, size)

    def take(self, channel: str, source: NodeId, body: bytes) -> None:
        """Take a message that has arrived."""
        _offer(self._inboxes.get(channel), source, body)

    async def publish(self, topic: str, body: bytes) -> None:
        """Gossip a message to every subscriber, best effort."""
        _check_size(body, limits.PUBLISH_BYTES_MAX)
        await trio.lowlevel.checkpoint()
        for peer in self._network.running():
            if peer is not self:
                self._publish_to(peer, topic, body)

    def _publish_to(self, peer: "VirtualTransport", topic: str, body: bytes) -> None:
        self._network.post(self._me, peer, lambda: peer.hear(topic, self._me, body), lossy=True)

    def subscribe(self, topic: str, size: int) -> trio.MemoryReceiveChannel[tuple[NodeId, bytes]]:
        """Return the queue of (publisher, body); when it is full, new ones are dropped."""
        return _queue(self._topics, topic, size)

    def hear(self, topic: str, source: NodeId, body: bytes) -> None:
        """Take gossip that has arrived."""
        _offer(self._topics.get(topic), source, body)

    # --- calls ----------------------------------------------------------------------------------------------------

    def serve(self, channel: str, handler: CallHandler) -> None:
        """Answer calls on `channel`."""
        if channel in self._handlers:
            raise LocalFault(f"calls on {channel} have a handler")
        self._handlers[channel] = handler

    async def call(self, peer: NodeId, channel: str, body: bytes, *, timeout_ms: int) -> bytes:
        """Return the peer's answer to one request (see `ports.PeerTransport.call`)."""
        _check_size(body, limits.MESSAGE_BYTES_MAX)
        target = self._network.connected(self._me, peer)
        outcome = _Outcome(target)
        self._call_count += 1
        number = self._call_count
        self._calls[number] = outcome
        try:
            self._network.post(
                self._me, target, lambda: target.accept(self, channel, body, outcome), lossy=False
            )
            with trio.move_on_after(timeout_ms / 1000):
                await outcome.done.wait()
        finally:
            del self._calls[number]
        if outcome.error is not None:
            raise outcome.error
        if not outcome.done.is_set():
            raise Unavailable(f"no answer from {peer.hex()[:16]} within {timeout_ms} ms")
        return outcome.answer

    def accept(self, caller: "VirtualTransport", channel: str, body: bytes, outcome: _Outcome) -> None:
        """Take a request that has arrived."""
        handler = self._handlers.get(channel)
        in_hand = self._in_hand.get(caller.me, 0)
        if handler is None:
            self._answer(caller, lambda: outcome.fail(Unavailable("nobody serves this channel yet")))
        elif in_hand >= limits.CALLS_IN_HAND_PER_PEER_MAX:
            self._answer(caller, lambda: outcome.fail(Unavailable("busy")))
        else:
            self._in_hand[caller.me] = in_hand + 1
            self._nursery.start_soon(self._handle, handler, caller, body, outcome)

    async def _handle(
        self, handler: CallHandler, caller: "VirtualTransport", body: bytes, outcome: _Outcome
    ) -> None:
        try:
            answer = await handler(caller.me, body)
        except Exception as error:  # noqa: BLE001 - a handler's bug must not end the node; it is reported
            refusal = RemoteFault(self._refusal(error))
            self._answer(caller, lambda: outcome.fail(refusal))
        else:
            self._answer(caller, lambda: outcome.succeed(answer))
        finally:
            self._in_hand[caller.me] -= 1

    def _answer(self, caller: "VirtualTransport", deliver: Callable[[], None]) -> None:
        if self._network.is_present(self):
            self._network.post(self._me, caller, deliver, lossy=False)

    def _refusal(self, error: Exception) -> str:
        if isinstance(error, CarechainError) and not isinstance(error, LocalFault):
            return str(error)
        self._broke(f"a handler failed: {type(error).__name__}: {error}")
        return "internal error"

    def lost(self, peer: "VirtualTransport") -> None:
        """Hear that an incarnation of a peer is gone: calls to it break."""
        for outcome in self._calls.values():
            if outcome.peer is peer:
                outcome.fail(Unavailable(f"the connection to {peer.me.hex()[:16]} broke"))

    # --- streams --------------------------------------------------------------------------------------------------

    def serve_stream(self, channel: str, handler: StreamHandler) -> None:
        """Answer fetches on `channel`."""
        if channel in self._stream_handlers:
            raise LocalFault(f"fetches on {channel} have a handler")
        self._stream_handlers[channel] = handler

    @contextlib.asynccontextmanager
    async def _fetch(self, peer: NodeId, channel: str, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        target = self._network.connected(self._me, peer)
        send, receive = trio.open_memory_channel[_Piece](_PIECES_MAX)
        self._network.post(self._me, target, lambda: target.open(self, channel, body, send), lossy=False)
        async with receive, contextlib.aclosing(_pieces(receive, peer)) as pieces:
            yield pieces

    def fetch(
        self, peer: NodeId, channel: str, body: bytes
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Ask for a stream of frames (see `ports.PeerTransport.fetch`)."""
        _check_size(body, limits.MESSAGE_BYTES_MAX)
        return self._fetch(peer, channel, body)

    def open(
        self, caller: "VirtualTransport", channel: str, body: bytes, send: trio.MemorySendChannel[_Piece]
    ) -> None:
        """Take a request for a stream that has arrived."""
        self._nursery.start_soon(self._stream, self._stream_handlers.get(channel), caller, body, send)

    async def _stream(
        self,
        handler: StreamHandler | None,
        caller: "VirtualTransport",
        body: bytes,
        send: trio.MemorySendChannel[_Piece],
    ) -> None:
        async with send:
            # The reader left, or the link was cut: the stream is reset and the reader notices by itself.
            with contextlib.suppress(trio.BrokenResourceError):
                if handler is None:
                    await self._send_piece(caller, send, Unavailable("nobody serves this channel yet"))
                    return
                try:
                    pieces = handler(caller.me, body)
                    try:
                        async for piece in pieces:
                            await self._send_piece(caller, send, piece)
                    finally:
                        if isinstance(pieces, AsyncGenerator):
                            await pieces.aclose()
                    await self._send_piece(caller, send, None)
                except trio.BrokenResourceError:
                    raise
                except Exception as error:  # noqa: BLE001 - as in _handle
                    await self._send_piece(caller, send, RemoteFault(self._refusal(error)))

    async def _send_piece(
        self, caller: "VirtualTransport", send: trio.MemorySendChannel[_Piece], piece: _Piece
    ) -> None:
        await self._network.carry(self._me, caller.me)
        if self._network.is_cut(self._me, caller.me) or not self._network.is_present(caller):
            raise trio.BrokenResourceError
        await send.send(piece)


async def _pieces(receive: trio.MemoryReceiveChannel[_Piece], peer: NodeId) -> AsyncGenerator[bytes, None]:
    while True:
        piece: _Piece = Unavailable(f"the stream from {peer.hex()[:16]} was cut off")
        with trio.move_on_after(_STALL_S), contextlib.suppress(trio.EndOfChannel):
            piece = await receive.receive()
        if isinstance(piece, CarechainError):
            raise piece
        if piece is None:
            return
        yield piece


def _address(node: NodeId) -> str:
    return f"/memory/{int.from_bytes(node[:8], 'big')}"


def _check_size(body: bytes, bytes_max: int) -> None:
    if len(body) > bytes_max:
        raise LocalFault(f"a message of {len(body)} bytes is over the limit of {bytes_max}")


def _queue(
    queues: dict[str, trio.MemorySendChannel[tuple[NodeId, bytes]]], name: str, size: int
) -> trio.MemoryReceiveChannel[tuple[NodeId, bytes]]:
    known = queues.get(name)
    if known is not None and known.statistics().open_receive_channels:
        raise LocalFault(f"{name} has a queue")
    queues[name], receive = trio.open_memory_channel[tuple[NodeId, bytes]](size)
    return receive


def _offer(queue: trio.MemorySendChannel[tuple[NodeId, bytes]] | None, source: NodeId, body: bytes) -> None:
    # Full, or nobody reads any more: dropped, as the port promises.
    with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError):
        if queue is not None:
            queue.send_nowait((source, body))
