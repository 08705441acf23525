"""How much of a database's tables the kernel keeps in memory: not all of a scan of 10 GiB, which would drive out everybody else's.

What was written last may be read soon and stays. Older tables are let go once; who reads them brings them back.
"""

import os
from contextlib import suppress
from pathlib import Path

from protocol import limits

_LOOK_BYTES = 256 * limits.MIB
"""Written between two looks at the directory."""


class PageCache:
    """The pages of one directory's tables, of which the newest `keep` bytes stay. For one writer at a time."""

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory
        self._keep = keep
        self._written = 0
        self._let_go = 0  # the highest number of a table whose pages have been let go

    def wrote(self, size: int) -> None:
        """Hear of so many bytes more."""
        self._written += size
        if self._written >= _LOOK_BYTES:
            self._written = 0
            self._look()

    def _look(self) -> None:
        numbers = (int(path.stem) for path in self._directory.glob("*.ldb") if path.stem.isdigit())
        kept, newest = 0, 0
        for number in sorted((number for number in numbers if number > self._let_go), reverse=True):
            with suppress(FileNotFoundError):  # the engine has merged it into another one meanwhile
                table = self._directory / f"{number:06}.ldb"
                if kept < self._keep:
                    kept += table.stat().st_size
                else:
                    _let_go(table)
                    newest = newest or number
        self._let_go = newest or self._let_go


def _let_go(table: Path) -> None:
    descriptor = os.open(table, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
