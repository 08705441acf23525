"""Changes of members in tier A, as an operator makes them: a newcomer learns first, one change at a time, again until it is done."""

import dataclasses

from protocol.configuration import Configuration, Member
from protocol.identifiers import PublicKey
from protocol.raft.machine import Raft
from simulations.core_cluster import Cluster
from simulations.core_node import CoreNode

_AGAIN_S = 0.3
_PATIENCE_S = 20.0


class MemberChange:
    """One voter more or one less; `step` is called until it returns None."""

    def __init__(self, cluster: Cluster, node: CoreNode, *, votes: bool) -> None:
        self._cluster = cluster
        self._node = node
        self._votes = votes
        self._until = cluster.agenda.now + _PATIENCE_S
        cluster.record("add-voter" if votes else "remove-voter", node.index)

    def step(self) -> float | None:
        """Propose the next step to whoever leads; return after how many seconds to look again, None when that is all."""
        if self._cluster.agenda.now > self._until:
            return None
        certified = self._cluster.commits.configuration
        if self._votes == (self._node.id in certified.voters):
            return None
        if self._votes and self._node.id in certified.learners:
            self._cluster.bring(self._node)
        leader = self._cluster.leader()
        if leader is not None and leader.life is not None:
            following = self._following(leader.life.raft.configuration)
            if following is not None:
                leader.ask(lambda raft: _propose(raft, following, leader.now_ms()))
        return _AGAIN_S

    def _following(self, now: Configuration) -> Configuration | None:
        """Return the configuration to propose, or None when it is proposed already or would leave nobody."""
        node = self._node
        if not self._votes:
            is_spare = node.id in now.voters and len(now.voters) > self._cluster.voters_min
            return _with(now, node, "") if is_spare else None
        if node.id in now.voters:
            return None
        return _with(now, node, "voter" if node.id in now.learners else "learner")


def _propose(raft: Raft, following: Configuration, now_ms: int) -> None:
    raft.expect_configuration(following.digest)
    raft.propose_configuration(following, now_ms)


def _with(configuration: Configuration, node: CoreNode, role: str) -> Configuration:
    """Return a configuration in which one member has a role, or has left (""); the others stay as they are."""
    members = [member for member in configuration.members if member.node != node.id]
    if role:
        public = PublicKey(node.key.public)
        members.append(
            Member(f"member-{node.index}", "clinic", role, node.id, public, public, public, public, ())
        )
    return dataclasses.replace(
        configuration,
        members=tuple(sorted(members, key=lambda member: member.node)),
        number=configuration.number + 1,
    )
