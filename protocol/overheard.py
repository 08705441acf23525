"""What a message of the consensus says under signatures: the statements in it that a notebook compares, whoever made them."""

from typing import assert_never

from protocol.block import Header
from protocol.certificate import (
    Acknowledgement,
    CommitProof,
    ElectionCertificate,
    ElectionGrant,
    acknowledgement_valid,
    grant_valid,
)
from protocol.errors import RemoteFault
from protocol.evidence_certificates import Configurations, check_known
from protocol.evidence_lines import SignedHeader
from protocol.evidence_trees import signed_head
from protocol.finality import Certificate, CommitVote, vote_valid
from protocol.identifiers import NetworkId
from protocol.notebook import SignedNote, Statement
from protocol.raft.messages import (
    AppendEntries,
    AppendReply,
    CertificateNotice,
    CheckedAppend,
    Heartbeat,
    HeartbeatReply,
    Input,
    InstallSnapshot,
    PreVote,
    PreVoteReply,
    ReadIndexReply,
    ReadIndexRequest,
    RequestVote,
    TimeoutNow,
    VoteNotice,
    VoteReply,
    request_vote_valid,
)
from protocol.recovery import FreezeStatement, check_freeze

Said = Statement | CommitProof | ElectionCertificate | None
"""What a message may carry: a statement, or what is made of several."""


def overheard(message: Input) -> tuple[list[Statement], list[Header]]:
    """Return the statements in a message, and the headers that come along. Nothing is verified here.

    Blocks are found in a `CheckedAppend` only: bytes that nobody has checked are not looked into.
    """
    statements, headers = list[Statement](), list[Header]()
    for said in _said(message):
        match said:
            case None:
                continue
            case CommitProof():
                headers += (said.header, *said.links)
                statements += said.acknowledgements
            case ElectionCertificate():
                statements += said.grants
            case Certificate():
                headers += (said.header, *said.links)
                statements += (said, *said.votes)
            case SignedHeader():
                headers.append(said.header)
                statements.append(said)
            case RequestVote():
                headers.append(said.tip)
                statements.append(said)
            case _:
                statements.append(said)
    return statements, headers


def _said(message: Input) -> tuple[Said, ...]:
    """Return what a message carries; written out, because every message of a busy node comes through here."""
    match message:
        case CheckedAppend(append, blocks):
            signed = [SignedHeader(block.header, block.signature) for block in blocks]
            return (*signed, *_said(append))
        case AppendEntries():
            return message.election, message.proof, message.certificate
        case AppendReply():
            return message.ack, message.vote, message.proof, message.certificate
        case RequestVote():
            return (message,)
        case VoteReply():
            return (message.grant,)
        case InstallSnapshot():
            return message.election, message.certificate
        case Heartbeat():
            return (message.election,)
        case VoteNotice():
            return (message.vote,)
        case CertificateNotice():
            return (message.certificate,)
        case (
            PreVote()
            | PreVoteReply()
            | HeartbeatReply()
            | ReadIndexRequest()
            | ReadIndexReply()
            | TimeoutNow()
        ):
            return ()
        case _:
            assert_never(message)


def holds(statement: Statement, network: NetworkId, configurations: Configurations) -> bool:
    """Return whether the signatures of a statement verify."""
    try:
        match statement:
            case SignedHeader():
                statement.check(network)
            case Acknowledgement():
                return acknowledgement_valid(statement, network)
            case ElectionGrant():
                return grant_valid(statement, network)
            case CommitVote():
                return vote_valid(statement, network)
            case RequestVote():
                return request_vote_valid(statement, network)
            case Certificate():
                check_known(statement, network, configurations)
            case FreezeStatement():
                check_freeze(statement, network)
            case SignedNote():
                signed_head(statement.note, statement.signer, network, configurations)
            case _:
                assert_never(statement)
    except RemoteFault:
        return False
    return True
