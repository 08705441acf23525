"""Our muxer between two real transports, and by single frames as a hostile peer may send them."""

import itertools
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset

from node import libp2p_kit, yamux
from node.libp2p_transport import Libp2pTransport
from node.yamux import Yamux
from node.yamux_stream import ACK, DATA, FIN, GO_AWAY, HEADER, PING, RST, SYN, WINDOW_BYTES, WINDOW_UPDATE
from protocol import limits
from protocol.errors import Malformed, RemoteFault
from tests.contracts.peer_transport import echo
from tests.node.transports import connected_pair, eventually

Pair = tuple[Libp2pTransport, Libp2pTransport]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with connected_pair(tmp_path) as pair:
        yield pair


def muxed(one: Libp2pTransport, other: Libp2pTransport) -> Any:
    return one._sessions[other.me].connection.muxed_conn


def frame(kind: int, flags: int, stream_id: int, length: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, stream_id, length) + payload


class Session:
    """The messages of a peer, and what is sent to it."""

    def __init__(self, *messages: bytes) -> None:
        self.arriving = deque(messages)
        self.sent: list[bytes] = []
        self.is_closed = False
        self.takes_nothing = False

    def take_left(self) -> bytes:
        return b""

    def next_message(self) -> bytes | None:
        return self.arriving.popleft() if self.arriving else None

    async def receive(self) -> bool:
        await trio.lowlevel.checkpoint()
        return bool(self.arriving)

    def send_now(self, messages: list[bytes]) -> bytes:
        self.sent += messages
        return b"rest" if self.takes_nothing else b""

    async def send_rest(self, _rest: bytes) -> None:
        await trio.sleep_forever()

    async def close(self) -> None:
        self.is_closed = True
        await trio.lowlevel.checkpoint()


def connection(*messages: bytes) -> tuple[Any, Session]:
    session: Any = Session(*messages)
    return Yamux(session, "peer", is_initiator=True), session


# --- between two transports -----------------------------------------------------------------------------------------


async def test_window_updates_are_batched(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair
    other.serve("rpc", echo)
    told: list[int] = []
    stock = Yamux.send_control

    def counting(self: Yamux, kind: int, flags: int, stream_id: int, length: int) -> None:
        if kind == WINDOW_UPDATE and not flags:
            told.append(length)
        stock(self, kind, flags, stream_id, length)

    monkeypatch.setattr(Yamux, "send_control", counting)
    for _ in range(100):
        await one.call(other.me, "rpc", bytes(1_000), timeout_ms=5_000)

    assert 0 < len(told) <= 8  # 100 kB each way, one update for each 32 KiB; stock: one for each read
    assert min(told) >= 32 * limits.KIB


async def test_a_ping_is_answered(pair: Pair) -> None:
    assert await muxed(*pair).ping(5)


async def test_a_cancelled_write_leaves_no_half_frame_behind(pair: Pair) -> None:
    one, other = pair
    other.serve("rpc", echo)
    session = one._sessions[other.me]

    async def reads_all(stream: Any) -> None:
        while await stream.read(65_536):
            pass

    other._host.set_stream_handler("/reads/1", reads_all)
    for _ in range(20):
        stream = await libp2p_kit.open_stream(session.connection, "/reads/1")
        with trio.move_on_after(0.001):
            await stream.write(bytes(limits.MESSAGE_BYTES_MAX))
        await stream.reset()
    assert await one.call(other.me, "rpc", b"intact", timeout_ms=5_000) == b"intact"
    assert one._sessions[other.me] is session


async def test_waiting_for_window_ends_when_it_opens(pair: Pair) -> None:
    one, other = pair
    read = trio.Event()

    async def late(stream: Any) -> None:
        await read.wait()
        left = 3 * limits.MIB
        while left:
            left -= len(await stream.read(65_536))
        await stream.write(b"all")

    other._host.set_stream_handler("/late/1", late)
    stream = await libp2p_kit.open_stream(one._sessions[other.me].connection, "/late/1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.write, bytes(3 * limits.MIB))
        await eventually(lambda: stream._stream.muxed_stream.send_window == 0)
        read.set()
    with trio.fail_after(60):
        assert await stream.read() == b"all"


async def test_the_window_grows_for_a_reader_that_keeps_up_and_to_its_bound_only(pair: Pair) -> None:
    one, other = pair
    size = 24 * limits.MIB
    windows: list[int] = []

    async def reader(stream: Any) -> None:
        left = size
        while left:
            left -= len(await stream.read(65_536))
            windows.append(stream.muxed_stream._window)
        await stream.write(b"all")

    other._host.set_stream_handler("/bulk/2", reader)
    stream = await libp2p_kit.open_stream(one._sessions[other.me].connection, "/bulk/2")
    await stream.write(bytes(size))
    assert await stream.read() == b"all"
    assert (windows[0], windows[-1]) == (WINDOW_BYTES, limits.STREAM_WINDOW_BYTES_MAX)
    await stream.reset()


# --- by single frames -----------------------------------------------------------------------------------------------


@given(
    payloads=st.lists(st.binary(max_size=300), max_size=6),
    cuts=st.lists(st.integers(min_value=0, max_value=2_000), max_size=12),
    finishes=st.booleans(),
)
def test_frames_are_the_same_however_they_are_cut_into_messages(
    payloads: list[bytes], cuts: list[int], finishes: bool
) -> None:
    conn, _ = connection()
    stream = b"".join(
        (
            frame(WINDOW_UPDATE, SYN, 2, 0),
            *(frame(DATA, 0, 2, len(payload), payload) + frame(PING, ACK, 0, 9) for payload in payloads),
            frame(DATA, FIN * finishes, 2, 3, b"end"),
        )
    )
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    ends = conn.streams
    for start, stop in itertools.pairwise(places):
        conn._take(stream[start:stop])
    received = b"".join(bytes(piece) for piece in ends[2]._pieces)
    assert received == b"".join(payloads) + b"end"
    assert ends[2].recv_closed == finishes


async def test_the_end_of_the_connection_ends_its_streams() -> None:
    conn, session = connection(frame(WINDOW_UPDATE, SYN, 2, 0) + frame(GO_AWAY, 0, 0, 0), b"not looked at")
    await conn.start()
    stream = conn._accepting.receive_nowait()
    with pytest.raises(MuxedStreamReset):
        await stream.read()
    with pytest.raises(MuxedStreamError):
        await stream.write(b"x")
    assert conn.is_closed
    assert session.is_closed
    assert len(session.arriving) == 1


async def test_a_finished_stream_is_read_to_its_end_and_forgotten() -> None:
    conn, _ = connection()
    conn._take(frame(WINDOW_UPDATE, SYN, 2, 0) + frame(DATA, FIN, 2, 5, b"hello"))
    stream = await conn.accept_stream()
    assert await stream.read(2) == b"he"
    await stream.close()
    assert not conn.streams
    assert await stream.read() == b"llo"
    with pytest.raises(MuxedStreamEOF):
        await stream.read()


async def test_a_reset_wakes_reader_and_writer() -> None:
    conn, _ = connection()
    conn._take(frame(WINDOW_UPDATE, SYN, 2, 0))
    stream = await conn.accept_stream()
    stream.send_window = 0
    ended: list[type] = []

    async def attempt(what: Any, *args: Any) -> None:
        try:
            await what(*args)
        except MuxedStreamError as error:
            ended.append(type(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt, stream.read)
        nursery.start_soon(attempt, stream.write, b"x")
        await trio.testing.wait_all_tasks_blocked()
        conn._take(frame(WINDOW_UPDATE, RST, 2, 0))
    assert set(ended) == {MuxedStreamReset, MuxedStreamError}
    assert not conn.streams


@pytest.mark.parametrize("size", [16, 60_000])
async def test_more_than_the_window_ends_the_connection(size: int) -> None:
    """Also in a few bytes at once, which must not take more room than themselves."""
    conn, session = connection(
        frame(WINDOW_UPDATE, SYN, 2, 0),
        *(frame(DATA, 0, 2, size, bytes(size)) for _ in range(WINDOW_BYTES // size + 1)),
        frame(PING, SYN, 0, 7),
    )
    kept: list[int] = []
    end = conn._end_streams

    def look_and_end() -> None:
        kept.extend(len(stream._pieces) for stream in conn.streams.values())
        end()

    conn._end_streams = look_and_end
    await conn.start()
    assert session.is_closed
    assert len(session.arriving) == 1  # the ping behind it is not looked at any more
    assert kept[0] <= 8


@pytest.mark.parametrize(
    "hostile",
    [
        frame(WINDOW_UPDATE, SYN, 1, 0),  # ours to open
        frame(WINDOW_UPDATE, SYN, 0, 0),
        frame(WINDOW_UPDATE, SYN, 2, 0) * 2,
        b"\x01" + frame(DATA, 0, 2, 0)[1:],
        frame(4, 0, 2, 0),
    ],
    ids=["our id", "no id", "twice", "version", "type"],
)
async def test_a_violation_ends_the_connection_and_nothing_else(hostile: bytes) -> None:
    conn, session = connection(hostile, frame(PING, SYN, 0, 7))
    await conn.start()
    assert session.is_closed
    assert conn.is_closed
    with pytest.raises(Malformed):
        connection()[0]._take(hostile)


@given(
    messages=st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.builds(
                frame,
                st.integers(0, 4),
                st.integers(0, 15),
                st.integers(0, 4),
                st.sampled_from((0, 1, 20, 2**32 - 1)),
                st.binary(max_size=30),
            ),
        ),
        max_size=12,
    )
)
def test_whatever_a_peer_sends_is_taken_or_refused(messages: list[bytes]) -> None:
    conn, _ = connection()
    try:
        for message in messages:
            conn._take(message)
    except (RemoteFault, ConnectionClosedError):
        return
    assert sum(stream.unread_bytes for stream in conn.streams.values()) <= sum(map(len, messages))


async def test_data_of_a_stream_that_is_closed_here_is_skipped() -> None:
    conn, session = connection(
        frame(DATA, 0, 44, 5, b"stale") + frame(PING, SYN, 0, 7), frame(DATA, 0, 44, 1 << 31, b"begun")
    )
    await conn.start()
    assert frame(PING, ACK, 0, 7) in b"".join(session.sent) or conn._control_frames == frame(PING, ACK, 0, 7)
    assert not conn.streams


async def test_streams_that_nobody_accepts_are_refused() -> None:
    conn, _ = connection()
    many = limits.STREAMS_PER_CONNECTION_MAX
    conn._take(b"".join(frame(WINDOW_UPDATE, SYN, 2 * number, 0) for number in range(1, many + 2)))
    assert len(conn.streams) == many
    assert bytes(conn._control_frames).endswith(frame(WINDOW_UPDATE, RST, 2 * (many + 1), 0))


async def test_control_frames_that_nobody_takes_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    conn, session = connection(*[frame(PING, SYN, 0, number) for number in range(10_000)])
    session.takes_nothing = True
    with trio.fail_after(3 * yamux.WRITE_STALL_S):
        await conn.start()
    assert session.is_closed
    assert len(conn._control_frames) <= yamux.CONTROL_BYTES_MAX


async def test_a_peer_that_takes_nothing_is_cut_off(mock_clock: trio.testing.MockClock) -> None:
    mock_clock.autojump_threshold = 0
    conn, session = connection()
    session.takes_nothing = True
    stream = await conn.open_stream()
    with pytest.raises(ConnectionClosedError):
        await stream.write(b"x")
    assert session.is_closed


async def test_a_ping_that_is_not_answered_says_so() -> None:
    conn, _ = connection()
    assert not await conn.ping(0.01)
    assert not conn._pongs


async def test_more_streams_than_the_bound_are_not_opened() -> None:
    conn, _ = connection()
    for _ in range(limits.STREAMS_PER_CONNECTION_MAX):
        await conn.open_stream()
    with pytest.raises(MuxedStreamError):
        await conn.open_stream()
    await conn.streams[1].reset()
    assert (await conn.open_stream()).stream_id == 2 * limits.STREAMS_PER_CONNECTION_MAX + 1
