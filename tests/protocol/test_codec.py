"""One spelling for every value: round trips, golden bytes, and refusal of every other spelling."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import codec, limits
from protocol.codec import Size, wire
from protocol.errors import Malformed

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "codec.json").read_text())


@wire("test-leaf")
@dataclass(frozen=True, slots=True)
class Leaf:
    key: Annotated[bytes, Size(4)]
    count: int


@wire("test-tree")
@dataclass(frozen=True, slots=True)
class Tree:
    name: Annotated[str, Size(0, 8)]
    is_open: bool
    leaves: Annotated[tuple[Leaf, ...], Size(0, 3)]
    note: bytes | None
    root: Leaf | None


EXAMPLE = Tree("größe", True, (Leaf(b"abcd", 0), Leaf(b"efgh", 2**64 - 1)), None, Leaf(b"\x00" * 4, 300))
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**64 - 1) | st.binary(max_size=300) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=5).map(tuple),
    max_leaves=12,
)


@pytest.mark.parametrize("vector", VECTORS["values"], ids=lambda vector: vector["what"])
def test_plain_values_have_the_golden_spelling(vector):
    data = bytes.fromhex(vector["hex"])
    assert codec.pack(*codec.unpack(data)) == data
    assert repr(codec.unpack(data)) == vector["values"]


def test_a_registered_value_has_the_golden_spelling():
    assert codec.encode(EXAMPLE).hex() == VECTORS["tree"]
    assert codec.decode(codec.encode(EXAMPLE), Tree) == EXAMPLE


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["what"])
def test_every_other_spelling_is_refused(vector):
    with pytest.raises(Malformed):
        codec.unpack(bytes.fromhex(vector["hex"]))


@given(values=st.lists(plain_values, max_size=5))
@settings(deadline=None)
def test_what_is_packed_is_unpacked_as_it_was(values):
    assert codec.unpack(codec.pack(*values)) == tuple(values)


@given(data=st.binary(max_size=60))
@settings(deadline=None, max_examples=300)
def test_no_bytes_do_anything_but_decode_or_be_refused(data):
    try:
        values = codec.unpack(data)
    except Malformed:
        return
    assert codec.pack(*values) == data


@given(left=st.lists(plain_values, max_size=3), right=st.lists(plain_values, max_size=3))
@settings(deadline=None)
def test_packing_is_injective(left, right):
    spelled_alike = codec.pack(*left) == codec.pack(*right)
    # True == 1 in Python and not on the wire, hence the representation
    assert spelled_alike == (repr(tuple(left)) == repr(tuple(right)))


@pytest.mark.parametrize("value", [-1, 2**64, 1.0, {}, {"a": 1}, object(), (1, (2, -3))])
def test_values_without_a_canonical_form_are_our_own_mistake(value):
    with pytest.raises(ValueError, match="no canonical encoding"):
        codec.pack(value)


@pytest.mark.parametrize(
    "plain",
    [
        ("test-leaf", b"abcd"),
        ("test-leaf", b"abcd", 1, 1),
        ("other", b"abcd", 1),
        ("test-leaf", b"abc", 1),
        ("test-leaf", "abcd", 1),
        ("test-leaf", b"abcd", True),
        ("test-leaf", b"abcd", None),
        (b"test-leaf", b"abcd", 1),
        (),
    ],
)
def test_wrong_tags_arity_types_and_sizes_are_refused(plain):
    with pytest.raises(Malformed):
        codec.decode(codec.pack(*plain), Leaf)


def test_optional_fields_and_unions_take_only_their_members():
    either: Any = Leaf | Tree  # a union is no type to mypy
    assert codec.decode(codec.encode(Leaf(b"abcd", 1)), either) == Leaf(b"abcd", 1)
    as_note = dataclasses.replace(EXAMPLE, note=b"", root=None)
    assert codec.decode(codec.encode(as_note), Tree) == as_note
    plain = list(codec.to_plain(EXAMPLE))
    for index, bad in (
        (3, (("test-leaf", b"abcd", 1),) * 4),
        (1, "a" * 9),
        (4, "text"),
        (5, ("test-tree",)),
        (5, ()),
        (3, 7),
    ):
        spoiled = [*plain[:index], bad, *plain[index + 1 :]]
        with pytest.raises(Malformed):
            codec.decode(codec.pack(*spoiled), Tree)


def test_a_tag_is_taken_once():
    with pytest.raises(ValueError, match="test-leaf"):
        wire("test-leaf")(Leaf)


def test_a_message_over_the_limit_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr(limits, "MESSAGE_BYTES_MAX", 10)
    with pytest.raises(Malformed, match="over the limit"):
        codec.unpack(codec.pack(b"0123456789"))


def test_deep_nesting_is_refused_not_a_crash():
    with pytest.raises(Malformed):
        codec.unpack(b"\x91" * 100_000 + b"\x90")


def test_maps_floats_extensions_and_negative_numbers_do_not_exist():
    values: tuple[Any, ...] = ([{}], [1.5], [-1], [msgpack.ExtType(1, b"")], [msgpack.Timestamp(1)])
    for value in values:
        with pytest.raises(Malformed):
            codec.unpack(msgpack.packb(value))
