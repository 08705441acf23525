"""A `KeyValue` in memory, with the durability of a disk that loses power: what simulations and tests run on."""

import weakref
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from protocol.errors import LocalFault, Unreadable
from storage.key_value import Batch


class MemoryStore:
    """An ordered store whose unsynchronised batches can be lost, latest first (`crash`). One thread.

    A synchronised batch makes every earlier one durable too, as one log file does. Rows can be damaged (`damage`): reading
    one raises Unreadable, as a table whose checksum fails does, until it is written anew.
    """

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []
        # One per unsynchronised batch: what it replaced, and which damaged rows it wrote anew.
        self._undo: list[tuple[dict[bytes, bytes | None], frozenset[bytes]]] = []
        self._damaged: set[bytes] = set()
        self._scans: weakref.WeakSet[_Scan] = weakref.WeakSet()
        self._closed = False

    @property
    def unsynced(self) -> int:
        """The number of batches that a crash may lose."""
        return len(self._undo)

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None when the key is absent."""
        self._check_open()
        _check(key, self._damaged)
        return self._values.get(key)

    def write(self, batch: Batch, *, sync: bool) -> None:
        """Apply a batch atomically; with `sync`, it and all before it survive `crash`."""
        self._check_open()
        self._freeze_scans()
        replaced = {key: self._values.get(key) for key in batch.writes}
        healed = frozenset(self._damaged.intersection(batch.writes)) if self._damaged else frozenset()
        self._damaged -= healed
        for key, value in batch.writes.items():
            self._set(key, value)
        if sync:
            self._undo.clear()
        elif replaced:
            self._undo.append((replaced, healed))

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) with start <= key < stop, in order, from a snapshot taken at the first step."""
        self._check_open()
        scan = _Scan(self._values, self._keys, self._damaged, start, stop, reverse=reverse)
        self._scans.add(scan)
        yield from scan

    def flush(self) -> None:
        """Make everything durable, as turning a write buffer into a table does."""
        self._check_open()
        self._undo.clear()

    def compact(self, start: bytes, stop: bytes) -> bool:  # noqa: ARG002 - deleted keys leave nothing behind here
        """Do what `flush` does."""
        self.flush()
        return True

    def close(self) -> None:
        """Release the store; further calls raise LocalFault. `reopened` gives it back."""
        self._closed = True

    def crash(self, keep: int) -> None:
        """Lose power: of the unsynchronised batches only the first `keep` survive."""
        assert 0 <= keep <= len(self._undo)
        self._freeze_scans()
        for replaced, healed in reversed(self._undo[keep:]):
            for key, value in replaced.items():
                self._set(key, value)
            self._damaged |= healed
        self._undo.clear()

    def settle(self, latest: int) -> None:
        """Make all unsynchronised batches durable but the `latest`, as a cache that overflows does."""
        del self._undo[: max(0, len(self._undo) - latest)]

    @property
    def damaged(self) -> frozenset[bytes]:
        """The keys of the rows whose stored bytes fail their check."""
        return frozenset(self._damaged)

    def damage(self, keys: Iterable[bytes]) -> None:
        """Flip a bit in stored rows: whoever reads one of them gets Unreadable, never wrong bytes."""
        for key in keys:
            assert key in self._values, "only what is stored can be damaged"
            self._damaged.add(key)

    def reopened(self) -> "MemoryStore":
        """Return a new store over what this one left on its disk, and close this one."""
        self._closed = True
        other = MemoryStore()
        other._values, other._keys, other._damaged = self._values, self._keys, self._damaged
        return other

    def undamaged(self) -> "MemoryStore":
        """Return a view of the same rows as they were written: for who watches a simulation and must not be part of it."""
        view = MemoryStore()
        view._values, view._keys = self._values, self._keys
        return view

    def _set(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            if self._values.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]
        else:
            if key not in self._values:
                insort(self._keys, key)
            self._values[key] = value

    def _freeze_scans(self) -> None:
        for scan in list(self._scans):
            scan.freeze()
        self._scans.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise LocalFault("the store is closed")


class _Scan:
    """A scan in progress. It walks the live keys until the first write, and a copy of the rest from then on."""

    def __init__(
        self,
        values: dict[bytes, bytes],
        keys: list[bytes],
        damaged: set[bytes],
        start: bytes,
        stop: bytes,
        *,
        reverse: bool,
    ) -> None:
        self._values = values
        self._keys = keys
        self._damaged = damaged
        self._low = bisect_left(keys, start)
        self._high = max(self._low, bisect_left(keys, stop))
        self._reverse = reverse
        self._frozen: list[tuple[bytes, bytes]] | None = None  # the rest, last first

    def freeze(self) -> None:
        """Copy the rest of the range, because the keys are about to change."""
        keys = self._keys[self._low : self._high]
        self._frozen = [(key, self._values[key]) for key in (keys if self._reverse else reversed(keys))]

    def __iter__(self) -> "_Scan":
        return self

    def __next__(self) -> tuple[bytes, bytes]:
        if self._frozen is not None:
            if not self._frozen:
                raise StopIteration
            row = self._frozen.pop()
            _check(row[0], self._damaged)
            return row
        if self._low >= self._high:
            raise StopIteration
        if self._reverse:
            self._high -= 1
            key = self._keys[self._high]
        else:
            key = self._keys[self._low]
            self._low += 1
        _check(key, self._damaged)
        return key, self._values[key]


def _check(key: bytes, damaged: set[bytes]) -> None:
    if key in damaged:
        raise Unreadable(f"a row of family {key[:1]!r} holds damaged bytes")
