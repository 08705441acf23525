"""A `PeerTransport` whose peers say what a test scripts: the adversary of consensus, catch-up and submission tests."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

import trio

from node.ports import CallHandler, PeerStatus, StreamHandler
from protocol.errors import Unavailable
from protocol.identifiers import NodeId

Answer = Callable[[bytes], Awaitable[bytes]]
Stream = Callable[[bytes], AsyncGenerator[bytes, None]]


class ScriptedTransport:
    """`calls` and `streams` answer for peers; what is sent or published is kept; `deliver` and `gossip` bring messages."""

    def __init__(self, me: NodeId, peers: tuple[NodeId, ...] = ()) -> None:
        self._me = me
        self._peers = peers
        self.away: set[NodeId] = set()
        self.calls: dict[NodeId, Answer] = {}
        self.streams: dict[NodeId, Stream] = {}
        self.asked: list[tuple[NodeId, str, bytes]] = []
        self.sent: list[tuple[NodeId, bytes]] = []
        self.published: list[bytes] = []
        self.handlers: dict[str, CallHandler] = {}
        self.stream_handlers: dict[str, StreamHandler] = {}
        self._queues: dict[str, trio.MemorySendChannel[tuple[NodeId, bytes]]] = {}
        self.on_send: Callable[[NodeId, bytes], None] = lambda _peer, _body: None

    @property
    def me(self) -> NodeId:
        return self._me

    async def call(self, peer: NodeId, channel: str, body: bytes, *, timeout_ms: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self.asked.append((peer, channel, body))
        if peer not in self.calls:
            raise Unavailable("not connected")
        with trio.move_on_after(timeout_ms / 1000):
            return await self.calls[peer](body)
        raise Unavailable("timed out")

    def send(self, peer: NodeId, channel: str, body: bytes) -> None:
        self.on_send(peer, body)
        self.sent.append((peer, body))

    def fetch(
        self, peer: NodeId, channel: str, body: bytes
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[AsyncIterator[bytes]]:
            await trio.lowlevel.checkpoint()
            self.asked.append((peer, channel, body))
            if peer not in self.streams:
                raise Unavailable("not connected")
            async with aclosing(self.streams[peer](body)) as pieces:
                yield pieces

        return opened()

    def serve(self, channel: str, handler: CallHandler) -> None:
        self.handlers[channel] = handler

    def serve_stream(self, channel: str, handler: StreamHandler) -> None:
        self.stream_handlers[channel] = handler

    def inbox(self, channel: str, size: int) -> trio.MemoryReceiveChannel[tuple[NodeId, bytes]]:
        self._queues[channel], receive = trio.open_memory_channel[tuple[NodeId, bytes]](size)
        return receive

    def subscribe(self, topic: str, size: int) -> trio.MemoryReceiveChannel[tuple[NodeId, bytes]]:
        return self.inbox(topic, size)

    def deliver(self, channel: str, sender: NodeId, body: bytes) -> None:
        """Bring a message, or gossip, that a peer sent."""
        self._queues[channel].send_nowait((sender, body))

    async def publish(self, topic: str, body: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.published.append(body)

    def peers(self) -> tuple[PeerStatus, ...]:
        return tuple(PeerStatus(peer, peer not in self.away, "", "config") for peer in self._peers)

    def addresses(self) -> tuple[str, ...]:
        return ()
