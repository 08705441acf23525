"""How long a voter goes without certified progress before it starts an election (ledger.md 1.1, P6).

A leader that withholds certificates or leaves out transactions keeps up its heartbeats, so no election time-out notices it.
"""

from protocol import limits
from protocol.identifiers import Height, NodeId
from protocol.raft.voter import Voter


class Patience:
    """Counts the ticks in which something waited to become final, q signers were heard, and nothing did."""

    def __init__(self, voter: Voter) -> None:
        self._voter = voter
        self._heard: dict[NodeId, int] = {}
        self._certified = Height(0)
        self._elapsed = self._due = self._pause = 0
        self.stalled_ticks = 0
        """For how long something has waited to become final, whoever was heard meanwhile."""
        self._begin()

    def _begin(self) -> None:
        self._elapsed = self.stalled_ticks = 0
        self._due = self._pause = limits.CERTIFIED_PROGRESS_TICKS_MIN

    @property
    def is_starved(self) -> bool:
        """Whether this node would have another leader: it also grants what it would else refuse for the present one."""
        return self._elapsed >= limits.CERTIFIED_PROGRESS_TICKS_MIN

    def heard(self, sender: NodeId) -> None:
        """Hear that a message of `sender` came."""
        self._heard[sender] = self._voter.tick

    def tick(self, *, waiting: bool) -> bool:
        """Count a tick; return whether it is time to start one election. The next one takes twice as long, up to 5 min."""
        log = self._voter.log
        if log.certified != self._certified or not (waiting or log.uncertified_count):
            self._certified = log.certified
            self._begin()
        else:
            self.stalled_ticks += 1
            self._elapsed += self._reaches_quorum()
        if self._elapsed < self._due or self._elapsed < self._due + self._turn():
            return False
        self._pause = min(2 * self._pause, limits.CERTIFIED_PROGRESS_TICKS_MAX)
        self._due += self._pause
        return True

    def _turn(self) -> int:
        """Return how many ticks this voter lets others go first, who wait as long: another one in every term."""
        voter = self._voter
        voters = voter.configuration.voters
        place = voters.index(voter.me) if voter.me in voters else len(voters)
        return (place + voter.term) % len(voters) * limits.CERTIFIED_PROGRESS_STAGGER_TICKS

    def _reaches_quorum(self) -> bool:
        """Return whether q signers, this node being one, have been heard of late: without them no election helps."""
        voter = self._voter
        heard = sum(
            node == voter.me
            or voter.tick - self._heard.get(node, -limits.ELECTION_TICKS_MAX - 1) <= limits.ELECTION_TICKS_MAX
            for node in voter.configuration.signers
        )
        return heard >= voter.configuration.certificate_quorum
