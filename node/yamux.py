"""Yamux over a `NoiseSession`: many streams on one connection, in place of py-libp2p's muxer, wire-compatible with it.

    frame = version[1] ‖ type[1] ‖ flags[2] ‖ stream id[4] ‖ length[4] ‖ payload of a data frame
                                    (https://github.com/hashicorp/yamux/blob/master/spec.md)

Stock spends four milliseconds of processor time on a MiB, ten times what it takes to open its encryption: several calls
through locks for every frame, each byte string copied four times. Here frames are cut from whole messages without waiting,
and a stream hands out what the cipher gave. What stock did wrong is right here, with a test each in tests/node/test_yamux.py:

- *Window updates are batched*, not one for every read.
- *The receive window is enforced*: a peer that sends more is cut off.
- *Control frames never block the reading task*: with both sockets full, both ends would stop reading for ever. They are
  bounded: a peer that causes them and takes none is cut off.
- *A frame is written whole or the connection dies*, also when its writer is cancelled.
- *Waiting for window is by event*, up to a minute.
- *A peer's share of our time is bounded*: after `FRAMES_AT_ONCE` others have their turn, and streams come at a rate.

What a peer can make a connection keep unread: 128 streams of each end with 256 KiB, and 32 MiB by which windows have grown,
are 96 MiB; a third more with the messages around the pieces. GO_AWAY ends the connection at once, with what was not read.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.abc import IMuxedConn
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError

from node.handshakes import Rates
from node.noise_session import PLAINTEXT_BYTES_MAX, NoiseSession
from node.yamux_stream import (
    ACK,
    DATA,
    GO_AWAY,
    HEADER,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    YamuxStream,
)
from protocol import limits
from protocol.errors import Malformed

FRAME_PAYLOAD_BYTES = 60 * limits.KIB
"""Header, payload and a few waiting control frames fit one Noise message (65,519 bytes)."""
CONTROL_BYTES_MAX = 60 * limits.KIB
"""Control frames not yet written: one message. A peer that causes more and reads none is cut off."""
FRAMES_AT_ONCE = 512
"""After so many of one peer, and the rest of their message, others have their turn. A socket hands over 21,845 at once."""
WRITE_STALL_S = 5
_CLOSE_S = 1

# libp2p is untyped here, as in libp2p_kit: Any.


class Yamux(IMuxedConn):  # type: ignore[misc]
    """One connection. The swarm runs `start` as a task; it returns when the connection has ended, and raises nothing."""

    def __init__(
        self,
        secured_conn: NoiseSession,
        peer_id: Any,
        is_initiator: bool,
        on_close: Callable[[], Awaitable[None]] | None = None,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        """The names of these, and of the events, are libp2p's; it replaces `on_close` by its own.

        `refused` is told of each stream of the peer that is reset at once: too many are open, or they come too fast.
        """
        self.secured_conn = secured_conn
        self.peer_id = peer_id
        self.on_close = on_close
        self._refused = refused
        self.event_started = trio.Event()
        self.event_shutting_down = trio.Event()
        self.event_closed = trio.Event()
        self.streams: dict[int, YamuxStream] = {}
        self._is_initiator = is_initiator
        self._next_stream_id = 1 if is_initiator else 2
        self._accepted, self._accepting = trio.open_memory_channel[YamuxStream](
            limits.STREAMS_PER_CONNECTION_MAX
        )
        self._rates = Rates(burst=limits.STREAMS_BURST, per_s=limits.STREAMS_PER_S, remembered=1)
        self._own_streams = self._growth_bytes = self._frames_taken = 0
        self._write_turn = trio.Lock()
        self._control_frames = bytearray()
        self._control_waits = trio.Event()
        self._pongs: dict[int, trio.Event] = {}
        self._next_ping = 0
        # Of the frame whose header or payload a message has cut off:
        self._head = b""
        self._payload_left = 0
        self._payload_of: YamuxStream | None = None
        self._payload_flags = 0

    # --- what libp2p asks for -----------------------------------------------------------------------------------------

    @property
    def is_initiator(self) -> bool:
        """Whether this end dialled."""
        return self._is_initiator

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set()

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended."""
        return self.event_closed.is_set()

    def get_transport_addresses(self) -> Any:
        """Return the multiaddrs of the connection below."""
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> Any:
        """Return libp2p's type of it."""
        return self.secured_conn.get_connection_type()

    def get_remote_address(self) -> Any:
        """Return host and port of the other end."""
        return self.secured_conn.get_remote_address()

    async def start(self) -> None:
        """Serve until the connection ends or is closed."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_controls)
                self.event_started.set()
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self._end_streams()
            await self.close()  # when cancelled: the socket, without farewell

    async def open_stream(self) -> YamuxStream:
        """Return a new stream; its SYN precedes its first data.

        Raises:
            MuxedStreamError: the connection has ended, or has too many streams open.
        """
        if self.event_shutting_down.is_set():
            raise MuxedStreamError("the connection is closed")
        if self._own_streams >= limits.STREAMS_PER_CONNECTION_MAX or self._next_stream_id >> 32:
            raise MuxedStreamError(f"{self._own_streams} streams are open")
        self._own_streams += 1
        stream = self.streams[self._next_stream_id] = YamuxStream(
            self._next_stream_id, self, is_initiator=True
        )
        self._next_stream_id += 2
        self.send_control(WINDOW_UPDATE, SYN, stream.stream_id, 0)
        await trio.lowlevel.checkpoint()
        return stream

    async def accept_stream(self) -> YamuxStream:
        """Return the next stream that the peer opens.

        Raises:
            MuxedConnUnavailable: the connection has ended.
        """
        while True:
            try:
                stream = await self._accepting.receive()
            except trio.EndOfChannel:
                raise MuxedConnUnavailable("the connection is closed") from None
            # What libp2p does with a stream costs much more than to begin and reset one.
            if stream.reset_received:
                continue
            if self._rates.take("", trio.current_time()):
                return stream
            self._refused()
            await stream.reset()

    async def close(self) -> None:
        """Say farewell, within a second, and close the connection."""
        if self.event_closed.is_set():
            return
        was_open = not self.event_shutting_down.is_set()
        self._end_streams()
        try:
            if was_open:
                with trio.move_on_after(_CLOSE_S), contextlib.suppress(ConnectionClosedError):
                    await self._write([HEADER.pack(0, GO_AWAY, 0, 0, 0)], within_s=_CLOSE_S)
            await self._break_off()
        finally:
            self.event_closed.set()
        if self.on_close is not None:
            await self.on_close()

    async def ping(self, timeout_s: float) -> bool:
        """Return whether the other end answers a yamux ping in time."""
        self._next_ping += 1
        number, answered = self._next_ping, trio.Event()
        self._pongs[number] = answered
        try:
            self.send_control(PING, SYN, 0, number)
            with trio.move_on_after(timeout_s):
                await answered.wait()
        except ConnectionClosedError:
            return False
        finally:
            del self._pongs[number]
        return answered.is_set()

    # --- writing ------------------------------------------------------------------------------------------------------

    def send_control(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """Queue a frame without payload; it leaves before any data written from now on.

        Raises:
            ConnectionClosedError: the peer takes none; the connection is being closed.
        """
        if len(self._control_frames) >= CONTROL_BYTES_MAX:
            self.event_shutting_down.set()
            self._control_waits.set()
            raise ConnectionClosedError("the peer takes no control frames", transport="tcp")
        self._control_frames += HEADER.pack(0, kind, flags, stream_id, length)
        self._control_waits.set()

    async def write_data(self, stream_id: int, data: memoryview) -> None:
        """Send data frames of one stream, which has the window for them.

        Raises:
            ConnectionClosedError: the peer took nothing for `WRITE_STALL_S`, or the connection is gone.
        """
        parts = [
            data[start : start + FRAME_PAYLOAD_BYTES] for start in range(0, len(data), FRAME_PAYLOAD_BYTES)
        ]
        await self._write([HEADER.pack(0, DATA, 0, stream_id, len(part)) + part for part in parts])

    async def _write(self, messages: list[bytes], within_s: float = WRITE_STALL_S) -> None:
        """Send messages of whole frames, behind the control frames that wait."""
        try:
            self._write_turn.acquire_nowait()  # `async with` would wait for the scheduler although nobody has it
        except trio.WouldBlock:
            await self._write_turn.acquire()
        try:
            controls = bytes(self._control_frames)
            self._control_frames.clear()
            if controls and messages and len(controls) + len(messages[0]) <= PLAINTEXT_BYTES_MAX:
                messages = [controls + messages[0], *messages[1:]]
            elif controls:
                messages = [controls, *messages]
            await self._send(messages, within_s)
        except Exception as error:
            # What was sealed and not sent is missing in the peer's count of messages.
            await self._break_off()
            raise ConnectionClosedError(f"{type(error).__name__}: {error}", transport="tcp") from error
        finally:
            self._write_turn.release()

    async def _send(self, messages: list[bytes], within_s: float) -> None:
        rest = self.secured_conn.send_now(messages)
        if not rest:
            return
        # Half a message would be the end of all others: it is written also when its writer is cancelled.
        with trio.CancelScope(deadline=trio.current_time() + within_s, shield=True):
            await self.secured_conn.send_rest(rest)
            return
        raise ConnectionClosedError(f"the peer took no data for {within_s} s", transport="tcp")

    async def _write_controls(self) -> None:
        try:
            while not self.event_shutting_down.is_set():
                if self._control_frames:
                    await self._write([])
                else:
                    self._control_waits = trio.Event()
                    await self._control_waits.wait()
        except Exception as error:  # noqa: BLE001 - libp2p and the system have a dozen classes for a dead socket
            self._log(error)
        await self._break_off()

    async def _break_off(self) -> None:
        """Close the socket: the reading task finds it closed and ends the rest."""
        with contextlib.suppress(Exception):  # it is closed because it is broken
            await self.secured_conn.close()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        session = self.secured_conn
        try:
            self._take(session.take_left())
            while not self.event_shutting_down.is_set():
                message = session.next_message()
                if message is not None:
                    self._take(message)
                    if self._frames_taken >= FRAMES_AT_ONCE:
                        self._frames_taken = 0
                        await trio.lowlevel.checkpoint()
                elif not await session.receive():
                    return
                else:
                    self._frames_taken = 0
        except Exception as error:  # noqa: BLE001 - whatever a peer provokes ends its connection, not the host
            self._log(error)

    def _take(self, message: bytes) -> None:
        """Take the frames in one message; the last one may be cut off and go on in the next."""
        view, start, size = memoryview(message), 0, len(message)
        self._frames_taken += 1  # an empty one costs us as much as a frame
        while start < size or (self._payload_of is not None and not self._payload_left):
            if self._payload_of is not None:
                piece = view[start : start + self._payload_left]
                start += len(piece)
                self._payload_left -= len(piece)
                self._payload_of.deliver(piece, size)
                if not self._payload_left:
                    stream, self._payload_of = self._payload_of, None
                    stream.take_flags(self._payload_flags)
            elif self._payload_left:  # of a stream that is closed here already
                skipped = min(self._payload_left, size - start)
                start += skipped
                self._payload_left -= skipped
            elif not self._head and size - start >= HEADER.size:
                self._frame(*HEADER.unpack_from(message, start))
                start += HEADER.size
            else:
                part = message[start : start + HEADER.size - len(self._head)]
                start += len(part)
                self._head += part
                if len(self._head) == HEADER.size:
                    head, self._head = self._head, b""
                    self._frame(*HEADER.unpack(head))

    def _frame(self, version: int, kind: int, flags: int, stream_id: int, length: int) -> None:
        self._frames_taken += 1
        if version != 0 or kind > GO_AWAY:
            raise Malformed(f"a frame of version {version} and type {kind}")
        if kind == PING:
            self._pinged(flags, length)
        elif kind == GO_AWAY:
            self.event_shutting_down.set()
        else:
            stream = self._stream(flags, stream_id)
            if kind == DATA:
                self._payload_of, self._payload_left, self._payload_flags = stream, length, flags
            elif stream is not None:
                stream.open_window(length)
                stream.take_flags(flags)

    def _pinged(self, flags: int, number: int) -> None:
        if flags & SYN:
            self.send_control(PING, ACK, 0, number)
        elif number in self._pongs:
            self._pongs[number].set()

    def _stream(self, flags: int, stream_id: int) -> YamuxStream | None:
        """Return the stream of a frame, a new one for a SYN; None when it is closed here or refused."""
        known = self.streams.get(stream_id)
        if not flags & SYN:
            return known
        if known is not None or stream_id % 2 == self._next_stream_id % 2 or stream_id == 0:
            raise Malformed(f"stream {stream_id} is not the peer's to open")
        # Those that were reset again wait in the queue, too.
        waiting = self._accepted.statistics().current_buffer_used
        if max(waiting, len(self.streams) - self._own_streams) >= limits.STREAMS_PER_CONNECTION_MAX:
            self._refused()
            self.send_control(WINDOW_UPDATE, RST, stream_id, 0)
            return None
        stream = self.streams[stream_id] = YamuxStream(stream_id, self, is_initiator=False)
        self._accepted.send_nowait(stream)
        self.send_control(WINDOW_UPDATE, ACK, stream_id, 0)
        return stream

    def forget(self, stream: YamuxStream) -> bool:
        """Take a stream out of the table; False when it was not in it, though a later one of its number may be."""
        if self.streams.get(stream.stream_id) is not stream:
            return False
        del self.streams[stream.stream_id]
        self._own_streams -= stream.is_initiator
        self._growth_bytes -= stream.window_growth_bytes
        return True

    def may_grow(self, size: int) -> bool:
        """Return whether a window may have so many bytes more, and take them from what is left of the connection's."""
        if self._growth_bytes + size > limits.STREAM_GROWTH_BYTES_MAX:
            return False
        self._growth_bytes += size
        return True

    def _end_streams(self) -> None:
        self.event_shutting_down.set()
        self._control_waits.set()
        self._accepted.close()
        for stream in list(self.streams.values()):
            self.forget(stream)
            stream.break_off()

    def _log(self, error: BaseException) -> None:
        # As libp2p's own: the kit turns it into one line of our log.
        logging.getLogger("libp2p.yamux").error("connection ends: %s: %s", type(error).__name__, error)
