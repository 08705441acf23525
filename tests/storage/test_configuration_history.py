"""Configurations by height: old ones stay, and who has left keeps a name."""

import dataclasses

import pytest

from protocol import ballots, codec
from protocol.configuration import Configuration
from protocol.errors import Corruption
from protocol.identifiers import Height, NodeId
from storage.configuration_history import ConfigurationHistory
from storage.key_value import Batch
from storage.ledger_store import AppliedMark, LedgerStore
from storage.memory import MemoryStore
from tests.protocol import chain
from tests.protocol.ledgers import configuration, key, member

GENESIS = configuration("a", "b", "c", observers=("d",))


def without(before: Configuration, name: str) -> Configuration:
    rest = tuple(one for one in before.members if one.name != name)
    return dataclasses.replace(before, members=rest, number=before.number + 1)


def node(name: str) -> NodeId:
    return NodeId(key(name).public)


SECOND = without(GENESIS, "d")
THIRD = without(SECOND, "c")
ROWS = [
    (ballots.configuration_key(5), codec.encode(SECOND)),
    (ballots.configuration_key(9), codec.encode(THIRD)),
]


def test_each_height_has_the_configuration_that_the_last_block_below_it_set() -> None:
    history = ConfigurationHistory(GENESIS)
    assert history.at(Height(7)) == history.newest == GENESIS
    history.load(ROWS)
    assert [history.at(Height(height)) for height in (0, 1, 5, 6, 9, 10)] == [
        GENESIS, GENESIS, GENESIS, SECOND, SECOND, THIRD,
    ]  # fmt: skip
    assert (history.newest, history.newest_height) == (THIRD, 9)


def test_who_has_left_keeps_a_name_and_the_height_of_the_leaving() -> None:
    history = ConfigurationHistory(GENESIS)
    history.load(ROWS)
    assert [history.name_ever(node(name)) for name in "abcd"] == list("abcd")
    assert [history.left_at(node(name)) for name in "abcd"] == [None, None, 9, 5]
    assert history.former() == tuple(sorted(map(node, "cd")))
    assert history.name_ever(node("stranger")) == node("stranger").hex()[:16]
    assert history.left_at(node("stranger")) is None
    history.introduce(member("stranger"))
    assert history.known_member(node("stranger")).name == "stranger"


def renamed(before: Configuration, old: str, new: str) -> Configuration:
    """Return the configuration in which a facility has another node key."""
    name = before.by_node[node(old)].name
    rest = [one for one in before.members if one.node != node(old)]
    rest.append(dataclasses.replace(member(new), name=name, role=before.by_node[node(old)].role))
    members = tuple(sorted(rest, key=lambda one: one.node))
    return dataclasses.replace(before, members=members, number=before.number + 1)


def test_a_facility_stays_who_it_is_however_often_its_node_key_changes() -> None:
    history, second = ConfigurationHistory(GENESIS), renamed(GENESIS, "d", "d2")
    third = renamed(second, "d2", "d3")
    history.load(
        (ballots.configuration_key(height), codec.encode(one)) for height, one in ((5, second), (9, third))
    )
    assert {history.present(node(name)) for name in ("d", "d2", "d3")} == {node("d3")}
    assert history.all_ids(node("d2")) == tuple(sorted(map(node, ("d", "d2", "d3"))))
    assert history.is_same(node("d"), node("d3"))
    assert not history.is_same(node("d"), node("a"))
    assert history.present(node("a")) == node("a")
    history.load([])
    assert history.present(node("d")) == node("d")


def test_a_history_that_is_read_again_after_a_snapshot_forgets_what_is_not_in_it() -> None:
    history = ConfigurationHistory(GENESIS)
    history.load(ROWS)
    history.load(ROWS[:1])
    assert history.newest == SECOND
    with pytest.raises(Corruption):
        history.load([(ballots.configuration_key(5), b"\x90")])


def test_the_store_reads_the_configuration_in_force_and_keeps_its_network_id() -> None:
    following = without(chain.CONFIGURATION, "facility 2")
    rows = MemoryStore()
    store = LedgerStore(rows, chain.CONFIGURATION)
    batch = Batch()
    key_of_row = ballots.configuration_key(3)
    mark = AppliedMark(Height(3), store.applied().hash, 0, 0, ())
    store.put_applied(
        batch, {key_of_row: codec.encode(following)}, mark, chain.certificate_of(chain.build()[3], 0, 1)
    )
    rows.write(batch, sync=True)
    assert store.configuration == chain.CONFIGURATION
    store.refresh()
    for opened in (store, LedgerStore(rows, chain.CONFIGURATION)):
        assert opened.configuration == following
        assert opened.configuration_at(Height(3)) == opened.genesis == chain.CONFIGURATION
        assert opened.network == chain.NETWORK
