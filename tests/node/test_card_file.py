"""card.json and genesis.json: the value counts, not the text."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import card_file
from node.config import Config
from node.identity import Identity
from protocol.configuration import Card, Configuration, found, network_id
from protocol.errors import Refused


def make_card(name: str, number: int) -> Card:
    keys = Identity(*(bytes([number, place]) * 16 for place in range(7)))
    return keys.card(Config(name, listen=("/ip4/127.0.0.1/tcp/4001",)))


CARDS = tuple(make_card(name, number) for number, name in enumerate(("Alpha", "Bèta", "Gamma"), start=1))
GENESIS: Configuration = found(CARDS, nonce=bytes(range(32)))


def test_a_card_is_read_back_the_same() -> None:
    assert card_file.parse_card(card_file.card_text(CARDS[0]), source="card.json") == CARDS[0]


def test_a_genesis_is_read_back_with_the_same_network_id() -> None:
    read = card_file.parse_genesis(card_file.genesis_text(GENESIS), source="g")
    assert read == GENESIS
    assert network_id(read) == network_id(GENESIS)


@pytest.mark.parametrize("indent", [None, 0, 7])
def test_text_that_changes_no_value_passes(indent: int | None) -> None:
    fields = json.loads(card_file.genesis_text(GENESIS))
    turned = json.dumps(dict(reversed(fields.items())), indent=indent)
    assert card_file.parse_genesis(turned, source="g") == GENESIS


@settings(max_examples=200)
@given(data=st.data())
def test_an_altered_value_is_refused(data: st.DataObject) -> None:
    fields = json.loads(card_file.card_text(CARDS[0]))
    name = data.draw(st.sampled_from(sorted(fields)))
    value = data.draw(st.sampled_from(_others(fields[name])))
    with pytest.raises(Refused):
        card_file.parse_card(json.dumps({**fields, name: value}), source="card.json")


@settings(max_examples=200)
@given(data=st.data())
def test_an_altered_genesis_is_refused(data: st.DataObject) -> None:
    fields = json.loads(card_file.genesis_text(GENESIS))
    target = data.draw(st.sampled_from([fields, *fields["members"]]))
    name = data.draw(st.sampled_from(sorted(set(target) - {"peer_id"})))
    target[name] = data.draw(st.sampled_from(_others(target[name])))
    with pytest.raises(Refused):
        card_file.parse_genesis(json.dumps(fields), source="g")


def _others(value: Any) -> list[Any]:
    """Values of other types, and one of the same type that differs."""
    changed = (
        value[::-1] if isinstance(value, str) else [*value, "x"] if isinstance(value, list) else value + 1
    )
    others: list[Any] = [changed, None, -1, 1.5, "", [], {}, True, 2**70, "é"]
    return [other for other in others if other != value]


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", "3", '{"version": 1}', '{"version": 1, "version": 1}', "[" * 100_000]
)
def test_other_files_are_refused_in_one_sentence(text: str) -> None:
    for parse in (card_file.parse_card, card_file.parse_genesis):
        with pytest.raises(Refused) as raised:
            parse(text, source="some.json")
        assert "\n" not in str(raised.value)


def test_a_missing_binary_or_huge_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xff")
    (tmp_path / "huge").write_bytes(b" " * (card_file.FILE_BYTES_MAX + 1))
    for name in ("missing", "binary", "huge"):
        with pytest.raises(Refused):
            card_file.read_card(tmp_path / name)


def test_two_cards_of_one_name_found_no_network() -> None:
    with pytest.raises(Refused, match="one name"):
        found((CARDS[0], make_card("Alpha", 9)), nonce=bytes(32))


def test_secrets_never_show_in_repr() -> None:
    keys = Identity(*(bytes([place + 65]) * 32 for place in range(7)))
    assert all(bytes([place + 65]) * 8 not in repr(keys).encode() for place in range(6))
