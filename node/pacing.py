"""Bulk work gives way: while transactions are being ordered here, it rests as long as it worked.

They share processors and disk. At half its speed a copy still ends, and nobody waits much longer for a record to open.
"""

from node.ports import Clock
from protocol.identifiers import Height
from storage.ledger_store import LedgerStore

_RECENT_MS = 250
"""After a block, another is as good as there: one in so long is what a single busy reader causes."""
_REST_MS_MAX = 200


class Pace:
    """Tells whether blocks come, and rests. Shared by the tasks of one kind of work."""

    def __init__(self, ledger: LedgerStore, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._height: Height | None = None
        self._changed_ms: int | None = None

    async def rest(self, worked_ms: int) -> None:
        """Call between two pieces of work; the first took so long."""
        now_ms, height = self._clock.now_ms(), self._ledger.applied().height
        if self._height is not None and height != self._height:
            self._changed_ms = now_ms
        self._height = height
        # Nor does a clock that was set back stop it for ever.
        if self._changed_ms is not None and 0 <= now_ms - self._changed_ms < _RECENT_MS:
            await self._clock.sleep_ms(min(max(worked_ms, 0), _REST_MS_MAX))
