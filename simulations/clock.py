"""A node's view of time and randomness, and what its processor takes for work: the small virtual ports.

Virtual time is trio's, which starts at 0 and jumps. A node's clock runs beside it with an offset and a drift of its own.
"""

from collections.abc import Callable
from random import Random
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START_MS = 1_767_225_600_000
"""Unix time at virtual time 0: 2026-01-01T00:00:00Z."""


class VirtualClock:
    """A clock that is `offset_ms` off at virtual time 0 and gains `drift` seconds per second."""

    def __init__(self, *, offset_ms: int = 0, drift: float = 0.0) -> None:
        self._start_ms = START_MS + offset_ms
        self._rate = 1 + drift

    def now_ms(self) -> int:
        """Return the node's idea of Unix time in milliseconds."""
        return self._start_ms + int(trio.current_time() * 1000 * self._rate)

    async def sleep_ms(self, duration_ms: int) -> None:
        """Sleep until this clock has advanced by a duration."""
        await trio.sleep(duration_ms / 1000 / self._rate)


class VirtualEntropy:
    """Randomness from a seeded stream."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def bytes(self, count: int) -> bytes:
        """Return `count` bytes."""
        return self._rng.randbytes(count)


class VirtualWorkers:
    """Runs work in place, and lets a random while pass for it (`mean_ms`; 0 for none)."""

    def __init__(self, rng: Random, mean_ms: float) -> None:
        self._rng = rng
        self._mean_ms = mean_ms

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Return `function(*args)`."""
        if self._mean_ms:
            await trio.sleep(self._rng.expovariate(1) * self._mean_ms / 1000)
        else:
            await trio.lowlevel.checkpoint()
        return function(*args)
