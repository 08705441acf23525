"""Repairs to py-libp2p's yamux, each with a regression test in tests/node/test_libp2p_kit.py.

Pinned to libp2p 0.8.1, whose private names these are; drop a repair when its test passes without it.

- *Window updates are batched.* Stock sends one frame for every `read()`, also for the one-byte reads of varints.
- *The receive window is enforced.* Stock logs a warning and buffers whatever a peer pushes into an unread stream.
- *Control frames never block the reading task.* Stock answers a SYN or a ping from the task that reads the socket;
  when both ends have full socket buffers, both stop reading for ever.
- *A frame is written whole or the connection dies.* A cancelled `send_all` leaves half a Noise message on the wire.
- *Waiting for window is by event, up to a minute.* Stock polls every 10 ms and gives up after 5 s.
"""

import contextlib
import struct
from typing import Any

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from protocol import limits

FRAME_PAYLOAD_BYTES = 60 * limits.KIB
"""Header, payload and waiting control frames fit one Noise message (65,519 bytes)."""
WINDOW_UPDATE_BYTES = 32 * limits.KIB
WINDOW_UPDATE_SHARE = 16
"""Of the window, in one update; stock credits an update twice now and then, and `STREAM_BUFFER_BYTES_MAX` has room for that."""
CONTROL_BYTES_MAX = 64 * limits.KIB
"""Control frames not yet written. A peer that causes more and reads none is cut off."""
WRITE_STALL_S = 5
WINDOW_STALL_S = 60

_stock_window_update = YamuxStream._auto_tune_and_send_window_update  # noqa: SLF001 (pinned private name)

# In the functions below `self` and `conn` are YamuxStream and Yamux, which have no types we could use: Any.


async def _batched_window_update(self: Any, *, bytes_read: int = 0) -> None:
    self.bytes_unacknowledged = getattr(self, "bytes_unacknowledged", 0) + bytes_read
    # Seldom enough: an update costs both ends nearly what a data frame does. A window that has grown is told of less often.
    if self.bytes_unacknowledged >= max(WINDOW_UPDATE_BYTES, self.target_recv_window // WINDOW_UPDATE_SHARE):
        bytes_read, self.bytes_unacknowledged = self.bytes_unacknowledged, 0
        await _stock_window_update(self, bytes_read=bytes_read)


def _recv_window(self: Any) -> int:
    return int(self.__dict__["recv_window"])


def _set_recv_window(self: Any, value: int) -> None:
    # Yamux assigns right after it has buffered bytes; TooSlowError makes it close the whole connection.
    if len(self.conn.stream_buffers.get(self.stream_id, b"")) > limits.STREAM_BUFFER_BYTES_MAX:
        raise trio.TooSlowError("the peer ignores the receive window")
    self.__dict__["recv_window"] = value


def _send_window(self: Any) -> int:
    return int(self.__dict__["send_window"])


def _set_send_window(self: Any, value: int) -> None:
    self.__dict__["send_window"] = value
    waiting = self.__dict__.pop("window_opened", None)
    if waiting is not None:
        waiting.set()


async def _write(self: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        if self.send_closed or self.closed:
            raise MuxedStreamError("the stream is closed for sending")
        if self.send_window <= 0:
            await _wait_for_window(self)
            continue
        # No await between looking at the window and taking from it.
        size = min(self.send_window, FRAME_PAYLOAD_BYTES, len(view))
        self.send_window -= size
        header = struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_DATA, 0, self.stream_id, size)
        await self.conn._write_frame(header + view[:size])  # noqa: SLF001
        view = view[size:]


async def _wait_for_window(stream: Any) -> None:
    with trio.move_on_after(WINDOW_STALL_S):
        while stream.send_window <= 0 and not (stream.closed or stream.send_closed):
            opened = stream.__dict__.setdefault("window_opened", trio.Event())
            # Closing a stream assigns no window: look again from time to time.
            with trio.move_on_after(0.25):
                await opened.wait()
        return
    raise MuxedStreamError(f"the peer opened no window for {WINDOW_STALL_S} s")


async def _write_frame(self: Any, data: bytes) -> None:
    is_control = len(data) <= yamux.HEADER_SIZE and data[1] != yamux.TYPE_GO_AWAY
    if is_control and self._nursery is not None and not self.event_shutting_down.is_set():
        waiting = self.__dict__.setdefault("control_frames", bytearray())
        if len(waiting) >= CONTROL_BYTES_MAX:
            raise trio.TooSlowError("the peer takes no control frames")
        waiting += data
        if not self.__dict__.get("control_writer"):
            self.control_writer = True
            self._nursery.start_soon(_write_control_frames, self)
        return
    async with self._write_lock:
        # Control frames first: a stream's SYN must precede its data.
        await _write_whole(self, _take_control_frames(self) + data)


async def _write_control_frames(conn: Any) -> None:
    try:
        while conn.control_frames:
            async with conn._write_lock:  # noqa: SLF001
                frames = _take_control_frames(conn)
                if frames:
                    await _write_whole(conn, frames)
    except Exception:  # noqa: BLE001 - libp2p raises a dozen classes for a dead socket; the reading task ends it
        with contextlib.suppress(Exception):
            await conn.secured_conn.close()
    finally:
        conn.control_writer = False


def _take_control_frames(conn: Any) -> bytes:
    frames = conn.__dict__.get("control_frames")
    if not frames:
        return b""
    taken = bytes(frames)
    frames.clear()
    return taken


async def _write_whole(conn: Any, data: bytes) -> None:
    with trio.CancelScope(deadline=trio.current_time() + WRITE_STALL_S, shield=True):
        await conn.secured_conn.write(data)
        return
    with contextlib.suppress(Exception):  # it is closed because it is broken
        await conn.secured_conn.close()
    raise ConnectionClosedError(f"the peer took no data for {WRITE_STALL_S} s", transport="tcp")


async def _no_measurements(_self: Any) -> None:
    """Replace yamux's own pings: both share one event, and a ping of ours would miss its answer."""


def apply() -> None:
    """Install the repairs in this process. Repeating it changes nothing."""
    yamux.MAX_WINDOW_SIZE = limits.STREAM_WINDOW_BYTES_MAX
    YamuxStream._auto_tune_and_send_window_update = _batched_window_update  # noqa: SLF001
    YamuxStream.recv_window = property(_recv_window, _set_recv_window)
    YamuxStream.send_window = property(_send_window, _set_send_window)
    YamuxStream.write = _write
    Yamux._measure_rtt_loop = _no_measurements  # noqa: SLF001
    Yamux._write_frame = _write_frame  # noqa: SLF001


async def ping(conn: Any, timeout_s: float) -> bool:
    """Return whether the other end of a `Yamux` connection answers a yamux ping in time. One caller per connection."""
    conn._ping_id += 1  # noqa: SLF001
    answered = conn._ping_event = trio.Event()  # noqa: SLF001
    conn._ping_sent_time = trio.current_time()  # noqa: SLF001
    header = struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_PING, yamux.FLAG_SYN, 0, conn._ping_id)  # noqa: SLF001
    try:
        with trio.move_on_after(timeout_s):
            await conn._write_frame(header)  # noqa: SLF001
            await answered.wait()
    except Exception:  # noqa: BLE001 - libp2p raises a dozen classes for a dead connection: it does not answer
        return False
    return answered.is_set()
