"""What every PeerTransport does. A test module subclasses `PeerTransportContract` and gives it a fixture `pair`.

`pair` is two started transports whose members are each other (and perhaps more) and that are connected.
"""

from collections.abc import AsyncIterator

import pytest
import trio

from node.ports import PeerTransport
from protocol import limits
from protocol.errors import Forbidden, RemoteFault, Unavailable
from protocol.identifiers import NodeId

Pair = tuple[PeerTransport, PeerTransport]
ABSENT = NodeId(b"\x01" * 32)


async def echo(_node: NodeId, body: bytes) -> bytes:
    return body


class PeerTransportContract:
    async def test_each_side_knows_the_other_and_not_itself(self, pair: Pair) -> None:
        one, other = pair
        assert one.me != other.me
        assert one.me not in [peer.node for peer in one.peers()]
        status = next(peer for peer in one.peers() if peer.node == other.me)
        assert status.connected
        assert status.address
        assert [peer.node for peer in one.peers()] == sorted(peer.node for peer in one.peers())

    async def test_a_call_returns_what_the_handler_of_its_channel_returned(self, pair: Pair) -> None:
        one, other = pair
        asked = []

        async def handler(node: NodeId, body: bytes) -> bytes:
            asked.append((node, body))
            return body[::-1]

        other.serve("rpc", handler)
        assert await one.call(other.me, "rpc", b"abc", timeout_ms=5_000) == b"cba"
        assert asked == [(one.me, b"abc")]

    async def test_calls_go_both_ways_at_once_and_keep_their_answers_apart(self, pair: Pair) -> None:
        one, other = pair
        one.serve("rpc", echo)
        other.serve("rpc", echo)
        wrong = []

        async def ask(asker: PeerTransport, asked: PeerTransport, number: int) -> None:
            body = number.to_bytes(4, "big")
            if await asker.call(asked.me, "rpc", body, timeout_ms=10_000) != body:
                wrong.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(ask, one, other, number)
                nursery.start_soon(ask, other, one, number)
        assert wrong == []

    async def test_a_refusal_travels_with_its_text(self, pair: Pair) -> None:
        one, other = pair

        async def refuse(_node: NodeId, _body: bytes) -> bytes:
            raise Forbidden("no consent for this")

        other.serve("rpc", refuse)
        with pytest.raises(RemoteFault, match="no consent for this"):
            await one.call(other.me, "rpc", b"", timeout_ms=5_000)

    async def test_a_bug_in_a_handler_answers_internal_error_and_harms_nothing_else(self, pair: Pair) -> None:
        one, other = pair

        async def fail(_node: NodeId, _body: bytes) -> bytes:
            raise ZeroDivisionError("secret detail")

        other.serve("bug", fail)
        other.serve("rpc", echo)
        with pytest.raises(RemoteFault, match=r"^internal error$"):
            await one.call(other.me, "bug", b"", timeout_ms=5_000)
        assert await one.call(other.me, "rpc", b"x", timeout_ms=5_000) == b"x"

    async def test_a_call_without_answer_ends_at_its_time_limit(self, pair: Pair) -> None:
        one, other = pair

        async def never(_node: NodeId, _body: bytes) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        other.serve("rpc", never)
        with pytest.raises(Unavailable):
            await one.call(other.me, "rpc", b"", timeout_ms=50)

    async def test_a_channel_that_nobody_serves_is_unavailable(self, pair: Pair) -> None:
        one, other = pair
        with pytest.raises(Unavailable):
            await one.call(other.me, "nobody", b"", timeout_ms=5_000)

    async def test_a_peer_that_is_away_is_unavailable_and_sends_to_it_are_dropped(self, pair: Pair) -> None:
        one, _ = pair
        one.send(ABSENT, "consensus", b"x")
        with pytest.raises(Unavailable):
            await one.call(ABSENT, "rpc", b"", timeout_ms=5_000)
        with pytest.raises(Unavailable):
            async with one.fetch(ABSENT, "bulk", b""):
                pass

    @pytest.mark.parametrize("channel", ["consensus", "news"])
    async def test_messages_arrive_in_order_at_the_inbox_of_their_channel(
        self, pair: Pair, channel: str
    ) -> None:
        one, other = pair
        inbox = other.inbox(channel, 100)
        for number in range(20):
            one.send(other.me, channel, bytes([number]))
        with trio.fail_after(60):
            received = [await inbox.receive() for _ in range(20)]
        assert received == [(one.me, bytes([number])) for number in range(20)]

    async def test_a_full_inbox_drops_what_is_new(self, pair: Pair) -> None:
        one, other = pair
        inbox = other.inbox("news", 2)
        other.serve("rpc", echo)
        for number in range(5):
            one.send(other.me, "news", bytes([number]))
        await one.call(other.me, "rpc", b"", timeout_ms=5_000)  # later on the same stream
        assert [inbox.receive_nowait()[1] for _ in range(2)] == [b"\x00", b"\x01"]
        with pytest.raises(trio.WouldBlock):
            inbox.receive_nowait()

    async def test_an_inbox_that_was_closed_gives_way_to_another(self, pair: Pair) -> None:
        one, other = pair
        other.inbox("news", 2).close()
        inbox = other.inbox("news", 2)
        one.send(other.me, "news", b"x")
        with trio.fail_after(60):
            assert await inbox.receive() == (one.me, b"x")

    async def test_a_large_call_arrives_whole(self, pair: Pair) -> None:
        one, other = pair
        other.serve("rpc", echo)
        body = bytes(range(256)) * (8 * limits.MIB // 256)
        assert await one.call(other.me, "rpc", body, timeout_ms=20_000) == body

    async def test_a_fetch_yields_the_pieces_in_order(self, pair: Pair) -> None:
        one, other = pair

        async def pieces(_node: NodeId, body: bytes) -> AsyncIterator[bytes]:
            for number in range(10):
                yield body + bytes([number]) * 100_000

        other.serve_stream("bulk", pieces)
        with trio.fail_after(60):
            async with one.fetch(other.me, "bulk", b"p") as stream:
                received = [piece async for piece in stream]
        assert received == [b"p" + bytes([number]) * 100_000 for number in range(10)]

    async def test_a_fetch_whose_handler_fails_half_way_says_so(self, pair: Pair) -> None:
        one, other = pair

        async def pieces(_node: NodeId, _body: bytes) -> AsyncIterator[bytes]:
            yield b"first"
            raise Forbidden("not the rest")

        other.serve_stream("bulk", pieces)
        received = []

        async def read() -> None:
            async with one.fetch(other.me, "bulk", b"") as stream:
                async for piece in stream:
                    received.append(piece)  # noqa: PERF401 - what came before the error counts

        with trio.fail_after(60), pytest.raises(RemoteFault, match="not the rest"):
            await read()
        assert received == [b"first"]

    async def test_a_fetch_may_be_left_early(self, pair: Pair) -> None:
        one, other = pair
        ended = trio.Event()

        async def pieces(_node: NodeId, _body: bytes) -> AsyncIterator[bytes]:
            try:
                while True:
                    yield bytes(100_000)
            finally:
                ended.set()

        other.serve_stream("bulk", pieces)
        other.serve("rpc", echo)
        with trio.fail_after(60):
            async with one.fetch(other.me, "bulk", b"") as stream:
                async for _ in stream:
                    break
            await ended.wait()
        assert await one.call(other.me, "rpc", b"still here", timeout_ms=5_000) == b"still here"

    async def test_gossip_reaches_the_subscriber_with_its_publisher_and_not_the_publisher(
        self, pair: Pair
    ) -> None:
        one, other = pair
        mine, theirs = one.subscribe("blocks", 100), other.subscribe("blocks", 100)
        received = None
        with trio.move_on_after(30):
            while received is None:  # a hint is lost while the mesh forms
                await one.publish("blocks", b"height 7")
                with trio.move_on_after(0.2):
                    received = await theirs.receive()
        assert received == (one.me, b"height 7")
        with pytest.raises(trio.WouldBlock):
            mine.receive_nowait()

    async def test_addresses_have_real_ports(self, pair: Pair) -> None:
        assert all(address and not address.endswith("/tcp/0") for one in pair for address in one.addresses())
        assert all(one.addresses() for one in pair)
