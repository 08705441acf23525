import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec, configuration, limits
from protocol.configuration import Card, Configuration, found, network_id
from protocol.errors import Refused
from protocol.identifiers import NodeId, peer_id
from tests.protocol.ledgers import configuration as network
from tests.protocol.ledgers import key, member


def card(name: str, role: str = "voter") -> Card:
    return Card.make(member(name, role), key(name))


def test_the_network_id_is_the_same_whatever_the_order_of_the_cards() -> None:
    cards = tuple(card(name) for name in ("a", "b", "c"))
    one, other = found(cards, nonce=bytes(32)), found(cards[::-1], nonce=bytes(32))
    assert one == other
    read_back = codec.decode(codec.encode(one), Configuration)
    assert network_id(one) == network_id(other) == network_id(read_back)
    assert network_id(found(cards, nonce=bytes(31) + b"\x01")) != network_id(one)


@given(st.integers(1, 12))
def test_quorums_overlap(voters: int) -> None:
    configured = network(*(f"n{i}" for i in range(voters)))
    assert 2 * configured.raft_quorum > voters >= configured.raft_quorum
    liars = (voters - 1) // 3
    assert 2 * configured.receipt_quorum - voters > liars
    assert configured.receipt_quorum <= voters


def test_only_voters_count_and_store() -> None:
    configured = network("a", "b", "c", observers=("d", "e"))
    assert NodeId(key("d").public) not in configured.voters
    assert configured.storing == configured.voters
    assert configured.raft_quorum == 2
    assert set(configured.by_node) == {NodeId(key(name).public) for name in "abcde"}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"role": "observer"},
        {"kind": "clinic"},
        {"kex": bytes(32)},
        {"addresses": ("/ip4/1",)},
    ],
)
def test_an_altered_card_is_refused(change: dict[str, object]) -> None:
    honest = card("hospital")
    altered = dataclasses.replace(honest, member=dataclasses.replace(honest.member, **change))  # type: ignore[arg-type]
    with pytest.raises(Refused, match="altered"):
        altered.check()


def test_cards_of_another_version_role_or_kind_are_refused() -> None:
    honest = card("hospital")
    for bad in (
        dataclasses.replace(honest, version=1),
        Card.make(dataclasses.replace(honest.member, role="emperor"), key("hospital")),
        Card.make(dataclasses.replace(honest.member, kind="bakery"), key("hospital")),
    ):
        with pytest.raises(Refused):
            bad.check()


def test_a_genesis_needs_distinct_members_and_a_voter() -> None:
    named_alike = Card.make(dataclasses.replace(member("b"), name="a"), key("b"))
    same_key = Card.make(dataclasses.replace(member("a"), name="b"), key("a"))
    for cards in ((), (card("a"), named_alike), (card("a"), same_key), (card("a", "observer"),)):
        with pytest.raises(Refused):
            found(cards, nonce=bytes(32))


def test_a_genesis_of_too_many_members_is_refused_before_anybody_stores_what_cannot_be_read() -> None:
    cards = tuple(card(f"n{i}") for i in range(limits.MEMBERS_MAX + 1))
    with pytest.raises(Refused, match="64"):
        found(cards, nonce=bytes(32))
    largest = found(cards[:-1], nonce=bytes(32))
    assert codec.decode(codec.encode(largest), Configuration) == largest


def test_a_member_is_found_by_name_peer_id_or_a_unique_prefix() -> None:
    configured = network("hospital", "hospice", "clinic")
    clinic = configured.by_node[NodeId(key("clinic").public)]
    assert (
        configured.find("clinic") == configured.find("cl") == configured.find(peer_id(clinic.node)) == clinic
    )
    for text in ("hosp", "nobody", ""):
        with pytest.raises(Refused):
            configured.find(text)
    # An exact name wins over a longer one that begins with it.
    assert network("lab", "laboratory").find("lab").name == "lab"


def test_every_role_and_kind_fits_its_field() -> None:
    assert all(1 <= len(word) <= 16 for word in configuration.ROLES + configuration.KINDS)
