"""Our muxer against random peers, seeded: whatever they send, it keeps its books and its bounds, and it ends."""

import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamEOF, MuxedStreamError

from node import yamux
from node.yamux import Yamux
from node.yamux_stream import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    PING,
    RST,
    SYN,
    WINDOW_BYTES,
    WINDOW_UPDATE,
    YamuxStream,
)
from protocol import limits
from protocol.errors import RemoteFault
from tests.node.secure_pair import noise_pair
from tests.node.test_yamux import Session, connection, frame

SIZES = (0, 1, 2, 100, 4_095, 4_096, 5_000, 60_000)
_PIECE_OVERHEAD_BYTES = 256


class Peer:
    """Random frames of a peer that keeps to the rules mostly, and what of its data should arrive."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.begun: list[int] = []
        self.sent: dict[int, bytearray] = {}

    def frame(self) -> bytes:
        chance = self.random
        stream_id = chance.choice([*self.begun[-6:], 2, 1, 3, 0, 2**32 - 2])
        match chance.randrange(20):
            case 0 | 1 | 2:
                stream_id = 2 * len(self.begun) + 2
                self.begun.append(stream_id)
                return frame(WINDOW_UPDATE, SYN, stream_id, 0)
            case 3:
                return frame(
                    WINDOW_UPDATE, chance.choice([0, 0, ACK]), stream_id, chance.choice([0, 1, 2**32 - 1])
                )
            case 4:
                return frame(
                    chance.choice([DATA, WINDOW_UPDATE]), chance.choice([FIN, FIN, RST]), stream_id, 0
                )
            case 5:
                return frame(PING, chance.choice([SYN, ACK]), chance.choice([0, 7]), chance.randrange(2**32))
            case 6 if chance.random() < 0.1:
                return self.violation(stream_id)
            case _:
                size = chance.choice(SIZES)
                return frame(DATA, 0, stream_id, size, chance.randbytes(size))

    def violation(self, stream_id: int) -> bytes:
        chance = self.random
        return chance.choice(
            [
                frame(WINDOW_UPDATE, SYN, chance.choice([0, 1, stream_id]), 0),
                frame(DATA, 0, stream_id, 5 << 20, bytes(5 << 20)),
                frame(chance.randrange(4, 256), 0, stream_id, 0),
                bytes([chance.randrange(1, 256)]) + bytes(11),
                frame(GO_AWAY, 0, 0, chance.randrange(3)),
                chance.randbytes(60),
            ]
        )

    def message(self) -> bytes:
        return b"".join(self.frame() for _ in range(self.random.randrange(1, 8)))

    def cut(self, data: bytes) -> list[bytes]:
        """Cut frames into messages anywhere."""
        places = sorted(self.random.randrange(len(data) + 1) for _ in range(self.random.randrange(4)))
        return [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]


def kept_bytes(stream: YamuxStream) -> int:
    """What the unread pieces of a stream take in memory, but for the first, which is kept whole while it is read."""
    kept = 0
    for piece in list(stream._pieces)[1:]:
        kept += sys.getsizeof(piece) + (sys.getsizeof(piece.obj) if isinstance(piece, memoryview) else 0)
    return kept


def check_books(conn: Yamux) -> None:
    """The invariants by which the memory of a connection is bounded."""
    streams = conn.streams.values()
    assert conn._own_streams == sum(stream.is_initiator for stream in streams)
    assert len(conn.streams) - conn._own_streams <= limits.STREAMS_PER_CONNECTION_MAX
    assert conn._growth_bytes == sum(stream.window_growth_bytes for stream in streams)
    assert 0 <= conn._growth_bytes <= limits.STREAM_GROWTH_BYTES_MAX
    assert len(conn._control_frames) < yamux.CONTROL_BYTES_MAX + 12
    assert len(conn._head) < 12
    for stream_id, stream in conn.streams.items():
        assert stream.stream_id == stream_id
        assert stream.unread_bytes <= stream._window <= limits.STREAM_WINDOW_BYTES_MAX
        if not stream.recv_closed:
            assert stream._recv_window + stream.unread_bytes + stream._unacknowledged == stream._window
        assert kept_bytes(stream) <= 2 * stream.unread_bytes + _PIECE_OVERHEAD_BYTES


async def read_to_the_end(stream: YamuxStream, into: bytearray | None = None) -> None:
    while True:
        part = await stream.read(30_000)
        if into is not None:
            into += part


async def accept_to_the_end(conn: Yamux, take: Callable[[YamuxStream], None]) -> None:
    while True:
        take(await conn.accept_stream())


async def act(conn: Yamux, held: list[YamuxStream], chance: random.Random, ends: Counter[str]) -> None:
    """Do one thing that a user of the connection does."""
    with trio.move_on_after(0.001):
        what = chance.randrange(8)
        if what == 0:
            held.append(await conn.accept_stream())
        elif what == 1:
            held.append(await conn.open_stream())
        elif held:
            stream = chance.choice(held)
            try:
                if what == 2:
                    await stream.close()
                elif what == 3 and chance.random() < 0.3:
                    await stream.reset()
                elif what == 4:
                    await stream.write(bytes(chance.choice(SIZES)))
                else:
                    await stream.read(chance.choice([1, 3_000, 65_536]))
            except (MuxedStreamError, MuxedStreamEOF) as error:
                ends[type(error).__name__] += 1


async def test_books_and_bounds_hold_whatever_a_peer_sends(autojump_clock: trio.testing.MockClock) -> None:
    ends: Counter[str] = Counter()
    for seed in range(24):
        peer, (conn, session) = Peer(seed), connection()
        held: list[YamuxStream] = []
        for _ in range(150):
            try:
                for message in peer.cut(peer.message()):
                    conn._take(message)
            except (RemoteFault, ConnectionClosedError) as error:
                ends[type(error).__name__] += 1
                break
            check_books(conn)
            if conn.event_shutting_down.is_set():
                ends["farewell"] += 1
                break
            for _ in range(3):
                await act(conn, held, peer.random, ends)
                check_books(conn)
            if peer.random.random() < 0.2:
                conn._control_frames.clear()  # written
            session.sent.clear()
        await conn.close()
        assert not conn.streams, seed
    # The peers reached everything: they were refused, and streams ended in each way.
    assert set(ends) >= {
        "Malformed",
        "Invalid",
        "MuxedStreamEOF",
        "MuxedStreamReset",
        "MuxedStreamError",
        "farewell",
    }


async def test_a_connection_ends_with_all_who_use_it(autojump_clock: trio.testing.MockClock) -> None:
    """No reader, writer or acceptor waits on a connection that is gone, whatever the peer did to their streams."""
    for seed in range(60):
        peer = Peer(seed)
        messages = [part for _ in range(40) for part in peer.cut(peer.message())]
        session: Any = Session(*messages)
        conn = Yamux(session, "peer", is_initiator=True)

        async def use(stream: YamuxStream) -> None:
            with pytest.raises(MuxedStreamError):  # of which the end of the data is one
                await read_to_the_end(stream)
            # Its number may have been given to another stream meanwhile.
            await stream.close()
            await stream.reset()

        async def accept(conn: Yamux, users: trio.Nursery) -> None:
            with pytest.raises(MuxedConnUnavailable):
                await accept_to_the_end(conn, lambda stream: users.start_soon(use, stream))

        with trio.fail_after(600):  # of a clock that jumps: only if nothing moves any more
            async with trio.open_nursery() as users:
                users.start_soon(accept, conn, users)
                await conn.start()
        assert session.is_closed
        assert conn.is_closed
        assert not conn.streams


async def test_a_stream_is_not_forgotten_for_an_earlier_one_of_its_number() -> None:
    """A peer that uses a number again hid its new stream from the end of the connection: who read it waited for ever."""
    conn, _ = connection()
    begin = frame(WINDOW_UPDATE, SYN, 2, 0)
    conn._take(begin)
    old = await conn.accept_stream()
    conn._take(frame(WINDOW_UPDATE, RST, 2, 0) + begin)
    new = await conn.accept_stream()
    await old.close()
    await old.reset()
    assert conn.streams == {2: new}
    assert not new.reset_received
    check_books(conn)


async def test_pieces_do_not_keep_messages_many_times_their_size() -> None:
    """4 KiB of each message of 64 KiB kept sixteen windows in memory for one."""
    conn, _ = connection()
    conn._take(frame(WINDOW_UPDATE, SYN, 2, 0))
    junk = frame(DATA, 0, 4, 56_000, bytes(56_000))  # of a stream that is closed here
    while conn.streams[2].unread_bytes < WINDOW_BYTES - 4_096:
        conn._take(frame(DATA, 0, 2, 4_096, bytes(4_096)) + junk)
    assert kept_bytes(conn.streams[2]) <= 2 * WINDOW_BYTES
    check_books(conn)


async def test_all_windows_together_grow_to_a_bound() -> None:
    conn, _ = connection()
    streams = []
    for number in range(1, 21):
        conn._take(frame(WINDOW_UPDATE, SYN, 2 * number, 0))
        streams.append(await conn.accept_stream())
    for _ in range(120):
        for stream in streams:
            conn._take(frame(DATA, 0, stream.stream_id, 60_000, bytes(60_000)))
            await stream.read()
        conn._control_frames.clear()
        check_books(conn)
    assert conn._growth_bytes == limits.STREAM_GROWTH_BYTES_MAX
    await streams[0].reset()
    assert conn._growth_bytes < limits.STREAM_GROWTH_BYTES_MAX, "a stream that ends gives back what it had"


async def test_streams_that_begin_and_end_at_once_reach_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What libp2p does with a new stream costs fifty times what it costs a peer to begin and reset one."""
    refused = []
    conn, _ = connection()
    conn._refused = lambda: refused.append(1)
    for number in range(1, 101):
        conn._take(frame(WINDOW_UPDATE, SYN, 2 * number, 0) + frame(WINDOW_UPDATE, RST, 2 * number, 0))
    with trio.move_on_after(1) as nobody:
        await conn.accept_stream()
    assert nobody.cancelled_caught
    accepted, number = 0, 200
    with trio.move_on_after(1):
        while True:
            number += 2
            conn._take(frame(WINDOW_UPDATE, SYN, number, 0))
            conn._control_frames.clear()
            await conn.accept_stream()
            accepted += 1
            conn._take(frame(WINDOW_UPDATE, RST, number, 0))
            if accepted > limits.STREAMS_BURST + 3 * limits.STREAMS_PER_S:
                break
    assert limits.STREAMS_BURST <= accepted <= limits.STREAMS_BURST + 2 * limits.STREAMS_PER_S
    assert refused


async def test_others_have_their_turn_while_a_peer_floods() -> None:
    """A socket hands over 21,845 empty frames at once: half of a heartbeat, if nobody else had a turn meanwhile."""
    flood = frame(DATA, 0, 44, 0) * 5_000
    conn, session = connection(*[flood] * 40)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while not conn.is_closed:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await conn.start()
    assert not session.arriving
    assert turns >= 40


async def test_a_peer_that_takes_nothing_does_not_hold_up_the_close(
    autojump_clock: trio.testing.MockClock,
) -> None:
    conn, session = connection()
    session.takes_nothing = True
    started = trio.current_time()
    await conn.close()
    assert trio.current_time() - started <= 1
    assert session.is_closed


async def test_cancelled_writes_leave_the_messages_of_others_intact() -> None:
    """Between real sockets with small buffers: a write that stops half way would break the count of messages for all."""
    chance = random.Random(7)
    data = chance.randbytes(2 * limits.MIB)
    async with noise_pair(buffer_bytes=8_192) as (one, other), trio.open_nursery() as nursery:
        ours = Yamux(one, "other", is_initiator=True)
        theirs = Yamux(other, "one", is_initiator=False)
        for muxed in (ours, theirs):
            nursery.start_soon(muxed.start)
            await muxed.event_started.wait()
        received = bytearray()

        async def read(stream: YamuxStream) -> None:
            with pytest.raises(MuxedStreamError):
                await read_to_the_end(stream, received if stream.stream_id == 1 else None)

        async def accept() -> None:
            with pytest.raises(MuxedConnUnavailable):
                await accept_to_the_end(theirs, lambda stream: nursery.start_soon(read, stream))

        async def disturb() -> None:
            while not stream.send_closed:
                other_stream = await ours.open_stream()
                with trio.move_on_after(chance.random() * 0.002):
                    await other_stream.write(bytes(100_000))
                await other_stream.reset()

        nursery.start_soon(accept)
        stream = await ours.open_stream()
        nursery.start_soon(disturb)
        with trio.fail_after(60):
            for start in range(0, len(data), 50_000):
                await stream.write(data[start : start + 50_000])
            await stream.close()
            while len(received) < len(data):
                await trio.sleep(0.005)
        assert bytes(received) == data
        assert not ours.event_shutting_down.is_set()
        await ours.close()
        await theirs.event_closed.wait()
        check_books(theirs)
