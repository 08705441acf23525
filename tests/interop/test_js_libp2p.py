"""Our sessions and streams with js-libp2p's, which shares no code with py-libp2p: dialled by it, and dialling it.

Opt-in: to fetch its packages takes half a minute. In a folder of your own:

    npm install libp2p@3.3.11 @libp2p/tcp@11.0.28 @chainsafe/libp2p-noise@17.0.0 @chainsafe/libp2p-yamux@8.0.1 \
        @libp2p/identify@4.1.14 @libp2p/ping@3.1.13
    CARECHAIN_JS_LIBP2P=that/folder pytest tests/interop/test_js_libp2p.py
"""

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from node import libp2p_kit
from node.yamux import Yamux
from protocol import limits
from tests.node.transports import RecordingLog

ECHO = "/carechain-test/echo/1"
PING = "/ipfs/ping/1.0.0"
JS_PEER = ID.from_pubkey(create_new_key_pair(b"\x07" * 32).public_key)
SCRIPT = Path(__file__).with_name("js_peer.mjs")


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    """Return the command that runs the other peer."""
    node, folder = shutil.which("node"), os.environ.get("CARECHAIN_JS_LIBP2P", "")
    if node is None:
        pytest.skip("node is not installed")
    packages = Path(folder).resolve() / "node_modules"
    if not folder or not (packages / "libp2p").is_dir():
        pytest.skip("CARECHAIN_JS_LIBP2P does not name a folder with js-libp2p in its node_modules")
    (tmp_path / "node_modules").symlink_to(packages)
    return [node, shutil.copy(str(SCRIPT), str(tmp_path / SCRIPT.name))]


async def echo(stream: Any) -> None:
    wrapped = libp2p_kit.Stream(stream)
    while data := await wrapped.read():
        await wrapped.write(data)
    await wrapped.finish()


@asynccontextmanager
async def our_host(*listen: str) -> AsyncIterator[Any]:
    admitted = libp2p_kit.node_of(JS_PEER)
    host = libp2p_kit.make_host(bytes(32), lambda node: node == admitted, lambda _what: None, RecordingLog())
    host.set_stream_handler(ECHO, echo)
    async with host.run([Multiaddr(address) for address in listen]):
        try:
            yield host
        finally:
            with trio.CancelScope(deadline=trio.current_time() + 3, shield=True):
                await host.close()


async def test_it_dials_us_and_gets_five_mebibytes_back(script: list[str]) -> None:
    async with our_host("/ip4/127.0.0.1/tcp/0") as host:
        (listener,) = host.get_network().listeners.values()
        address = f"{listener.get_addrs()[0]}/p2p/{host.get_id()}"
        with trio.fail_after(120):
            done = await trio.run_process([*script, "dial", address], capture_stdout=True)
    seen = json.loads(done.stdout)
    assert (seen["encryption"], seen["multiplexer"]) == ("/noise", "/yamux/1.0.0")
    assert "py-libp2p" in seen["agent"]
    assert ECHO in seen["protocols"]
    assert seen["size"] == 5 * limits.MIB
    assert seen["same"]
    assert 0 <= seen["ping"] < 60_000


async def test_we_dial_it_and_get_five_mebibytes_back(script: list[str]) -> None:
    data = bytes(number % 251 for number in range(64 * limits.KIB)) * 80
    received = bytearray()
    async with our_host() as host, trio.open_nursery() as nursery:
        process = await nursery.start(_running, [*script, "listen"])
        address = json.loads(await _line(process.stdout))["address"]
        with trio.fail_after(120):
            connection = await host.get_network().dial_addr(Multiaddr(address.partition("/p2p/")[0]), JS_PEER)
            assert isinstance(connection.muxed_conn, Yamux)
            assert await connection.muxed_conn.ping(60)
            stream = await libp2p_kit.open_stream(connection, ECHO)

            async def send() -> None:
                await stream.write(data)
                await stream.finish()

            nursery.start_soon(send)
            while part := await stream.read():
                received += part
            pinging = await libp2p_kit.open_stream(connection, PING)
            await pinging.write(bytes(range(32)))
            assert await pinging.read() == bytes(range(32))
        process.terminate()
    assert len(received) == 5 * limits.MIB
    assert bytes(received) == data


async def _running(arguments: list[str], task_status: Any) -> None:
    await trio.run_process(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False, task_status=task_status
    )


async def _line(stream: Any) -> bytes:
    heard = b""
    with trio.fail_after(60):
        while not heard.endswith(b"\n"):
            part = await stream.receive_some()
            assert part, "it ended instead"
            heard += part
    return heard
