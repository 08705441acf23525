"""Deleting for good while somebody reads: a scan keeps the tables it began with, and compaction says so."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import LocalFault
from storage.callers import Callers
from storage.chunk_store import ChunkStore
from storage.databases import open_ledger, open_payloads
from storage.key_value import Batch
from storage.keyspace import SEQUENCE_END
from storage.leveldb import LevelDb
from storage.memory import MemoryStore
from tests.storage.test_chunk_store import named

SECRET = random.Random(4711).randbytes(3_000)
KEY = b"e" * 33


def is_in_files(folder: Path) -> bool:
    return any(SECRET[100:200] in file.read_bytes() for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[LevelDb]:
    ledger = open_ledger(tmp_path, create=True)
    batch = Batch()
    for number in range(100):
        batch.put(b"e" + number.to_bytes(32, "big"), random.Random(number).randbytes(3_000))
    batch.put(KEY, SECRET)
    ledger.write(batch, sync=True)
    ledger.flush()
    yield ledger
    ledger.close()


def erase(rows: LevelDb) -> bool:
    batch = Batch()
    batch.delete(KEY)
    rows.write(batch, sync=True)
    return rows.compact(KEY, KEY + b"\0")


def test_compaction_does_not_promise_what_a_scan_keeps_in_the_files(rows: LevelDb, tmp_path: Path) -> None:
    scan = rows.scan(b"", SEQUENCE_END)
    next(scan)

    assert not erase(rows)
    assert is_in_files(tmp_path)
    assert not rows.compact(KEY, KEY + b"\0")
    list(scan)
    assert not is_in_files(tmp_path)
    assert rows.compact(KEY, KEY + b"\0")


def test_the_end_of_the_last_scan_removes_what_compaction_replaced(rows: LevelDb, tmp_path: Path) -> None:
    first, second = rows.scan(b"", SEQUENCE_END), rows.scan(b"e", SEQUENCE_END)
    assert [len(next(scan)) for scan in (first, second)] == [2, 2]
    erase(rows)

    del first
    assert is_in_files(tmp_path)
    del second

    assert not is_in_files(tmp_path)
    assert len(list(rows.scan(b"", SEQUENCE_END))) == 100


def test_without_a_scan_compaction_promises_at_once(rows: LevelDb, tmp_path: Path) -> None:
    assert list(rows.scan(b"f", SEQUENCE_END)) == []

    assert erase(rows)
    assert not is_in_files(tmp_path)


def test_a_deleted_chunk_lingers_until_the_scan_ends(tmp_path: Path) -> None:
    payloads = open_payloads(tmp_path, create=True)
    store = ChunkStore(payloads, MemoryStore())
    ((cid, _),) = chunks = named([SECRET])
    store.put_many(chunks)
    store.flush()
    scan = payloads.scan(b"", SEQUENCE_END)
    next(scan)

    store.delete([cid])

    assert store.lingering([cid]) == {cid}
    del scan
    assert store.lingering([cid]) == frozenset()
    assert not is_in_files(tmp_path)
    payloads.close()


def test_a_database_that_is_closed_lets_nobody_in() -> None:
    callers = Callers("ledger")
    with callers.scanning():
        assert callers.scans == 1
    callers.enter()
    callers.leave()

    assert callers.close()
    assert not callers.close()
    assert (callers.scans, callers.scans_begun) == (0, 1)
    with pytest.raises(LocalFault, match="ledger is closed"):
        callers.enter()
