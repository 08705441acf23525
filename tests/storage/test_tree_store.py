"""The stored tree: proofs from it are those of the definition, however its leaves came; what is missing is never guessed."""

import hashlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import merkle
from protocol.errors import Corruption
from protocol.identifiers import Digest, Height
from protocol.merkle import Frontier
from storage import keyspace
from storage.key_value import Batch
from storage.memory import MemoryStore
from storage.tree_store import EMPTY, TreeFill, TreeStore, put_fill, put_leaves, put_whole

LEAVES = [Digest(hashlib.sha256(b"%d" % n).digest()) for n in range(70_000)]


class CountingStore(MemoryStore):
    """Counts the scans that a proof costs, and the rows passed in them."""

    def __init__(self) -> None:
        super().__init__()
        self.scans = self.passed = 0

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        self.scans += 1
        for row in super().scan(start, stop, reverse=reverse):
            self.passed += 1
            yield row


def stored(size: int, step: int) -> CountingStore:
    """A tree whose leaves came `step` at a time."""
    rows, frontier = CountingStore(), Frontier()
    for start in range(0, size, step):
        batch = Batch()
        frontier = put_leaves(batch, frontier, LEAVES[start : min(start + step, size)])
        rows.write(batch, sync=False)
    return rows


@given(
    size=st.integers(1, 1_500),
    old=st.integers(0, 1_500),
    index=st.integers(0, 1_499),
    step=st.integers(1, 700),
)
@settings(max_examples=40, deadline=None)
def test_proofs_from_the_stored_tree_verify(size: int, old: int, index: int, step: int) -> None:
    rows, old, index = stored(size, step), old % (size + 1), index % size
    root, old_root = merkle.root_of_leaves(LEAVES[:size]), merkle.root_of_leaves(LEAVES[:old])

    path = merkle.inclusion_proof(index, size, TreeStore(rows).subtree)
    consistency = merkle.consistency_proof(old, size, TreeStore(rows).subtree)

    merkle.verify_inclusion(LEAVES[index], index, size, path, root)
    merkle.verify_consistency(old, size, old_root, root, consistency)


@pytest.mark.parametrize("step", [250, 1_000, 70_000])
def test_a_proof_costs_a_few_short_scans(step: int) -> None:
    rows = stored(len(LEAVES), step)
    rows.scans = rows.passed = 0

    path = merkle.inclusion_proof(12_345, len(LEAVES), TreeStore(rows).subtree)

    assert len(path) == 17
    assert rows.scans <= 5
    assert rows.passed < 3 * 256


def test_a_leaf_costs_forty_bytes_when_many_come_together_and_nothing_is_written_twice() -> None:
    written, keys, frontier = 0, set[bytes](), Frontier()
    for start in range(0, 10_000, 100):
        batch = Batch()
        frontier = put_leaves(batch, frontier, LEAVES[start : start + 100])
        assert not keys & set(batch.writes)
        keys |= set(batch.writes)
        written += batch.bytes

    assert written / 10_000 < 40


@pytest.mark.parametrize("level", [0, 1])
def test_a_missing_node_is_said_and_not_guessed(level: int) -> None:
    rows = stored(600, 7)
    removal = Batch()
    begin = keyspace.TREE + bytes([level])
    for key, _ in list(rows.scan(begin, begin + b"\xff"))[1:2]:
        removal.delete(key)
    rows.write(removal, sync=False)

    with pytest.raises(Corruption):
        merkle.inclusion_proof(599 if level else 0, 600, TreeStore(rows).subtree)


def test_leaves_after_a_snapshot_and_those_below_it_make_one_tree() -> None:
    below, above = Batch(), Batch()
    rows = MemoryStore()
    at_snapshot = Frontier().append(LEAVES[:700])
    put_leaves(above, at_snapshot, LEAVES[700:1_400])
    rows.write(above, sync=False)
    middle = put_leaves(below, Frontier(), LEAVES[:300])
    assert put_leaves(below, middle, LEAVES[300:700]) == at_snapshot
    rows.write(below, sync=False)

    assert merkle.range_root(0, 1_400, TreeStore(rows).subtree) == merkle.root_of_leaves(LEAVES[:1_400])


def test_rows_written_anew_in_other_portions_replace_the_old_ones() -> None:
    rows = stored(500, 90)
    for begin, end in ((0, 130), (130, 450)):
        batch = Batch()
        TreeStore(rows).put_removal(batch, begin, end)
        put_leaves(batch, Frontier().append(LEAVES[:begin]), LEAVES[begin:end])
        rows.write(batch, sync=False)

    assert merkle.range_root(0, 500, TreeStore(rows).subtree) == merkle.root_of_leaves(LEAVES[:500])


def test_how_far_the_nodes_are_computed_is_remembered_and_what_does_not_decode_begins_anew() -> None:
    rows, frontier = MemoryStore(), Frontier().append(LEAVES[:3])
    assert TreeStore(rows).fill() == EMPTY
    fill = TreeFill(Height(2), frontier.size, frontier.peaks)
    for put, known in ((lambda b: put_fill(b, fill), fill), (put_whole, None)):
        batch = Batch()
        put(batch)
        rows.write(batch, sync=False)
        assert TreeStore(rows).fill() == known
    spoilt = Batch()
    spoilt.put(next(iter(batch.writes)), b"\xc1")
    rows.write(spoilt, sync=False)
    assert TreeStore(rows).fill() == EMPTY
    assert fill.frontier == frontier
