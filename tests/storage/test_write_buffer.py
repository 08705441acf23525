"""Whether LevelDB's next write may begin another log file, held against what it does."""

import random
from pathlib import Path

import plyvel
import pytest

from protocol import limits
from storage.write_buffer import WriteBuffer

LIMIT = 256 * limits.KIB


class Watched:
    """An engine, what is counted of its buffer, and when it really began another log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = plyvel.DB(str(path), create_if_missing=True, write_buffer_size=LIMIT, compression=None)
        self.buffer = WriteBuffer(LIMIT, 0)
        self.begun = self.suspected = 0
        self._next_may_find_it_full = False

    def write(self, rows: dict[bytes, bytes]) -> None:
        before, expected = self._newest(), self._next_may_find_it_full
        size = sum(len(key) + len(value) for key, value in rows.items())
        self._next_may_find_it_full = self.buffer.add(size, len(rows), self._held)
        with self._db.write_batch() as batch:
            for key, value in rows.items():
                batch.put(key, value)
        self.suspected += expected
        if self._newest() != before:
            self.begun += 1
            assert expected, "another log was begun unexpectedly"

    def _held(self) -> int:
        return int(self._db.get_property(b"leveldb.approximate-memory-usage"))

    def compact(self) -> None:
        self._db.compact_range()
        self.buffer.emptied()
        self._next_may_find_it_full = False

    def close(self) -> None:
        self._db.close()

    def _newest(self) -> str:
        return max(path.name for path in self._path.glob("*.log"))


@pytest.mark.parametrize("largest", [40, 300, 1_100, 5_000, 100_000])
def test_no_log_is_begun_that_was_not_expected(tmp_path: Path, largest: int) -> None:
    draw = random.Random(largest)
    engine = Watched(tmp_path)
    while engine.begun < 30:
        rows = {
            draw.randbytes(draw.randint(8, 40)): draw.randbytes(draw.randint(0, largest))
            for _ in range(draw.choice((1, 1, 3, 20)))
        }
        engine.write(rows)
        if draw.random() < 0.002:
            engine.compact()
    engine.close()
    assert engine.suspected >= 30


def test_with_large_rows_one_write_for_each_log_is_suspected(tmp_path: Path) -> None:
    engine = Watched(tmp_path)
    for number in range(400):
        engine.write({number.to_bytes(8): bytes(limits.KIB * 32)})
    engine.close()
    assert engine.begun >= 40
    assert engine.suspected <= engine.begun + 1
