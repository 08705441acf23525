"""Which members store a chunk: rendezvous hashing (highest random weight; Thaler and Ravishankar 1998).

Every member gets a weight for every chunk, SHA-256(enc("carechain/v1/placement", cid, member)); the chunk lives with
the highest ones. There is no placement table: whoever has the configuration computes the same answer, and when a
member comes or goes only the chunks move that it gains or loses, about 1/n of them.
"""

import hashlib
from collections.abc import Iterable

from protocol.codec import pack
from protocol.identifiers import Cid, NodeId

_FORM_HEAD = pack("carechain/v1/placement", bytes(32), bytes(32))[:-66]
_BYTES32 = pack(bytes(32))[1:3]
"""What `pack` writes before the two ids: a walk over a large store weighs millions of times, and packing cost most of it."""


def by_weight(cid: Cid, storing: Iterable[NodeId]) -> tuple[NodeId, ...]:
    """Return the members in the order in which they are chosen for a chunk, and in which readers ask them."""
    return tuple(sorted(storing, key=lambda node: _weight(cid, node), reverse=True))


def replicas(cid: Cid, storing: tuple[NodeId, ...], count: int, author: NodeId) -> tuple[NodeId, ...]:
    """Return the `count` members that store a chunk, or all when there are fewer.

    The author comes first when it stores at all (it has the chunk already, and answers for it); an author that does
    not store, an observer, keeps no replica that counts.
    """
    ordered = by_weight(cid, (node for node in storing if node != author))
    if author in storing:
        ordered = (author, *ordered)
    return ordered[:count]


def stand_ins(
    cid: Cid, storing: tuple[NodeId, ...], count: int, author: NodeId, distrusted: frozenset[NodeId]
) -> tuple[NodeId, ...]:
    """Return who stores a chunk in the place of replicas that are not believed: the next in order, as many as there are."""
    chosen = replicas(cid, storing, count, author)
    trusted = tuple(node for node in replicas(cid, storing, len(storing), author) if node not in distrusted)
    return tuple(node for node in trusted[:count] if node not in chosen)


def confirmations_needed(storing: tuple[NodeId, ...], count: int) -> int:
    """Return w: the storage receipts that every chunk needs before its envelope is receipted (storage.md 4).

    One less than the replicas, but two where there are two members: then one failure while writing does not stop the
    author, and one failure afterwards does not lose the record.
    """
    kept = min(count, len(storing))
    return max(kept - 1, min(2, kept))


def _weight(cid: Cid, node: NodeId) -> bytes:
    """Return SHA-256(enc("carechain/v1/placement", cid, node)), ids of 32 bytes."""
    return hashlib.sha256(_FORM_HEAD + cid + _BYTES32 + node).digest()
