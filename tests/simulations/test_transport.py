import random
from collections.abc import AsyncIterator

import pytest
import trio

from protocol.errors import LocalFault, Unavailable
from protocol.identifiers import NodeId
from simulations.network import Network, Quality
from simulations.transport import VirtualTransport
from tests.contracts.peer_transport import Pair, PeerTransportContract, echo

ONE, OTHER = NodeId(b"a" * 32), NodeId(b"b" * 32)
Wired = tuple[Network, VirtualTransport, VirtualTransport]


@pytest.fixture
async def wired(nursery: trio.Nursery) -> Wired:
    network = Network(random.Random(1))
    one, other = (VirtualTransport(node, (ONE, OTHER), network, nursery) for node in (ONE, OTHER))
    network.attach(one)
    network.attach(other)
    nursery.start_soon(network.run)
    return network, one, other


class TestVirtualTransport(PeerTransportContract):
    @pytest.fixture
    async def pair(self, wired: Wired) -> Pair:
        _, one, other = wired
        return one, other


async def test_a_call_to_a_node_that_stops_ends_at_once(
    wired: Wired, nursery: trio.Nursery, autojump_clock
) -> None:
    network, one, other = wired

    async def never(_node: NodeId, _body: bytes) -> bytes:
        network.detach(other)
        await trio.sleep_forever()
        raise AssertionError

    other.serve("rpc", never)
    with pytest.raises(Unavailable, match="broke"):
        await one.call(OTHER, "rpc", b"", timeout_ms=60_000)
    assert trio.current_time() < 1


async def test_a_cut_link_drops_messages_and_lets_calls_run_into_their_limit(
    wired: Wired, autojump_clock
) -> None:
    network, one, other = wired
    other.serve("rpc", echo)
    inbox = other.inbox("news", 10)
    network.cut(ONE, OTHER)
    one.send(OTHER, "news", b"lost")
    with pytest.raises(Unavailable, match="within 500 ms"):
        await one.call(OTHER, "rpc", b"", timeout_ms=500)
    network.heal()
    one.send(OTHER, "news", b"arrives")
    assert (await inbox.receive())[1] == b"arrives"


async def test_a_lasting_cut_is_seen_as_a_lost_connection(wired: Wired, autojump_clock) -> None:
    network, one, _ = wired
    network.cut(OTHER, ONE)
    assert one.peers()[0].connected
    await trio.sleep(4)
    assert not one.peers()[0].connected
    with pytest.raises(Unavailable, match="not connected"):
        await one.call(OTHER, "rpc", b"", timeout_ms=500)


async def test_an_asymmetric_cut_lets_the_other_direction_through(wired: Wired, autojump_clock) -> None:
    network, one, other = wired
    mine, theirs = one.inbox("news", 10), other.inbox("news", 10)
    network.cut(ONE, OTHER)
    one.send(OTHER, "news", b"x")
    other.send(ONE, "news", b"y")
    await trio.sleep(1)
    assert mine.receive_nowait() == (OTHER, b"y")
    with pytest.raises(trio.WouldBlock):
        theirs.receive_nowait()


async def test_messages_are_lost_doubled_and_reordered_when_the_quality_says_so(
    wired: Wired, autojump_clock
) -> None:
    network, one, other = wired
    inbox = other.inbox("news", 1_000)
    network.quality = Quality(jitter_ms=20, loss=0.2, duplicate=0.2, reorder=0.3)
    for number in range(200):
        one.send(OTHER, "news", bytes([number]))
    await trio.sleep(2)
    received = [inbox.receive_nowait()[1][0] for _ in range(inbox.statistics().current_buffer_used)]
    assert 120 < len(set(received)) < 200
    assert len(received) > len(set(received))
    assert received != sorted(received)


async def test_messages_to_an_earlier_incarnation_are_lost(
    wired: Wired, nursery: trio.Nursery, autojump_clock
) -> None:
    network, one, other = wired
    one.send(OTHER, "news", b"to the old")
    network.detach(other)
    again = VirtualTransport(OTHER, (ONE, OTHER), network, nursery)
    inbox = again.inbox("news", 10)
    network.attach(again)
    await trio.sleep(1)
    with pytest.raises(trio.WouldBlock):
        inbox.receive_nowait()


async def test_a_stream_whose_server_stops_is_unavailable(wired: Wired, autojump_clock) -> None:
    network, one, other = wired

    async def pieces(_node: NodeId, _body: bytes) -> AsyncIterator[bytes]:
        yield b"first"
        network.cut(OTHER, ONE)
        yield b"second"

    other.serve_stream("bulk", pieces)
    received = []

    async def read() -> None:
        async with one.fetch(OTHER, "bulk", b"") as stream:
            async for piece in stream:
                received.append(piece)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(Unavailable, match="cut off"):
        await read()
    assert received == [b"first"]


async def test_a_channel_has_one_handler_and_one_queue(wired: Wired) -> None:
    _, one, _ = wired
    one.serve("rpc", echo)
    one.inbox("news", 1)
    with pytest.raises(LocalFault):
        one.serve("rpc", echo)
    with pytest.raises(LocalFault):
        one.inbox("news", 1)
