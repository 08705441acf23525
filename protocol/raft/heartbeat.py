"""The leader's heartbeats: apart from appends, numbered by rounds, and the ground of CheckQuorum (Raft §5.2; thesis §6.2, §6.4).

A heartbeat says nothing of logs, so that it may overtake any number of blocks: a follower busy with a large frame, or a
link full of them, is not mistaken for a dead one, nor its leader.
"""

from collections.abc import Mapping

from protocol import limits
from protocol.certificate import ElectionCertificate
from protocol.errors import Invalid
from protocol.identifiers import NodeId
from protocol.raft.messages import Heartbeat, HeartbeatReply
from protocol.raft.progress import Progress
from protocol.raft.quorum import quorum_height
from protocol.raft.voter import Voter


class Heartbeats:
    """The heartbeats of one leadership. `progress` is the leadership's own map, shared for reading and marking."""

    def __init__(
        self, voter: Voter, progress: Mapping[NodeId, Progress], election: ElectionCertificate
    ) -> None:
        self._voter = voter
        self._progress = progress
        self._election = election
        self._round = 0
        self._due = True

    def tick(self) -> bool:
        """Count a tick; return whether a quorum was heard within the least election time-out (CheckQuorum)."""
        voter = self._voter
        if voter.tick % limits.HEARTBEAT_TICKS == 0:
            self._due = True
        heard = sum(
            voter.tick - self._progress[node].heard_tick < limits.ELECTION_TICKS_MIN
            for node in voter.other_voters
        )
        return heard + voter.is_voter >= voter.configuration.raft_quorum

    def begin_round(self) -> int:
        """Start a round that leaves at once; return its number. An answer to it answers all before it."""
        self._round += 1
        self._due = True
        return self._round

    def answered_round(self) -> int:
        """Return the newest round that a quorum has answered, this leader being one of it unless it leaves."""
        voter = self._voter
        answers = [self._progress[node].confirmed for node in voter.other_voters]
        own = [self._round] if voter.is_voter else []
        return quorum_height([*own, *answers], voter.configuration.raft_quorum)

    def send(self) -> None:
        """Queue a heartbeat for everybody if one is due. Each repeats the newest round: a lost one costs an interval."""
        if not self._due:
            return
        self._due = False
        voter = self._voter
        for node, progress in self._progress.items():
            election = self._election if progress.election_due else None
            voter.send(node, Heartbeat(voter.hard.epoch, voter.term, voter.me, self._round, election))

    def take_reply(self, reply: HeartbeatReply) -> None:
        """Take a follower's answer of this term.

        Raises:
            Invalid: it names a round that has not begun.
        """
        if reply.context > self._round:
            raise Invalid(f"an answer to round {reply.context}, and the newest is {self._round}")
        progress = self._progress.get(reply.voter)
        if progress is None:
            return  # it has left
        progress.heard_tick = self._voter.tick
        progress.election_due = False  # it follows, so it has verified the election
        progress.confirmed = max(progress.confirmed, reply.context)
        progress.take_heights(reply, self._voter.log.tip_height)
