"""What a node noted of what others signed: the newest statements of each member, compared with every new one.

    see(statement) ──► is there an older one that no honest member signs beside it? ──► evidence

Signatures are checked by whoever saw the statement first, and once more by `evidence.check` before anything leaves here, so
that a notebook never accuses anybody wrongly. It forgets: of each member and kind a few statements stay, and what it cannot
link by the headers it has, it passes over. Pure: no clock, no I/O.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, assert_never

from protocol import evidence, limits
from protocol.block import Header, header_hash
from protocol.certificate import Acknowledgement, ElectionGrant
from protocol.checkpoint import SignedCheckpoint
from protocol.errors import RemoteFault
from protocol.evidence import Evidence
from protocol.evidence_certificates import Configurations, ConflictingCertificates, FalseBase
from protocol.evidence_freezes import FrozenVote
from protocol.evidence_lines import Point, SignedHeader
from protocol.evidence_statements import (
    HiddenLog,
    HiddenTerm,
    OtherTip,
    TwoAcknowledgements,
    TwoGrants,
    TwoHeaders,
    TwoVotes,
    voted,
)
from protocol.evidence_trees import OtherTree, TwoTrees
from protocol.finality import Certificate, CommitVote
from protocol.header_window import HeaderWindow
from protocol.identifiers import ZERO, Digest, NetworkId, NodeId
from protocol.raft.messages import RequestVote
from protocol.recovery import FreezeStatement


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A checkpoint as a C2SP note, and the member whose signature under it was verified."""

    signer: NodeId
    note: bytes


Statement = (
    SignedHeader
    | Acknowledgement
    | CommitVote
    | ElectionGrant
    | RequestVote
    | Certificate
    | SignedNote
    | FreezeStatement
)
K = TypeVar("K")
V = TypeVar("V")


class Notebook:
    """One node's notes. `configurations` gives those that are or were in force."""

    def __init__(self, network: NetworkId, configurations: Callable[[], Configurations]) -> None:
        self._network = network
        self._configurations = configurations
        self._window = HeaderWindow()
        self._headers = _Notes[tuple[int, ...], SignedHeader]()
        self._acknowledgements = _Notes[tuple[int, ...], Acknowledgement]()
        self._votes = _Notes[bytes, CommitVote]()
        self._grants = _Notes[tuple[int, ...], ElectionGrant]()
        self._requests = _Notes[tuple[int, ...], RequestVote]()
        self._notes = _Notes[int, SignedNote]()
        self._freezes = _Notes[tuple[int, ...], FreezeStatement]()
        self._certificates = OrderedDict[Digest, Certificate]()
        self._final = OrderedDict[Digest, None]()
        """Hashes of certified blocks, more of them than certificates: nobody who stands upon one of them has a false base."""
        self._accused: set[tuple[NodeId, str]] = set()
        self._claims: dict[NodeId, Digest] = {}
        self._false_bases: dict[NodeId, FalseBase] = {}
        """Accusations that a certificate may clear which has not come yet: who voted upon it had it first."""
        self._seen = OrderedDict[Statement, None]()

    def see(self, statement: Statement, headers: Iterable[Header] = ()) -> tuple[Evidence, ...]:
        """Note a statement whose signature holds, with headers that came along; return what it proves, each thing once."""
        self._window.add(headers)
        if self.has_seen(statement) or not self._is_by_member(statement):
            return ()
        if self._can_link(statement):
            self._seen[statement] = None
        if len(self._seen) > limits.NOTEBOOK_HEADERS_MAX:
            self._seen.popitem(last=False)
        return tuple([found for found in self._compare(statement) if self.is_news(found)])

    def has_seen(self, statement: Statement) -> bool:
        """Return whether a statement was seen lately: members say most things many times, and once is enough to verify it."""
        return statement in self._seen

    def is_news(self, found: Evidence) -> bool:
        """Return whether evidence, also such as was put together elsewhere, convicts or clears somebody as none did before."""
        try:
            if len(evidence.encode(found)) > limits.EVIDENCE_BYTES_MAX:
                return False
            conviction = evidence.check(found, self._network, self._configurations())
        except RemoteFault:
            return False  # an honest pair, most of the time: `evidence` knows what makes the difference
        news = {(node, conviction.kind) for node in conviction.nodes}
        if conviction.cleared is not None:
            news.add((conviction.cleared, "cleared"))
        if conviction.claim != ZERO:
            self._claims.update(dict.fromkeys(conviction.nodes, conviction.claim))
        news -= self._accused
        self._accused |= news
        if isinstance(found, FalseBase) and news:
            self._false_bases[found.vote.signer] = found
        return bool(news)

    def _can_link(self, statement: Statement) -> bool:
        """Return whether the header of the block that a statement is for is here; else it is compared again when said again."""
        if isinstance(statement, Acknowledgement | CommitVote):
            return statement.header_hash in self._window
        return True

    def _is_by_member(self, statement: Statement) -> bool:
        """Return whether a member said it: strangers could make a notebook grow without bound."""
        node = author(statement)
        return node is None or any(node in each.by_node for each in self._configurations().values())

    def rebut(self, found: Evidence) -> tuple[Evidence, ...]:
        """Return what clears a signer that is accused of a base which a certificate noted here makes final; else nothing."""
        if isinstance(found, FalseBase):
            self._window.add((found.certificate.header, *found.certificate.links, *found.line))
            for known, each in self._certificates.items():
                rebuttal = self._rebuttal(found, each, Point(each.height, known))
                if rebuttal is not None:
                    return (rebuttal,) if self.is_news(rebuttal) else ()
        return ()

    def _rebuttal(
        self, found: FalseBase, certificate: Certificate, point: Point
    ) -> ConflictingCertificates | None:
        base = Point(found.vote.base_height, found.vote.base_hash)
        if base.height > point.height or not self._window.are_one_chain(base, point):
            return None
        fork = self._window.fork(_certified(found.certificate), point)
        if fork is None:
            return None
        return ConflictingCertificates(found.certificate, certificate, fork, found.vote.signer)

    def _compare(self, statement: Statement) -> Iterator[Evidence]:
        match statement:
            case SignedHeader():
                yield from self._see_header(statement)
            case Acknowledgement():
                yield from self._see_acknowledgement(statement)
            case CommitVote():
                yield from self._see_vote(statement)
            case ElectionGrant():
                yield from self._see_grant(statement)
            case RequestVote():
                yield from self._see_request(statement)
            case Certificate():
                yield from self._see_certificate(statement)
            case SignedNote():
                yield from self._see_note(statement)
            case FreezeStatement():
                yield from self._see_freeze(statement)
            case _:
                assert_never(statement)

    def _see_header(self, signed: SignedHeader) -> Iterator[Evidence]:
        header = signed.header
        self._window.add((header,))
        before = self._headers.put(header.leader, (header.epoch, header.term, header.height), signed)
        if before is not None and before != signed:
            yield TwoHeaders(before, signed)
        for request in self._requests.of(header.leader):
            if request.term == header.term:
                yield from self._other_tip(request, signed)

    def _see_acknowledgement(self, ack: Acknowledgement) -> Iterator[Evidence]:
        key = ack.epoch, ack.incarnation, ack.term
        before = self._acknowledgements.get(ack.voter, key)
        if before is None or before.height <= ack.height:
            # The highest one covers the others: what is not on its chain is not on theirs either, or they were one.
            self._acknowledgements.put(ack.voter, key, ack)
        if before is not None and before.header_hash != ack.header_hash:
            one, other = sorted((before, ack), key=lambda each: each.height)
            line = self._window.line(one.height, _acknowledged(other))
            if line is not None and (line[0].prev_hash if line else other.header_hash) != one.header_hash:
                yield TwoAcknowledgements(one, other, line)
        for request in self._requests.of(ack.voter):
            yield from self._hidden(request, ack)

    def _see_vote(self, vote: CommitVote) -> Iterator[Evidence]:
        for before in self._votes.of(vote.signer):
            if self._goes_on(before, vote):
                break  # what conflicts with this one conflicts with the one before, which was compared already
            fork = self._window.fork(voted(before), voted(vote))
            if fork is not None:
                yield TwoVotes(before, vote, fork)
        self._votes.put(vote.signer, vote.header_hash + vote.base_hash, vote)
        for statement in self._freezes.of(vote.signer):
            yield from self._after_freeze(statement, vote)
        if vote.base_hash not in self._final:
            for certificate in self._certificates.values():
                yield from self._false_base(vote, certificate)

    def _goes_on(self, before: CommitVote, vote: CommitVote) -> bool:
        is_later = before.height <= vote.height and before.base_height <= vote.base_height
        return is_later and self._window.are_one_chain(voted(before), voted(vote)) is True

    def _see_grant(self, grant: ElectionGrant) -> Iterator[Evidence]:
        before = self._grants.put(grant.voter, (grant.epoch, grant.incarnation, grant.term), grant)
        if before is not None and before != grant:
            yield TwoGrants(before, grant)

    def _see_request(self, request: RequestVote) -> Iterator[Evidence]:
        self._window.add((request.tip,))
        self._requests.put(request.candidate, (request.epoch, request.incarnation, request.term), request)
        for ack in self._acknowledgements.of(request.candidate):
            yield from self._hidden(request, ack)
        for signed in self._headers.of(request.candidate):
            if signed.header.term == request.term:
                yield from self._other_tip(request, signed)

    def _see_certificate(self, certificate: Certificate) -> Iterator[Evidence]:
        self._window.add((certificate.header, *certificate.links))
        point = _certified(certificate)
        if point.hash in self._certificates:
            return
        for vote in certificate.votes:
            yield from self._see_vote(vote)
        for vote in self._votes.all():
            if vote.base_hash not in self._final:
                yield from self._false_base(vote, certificate)
        yield from self._conflicts(certificate, point)
        for note in self._notes.at(certificate.header.tree_size):
            yield OtherTree(note.signer, note.note, certificate, 0, ())
        for accusation in self._false_bases.values():
            rebuttal = self._rebuttal(accusation, certificate, point)
            if rebuttal is not None:
                yield rebuttal
        self._certificates[point.hash] = certificate
        self._final[point.hash] = None
        if len(self._certificates) > limits.NOTEBOOK_STATEMENTS_MAX:
            self._certificates.popitem(last=False)
        if len(self._final) > limits.NOTEBOOK_HEADERS_MAX:
            self._final.popitem(last=False)

    def _conflicts(self, certificate: Certificate, point: Point) -> Iterator[Evidence]:
        for found_hash, before in reversed(self._certificates.items()):
            other = Point(before.height, found_hash)
            if self._window.are_one_chain(other, point):
                return  # those before that one were compared with it
            fork = self._window.fork(other, point)
            if fork is not None:
                found = ConflictingCertificates(before, certificate, fork, NodeId(ZERO))
                cleared = [node for node, claim in sorted(self._claims.items()) if found.clears(claim)]
                yield from (replace(found, accused=node) for node in cleared)
                yield found

    def _see_note(self, seen: SignedNote) -> Iterator[Evidence]:
        size = SignedCheckpoint.parse(seen.note).checkpoint.size
        before = self._notes.put(seen.signer, size, seen)
        if before is not None and before != seen:
            yield TwoTrees(seen.signer, before.note, seen.note, 0, ())
        for certificate in self._certificates.values():
            if certificate.header.tree_size == size:
                yield OtherTree(seen.signer, seen.note, certificate, 0, ())

    def _see_freeze(self, statement: FreezeStatement) -> Iterator[Evidence]:
        certificate, key = statement.certificate, (statement.epoch, statement.incarnation)
        self._window.add((*((certificate.header,) if certificate is not None else ()), *statement.links))
        if self._freezes.get(statement.node, key) is None:
            # The first one stays: a later one may say that all was well.
            self._freezes.put(statement.node, key, statement)
        if statement.vote is not None:
            yield from self._see_vote(statement.vote)
        for vote in self._votes.of(statement.node):
            yield from self._after_freeze(statement, vote)

    def _after_freeze(self, statement: FreezeStatement, vote: CommitVote) -> Iterator[Evidence]:
        if statement.vote is not None:
            line = self._window.line(statement.vote.height, voted(vote))
            if line:
                yield FrozenVote(statement, vote, line)

    def _false_base(self, vote: CommitVote, certificate: Certificate) -> Iterator[Evidence]:
        base, certified = Point(vote.base_height, vote.base_hash), _certified(certificate)
        if base.height and self._window.are_one_chain(base, certified) is False and not self._is_final(base):
            low, high = sorted((base, certified), key=lambda point: point.height)
            line = self._window.line(low.height, high)
            if line is not None:
                yield FalseBase(vote, certificate, line)

    def _is_final(self, block: Point) -> bool:
        """Return whether a certificate noted here makes a block final: then two of them conflict, which convicts others."""
        points = [Point(each.height, found) for found, each in self._certificates.items()]
        return any(block.height <= one.height and self._window.are_one_chain(block, one) for one in points)

    def _hidden(self, request: RequestVote, ack: Acknowledgement) -> Iterator[Evidence]:
        if (request.epoch, request.incarnation) != (ack.epoch, ack.incarnation):
            return
        if request.ack_term < ack.term < request.term:
            yield HiddenTerm(request, ack)
        if request.ack_term != ack.term:
            return
        tip, acknowledged = Point(request.tip.height, request.tip_hash), _acknowledged(ack)
        fork = self._window.fork(acknowledged, tip)
        if fork is not None:
            base = self._window.line(request.base_height, tip) if request.base_height else ()
            yield HiddenLog(request, ack, fork, base or ())
        elif acknowledged.height > tip.height:
            line = self._window.line(tip.height, acknowledged)
            if line is not None:
                yield HiddenLog(request, ack, None, line)

    def _other_tip(self, request: RequestVote, signed: SignedHeader) -> Iterator[Evidence]:
        line = self._window.line(request.tip.height, signed.point)
        if line is not None:
            yield OtherTip(request, signed, line[:-1])


class _Notes(Generic[K, V]):
    """The newest statements of each member, by what makes two of them comparable; the oldest give way."""

    def __init__(self) -> None:
        self._of: dict[NodeId, OrderedDict[K, V]] = {}

    def get(self, node: NodeId, key: K) -> V | None:
        return self._of[node].get(key) if node in self._of else None

    def put(self, node: NodeId, key: K, statement: V) -> V | None:
        """Note a statement; return the one that stood there."""
        notes = self._of.setdefault(node, OrderedDict())
        before = notes.get(key)
        notes[key] = statement
        notes.move_to_end(key)
        if len(notes) > limits.NOTEBOOK_STATEMENTS_MAX:
            notes.popitem(last=False)
        return before

    def of(self, node: NodeId) -> tuple[V, ...]:
        """Return a member's statements, the newest first."""
        return tuple(reversed(self._of[node].values())) if node in self._of else ()

    def at(self, key: K) -> tuple[V, ...]:
        """Return what members have said under one key."""
        return tuple([self._of[node][key] for node in sorted(self._of) if key in self._of[node]])

    def all(self) -> tuple[V, ...]:
        return tuple(statement for node in sorted(self._of) for statement in self._of[node].values())


def author(statement: Statement) -> NodeId | None:
    """Return who made a statement; None for a certificate, which many have made."""
    match statement:
        case SignedHeader():
            return statement.header.leader
        case Acknowledgement() | ElectionGrant():
            return statement.voter
        case CommitVote() | SignedNote():
            return statement.signer
        case RequestVote():
            return statement.candidate
        case FreezeStatement():
            return statement.node
        case Certificate():
            return None  # checked by whoever saw it: its voters are members
        case _:
            assert_never(statement)


def _acknowledged(ack: Acknowledgement) -> Point:
    return Point(ack.height, ack.header_hash)


def _certified(certificate: Certificate) -> Point:
    return Point(certificate.height, header_hash(certificate.header))
