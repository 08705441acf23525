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
    """A clock that is `offset_ms` off at virtual time 0 and gains `drift` seconds per second, until it is `set`."""

    def __init__(self, *, offset_ms: int = 0, drift: float = 0.0) -> None:
        self._base_ms = float(START_MS + offset_ms)
        self._base_s = 0.0
        self._rate = 1 + drift

    def now_ms(self) -> int:
        """Return the node's idea of Unix time in milliseconds."""
        return int(self._base_ms + (trio.current_time() - self._base_s) * 1000 * self._rate)

    def set(self, *, offset_ms: int | None = None, drift: float | None = None) -> None:
        """Jump to `offset_ms` off the true time, and gain `drift` seconds per second from now on; None leaves one as it is.

        Who sleeps goes on sleeping: a jump of the wall clock does not touch the monotonic one.
        """
        now_s = trio.current_time()
        shown_ms = self._base_ms + (now_s - self._base_s) * 1000 * self._rate
        self._base_ms = shown_ms if offset_ms is None else START_MS + now_s * 1000 + offset_ms
        self._base_s = now_s
        if drift is not None:
            self._rate = 1 + drift

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
