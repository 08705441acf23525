"""Transports for tests: real sockets on 127.0.0.1, deterministic identities, a log that remembers."""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from nacl.signing import SigningKey

from node.address_book import AddressBook
from node.libp2p_transport import Libp2pTransport
from protocol.identifiers import NetworkId, NodeId

NETWORK = NetworkId(b"n" * 32)
OTHER_NETWORK = NetworkId(b"o" * 32)
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


class RecordingLog:
    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict]] = []

    def _note(self, level: str, event: str, values: dict) -> None:
        self.events.append((level, event, values))

    def debug(self, event: str, **values) -> None:
        self._note("debug", event, values)

    def info(self, event: str, **values) -> None:
        self._note("info", event, values)

    def warning(self, event: str, **values) -> None:
        self._note("warning", event, values)

    def error(self, event: str, **values) -> None:
        self._note("error", event, values)

    def count(self, event: str) -> int:
        return sum(event == noted for _, noted, _ in self.events)


class WallClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def sleep_ms(self, duration_ms: int) -> None:
        await trio.sleep(duration_ms / 1000)


class SystemEntropy:
    def bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)


def node_id(seed: bytes) -> NodeId:
    return NodeId(bytes(SigningKey(seed).verify_key))


SEEDS = sorted((bytes([number]) * 32 for number in range(1, 5)), key=node_id)
"""In the order of their node ids: of two, the one with the lower index dials."""
NODES = tuple(node_id(seed) for seed in SEEDS)
STRANGER_SEED = bytes([99]) * 32


def make_transport(
    index: int,
    home: Path,
    *,
    peers: tuple[str, ...] = (),
    listen: tuple[str, ...] = LOOPBACK,
    announce: tuple[str, ...] = (),
    network: NetworkId = NETWORK,
    members: tuple[NodeId, ...] = NODES,
    mdns: bool = False,
    log: RecordingLog | None = None,
    fixed: dict[NodeId, tuple[str, ...]] | None = None,
) -> Libp2pTransport:
    log = log or RecordingLog()
    return Libp2pTransport(
        seed=SEEDS[index],
        network=network,
        members={node: (fixed or {}).get(node, ()) for node in members},
        listen=listen,
        announce=announce,
        extra_peers=peers,
        address_book=AddressBook(home / f"addresses-{index}.json", log),
        mdns=mdns,
        clock=WallClock(),
        entropy=SystemEntropy(),
        log=log,
    )


@asynccontextmanager
async def running(*transports: Libp2pTransport) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for transport in transports:
            await nursery.start(run, transport)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()


async def run(transport: Libp2pTransport, *, task_status) -> None:
    await transport.run(task_status=task_status)


async def eventually(holds: Callable[[], object], seconds: float = 60) -> None:
    """Look until something holds. Real sockets have no event to wait for."""
    with trio.fail_after(seconds):
        while not holds():
            await trio.sleep(0.005)


def is_connected(transport: Libp2pTransport, node: NodeId) -> bool:
    return any(peer.node == node and peer.connected for peer in transport.peers())


async def connected(*transports: Libp2pTransport) -> None:
    await eventually(
        lambda: all(one is other or is_connected(one, other.me) for one in transports for other in transports)
    )


@asynccontextmanager
async def connected_pair(home: Path, **options) -> AsyncIterator[tuple[Libp2pTransport, Libp2pTransport]]:
    """The lower node id dials the higher."""
    higher = make_transport(1, home, **options)
    async with running(higher):
        lower = make_transport(0, home, peers=higher.addresses(), **options)
        async with running(lower):
            await connected(lower, higher)
            yield lower, higher
