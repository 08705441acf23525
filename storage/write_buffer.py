"""How full LevelDB's write buffer may be: a write that finds it full begins another log file.

The engine tells one figure for its buffers, the full one that it writes out included, and for its cache of blocks: no less
than the buffer, and mostly much more. So what was written is counted too, with the least and the most memory that it takes.
"""

from collections.abc import Callable

_LEAST_PER_ROW, _MOST_PER_ROW = 16, 176
"""Bytes beside key and value: lengths, sequence number, and a node of the skip list with 1 to 12 levels."""
_SMALL_BYTES, _WASTED = 1024, 3
"""Memory for smaller rows is taken in pieces of four times that; up to a quarter of one is left over: a third more."""
_PIECE_BYTES = 4104


class WriteBuffer:
    """Counts what goes into a buffer of `limit` bytes that holds `held` at most. For one writer at a time."""

    def __init__(self, limit: int, held: int) -> None:
        self._limit = limit
        self._least, self._most = 0, held + _PIECE_BYTES
        self._most_since = 0  # of what was written when it may have been full: in this buffer or the next one

    def emptied(self) -> None:
        """Hear that the engine has begun another one."""
        self._least, self._most, self._most_since = 0, _PIECE_BYTES, 0

    def add(self, size: int, rows: int, held: Callable[[], int]) -> bool:
        """Count a write that comes now, of so many rows and bytes of keys and values; return whether the next may find it full.

        `held` returns what the engine tells.
        """
        if self._least > self._limit:
            # This write, or one since the buffer may have been full, finds it so.
            self._least, self._most, self._most_since = 0, _PIECE_BYTES + self._most_since, 0
        most = size + min(size, _SMALL_BYTES * rows) // _WASTED + _MOST_PER_ROW * rows
        if self._most > self._limit:
            self._most_since += most
        self._least += size + _LEAST_PER_ROW * rows
        self._most += most
        return self._most > self._limit and held() + most + _PIECE_BYTES > self._limit
