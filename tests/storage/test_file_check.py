"""Bytes beside the rows of a database: each changed one is named, open or not, and a whole database never is."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.file_check import damaged_files
from storage.key_value import Batch
from storage.keyspace import SEQUENCE_END
from storage.leveldb import LevelDb


@pytest.fixture
def database(tmp_path: Path) -> Iterator[LevelDb]:
    """An open database with a few tables."""
    with contextlib.closing(LevelDb(tmp_path / "rows", create=True, rebuild=None)) as rows:
        for number in range(3):
            batch, draw = Batch(), random.Random(number)
            for row in range(200):
                batch.put(bytes((number, row)), draw.randbytes(100))
            rows.write(batch, sync=True)
            rows.flush()
        yield rows


def files(database: LevelDb) -> list[Path]:
    return [path for path in sorted(database.path.iterdir()) if path.suffix == ".ldb"]


def test_a_whole_database_has_no_damaged_files(database: LevelDb) -> None:
    assert damaged_files(database.path) == ()


def test_every_byte_behind_the_rows_of_a_table_counts(database: LevelDb) -> None:
    rows = dict(database.scan(b"", SEQUENCE_END))
    table = files(database)[-1]
    whole = table.read_bytes()
    beginning = whole.index(b"filter.leveldb") - 260  # in the filter: ten bits for each of 200 keys
    silent = 0
    for position in range(beginning, len(whole)):
        table.write_bytes(
            whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :]
        )
        silent += damaged_files(database.path) != (table.name,)
    table.write_bytes(whole)

    assert silent == 0
    assert damaged_files(database.path) == ()
    assert dict(database.scan(b"", SEQUENCE_END)) == rows


@pytest.mark.parametrize("name", ["CURRENT", "MANIFEST-*"])
def test_every_byte_that_is_read_at_the_next_start_counts(database: LevelDb, name: str) -> None:
    (file,) = database.path.glob(name)
    whole = file.read_bytes()
    silent = [
        position
        for position in range(len(whole))
        if not changed(file, whole, position) or not damaged_files(database.path)
    ]
    file.write_bytes(whole)

    assert silent == []


def changed(file: Path, whole: bytes, position: int) -> bool:
    return bool(file.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :]))


def test_a_manifest_that_is_just_being_written_is_whole(database: LevelDb) -> None:
    (manifest,) = database.path.glob("MANIFEST-*")
    whole = manifest.read_bytes()
    for length in range(len(whole)):
        manifest.write_bytes(whole[:length])
        assert damaged_files(database.path) == ()
    manifest.write_bytes(whole)


def test_a_table_that_is_merged_away_meanwhile_is_not_damaged(database: LevelDb, tmp_path: Path) -> None:
    gone = database.path / "000999.ldb"
    gone.symlink_to(tmp_path / "nowhere")

    assert damaged_files(database.path) == ()
    gone.unlink()
