"""E1 to E5 without certificates: two statements of one member that no honest member signs (ledger.md 1.2).

Each carries all that a stranger needs: the statements and the headers between their blocks. `check` returns the member
that is convicted. The obvious short forms convict honest members; what makes the difference is said at each check.
"""

from dataclasses import dataclass

from protocol.block import header_hash
from protocol.certificate import Acknowledgement, ElectionGrant, acknowledgement_valid, grant_valid
from protocol.codec import wire
from protocol.errors import Invalid
from protocol.evidence_lines import Fork, HeadersField, Point, SignedHeader, ancestor, is_within
from protocol.finality import CommitVote, vote_valid
from protocol.identifiers import NetworkId, NodeId
from protocol.raft.messages import RequestVote, request_vote_valid


@wire("two-headers")
@dataclass(frozen=True, slots=True)
class TwoHeaders:
    """E1: one leader signed two headers of one epoch, height and term."""

    one: SignedHeader
    other: SignedHeader

    def check(self, network: NetworkId) -> NodeId:
        """Return the leader. A second block of one term at another height is what leading is."""
        first, second = self.one.header, self.other.header
        demand(first.leader == second.leader, "two headers of two leaders")
        demand(
            (first.epoch, first.height, first.term) == (second.epoch, second.height, second.term),
            "two headers of different heights, terms or epochs",
        )
        demand(header_hash(first) != header_hash(second), "one header twice")
        self.one.check(network)
        self.other.check(network)
        return first.leader


@wire("two-acknowledgements")
@dataclass(frozen=True, slots=True)
class TwoAcknowledgements:
    """E2: one voter acknowledged, in one term, blocks that are not on one chain. `one` is not the higher.

    `line` are the headers above the height of `one`, up to the block of `other`.
    """

    one: Acknowledgement
    other: Acknowledgement
    line: HeadersField

    def check(self, network: NetworkId) -> NodeId:
        """Return the voter. In two terms an honest voter follows two leaders; in two incarnations it has lost its store."""
        one, other = self.one, self.other
        demand(one.voter == other.voter, "acknowledgements of two voters")
        demand(
            (one.epoch, one.incarnation, one.term) == (other.epoch, other.incarnation, other.term),
            "acknowledgements of two terms, incarnations or epochs",
        )
        demand(not is_within(_acknowledged(one), _acknowledged(other), self.line), "both are on one chain")
        _check_acknowledgement(one, network)
        _check_acknowledgement(other, network)
        return one.voter


@wire("two-votes")
@dataclass(frozen=True, slots=True)
class TwoVotes:
    """E3: one signer voted for blocks that part above the bases of both votes. Its incarnations are one to us."""

    one: CommitVote
    other: CommitVote
    fork: Fork

    def check(self, network: NetworkId) -> NodeId:
        """Return the signer. A base at or above the parting excuses: a certificate has led it from one branch to the other."""
        one, other = self.one, self.other
        demand(one.signer == other.signer, "votes of two signers")
        demand(one.epoch == other.epoch, "votes of two epochs")
        parting = self.fork.parting(voted(one), voted(other))
        demand(
            max(one.base_height, other.base_height) < parting, "a vote stands upon a base above the parting"
        )
        check_vote(one, network)
        check_vote(other, network)
        return one.signer


@wire("two-grants")
@dataclass(frozen=True, slots=True)
class TwoGrants:
    """E4: one voter granted its vote in one term to two candidates, or to one for two tips."""

    one: ElectionGrant
    other: ElectionGrant

    def check(self, network: NetworkId) -> NodeId:
        """Return the voter.

        It repeats a grant as long as it remembers it, and grants nothing more in that term when it does not: a candidate that
        shows two tips gets one of them granted.
        """
        one, other = self.one, self.other
        demand(one.voter == other.voter, "grants of two voters")
        demand(
            (one.epoch, one.incarnation, one.term) == (other.epoch, other.incarnation, other.term),
            "grants in two terms, incarnations or epochs",
        )
        demand(
            (one.candidate, one.tip_hash) != (other.candidate, other.tip_hash),
            "both grants are for one candidate and one log",
        )
        demand(
            grant_valid(one, network) and grant_valid(other, network),
            "the signature of a grant does not verify",
        )
        return one.voter


@wire("hidden-term")
@dataclass(frozen=True, slots=True)
class HiddenTerm:
    """E5a: a candidate acknowledged something in a later term than the one it admits, before the one it stands in."""

    request: RequestVote
    acknowledgement: Acknowledgement

    def check(self, network: NetworkId) -> NodeId:
        """Return the candidate. What it acknowledges in the term it stands in, or later, comes after the request."""
        request, ack = self.request, self.acknowledgement
        _check_pair(request, ack, network)
        demand(request.ack_term < ack.term < request.term, "the candidate hides no term")
        return request.candidate


@wire("hidden-log")
@dataclass(frozen=True, slots=True)
class HiddenLog:
    """E5b: a candidate acknowledged, in the term it admits, a block that its tip leaves out, and no certificate excuses it.

    Without `fork` the tip is an ancestor of that block, and `line` the headers above the tip, up to it. With `fork` (`one`
    leads to the acknowledged block, `other` to the tip) `line` is empty, or the headers above the base's height, up to the
    tip: they show that the base is not on the tip's chain.
    """

    request: RequestVote
    acknowledgement: Acknowledgement
    fork: Fork | None
    line: HeadersField

    def check(self, network: NetworkId) -> NodeId:
        """Return the candidate. A certificate on the tip's branch makes a signer leave the other one (P5)."""
        request, ack = self.request, self.acknowledgement
        _check_pair(request, ack, network)
        demand(request.ack_term == ack.term, "an acknowledgement of another term than the candidate admits")
        tip, acknowledged = Point(request.tip.height, request.tip_hash), _acknowledged(ack)
        if self.fork is None:
            demand(acknowledged.height > tip.height, "the candidate's tip is not below what it acknowledged")
            demand(is_within(tip, acknowledged, self.line), "where the two chains part is not shown")
            return request.candidate
        parting = self.fork.parting(acknowledged, tip)
        base = Point(request.base_height, request.base_hash)
        excused = parting <= base.height <= tip.height
        if self.line or base.height == tip.height:
            excused = excused and is_within(base, tip, self.line)
        demand(not excused, "a certificate led the candidate from one branch to the other")
        return request.candidate


@wire("other-tip")
@dataclass(frozen=True, slots=True)
class OtherTip:
    """E5c: a leader signed a block of the term it was elected in that does not descend from the tip it had shown.

    `line` are the headers above the tip's height and below the signed one.
    """

    request: RequestVote
    header: SignedHeader
    line: HeadersField

    def check(self, network: NetworkId) -> NodeId:
        """Return the leader, which only appends (Raft §5.3)."""
        request, made = self.request, self.header.header
        _check_request(request, network)
        self.header.check(network)
        demand(
            (request.candidate, request.epoch, request.term) == (made.leader, made.epoch, made.term),
            "the header is not of the term and node of the request",
        )
        if made.height >= request.tip.height:
            line = (*self.line, made) if made.height > request.tip.height else self.line
            below = ancestor(self.header.point, line, request.tip.height)
            demand(below != request.tip_hash, "the block descends from the tip")
        return request.candidate


def voted(vote: CommitVote) -> Point:
    """Return the block that a vote is for."""
    return Point(vote.height, vote.header_hash)


def check_vote(vote: CommitVote, network: NetworkId) -> None:
    """Check the signature of a vote in evidence.

    Raises:
        Invalid: it does not verify.
    """
    demand(vote_valid(vote, network), "the signature of a commit vote does not verify")


def _acknowledged(ack: Acknowledgement) -> Point:
    return Point(ack.height, ack.header_hash)


def _check_acknowledgement(ack: Acknowledgement, network: NetworkId) -> None:
    demand(acknowledgement_valid(ack, network), "the signature of an acknowledgement does not verify")


def _check_request(request: RequestVote, network: NetworkId) -> None:
    demand(header_hash(request.tip) == request.tip_hash, "the tip of a RequestVote is not its header's")
    demand(request_vote_valid(request, network), "the signature of a RequestVote does not verify")


def _check_pair(request: RequestVote, ack: Acknowledgement, network: NetworkId) -> None:
    demand(request.candidate == ack.voter, "a request and an acknowledgement of two members")
    demand(
        (request.epoch, request.incarnation) == (ack.epoch, ack.incarnation),
        "a request and an acknowledgement of two incarnations or epochs",
    )
    _check_request(request, network)
    _check_acknowledgement(ack, network)


def demand(rule: bool, text: str) -> None:
    """Raise Invalid with `text` unless the rule holds."""
    if not rule:
        raise Invalid(text)
