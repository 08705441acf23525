"""The parts of tier A: the heap of events, disks that forget, links, and limits drawn per seed."""

import dataclasses
from random import Random

import pytest

from protocol import limits
from protocol.block import Block, cut, genesis_block
from protocol.configuration import Card, Configuration, Member, found
from protocol.finality import Certificate
from protocol.identifiers import Height, NodeId, PublicKey, Term
from protocol.merkle import Frontier
from protocol.raft.state import HardState, Ready
from protocol.signing import SigningKey
from simulations import core_limits
from simulations.core_agenda import Agenda
from simulations.core_disk import CoreDisk
from simulations.core_network import CoreNetwork
from simulations.network import Quality

KEY = SigningKey(bytes(32))


def genesis() -> Block:
    public = PublicKey(KEY.public)
    member = Member("member-0", "clinic", "voter", NodeId(public), public, public, public, public, ())
    configuration: Configuration = found((Card.make(member, KEY),), nonce=bytes(32))
    return genesis_block(configuration)


def after(block: Block, now_ms: int = 1) -> Block:
    return cut(
        (), predecessor=block.header, predecessor_hash=block.hash, frontier=Frontier(), term=Term(1), key=KEY, now_ms=now_ms
    )  # fmt: skip


def ready(*blocks: Block, term: int = 1, truncate_from: int | None = None) -> Ready:
    state = dataclasses.replace(HardState.initial(), term=Term(term))
    gone = None if truncate_from is None else Height(truncate_from)
    return Ready(state, gone, blocks, (), (), None)


# --- agenda -----------------------------------------------------------------------------------------------------------


def test_actions_happen_in_order_of_time_and_then_of_asking() -> None:
    agenda, done = Agenda(), list[str]()
    agenda.at(2.0, done.append, "late")
    agenda.after(1.0, done.append, "first")
    agenda.at(1.0, done.append, "second")
    agenda.run_until(1.5)
    assert (done, agenda.now) == (["first", "second"], 1.5)
    agenda.run_until(3.0)
    assert (done[-1], agenda.done) == ("late", 3)


def test_a_stopped_agenda_does_nothing_more() -> None:
    agenda, done = Agenda(), list[str]()
    agenda.at(1.0, agenda.stop)
    agenda.at(2.0, done.append, "never")
    agenda.run_until(3.0)
    assert (done, agenda.now) == ([], 1.0)


# --- disk -------------------------------------------------------------------------------------------------------------


def test_what_was_being_written_is_there_whole_or_not_at_all() -> None:
    kept = 0
    for seed in range(40):
        disk = CoreDisk(genesis())
        one = after(disk.blocks[0])
        is_kept = disk.crash(ready(one), Random(seed))
        assert (len(disk.blocks), disk.hard_state is not None) == ((2, True) if is_kept else (1, False))
        kept += is_kept
    assert 5 < kept < 35


def test_a_crash_leaves_a_prefix_of_what_was_applied_since_the_last_write() -> None:
    left = set()
    for seed in range(40):
        disk = CoreDisk(genesis())
        disk.apply(Height(1), Frontier(), {b"a": b"1"}, None)
        disk.persist(ready())
        disk.apply(Height(2), Frontier(), {b"a": b"2", b"b": b"2"}, None)
        disk.apply(Height(3), Frontier(), {b"a": None}, None)
        disk.crash(None, Random(seed))
        left.add((disk.applied, tuple(sorted(disk.rows.items()))))
    assert left == {
        (1, ((b"a", b"1"),)),
        (2, ((b"a", b"2"), (b"b", b"2"))),
        (3, ((b"b", b"2"),)),
    }


def test_a_truncation_and_what_takes_its_place_are_one_write() -> None:
    disk = CoreDisk(genesis())
    one = after(disk.blocks[0])
    disk.persist(ready(one, after(one)))
    other = after(disk.blocks[0], now_ms=9)
    disk.persist(ready(other, truncate_from=1))
    assert [block.hash for block in disk.blocks[1:]] == [other.hash]
    assert disk.hash_at(Height(2)) is None


@pytest.mark.parametrize("follows", [True, False])
def test_an_installation_keeps_what_follows_it_and_nothing_else(follows: bool) -> None:
    source, disk = CoreDisk(genesis()), CoreDisk(genesis())
    one = after(source.blocks[0])
    two = after(one)
    source.persist(ready(one, two))
    certificate = Certificate(one.header, (), ())
    source.apply(Height(1), Frontier(), {b"a": b"1"}, certificate)
    mine = one if follows else after(disk.blocks[0], now_ms=9)
    disk.persist(ready(mine, after(mine, now_ms=10)))
    disk.install(source)
    assert [block.height for block in disk.blocks] == ([0, 1, 2] if follows else [0, 1])
    assert (disk.applied, disk.first(), disk.rows) == (1, 1, {b"a": b"1"})
    assert disk.certificate(Height(5)) == certificate
    assert disk.crash(None, Random(1)) is False
    assert disk.applied == 1  # it was synchronised


def test_history_is_dropped_below_what_a_crash_leaves_applied_and_no_core_may_ask_for_it() -> None:
    disk = CoreDisk(genesis())
    one = after(disk.blocks[0])
    two = after(one)
    disk.apply(Height(1), Frontier(), {}, None)
    disk.persist(ready(one, two))
    disk.apply(Height(2), Frontier(), {}, None)
    disk.drop_history()
    assert disk.first() == 1
    disk.persist(ready())
    disk.drop_history()
    assert disk.first() == 2
    assert disk.hash(Height(0)) == disk.blocks[0].hash  # genesis is always held
    with pytest.raises(AssertionError, match="not held"):
        disk.block(Height(1))


# --- network ----------------------------------------------------------------------------------------------------------


class Wire:
    def __init__(self, quality: Quality | None = None) -> None:
        self.agenda = Agenda()
        self.got: list[tuple[int, int, object]] = []
        self.network = CoreNetwork(self.agenda, Random(1), lambda *what: self.got.append(what))
        if quality:
            self.network.quality = quality

    def send(self, count: int, source: int = 0, target: int = 1, lane: int = 0) -> None:
        for number in range(count):
            self.network.send(source, target, number, lane=lane)

    def loads(self) -> list[object]:
        return [load for _, _, load in self.got]


def test_messages_of_one_lane_arrive_in_order() -> None:
    wire = Wire(Quality(delay_ms=1, jitter_ms=50))
    wire.send(50)
    wire.agenda.run_until(10)
    assert wire.loads() == list(range(50))


def test_a_cut_stops_one_direction_and_what_is_on_its_way() -> None:
    wire = Wire()
    wire.send(1)
    wire.network.cut([(0, 1)])
    wire.network.cut([(0, 1)])
    wire.network.join([(0, 1)])
    wire.send(1)
    wire.send(1, 1, 0)
    wire.agenda.run_until(1)
    assert wire.got == [(1, 0, 0)]
    assert wire.network.is_cut(0, 1)
    wire.network.heal()
    assert not wire.network.is_cut(0, 1)


def test_a_clogged_link_holds_messages_and_lets_them_go_in_order() -> None:
    wire = Wire()
    wire.network.clog(0, 1)
    wire.send(5)
    wire.agenda.run_until(3)
    assert wire.got == []
    wire.network.release(0, 1)
    wire.agenda.run_until(3.1)
    assert wire.loads() == list(range(5))


def test_a_quality_loses_doubles_and_reorders() -> None:
    wire = Wire(Quality(delay_ms=1, jitter_ms=20, loss=0.3, duplicate=0.3, reorder=0.5))
    wire.send(200)
    wire.agenda.run_until(10)
    loads = wire.loads()
    assert 0 < 200 - len(set(loads)) < 120
    assert len(loads) > len(set(loads))
    assert loads != sorted(loads, key=str)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_drawn_limits_are_in_force_for_a_while_only() -> None:
    before = limits.APPEND_BLOCKS_MAX
    with core_limits.in_force({"APPEND_BLOCKS_MAX": 1}):
        within = limits.APPEND_BLOCKS_MAX
    assert (within, limits.APPEND_BLOCKS_MAX) == (1, before)


def test_about_half_of_the_seeds_change_limits_and_each_limit_exists() -> None:
    draws = [core_limits.draw(Random(seed)) for seed in range(200)]
    assert 60 < sum(not draw for draw in draws) < 140
    assert all(hasattr(limits, name) for draw in draws for name in draw)
    assert {draw.get("APPEND_BLOCKS_MAX") for draw in draws} >= {1, 2, 5}
    assert core_limits.describe({}) == "as they are"
    assert core_limits.describe({"B": 2, "A": 1}) == "a=1 b=2"
