import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol import limits
from protocol.errors import Corruption, LocalFault, Refused, StorageFull
from storage.key_value import Batch, KeyValue
from storage.keyspace import FORMAT
from storage.leveldb import LevelDb
from tests.contracts.key_value import END, KeyValueContract, batch_of, put

REBUILD = "carechain run --rebuild ledger"


def opened(path: Path, **options) -> LevelDb:
    return LevelDb(path, create=True, rebuild=REBUILD, **options)


class TestLevelDb(KeyValueContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[KeyValue]:
        store = opened(tmp_path / "ledger")
        yield store
        store.close()


def test_a_reopened_database_has_everything(tmp_path: Path) -> None:
    store = opened(tmp_path / "ledger")
    put(store, a=b"1", b=b"2")
    store.close()

    again = LevelDb(tmp_path / "ledger", create=False, rebuild=REBUILD)
    assert list(again.scan(b"", END)) == [(b"a", b"1"), (b"b", b"2")]
    again.close()


def test_what_was_written_survives_without_close(tmp_path: Path) -> None:
    store = opened(tmp_path / "ledger")
    put(store, a=b"1")
    shutil.copytree(tmp_path / "ledger", tmp_path / "copy")
    store.close()

    copy = opened(tmp_path / "copy")
    assert copy.get(b"a") == b"1"
    copy.close()


def test_a_closed_database_has_an_empty_log(tmp_path: Path) -> None:
    store = opened(tmp_path / "ledger")
    put(store, a=b"1")
    store.close()

    assert [log.stat().st_size for log in (tmp_path / "ledger").glob("*.log")] == [0]


def test_a_second_owner_is_refused(tmp_path: Path) -> None:
    store = opened(tmp_path / "ledger")
    with pytest.raises(Refused, match="database ledger is in use by another process"):
        opened(tmp_path / "ledger")
    store.close()


def test_a_missing_database_is_named_with_the_command_that_rebuilds_it(tmp_path: Path) -> None:
    with pytest.raises(Corruption, match=f"database ledger does not open.*{REBUILD}"):
        LevelDb(tmp_path / "ledger", create=False, rebuild=REBUILD)
    assert not (tmp_path / "ledger").exists()


@pytest.mark.parametrize("pattern", ["CURRENT", "MANIFEST-*", "*.ldb", "*.log"])
def test_a_lost_file_is_damage_and_never_an_empty_database(tmp_path: Path, pattern: str) -> None:
    store = opened(tmp_path / "ledger")
    put(store, a=b"1")
    store.close()
    for path in (tmp_path / "ledger").glob(pattern):
        path.unlink()

    with pytest.raises(Corruption, match=f"database ledger does not open.*{REBUILD}") as refusal:
        opened(tmp_path / "ledger")
    assert str(tmp_path) not in str(refusal.value)


@pytest.mark.parametrize("edits", [1, 3])
def test_an_edit_that_the_manifest_has_lost_is_damage(tmp_path: Path, edits: int) -> None:
    store = opened(tmp_path / "ledger", write_buffer=1 << 16)
    for number in range(edits):
        put(store, a=b"%d" % number)
        store.flush()
    store.close()
    (manifest,) = (tmp_path / "ledger").glob("MANIFEST-*")
    manifest.write_bytes(manifest.read_bytes()[:-3])

    with pytest.raises(Corruption, match=f"database ledger does not open.*{REBUILD}"):
        opened(tmp_path / "ledger")


@pytest.mark.parametrize("content", [b"", b"MANIFEST-000099\n", b"\xff\x00", b"MANIFEST-000001"])
def test_a_damaged_current_file_is_named(tmp_path: Path, content: bytes) -> None:
    store = opened(tmp_path / "ledger")
    put(store, a=b"1")
    store.close()
    (tmp_path / "ledger" / "CURRENT").write_bytes(content)

    with pytest.raises(Corruption, match=REBUILD):
        opened(tmp_path / "ledger")


def test_a_newer_format_is_refused_in_one_sentence(tmp_path: Path) -> None:
    opened(tmp_path / "ledger", format_version=7).close()
    with pytest.raises(Refused, match="has format 7 and this version knows 1"):
        opened(tmp_path / "ledger")
    opened(tmp_path / "ledger", format_version=7).close()


def test_an_older_format_is_migrated_step_by_step(tmp_path: Path) -> None:
    store = opened(tmp_path / "ledger")
    put(store, a=b"1")
    store.close()

    def double(database: LevelDb) -> None:
        put(database, a=(database.get(b"a") or b"") * 2)

    opened(tmp_path / "ledger", format_version=3, migrations={1: double, 2: double}).close()
    again = opened(tmp_path / "ledger", format_version=3)
    assert again.get(b"a") == b"1111"
    again.close()


def test_the_format_key_is_the_databases_own(tmp_path: Path) -> None:
    store = opened(tmp_path / "ledger")
    with pytest.raises(LocalFault):
        store.write(batch_of({FORMAT: b"9"}), sync=True)
    store.close()


def test_a_full_disk_refuses_values_and_still_takes_deletions(tmp_path: Path) -> None:
    free = [limits.MIB * 100]
    store = opened(tmp_path / "ledger", free_bytes=lambda _: free[0])
    put(store, a=b"1", b=b"2")
    free[0] = 0
    with pytest.raises(StorageFull, match="nothing was written"):
        put(store, c=b"3")
    store.write(batch_of({b"a": None}), sync=True)
    free[0] = limits.MIB * 100
    put(store, d=b"4")

    assert list(store.scan(b"", END)) == [(b"b", b"2"), (b"d", b"4")]
    store.close()


@pytest.mark.parametrize("flush_between", [False, True])
def test_compacting_a_deleted_key_removes_its_bytes_from_the_files(
    tmp_path: Path, flush_between: bool
) -> None:
    secret = random.Random(7).randbytes(200)
    store = opened(tmp_path / "keys")
    put(store, a=b"1" * 100, k=secret, z=b"2" * 100)
    if flush_between:
        store.flush()
    store.write(batch_of({b"k": None}), sync=True)
    store.compact(b"k", b"k\0")

    files = b"".join(path.read_bytes() for path in (tmp_path / "keys").iterdir() if path.is_file())
    assert secret[:16] not in files
    assert b"1" * 100 in files
    assert store.get(b"z") == b"2" * 100
    store.close()


def test_close_waits_for_readers_and_writers_in_other_threads(tmp_path: Path) -> None:
    store = opened(tmp_path / "ledger")
    put(store, a=b"1")
    outcomes: list[str] = []
    running = threading.Barrier(5)

    def work(number: int) -> None:
        running.wait()
        try:
            while True:
                if number % 2:
                    put(store, **{f"k{number}": b"x" * 100})
                else:
                    assert len(list(store.scan(b"a", b"b"))) == 1
        except LocalFault:
            outcomes.append("refused")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    running.wait()
    store.close()
    for thread in threads:
        thread.join()
    assert outcomes == ["refused"] * 4


def logs(path: Path) -> set[str]:
    return {log.name for log in path.glob("*.log")}


def test_a_log_with_unsynchronised_writes_is_made_durable_before_another_is_begun(tmp_path: Path) -> None:
    store = LevelDb(tmp_path / "ledger", create=True, rebuild=REBUILD, write_buffer=limits.MIB // 8)
    begun = unsynced = 0
    for number in range(1_000):
        batch = Batch()
        batch.put(b"%04d" % number, bytes(1000))
        before, is_unsynced = logs(store.path), store._unsynced
        store.write(batch, sync=False)
        unsynced += store._unsynced
        if max(logs(store.path)) > max(before):
            begun += 1
            assert not is_unsynced
    assert begun > 3
    assert unsynced > 600
    assert sum(1 for _ in store.scan(b"", END)) == 1_000
    store.close()
