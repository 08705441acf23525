"""The libp2p adapter: the port's contract, who connects to whom, and what survives a restart."""

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from node.libp2p_transport import Libp2pTransport
from protocol import limits
from protocol.errors import LocalFault, Refused, Unavailable
from protocol.identifiers import NodeId, peer_id
from tests.contracts.peer_transport import PeerTransportContract, echo
from tests.node.transports import (
    NODES,
    OTHER_NETWORK,
    RecordingLog,
    connected,
    connected_pair,
    eventually,
    is_connected,
    make_transport,
    running,
)


class TestLibp2pTransport(PeerTransportContract):
    @pytest.fixture
    async def pair(self, tmp_path: Path) -> AsyncIterator[tuple[Libp2pTransport, Libp2pTransport]]:
        async with connected_pair(tmp_path) as pair:
            yield pair


def connections(one: Libp2pTransport) -> int:
    return len(one._host.get_network().get_connections())


async def test_a_simultaneous_dial_settles_to_one_connection(tmp_path: Path) -> None:
    lower, higher = make_transport(0, tmp_path), make_transport(1, tmp_path)
    higher.serve("rpc", echo)
    async with running(lower, higher):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lower._connect, higher.me, higher.addresses()[0])
            nursery.start_soon(higher._connect, lower.me, lower.addresses()[0])
        await eventually(lambda: connections(lower) == connections(higher) == 1)
        await connected(lower, higher)
        assert await lower.call(higher.me, "rpc", b"x", timeout_ms=2_000) == b"x"
        assert not lower._sessions[higher.me].inbound  # both kept what the lower node id dialled
        assert higher._sessions[lower.me].inbound


async def test_the_higher_id_waits_for_the_lower_to_dial(tmp_path: Path) -> None:
    lower, higher = make_transport(0, tmp_path), make_transport(1, tmp_path)
    async with running(lower, higher):
        higher._dialer.learn(lower.me, lower.addresses()[0], "mdns", fresh=True)
        lower._dialer.learn(higher.me, higher.addresses()[0], "mdns", fresh=True)
        await connected(lower, higher)
        assert higher.peers()[0].found_by == "inbound"
        assert lower.peers()[0].found_by == "mdns"


@pytest.mark.slow
async def test_the_higher_id_dials_when_the_lower_does_not(tmp_path: Path) -> None:
    lower = make_transport(0, tmp_path)
    async with running(lower):
        higher = make_transport(1, tmp_path, peers=lower.addresses())
        async with running(higher):
            await connected(lower, higher)
            assert higher.peers()[0].found_by == "config"


async def test_a_member_is_found_at_its_genesis_address(tmp_path: Path) -> None:
    higher = make_transport(1, tmp_path)
    async with running(higher):
        lower = make_transport(0, tmp_path, fixed={higher.me: higher.addresses()})
        async with running(lower):
            await connected(lower, higher)
            assert lower.peers()[0].found_by == "genesis"


async def test_a_port_in_use_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        with pytest.raises(Refused, match=rf"cannot listen on {address}: address in use"):
            await make_transport(0, tmp_path, listen=(address,)).run()


async def test_a_port_of_another_daemon_is_refused_although_libp2p_would_share_it(tmp_path: Path) -> None:
    first = make_transport(0, tmp_path)
    async with running(first):
        with pytest.raises(Refused, match="address in use"):
            await make_transport(1, tmp_path, listen=first.addresses()).run()


@pytest.mark.parametrize(
    "address", ["/ip4/192.0.2.200/tcp/0", "nonsense", "/dns4/localhost/tcp/0", "/ip4/127.0.0.1/tcp/99999"]
)
async def test_an_unbindable_address_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(Refused, match="cannot listen on"):
        await make_transport(0, tmp_path, listen=(address,)).run()


def test_a_peer_address_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot use the peer address"):
        make_transport(0, tmp_path, peers=("localhost:4001",))


async def test_listening_on_every_interface_gives_real_addresses(tmp_path: Path) -> None:
    transport = make_transport(0, tmp_path, listen=("/ip4/0.0.0.0/tcp/0",))
    async with running(transport):
        addresses = transport.addresses()
        assert any(address.startswith("/ip4/127.0.0.1/tcp/") for address in addresses)
        assert not any("0.0.0.0" in address or address.endswith("/tcp/0") for address in addresses)


async def test_announced_addresses_replace_the_listeners_to_a_peer(tmp_path: Path) -> None:
    # Behind a router or a proxy: whoever learned the inner listener would dial past it, or nowhere.
    other = make_transport(1, tmp_path)
    async with running(other):
        announced = ("/ip4/127.0.0.1/tcp/9",)
        async with running(make_transport(0, tmp_path, peers=other.addresses(), announce=announced)):
            await eventually(lambda: other.peers()[0].connected)
            assert other.peers()[0].address == announced[0]
        await eventually(lambda: not other.peers()[0].connected)
        assert other.peers()[0].address == announced[0]


async def test_another_network_is_refused_and_named_as_a_problem(tmp_path: Path) -> None:
    log = RecordingLog()
    other = make_transport(1, tmp_path, network=OTHER_NETWORK)
    other.serve("rpc", echo)
    async with running(other):
        ours = make_transport(0, tmp_path, peers=other.addresses(), log=log)
        async with running(ours):
            await eventually(lambda: ours.problems() and other.problems())
            assert peer_id(other.me) in ours.problems()[0]
            assert not is_connected(ours, other.me)
            with pytest.raises(Unavailable):
                await ours.call(other.me, "rpc", b"", timeout_ms=500)
            assert log.count("peer runs another network") == 1


async def test_a_peer_address_with_the_id_of_a_non_member_is_ignored(tmp_path: Path) -> None:
    log = RecordingLog()
    stranger = peer_id(NodeId(NODES[3]))
    make_transport(0, tmp_path, members=NODES[:2], peers=(f"/ip4/127.0.0.1/tcp/9/p2p/{stranger}",), log=log)
    assert log.count("peer address ignored: not of another member") == 1


async def test_a_peer_back_on_another_port_is_found_through_what_it_knows(tmp_path: Path) -> None:
    """The address book survives the restart: the one that comes back finds the others, nobody is told anything."""
    higher = make_transport(1, tmp_path)
    async with running(higher):
        lower = make_transport(0, tmp_path, peers=higher.addresses())
        async with running(lower):
            await connected(lower, higher)
        again = make_transport(0, tmp_path)
        async with running(again):
            await connected(again, higher)
            assert again.peers()[0].found_by == "book"


@pytest.mark.slow
async def test_who_was_only_ever_dialled_knows_where_to_dial_after_a_restart(tmp_path: Path) -> None:
    higher = make_transport(1, tmp_path)
    async with running(higher):
        lower = make_transport(0, tmp_path, peers=higher.addresses())
        async with running(lower):
            await connected(lower, higher)
            await eventually(lambda: higher.peers()[0].address == lower.addresses()[0])
    (tmp_path / "addresses-0.json").unlink()  # the lower one has nobody to dial
    lower = make_transport(0, tmp_path, listen=lower.addresses())
    again = make_transport(1, tmp_path)
    async with running(lower, again):
        await connected(lower, again)
        assert again.peers()[0].found_by == "book"


async def test_a_busy_peer_says_so_and_its_reader_is_never_blocked(tmp_path: Path) -> None:
    async with connected_pair(tmp_path) as (one, other):
        release = trio.Event()
        outcomes: list[str] = []

        async def slow(_node: NodeId, _body: bytes) -> bytes:
            await release.wait()
            return b""

        async def ask() -> None:
            try:
                await one.call(other.me, "slow", b"", timeout_ms=10_000)
                outcomes.append("answered")
            except Unavailable as error:
                outcomes.append(str(error))

        other.serve("slow", slow)
        async with trio.open_nursery() as nursery:
            for _ in range(limits.CALLS_IN_HAND_PER_PEER_MAX + 5):
                nursery.start_soon(ask)
            await eventually(lambda: len(outcomes) == 5)
            release.set()
        assert outcomes.count("busy") == 5
        assert outcomes.count("answered") == limits.CALLS_IN_HAND_PER_PEER_MAX


async def test_consensus_overtakes_a_large_answer(tmp_path: Path) -> None:
    async with connected_pair(tmp_path) as (one, other):
        inbox, order, asked = one.inbox("consensus", 10), [], trio.Event()

        async def large(_node: NodeId, _body: bytes) -> bytes:
            asked.set()
            return bytes(16 * limits.MIB)

        async def ask() -> None:
            await one.call(other.me, "rpc", b"", timeout_ms=30_000)
            order.append("large")

        async def beat() -> None:
            await inbox.receive()
            order.append("heartbeat")

        other.serve("rpc", large)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(beat)
            await asked.wait()
            await trio.lowlevel.checkpoint()  # the answer is queued first
            other.send(one.me, "consensus", b"heartbeat")
        assert order == ["heartbeat", "large"]


async def test_a_call_overtakes_the_chunks_of_a_copy(tmp_path: Path) -> None:
    async with connected_pair(tmp_path) as (one, other):
        order: list[str] = []

        async def ask(channel: str, body: bytes) -> None:
            await one.call(other.me, channel, body, timeout_ms=60_000)
            order.append(channel)

        other.serve("chunks", echo)
        other.serve("attachments", echo)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask, "chunks", bytes(4 * limits.MIB))
            await trio.lowlevel.checkpoint()  # the chunks are queued first
            nursery.start_soon(ask, "attachments", b"a transaction waits for this")
        assert order[0] == "attachments"


async def test_sends_beyond_the_queue_are_dropped_and_counted(tmp_path: Path) -> None:
    async with connected_pair(tmp_path) as (one, other):
        for _ in range(limits.PEER_QUEUE_MESSAGES_MAX + 10):
            one.send(other.me, "consensus", b"x")
        assert one.counters["sends_dropped_queue_full"] == 10
        one.send(NODES[2], "consensus", b"x")
        assert one.counters["sends_dropped_not_connected"] == 1


async def test_bodies_over_the_limit_are_our_own_fault(tmp_path: Path) -> None:
    transport = make_transport(0, tmp_path)
    with pytest.raises(LocalFault):
        transport.send(NODES[1], "consensus", bytes(limits.MESSAGE_BYTES_MAX))
    with pytest.raises(LocalFault):
        await transport.publish("blocks", bytes(limits.PUBLISH_BYTES_MAX + 1))


async def test_a_peer_that_stops_is_noticed_at_once_and_stopping_is_quick(tmp_path: Path) -> None:
    higher = make_transport(1, tmp_path)
    async with running(higher):
        lower = make_transport(0, tmp_path, peers=higher.addresses())
        async with running(lower):
            await connected(lower, higher)
            stopping = trio.current_time()
        stopped = trio.current_time()
        await eventually(lambda: not is_connected(higher, lower.me))
        assert stopped - stopping < 30


async def test_heavy_traffic_both_ways_with_new_streams_does_not_deadlock(tmp_path: Path) -> None:
    async with connected_pair(tmp_path) as pair:
        fetched = []

        async def pieces(_node: NodeId, _body: bytes) -> AsyncIterator[bytes]:
            for _ in range(8):
                yield bytes(limits.MIB)

        async def fetch(asker: Libp2pTransport, asked: Libp2pTransport) -> None:
            async with asker.fetch(asked.me, "bulk", b"") as stream:
                fetched.append(sum([len(piece) async for piece in stream]))

        for one in pair:
            one.serve_stream("bulk", pieces)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(fetch, *pair)
                    nursery.start_soon(fetch, *reversed(pair))
        assert fetched == [8 * limits.MIB] * 12
