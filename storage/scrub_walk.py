"""One whole reading of the chunks, in portions: where it stands is a row, so that a restart goes on and does not begin anew.

    walk: position ──► read_portion ──► position, further on … ──► None: all are read

Chunks are read in the order of their ids, from the index: so a chunk whose payload is missing is found as well as one
whose bytes have changed, and where one table is damaged every chunk in it is named. What changes because of it
(quarantine, repair) is the caller's business, who also decides how fast the walk goes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated

from protocol import codec, limits
from protocol.codec import Size, wire
from protocol.errors import Corruption, Malformed
from protocol.identifiers import Cid
from storage.chunk_index import ChunkIndex, Location
from storage.chunk_store import ChunkStore
from storage.key_value import Batch, KeyValue
from storage.keyspace import SCRUB_WALK

_NOW = SCRUB_WALK + b"now"
_LAST = SCRUB_WALK + b"last"
_PORTION_BYTES = 4 * limits.MIB
_PORTION_CHUNKS = 256
"""Some milliseconds of a worker thread: who waits for one behind a portion does not notice."""


@wire("scrub-walk")
@dataclass(frozen=True, slots=True)
class ScrubWalk:
    """One reading of everything: times in Unix ms, `rate` in bytes per second.

    `is_asked` says that a person wants it now, `rate` 0 that other work alone decides how fast. `position` is the id of
    the last chunk read, empty at the beginning. `ended_ms` is 0 while it goes on.
    """

    started_ms: int
    is_asked: bool
    rate: int
    position: Annotated[bytes, Size(0, 32)]
    chunks_total: int
    bytes_total: int
    chunks: int
    bytes: int
    bad: int
    repaired: int
    ended_ms: int


@dataclass(frozen=True, slots=True)
class Portion:
    """What one portion read: the ids in order, their bytes, and those of them that failed. No ids: the walk is at its end."""

    cids: tuple[Cid, ...]
    bytes: int
    bad: tuple[Cid, ...]


def read_portion(chunks: ChunkStore, position: bytes) -> Portion:
    """Read the next chunks behind a position and check each against its id. Fit for a worker thread; changes nothing.

    Raises:
        Corruption: the index itself cannot be read further.
    """
    size = 0
    read: list[Cid] = []
    bad: list[Cid] = []
    following: Iterator[tuple[Cid, Location]] = chunks.index.locations(position)
    for cid, location in islice(following, _PORTION_CHUNKS):
        try:
            chunks.get(cid)  # None: deleted since the row was read, and nothing to say about it
        except Corruption:
            bad.append(cid)
        read.append(cid)
        size += location.size
        if size >= _PORTION_BYTES:
            break
    return Portion(tuple(read), size, tuple(bad))


def walk_going_on(rows: KeyValue) -> ScrubWalk | None:
    """Return the walk that was going on when the store was closed, or None."""
    return _walk(rows, _NOW)


def last_walk(rows: KeyValue) -> ScrubWalk | None:
    """Return the last walk that came to its end, or None."""
    return _walk(rows, _LAST)


def put_walk(batch: Batch, walk: ScrubWalk) -> None:
    """Stage how far a walk has come; one that has ended becomes the last one."""
    if walk.ended_ms:
        batch.delete(_NOW)
        batch.put(_LAST, codec.encode(walk))
    else:
        batch.put(_NOW, codec.encode(walk))


def put_readings(batch: Batch, index: ChunkIndex, portion: Portion, now_ms: int) -> None:
    """Stage that the chunks of a portion were read and found good, as far as they were."""
    bad = frozenset(portion.bad)
    for cid in portion.cids:
        if cid not in bad:
            index.mark_scrubbed(batch, cid, now_ms)


def _walk(rows: KeyValue, key: bytes) -> ScrubWalk | None:
    row = rows.get(key)
    if row is None:
        return None
    try:
        return codec.decode(row, ScrubWalk)
    except Malformed:
        return None  # of another version: a walk begins anew, and nothing is lost but time
