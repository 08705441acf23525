"""Linearizable reads without leases: ReadIndex (Raft thesis §6.4; ledger.md decision 5).

```
  reader ── read_index ─► leader: waits until a block of its own term is committed, for only then does it know of every
                                  commit before it; notes its committed height; begins a round of heartbeats
  reader ◄── height ───── leader: a quorum has answered that round, so nobody led a later term when it began
```
Nothing here looks at a clock: a leader that slept through its own replacement finds no quorum when it wakes (etcd #20418).
It withstands crashes, not lies: decisions about access have another gate.
"""

import hashlib
from collections import deque
from dataclasses import dataclass

from protocol import limits
from protocol.errors import NotLeader, Unavailable
from protocol.identifiers import Height, NodeId
from protocol.raft.heartbeat import Heartbeats
from protocol.raft.messages import ReadIndexReply, ReadIndexRequest
from protocol.raft.state import ReadState
from protocol.raft.voter import Voter

_Asked = tuple[NodeId, int]  # who reads, and the number it gave that


@dataclass(frozen=True, slots=True)
class _Round:
    number: int
    height: Height  # what was committed when the round began
    reads: tuple[_Asked, ...]


class LeaderReads:
    """The reads of one leadership, its own and those forwarded to it. All that came in one turn share a round."""

    def __init__(self, voter: Voter, heartbeats: Heartbeats) -> None:
        self._voter = voter
        self._heartbeats = heartbeats
        self._waiting: list[_Asked] = []
        self._rounds: deque[_Round] = deque()
        self._count = 0

    @property
    def has_room(self) -> bool:
        """Whether another read may wait."""
        return self._count < limits.READS_PENDING_MAX

    def add(self, reader: NodeId, request: int) -> None:
        """Take a read.

        Raises:
            Unavailable: too many wait.
        """
        if not self.has_room:
            raise Unavailable("too many reads wait for a quorum; retry in a moment")
        self._count += 1
        self._waiting.append((reader, request))

    def advance(self) -> None:
        """Begin a round for the reads that wait, if the committed height can be trusted, and answer what is confirmed."""
        log = self._voter.log
        # Before its own term's first commit a leader does not know how far its predecessors' went (thesis §6.4, step 1).
        if self._waiting and log.term(log.committed) == self._voter.term:
            number = self._heartbeats.begin_round()
            self._rounds.append(_Round(number, log.committed, tuple(self._waiting)))
            self._waiting.clear()
        if self._rounds:
            answered = self._heartbeats.answered_round()
            while self._rounds and self._rounds[0].number <= answered:
                confirmed = self._rounds.popleft()
                self._answer(confirmed.reads, confirmed.height)

    def abandon(self) -> None:
        """Say of all that are not confirmed that they never will be: the leadership is over."""
        for unconfirmed in self._rounds:
            self._answer(unconfirmed.reads, None)
        self._answer(tuple(self._waiting), None)

    def _answer(self, reads: tuple[_Asked, ...], height: Height | None) -> None:
        voter = self._voter
        self._count -= len(reads)
        for reader, request in reads:
            if reader == voter.me:
                voter.reads.append(ReadState(request, height))
            else:
                voter.send(reader, ReadIndexReply(voter.me, request, height))


class ForwardedReads:
    """The reads that this node has sent to its leader, each until an answer, a change of leader or a time-out."""

    def __init__(self, voter: Voter, seed: bytes) -> None:
        self._voter = voter
        self._pending: dict[int, tuple[NodeId, int]] = {}  # number: the leader asked, and in which tick
        # Numbers differ between starts: an answer to a read from before a crash must not be taken for a fresh one's.
        self._number = int.from_bytes(hashlib.sha256(b"read" + seed).digest()[:6], "big")

    def number(self) -> int:
        """Return a number for a new read."""
        self._number += 1
        return self._number

    def forward(self, request: int) -> None:
        """Ask the leader.

        Raises:
            NotLeader: there is none.
            Unavailable: too many reads wait.
        """
        voter = self._voter
        if voter.leader is None:
            raise NotLeader(None)
        if len(self._pending) >= limits.READS_PENDING_MAX:
            raise Unavailable("too many reads wait for the leader; retry in a moment")
        self._pending[request] = voter.leader, voter.tick
        voter.send(voter.leader, ReadIndexRequest(voter.me, request))

    def take_reply(self, reply: ReadIndexReply) -> None:
        """Take an answer, if it is the asked leader's and still waited for."""
        asked = self._pending.get(reply.request)
        if asked is not None and asked[0] == reply.leader:
            del self._pending[reply.request]
            self._voter.reads.append(ReadState(reply.request, reply.height))

    def tick(self) -> None:
        """Give up what a lost message or a change of leader has left without an answer."""
        if not self._pending:
            return
        voter = self._voter
        lost = [
            request
            for request, (leader, asked_tick) in self._pending.items()
            if leader != voter.leader or voter.tick - asked_tick >= limits.ELECTION_TICKS_MAX
        ]
        for request in lost:
            del self._pending[request]
            voter.reads.append(ReadState(request, None))
