"""Discovery by multicast on this machine. Skipped where multicast is missing."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from zeroconf import ServiceInfo, Zeroconf

from node.discovery import SERVICE, MdnsDiscovery
from node.endpoints import Endpoint
from protocol.identifiers import NetworkId, NodeId, peer_id
from tests.node.transports import (
    NETWORK,
    NODES,
    OTHER_NETWORK,
    RecordingLog,
    SystemEntropy,
    connected,
    eventually,
    make_transport,
    running,
)


def discovery(
    node: NodeId, port: int, network: NetworkId = NETWORK, host: str = "127.0.0.1"
) -> MdnsDiscovery:
    return MdnsDiscovery(
        network=network,
        me=node,
        listening=(Endpoint("ip4", host, port),),
        entropy=SystemEntropy(),
        log=RecordingLog(),
    )


@asynccontextmanager
async def announcing(*found: MdnsDiscovery) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for one in found:
            nursery.start_soon(one.run)
        yield
        nursery.cancel_scope.cancel()


async def heard(one: MdnsDiscovery, seconds: float = 60) -> tuple[NodeId, str] | None:
    with trio.move_on_after(seconds):
        while one.available:
            with trio.move_on_after(0.5):
                return await one.found.receive()
    if not one.available:
        pytest.skip("no multicast on this machine")
    return None


async def test_two_daemons_find_each_other_on_loopback() -> None:
    one, other = discovery(NODES[0], 4001), discovery(NODES[1], 4002)
    async with announcing(one, other):
        assert await heard(one) == (NODES[1], "/ip4/127.0.0.1/tcp/4002")
        assert await heard(other) == (NODES[0], "/ip4/127.0.0.1/tcp/4001")


async def test_another_network_and_oneself_are_not_heard() -> None:
    one, other, alien = (
        discovery(NODES[0], 4001),
        discovery(NODES[1], 4002),
        discovery(NODES[2], 4003, OTHER_NETWORK),
    )
    async with announcing(alien, one, other):
        assert await heard(one) == (NODES[1], "/ip4/127.0.0.1/tcp/4002")
        assert await heard(one, 1) is None
        assert await heard(alien, 0.1) is None


async def test_a_known_service_that_changes_its_port_is_heard_again() -> None:
    """A daemon back on another port within the lifetime of its records arrives only as an update."""

    def announcement(port: int) -> ServiceInfo:
        return ServiceInfo(
            SERVICE,
            f"same-name.{SERVICE}",
            port=port,
            properties={"n": NETWORK.hex(), "p": peer_id(NODES[1])},
            addresses=[b"\x7f\x00\x00\x01"],
            server="same-name.local.",
        )

    one = discovery(NODES[0], 4001)
    async with announcing(one):
        announcer = await trio.to_thread.run_sync(lambda: Zeroconf(interfaces=["127.0.0.1"]))
        try:
            await trio.to_thread.run_sync(announcer.register_service, announcement(4002))
            assert await heard(one) == (NODES[1], "/ip4/127.0.0.1/tcp/4002")
            await trio.to_thread.run_sync(announcer.update_service, announcement(4003))
            found = None
            while (news := await heard(one)) is not None and found is None:
                found = news if news[1].endswith("/4003") else None
                if found:
                    break
            assert found == (NODES[1], "/ip4/127.0.0.1/tcp/4003")
        finally:
            await trio.to_thread.run_sync(announcer.close)


async def test_missing_multicast_is_said_once_and_harms_nothing() -> None:
    log = RecordingLog()
    one = MdnsDiscovery(
        network=NETWORK,
        me=NODES[0],
        listening=(Endpoint("ip4", "192.0.2.213", 4001),),  # no interface has this address
        entropy=SystemEntropy(),
        log=log,
    )
    with trio.fail_after(60):
        await one.run()
    assert not one.available
    assert log.count("no discovery by multicast: give addresses") == 1


async def test_stopping_takes_about_a_second_and_leaves_no_thread_that_prevents_exit() -> None:
    before = set(threading.enumerate())
    one = discovery(NODES[0], 4001)
    async with announcing(one):
        await eventually(lambda: one._zeroconf is not None)
        stopping = trio.current_time()
    assert trio.current_time() - stopping < 2
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)


@pytest.mark.slow
async def test_a_daemon_that_restarts_on_another_port_is_found_without_any_address(tmp_path: Path) -> None:
    higher = make_transport(1, tmp_path / "a", mdns=True)
    lower = make_transport(0, tmp_path / "b", mdns=True)
    async with running(lower):
        async with running(higher):
            await connected(lower, higher)
            assert lower.peers()[0].found_by in {"mdns", "inbound"}
            port = higher.addresses()
        again = make_transport(1, tmp_path / "c", mdns=True)  # no address book: only multicast tells
        async with running(again):
            assert again.addresses() != port
            await connected(lower, again)
            assert lower.peers()[0].address == again.addresses()[0]
