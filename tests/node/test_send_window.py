"""As many messages are on their way as do not wait for each other: few to a busy peer, many on a long way."""

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.send_window import SendWindow

MOST = 8


def on_way_seen(window: SendWindow, *, way_ms: int, work_ms: int, messages: int) -> tuple[list[int], int]:
    """Send to a peer that works on one message after the other; return how many were on their way, and when all was done."""
    now = free_at = sent = 0
    on_way: list[tuple[int, int, int, bool]] = []
    seen = []
    while sent < messages or on_way:
        while sent < messages and len(on_way) < window.size:
            free_at = max(free_at, now + way_ms // 2) + work_ms
            heapq.heappush(on_way, (free_at + way_ms // 2, sent, now, window.sent()))
            sent += 1
        seen.append(len(on_way))
        now, _, began, alone = heapq.heappop(on_way)
        window.answered(now - began, alone=alone)
    return seen, now


def test_to_a_busy_peer_next_door_a_few_are_on_their_way_and_it_never_idles() -> None:
    seen, ended = on_way_seen(SendWindow(MOST), way_ms=0, work_ms=20, messages=1_000)

    assert sum(seen) / len(seen) <= 2.5
    assert ended == 20 * 1_000


def test_on_a_long_way_as_many_as_may_be_are_on_their_way() -> None:
    seen, ended = on_way_seen(SendWindow(MOST), way_ms=80, work_ms=2, messages=1_000)

    assert sorted(seen)[len(seen) // 2] == MOST
    assert ended <= 1.5 * 1_000 * 82 / MOST


def test_a_way_that_becomes_longer_is_looked_at_again() -> None:
    window = SendWindow(MOST)
    on_way_seen(window, way_ms=10, work_ms=2, messages=200)
    seen, _ = on_way_seen(window, way_ms=80, work_ms=2, messages=400)

    assert sorted(seen)[len(seen) // 2] == MOST


def test_one_bad_moment_does_not_open_the_window_for_good() -> None:
    window = SendWindow(MOST)
    window.answered(2_000, alone=window.sent())  # a disk stood still
    seen, _ = on_way_seen(window, way_ms=0, work_ms=20, messages=1_000)

    assert sum(seen[200:]) / len(seen[200:]) <= 2.5


def test_who_loses_a_message_begins_with_one_again() -> None:
    window = SendWindow(MOST)
    on_way_seen(window, way_ms=80, work_ms=2, messages=40)
    assert window.size > 1
    window.sent()
    window.lost()

    assert window.size == 1
    assert window.sent() is True


@pytest.mark.parametrize("most", [1, 3])
@given(took=st.lists(st.tuples(st.integers(-50, 5_000), st.booleans()), max_size=200))
def test_the_window_stays_within_its_bounds(most: int, took: list[tuple[int, bool]]) -> None:
    window = SendWindow(most)
    for took_ms, is_lost in took:
        alone = window.sent()
        if is_lost:
            window.lost()
        else:
            window.answered(took_ms, alone=alone)
        assert 1 <= window.size <= most
