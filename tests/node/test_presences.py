"""Which processes of a member speak, and which one was there first."""

import trio

from node.presences import Presences
from protocol.identifiers import NodeId

ONE, OTHER = NodeId(b"1" * 32), NodeId(b"2" * 32)


async def test_of_two_processes_the_later_one_is_told_of_the_earlier_and_not_the_other_way_round(
    autojump_clock,
) -> None:
    presences = Presences()
    presences.note(ONE, b"original")
    await trio.sleep(1)
    presences.note(ONE, b"copy")
    await trio.sleep(0.5)
    assert presences.before_ms(ONE, b"copy") == 1_500
    assert presences.before_ms(ONE, b"original") is None
    assert presences.before_ms(ONE, b"not heard yet") == 500
    assert presences.before_ms(OTHER, b"copy") is None


async def test_two_run_where_the_earlier_one_is_heard_after_the_later(autojump_clock) -> None:
    presences = Presences()
    heard = [presences.note(ONE, nonce) for nonce in (b"first life", b"first life")]
    await trio.sleep(1)
    heard.append(presences.note(ONE, b"second life"))
    assert heard == [False, False, False], "a restart is no copy"
    await trio.sleep(1)
    assert presences.note(ONE, b"first life")


async def test_what_has_ended_or_is_silent_for_long_is_forgotten(autojump_clock) -> None:
    presences = Presences()
    presences.note(ONE, b"ended")
    presences.note(ONE, b"silent")
    presences.forget(ONE, b"ended")
    await trio.sleep(29)
    assert presences.before_ms(ONE, b"new") == 29_000
    await trio.sleep(2)
    assert presences.before_ms(ONE, b"new") is None
    assert not presences.note(ONE, b"new")


async def test_who_says_that_it_is_many_costs_no_memory(autojump_clock) -> None:
    presences = Presences()
    for number in range(1_000):
        presences.note(ONE, number.to_bytes(2, "big"))
        await trio.sleep(0.001)
    assert len(presences._spans[ONE]) == 8
