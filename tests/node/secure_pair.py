"""Two ends of one connection after libp2p's Noise handshake, without hosts around them."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as NoiseTransport

from node.noise_session import NoiseSession


@asynccontextmanager
async def stock_pair(buffer_bytes: int | None = None) -> AsyncIterator[tuple[Any, Any]]:
    """Yield libp2p's own sessions, of the initiator and of the responder; both are closed in the end."""
    sockets = socket.socketpair()
    for end in sockets:
        if buffer_bytes is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    streams = [trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in sockets]
    keys = [create_new_key_pair(bytes([number]) * 32) for number in (1, 2)]
    raws = [RawConnection(TrioTCPStream(stream), at == 0) for at, stream in enumerate(streams)]
    ends: dict[int, Any] = {}

    async def shake(at: int) -> None:
        noise = NoiseTransport(keys[at], noise_privkey=create_noise_key_pair().private_key)
        if at == 0:
            ends[0] = await noise.secure_outbound(raws[0], ID.from_pubkey(keys[1].public_key))
        else:
            ends[1] = await noise.secure_inbound(raws[1])
        ends[at].negotiated_security_protocol = "/noise"

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shake, 0)
            nursery.start_soon(shake, 1)
    try:
        yield ends[0], ends[1]
    finally:
        for stream in streams:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def noise_pair(buffer_bytes: int | None = None) -> AsyncIterator[tuple[NoiseSession, NoiseSession]]:
    """Yield our sessions, of the initiator and of the responder."""
    async with stock_pair(buffer_bytes) as (one, other):
        yield NoiseSession(one), NoiseSession(other)
