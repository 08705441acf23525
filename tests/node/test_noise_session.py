"""Sealed messages between two real sockets, and what an attacker in between can do to them."""

import pytest
import trio
from cryptography.exceptions import InvalidTag
from libp2p.io.exceptions import ConnectionClosedError

from node.noise_session import PLAINTEXT_BYTES_MAX, NoiseSession
from node.yamux import Yamux
from tests.node.secure_pair import noise_pair

NONCES = 2**64 - 1


async def next_of(session: NoiseSession) -> bytes:
    with trio.fail_after(60):
        while (message := session.next_message()) is None:
            if not await session.receive():
                raise EOFError
    return message


async def transfer(one: NoiseSession, messages: list[bytes]) -> None:
    await one.send_rest(one.send_now(messages))


async def next_two_of(session: NoiseSession) -> tuple[bytes, bytes]:
    return await next_of(session), await next_of(session)


def sealed(session: NoiseSession, *messages: bytes) -> list[bytes]:
    """Messages as they travel."""
    found = []
    for message in messages:
        ciphertext = session._sealing.encrypt_with_ad(None, message)
        found.append(len(ciphertext).to_bytes(2, "big") + ciphertext)
    return found


async def test_messages_of_every_length_arrive_whole_and_in_order() -> None:
    messages = [bytes([size % 251]) * size for size in (1, 0, 12, 4_096, PLAINTEXT_BYTES_MAX, 3)]
    async with noise_pair() as (one, other), trio.open_nursery() as nursery:
        nursery.start_soon(transfer, one, messages * 8)
        assert [await next_of(other) for _ in messages * 8] == messages * 8
    assert len(sealed(one, bytes(PLAINTEXT_BYTES_MAX))[0]) == 2 + 65_535


async def test_a_message_is_the_same_however_the_network_cuts_it() -> None:
    async with noise_pair() as (one, other):
        wire = b"".join(sealed(one, b"first", b"", b"x" * 300))
        found = []
        for at in range(len(wire)):
            await one._stream.send_all(wire[at : at + 1])
            assert await other.receive()
            while (message := other.next_message()) is not None:
                found.append(message)
    assert found == [b"first", b"", b"x" * 300]


@pytest.mark.parametrize(
    "attack",
    [
        lambda first, second: [first[:-1] + bytes([first[-1] ^ 1]), second],
        lambda first, second: [second, first],
        lambda _first, second: [second],
        lambda first, _second: [first, first],
        lambda _first, _second: [b"\x00\x00"],
        lambda _first, _second: [b"\x00\x0fshort of a tag."],
        lambda _first, _second: [b"\x00\x10" + bytes(16)],
    ],
    ids=["flipped", "swapped", "left out", "again", "empty", "short", "forged"],
)
async def test_a_message_that_the_peer_did_not_seal_in_this_place_is_not_opened(attack) -> None:
    async with noise_pair() as (one, other):
        await one._stream.send_all(b"".join(attack(*sealed(one, b"first", b"second"))))
        with pytest.raises(InvalidTag):
            await next_two_of(other)


async def test_an_end_within_a_message_is_an_error_and_not_an_end() -> None:
    async with noise_pair() as (one, other):
        whole, cut = sealed(one, b"first", b"second")
        await one._stream.send_all(whole + cut[:-1])
        await one._stream.send_eof()
        assert await next_of(other) == b"first"
        with pytest.raises(ConnectionClosedError, match="within a message"):
            await next_of(other)


async def test_an_end_between_messages_is_told() -> None:
    async with noise_pair() as (one, other):
        await transfer(one, [b"last"])
        await one._stream.send_eof()
        assert await next_of(other) == b"last"
        assert not await other.receive()


async def test_without_a_number_for_another_message_the_connection_ends() -> None:
    """2^64 - 1 messages: nobody lives to see it. A number that is used twice would give the key away."""
    async with noise_pair() as (one, other), trio.open_nursery() as nursery:
        muxed = Yamux(one, "peer", is_initiator=True)
        nursery.start_soon(muxed.start)
        await muxed.event_started.wait()
        stream = await muxed.open_stream()
        assert (await next_of(other))[:2] == b"\x00\x01"
        one._sealing.set_nonce(NONCES - 1)
        other._opening.set_nonce(NONCES - 1)
        await stream.write(b"the last")
        assert (await next_of(other)).endswith(b"the last")
        with pytest.raises(ConnectionClosedError):
            await stream.write(b"one more")
        await muxed.event_closed.wait()
        with pytest.raises(EOFError):
            await next_of(other)


async def test_without_a_number_left_nothing_more_is_opened() -> None:
    async with noise_pair() as (one, other), trio.open_nursery() as nursery:
        muxed = Yamux(other, "peer", is_initiator=False)
        other._opening.set_nonce(NONCES)
        nursery.start_soon(muxed.start)
        await transfer(one, [b"one more"])
        await muxed.event_closed.wait()
        assert not muxed.streams
