"""Comparing what two members hold of what both should hold, at a cost of what differs (storage.md 4).

Content ids are hashes, so they spread evenly over the 256 parts that their next byte makes of a range. One member sends
the digest of a range; the other compares it with its own:

    CompareRange ───►  `Alike` when the digests agree
                       `HeldCids`, all that it holds in the range, when they are few
                       `RangeParts`, the digests of the 256 parts, when they are many: the parts that differ are asked next
                       `NotNow` under another configuration, or before a first reading

The digest of a range is SHA-256 over its sorted ids, of the whole range over the digests of its parts: nobody has to
read a whole store at once to know it. Digests only tell what somebody *says* to hold; whether it does,
`protocol.possession` asks.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated

from protocol.chunk_exchange import CidField
from protocol.codec import Bytes32, Size, pack, wire
from protocol.identifiers import Cid, NodeId

RANGES_CHANNEL = "ranges"
PARTS = 256
DEPTH_MAX = 3
"""Bytes of a prefix: in 16 million parts there are few ids each, whatever the size of a store."""
LISTED_MAX = 512
"""Ids that are listed rather than divided further: 17 KiB, about what two further levels of digests would cost."""
DIGEST_BYTES = 16
"""A difference that nobody has made on purpose shows in far fewer; who wants to deceive needs no collision to do so."""

Part = Annotated[bytes, Size(DIGEST_BYTES)]


@wire("compare-range")
@dataclass(frozen=True, slots=True)
class CompareRange:
    """Compare what we both should hold of the ids that begin with `prefix`; `rule` names the storing members it is by."""

    rule: Bytes32
    prefix: Annotated[bytes, Size(0, DEPTH_MAX)]
    digest: Part


@wire("alike")
@dataclass(frozen=True, slots=True)
class Alike:
    """The digests agree."""


@wire("range-parts")
@dataclass(frozen=True, slots=True)
class RangeParts:
    """They do not; these are the digests of the parts."""

    digests: Annotated[tuple[Part, ...], Size(PARTS)]


@wire("held-cids")
@dataclass(frozen=True, slots=True)
class HeldCids:
    """They do not; these are all ids that are held, in order."""

    cids: Annotated[tuple[CidField, ...], Size(0, LISTED_MAX)]


@wire("range-not-now")
@dataclass(frozen=True, slots=True)
class NotNow:
    """Another configuration is in force here, or nothing has been read yet since the start; ask again later."""


RangeAnswer = Alike | RangeParts | HeldCids | NotNow


def rule_of(storing: tuple[NodeId, ...]) -> bytes:
    """Return the name of the rule by which chunks are placed: two members compare only under the same one."""
    return hashlib.sha256(pack("carechain/v1/placement-rule", tuple(sorted(storing)))).digest()


def digest_of(cids: Iterable[Cid]) -> bytes:
    """Return the digest of a part of the range: of all ids in it, sorted."""
    return hashlib.sha256(b"".join(cids)).digest()[:DIGEST_BYTES]


def digest_of_parts(digests: Sequence[bytes]) -> bytes:
    """Return the digest of the whole range."""
    return hashlib.sha256(b"".join(digests)).digest()[:DIGEST_BYTES]


_EMPTY = digest_of(())


def parts_of(cids: Sequence[Cid], depth: int) -> tuple[bytes, ...]:
    """Return the digests of the 256 parts of a range whose ids, sorted, agree in their first `depth` bytes."""
    digests = [_EMPTY] * PARTS
    for byte, members in groupby(cids, key=lambda cid: cid[depth]):
        digests[byte] = digest_of(members)
    return tuple(digests)


def answer_to(asked: bytes, prefix: bytes, held: Sequence[Cid]) -> Alike | RangeParts | HeldCids:
    """Return the answer of who holds `held`, sorted, under a prefix that is not empty, to the digest `asked`."""
    if digest_of(held) == asked:
        return Alike()
    if len(held) <= LISTED_MAX or len(prefix) == DEPTH_MAX:
        return HeldCids(tuple(held[:LISTED_MAX]))
    return RangeParts(parts_of(held, len(prefix)))


def differing(mine: Sequence[bytes], theirs: Sequence[bytes], prefix: bytes) -> tuple[bytes, ...]:
    """Return the prefixes of the parts in which two members differ."""
    pairs = enumerate(zip(mine, theirs, strict=True))
    return tuple(prefix + bytes([number]) for number, (own, other) in pairs if own != other)
