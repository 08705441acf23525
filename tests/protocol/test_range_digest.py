"""Two sets of ids are compared at a cost of what differs."""

import hashlib
import random
from bisect import bisect

from hypothesis import given
from hypothesis import strategies as st

from protocol import codec
from protocol import range_digest as ranges
from protocol.identifiers import Cid, NodeId

numbers = st.sets(st.integers(0, 400), max_size=60)


def cid(number: int) -> Cid:
    return Cid(hashlib.sha256(number.to_bytes(4, "big")).digest())


def under(held: list[Cid], prefix: bytes) -> list[Cid]:
    stop = bisect(held, Cid(prefix.ljust(32, b"\xff")))
    return held[bisect(held, Cid(prefix.ljust(32, b"\0"))) : stop] if prefix else held


def lacked(mine: list[Cid], theirs: list[Cid]) -> tuple[set[Cid], int]:
    """Return what they lack of mine, found by asking part for part, and the bytes that were sent for it."""
    sent, found = 0, set[Cid]()
    due = list(ranges.differing(ranges.parts_of(mine, 0), ranges.parts_of(theirs, 0), b""))
    while due:
        prefix = due.pop()
        own = under(mine, prefix)
        asked = ranges.CompareRange(bytes(32), prefix, ranges.digest_of(own))
        answer = ranges.answer_to(asked.digest, prefix, under(theirs, prefix))
        sent += len(codec.encode(asked)) + len(codec.encode(answer))
        if isinstance(answer, ranges.HeldCids):
            found.update(set(own) - set(answer.cids))
        elif isinstance(answer, ranges.RangeParts):
            due += ranges.differing(ranges.parts_of(own, len(prefix)), answer.digests, prefix)
    return found, sent


@given(mine=numbers, theirs=numbers)
def test_exactly_what_the_other_lacks_is_found(mine: set[int], theirs: set[int]) -> None:
    found, _ = lacked(sorted(map(cid, mine)), sorted(map(cid, theirs)))

    assert found == {cid(number) for number in mine - theirs}


def test_the_cost_is_of_the_differences_and_not_of_the_store() -> None:
    draw = random.Random(4)
    everything = sorted(cid(number) for number in range(200_000))
    lost = set(draw.sample(everything, 5))

    found, sent = lacked(everything, [one for one in everything if one not in lost])

    assert found == lost
    assert sent < 5 * 40_000  # the ids alone are 6.4 MB


def test_alike_is_said_in_a_few_bytes() -> None:
    held = sorted(cid(number) for number in range(1_000) if cid(number)[0] == 7)

    answer = ranges.answer_to(ranges.digest_of(held), b"\x07", held)

    assert answer == ranges.Alike()
    assert len(codec.encode(answer)) < 10


@given(mine=numbers)
def test_the_digests_of_the_parts_are_those_of_the_ids_in_them(mine: set[int]) -> None:
    held = sorted(map(cid, mine))

    parts = ranges.parts_of(held, 0)

    assert all(parts[byte] == ranges.digest_of(under(held, bytes([byte]))) for byte in range(ranges.PARTS))


def test_members_compare_under_one_rule_in_whatever_order_they_list_each_other() -> None:
    storing = tuple(NodeId(bytes([number]) * 32) for number in range(3))

    assert ranges.rule_of(storing) == ranges.rule_of(storing[::-1])
    assert ranges.rule_of(storing) != ranges.rule_of(storing[:2])
