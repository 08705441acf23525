"""What Raft voters say to each other, and the two signed forms that belong to it.

| message | source → target | signed | promises something durable |
|---|---|---|---|
| PreVote, PreVoteReply | pre-candidate ↔ voter | no: never evidence | no |
| RequestVote | candidate → voter | yes (E5) | the candidate's own vote |
| VoteReply | voter → candidate | its grant is | the vote |
| AppendEntries | leader → follower | yes | no |
| AppendReply | follower → leader | its acknowledgement and vote are | blocks, marker, commit vote |
| InstallSnapshot | leader → follower | yes | no |
| Heartbeat | leader → follower | no: never evidence | no |
| HeartbeatReply | follower → leader | no: never evidence | its term |
| ReadIndexRequest, ReadIndexReply | voter ↔ leader | no: never evidence | no |
| TimeoutNow | leader → successor | no | no |
| VoteNotice | signer → signer | its vote is | the commit vote |
| CertificateNotice | signer → signer | its votes are | no |

The transport has authenticated the sender; a signature is there so that a third party can be shown the message.
"""

from dataclasses import dataclass
from typing import Annotated, assert_never

from protocol import limits, signing
from protocol.block import Block, Header, check_body
from protocol.certificate import Acknowledgement, CommitProof, ElectionCertificate, ElectionGrant
from protocol.codec import Bytes64, Size, wire
from protocol.finality import Certificate, CommitVote
from protocol.identifiers import Digest, Height, NetworkId, NodeId, Term

NodeField = Annotated[NodeId, Size(32)]
DigestField = Annotated[Digest, Size(32)]
_GENESIS = Height(0)


@wire("pre-vote")
@dataclass(frozen=True, slots=True)
class PreVote:
    """Would you vote for me in `term` (mine plus 1)? Changes nobody's term (Raft thesis §9.6)."""

    term: Term
    candidate: NodeField
    tip_term: Term
    tip_height: Height


@wire("pre-vote-reply")
@dataclass(frozen=True, slots=True)
class PreVoteReply:
    """`term` is the asked one when granted; the voter's own when refused, so that a node left behind catches up."""

    term: Term
    voter: NodeField
    granted: bool


@wire("request-vote")
@dataclass(frozen=True, slots=True)
class RequestVote:
    """Candidate to voter (Raft §5.2, §5.4.1), with the tip's header and what E5 needs (ledger.md 1.2).

    `ack_term` is the term of the candidate's newest acknowledgement; `base` the highest certified block it knows.
    `transfer` says that the leader itself asked for this election: the lease that keeps disturbers away does not hold
    then (Raft thesis §3.10, §4.2.3). It is not signed, because it is a hint about when, not about what.
    """

    epoch: int
    incarnation: int
    term: Term
    candidate: NodeField
    tip: Header
    tip_hash: DigestField
    ack_term: Term
    base_height: Height
    base_hash: DigestField
    signature: Bytes64
    transfer: bool


def request_vote_form(
    network: NetworkId,
    *,
    epoch: int,
    incarnation: int,
    term: Term,
    candidate: NodeId,
    tip: Header,
    tip_hash: Digest,
    ack_term: Term,
    base_height: Height,
    base_hash: Digest,
) -> bytes:
    """Return the bytes a candidate signs: net, epoch, incarnation, term, candidate, tip (term, height, hash), ack_term, base."""
    return signing.signed_form(
        "request-vote",
        network,
        epoch,
        incarnation,
        term,
        candidate,
        tip.term,
        tip.height,
        tip_hash,
        ack_term,
        base_height,
        base_hash,
    )


def request_vote_valid(request: RequestVote, network: NetworkId) -> bool:
    """Return whether the candidate's signature verifies."""
    form = request_vote_form(
        network,
        epoch=request.epoch,
        incarnation=request.incarnation,
        term=request.term,
        candidate=request.candidate,
        tip=request.tip,
        tip_hash=request.tip_hash,
        ack_term=request.ack_term,
        base_height=request.base_height,
        base_hash=request.base_hash,
    )
    return signing.verify(request.candidate, form, request.signature)


@wire("vote-reply")
@dataclass(frozen=True, slots=True)
class VoteReply:
    """The voter's term, and its signed grant or None."""

    term: Term
    voter: NodeField
    grant: ElectionGrant | None


@wire("append-entries")
@dataclass(frozen=True, slots=True)
class AppendEntries:
    """Leader to follower: append `blocks` after `prev`; without blocks, a probe of where the logs agree (Raft §5.3).

    A block keeps the bytes, header, term and signature it was cut with; the leader's own term stands here. `tip_hash`
    is the last block's hash, or `prev_hash` without blocks. `election` rides along until the follower has acknowledged
    something in this term (P0), `certificate` when the follower may not have it (P5), `proof` too, above that (P3). There is
    no commit index: a bare one is never acted on.
    """

    epoch: int
    term: Term
    leader: NodeField
    prev_height: Height
    prev_hash: DigestField
    blocks: Annotated[tuple[bytes, ...], Size(0, limits.APPEND_BLOCKS_MAX)]
    tip_hash: DigestField
    election: ElectionCertificate | None
    proof: CommitProof | None
    signature: Bytes64
    certificate: Certificate | None = None


@dataclass(frozen=True, slots=True)
class CheckedAppend:
    """An AppendEntries whose blocks are decoded and whose bodies hold: the form that `Raft.step` takes.

    Made by `check_append`, outside of the consensus task, because verifying transactions is what takes the time.
    """

    message: AppendEntries
    blocks: tuple[Block, ...]


def check_append(message: AppendEntries) -> CheckedAppend:
    """Decode and check the bodies of a frame's blocks. Fit for a worker thread.

    Raises:
        RemoteFault: a block is malformed or its body invalid; the driver then calls `Raft.distrust`.
    """
    blocks = tuple([Block.decode(raw) for raw in message.blocks])
    for block in blocks:
        check_body(block)
    return CheckedAppend(message, blocks)


@wire("hint")
@dataclass(frozen=True, slots=True)
class Hint:
    """The last block of one term in a follower's log."""

    height: Height
    term: Term
    hash: DigestField


@wire("refusal")
@dataclass(frozen=True, slots=True)
class Refusal:
    """The follower does not hold the frame's `prev`, or has not seen the election certificate of the term.

    `hints`, highest first, name the last block of each term in its log at or below `prev_height`, down to its
    certified block: enough for the leader to find the common prefix in one round trip (Raft §5.3, end).
    """

    prev_height: Height
    needs_election: bool
    hints: Annotated[tuple[Hint, ...], Size(0, limits.REFUSAL_HINTS_MAX)]


@wire("append-reply")
@dataclass(frozen=True, slots=True)
class AppendReply:
    """Follower to leader: what is durable here (P2), how far it has committed, and what it could not take.

    `vote` is its newest commit vote, as long as it knows no certificate for that (P4). A frame that conflicts with what is
    certified, proven or voted for here is answered with the `certificate` or the commit `proof` that shows why (Refusal).
    """

    term: Term
    voter: NodeField
    ack: Acknowledgement | None
    commit_height: Height
    refusal: Refusal | None
    vote: CommitVote | None = None
    certified_height: Height = _GENESIS
    certificate: Certificate | None = None
    proof: CommitProof | None = None


@wire("install-snapshot")
@dataclass(frozen=True, slots=True)
class InstallSnapshot:
    """Leader to follower: what you need next I do not hold; get state and blocks from whoever has them (Raft §7).

    An offer, not the data: that is verified by hashes and a quorum's word, so it may come from any member, and does not
    end with a leadership. `first` is the lowest height from which the leader holds every block; `certificate` is
    for the newest block that it has one for, at or above `first`. `election` rides along as in AppendEntries.
    """

    epoch: int
    term: Term
    leader: NodeField
    first: Height
    certificate: Certificate
    election: ElectionCertificate | None
    signature: Bytes64

    @property
    def height(self) -> Height:
        """Height of the block that is offered."""
        return self.certificate.height


@wire("heartbeat")
@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Leader to follower: I still lead (Raft §5.2). Small, unsigned and apart from AppendEntries, so that it overtakes blocks.

    It says nothing of the log: it may arrive before frames sent earlier. `context` is the newest round of the leader, which
    the reply repeats: a round that a quorum has answered shows that nobody led a later term when it began (thesis §6.4).
    `election` rides along until the follower is known to know it (P0).
    """

    epoch: int
    term: Term
    leader: NodeField
    context: int
    election: ElectionCertificate | None


@wire("heartbeat-reply")
@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """Follower to leader: in `term` I follow you, have seen your round `context`, and know this much to be ordered and certified.

    A follower that restarts within one heartbeat interval forgets proofs and certificates that it had said it has: its blocks
    are durable, so no refusal shows it, and nothing but this would make the leader repeat them.
    """

    term: Term
    voter: NodeField
    context: int
    commit_height: Height = _GENESIS
    certified_height: Height = _GENESIS


@wire("read-index-request")
@dataclass(frozen=True, slots=True)
class ReadIndexRequest:
    """Voter to leader: which height must I have applied to read now? Whoever leads may answer (Raft thesis §6.4)."""

    voter: NodeField
    request: int


@wire("read-index-reply")
@dataclass(frozen=True, slots=True)
class ReadIndexReply:
    """Leader to voter: the height, confirmed by a quorum after the request came; None when it cannot be known here."""

    leader: NodeField
    request: int
    height: Height | None


@wire("timeout-now")
@dataclass(frozen=True, slots=True)
class TimeoutNow:
    """Leader to the successor it has chosen: campaign at once, without PreVote (Raft thesis §3.10)."""

    term: Term
    leader: NodeField


@wire("vote-notice")
@dataclass(frozen=True, slots=True)
class VoteNotice:
    """Signer to signer: my commit vote has not become part of a certificate that I know of (P4, P6).

    The leader may withhold certificates; any q signers can make one without it. Whoever has one for that block answers with
    it. Headers need not come along: a vote for a block that its receiver does not hold is of no use to it yet.
    `certified_height` is what the signer holds certificates up to: a crash may have cost it that of the vote's own base.
    """

    vote: CommitVote
    certified_height: Height = _GENESIS


@wire("certificate-notice")
@dataclass(frozen=True, slots=True)
class CertificateNotice:
    """Signer to signer: a certificate that you seem to lack (P5)."""

    sender: NodeField
    certificate: Certificate


Message = (
    PreVote
    | PreVoteReply
    | RequestVote
    | VoteReply
    | AppendEntries
    | AppendReply
    | InstallSnapshot
    | Heartbeat
    | HeartbeatReply
    | ReadIndexRequest
    | ReadIndexReply
    | TimeoutNow
    | VoteNotice
    | CertificateNotice
)
"""What travels; `codec.decode(data, Message)` reads it."""
Input = Message | CheckedAppend
"""What `Raft.step` takes: an AppendEntries that carries blocks comes as a CheckedAppend."""


def is_urgent(message: Message) -> bool:
    """Return whether a message must not queue behind blocks, be it on the wire or for verification."""
    return isinstance(message, Heartbeat | HeartbeatReply)


def author(message: Input) -> NodeId:
    """Return whom a message names as its sender."""
    match message:  # the frequent ones first
        case CheckedAppend():
            return message.message.leader
        case AppendReply() | HeartbeatReply() | ReadIndexRequest() | PreVoteReply() | VoteReply():
            return message.voter
        case Heartbeat() | AppendEntries() | InstallSnapshot() | ReadIndexReply() | TimeoutNow():
            return message.leader
        case PreVote() | RequestVote():
            return message.candidate
        case VoteNotice():
            return message.vote.signer
        case CertificateNotice():
            return message.sender
        case _:
            assert_never(message)
