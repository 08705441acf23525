"""Hostile clients: each attack is made, and then an honest peer still gets an answer, on the connection it had."""

import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.exceptions import RawConnError
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.stream_muxer.yamux import yamux

from node import yamux_stream
from node.framing import Call, Hello, Message, frame
from node.libp2p_transport import Libp2pTransport
from node.peer_session import BULK_PROTOCOL, MESSAGES_PROTOCOL
from protocol import limits
from protocol.codec import pack
from protocol.errors import RemoteFault
from tests.contracts.peer_transport import echo
from tests.node.hostile import MESHSUB, Attacker, attacker, ended, is_reset, tcp
from tests.node.transports import (
    NETWORK,
    NODES,
    OTHER_NETWORK,
    SEEDS,
    STRANGER_SEED,
    connected,
    connected_pair,
    eventually,
    is_connected,
    make_transport,
    running,
)

MEMBER_SEED = SEEDS[2]
_NO_CHANNEL = pack("net.fetch", bytes(32), "", b"")
BAD_FIELDS = len(_NO_CHANNEL).to_bytes(4, "big") + _NO_CHANNEL


class Scene:
    """A victim and an honest peer that is connected to it."""

    def __init__(self, victim: Libp2pTransport, honest: Libp2pTransport) -> None:
        self.victim = victim
        self.honest = honest
        self.connection = honest._sessions[victim.me].connection
        victim.serve("rpc", echo)

    async def assert_unharmed(self) -> None:
        assert await self.honest.call(self.victim.me, "rpc", b"well?", timeout_ms=5_000) == b"well?"
        assert self.honest._sessions[self.victim.me].connection is self.connection

    def sessions(self) -> int:
        return len(self.victim._sessions)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with connected_pair(tmp_path) as (honest, victim):
        yield Scene(victim, honest)


async def become_member(hostile: Attacker, scene: Scene) -> Any:
    connection = await hostile.connect(scene.victim)
    await eventually(lambda: is_connected(scene.victim, NODES[2]))
    return connection


async def test_plaintext_is_refused(scene: Scene) -> None:
    """Whoever may choose plaintext may claim any peer id."""
    plain = InsecureTransport(create_new_key_pair(MEMBER_SEED))
    async with attacker(MEMBER_SEED, {PLAINTEXT_PROTOCOL_ID: plain}) as hostile:
        with pytest.raises(Exception, match="failed to"):
            await hostile.connect(scene.victim)
    assert scene.sessions() == 1
    await scene.assert_unharmed()


async def test_a_stranger_is_refused_before_it_can_speak_any_protocol(scene: Scene) -> None:
    streams = []
    inner = scene.victim._host.get_network().common_stream_handler

    async def watch(stream: Any) -> None:
        streams.append(stream)
        await inner(stream)

    scene.victim._host.get_network().common_stream_handler = watch
    async with attacker(STRANGER_SEED) as hostile:
        with pytest.raises(Exception, match="failed to"):
            await hostile.connect(scene.victim)
    await eventually(lambda: scene.victim.counters["refused_strangers"] == 1)
    assert streams == []
    assert scene.sessions() == 1
    await scene.assert_unharmed()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(range(256)) * 40,
        b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\xff" * 500,
        b"\xff" * 20,
        b"\x13/multistream/1.0.0\n\x05\xff\xfe\xfd\n",
        b"",
    ],
)
async def test_garbage_on_tcp_is_survived(scene: Scene, garbage: bytes) -> None:
    async with await tcp(scene.victim) as stream:
        if garbage:
            await stream.send_all(garbage)
        await stream.send_eof()
        assert await ended(stream)
    await scene.assert_unharmed()


def varint(number: int) -> bytes:
    encoded = b""
    while number > 127:
        encoded += bytes([number & 127 | 128])
        number >>= 7
    return encoded + bytes([number])


def publication(**fields: Any) -> bytes:
    message = rpc_pb2.Message(
        data=b"x",
        topicIDs=[f"/carechain/{NETWORK.hex()}/blocks/1"],
        from_id=ID(bytes.fromhex("002408011220") + NODES[2]).to_bytes(),
        seqno=b"\x01" * 8,
        **fields,
    )
    data = rpc_pb2.RPC(publish=[message]).SerializeToString()
    return varint(len(data)) + data


@pytest.mark.parametrize(
    "sent",
    [
        varint(40) + b"\xff" * 40,
        varint(2**62),
        b"\xff" * 30,
        publication(),
        publication(key=b"\xff\xff\xff", signature=b"\x00" * 64),
        publication(key=b"\x08\x01\x12\x20" + NODES[2], signature=b"\x00" * 64),
    ],
    ids=["garbage protobuf", "huge length", "endless varint", "no signature", "bad key", "bad signature"],
)
async def test_garbage_on_the_gossip_stream_is_survived(scene: Scene, sent: bytes) -> None:
    received = scene.victim.subscribe("blocks", 10)
    async with attacker(MEMBER_SEED) as hostile:
        connection = await become_member(hostile, scene)
        stream = await hostile.open(connection, MESHSUB)
        await stream.write(sent)
        await scene.assert_unharmed()
    with pytest.raises(trio.WouldBlock):
        received.receive_nowait()
    await scene.assert_unharmed()


def signed_publication(seed: bytes) -> bytes:
    keys = create_new_key_pair(seed)
    message = rpc_pb2.Message(
        data=b"from " + seed[:1],
        topicIDs=[f"/carechain/{NETWORK.hex()}/blocks/1"],
        from_id=ID.from_pubkey(keys.public_key).to_bytes(),
        seqno=seed[:8],
    )
    message.signature = keys.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
    message.key = keys.public_key.serialize()
    data = rpc_pb2.RPC(publish=[message]).SerializeToString()
    return varint(len(data)) + data


async def test_what_a_stranger_signed_is_refused_although_a_member_forwards_it(scene: Scene) -> None:
    received = scene.victim.subscribe("blocks", 10)
    async with attacker(MEMBER_SEED) as hostile:
        connection = await become_member(hostile, scene)
        stream = await hostile.open(connection, MESHSUB)
        await stream.write(signed_publication(STRANGER_SEED) + signed_publication(MEMBER_SEED))
        with trio.fail_after(60):
            assert await received.receive() == (NODES[2], b"from " + MEMBER_SEED[:1])
    assert scene.victim.counters["gossip_refused"] == 1
    await scene.assert_unharmed()


async def test_a_protocol_name_that_is_not_utf8_is_survived(scene: Scene) -> None:
    async with attacker(MEMBER_SEED) as hostile:
        connection = await become_member(hostile, scene)
        stream = await connection.new_stream()
        await stream.write(b"\x13/multistream/1.0.0\n" + b"\x05\xff\xfe\xfd\xfc\n")
        await eventually(lambda: scene.victim.counters["failed_streams"] == 1)
        assert is_connected(scene.victim, NODES[2])  # the stream is reset, not the connection
    await scene.assert_unharmed()


@pytest.mark.parametrize("protocol", [MESSAGES_PROTOCOL, BULK_PROTOCOL])
@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x04junk",
        frame(Call(1, "rpc", b"before hello")),
        frame(Hello(OTHER_NETWORK, ())),
        frame(Hello(NETWORK, ())) * 2,
        BAD_FIELDS,
    ],
    ids=["huge frame", "empty frame", "junk", "no hello", "other network", "two hellos", "bad fields"],
)
async def test_garbage_on_our_own_streams_resets_the_stream(scene: Scene, protocol: str, sent: bytes) -> None:
    async with attacker(MEMBER_SEED) as hostile:
        connection = await become_member(hostile, scene)
        stream = await hostile.open(connection, protocol)
        await stream.write(sent)
        assert await is_reset(stream)
        await eventually(lambda: scene.victim.counters["failed_streams"] == 1)
        await scene.assert_unharmed()
    await scene.assert_unharmed()


def _break_call(victim: Libp2pTransport) -> None:
    async def handler(_node: Any, _body: bytes) -> bytes:
        raise KeyError("x")

    victim.serve("broken", handler)


def _break_fetch(victim: Libp2pTransport) -> None:
    async def handler(_node: Any, _body: bytes) -> AsyncIterator[bytes]:
        yield b""
        raise KeyError("x")

    victim.serve_stream("broken", handler)


def _break_raw(victim: Libp2pTransport) -> None:
    async def handler(_stream: Any) -> None:
        raise KeyError("x")

    victim._host.set_stream_handler("/broken/1", handler)


async def _fetch(scene: Scene) -> None:
    async with scene.honest.fetch(scene.victim.me, "broken", b"") as stream:
        async for _ in stream:
            pass


async def _call(scene: Scene) -> None:
    await scene.honest.call(scene.victim.me, "broken", b"", timeout_ms=2_000)


async def _raw(scene: Scene) -> None:
    from node.libp2p_kit import open_stream  # noqa: PLC0415

    stream = await open_stream(scene.connection, "/broken/1")
    while await stream.read():
        pass


@pytest.mark.parametrize(
    ("prepare", "provoke"),
    [(_break_call, _call), (_break_fetch, _fetch), (_break_raw, _raw)],
    ids=["call", "fetch", "raw"],
)
async def test_a_raising_handler_harms_nobody_else(
    scene: Scene, prepare: Callable[[Libp2pTransport], None], provoke: Callable[[Scene], Any]
) -> None:
    prepare(scene.victim)
    with (
        trio.fail_after(60),
        contextlib.suppress(RemoteFault, trio.BrokenResourceError),
    ):  # the caller's share
        await provoke(scene)
    broke = scene.victim.counters
    assert broke["handlers_failed"] + broke["failed_streams"] == 1
    await scene.assert_unharmed()


async def test_a_flood_that_ignores_the_window_is_cut_off(scene: Scene) -> None:
    async with attacker(MEMBER_SEED) as hostile:
        connection = await become_member(hostile, scene)
        stalled = trio.Event()

        async def never_reads(_stream: Any) -> None:
            await stalled.wait()

        scene.victim._host.set_stream_handler("/stalled/1", never_reads)
        stream = await hostile.open(connection, "/stalled/1")
        muxed = connection.muxed_conn
        header = struct.pack("!BBHII", 0, yamux.TYPE_DATA, 0, stream.muxed_stream.stream_id, 60_000)
        victims_end = scene.victim._sessions[NODES[2]].connection.muxed_conn
        most, pushed = 0, 0
        with contextlib.suppress(ConnectionClosedError, RawConnError):  # cut off
            while pushed < 64 * limits.MIB and not muxed.event_shutting_down.is_set():
                async with muxed._write_lock:
                    await muxed.secured_conn.write(header + bytes(60_000))
                pushed += 60_000
                most = max(most, sum(end.unread_bytes for end in victims_end.streams.values()))
        await eventually(lambda: victims_end.is_closed)
        assert 0 < most <= yamux_stream.WINDOW_BYTES
        stalled.set()
    await scene.assert_unharmed()


async def test_a_flood_of_calls_and_messages_is_bounded(scene: Scene) -> None:
    scene.victim.inbox("news", 10)
    async with attacker(MEMBER_SEED) as hostile:
        connection = await become_member(hostile, scene)
        stream = await hostile.open(connection, MESSAGES_PROTOCOL)

        async def forever(_node: Any, _body: bytes) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        scene.victim.serve("forever", forever)
        flood = b"".join(frame(Call(number, "forever", b"x" * 100)) for number in range(1_000))
        await stream.write(frame(Hello(NETWORK, ())) + flood + frame(Message("news", b"x")) * 1_000)
        await eventually(lambda: scene.victim.counters["messages_dropped_inbox_full"] == 990)
        assert scene.victim.counters["calls_refused_busy"] == 1_000 - limits.CALLS_IN_HAND_PER_PEER_MAX
        await scene.assert_unharmed()
    await scene.assert_unharmed()


async def test_streams_beyond_the_bound_are_reset(scene: Scene) -> None:
    async with attacker(MEMBER_SEED) as hostile:
        connection = await become_member(hostile, scene)
        streams = [await connection.new_stream() for _ in range(limits.STREAMS_PER_CONNECTION_MAX + 10)]

        def reset() -> int:
            return sum(stream.muxed_stream.reset_received for stream in streams)

        await eventually(lambda: reset() >= 10)
        assert scene.victim.counters["refused_streams"] >= 10
        assert reset() < len(streams) / 2  # those beyond the bound, not the others
        assert is_connected(scene.victim, NODES[2])
        await scene.assert_unharmed()
    await scene.assert_unharmed()


@pytest.mark.slow
async def test_three_hundred_connections_leave_nothing_behind(scene: Scene) -> None:
    async def cycle(count: int) -> None:
        async with attacker(MEMBER_SEED) as hostile:
            for _ in range(count):
                connection = await hostile.connect(scene.victim)
                await (
                    connection.muxed_conn.secured_conn.close()
                )  # abrupt: no farewell, and none of its own sleeps

    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    rates = scene.victim._host.get_network().handshake_rates
    rates._burst, rates._per_s = 1_000, 1_000.0  # they come faster than one address may
    await cycle(5)
    await eventually(lambda: scene.sessions() == 1)
    await eventually(lambda: len(scene.victim._host.get_network().half_open_handshakes) == 0)
    before = tasks()
    with trio.fail_after(60):
        await cycle(300)
    await eventually(lambda: scene.sessions() == 1)
    await eventually(lambda: tasks() <= before + 5)
    network = scene.victim._host.get_network()
    await eventually(lambda: len(network.get_connections()) == 1)
    await scene.assert_unharmed()
    assert scene.sessions() == 1
    assert [connection.event_closed.is_set() for connection in network.get_connections()] == [False]
    assert len(network.half_open_handshakes) == 0


async def test_slow_half_handshakes_do_not_lock_out_an_honest_peer(scene: Scene, tmp_path: Path) -> None:
    """All from one address, the honest peer's own; stock refuses everybody until they time out."""
    silent = [await tcp(scene.victim) for _ in range(3 * limits.HALF_OPEN_PER_ADDRESS_MAX)]
    for stream in silent[::2]:
        await stream.send_all(b"\x13/multistream/1.0.0\n")
    half_open = scene.victim._host.get_network().half_open_handshakes
    await eventually(lambda: len(half_open) == limits.HALF_OPEN_PER_ADDRESS_MAX)
    newcomer = make_transport(2, tmp_path, peers=scene.victim.addresses())
    async with running(newcomer):
        await newcomer._connect(scene.victim.me, scene.victim.addresses()[0])
        await connected(newcomer, scene.victim)
        assert len(half_open) > 0, "they have timed out, which would let anybody in"
    await scene.assert_unharmed()
    assert await ended(silent[0])
    for stream in silent:
        await stream.aclose()
    await eventually(lambda: len(half_open) == 0)


@pytest.mark.slow
async def test_a_slow_half_handshake_ends_after_five_seconds(scene: Scene) -> None:
    async with await tcp(scene.victim) as stream:
        started = trio.current_time()
        assert await ended(stream)
        assert trio.current_time() - started > 4
    await scene.assert_unharmed()
