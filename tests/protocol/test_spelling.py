"""Large messages are spelled as msgpack spells them, and every other spelling of them is refused."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec, spelling
from protocol.chunk_exchange import PutChunks
from protocol.errors import Malformed

LARGE = bytes(spelling.LARGE_BYTES)
SMALL = st.one_of(
    st.binary(max_size=40), st.integers(0, 2**64 - 1), st.text(max_size=8), st.none(), st.booleans()
)
LARGE_BYTES = st.sampled_from((LARGE, LARGE + b"x", bytes(65_535), bytes(65_536), bytes(200_000)))
INNER = st.lists(st.one_of(SMALL, LARGE_BYTES), max_size=20).map(tuple)
VALUES = st.lists(st.one_of(SMALL, LARGE_BYTES, INNER), max_size=20).map(tuple)


def packed(value: Any) -> bytes:
    return bytes(msgpack.packb(value, use_bin_type=True))


@given(value=VALUES)
def test_a_message_is_spelled_as_msgpack_spells_it(value: tuple) -> None:
    data = packed(value)

    assert spelling.spell(value, packed) == data
    assert spelling.is_spelled(value, data, packed)
    assert codec.unpack(data) == value


@given(value=VALUES, place=st.integers(min_value=0), other=st.integers(1, 255))
def test_a_changed_byte_is_another_value_or_refused(value: tuple, place: int, other: int) -> None:
    data = bytearray(packed((*value, LARGE)))
    # In a head, where it matters, rather than in the middle of many equal bytes.
    data[place % min(len(data), 200)] ^= other

    try:
        found = codec.unpack(bytes(data))
    except Malformed:
        return
    assert packed(found) == bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x91\xc6" + len(LARGE).to_bytes(4, "big") + LARGE,  # bin 16 would do
        b"\xdc\x00\x01" + packed(LARGE),  # fixarray would do
        b"\xdd\x00\x00\x00\x01" + packed(LARGE),
        b"\x92" + packed(LARGE) + b"\xcc\x07",  # fixint would do
        b"\x92" + packed(LARGE) + b"\xd1\x01\x00",  # 256 as a signed number takes as many bytes as canonical
        b"\x92" + packed(LARGE) + b"\xd1\xff\x00",
        b"\x92" + packed(LARGE) + b"\xcb" + bytes(8),
        b"\x91\x91\xc6" + len(LARGE).to_bytes(4, "big") + LARGE,
        b"\x91" + packed(LARGE) + b"\x00",
        b"\x92" + packed(LARGE),
        b"\x91\xda" + (20_000).to_bytes(2, "big") + b"a" * 20_000 + b"\x00",
    ],
    ids=[
        "bin",
        "array 16",
        "array 32",
        "int",
        "signed",
        "negative",
        "float",
        "nested",
        "more",
        "less",
        "text",
    ],
)
def test_no_other_spelling_of_a_large_message_is_taken(data: bytes) -> None:
    with pytest.raises(Malformed):
        codec.unpack(data)


def test_large_text_and_many_large_chunks_go_the_ordinary_way() -> None:
    assert codec.unpack(packed(("a" * 20_000,))) == ("a" * 20_000,)
    many = tuple(bytes([number]) * spelling.LARGE_BYTES for number in range(70))
    assert codec.encode_large(PutChunks(many[:2])) == codec.encode(PutChunks(many[:2]))
    assert codec.decode(codec.encode_large(PutChunks(many)), PutChunks).chunks == many
