"""The leader's part in a change of members: what the ballots decided is proposed as a configuration block (ledger.md 7.2).

Only the leader can, and only with nothing under way; so every voter watches, and whoever leads keeps trying until the
configuration is in force, or nothing is pending any more.
"""

from collections.abc import Awaitable, Callable

from node.applier import AppliedHeight
from node.event_log import EventLog
from node.membership_admission import governance_of
from node.ports import Clock
from protocol.configuration import Configuration
from protocol.errors import NotLeader, Refused, Unavailable
from protocol.identifiers import Digest, Height
from storage.ledger_store import LedgerStore

_AGAIN_MS = 500
"""Between two attempts; a learner to promote may have to catch up first, a leader may be gone."""


class ExpectedConfiguration:
    """The digest of the one configuration block that may come next, looked up anew only when something was applied.

    Every voter holds a configuration block to it: what the ballots decided, or none (ledger.md 7.1).
    """

    def __init__(self, store: LedgerStore, applied: AppliedHeight) -> None:
        self._store = store
        self._applied = applied
        self._height = Height(0)
        self._digest: Digest | None = None

    def digest(self) -> Digest | None:
        """Return the digest of the pending configuration, None where nothing is decided."""
        if self._applied.value != self._height:
            self._height = self._applied.value
            pending = governance_of(self._store).pending
            self._digest = pending.digest if pending is not None else None
        return self._digest


class ConfigurationProposer:
    """The task of a voter. `reconfigure` asks the consensus of this node to cut the block."""

    def __init__(
        self,
        store: LedgerStore,
        applied: AppliedHeight,
        *,
        reconfigure: Callable[[Configuration], Awaitable[None]],
        clock: Clock,
        log: EventLog,
    ) -> None:
        """`reconfigure` raises NotLeader, Unavailable (later) or Refused (not lawful)."""
        self._store = store
        self._applied = applied
        self._reconfigure = reconfigure
        self._clock = clock
        self._log = log

    async def run(self) -> None:
        """Watch the applied state until cancelled."""
        while True:
            height = self._applied.value
            pending = governance_of(self._store).pending
            if pending is None:
                await self._applied.wait_above(height)
                continue
            try:
                await self._reconfigure(pending)
                self._log.info("proposed the configuration that was decided", number=pending.number)
            except (NotLeader, Unavailable) as reason:
                self._log.debug("the configuration waits", reason=str(reason))
            except Refused as reason:
                self._log.warning("the configuration that was decided cannot follow", reason=str(reason))
            await self._clock.sleep_ms(_AGAIN_MS)
