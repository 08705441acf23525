"""The answering side of our streams: what other members send, ask and fetch from us.

A reader never waits for a handler: it would stop draining the stream, and behind a stalled stream the peer gives up
on the connection. Messages go to bounded inboxes (new ones are dropped when full); calls run as tasks, a bounded
number per peer, and beyond it the answer is "busy".
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import trio

from node.event_log import EventLog
from node.framing import (
    BODY_BYTES_MAX,
    FETCH_BYTES_MAX,
    TEXT_CHARACTERS_MAX,
    Answer,
    Call,
    End,
    Failure,
    Fetch,
    FrameBuffer,
    Hello,
    Message,
    Piece,
    Request,
    frame,
)
from node.libp2p_kit import Stream
from node.outbox import Outbox
from node.ports import CallHandler, StreamHandler
from protocol import limits
from protocol.codec import decode
from protocol.errors import CarechainError, Invalid, LocalFault, Malformed
from protocol.identifiers import NetworkId, NodeId, peer_id

FINISH_S = 60
"""How long a fetcher may take to read what is under way after the last piece was written."""

_MEMBERS_ONLY = "this is open to members of the network only"

MailChannel = trio.MemorySendChannel[tuple[NodeId, bytes]]


@dataclass(slots=True)
class _InHand:
    """What one peer has asked and not been answered yet."""

    calls: int = 0
    body_bytes: int = 0
    fetches: int = 0


class RequestServer:
    """Handlers and inboxes by channel, and the loops that feed them."""

    def __init__(
        self,
        network: NetworkId,
        may: Callable[[NodeId, str], bool],
        count: Callable[[str], None],
        log: EventLog,
    ) -> None:
        """`may` tells whether a peer may use a channel: not everybody who is admitted is a member."""
        self._network = network
        self._may = may
        self._count = count
        self._log = log
        self._handlers: dict[str, CallHandler] = {}
        self._stream_handlers: dict[str, StreamHandler] = {}
        self._inboxes: dict[str, MailChannel] = {}
        self._in_hand: dict[NodeId, _InHand] = {}
        self._conversations: set[tuple[int, str]] = set()

    def serve(self, channel: str, handler: CallHandler) -> None:
        """Answer calls on a channel. Raises LocalFault when it has a handler."""
        if channel in self._handlers:
            raise LocalFault(f"calls on {channel} have a handler")
        self._handlers[channel] = handler

    def serve_stream(self, channel: str, handler: StreamHandler) -> None:
        """Answer fetches on a channel. Raises LocalFault when it has a handler."""
        if channel in self._stream_handlers:
            raise LocalFault(f"fetches on {channel} have a handler")
        self._stream_handlers[channel] = handler

    def inbox(self, channel: str, size: int) -> trio.MemoryReceiveChannel[tuple[NodeId, bytes]]:
        """Return the queue of messages on a channel. Raises LocalFault when it has one that was not closed."""
        known = self._inboxes.get(channel)
        if known is not None and known.statistics().open_receive_channels:
            raise LocalFault(f"messages on {channel} have an inbox")
        self._inboxes[channel], received = trio.open_memory_channel[tuple[NodeId, bytes]](size)
        return received

    async def converse(
        self, node: NodeId, stream: Stream, hello: Hello, greet: Callable[[NodeId, Hello], None]
    ) -> None:
        """Serve one persistent stream until it ends. `greet` takes the peer's Hello.

        Raises:
            Malformed, Invalid: the peer broke the protocol.
            BrokenResourceError: the stream was reset.
        """
        # Each may keep a message of 20 MiB that is not complete, and 64 MiB of answers: of these, a peer has one a protocol.
        if (place := stream.place) in self._conversations:
            raise Invalid("a second stream of one protocol")
        self._conversations.add(place)
        try:
            await self._converse(node, stream, hello, greet)
        finally:
            self._conversations.remove(place)

    async def _converse(
        self, node: NodeId, stream: Stream, hello: Hello, greet: Callable[[NodeId, Hello], None]
    ) -> None:
        outbox, buffer, greeted = Outbox(), FrameBuffer(), False
        await stream.write(frame(hello))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_write_from, outbox, stream)
            while data := await stream.read():
                for piece in buffer.feed(data):
                    # One alias of a union of registered classes, which mypy does not take for a type[T].
                    request: Request = decode(piece, Request)  # type: ignore[arg-type]
                    match request:
                        case Hello() if not greeted:
                            greeted = True
                            greet(node, request)
                        case Message() if greeted:
                            self._deliver(node, request)
                        case Call() if greeted:
                            self._accept(nursery, node, request, outbox)
                        case _:
                            raise Invalid("a stream begins with one hello")
            nursery.cancel_scope.cancel()

    def _deliver(self, node: NodeId, message: Message) -> None:
        inbox = self._inboxes.get(message.channel)
        if not self._may(node, message.channel):
            self._count("messages_of_no_member")
            return
        if inbox is None:
            self._count("messages_without_inbox")
            return
        try:
            inbox.send_nowait((node, message.body))
        except trio.WouldBlock:
            self._count("messages_dropped_inbox_full")
        except trio.BrokenResourceError:
            self._count("messages_without_inbox")

    def _accept(self, nursery: trio.Nursery, node: NodeId, call: Call, outbox: Outbox) -> None:
        handler = self._handlers.get(call.channel)
        in_hand = self._in_hand.setdefault(node, _InHand())
        if not self._may(node, call.channel):
            self._refuse(outbox, Failure(call.request, False, _MEMBERS_ONLY))
        elif handler is None:
            self._refuse(outbox, Failure(call.request, True, "nobody serves this channel yet"))
        elif (
            in_hand.calls >= limits.CALLS_IN_HAND_PER_PEER_MAX
            or in_hand.body_bytes + len(call.body) > limits.CALL_BYTES_IN_HAND_PER_PEER_MAX
        ):
            self._count("calls_refused_busy")
            self._refuse(outbox, Failure(call.request, True, "busy"))
        else:
            in_hand.calls += 1
            in_hand.body_bytes += len(call.body)
            nursery.start_soon(self._answer, handler, node, call, in_hand, outbox)

    def _refuse(self, outbox: Outbox, failure: Failure) -> None:
        # Not waited with: a peer that asks and reads no answers would have a task of ours for each.
        if not outbox.offer(frame(failure)):
            self._count("answers_dropped")

    async def _answer(
        self, handler: CallHandler, node: NodeId, call: Call, in_hand: _InHand, outbox: Outbox
    ) -> None:
        try:
            reply: Answer | Failure
            try:
                body = await handler(node, call.body)
                if len(body) > BODY_BYTES_MAX:
                    raise LocalFault(f"an answer of {len(body)} bytes")
                reply = Answer(call.request, body)
            except Exception as error:  # noqa: BLE001 - a handler's bug must not end the host (libp2p would)
                reply = Failure(call.request, False, self._refusal(call.channel, error))
            # The handler's place is kept until its answer is queued: a peer that reads none blocks only itself.
            await outbox.put(frame(reply))
        finally:
            in_hand.calls -= 1
            in_hand.body_bytes -= len(call.body)

    def _refusal(self, channel: str, error: Exception) -> str:
        if isinstance(error, CarechainError) and not isinstance(error, LocalFault):
            return str(error)[:TEXT_CHARACTERS_MAX]
        self._count("handlers_failed")
        self._log.error("handler failed", channel=channel, error=type(error).__name__)
        return "internal error"

    async def serve_bulk(self, node: NodeId, stream: Stream) -> None:
        """Serve one fetch.

        Raises:
            Malformed, Invalid: the peer broke the protocol.
            BrokenResourceError: the stream was reset; the fetcher went away.
        """
        fetch = await _read_fetch(stream)
        if fetch.network != self._network:
            raise Invalid("a fetch of another network")
        handler = self._stream_handlers.get(fetch.channel)
        in_hand = self._in_hand.setdefault(node, _InHand())
        if not self._may(node, fetch.channel):
            await stream.write(frame(Failure(0, False, _MEMBERS_ONLY)))
        elif handler is None:
            await stream.write(frame(Failure(0, True, "nobody serves this channel yet")))
        elif in_hand.fetches >= limits.FETCHES_IN_HAND_PER_PEER_MAX:
            self._count("fetches_refused_busy")
            await stream.write(frame(Failure(0, True, "busy")))
        else:
            in_hand.fetches += 1
            try:
                await self._send_pieces(handler(node, fetch.body), fetch.channel, stream)
            finally:
                in_hand.fetches -= 1
        self._log.debug("fetch served", peer=peer_id(node), channel=fetch.channel)
        await stream.finish()
        # A stream half open stays in yamux's tables as long as the connection: wait for the other half, not for ever.
        with trio.move_on_after(FINISH_S):
            with contextlib.suppress(trio.BrokenResourceError):  # reset: it has read what it wanted
                while await stream.read():
                    pass
            return
        await stream.reset()

    async def _send_pieces(self, pieces: AsyncIterator[bytes], channel: str, stream: Stream) -> None:
        try:
            async for piece in pieces:
                await stream.write(frame(Piece(piece)))
            await stream.write(frame(End()))
        except trio.BrokenResourceError:
            raise
        except Exception as error:  # noqa: BLE001 - as in _answer
            await stream.write(frame(Failure(0, False, self._refusal(channel, error))))
        finally:
            if hasattr(
                pieces, "aclose"
            ):  # an async generator left half way must be closed here, not by the collector
                with (
                    trio.CancelScope(deadline=trio.current_time() + 1, shield=True),
                    contextlib.suppress(Exception),
                ):  # it failed already
                    await pieces.aclose()


async def _read_fetch(stream: Stream) -> Fetch:
    buffer = FrameBuffer(FETCH_BYTES_MAX)
    while data := await stream.read():
        for piece in buffer.feed(data):
            return decode(piece, Fetch)
    raise Malformed("a bulk stream that ends before it asks")


async def _write_from(outbox: Outbox, stream: Stream) -> None:
    while True:
        await stream.write(await outbox.take())
