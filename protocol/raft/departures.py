"""Members that leave, as the leader sees them: who stays must be able to do without them before they are told (thesis §4.2.3).

Of the signers whose votes certify a change some may leave by it, and be gone as soon as they know: switched off. Did a crash
then take that certificate from all who stay, nobody could make it again, and nothing above it ever became final (tier a, seed
602496). So each of those who stay writes it synchronously (`Ready.keep`) and says so, and whoever leaves learns it last.
"""

from protocol import limits
from protocol.finality import Certificate
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

    def is_kept(self) -> bool:
        """Return whether q of those who stay hold the newest configuration's certificate, and no crash takes it from them."""
        voter = self._voter
        change, configuration = voter.membership.height, voter.configuration
        kept = [
            progress.certified_height
            for node, progress in self._progress.items()
            if node in configuration.signers
        ]
        if voter.me in configuration.signers:
            kept.append(voter.keeping.reach(voter.log.certified))
        return sum(height >= change for height in kept) >= configuration.certificate_quorum

    def certificate_for(self, node: NodeId, tip: Height) -> Certificate | None:
        """Return the certificate that a node with progress needs next, of a block at or below `tip`, if it may have it."""
        voter = self._voter
        change = voter.membership.height
        if tip >= change and voter.is_leaving(node) and not self.is_kept():
            tip = Height(change - 1)
        return voter.certificate_for(self._progress[node].certificate_height, tip)
