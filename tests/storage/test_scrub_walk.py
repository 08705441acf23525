"""Reading all chunks in portions."""

import random
from pathlib import Path

import pytest

from protocol import limits
from protocol.cid import cid_of
from protocol.errors import Corruption
from protocol.identifiers import Cid
from storage.chunk_store import ChunkStore
from storage.databases import open_payloads
from storage.growth import Sample, put_sample, samples
from storage.key_value import Batch
from storage.keyspace import CHUNK, SCRUB_WALK, sequence_key
from storage.memory import MemoryStore
from storage.scrub_walk import (
    ScrubWalk,
    last_walk,
    put_readings,
    put_walk,
    read_portion,
    walk_going_on,
)


class Store:
    """A chunk store on memory, with `count` chunks of `size` bytes."""

    def __init__(self, count: int, size: int = 20) -> None:
        self.payloads, self.rows = MemoryStore(), MemoryStore()
        self.chunks = ChunkStore(self.payloads, self.rows)
        data = [number.to_bytes(4, "big") * (size // 4) for number in range(count)]
        self.chunks.put_many([(cid_of(chunk), chunk) for chunk in data])
        self.cids = sorted(map(cid_of, data))

    def sequence(self, cid: Cid) -> int:
        location = self.chunks.index.locate(cid)
        assert location is not None
        return location.sequence


def portions(store: Store) -> list[tuple[Cid, ...]]:
    position, found = b"", []
    while (portion := read_portion(store.chunks, position)).cids:
        found.append(portion.cids)
        position = portion.cids[-1]
    return found


def test_every_chunk_is_read_once_in_portions() -> None:
    store = Store(1_000)

    read = portions(store)

    assert [cid for portion in read for cid in portion] == store.cids
    assert len(read) > 1


def test_a_portion_is_bounded_in_bytes() -> None:
    read = portions(Store(12, limits.MIB))

    assert [len(portion) for portion in read] == [4, 4, 4]


def test_changed_and_missing_payloads_are_named() -> None:
    store = Store(10)
    changed, missing = store.cids[2], store.cids[7]
    batch = Batch()
    batch.put(sequence_key(store.sequence(changed)), changed + b"something else")
    batch.delete(sequence_key(store.sequence(missing)))
    store.payloads.write(batch, sync=True)

    portion = read_portion(store.chunks, b"")

    assert portion.bad == (changed, missing)
    assert len(portion.cids) == 10


def test_a_chunk_that_cannot_be_read_is_noted_as_such_and_the_others_as_good() -> None:
    store = Store(3)
    store.payloads.damage([sequence_key(store.sequence(store.cids[1]))])
    portion = read_portion(store.chunks, b"")

    batch = Batch()
    put_readings(batch, store.chunks.index, portion, 77)
    store.rows.write(batch, sync=True)

    assert [store.chunks.index.scrubbed_ms(cid) for cid in store.cids] == [77, 0, 77]


def test_an_index_that_cannot_be_read_is_no_end_of_the_walk() -> None:
    store = Store(3)
    store.rows.damage([CHUNK + store.cids[1]])

    with pytest.raises(Corruption):
        read_portion(store.chunks, b"")


def test_a_walk_is_remembered_while_it_goes_on_and_after_its_end() -> None:
    rows = MemoryStore()
    walk = ScrubWalk(5, True, 0, b"\1" * 32, 9, 90, 4, 40, 1, 1, 0)
    batch = Batch()
    put_walk(batch, walk)
    rows.write(batch, sync=True)
    assert (walk_going_on(rows), last_walk(rows)) == (walk, None)

    ended = ScrubWalk(5, True, 0, b"\1" * 32, 9, 90, 9, 90, 1, 1, 8)
    batch = Batch()
    put_walk(batch, ended)
    rows.write(batch, sync=True)
    assert (walk_going_on(rows), last_walk(rows)) == (None, ended)


def test_a_walk_of_another_version_is_begun_anew() -> None:
    rows, batch = MemoryStore(), Batch()
    batch.put(SCRUB_WALK + b"now", b"what an other version wrote")
    rows.write(batch, sync=True)

    assert walk_going_on(rows) is None


def test_new_payloads_never_look_old_by_samples_of_a_store_that_was_moved_aside() -> None:
    store, batch = Store(3), Batch()
    put_sample(batch, Sample(1, 3, 60, 3))
    store.rows.write(batch, sync=True)

    ChunkStore(MemoryStore(), store.rows)

    assert samples(store.rows) == ()


@pytest.mark.parametrize("kept", [0.5, 0.98])
def test_a_truncated_table_costs_its_chunks_which_are_named_and_taken_back(
    tmp_path: Path, kept: float
) -> None:
    rows = MemoryStore()
    payloads = open_payloads(tmp_path, create=True)
    data = {cid_of(chunk): chunk for chunk in (random.Random(seed).randbytes(60_000) for seed in range(40))}
    ChunkStore(payloads, rows).put_many([*data.items()])
    payloads.close()
    table = max((tmp_path / "payloads").glob("*.ldb"), key=lambda file: file.stat().st_size)
    with table.open("r+b") as file:
        file.truncate(int(table.stat().st_size * kept))

    payloads = open_payloads(tmp_path, create=False)
    chunks = ChunkStore(payloads, rows)
    bad, position = set[Cid](), b""
    while (portion := read_portion(chunks, position)).cids:
        bad.update(portion.bad)
        position = portion.cids[-1]
    for cid in bad:
        chunks.quarantine(cid)
    chunks.put_many([(cid, data[cid]) for cid in bad])

    assert bad
    assert all(chunks.get(cid) == chunk for cid, chunk in data.items())
    payloads.close()
