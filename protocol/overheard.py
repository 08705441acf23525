"""What a message of the consensus says under signatures: the statements in it that a notebook compares, whoever made them."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, assert_never

from protocol.block import Block, Header
from protocol.certificate import (
    Acknowledgement,
    CommitProof,
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
from protocol.raft.messages import CheckedAppend, Input, RequestVote, request_vote_valid


def overheard(message: Input) -> tuple[list[Statement], list[Header]]:
    """Return the statements in a message, and the headers that come along. Nothing is verified here.

    Blocks are found in a `CheckedAppend` only: bytes that nobody has checked are not looked into.
    """
    statements, headers = list[Statement](), list[Header]()
    for part in _parts(message):
        match part:
            case Block():
                statements.append(SignedHeader(part.header, part.signature))
                headers.append(part.header)
            case RequestVote():
                statements.append(part)
                headers.append(part.tip)
            case CommitProof() | Certificate():
                headers += (part.header, *part.links)
                if isinstance(part, Certificate):
                    statements.append(part)
            case Acknowledgement() | ElectionGrant() | CommitVote():
                statements.append(part)
            case _:
                pass  # neither signed nor evidence
    return statements, headers


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
            case SignedNote():
                signed_head(statement.note, statement.signer, network, configurations)
            case _:
                assert_never(statement)
    except RemoteFault:
        return False
    return True


def _parts(value: Any) -> Iterator[Any]:  # Any: whatever the fields of a message hold
    """Yield a value and all that its fields hold, so that messages may carry more in time and nothing here changes."""
    yield value
    if isinstance(value, CheckedAppend):
        yield from value.blocks
        yield from _parts(value.message)
    elif isinstance(value, tuple):
        for item in value:
            yield from _parts(item)
    elif is_dataclass(value) and not isinstance(value, Header | Block):
        for field in fields(value):
            yield from _parts(getattr(value, field.name))
