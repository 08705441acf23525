"""Everything that happened, in order, with virtual times: what two runs of a seed must agree on, hashed as it grows."""

import hashlib
from collections import Counter, deque

import trio

_TAIL = 400
"""Events kept to be read after a violation."""
Happening = tuple[float, str, tuple[str, ...]]
"""An event as it was recorded: virtual seconds, kind, values in words."""


class History:
    """One line per event: microseconds of virtual time, kind, values. Values are numbers, names and hashes."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.tail: deque[str] = deque(maxlen=_TAIL)
        self.kept: list[Happening] | None = None
        """Everything from the moment when this becomes a list: what a picture is drawn from."""
        self._digest = hashlib.sha256()

    def record(self, kind: str, *values: str | int | bytes) -> None:
        """Add an event; ids and hashes are shortened to 8 bytes."""
        words = [value.hex()[:16] if isinstance(value, bytes) else str(value) for value in values]
        line = " ".join([str(round(trio.current_time() * 1e6)), kind, *words])
        self._digest.update(line.encode() + b"\n")
        self.counts[kind] += 1
        self.tail.append(line)
        if self.kept is not None:
            self.kept.append((trio.current_time(), kind, tuple(words)))

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of all lines so far."""
        return self._digest.hexdigest()
