"""One stream of a `Yamux` connection: what has arrived and was not read, and how much either end may send.

open ──► close here: FIN sent ──► FIN of the peer: gone
     ──► FIN of the peer ──► read to the end: `MuxedStreamEOF`; close here: gone
     ──► reset by either, or the connection ended: gone, and reading raises `MuxedStreamReset`
"""

import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Self

import trio
from libp2p.abc import IMuxedStream
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset

from protocol import limits
from protocol.errors import Invalid

if TYPE_CHECKING:
    from node.yamux import Yamux

HEADER = struct.Struct("!BBHII")
"""Version, type, flags, stream id, length."""
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
WRITE_BYTES = 4 * 60 * limits.KIB
"""Given to the connection at once; a frame of consensus waits behind so much of a chunk at most."""
WINDOW_BYTES = 256 * limits.KIB
"""Of either end at first (yamux specification)."""
WINDOW_UPDATE_SHARE = 8
"""Of the window, told in one update: it costs both ends nearly what a data frame does."""
WINDOW_STALL_S = 60
_SMALL_PIECE_BYTES = 4 * limits.KIB
"""Shorter pieces are joined: one of its own takes a hundred bytes around it, which must not multiply a window of single bytes."""
_JOINED_BYTES_MAX = 64 * limits.KIB


class YamuxStream(IMuxedStream):  # type: ignore[misc]  # libp2p is untyped here, as in libp2p_kit
    """A stream. One task reads, one writes; the names of its public parts are libp2p's."""

    def __init__(self, stream_id: int, conn: "Yamux", *, is_initiator: bool) -> None:
        self.stream_id = stream_id
        self.muxed_conn = conn
        self.is_initiator = is_initiator
        self.send_closed = self.recv_closed = self.reset_received = False
        self.send_window = WINDOW_BYTES
        self._pieces: deque[memoryview | bytearray] = deque()
        self._window = self._recv_window = WINDOW_BYTES
        self._unacknowledged = self._read_since_grown = 0
        self._arrived: trio.Event | None = None
        self._window_opened: trio.Event | None = None

    @property
    def unread_bytes(self) -> int:
        """How much has arrived and was not read."""
        return sum(len(piece) for piece in self._pieces)

    # --- for the connection: no waiting -------------------------------------------------------------------------------

    @property
    def window_growth_bytes(self) -> int:
        """What the receive window has, above what it had at first."""
        return self._window - WINDOW_BYTES

    def deliver(self, piece: memoryview, message_bytes: int) -> None:
        """Take the payload of a data frame, or a part of it, out of a message of so many bytes.

        Raises:
            Invalid: more than the window: the connection is to be closed.
        """
        self._recv_window -= len(piece)
        if self._recv_window < 0:
            raise Invalid("the peer ignores the receive window")
        if self.recv_closed or not piece:
            return
        # A piece keeps its whole message in memory: copied, unless it is three quarters of it.
        if len(piece) >= _SMALL_PIECE_BYTES and 4 * len(piece) >= 3 * message_bytes:
            self._pieces.append(piece)
        elif (
            self._pieces
            and isinstance(self._pieces[-1], bytearray)
            and len(self._pieces[-1]) < _JOINED_BYTES_MAX
        ):
            self._pieces[-1] += piece
        else:
            self._pieces.append(bytearray(piece))
        self._wake_reader()

    def open_window(self, size: int) -> None:
        """Take a window update of the peer."""
        self.send_window += size
        self._wake_writer()

    def take_flags(self, flags: int) -> None:
        """Take FIN or RST of a frame, after its payload."""
        if flags & RST:
            self.muxed_conn.forget(self)
            self.break_off()
        elif flags & FIN:
            self.recv_closed = True
            self._forget_if_done()
            self._wake_reader()

    def break_off(self) -> None:
        """End both ways: the peer reset the stream, or the connection has ended."""
        self.send_closed = self.recv_closed = self.reset_received = True
        self._pieces.clear()
        self._wake_reader()
        self._wake_writer()

    # --- for its users ------------------------------------------------------------------------------------------------

    async def read(self, n: int | None = None) -> bytes:
        """Return the next received bytes, at most `n` if given and not negative.

        Raises:
            MuxedStreamEOF: the peer has finished writing.
            MuxedStreamReset: the stream was reset, or the connection ended.
        """
        while not self._pieces:
            if self.reset_received:
                raise MuxedStreamReset("the stream was reset")
            if self.recv_closed:
                raise MuxedStreamEOF("the peer has finished")
            self._arrived = trio.Event()
            await self._arrived.wait()
        piece = self._pieces[0]
        if n is None or n < 0 or len(piece) <= n:
            taken = bytes(self._pieces.popleft())
        else:
            taken = bytes(piece[:n])
            if isinstance(piece, bytearray):
                del piece[:n]
            else:
                self._pieces[0] = piece[n:]
        self._acknowledge(len(taken))
        return taken

    async def write(self, data: bytes) -> None:
        """Send all bytes; waits for the peer's window.

        Raises:
            MuxedStreamError: closed for sending, reset, or no window for `WINDOW_STALL_S`.
            ConnectionClosedError: the connection is gone.
        """
        view = memoryview(data)
        while view:
            if self.send_closed:
                raise MuxedStreamError("the stream is closed for sending")
            if self.send_window <= 0:
                await self._wait_for_window()
                continue
            # No await between looking at the window and taking from it.
            size = min(self.send_window, WRITE_BYTES, len(view))
            self.send_window -= size
            part, view = view[:size], view[size:]
            await self.muxed_conn.write_data(self.stream_id, part)
            if view:
                # What the socket takes at once costs no turn of the loop; who sends much lets others have theirs.
                await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Finish writing. What the peer still sends can be read."""
        if not self.send_closed:
            self.send_closed = True
            self._wake_writer()
            self._tell(FIN)
        self._forget_if_done()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """Abandon the stream both ways."""
        if self.muxed_conn.forget(self):
            self._tell(RST)
        self.break_off()
        await trio.lowlevel.checkpoint()

    def set_deadline(self, ttl: int) -> None:
        """Deadlines are cancel scopes here."""
        raise NotImplementedError("use a cancel scope")

    def get_remote_address(self) -> Any:
        """Return host and port of the other end."""
        return self.muxed_conn.get_remote_address()

    async def __aenter__(self) -> Self:
        return self

    # --- details ------------------------------------------------------------------------------------------------------

    def _acknowledge(self, size: int) -> None:
        self._unacknowledged += size
        self._read_since_grown += size
        if self.recv_closed or self._unacknowledged < self._window // WINDOW_UPDATE_SHARE:
            return
        increment, self._unacknowledged = self._unacknowledged, 0
        # A reader that takes a whole window keeps up: with twice of it the sender waits for no update on a longer way.
        if (
            self._read_since_grown >= self._window < limits.STREAM_WINDOW_BYTES_MAX
            and self.muxed_conn.may_grow(self._window)
        ):
            self._read_since_grown = 0
            increment += self._window
            self._window *= 2
        self._recv_window += increment
        self._tell(0, increment)

    def _tell(self, flags: int, increment: int = 0) -> None:
        try:
            self.muxed_conn.send_control(WINDOW_UPDATE, flags, self.stream_id, increment)
        except ConnectionClosedError:
            self.break_off()  # the connection is ending, and this stream with it

    async def _wait_for_window(self) -> None:
        with trio.move_on_after(WINDOW_STALL_S):
            self._window_opened = trio.Event()
            await self._window_opened.wait()
            return
        raise MuxedStreamError(f"the peer opened no window for {WINDOW_STALL_S} s")

    def _wake_reader(self) -> None:
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None

    def _wake_writer(self) -> None:
        if self._window_opened is not None:
            self._window_opened.set()
            self._window_opened = None

    def _forget_if_done(self) -> None:
        if self.send_closed and self.recv_closed:
            self.muxed_conn.forget(self)
