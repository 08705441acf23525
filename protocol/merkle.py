"""The Merkle tree of RFC 9162 section 2.1 over every transaction since genesis.

leaf = SHA-256(0x00 ‖ transaction), node = SHA-256(0x01 ‖ left ‖ right), the empty tree is SHA-256(""). A tree of n leaves
is kept as its *frontier*: the roots of the perfect subtrees that the binary digits of n spell, largest first.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from protocol.errors import Invalid
from protocol.identifiers import Digest

EMPTY_ROOT = Digest(hashlib.sha256(b"").digest())

SubtreeRoot = Callable[[int, int], Digest]
"""(level, index) -> root of the perfect subtree over leaves [index·2^level, (index+1)·2^level)."""


def leaf_hash(entry: bytes) -> Digest:
    """Return the hash of one leaf."""
    return Digest(hashlib.sha256(b"\x00" + entry).digest())


def node_hash(left: bytes, right: bytes) -> Digest:
    """Return the hash of an inner node."""
    return Digest(hashlib.sha256(b"\x01" + left + right).digest())


@dataclass(frozen=True, slots=True)
class Head:
    """A tree of which only size and root are known."""

    size: int
    root: Digest


@dataclass(frozen=True, slots=True)
class Frontier:
    """The state of an append-only tree: its size and the roots of its perfect subtrees, largest first."""

    size: int = 0
    peaks: tuple[Digest, ...] = ()

    def root(self) -> Digest:
        """Return the root of the tree (EMPTY_ROOT when it has no leaf)."""
        if not self.peaks:
            return EMPTY_ROOT
        root = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            root = node_hash(peak, root)
        return root

    def append(
        self, leaves: Iterable[Digest], on_node: Callable[[int, int, Digest], None] | None = None
    ) -> "Frontier":
        """Return the frontier after more leaf hashes. `on_node(level, index, hash)` hears of every perfect subtree completed."""
        size, peaks = self.size, list(self.peaks)
        for leaf in leaves:
            level, index, root = 0, size, leaf
            if on_node:
                on_node(0, index, root)
            while index & 1:
                root = node_hash(peaks.pop(), root)
                level, index = level + 1, index >> 1
                if on_node:
                    on_node(level, index, root)
            peaks.append(root)
            size += 1
        return Frontier(size, tuple(peaks))


def root_of(entries: Sequence[bytes]) -> Digest:
    """Return the root of the tree over `entries`."""
    return root_of_leaves([leaf_hash(entry) for entry in entries])


def root_of_leaves(leaves: Iterable[Digest]) -> Digest:
    """Return the root of the tree over leaf hashes."""
    return Frontier().append(leaves).root()


def range_root(begin: int, end: int, subtree: SubtreeRoot) -> Digest:
    """Return the RFC 9162 root of leaves [begin, end), reading perfect subtrees; `begin` must be aligned as the RFC splits."""
    size = end - begin
    if size & (size - 1) == 0 and begin % size == 0:
        level = size.bit_length() - 1
        return subtree(level, begin >> level)
    split = 1 << ((size - 1).bit_length() - 1)
    return node_hash(range_root(begin, begin + split, subtree), range_root(begin + split, end, subtree))


def frontier_of(size: int, subtree: SubtreeRoot) -> Frontier:
    """Return the frontier of the first `size` leaves, reading its peaks."""
    levels = [level for level in reversed(range(size.bit_length())) if size >> level & 1]
    # A peak stands behind the larger ones: above its own digit, the digits of `size` count subtrees of its level.
    return Frontier(size, tuple([subtree(level, (size >> level) - 1) for level in levels]))


def inclusion_proof(index: int, size: int, subtree: SubtreeRoot) -> tuple[Digest, ...]:
    """Return PATH(index, D[size]) of RFC 9162 section 2.1.3.1, leaf to root.

    Raises:
        ValueError: `index` is not below `size`.
    """
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    path: list[Digest] = []
    begin, end = 0, size
    while end - begin > 1:
        split = begin + (1 << ((end - begin - 1).bit_length() - 1))
        if index < split:
            path.append(range_root(split, end, subtree))
            end = split
        else:
            path.append(range_root(begin, split, subtree))
            begin = split
    return tuple(reversed(path))


def verify_inclusion(leaf: Digest, index: int, size: int, path: Sequence[Digest], root: Digest) -> None:
    """Check an inclusion proof (RFC 9162 section 2.1.3.2).

    Raises:
        Invalid: the proof does not lead from the leaf to the root.
    """
    if not 0 <= index < size:
        raise Invalid(f"leaf {index} is not in a tree of {size}")
    first, last, computed = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise Invalid("inclusion proof is too long")
        if first & 1 or first == last:
            computed = node_hash(sibling, computed)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        first, last = first >> 1, last >> 1
    if last != 0 or computed != root:
        raise Invalid("inclusion proof does not lead to the root")


def consistency_proof(old: int, new: int, subtree: SubtreeRoot) -> tuple[Digest, ...]:
    """Return PROOF(old, D[new]) of RFC 9162 section 2.1.4.1; empty when old is 0 or new.

    Raises:
        ValueError: `old` is above `new`.
    """
    if not 0 <= old <= new:
        raise ValueError(f"no consistency proof from {old} to {new}")
    if old in (0, new):
        return ()
    proof: list[Digest] = []
    begin, end, whole = 0, new, True
    while old - begin != end - begin:
        split = begin + (1 << ((end - begin - 1).bit_length() - 1))
        if old <= split:
            proof.append(range_root(split, end, subtree))
            end = split
        else:
            proof.append(range_root(begin, split, subtree))
            begin, whole = split, False
    if not whole:
        proof.append(range_root(begin, end, subtree))
    return tuple(reversed(proof))


def verify_consistency(
    old: int, new: int, old_root: Digest, new_root: Digest, proof: Sequence[Digest]
) -> None:
    """Check a consistency proof (RFC 9162 section 2.1.4.2).

    Raises:
        Invalid: the proof does not show that the old tree is a prefix of the new one.
    """
    if old > new or (old == 0 and (proof or old_root != EMPTY_ROOT)):
        raise Invalid("consistency proof of impossible sizes")
    if old == 0:
        return
    if old == new:
        if proof or old_root != new_root:
            raise Invalid("two roots of one size")
        return
    rest = list(proof) if old & (old - 1) else [old_root, *proof]
    if not rest:
        raise Invalid("consistency proof is empty")
    first, last = old - 1, new - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    first_root = last_root = rest[0]
    for sibling in rest[1:]:
        if last == 0:
            raise Invalid("consistency proof is too long")
        if first & 1 or first == last:
            first_root = node_hash(sibling, first_root)
            last_root = node_hash(sibling, last_root)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            last_root = node_hash(last_root, sibling)
        first, last = first >> 1, last >> 1
    if last != 0 or first_root != old_root or last_root != new_root:
        raise Invalid("consistency proof does not lead to both roots")
