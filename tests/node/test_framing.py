"""Frames are cut the same however the bytes arrive, and hostile lengths are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.framing import Answer, Call, Failure, FrameBuffer, Hello, Message, Reply, Request, frame
from protocol import limits
from protocol.codec import decode
from protocol.errors import Malformed
from protocol.identifiers import NetworkId

CHANNELS = st.text(min_size=1, max_size=64)
REQUESTS = st.one_of(
    st.builds(Message, CHANNELS, st.binary(max_size=300)),
    st.builds(Call, st.integers(0, 2**64 - 1), CHANNELS, st.binary(max_size=300)),
)


@given(requests=st.lists(REQUESTS, max_size=8), size=st.integers(1, 500))
def test_frames_survive_any_way_of_cutting_the_bytes(requests: list[Message | Call], size: int) -> None:
    data = b"".join(map(frame, requests))
    buffer = FrameBuffer()
    received: list[Request] = []
    for start in range(0, len(data), size):
        for piece in buffer.feed(data[start : start + size]):
            received.append(decode(piece, Request))  # type: ignore[arg-type]  # noqa: PERF401 - a union, see node/
    assert received == requests


@pytest.mark.parametrize("length", [0, limits.MESSAGE_BYTES_MAX + 1, 2**32 - 1])
def test_lengths_out_of_bounds_are_refused_before_anything_is_buffered(length: int) -> None:
    with pytest.raises(Malformed):
        list(FrameBuffer().feed(length.to_bytes(4, "big")))


@pytest.mark.parametrize(
    ("reply", "spelled"),
    [
        (
            Hello(NetworkId(bytes(32)), ("/ip4/127.0.0.1/tcp/1",)),
            "93a96e65742e68656c6c6fc420" + "00" * 32 + "91b4",
        ),
        (Answer(7, b"x"), "93aa6e65742e616e7377657207c40178"),
        (Failure(7, True, "busy"), "94ab6e65742e6661696c75726507c3a462757379"),
    ],
)
def test_the_spelling_on_the_wire_does_not_change(reply: Reply, spelled: str) -> None:
    assert frame(reply)[4:].hex().startswith(spelled)
    assert decode(frame(reply)[4:], Reply) == reply  # type: ignore[arg-type]


def test_a_message_over_the_limit_cannot_be_framed() -> None:
    with pytest.raises(ValueError, match="over the limit"):
        frame(Message("x", bytes(limits.MESSAGE_BYTES_MAX)))
