"""What may be seen of a Raft machine between its inputs; nothing here changes it."""

from protocol.certificate import Acknowledgement, CommitProof
from protocol.configuration import Configuration
from protocol.finality import Certificate, CommitVote
from protocol.identifiers import Height, NodeId, Term
from protocol.raft.certifying import Certifying
from protocol.raft.replication import Leadership
from protocol.raft.state import Role
from protocol.raft.voter import Voter


class View:
    """The machine's state, and what its driver and its checkers look at."""

    def __init__(self, voter: Voter) -> None:
        self._voter = voter
        self._certifying = Certifying(voter)
        self._leadership: Leadership | None = None
        self._role = Role.FOLLOWER

    @property
    def role(self) -> Role:
        """The role in the current term."""
        return self._role

    @property
    def term(self) -> Term:
        """The current term."""
        return self._voter.term

    @property
    def leader(self) -> NodeId | None:
        """Whom this node follows (itself when leading), or None."""
        return self._voter.leader

    @property
    def commit_height(self) -> Height:
        """Height up to which blocks are ordered, as a commit proof has shown since the start, or a certificate."""
        return self._voter.log.committed

    @property
    def certified_height(self) -> Height:
        """Height up to which blocks are certified."""
        return self._voter.log.certified

    @property
    def tip_height(self) -> Height:
        """Height of the last block in the log, durable or not."""
        return self._voter.log.tip_height

    @property
    def uncommitted_count(self) -> int:
        """Blocks above the committed height."""
        return self._voter.log.uncommitted_count

    @property
    def uncertified_count(self) -> int:
        """Blocks above the certified height."""
        return self._voter.log.uncertified_count

    @property
    def commit_proof(self) -> CommitProof | None:
        """The newest commit proof that this node has seen since it started."""
        return self._voter.proof

    @property
    def certificate(self) -> Certificate | None:
        """The newest certificate of a block in the log that this node has seen since it started."""
        return self._voter.certificates[-1] if self._voter.certificates else None

    @property
    def may_propose(self) -> bool:
        """Whether `propose` would cut a block now."""
        return self._leadership is not None and self._leadership.has_room

    @property
    def configuration(self) -> Configuration:
        """The configuration in force: the newest in the log."""
        return self._voter.configuration

    @property
    def successor(self) -> NodeId | None:
        """Whom this leader is handing the leadership to, or None."""
        return self._leadership.successor if self._leadership is not None else None

    def acknowledgement_of(self, voter: NodeId) -> Acknowledgement | None:
        """Return the newest acknowledgement of another voter that this node has seen since it started."""
        return self._voter.acknowledgements.get(voter)

    def last_vote_of(self, signer: NodeId) -> CommitVote | None:
        """Return the newest commit vote of another signer that this node has verified since it started."""
        return self._certifying.seen.get(signer)
