"""A hostile member at the answering side of our streams: what it can make us keep is bounded."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from node.framing import BODY_BYTES_MAX, Call, Fetch, Hello, frame
from node.peer_session import BULK_PROTOCOL, MESSAGES_PROTOCOL
from protocol import limits
from tests.node.hostile import attacker, is_reset
from tests.node.test_libp2p_hostile import MEMBER_SEED, Scene, become_member
from tests.node.transports import NETWORK, connected_pair, eventually


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with connected_pair(tmp_path) as (honest, victim):
        yield Scene(victim, honest)


async def test_a_second_stream_of_one_protocol_is_reset(scene: Scene) -> None:
    """Each may keep a message of 20 MiB that is not complete: 128 of them were 2.5 GiB."""
    async with attacker(MEMBER_SEED) as hostile:
        connection = await become_member(hostile, scene)
        talking, before = scene.victim._server._conversations, len(scene.victim._server._conversations)
        first = await hostile.open(connection, MESSAGES_PROTOCOL)
        await first.write(frame(Hello(NETWORK, ())))
        await eventually(lambda: len(talking) > before)
        with contextlib.suppress(trio.BrokenResourceError):  # reset before the protocol was agreed on
            assert await is_reset(await hostile.open(connection, MESSAGES_PROTOCOL))
        await eventually(lambda: scene.victim.counters["failed_streams"] == 1)
        await first.write(frame(Call(1, "rpc", b"well?")))
        assert await says(first, b"well?")
        await first.reset()
        await eventually(lambda: len(talking) == before)
        again = await hostile.open(connection, MESSAGES_PROTOCOL)
        await again.write(frame(Hello(NETWORK, ())) + frame(Call(1, "rpc", b"again?")))
        assert await says(again, b"again?")
    await scene.assert_unharmed()


async def says(stream: Any, words: bytes) -> bool:
    heard = b""
    with trio.fail_after(60):
        while words not in heard:
            heard += await stream.read(65_536)
    return True


async def test_a_fetch_that_asks_with_megabytes_is_reset(scene: Scene) -> None:
    async with attacker(MEMBER_SEED) as hostile:
        connection = await become_member(hostile, scene)
        stream = await hostile.open(connection, BULK_PROTOCOL)
        await stream.write((1 << 20).to_bytes(4, "big"))
        assert await is_reset(stream)
    await scene.assert_unharmed()


async def test_calls_that_nobody_serves_leave_no_tasks_behind(scene: Scene) -> None:
    """From a peer that reads no answers: each was a task that waited for room."""
    async with attacker(MEMBER_SEED) as hostile:
        connection = await become_member(hostile, scene)
        stream = await hostile.open(connection, MESSAGES_PROTOCOL)
        before = trio.lowlevel.current_statistics().tasks_living
        await stream.write(frame(Hello(NETWORK, ())))
        calls = frame(Call(1, "nobody's", b"")) * 1_000
        while not scene.victim.counters["answers_dropped"]:
            await stream.write(calls)
            assert trio.lowlevel.current_statistics().tasks_living < before + 100
    await scene.assert_unharmed()


async def test_answers_of_many_pieces_that_nobody_reads_are_bounded(scene: Scene) -> None:
    served = 0

    async def large(_node: Any, _body: bytes) -> AsyncIterator[bytes]:
        nonlocal served
        served += 1
        while True:
            yield bytes(BODY_BYTES_MAX // 20)

    scene.victim.serve_stream("large", large)
    async with attacker(MEMBER_SEED) as hostile:
        connection = await become_member(hostile, scene)
        for _ in range(limits.FETCHES_IN_HAND_PER_PEER_MAX):
            stream = await hostile.open(connection, BULK_PROTOCOL)
            await stream.write(frame(Fetch(NETWORK, "large", b"")))
        await eventually(lambda: served == limits.FETCHES_IN_HAND_PER_PEER_MAX)
        one_more = await hostile.open(connection, BULK_PROTOCOL)
        await one_more.write(frame(Fetch(NETWORK, "large", b"")))
        assert await says(one_more, b"busy")
        await stream.reset()
        await eventually(
            lambda: (
                {held.fetches for held in scene.victim._server._in_hand.values()}
                >= {limits.FETCHES_IN_HAND_PER_PEER_MAX - 1}
            )
        )
        assert served == limits.FETCHES_IN_HAND_PER_PEER_MAX
        await scene.assert_unharmed()
    await scene.assert_unharmed()
