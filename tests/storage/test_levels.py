import os

from protocol import limits
from storage.key_value import Batch
from storage.leveldb import LevelDb
from storage.levels import Level


def test_what_was_written_is_told_by_level_and_compaction_gives_space_back(tmp_path) -> None:
    database = LevelDb(tmp_path / "rows", create=True, rebuild=None, write_buffer=limits.MIB)
    assert all(level.files == 1 for level in database.levels())  # the table of the format key
    for number in range(12):
        batch = Batch()
        batch.put(b"key%d" % number, os.urandom(limits.MIB))
        database.write(batch, sync=False)
    database.flush()

    grown = database.levels()
    assert sum(level.bytes for level in grown) >= 12 * limits.MIB
    assert sum(level.written_bytes for level in grown) >= 12 * limits.MIB
    assert [level.level for level in grown] == sorted({level.level for level in grown})

    batch = Batch()
    for number in range(12):
        batch.delete(b"key%d" % number)
    database.write(batch, sync=False)
    assert database.compact(b"key", b"kez")
    assert sum(level.bytes for level in database.levels()) < limits.MIB
    database.close()


def test_a_level_that_holds_more_than_it_should_is_behind() -> None:
    mib = limits.MIB
    assert Level(0, 4, mib, 0, 0).is_behind
    assert not Level(0, 3, 30 * mib, 0, 0).is_behind
    assert Level(1, 4, 11 * mib, 0, 0).is_behind
    assert not Level(2, 4, 100 * mib, 0, 0).is_behind
