"""The tree of RFC 9162 section 2.1, against published vectors, its definition, and spoiled proofs."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import merkle
from protocol.errors import Invalid
from protocol.identifiers import Digest

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "merkle.json").read_text())
LEAVES = [bytes.fromhex(leaf) for leaf in VECTORS["leaves"]]


def defined_root(entries: list[bytes]) -> bytes:
    """Return MTH(D[n]) as RFC 9162 section 2.1.1 writes it down."""
    if not entries:
        return merkle.EMPTY_ROOT
    if len(entries) == 1:
        return merkle.leaf_hash(entries[0])
    split = 1 << ((len(entries) - 1).bit_length() - 1)
    return merkle.node_hash(defined_root(entries[:split]), defined_root(entries[split:]))


def subtrees(entries: list[bytes]) -> merkle.SubtreeRoot:
    return lambda level, index: Digest(defined_root(entries[index << level : (index + 1) << level]))


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_published_with_certificate_transparency(size):
    assert merkle.root_of(LEAVES[:size]).hex() == VECTORS["roots"][size]


@pytest.mark.parametrize("size", range(9))
def test_a_frontier_read_from_the_tree_is_the_one_that_grew(size):
    grown = merkle.Frontier().append([merkle.leaf_hash(leaf) for leaf in LEAVES[:size]])
    assert merkle.frontier_of(size, subtrees(LEAVES)) == grown


@pytest.mark.parametrize("vector", VECTORS["inclusion"], ids=lambda v: f"{v['index']}-of-{v['size']}")
def test_inclusion_proofs_are_the_published_ones(vector):
    path = merkle.inclusion_proof(vector["index"], vector["size"], subtrees(LEAVES))
    assert [node.hex() for node in path] == vector["path"]
    leaf = merkle.leaf_hash(LEAVES[vector["index"]])
    merkle.verify_inclusion(
        leaf, vector["index"], vector["size"], path, merkle.root_of(LEAVES[: vector["size"]])
    )


@pytest.mark.parametrize("vector", VECTORS["consistency"], ids=lambda v: f"{v['old']}-to-{v['new']}")
def test_consistency_proofs_are_the_published_ones(vector):
    old, new = vector["old"], vector["new"]
    proof = merkle.consistency_proof(old, new, subtrees(LEAVES))
    assert [node.hex() for node in proof] == vector["proof"]
    merkle.verify_consistency(old, new, merkle.root_of(LEAVES[:old]), merkle.root_of(LEAVES[:new]), proof)


def numbered(count: int) -> list[bytes]:
    return [b"%d" % n for n in range(count)]


@given(count=st.integers(0, 70), split=st.integers(0, 70))
@settings(max_examples=60, deadline=None)
def test_a_frontier_grown_in_two_steps_has_the_defined_root(count, split):
    entries = numbered(count)
    leaves = [merkle.leaf_hash(entry) for entry in entries]
    frontier = merkle.Frontier().append(leaves[:split]).append(leaves[split:])
    assert frontier.size == count
    assert frontier.root() == defined_root(entries)
    assert len(frontier.peaks) == count.bit_count()


def test_a_frontier_reports_every_perfect_subtree_once():
    heard: dict[tuple[int, int], bytes] = {}
    merkle.Frontier().append(
        map(merkle.leaf_hash, numbered(13)), lambda level, index, root: heard.update({(level, index): root})
    )
    expected = {
        (level, index): subtrees(numbered(13))(level, index)
        for level in range(4)
        for index in range(13 >> level)
    }
    assert heard == expected


@given(size=st.integers(1, 40), data=st.data())
@settings(max_examples=80, deadline=None)
def test_every_inclusion_proof_verifies_and_no_spoiled_one_does(size, data):
    entries = numbered(size)
    index = data.draw(st.integers(0, size - 1))
    root, leaf = merkle.root_of(entries), merkle.leaf_hash(entries[index])
    path = merkle.inclusion_proof(index, size, subtrees(entries))
    merkle.verify_inclusion(leaf, index, size, path, root)
    for bad_leaf, bad_index, bad_path, bad_root in (
        (merkle.leaf_hash(b"other"), index, path, root),
        (leaf, size, path, root),
        (leaf, index, (*path, leaf), root),
        (leaf, index, path, Digest(bytes(32))),
    ):
        with pytest.raises(Invalid):
            merkle.verify_inclusion(bad_leaf, bad_index, size, bad_path, bad_root)
    if path:
        with pytest.raises(Invalid):
            merkle.verify_inclusion(leaf, index, size, path[:-1], root)


@given(old=st.integers(0, 40), more=st.integers(0, 40))
@settings(max_examples=80, deadline=None)
def test_every_consistency_proof_verifies_and_no_spoiled_one_does(old, more):
    new = old + more
    entries = numbered(new)
    old_root, new_root = merkle.root_of(entries[:old]), merkle.root_of(entries)
    proof = merkle.consistency_proof(old, new, subtrees(entries))
    merkle.verify_consistency(old, new, old_root, new_root, proof)
    with pytest.raises(Invalid):
        merkle.verify_consistency(old, new, old_root, new_root, (*proof, Digest(bytes(32))))
    if proof:
        with pytest.raises(Invalid):
            merkle.verify_consistency(old, new, old_root, new_root, proof[:-1])
        with pytest.raises(Invalid):
            merkle.verify_consistency(old, new, Digest(bytes(32)), new_root, proof)
        with pytest.raises(Invalid):
            merkle.verify_consistency(old, new, old_root, Digest(bytes(32)), proof)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="leaf 3"):
        merkle.inclusion_proof(3, 3, subtrees(LEAVES))
    with pytest.raises(ValueError, match="no consistency proof"):
        merkle.consistency_proof(5, 4, subtrees(LEAVES))
    with pytest.raises(Invalid):
        merkle.verify_consistency(5, 4, merkle.EMPTY_ROOT, merkle.EMPTY_ROOT, ())
    with pytest.raises(Invalid):
        merkle.verify_consistency(0, 4, Digest(bytes(32)), merkle.EMPTY_ROOT, ())
