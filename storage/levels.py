"""What the engine tells of its levels: where files lie, and how much compaction has read and written since it opened.

A level below the first that grows far beyond its size, or a first level with many files, is compaction that cannot follow.
"""

from dataclasses import dataclass

from protocol import limits

_HEADER_LINES = 3
_FILES_TO_COMPACT = 4
"""So many files in the first level start a compaction; later levels hold ten times as much each, from 10 MiB on (LevelDB, db/version_set.cc)."""
_FIRST_LEVEL_BYTES = 10 * limits.MIB


@dataclass(frozen=True, slots=True)
class Level:
    """One level: its files, their bytes, and the bytes that compactions into it have read and written (to the MiB)."""

    level: int
    files: int
    bytes: int
    read_bytes: int
    written_bytes: int

    @property
    def is_behind(self) -> bool:
        """Whether it holds more than the engine means it to: a compaction is under way, or due."""
        if self.level == 0:
            return self.files >= _FILES_TO_COMPACT
        return self.bytes > _FIRST_LEVEL_BYTES * int(10 ** (self.level - 1))


def parse_levels(statistics: bytes) -> tuple[Level, ...]:
    """Return the levels named in the text of the property `leveldb.stats`: those that hold files or were compacted."""
    found = []
    for line in statistics.decode().splitlines()[_HEADER_LINES:]:
        number, files, size, _seconds, read, written = (float(word) for word in line.split())
        found.append(
            Level(
                int(number),
                int(files),
                int(size) * limits.MIB,
                int(read) * limits.MIB,
                int(written) * limits.MIB,
            )
        )
    return tuple(found)
