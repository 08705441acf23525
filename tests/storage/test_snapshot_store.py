import pytest

from protocol.errors import Corruption
from protocol.identifiers import Digest, Height
from protocol.signing import sha256
from protocol.snapshot import SnapshotManifest, state
from storage.key_value import Batch
from storage.keyspace import SNAPSHOT_CHUNK, SNAPSHOT_MANIFEST, prefix_range, sequence_key
from storage.memory import MemoryStore
from storage.snapshot_store import SnapshotStore
from tests.node.snapshot_house import built
from tests.protocol.chain import VOTERS, certificate_of, filled


@pytest.fixture
def rows() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def store(rows: MemoryStore) -> SnapshotStore:
    return SnapshotStore(rows)


def manifest(height: int, chunks: int = 3) -> SnapshotManifest:
    block = built()[height]
    hashes = tuple(sha256(bytes([height, index % 256])) for index in range(chunks))
    return SnapshotManifest(block.raw, Height(height), (), certificate_of(block), 0, (), chunks, hashes)


def make(rows: MemoryStore, store: SnapshotStore, height: int, chunks: int = 3, voter: int = 0) -> None:
    batch = Batch()
    for index in range(chunks):
        store.put_chunk(batch, Height(height), index, bytes([height, index % 256]))
    made = manifest(height, chunks)
    store.put_whole(batch, made, state(VOTERS[voter], built()[height], made.state_digest))
    rows.write(batch, sync=True)


def remove(rows: MemoryStore, store: SnapshotStore) -> int:
    """Remove what is old; return how many batches that took."""
    count = 0
    while store.put_removal(batch := Batch()):
        rows.write(batch, sync=True)
        count += 1
    return count


def stored(rows: MemoryStore) -> set[int]:
    keys = [key for key, _ in rows.scan(*prefix_range(SNAPSHOT_CHUNK))]
    return {int.from_bytes(key[1:9], "big") for key in keys}


def test_the_newest_whole_snapshot_is_found(rows: MemoryStore, store: SnapshotStore) -> None:
    assert store.newest() is None
    make(rows, store, 4)
    make(rows, store, 8)
    assert store.newest() == manifest(8)
    assert store.manifest(Height(4)) == manifest(4)
    assert store.chunk(Height(8), 2) == b"\x08\x02"
    assert store.chunk(Height(8), 3) is None


def test_what_is_neither_new_nor_being_fetched_is_removed(rows: MemoryStore, store: SnapshotStore) -> None:
    for height in (4, 6, 8, 10):
        make(rows, store, height)
    batch = Batch()
    store.put_target(batch, manifest(6), ())
    store.put_chunk(batch, Height(2), 0, b"half made")
    rows.write(batch, sync=True)
    assert remove(rows, store) == 1
    assert stored(rows) == {6, 8, 10}
    assert store.manifest(Height(4)) is None
    batch = Batch()
    store.clear_target(batch)
    rows.write(batch, sync=True)
    remove(rows, store)
    assert stored(rows) == {8, 10}
    assert store.target() is None


def test_a_large_one_is_removed_in_bounded_batches(rows: MemoryStore, store: SnapshotStore) -> None:
    make(rows, store, 4, chunks=600)
    make(rows, store, 8)
    make(rows, store, 10)
    assert remove(rows, store) == 3
    assert stored(rows) == {8, 10}


def test_a_voter_keeps_its_newest_statements_and_those_that_it_believed(
    rows: MemoryStore, store: SnapshotStore
) -> None:
    for height in range(1, 12):
        make(rows, store, height)
    assert [one.height for one in store.statements()] == list(range(11, 3, -1))
    others = tuple(state(VOTERS[n], built()[20], Digest(filled("state"))) for n in (1, 2))
    batch = Batch()
    store.put_target(batch, manifest(20), others)
    rows.write(batch, sync=True)
    assert store.statements()[-2:] == others
    assert store.target() == manifest(20)


def test_a_row_that_does_not_decode_is_damage(rows: MemoryStore, store: SnapshotStore) -> None:
    batch = Batch()
    batch.put(SNAPSHOT_MANIFEST + sequence_key(8), b"\xc1")
    rows.write(batch, sync=True)
    with pytest.raises(Corruption, match="does not decode"):
        store.newest()
