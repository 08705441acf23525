"""Handing the leadership over (Raft thesis §3.10): who is to lead next, and for how long the leader waits for that."""

from protocol import limits
from protocol.identifiers import NodeId


class Transfer:
    """One attempt of one leadership. It ends with the leadership, or after ELECTION_TICKS_MIN: writes resume then.

    The call to campaign may be lost, so it is repeated with every heartbeat. That is safe: the successor obeys only
    while it follows this leader in this term, and campaigning takes it out of both.
    """

    def __init__(self, target: NodeId) -> None:
        self.target = target
        self._elapsed = 0
        self._due = True

    def tick(self) -> bool:
        """Count a tick; return whether the attempt has taken too long."""
        self._elapsed += 1
        if self._elapsed % limits.HEARTBEAT_TICKS == 0:
            self._due = True
        return self._elapsed >= limits.ELECTION_TICKS_MIN

    def take_due(self) -> bool:
        """Return whether the successor is to be called now, once per heartbeat interval."""
        due, self._due = self._due, False
        return due
