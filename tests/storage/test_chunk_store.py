import random
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.cid import cid_of
from protocol.errors import Corruption, Invalid
from protocol.identifiers import Cid, Rid
from storage.chunk_index import ChunkIndex
from storage.chunk_store import ChunkStatistics, ChunkStore
from storage.databases import open_payloads
from storage.key_value import Batch
from storage.keyspace import SEQUENCE_END, sequence_key
from storage.leveldb import LevelDb
from storage.memory import MemoryStore
from storage.payload_store import PayloadStore

CHUNKS = [random.Random(number).randbytes(number * 13 + 1) for number in range(20)]


def named(chunks: list[bytes]) -> list[tuple[Cid, bytes]]:
    return [(cid_of(chunk), chunk) for chunk in chunks]


def test_chunks_come_back_and_are_stored_once() -> None:
    store = ChunkStore(MemoryStore(), MemoryStore())
    assert store.put_many(named(CHUNKS)) == len(CHUNKS)
    assert store.put_many(named([*CHUNKS[:5], b"new", b"new"])) == 1

    assert all(store.get(cid) == chunk for cid, chunk in named(CHUNKS))
    assert store.get(cid_of(b"absent")) is None
    assert not store.has(cid_of(b"absent"))
    assert list(store.cids()) == sorted(cid for cid, _ in named([*CHUNKS, b"new"]))
    assert store.statistics() == ChunkStatistics(21, sum(map(len, CHUNKS)) + 3, 0, 0, 0)


def test_bytes_that_do_not_match_their_id_are_refused_and_nothing_is_stored() -> None:
    store = ChunkStore(MemoryStore(), MemoryStore())
    with pytest.raises(Invalid, match="bafkrei"):
        store.put_many([*named(CHUNKS[:2]), (cid_of(b"a"), b"b")])
    assert store.statistics().chunks == 0


@given(groups=st.lists(st.lists(st.sampled_from(CHUNKS), min_size=1, max_size=4), max_size=5), data=st.data())
def test_a_crash_loses_no_chunk_whose_storing_returned(
    groups: list[list[bytes]], data: st.DataObject
) -> None:
    payloads, ledger = MemoryStore(), MemoryStore()
    store = ChunkStore(payloads, ledger)
    for group in groups:
        store.put_many(named(group))
    # What a crash between the two databases leaves: a payload without its row.
    PayloadStore(payloads).append(named([b"behind the cursor"]), sync=True)
    payloads.crash(0)
    ledger.crash(data.draw(st.integers(0, ledger.unsynced)))

    again = ChunkStore(payloads.reopened(), ledger.reopened())
    expected = {chunk for group in groups for chunk in group} | {b"behind the cursor"}
    assert {again.get(cid) for cid in again.cids()} == expected
    assert again.statistics().chunks == len(expected)


@pytest.mark.parametrize("kept", range(4))
def test_of_a_group_that_a_crash_cuts_short_a_first_part_is_there_and_indexed(kept: int) -> None:
    payloads, ledger = MemoryStore(), MemoryStore()
    ChunkStore(payloads, ledger).put_many(named([b"before"]))
    group = [bytes([number]) * limits.CHUNK_BYTES_MAX for number in range(3)]
    PayloadStore(payloads).append(named(group), sync=False)
    payloads.crash(kept)

    again = ChunkStore(payloads.reopened(), ledger.reopened())
    assert {again.get(cid) for cid in again.cids()} == {b"before", *group[:kept]}


def test_small_payloads_share_a_batch() -> None:
    payloads = MemoryStore()
    PayloadStore(payloads).append(named(CHUNKS), sync=False)
    assert payloads.unsynced == 1


def test_damage_is_never_served_and_storing_again_repairs_it() -> None:
    payloads, ledger = MemoryStore(), MemoryStore()
    store = ChunkStore(payloads, ledger)
    store.put_many(named(CHUNKS[:3]))
    cid = cid_of(CHUNKS[1])
    batch = Batch()
    batch.put(sequence_key(1), cid + b"something else")
    payloads.write(batch, sync=True)

    with pytest.raises(Corruption, match=r"chunk bafkrei\w+ is damaged \(payload 1\)"):
        store.get(cid)
    assert store.has(cid)
    store.quarantine(cid)
    store.quarantine(cid)
    assert not store.has(cid)
    assert store.get(cid) is None
    assert store.statistics().corruptions == 1
    assert store.put_many(named([CHUNKS[1]])) == 1
    assert store.get(cid) == CHUNKS[1]
    again = ChunkStore(payloads, ledger)
    assert again.get(cid) == CHUNKS[1]
    again.rebuild_index()
    assert again.get(cid) == CHUNKS[1]


def test_a_payload_in_quarantine_is_not_indexed_again() -> None:
    payloads, ledger = MemoryStore(), MemoryStore()
    store = ChunkStore(payloads, ledger)
    store.put_many(named(CHUNKS[:3]))
    store.quarantine(cid_of(CHUNKS[2]))
    store.rebuild_index()

    assert not store.has(cid_of(CHUNKS[2]))
    assert store.statistics().chunks == 2
    assert not ChunkStore(payloads, ledger).has(cid_of(CHUNKS[2]))


def test_a_deleted_chunk_leaves_index_payloads_and_files(tmp_path: Path) -> None:
    payloads = open_payloads(tmp_path, create=True)
    ledger = MemoryStore()
    store = ChunkStore(payloads, ledger)
    secret = random.Random(5).randbytes(3_000)
    store.put_many(named([CHUNKS[1], secret, CHUNKS[2]]))

    assert store.delete([cid_of(secret), cid_of(b"absent"), cid_of(secret)]) == 1
    assert store.get(cid_of(secret)) is None
    assert store.index.to_reclaim() == ()
    assert store.statistics().chunks == 2
    files = b"".join(path.read_bytes() for path in (tmp_path / "payloads").iterdir() if path.is_file())
    assert secret[:32] not in files
    assert store.put_many(named([secret])) == 1
    assert store.get(cid_of(secret)) == secret
    payloads.close()


def test_an_interrupted_deletion_is_finished_at_the_next_start() -> None:
    payloads, ledger = MemoryStore(), MemoryStore()
    store = ChunkStore(payloads, ledger)
    store.put_many(named(CHUNKS[:3]))
    batch = Batch()
    store.index.forget(batch, cid_of(CHUNKS[2]), 2)
    ledger.write(batch, sync=True)

    again = ChunkStore(payloads, ledger)
    assert not again.has(cid_of(CHUNKS[2]))
    assert payloads.get(sequence_key(2)) is None
    again.put_many(named([b"next"]))
    assert again.index.locate(cid_of(b"next")) is not None
    assert [key for key, _ in payloads.scan(sequence_key(2), SEQUENCE_END)] == [sequence_key(3)]


def test_payloads_moved_aside_are_no_longer_promised() -> None:
    ledger = MemoryStore()
    old = ChunkStore(MemoryStore(), ledger)
    old.put_many(named(CHUNKS[:3]))
    old.quarantine(cid_of(CHUNKS[1]))
    store = ChunkStore(MemoryStore(), ledger)

    assert list(store.cids()) == []
    assert store.put_many(named(CHUNKS[:3])) == 3
    assert store.get(cid_of(CHUNKS[0])) == CHUNKS[0]
    assert store.statistics().quarantined == 0


def test_a_ledger_moved_aside_is_indexed_anew() -> None:
    payloads = MemoryStore()
    ChunkStore(payloads, MemoryStore()).put_many(named(CHUNKS))
    store = ChunkStore(payloads, MemoryStore())
    assert all(store.get(cid) == chunk for cid, chunk in named(CHUNKS))


def test_a_damaged_last_payload_costs_one_chunk_and_not_the_start(tmp_path: Path) -> None:
    ledger = MemoryStore()
    payloads = open_payloads(tmp_path, create=True)
    chunks = [random.Random(number).randbytes(6_000) for number in range(9)]
    ChunkStore(payloads, ledger).put_many(named(chunks))
    payloads.close()
    for table in (tmp_path / "payloads").glob("*.ldb"):
        content = bytearray(table.read_bytes())
        for damaged in (chunks[4], chunks[8]):
            if damaged in content:
                content[content.index(damaged)] ^= 1
        table.write_bytes(content)

    payloads = open_payloads(tmp_path, create=False)
    for index in (ledger, MemoryStore()):  # as it was, and rebuilt
        store = ChunkStore(payloads, index)
        readable = []
        for chunk in chunks:
            try:
                readable.append(store.get(cid_of(chunk)) == chunk)
            except Corruption:
                readable.append(False)
        assert readable == [True, True, True, True, False, True, True, True, False]
    store.put_many(named([b"next"]))
    assert store.get(cid_of(b"next")) == b"next"
    payloads.close()


def test_deleting_beside_a_damaged_payload_leaves_the_store_writable(tmp_path: Path) -> None:
    ledger = MemoryStore()
    payloads = open_payloads(tmp_path, create=True)
    chunks = [random.Random(number).randbytes(6_000) for number in range(9)]
    ChunkStore(payloads, ledger).put_many(named(chunks))
    payloads.close()
    for table in (tmp_path / "payloads").glob("*.ldb"):
        table.write_bytes(table.read_bytes().replace(chunks[4], bytes(6_000)))

    for _ in range(2):  # also when the deletion is taken up again at the next start
        payloads = open_payloads(tmp_path, create=False)
        store = ChunkStore(payloads, ledger)
        store.delete([cid_of(chunks[2]), cid_of(chunks[7])])
        assert not store.has(cid_of(chunks[7]))
        assert store.statistics().unreclaimed == 2
        store.put_many(named([b"next"]))
        assert store.get(cid_of(chunks[8])) == chunks[8]
        payloads.close()


def test_every_record_that_names_a_chunk_is_told_until_it_names_it_no_more() -> None:
    ledger = MemoryStore()
    index, cid, other = ChunkIndex(ledger), cid_of(b"x"), cid_of(b"y")
    first, second = Rid(b"1" * 32), Rid(b"2" * 32)
    batch = Batch()
    index.refer(batch, (cid, other), second)
    index.refer(batch, (cid,), first)
    index.refer(batch, (cid,), first)
    ledger.write(batch, sync=True)
    assert tuple(index.references(cid)) == (first, second)
    batch = Batch()
    index.release_references(batch, (cid,), second)
    ledger.write(batch, sync=True)
    assert (tuple(index.references(cid)), tuple(index.references(other))) == ((first,), (second,))


def test_deleted_chunks_linger_only_beside_damage(tmp_path: Path) -> None:
    payloads, ledger = open_payloads(tmp_path, create=True), MemoryStore()
    store = ChunkStore(payloads, ledger)
    gone, kept, bad = (number.to_bytes(1, "big") * 200_000 for number in (1, 2, 3))
    store.put_many(named([gone, kept, bad]))
    store.delete([cid_of(gone)])
    store.quarantine(cid_of(bad))
    assert store.lingering([cid_of(gone), cid_of(kept)]) == frozenset()
    assert store.lingering([cid_of(gone), cid_of(bad)]) == {cid_of(bad)}
    assert all(gone[:1_000] not in file.read_bytes() for file in (tmp_path / "payloads").iterdir())
    payloads.close()


def test_scrub_times_are_kept() -> None:
    ledger = MemoryStore()
    index, batch = ChunkIndex(ledger), Batch()
    index.mark_scrubbed(batch, cid_of(b"x"), 1_700_000_000_000)
    ledger.write(batch, sync=True)
    assert (index.scrubbed_ms(cid_of(b"x")), index.scrubbed_ms(cid_of(b"y"))) == (1_700_000_000_000, 0)


def test_readers_and_a_writer_in_threads_see_whole_chunks(tmp_path: Path) -> None:
    payloads = open_payloads(tmp_path, create=True)
    ledger = LevelDb(tmp_path / "ledger", create=True, rebuild="carechain run --rebuild ledger")
    store = ChunkStore(payloads, ledger)
    chunks = named([random.Random(number).randbytes(20_000) for number in range(60)])
    done = threading.Event()
    found: list[int] = []

    def read() -> None:
        seen = 0
        while not done.is_set() or not seen:
            seen = sum(store.get(cid) == chunk for cid, chunk in chunks)
        found.append(sum(store.get(cid) == chunk for cid, chunk in chunks))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for position in range(0, len(chunks), 4):
        store.put_many(chunks[position : position + 4])
    done.set()
    for reader in readers:
        reader.join()
    assert found == [60, 60, 60]
    payloads.close()
    ledger.close()
