"""The real clock, the real entropy and the real worker threads."""

import gc
import secrets
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar, TypeVarTuple

import trio

from node.idle_memory import keep_free_memory
from node.threads import run_in_thread

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


_SWITCH_SECONDS = 0.0005
_COLLECT_AFTER = (50_000, 50, 100)


def tune_interpreter() -> None:
    """Set the process up for one event loop beside a few worker threads. Called once, by its composition root.

    Whenever the loop comes back from a system call it waits for a worker to let go of the interpreter lock, by default
    for up to 5 ms: that, not the disk, was most of a transaction's way (p50 17 -> 12 ms, p99 53 -> 22 ms). And the
    collector walks the live objects ten times less often: nearly all that a block makes is freed by reference counts.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.set_threshold(*_COLLECT_AFTER)
    keep_free_memory()


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
        try:
            self._limiter.acquire_nowait()  # waiting for what is free costs a turn of the event loop
        except trio.WouldBlock:
            await self._limiter.acquire()
        try:
            return await run_in_thread(partial(function, *args))
        finally:
            self._limiter.release()
