"""Whom the dialer dials, when and where, in virtual time."""

import trio
import trio.testing

from node.dialer import STABLE_MS, Dialer
from protocol import limits
from protocol.errors import Invalid, Unavailable
from protocol.identifiers import NodeId
from tests.node.transports import NODES, RecordingLog, SystemEntropy

HERE, THERE = "/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.2/tcp/2"


class VirtualClock:
    def now_ms(self) -> int:
        return round(trio.current_time() * 1000)

    async def sleep_ms(self, duration_ms: int) -> None:
        await trio.sleep(duration_ms / 1000)


class Dials:
    """Records attempts as (milliseconds since the start, address)."""

    def __init__(self, me: NodeId) -> None:
        self.made: list[tuple[int, str]] = []
        self.answers: dict[str, Exception] = {}
        self.dialer = Dialer(
            me=me,
            members=NODES[:2],
            connect=self._connect,
            clock=VirtualClock(),
            entropy=SystemEntropy(),
            log=RecordingLog(),
        )
        self._start = trio.current_time()

    async def _connect(self, node: NodeId, address: str) -> None:
        self.made.append((round((trio.current_time() - self._start) * 1000), address))
        if address in self.answers:
            raise self.answers[address]
        self.dialer.connected(node)


async def test_the_lower_id_dials_at_once_and_the_higher_after_three_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for index, expected in ((0, 0), (1, limits.DIAL_YIELD_MS)):
        dials = Dials(NODES[index])
        dials.dialer.learn(NODES[1 - index], HERE, "genesis")
        with trio.move_on_after(10):
            await dials.dialer.run()
        assert dials.made == [(expected, HERE)]


async def test_back_off_grows_to_five_seconds_with_jitter(autojump_clock: trio.testing.MockClock) -> None:
    dials = Dials(NODES[0])
    dials.answers[HERE] = Unavailable("refused")
    dials.dialer.learn(NODES[1], HERE, "genesis")
    with trio.move_on_after(60):
        await dials.dialer.run()
    gaps = [after - before for (before, _), (after, _) in zip(dials.made, dials.made[1:], strict=False)]
    assert limits.DIAL_BACKOFF_MS_MIN // 2 <= gaps[0] <= limits.DIAL_BACKOFF_MS_MIN
    assert all(limits.DIAL_BACKOFF_MS_MAX // 2 <= gap <= limits.DIAL_BACKOFF_MS_MAX for gap in gaps[5:])
    assert len(gaps) > 10


async def test_news_of_a_peer_ends_the_back_off_and_is_tried_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    dials = Dials(NODES[0])
    dials.answers[HERE] = Unavailable("refused")
    dials.dialer.learn(NODES[1], HERE, "genesis")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dials.dialer.run)
        await trio.sleep(30)
        dials.dialer.learn(NODES[1], THERE, "mdns", fresh=True)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert dials.made[-1] == (30_000, THERE)
    assert dials.dialer.best_address(NODES[1]) == (THERE, "mdns")


async def test_an_address_where_somebody_else_answers_is_left_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    dials = Dials(NODES[0])
    dials.answers = {HERE: Invalid("another node"), THERE: Unavailable("refused")}
    dials.dialer.learn(NODES[1], HERE, "genesis")
    dials.dialer.learn(NODES[1], THERE, "book")
    with trio.move_on_after(50):
        await dials.dialer.run()
    tried = [address for _, address in dials.made]
    assert tried[:2] == [THERE, HERE]
    assert tried.count(HERE) == 1
    assert tried.count(THERE) > 10


async def test_a_connection_that_does_not_last_is_not_redialled_in_a_loop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    dials = Dials(NODES[0])
    dials.dialer.learn(NODES[1], HERE, "genesis")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dials.dialer.run)
        with trio.move_on_after(20):
            while True:
                await trio.sleep(0.01)
                dials.dialer.disconnected(NODES[1])
        assert len(dials.made) < 15
        await trio.sleep(30)
        dials.dialer.disconnected(NODES[1])  # it lasted: redialled at once
        lost_at = round((trio.current_time() - dials._start) * 1000)
        await trio.testing.wait_all_tasks_blocked()
        assert dials.made[-1][0] == lost_at
        assert lost_at > STABLE_MS
        nursery.cancel_scope.cancel()


async def nobody(_node: NodeId, _address: str) -> None:
    raise Unavailable("nobody")


def test_an_address_that_is_none_and_a_node_that_is_no_member_are_ignored() -> None:
    dialer = Dialer(
        me=NODES[0],
        members=NODES[:2],
        connect=nobody,
        clock=VirtualClock(),
        entropy=SystemEntropy(),
        log=RecordingLog(),
    )
    dialer.learn(NODES[1], "/ip4/not-an-address/tcp/1", "mdns", fresh=True)
    dialer.learn(NODES[3], HERE, "mdns", fresh=True)
    assert dialer.best_address(NODES[1]) == ("", "")


async def test_who_is_let_go_and_taken_in_again_is_dialled_where_it_was_even_if_nobody_was_left_meanwhile(
    autojump_clock: trio.testing.MockClock,
) -> None:
    dials = Dials(NODES[0])
    dials.dialer.learn(NODES[1], HERE, "mdns")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dials.dialer.run)
        await trio.sleep(1)
        dials.dialer.keep({}, lambda _: False)
        await trio.sleep(60)
        assert len(dials.made) == 1
        dials.dialer.keep({NODES[1]: ()}, lambda _: False)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert dials.made == [(0, HERE), (61_000, HERE)]
