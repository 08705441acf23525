"""The asking side of one connection to one peer: our two persistent streams, and the calls in flight on them.

    opening ──► both Hellos answered: ready ──► any stream broke, wrong network, or no pong: over

A session never outlives its connection, and a broken stream ends the connection: the dialer makes a new one.
"""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any

import trio

from node.endpoints import parse_endpoint
from node.event_log import EventLog
from node.framing import (
    Answer,
    BulkReply,
    Call,
    End,
    Failure,
    Fetch,
    FrameBuffer,
    Hello,
    Message,
    Piece,
    Reply,
    frame,
)
from node.libp2p_kit import Stream, open_stream
from node.outbox import Outbox
from protocol.codec import decode
from protocol.errors import Invalid, RemoteFault, Unavailable
from protocol.identifiers import NodeId, peer_id

CONSENSUS_PROTOCOL = "/carechain/consensus/1"
HEARTBEAT_PROTOCOL = "/carechain/heartbeat/1"
CHUNKS_PROTOCOL = "/carechain/chunks/1"
MESSAGES_PROTOCOL = "/carechain/messages/1"
BULK_PROTOCOL = "/carechain/bulk/1"
PROTOCOL_OF_CHANNEL = {
    "consensus": CONSENSUS_PROTOCOL,
    "heartbeat": HEARTBEAT_PROTOCOL,
    "chunks": CHUNKS_PROTOCOL,
}
"""Channels with a stream of their own: a large answer must not delay an acknowledgement, nor a block a heartbeat.

Nor may a call that a transaction waits for, or the transaction on its way to the leader, stand behind some MiB of chunks."""
PERSISTENT_PROTOCOLS = (CONSENSUS_PROTOCOL, HEARTBEAT_PROTOCOL, CHUNKS_PROTOCOL, MESSAGES_PROTOCOL)
PING_INTERVAL_S = 3
PING_TIMEOUT_S = 5
RIVAL_S = 5
"""Two connections of one pair this close in time are a simultaneous dial: so long a handshake may take. Later, the newer one
replaces a dead one (`node.guests`)."""
CHALLENGE_S = 2
"""So soon a living connection answers when a newer one wants its place."""


class _PendingCall:
    def __init__(self) -> None:
        self.answered = trio.Event()
        self.reply: Answer | Failure | None = None


class PeerSession:
    """One connection to one member. `connection` is libp2p's SwarmConn."""

    def __init__(self, node: NodeId, connection: Any, *, inbound: bool, address: str, found_by: str) -> None:
        self.node = node
        self.connection = connection
        self.inbound = inbound
        self.address = address
        self.found_by = found_by
        self.opened_at = trio.current_time()
        self.is_ready = False
        self.is_over = False
        self._outboxes = {protocol: Outbox() for protocol in PERSISTENT_PROTOCOLS}
        self._pending: dict[int, _PendingCall] = {}
        self._next_request = 0
        self._greetings = 0

    @property
    def short(self) -> str:
        """The peer id, for logs and errors."""
        return peer_id(self.node)

    async def run(
        self, hello: Hello, greet: Callable[[NodeId, Hello], None], ready: Callable[[], None], log: EventLog
    ) -> None:
        """Keep the session until its connection breaks; then close the connection.

        `greet` takes each Hello of the peer and raises Invalid to end the session; `ready` is called once.
        """
        async with trio.open_nursery() as nursery:

            async def until_broken(part: Callable[[], Any]) -> None:
                try:
                    await part()
                except (trio.BrokenResourceError, RemoteFault) as error:
                    log.info(
                        "session ends", peer=self.short, error=type(error).__name__, reason=str(error)[:200]
                    )
                    if isinstance(error, Invalid):
                        # Our hello is on its way: let the other end read why before the connection goes.
                        await trio.sleep(0.2)
                nursery.cancel_scope.cancel()

            def greeted(peer_hello: Hello) -> None:
                greet(self.node, peer_hello)
                self._greetings += 1
                if self._greetings == len(PERSISTENT_PROTOCOLS):
                    self.is_ready = True
                    ready()

            for protocol, outbox in self._outboxes.items():
                nursery.start_soon(
                    until_broken, lambda p=protocol, o=outbox: self._talk(p, o, hello, greeted)
                )
            nursery.start_soon(until_broken, self._ping)
            nursery.start_soon(until_broken, self.connection.event_closed.wait)
        await self.close()

    async def close(self) -> None:
        """Fail the calls in flight and close the connection, within a second also when cancelled."""
        self.is_ready, self.is_over = False, True
        for pending in self._pending.values():
            pending.answered.set()
        with (
            trio.CancelScope(deadline=trio.current_time() + 1, shield=True),
            contextlib.suppress(Exception),
        ):  # libp2p raises many classes here; the socket is closed below
            await self.connection.close()
        with (
            contextlib.suppress(Exception),
            trio.CancelScope(deadline=trio.current_time() + 0.5, shield=True),
        ):  # closed already
            await self.connection.muxed_conn.secured_conn.close()

    def takes_address(self, addresses: Iterable[str]) -> bool:
        """Replace the passing port of a peer that dialled us by where it listens; return whether it says so."""
        for address in addresses:
            with contextlib.suppress(ValueError):  # not a multiaddr: its sender's loss
                listening, _ = parse_endpoint(address)
                if self.address.startswith(f"/{listening.kind}/{listening.host}/"):
                    self.address = str(listening)
                    return True
        return False

    async def is_alive(self) -> bool:
        """Return whether the other end still answers on this connection."""
        alive: bool = await self.connection.muxed_conn.ping(CHALLENGE_S)
        return alive

    def send(self, channel: str, body: bytes) -> bool:
        """Queue a message; False when the queue is full."""
        return self._outbox(channel).offer(frame(Message(channel, body)))

    def _outbox(self, channel: str) -> Outbox:
        return self._outboxes[PROTOCOL_OF_CHANNEL.get(channel, MESSAGES_PROTOCOL)]

    async def call(self, channel: str, body: bytes) -> bytes:
        """Return the answer to a call; the caller sets the time limit.

        Raises:
            Unavailable: the connection broke, or the peer is busy.
            RemoteFault: its handler refused.
        """
        self._next_request += 1
        request = self._next_request
        pending = self._pending[request] = _PendingCall()
        try:
            await self._outbox(channel).put(frame(Call(request, channel, body)))
            await pending.answered.wait()
        finally:
            del self._pending[request]
        match pending.reply:
            case Answer(_, answer):
                return answer
            case Failure(_, retry, text):
                raise Unavailable(text) if retry else RemoteFault(text)
            case None:
                raise Unavailable(f"the connection to {self.short} broke")

    @contextlib.asynccontextmanager
    async def fetch(self, request: Fetch) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a bulk stream and yield the iterator of its pieces; leaving early resets the stream.

        Raises:
            Unavailable: the peer went away.
        """
        try:
            stream = await open_stream(self.connection, BULK_PROTOCOL)
        except trio.BrokenResourceError as error:
            raise Unavailable(f"no bulk stream to {self.short}: {error}") from None
        try:
            try:
                await stream.write(frame(request))
            except trio.BrokenResourceError:
                raise Unavailable(f"the connection to {self.short} broke") from None
            async with contextlib.aclosing(_pieces(stream, self.short)) as pieces:
                yield pieces
        finally:
            await stream.reset()  # does nothing when both ends have finished

    async def _talk(
        self, protocol: str, outbox: Outbox, hello: Hello, greeted: Callable[[Hello], None]
    ) -> None:
        stream = await open_stream(self.connection, protocol)
        await stream.write(frame(hello))
        buffer, seen = FrameBuffer(), False
        async with trio.open_nursery() as nursery:
            try:
                while data := await stream.read():
                    for piece in buffer.feed(data):
                        # As in request_server: an alias of a union.
                        reply: Reply = decode(piece, Reply)  # type: ignore[arg-type]
                        if isinstance(reply, Hello):
                            if seen:
                                raise Invalid("a second hello")
                            seen = True
                            greeted(reply)
                            nursery.start_soon(self._write, outbox, stream)
                        elif seen:
                            self._complete(reply)
                        else:
                            raise Invalid("a stream begins with one hello")
            except (trio.BrokenResourceError, RemoteFault) as error:
                # Raised outside the nursery, which would wrap it in a group.
                broken: Exception = error
            else:
                broken = trio.BrokenResourceError("the peer ended the stream")
            nursery.cancel_scope.cancel()
        raise broken

    async def _write(self, outbox: Outbox, stream: Stream) -> None:
        try:
            while True:
                await stream.write(await outbox.take())
        except trio.BrokenResourceError:
            # The reading side of the same stream may not notice (a full window): end the session from here.
            await stream.reset()
            await self.close()

    async def _ping(self) -> None:
        alive = True
        while alive:
            await trio.sleep(PING_INTERVAL_S)
            alive = await self.connection.muxed_conn.ping(PING_TIMEOUT_S)
        raise trio.BrokenResourceError(f"no answer to a ping for {PING_TIMEOUT_S} s")

    def _complete(self, reply: Answer | Failure) -> None:
        pending = self._pending.get(reply.request)
        if pending is not None:  # else the caller gave up
            pending.reply = reply
            pending.answered.set()


def loser(old: PeerSession, new: PeerSession, me: NodeId) -> PeerSession | None:
    """Return which of two connections of one pair is to be closed; `me` is this end. None: it depends on whether the old one lives."""
    if old.inbound == new.inbound or new.opened_at - old.opened_at > RIVAL_S:
        return None  # nobody dials while connected: for the dialer of the new one, the old one is dead
    # Dialled from both ends at once. Both ends keep the one that the lower node id dialled.
    keep_inbound = new.node < me
    return old if new.inbound == keep_inbound else new


async def _pieces(stream: Stream, peer: str) -> AsyncGenerator[bytes, None]:
    buffer = FrameBuffer()
    try:
        while data := await stream.read():
            for piece in buffer.feed(data):
                # As in request_server: an alias of a union.
                reply: BulkReply = decode(piece, BulkReply)  # type: ignore[arg-type]
                match reply:
                    case Piece(body):
                        yield body
                    case End():
                        await stream.finish()
                        return
                    case Failure(_, retry, text):
                        raise Unavailable(text) if retry else RemoteFault(text)
    except trio.BrokenResourceError:
        raise Unavailable(f"the connection to {peer} broke") from None
    raise Unavailable(f"the stream from {peer} was cut off")
