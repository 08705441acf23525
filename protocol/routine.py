"""What members say when nobody lies: it is of the one chain that is known here, and need not be compared with anything.

    a message ─► of one chain? ── yes ─► put aside, unread: the newest of each member
                              └── no ──► is compared, and what was put aside first (`protocol.notebook`)

A notebook compares everything with everything and verifies the words of others, which would cost a busy node a tenth of its
time. Two statements that contradict each other are never both of one chain; so the first word that is not has the others
read. Words about elections are compared at once, and so is the block that opens a term: the chain shows nothing about them.
"""

from collections import OrderedDict, deque
from typing import assert_never

from protocol import limits
from protocol.block import Block, Header
from protocol.certificate import Acknowledgement, CommitProof, ElectionCertificate
from protocol.finality import Certificate, CommitVote
from protocol.identifiers import Digest, Height, NodeId
from protocol.notebook import Statement, author
from protocol.overheard import overheard
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
)

_AHEAD_MAX = 512
"""Statements about blocks that have not come yet, to be held against them when they come."""
_LINE_MAX = 2 * limits.EVIDENCE_HEADERS_MAX
"""Headers that are handed over with what was put aside: as far down as evidence reaches from either side."""


class Routine:
    """One node's view of the chain, and what it has put aside."""

    def __init__(self) -> None:
        self._chain: OrderedDict[Height, Digest] = OrderedDict()
        self._tip = Height(-1)
        self._ahead: OrderedDict[tuple[Height, Digest], None] = OrderedDict()
        self._election: ElectionCertificate | None = None
        self._aside: dict[tuple[NodeId | None, type], deque[Statement]] = {}
        self._headers: deque[Header] = deque(maxlen=_LINE_MAX)

    def take(self, source: NodeId, message: Input) -> bool:
        """Put a message aside; return False when it has to be compared, and what was put aside before it."""
        if not self._is_routine(message):
            return False
        statements, _ = overheard(message)
        for statement in statements:
            if not isinstance(statement, CommitVote) or author(statement) == source:
                self.put_aside(statement)  # a vote of somebody else's came in a certificate
        return True

    def follow(self, block: Block) -> bool:
        """Take in the next block of the chain; return False when what was known contradicts it. The chain is then as it says."""
        height, is_one_chain = block.height, True
        known = self._chain.get(height)
        if known == block.hash:
            return True
        if known is not None:
            is_one_chain = False
            for above in range(height, self._tip + 1):
                self._chain.pop(Height(above), None)
        elif self._chain.get(Height(height - 1), block.header.prev_hash) != block.header.prev_hash:
            is_one_chain = False
        self._chain[height] = block.hash
        self._tip = height
        self._headers.append(block.header)
        if len(self._chain) > limits.NOTEBOOK_HEADERS_MAX:
            self._chain.popitem(last=False)
        return is_one_chain and self._holds_against(block)

    def put_aside(self, statement: Statement) -> None:
        """Keep a statement until something makes it worth reading; the oldest of the same member and kind gives way."""
        key = author(statement), type(statement)
        if key not in self._aside:
            self._aside[key] = deque(maxlen=limits.NOTEBOOK_STATEMENTS_MAX)
        said = self._aside[key]
        if not said or said[-1] != statement:
            said.append(statement)

    def read(self) -> tuple[tuple[Statement, ...], tuple[Header, ...]]:
        """Return what was put aside, and the newest headers of the chain; both are forgotten here."""
        aside = tuple(one for said in self._aside.values() for one in said)
        headers = tuple(self._headers)
        self._aside.clear()
        self._headers.clear()
        return aside, headers

    def _is_routine(self, message: Input) -> bool:
        match message:
            case CheckedAppend(append, blocks):
                followed = [self.follow(block) and not block.opening for block in blocks]
                return all(followed) and self._is_routine(append)
            case AppendEntries():
                return self._elects(message.election) and self._are_ours(message.proof, message.certificate)
            case AppendReply():
                return self._are_ours(message.ack, message.vote, message.proof, message.certificate)
            case VoteNotice():
                return self._are_ours(message.vote)
            case CertificateNotice():
                return self._are_ours(message.certificate)
            case InstallSnapshot():
                return self._elects(message.election) and self._are_ours(message.certificate)
            case Heartbeat():
                return self._elects(message.election)
            case VoteReply():
                return message.grant is None
            case RequestVote():
                return False
            case (
                PreVote()
                | PreVoteReply()
                | HeartbeatReply()
                | ReadIndexRequest()
                | ReadIndexReply()
                | TimeoutNow()
            ):
                return True
            case _:
                assert_never(message)

    def _elects(self, election: ElectionCertificate | None) -> bool:
        """Return whether an election was heard of before; it rides along until its receiver is known to know it."""
        if election is None or election == self._election:
            return True
        self._election = election
        return False

    def _are_ours(self, *said: Acknowledgement | CommitVote | CommitProof | Certificate | None) -> bool:
        return all(self._is_ours(one) for one in said)

    def _is_ours(self, said: Acknowledgement | CommitVote | CommitProof | Certificate | None) -> bool:
        match said:
            case None:
                return True
            case Acknowledgement():
                return self._is_known(said.height, said.header_hash)
            case CommitVote():
                return self._is_known(said.height, said.header_hash) and self._is_known(
                    said.base_height, said.base_hash
                )
            case CommitProof():
                return self._are_ours(*said.acknowledgements)
            case Certificate():
                return self._are_ours(*said.votes)
            case _:
                assert_never(said)

    def _is_known(self, height: Height, block: Digest) -> bool:
        """Return whether a block is of the chain, as far as can be told; one that has not come yet is remembered."""
        known = self._chain.get(height)
        if known is None and height > self._tip:
            self._ahead[height, block] = None
            if len(self._ahead) > _AHEAD_MAX:
                self._ahead.popitem(last=False)
        return known is None or known == block

    def _holds_against(self, block: Block) -> bool:
        """Return whether all that was said of a block before it came was said of this one."""
        said = [key for key in self._ahead if key[0] <= block.height]
        for key in said:
            del self._ahead[key]
        return all(digest == block.hash for height, digest in said if height == block.height)
