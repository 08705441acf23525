"""Ordered key-value stores: what the rest of storage is written against.

Two implementations pass one contract suite (`tests/contracts/key_value.py`): `leveldb` and `memory`.
"""

from collections.abc import Iterator
from typing import Protocol


class Batch:
    """Writes that become visible, and durable, together or not at all. `None` deletes. The last write to a key wins."""

    __slots__ = ("bytes", "writes")

    def __init__(self) -> None:
        self.writes: dict[bytes, bytes | None] = {}
        self.bytes = 0

    def put(self, key: bytes, value: bytes) -> None:
        """Set a key."""
        self.writes[key] = value
        self.bytes += len(key) + len(value)

    def delete(self, key: bytes) -> None:
        """Remove a key; no error when it is absent."""
        self.writes[key] = None
        self.bytes += len(key)

    def extend(self, other: "Batch") -> None:
        """Add all writes of another batch after these."""
        self.writes.update(other.writes)
        self.bytes += other.bytes


class KeyValue(Protocol):
    """A synchronous ordered store. Keys sort as unsigned bytes. One process, one owner.

    Every read verifies checksums: bytes that fail raise `protocol.errors.Corruption`, never come back as data.
    """

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None when the key is absent."""
        ...

    def write(self, batch: Batch, *, sync: bool) -> None:
        """Apply a batch atomically; with `sync`, return only once it is on stable storage."""
        ...

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) with start <= key < stop, in order, from a consistent snapshot taken at the first step."""
        ...

    def flush(self) -> None:
        """Push what is buffered in memory into tables, so that idle memory is small and scrubs see every byte."""
        ...

    def compact(self, start: bytes, stop: bytes) -> bool:
        """Give back the space of deleted keys in a range (flush, then compact with explicit bounds; storage.md 1).

        Return whether their bytes are gone from the files: not while somebody scans what they were part of.
        """
        ...

    def close(self) -> None:
        """Release the store; further calls raise."""
        ...
