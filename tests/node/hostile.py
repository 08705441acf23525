"""A client that attacks: it speaks libp2p far enough to reach the code under attack, and raw bytes from there on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.network.stream.exceptions import StreamEOF, StreamReset
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from node import libp2p_kit
from node.endpoints import parse_endpoint
from node.framing import Hello, frame
from node.libp2p_transport import Libp2pTransport
from node.peer_session import PERSISTENT_PROTOCOLS
from tests.node.transports import NETWORK

MESHSUB = "/meshsub/1.1.0"


class Attacker:
    """A libp2p host with the key of `seed`, connected to nobody yet. Use `attacker`."""

    def __init__(self, seed: bytes, security: dict | None = None) -> None:
        keys = create_new_key_pair(seed)
        noise = {NOISE: NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)}
        self.host: Any = new_host(key_pair=keys, sec_opt=security or noise, muxer_opt={YAMUX: Yamux})
        self.host.get_network().retry_config.max_retries = 0
        self.host.get_network().set_resource_manager(None)  # an attacker limits nothing
        for protocol in PERSISTENT_PROTOCOLS:
            self.host.set_stream_handler(protocol, self._behave)

    async def _behave(self, stream: Any) -> None:
        """Answer the victim's persistent streams as a member does: it would hang up otherwise."""
        await stream.write(frame(Hello(NETWORK, ())))
        await trio.sleep_forever()

    async def connect(self, victim: Libp2pTransport) -> Any:
        """Return the connection, which the victim may be about to close."""
        address = Multiaddr(victim.addresses()[0])
        with trio.fail_after(60):
            return await self.host.get_network().dial_addr(address, libp2p_kit.id_of(victim.me))

    async def open(self, connection: Any, protocol: str) -> Any:
        """Return a raw libp2p stream on which `protocol` was negotiated."""
        return (await libp2p_kit.open_stream(connection, protocol))._stream


@asynccontextmanager
async def attacker(seed: bytes, security: dict | None = None) -> AsyncIterator[Attacker]:
    hostile = Attacker(seed, security)
    async with hostile.host.run([]):
        try:
            yield hostile
        finally:
            with trio.CancelScope(deadline=trio.current_time() + 3, shield=True):
                await hostile.host.close()


async def tcp(victim: Libp2pTransport) -> trio.SocketStream:
    """Return a bare TCP connection to the victim."""
    endpoint, _ = parse_endpoint(victim.addresses()[0])
    return await trio.open_tcp_stream(endpoint.host, endpoint.port)


async def ended(stream: trio.SocketStream, seconds: float = 60) -> bool:
    """Return whether the victim closed a TCP connection in time; whatever it says first is ignored."""
    with trio.move_on_after(seconds) as waiting, suppress(trio.BrokenResourceError):  # a reset is an end, too
        while await stream.receive_some():
            continue
    return not waiting.cancelled_caught


async def is_reset(stream: Any, seconds: float = 60) -> bool:
    """Return whether the victim reset a libp2p stream in time; whatever it says first is ignored."""
    # Yamux forgets a stream that was reset: whether a reader is told so, or of an orderly end, is a race.
    with trio.move_on_after(seconds), suppress(StreamReset, StreamEOF):
        while await stream.read(libp2p_kit.READ_BYTES):
            continue
    return bool(stream.muxed_stream.reset_received)
