"""One regression test per repair of py-libp2p that the hostile suite does not show from outside."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.stream_muxer.yamux import yamux

from node import libp2p_kit, yamux_patches
from node.libp2p_kit import HalfOpenHandshakes
from node.libp2p_transport import Libp2pTransport
from protocol import limits
from tests.contracts.peer_transport import echo
from tests.node.transports import SEEDS, RecordingLog, connected_pair, eventually, node_id

Pair = tuple[Libp2pTransport, Libp2pTransport]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with connected_pair(tmp_path) as pair:
        yield pair


def muxed(one: Libp2pTransport, other: Libp2pTransport) -> Any:
    return one._sessions[other.me].connection.muxed_conn


def test_peer_ids_and_node_ids_are_the_same_keys() -> None:
    node = node_id(SEEDS[0])
    assert libp2p_kit.node_of(libp2p_kit.id_of(node)) == node
    assert libp2p_kit.node_of_bytes(b"\x12\x20" + bytes(32)) is None  # a hashed (RSA) peer id


async def test_only_noise_and_yamux_are_offered(pair: Pair) -> None:
    upgrader = pair[0]._host.get_network().upgrader
    assert list(upgrader.security_multistream.transports) == ["/noise"]
    assert list(upgrader.muxer_multistream.transports) == ["/yamux/1.0.0"]


async def test_window_updates_are_batched(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair
    other.serve("rpc", echo)
    sent: list[int] = []
    stock = yamux_patches._stock_window_update

    async def counting(self: Any, *, bytes_read: int = 0) -> None:
        sent.append(bytes_read)
        await stock(self, bytes_read=bytes_read)

    monkeypatch.setattr(yamux_patches, "_stock_window_update", counting)
    for _ in range(100):
        await one.call(other.me, "rpc", bytes(1_000), timeout_ms=5_000)
    assert 0 < len(sent) <= 8  # 100 kB each way, one update for each 32 KiB; stock: one for each read
    assert all(size >= yamux_patches.WINDOW_UPDATE_BYTES for size in sent)


async def test_a_ping_is_answered_and_a_closed_connection_does_not_answer(pair: Pair) -> None:
    one, other = pair
    connection = muxed(one, other)
    assert await yamux_patches.ping(connection, 5)
    silent = muxed(other, one)

    async def swallow(_data: bytes) -> None:
        return None

    silent._write_frame = swallow  # the other end is stopped: it takes everything and says nothing
    assert not await yamux_patches.ping(connection, 0.1)


async def test_a_cancelled_write_leaves_no_half_frame_behind(pair: Pair) -> None:
    one, other = pair
    other.serve("rpc", echo)
    session = one._sessions[other.me]
    for _ in range(20):
        stream = await libp2p_kit.open_stream(session.connection, "/carechain/bulk/1")
        with trio.move_on_after(0.001):
            await stream.write(bytes(2 * limits.MIB))
        await stream.reset()
    assert await one.call(other.me, "rpc", b"intact", timeout_ms=5_000) == b"intact"
    assert one._sessions[other.me] is session


async def test_control_frames_that_nobody_takes_are_bounded(pair: Pair) -> None:
    connection = muxed(*pair)
    ping = b"\x00\x02\x00\x02" + bytes(8)

    async def flood() -> None:
        for _ in range(yamux_patches.CONTROL_BYTES_MAX):
            await connection._write_frame(ping)

    async with connection._write_lock:  # the socket takes nothing
        with pytest.raises(trio.TooSlowError):
            await flood()
    assert len(ping) == yamux.HEADER_SIZE


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
    with trio.fail_after(5):
        assert await stream.read() == b"all"


async def test_the_oldest_half_open_handshake_of_an_address_gives_way() -> None:
    half_open = HalfOpenHandshakes()
    scopes = [trio.CancelScope() for _ in range(limits.HALF_OPEN_PER_ADDRESS_MAX + 2)]
    other = trio.CancelScope()
    half_open.admit(-1, "192.0.2.9", other)
    for key, scope in enumerate(scopes):
        half_open.admit(key, "192.0.2.7", scope)
    assert [scope.cancel_called for scope in scopes] == [True, True] + [
        False
    ] * limits.HALF_OPEN_PER_ADDRESS_MAX
    assert not other.cancel_called
    assert len(half_open) == limits.HALF_OPEN_PER_ADDRESS_MAX + 1


def test_half_open_handshakes_are_bounded_over_all_addresses() -> None:
    half_open = HalfOpenHandshakes()
    for key in range(2 * limits.HALF_OPEN_MAX):
        half_open.admit(key, f"192.0.2.{key % 256}/{key}", trio.CancelScope())
    assert len(half_open) == limits.HALF_OPEN_MAX
    half_open.release(2 * limits.HALF_OPEN_MAX - 1)
    assert len(half_open) == limits.HALF_OPEN_MAX - 1


async def test_a_stream_that_is_reset_while_everything_ends_is_no_error_of_ours(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside tasks that are being cancelled a reset came out of the network as an error, and ended the daemon with it."""
    one, other = pair
    host: Any = one._host

    async def reset_at_the_end(_stream: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise trio.BrokenResourceError("StreamReset")

    monkeypatch.setattr(host, "_swarm_stream_handler", reset_at_the_end)
    log = RecordingLog()
    libp2p_kit._guard_streams(host, lambda _name: None, log)
    stream = await one._sessions[other.me].connection.new_stream()
    with trio.move_on_after(0.01) as scope:
        await host.get_network().common_stream_handler(stream)
    assert scope.cancelled_caught
    assert log.count("stream abandoned") == 1


def test_the_library_logs_one_line_to_us_and_nothing_to_the_root_logger() -> None:
    log = RecordingLog()
    libp2p_kit._patch_process(log)
    logging.getLogger("libp2p.network.swarm").error("first line\nsecond line")
    logging.getLogger("libp2p.network.auto_connector").info("chatter")
    assert log.events == [("debug", "libp2p", {"source": "libp2p.network.swarm", "reason": "first line"})]
    assert not logging.getLogger("libp2p").propagate
