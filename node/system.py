"""The real clock, the real entropy and the real worker threads."""

import secrets
import time
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class SystemClock:
    """The machine's wall clock."""

    def now_ms(self) -> int:
        """Return Unix time in milliseconds."""
        return time.time_ns() // 1_000_000

    async def sleep_ms(self, duration_ms: int) -> None:
        """Sleep for a duration."""
        await trio.sleep(duration_ms / 1000)


class SystemEntropy:
    """The operating system's random generator."""

    def bytes(self, count: int) -> bytes:
        """Return `count` unpredictable bytes."""
        return secrets.token_bytes(count)


class ThreadWorkers:
    """A bounded pool of threads; who comes when all are busy waits in line."""

    def __init__(self, threads: int) -> None:
        self._limiter = trio.CapacityLimiter(threads)

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Return `function(*args)`, computed in a thread.

        Cancelling waits for the thread: abandoning it would leave work running behind a closed store.
        """
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter)
