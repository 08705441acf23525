"""Who is in the network, in which role, and what follows from it: quorums, storing members, suites.

The genesis configuration's canonical encoding hashes to the network id, which is also the ledger id. b, q and r are
always derived from the configuration in force, never typed in (ledger.md section 0).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

from protocol import codec, limits, signing
from protocol.codec import Bytes32, Bytes64, Size, wire
from protocol.errors import Refused
from protocol.identifiers import Digest, NetworkId, NodeId, PublicKey, peer_id

ROLES = ("voter", "witness", "observer", "learner")
KINDS = ("hospital", "clinic", "lab", "insurer", "regulator", "patient")
CARD_VERSION = 2
SUSPENDED = "suspended"
"""A member by ballot only: it keeps its name and keys, and takes no part until it is reinstated."""

Name = Annotated[str, Size(1, 64)]


@wire("member")
@dataclass(frozen=True, slots=True)
class Member:
    """One facility: its name, role, keys and the addresses it can be dialled at (multiaddrs, may be empty)."""

    name: Name
    kind: Annotated[str, Size(1, 16)]
    role: Annotated[str, Size(1, 16)]
    node: Annotated[NodeId, Size(32)]
    kex: Annotated[PublicKey, Size(32)]
    team: Annotated[PublicKey, Size(32)]
    governance: Annotated[PublicKey, Size(32)]
    checkpoint: Annotated[PublicKey, Size(32)]
    addresses: Annotated[tuple[Annotated[str, Size(1, 256)], ...], Size(0, 16)]


@wire("card")
@dataclass(frozen=True, slots=True)
class Card:
    """A facility's signed introduction: what `genesis` and ballots take as input."""

    version: int
    member: Member
    signature: Bytes64

    @staticmethod
    def make(member: Member, key: signing.SigningKey) -> "Card":
        """Return a card signed by the member's node key."""
        return Card(CARD_VERSION, member, key.sign(_card_form(member)))

    def check(self) -> None:
        """Check version, role, kind and signature.

        Raises:
            Refused: with what is wrong.
        """
        if self.version != CARD_VERSION:
            raise Refused(
                f"card of version {self.version}; this program reads version {CARD_VERSION}: make it again with carechain init"
            )
        if self.member.role not in ROLES or self.member.kind not in KINDS:
            raise Refused(
                f"the card of {self.member.name} has an unknown role or kind; make it again with carechain init"
            )
        if not signing.verify(self.member.node, _card_form(self.member), self.signature):
            raise Refused(
                f"the card of {self.member.name} was altered: its signature does not match; ask the facility for its card again"
            )


def _card_form(member: Member) -> bytes:
    return signing.signed_form("card", NetworkId(bytes(32)), CARD_VERSION, codec.fields_plain(member))


@wire("configuration")
@dataclass(frozen=True)
class Configuration:
    """The members in force, sorted by node id, and the network's parameters.

    `min_b` is the least number of liars to tolerate; `suites` the accepted envelope suites (cryptography.md section 2).
    `number` counts the changes since genesis: members that come back to what they were once make another configuration,
    or proposals for the old one would hold again.
    """

    version: int
    members: Annotated[tuple[Member, ...], Size(1, limits.MEMBERS_MAX)]
    min_b: int
    suites: Annotated[tuple[int, ...], Size(1, 8)]
    nonce: Bytes32
    number: int = 0

    @cached_property
    def digest(self) -> Digest:
        """SHA-256 of the canonical encoding; of the genesis configuration, the network id."""
        return signing.sha256(codec.encode(self))

    @cached_property
    def by_node(self) -> dict[NodeId, Member]:
        """Members by node id."""
        return {member.node: member for member in self.members}

    def takes_part(self, node: NodeId) -> bool:
        """Return whether `node` is a member that is not suspended."""
        member = self.by_node.get(node)
        return member is not None and member.role != SUSPENDED

    @cached_property
    def voters(self) -> tuple[NodeId, ...]:
        """Members that run Raft."""
        return tuple(member.node for member in self.members if member.role == "voter")

    @cached_property
    def learners(self) -> tuple[NodeId, ...]:
        """Members that receive blocks as voters do, and are never counted."""
        return tuple(member.node for member in self.members if member.role == "learner")

    @cached_property
    def witnesses(self) -> tuple[NodeId, ...]:
        """Members that validate and vote on certificates, and take no other part in consensus."""
        return tuple(member.node for member in self.members if member.role == "witness")

    @cached_property
    def signers(self) -> tuple[NodeId, ...]:
        """Members whose commit votes make a certificate: voters and witnesses, sorted (ledger.md, head)."""
        return tuple(member.node for member in self.members if member.role in ("voter", "witness"))

    @cached_property
    def participants(self) -> tuple[NodeId, ...]:
        """Members among which consensus messages travel: all but observers, who follow by gossip."""
        return tuple(member.node for member in self.members if member.role not in ("observer", SUSPENDED))

    @cached_property
    def storing(self) -> tuple[NodeId, ...]:
        """Members that store chunks and envelopes and give receipts: the voters (storage.md 4)."""
        return self.voters

    @cached_property
    def raft_quorum(self) -> int:
        """R: a majority of voters."""
        return len(self.voters) // 2 + 1

    @cached_property
    def liars_tolerated(self) -> int:
        """b: signers that may lie without two histories becoming final."""
        return max((len(self.signers) - 1) // 3, self.min_b)

    @cached_property
    def certificate_quorum(self) -> int:
        """q: two sets of so many signers share at least b + 1."""
        return (len(self.signers) + self.liars_tolerated) // 2 + 1

    @property
    def receipt_quorum(self) -> int:
        """q_n: receipts that a RecordCommit needs from the share holders (cryptography.md section 2)."""
        holders = len(self.storing)
        return (holders + (holders - 1) // 3) // 2 + 1

    def find(self, text: str) -> Member:
        """Return the member named by its name, its peer id, or a unique prefix of either.

        Raises:
            Refused: none, or more than one.
        """
        exact = [member for member in self.members if text in (member.name, peer_id(member.node))]
        found = exact or [
            m for m in self.members if text and (m.name.startswith(text) or peer_id(m.node).startswith(text))
        ]
        if len(found) != 1:
            what = "no facility of this network" if not found else f"{len(found)} facilities of this network"
            raise Refused(
                f"{what} match '{text}'; name one of: {', '.join(member.name for member in self.members)}"
            )
        return found[0]


def found(cards: tuple[Card, ...], *, nonce: bytes, suites: tuple[int, ...] = (0,)) -> Configuration:
    """Return the genesis configuration of the founding members' cards.

    Raises:
        Refused: a bad card, two cards of one name or key, too many, or no voter.
    """
    if not cards:
        raise Refused("no card given; name the card.json of every founding member")
    if len(cards) > limits.MEMBERS_MAX:
        raise Refused(f"{len(cards)} cards; a network has at most {limits.MEMBERS_MAX} members")
    for card in cards:
        card.check()
    _refuse_twins("name", cards, [card.member.name for card in cards])
    _refuse_twins("node key", cards, [card.member.node.hex() for card in cards])
    members = tuple(sorted((card.member for card in cards), key=lambda member: member.node))
    configuration = Configuration(1, members, 0, suites, nonce, 0)
    if not configuration.voters:
        raise Refused("no card has the role voter; at least one founding member must vote")
    return configuration


def change_fault(before: Configuration, after: Configuration) -> str | None:
    """Return why `after` may not follow `before` in one block, or None when it may.

    At most one voter changes at a time: any quorum of the one then meets any quorum of the other (Raft thesis §4.1).
    A voter has been a learner before, so that it does not begin to count with an empty log (§4.2.1).
    """
    old, new = set(before.voters), set(after.voters)
    if new and len(old ^ new) > 1:
        return "more than one voter would change; change one at a time"
    if not new - old <= set(before.learners):
        return "a new voter must be a learner first"
    return recovery_fault(before, after)


def recovery_fault(before: Configuration, after: Configuration) -> str | None:
    """Return why `after` may not follow `before` when an epoch begins, or None when it may: any voters may be gone then."""
    nodes = [member.node for member in after.members]
    if nodes != sorted(set(nodes)):
        return "the members are not distinct and sorted by node id"
    if any(member.role not in (*ROLES, SUSPENDED) for member in after.members):
        return "a member has an unknown role"
    if not after.voters:
        return "no voter would be left"
    if after.certificate_quorum > len(after.signers):
        return "no quorum could tolerate so many liars"
    return _form_fault(before, after)


def _form_fault(before: Configuration, after: Configuration) -> str | None:
    if replace(after, number=before.number).digest == before.digest:
        return "nothing would change"
    if after.number != before.number + 1:
        return "it is not the next configuration by its number"
    if (after.version, after.nonce) != (before.version, before.nonce):
        return "it is of another network or version"
    if len(codec.encode(after)) > limits.CONFIGURATION_BYTES_MAX:
        return "it would be too large; give members fewer addresses"
    return None


def _refuse_twins(what: str, cards: tuple[Card, ...], values: list[str]) -> None:
    for card, value in zip(cards, values, strict=True):
        if values.count(value) > 1:
            raise Refused(
                f"two cards have one {what} ({card.member.name}); every founding member needs its own, made by its own carechain init"
            )


def network_id(genesis: Configuration) -> NetworkId:
    """Return the id of the network that `genesis` founds."""
    return NetworkId(genesis.digest)
