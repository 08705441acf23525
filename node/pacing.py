"""Bulk work gives way: while a transaction is under way here nothing of a copy is begun, and little of it was on its way.

They share processors and disks, and a transaction passes a dozen tasks, threads and synchronised writes: beside a copy it
waits at each of them. So whoever copies rests from the first sign of a transaction on its own member until it is final.
What has left by then cannot be called back: where transactions come, one message at a time is on its way to a member.
"""

from collections.abc import Callable
from dataclasses import dataclass

from node.ports import Clock, Disk
from storage.key_value import Batch

_LOOK_MS = 5
_FREE_LOOKS = 2
"""In a row, and a rest is over: the others finish a transaction a moment later."""
_REST_SHARE = 3
"""Nobody rests longer than so many times as long as it worked: a copy also ends under a stream of transactions."""
_REST_MS_MIN, _REST_MS_MAX = 30, 150
_NOTICE_MS = 20
"""From a write that precedes a transaction until the transaction itself is to be seen."""
_STALLED_MS = 1_000
"""What has not moved for so long waits for other members, whom resting here does not help."""
_QUIET_MS = 1_000
"""Without transactions: more may be on its way and in one write, and the first one after that meets it."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is to be seen of transactions: when the last applied block was cut, ordered blocks above it, whether a receipt is waited for."""

    final_ms: int
    ahead: int
    is_waited_for: bool


class Pace:
    """The right of way on one member, shared by all that copies there. `traffic` shows what is under way now."""

    def __init__(self, clock: Clock, traffic: Callable[[], Traffic]) -> None:
        self._clock = clock
        self._traffic = traffic
        self._seen = traffic()
        self._moved_ms: int | None = None
        self._noticed_ms: int | None = None
        self._busy_ms: int | None = None

    def notice(self) -> None:
        """Hear of a write that a transaction follows upon."""
        self._noticed_ms = self._clock.now_ms()

    def is_quiet(self) -> bool:
        """Whether transactions are so rare now that much may be on its way, or in one write, at once."""
        is_under_way = self._is_under_way()
        return not (
            is_under_way
            or self._is_within(_QUIET_MS, self._busy_ms)
            or self._is_within(_QUIET_MS, self._seen.final_ms)
        )

    async def rest(self, worked_ms: int) -> None:
        """Wait while a transaction is under way. Call before a piece of work; the one before it took so long."""
        if not self._is_under_way():
            return
        left_ms, free = min(max(worked_ms * _REST_SHARE, _REST_MS_MIN), _REST_MS_MAX), 0
        while left_ms > 0 and free < _FREE_LOOKS:
            await self._clock.sleep_ms(_LOOK_MS)
            left_ms -= _LOOK_MS
            free = 0 if self._is_under_way() else free + 1

    def _is_under_way(self) -> bool:
        traffic, now_ms = self._traffic(), self._clock.now_ms()
        if traffic != self._seen:
            self._seen, self._moved_ms = traffic, now_ms
        is_pending = traffic.ahead > 0 or traffic.is_waited_for
        under_way = (is_pending and self._is_within(_STALLED_MS, self._moved_ms)) or self._is_within(
            _NOTICE_MS, self._noticed_ms
        )
        if under_way:
            self._busy_ms = now_ms
        return under_way

    def _is_within(self, duration_ms: int, then_ms: int | None) -> bool:
        # The leader's clock may be ahead of ours; and one that was set back holds nobody up for long.
        return then_ms is not None and abs(self._clock.now_ms() - then_ms) < duration_ms


class NoticedDisk:
    """The `Disk` of those whose writes precede a transaction."""

    def __init__(self, disk: Disk, pace: Pace) -> None:
        self._disk = disk
        self._pace = pace

    def read(self, key: bytes) -> bytes | None:
        """Return the value of a key. Raises Corruption when its bytes fail their check."""
        return self._disk.read(key)

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        """Write a batch atomically. Raises what the disk raises."""
        self._pace.notice()
        await self._disk.commit(batch, sync=sync)
        self._pace.notice()
