import random
from collections.abc import AsyncIterator

import pytest
import trio

from protocol.identifiers import NodeId
from simulations.network import GOOD, Network, Quality
from simulations.transport import VirtualTransport

A, B, C = (NodeId(bytes([letter]) * 32) for letter in b"abc")


class Wired:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.network = Network(random.Random(1))
        self.ports = {node: VirtualTransport(node, (A, B, C), self.network, nursery) for node in (A, B, C)}
        self.inboxes = {node: port.inbox("news", 1_000) for node, port in self.ports.items()}
        for port in self.ports.values():
            self.network.attach(port)
        nursery.start_soon(self.network.run)

    def send(self, source: NodeId, target: NodeId, body: bytes = b"x") -> None:
        self.ports[source].send(target, "news", body)

    def arrived(self, node: NodeId) -> list[bytes]:
        inbox = self.inboxes[node]
        return [inbox.receive_nowait()[1] for _ in range(inbox.statistics().current_buffer_used)]


@pytest.fixture
async def wired(nursery: trio.Nursery) -> Wired:
    return Wired(nursery)


async def test_a_clogged_link_holds_messages_and_delivers_them_all_at_once_in_order(
    wired: Wired, autojump_clock
) -> None:
    wired.network.clog(A, B, 5)
    for number in range(10):
        wired.send(A, B, bytes([number]))
        await trio.sleep(0.4)
    wired.send(B, A)
    await trio.sleep(0.1)
    assert (wired.arrived(A), wired.arrived(B)) == ([b"x"], [])
    await trio.sleep(1)
    assert wired.arrived(B) == [bytes([number]) for number in range(10)]


async def test_a_clog_drops_what_no_queue_would_hold(wired: Wired, autojump_clock) -> None:
    wired.network.clog(A, B)
    for _ in range(5_000):
        wired.send(A, B)
    wired.network.unclog(A, B)
    await trio.sleep(1)
    assert 100 < len(wired.arrived(B)) < 5_000


async def test_healing_lets_go_what_is_held_also_a_stream(wired: Wired, autojump_clock) -> None:
    async def pieces(_node: NodeId, _body: bytes) -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    received = []

    async def read() -> None:
        async with wired.ports[A].fetch(B, "bulk", b"") as stream:
            async for piece in stream:
                received.append(piece)  # noqa: PERF401 - compared before the end

    wired.ports[B].serve_stream("bulk", pieces)
    wired.network.clog(B, A)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.sleep(2)
        assert received == []
        wired.network.heal()
    assert received == [b"one", b"two"]


async def test_cuts_that_overlap_end_when_the_last_one_does(wired: Wired, autojump_clock) -> None:
    wired.network.cut_for([(A, B)], 2)
    wired.network.cut_for([(A, B)], 4)
    outcomes = []
    for _ in range(3):
        await trio.sleep(1.5)
        outcomes.append(wired.network.is_cut(A, B))
    assert outcomes == [True, True, False]
    wired.network.join(A, B)  # one too many does no harm
    wired.network.cut(A, B)
    assert wired.network.is_cut(A, B)


async def test_a_flapping_link_is_cut_and_joined_until_its_time_is_over(wired: Wired, autojump_clock) -> None:
    wired.network.flap(A, B, 0.5, 3)
    seen = []
    await trio.sleep(0.25)
    for _ in range(10):
        seen.append((wired.network.is_cut(A, B), wired.network.is_cut(B, A)))
        await trio.sleep(0.5)
    assert seen[:6] == [(True, True), (False, False)] * 3
    assert seen[7:] == [(False, False)] * 3


async def test_healing_ends_flapping_and_timed_cuts_for_good(wired: Wired, autojump_clock) -> None:
    wired.network.flap(A, B, 0.5)
    wired.network.cut_for([(B, C)], 3)
    await trio.sleep(0.2)
    wired.network.heal()
    wired.network.cut(B, C)
    for _ in range(8):
        await trio.sleep(0.5)
        assert not wired.network.is_cut(A, B)
        assert wired.network.is_cut(B, C), "the end of the healed cut is not that of this one"


async def test_one_direction_of_one_link_has_a_quality_of_its_own(wired: Wired, autojump_clock) -> None:
    wired.network.set_quality(A, B, Quality(delay_ms=500, jitter_ms=0))
    wired.send(A, B)
    wired.send(B, A)
    wired.send(A, C)
    await trio.sleep(0.4)
    assert [len(wired.arrived(node)) for node in (A, B, C)] == [1, 0, 1]
    await trio.sleep(0.2)
    assert len(wired.arrived(B)) == 1
    wired.network.set_quality(A, B, None)
    assert wired.network.quality == GOOD
    wired.send(A, B)
    await trio.sleep(0.2)
    assert len(wired.arrived(B)) == 1
