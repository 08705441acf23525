"""Members that have left, as the leader sees them: each is sent the block that says so, for a bounded time (thesis §4.2.3)."""

from protocol import limits
from protocol.identifiers import Height, NodeId
from protocol.raft.progress import Progress
from protocol.raft.voter import Voter


class Departures:
    """Whom the leader still sends to although they count for nothing any more.

    One who never hears of its leaving campaigns for ever (hashicorp/raft #524). It disturbs nobody here, but it should
    know. `progress` is the leadership's own map: what is forgotten here is removed from it.
    """

    def __init__(self, voter: Voter, progress: dict[NodeId, Progress]) -> None:
        self._voter = voter
        self._progress = progress
        self._until: dict[NodeId, Height] = {}

    def add(self, node: NodeId) -> None:
        """Hear that a node with progress has left by the newest configuration, or still has."""
        self._until.setdefault(node, self._voter.membership.height)

    def tick(self) -> None:
        """Forget who knows by now, who is silent for an election time-out (it will ask), and who has come back."""
        voter = self._voter
        for node, height in list(self._until.items()):
            progress = self._progress[node]
            is_back = node in voter.receivers
            is_silent = voter.tick - progress.heard_tick >= limits.ELECTION_TICKS_MAX
            if is_back or is_silent or progress.certified_height >= height:
                del self._until[node]
                if not is_back:
                    del self._progress[node]
