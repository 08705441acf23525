"""Two processes with one key at one peer: the one that lives keeps its connection, the newer one is answered and waits."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from node.endpoints import parse_endpoint
from node.libp2p_transport import Libp2pTransport
from node.ports import CallHandler
from protocol.errors import Unavailable
from tests.contracts.peer_transport import echo
from tests.node.transports import connected, eventually, is_connected, make_transport, running


def says(word: bytes) -> CallHandler:
    async def answer(_node: bytes, _body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return word

    return answer


def member(home: Path, name: bytes, *peers: str) -> Libp2pTransport:
    """Return a process with the one key, and a folder of its own."""
    folder = home / name.decode()
    folder.mkdir()
    process = make_transport(0, folder, peers=peers)
    process.serve("who", says(name))
    return process


async def who(peer: Libp2pTransport, node: Libp2pTransport) -> bytes:
    return await peer.call(node.me, "who", b"", timeout_ms=5_000)


async def test_a_second_process_does_not_take_the_place_of_one_that_lives(tmp_path: Path) -> None:
    peer = make_transport(1, tmp_path)
    peer.serve("rpc", echo)
    copy = member(tmp_path, b"copy")
    async with running(peer, copy):
        original = member(tmp_path, b"original", *peer.addresses())
        async with running(original):
            await connected(original, peer)
            session = peer._sessions[original.me]
            copy._dialer.learn(peer.me, peer.addresses()[0], "mdns", fresh=True)
            await eventually(lambda: is_connected(copy, peer.me) and list(peer._guests))
            for process in (original, copy):
                assert await process.call(peer.me, "rpc", b"x", timeout_ms=5_000) == b"x"
            assert peer._sessions[original.me] is session
            assert await who(peer, original) == b"original"
        await eventually(lambda: is_connected(peer, copy.me) and not list(peer._guests))
        assert await who(peer, copy) == b"copy"


@asynccontextmanager
async def stalling(target: str) -> AsyncIterator[tuple[str, trio.Event]]:
    """Forward a port to `target`; from the event on nothing passes, and nobody is told."""
    endpoint, _ = parse_endpoint(target)
    stalled = trio.Event()

    async def pass_on(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        async for data in source:
            if stalled.is_set():
                await trio.sleep_forever()
            await sink.send_all(data)

    async def forward(near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream(endpoint.host, endpoint.port)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(pass_on, near, far)
            nursery.start_soon(pass_on, far, near)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, forward, [listener])
        port = listener.socket.getsockname()[1]
        yield f"/ip4/127.0.0.1/tcp/{port}", stalled
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_what_no_longer_answers_gives_its_place_to_the_next_process(tmp_path: Path) -> None:
    peer = make_transport(1, tmp_path)
    async with running(peer), stalling(peer.addresses()[0]) as (line, stalled):
        before = member(tmp_path, b"before", line)
        async with running(before):
            await connected(before, peer)
            assert await who(peer, before) == b"before"
            stalled.set()
            after = member(tmp_path, b"after", *peer.addresses())
            async with running(after):
                await connected(after, peer)
                with trio.fail_after(60):
                    while await word_of(peer, after) != b"after":
                        await trio.sleep(0.05)


async def word_of(peer: Libp2pTransport, node: Libp2pTransport) -> bytes:
    """Return what the process says that a peer is connected with; nothing while it is none that answers."""
    with trio.move_on_after(0.5), suppress(Unavailable):
        return await who(peer, node)
    return b""
