"""A damaged ledger database gives back every row of the facility's own that one changed byte did not touch."""

import random
import shutil
from pathlib import Path

import pytest

from storage import keyspace
from storage.databases import open_ledger
from storage.key_value import Batch
from storage.leveldb import LevelDb
from storage.memory import MemoryStore
from storage.rescue import rescue_own_rows


def written(home: Path, *, flushed: bool) -> dict[bytes, bytes]:
    """Fill a ledger database, close it as kill -9 would, and return the own rows in it."""
    draw, own = random.Random(5), dict[bytes, bytes]()
    database = open_ledger(home, create=True)
    for number in range(300):
        batch = Batch()
        for prefix in (keyspace.RECORD_NOTE, keyspace.RECORD_QUEUE, keyspace.ATTACHMENT):
            key = prefix + draw.randbytes(32)
            own[key] = draw.randbytes(draw.randrange(400))
            batch.put(key, own[key])
        batch.put(keyspace.BLOCK + number.to_bytes(8, "big"), draw.randbytes(2_000))
        if number % 3 == 0:
            gone = draw.choice(sorted(own))
            del own[gone]
            batch.delete(gone)
            kept = draw.choice(sorted(own))
            own[kept] = b"newer"
            batch.put(kept, b"newer")
        database.write(batch, sync=False)
        if flushed and number % 100 == 50:
            database.flush()
    shutil.copytree(home / "ledger", home / "killed")
    database.close()
    return own


@pytest.mark.parametrize("flushed", [False, True])
def test_of_an_undamaged_database_every_own_row_is_rescued_and_nothing_else(
    tmp_path: Path, flushed: bool
) -> None:
    own = written(tmp_path, flushed=flushed)
    rescued = MemoryStore()

    count = rescue_own_rows(tmp_path / "killed", rescued)

    assert dict(rescued.scan(b"", keyspace.SEQUENCE_END)) == own
    assert count == len(own)


@pytest.mark.parametrize("flushed", [False, True])
def test_one_changed_byte_costs_only_the_rows_beside_it(tmp_path: Path, flushed: bool) -> None:
    own = written(tmp_path, flushed=flushed)
    draw = random.Random(7)
    files = sorted((tmp_path / "killed").glob("*.l*"))
    for file in [file for file in files if file.suffix in {".ldb", ".log"} and file.stat().st_size]:
        whole = file.read_bytes()
        position = draw.randrange(len(whole))
        file.write_bytes(
            whole[:position] + bytes([whole[position] ^ 1 << draw.randrange(8)]) + whole[position + 1 :]
        )
        rescued = MemoryStore()

        rescue_own_rows(tmp_path / "killed", rescued)

        found = dict(rescued.scan(b"", keyspace.SEQUENCE_END))
        assert len(own.items() & found.items()) > 0.7 * len(own)
        file.write_bytes(whole)


def test_a_table_without_a_readable_index_still_gives_its_rows(tmp_path: Path) -> None:
    own = written(tmp_path, flushed=True)
    for file in (tmp_path / "killed").glob("*.ldb"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    rescued = MemoryStore()

    rescue_own_rows(tmp_path / "killed", rescued)

    assert dict(rescued.scan(b"", keyspace.SEQUENCE_END)) == own


def test_what_is_rescued_is_there_after_a_restart(tmp_path: Path) -> None:
    own = written(tmp_path, flushed=True)
    fresh = LevelDb(tmp_path / "fresh", create=True, rebuild=None)
    rescue_own_rows(tmp_path / "killed", fresh)
    fresh.close()

    again = LevelDb(tmp_path / "fresh", create=False, rebuild=None)

    assert dict(again.scan(b"", keyspace.SEQUENCE_END)) == own
    again.close()
