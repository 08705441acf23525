"""After the loss of a majority: from which block a network may go on, and whose word makes it so (ledger.md 7.4).

    freeze      each survivor signs what it last voted for and what it holds, and signs nothing more in this epoch
    base        the highest block that is certified, or could still become so in the hands of those who have not answered
    recovery    the step into the next epoch above the base: the new configuration, what is given up, and why; signed by
                governance keys, which are kept offline, and not by the nodes that happen to be left (`recovery_block`)

There is no force of a single node: whoever holds a receipt that the new chain lacks can show it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from protocol import codec, limits, signing
from protocol.block import Header, header_hash
from protocol.codec import Bytes64, Size, wire
from protocol.configuration import Configuration
from protocol.errors import Invalid, Unavailable
from protocol.finality import Certificate, CommitVote, linked_heights, vote_valid
from protocol.identifiers import ZERO, Digest, Height, NetworkId, NodeId, Term

REASON_CHARACTERS_MAX = 500

DigestField = Annotated[Digest, Size(32)]
NodeField = Annotated[NodeId, Size(32)]


@wire("freeze")
@dataclass(frozen=True, slots=True)
class FreezeStatement:
    """A survivor's word: so far I have gone in this epoch, and I sign nothing more in it.

    `certificate` is for the highest block it knows to be certified (None: genesis), `links` the headers above that block up
    to its tip, `vote` its last commit vote. A vote of this epoch that is not in here is evidence against its signer.
    """

    node: NodeField
    epoch: int
    incarnation: int
    term: Term
    certificate: Certificate | None
    links: Annotated[tuple[Header, ...], Size(0, limits.UNCERTIFIED_BLOCKS_MAX)]
    vote: CommitVote | None
    signature: Bytes64


def freeze(
    key: signing.SigningKey,
    network: NetworkId,
    *,
    epoch: int,
    incarnation: int,
    term: Term,
    certificate: Certificate | None,
    links: tuple[Header, ...],
    vote: CommitVote | None,
) -> FreezeStatement:
    """Return a signed freeze statement. That this node is frozen must be durable before it leaves."""
    fields = epoch, incarnation, term, certificate, links, vote
    return FreezeStatement(NodeId(key.public), *fields, key.sign(_freeze_form(network, fields)))


def _freeze_form(
    network: NetworkId,
    fields: tuple[int, int, Term, Certificate | None, tuple[Header, ...], CommitVote | None],
) -> bytes:
    epoch, incarnation, term, certificate, links, vote = fields
    stands_on = header_hash(certificate.header) if certificate is not None else ZERO
    voted = (vote.height, vote.header_hash, vote.base_height, vote.base_hash) if vote is not None else ()
    tips = tuple([header_hash(link) for link in links])
    return signing.signed_form("freeze", network, epoch, incarnation, term, stands_on, tips, voted)


def check_freeze(statement: FreezeStatement, network: NetworkId) -> None:
    """Check a freeze statement's signature, its own vote's, and that its headers are one chain; not its certificate.

    Raises:
        Invalid: which of these does not hold.
    """
    vote = statement.vote
    fields = (
        statement.epoch,
        statement.incarnation,
        statement.term,
        statement.certificate,
        statement.links,
        vote,
    )
    if not signing.verify(statement.node, _freeze_form(network, fields), statement.signature):
        raise Invalid("a freeze statement's signature does not verify")
    if any(term > limits.TERM_MAX for term in (statement.term, *(link.term for link in statement.links))):
        raise Invalid("a freeze statement names a term that no election reaches")
    if vote is not None:
        if (vote.signer, vote.epoch) != (statement.node, statement.epoch):
            raise Invalid("a freeze statement names a vote of somebody else, or of another epoch")
        if not vote_valid(vote, network):
            raise Invalid("the vote in a freeze statement does not verify")
    if statement.certificate is not None:
        linked_heights(statement.certificate.header, statement.links)
    elif statement.links:
        linked_heights(statement.links[0], statement.links[1:])
        if statement.links[0].height != 1:
            raise Invalid("the headers of a freeze statement begin above genesis")


# --- the base -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Base:
    """Where the next epoch begins, and the hashes of blocks above it that are given up."""

    header: Header
    discarded: tuple[Digest, ...]

    @property
    def hash(self) -> Digest:
        """The header hash of the block to go on from."""
        return header_hash(self.header)


def find_base(statements: Iterable[FreezeStatement], floor: Header, configuration: Configuration) -> Base:
    """Return the highest block that is certified or could still become so, from checked freeze statements.

    A block could be certified when its known votes, the signers that have not answered, and the b that may lie about what
    they voted for, make q together. `configuration` is the one in force above the highest certified block; `floor` is what
    is final without a certificate of this epoch: genesis, or the block that began it.

    Raises:
        Unavailable: two blocks that are not on one chain could both be: more signers have to answer.
    """
    heard = {one.node: one for one in statements if one.node in configuration.signers}
    headers = _headers(heard.values(), floor)
    known = (one.certificate.header for one in heard.values() if one.certificate is not None)
    certified = max((floor, *known), key=_height)
    votes = [one.vote for one in heard.values() if one.vote is not None]
    silent = len(configuration.signers) - len(heard)
    needed = configuration.certificate_quorum - silent - configuration.liars_tolerated
    possible = [
        header
        for digest, header in headers.items()
        if header.height > certified.height
        and _descends(headers, digest, header_hash(certified))
        and _votes_for(headers, votes, digest) >= needed
    ]
    best = max(possible, key=_height, default=certified)
    best_hash = header_hash(best)
    if any(not _descends(headers, best_hash, header_hash(other)) for other in possible):
        raise Unavailable(
            "two histories could still be final in the hands of members that have not answered; collect freeze "
            "statements of more members, or name the loss in the reason of the recovery"
        )
    discarded = sorted(
        digest
        for digest, header in headers.items()
        if header.height > certified.height and not _descends(headers, best_hash, digest)
    )
    return Base(best, tuple(discarded))


def _height(header: Header) -> Height:
    return header.height


def _headers(statements: Iterable[FreezeStatement], floor: Header) -> dict[Digest, Header]:
    """Return every header that the survivors hold above what is certified to them, by hash."""
    headers = {header_hash(floor): floor}
    for statement in statements:
        known = (statement.certificate.header,) if statement.certificate is not None else ()
        for header in (*known, *statement.links):
            headers[header_hash(header)] = header
    return headers


def _descends(headers: dict[Digest, Header], digest: Digest, ancestor: Digest) -> bool:
    """Return whether the block with `digest` is `ancestor` or stands above it, as far as the headers reach."""
    floor = headers[ancestor].height
    header = headers.get(digest)
    while header is not None and header.height > floor:
        digest = header.prev_hash
        header = headers.get(digest)
    return digest == ancestor


def _votes_for(headers: dict[Digest, Header], votes: Iterable[CommitVote], digest: Digest) -> int:
    """Return how many votes stand for a block: for it or a descendant, with a base below it (P5)."""
    height = headers[digest].height
    return sum(
        vote.base_height < height
        and vote.header_hash in headers
        and _descends(headers, vote.header_hash, digest)
        for vote in votes
    )


# --- the recovery ---------------------------------------------------------------------------------------------------


@wire("recovery")
@dataclass(frozen=True, slots=True)
class Recovery:
    """What the governance keys sign: the step from one epoch into the next.

    `before` is the hash of the configuration that it replaces: who signs has been shown who leaves. `lost` are the organisations declared lost: they are not counted on either side. `discarded` are the hashes of blocks
    that somebody held above the base, so that nobody can say later that they were never known.
    """

    epoch: int
    base_height: Height
    base_hash: DigestField
    term: Term
    time_ms: int
    before: DigestField
    configuration: Configuration
    lost: Annotated[tuple[NodeField, ...], Size(0, limits.MEMBERS_MAX)]
    discarded: Annotated[tuple[DigestField, ...], Size(0, limits.MEMBERS_MAX * limits.UNCERTIFIED_BLOCKS_MAX)]
    reason: Annotated[str, Size(1, REASON_CHARACTERS_MAX)]


@wire("recovery-signature")
@dataclass(frozen=True, slots=True)
class RecoverySignature:
    """One organisation's consent, by its governance key; `node` names the organisation."""

    node: NodeField
    signature: Bytes64


@wire("signed-recovery")
@dataclass(frozen=True, slots=True)
class SignedRecovery:
    """A recovery and who consents to it, sorted by node."""

    recovery: Recovery
    signatures: Annotated[tuple[RecoverySignature, ...], Size(0, limits.MEMBERS_MAX)]


def _recovery_form(network: NetworkId, recovery: Recovery) -> bytes:
    return signing.signed_form("recovery", network, codec.fields_plain(recovery))


def consent(
    key: signing.SigningKey, network: NetworkId, recovery: Recovery, node: NodeId
) -> RecoverySignature:
    """Return the consent of the organisation `node`, signed with its governance key."""
    return RecoverySignature(node, key.sign(_recovery_form(network, recovery)))


def consents_needed(recovery: Recovery, before: Configuration) -> int:
    """Return how many organisations have to sign: more than 2/3 of those not declared lost, and a quorum of all."""
    left = [node for node in before.signers if node not in recovery.lost]
    return max(len(left) * 2 // 3 + 1, before.certificate_quorum)


def is_step_from(recovery: Recovery, before: Configuration) -> bool:
    """Return whether `before` is what a recovery replaces, and those whom it declares lost are members, sorted."""
    lost = list(recovery.lost)
    return recovery.before == before.digest and lost == sorted(set(lost) & set(before.by_node))


def check_recovery(signed: SignedRecovery, network: NetworkId, before: Configuration) -> None:
    """Check that the organisations of `before`, the configuration in force above the base, consent to a recovery.

    Raises:
        Invalid: it replaces another, too few consent, one twice, one that is declared lost, or a signature does not verify.
    """
    if not is_step_from(signed.recovery, before):
        raise Invalid("a recovery replaces another configuration, or declares lost who is no member of it")
    check_consents(signed.recovery, signed.signatures, network, before)


def check_consents(
    recovery: Recovery, signatures: tuple[RecoverySignature, ...], network: NetworkId, before: Configuration
) -> None:
    """Check that enough organisations of `before` consent to a recovery, each by the governance key that it names.

    `before` is the configuration that the recovery replaces; and where that was set by a block below the base of which no
    certificate is known, the one before it as well: else one leader's block would choose who has a say (ledger.md 7.2, 4).

    Raises:
        Invalid: too few consent, one twice, one that is declared lost, or a signature does not verify.
    """
    nodes = [one.node for one in signatures]
    if nodes != sorted(set(nodes)) or not set(nodes) <= set(before.signers) - set(recovery.lost):
        raise Invalid("a recovery is signed by distinct organisations that are not declared lost, sorted")
    if len(nodes) < consents_needed(recovery, before):
        raise Invalid(
            f"a recovery needs the consent of {consents_needed(recovery, before)} organisations and has {len(nodes)}"
        )
    form = _recovery_form(network, recovery)
    for one in signatures:
        if not signing.verify(before.by_node[one.node].governance, form, one.signature):
            raise Invalid("a signature of a recovery does not verify")
