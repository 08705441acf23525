"""Governance by ballot: what may be proposed, what it does to the configuration, who decides, what it risks (ledger.md 7.1).

    Propose ──► Ballot, Ballot, … ──► more than 2/3 say yes ──► pending ──► configuration block ──► in force
       │                                  └► a third says no: rejected
       └► Withdraw, its expiry, or another change in force: void

The *organisations* that decide are the signers of the configuration in force, voters and witnesses, one ballot each: an
organisation owns at most one signer. One that a proposal would remove or suspend is not counted on either side.
What the ballots do to ledger state is `ballots`; this module knows configurations only.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from protocol import limits, signing
from protocol.codec import Bytes64, Size, fields_plain, wire
from protocol.configuration import ROLES, SUSPENDED, Card, Configuration, Member, change_fault
from protocol.errors import Invalid, Refused
from protocol.identifiers import Digest, NetworkId, NodeId, Txid

NodeField = Annotated[NodeId, Size(32)]
Role = Annotated[str, Size(1, 16)]


@wire("add-member")
@dataclass(frozen=True, slots=True)
class AddMember:
    """Take in the facility of a card, in `role`, which may be another one than the card wishes for. A voter begins as learner."""

    card: Card
    role: Role


@wire("change-role")
@dataclass(frozen=True, slots=True)
class ChangeRole:
    """Promote, demote, suspend (`SUSPENDED`) or reinstate a member."""

    node: NodeField
    role: Role


@wire("remove-member")
@dataclass(frozen=True, slots=True)
class RemoveMember:
    """Let a member go: at its own wish, or without it."""

    node: NodeField


@wire("rotate-keys")
@dataclass(frozen=True, slots=True)
class RotateKeys:
    """Give a member the keys and addresses of a new card, which its old node key endorses (ledger.md 7.3).

    Name, kind and role stay. The new card signs itself, so that nobody announces a key which is not his.
    """

    node: NodeField
    card: Card
    endorsement: Bytes64


@wire("set-min-b")
@dataclass(frozen=True, slots=True)
class SetMinB:
    """Set the least number of liars to tolerate."""

    min_b: int


Action = AddMember | ChangeRole | RemoveMember | RotateKeys | SetMinB


@wire("Propose")
@dataclass(frozen=True, slots=True)
class Propose:
    """Propose a change of the configuration. Signed by the proposer's governance key; it is the proposer's yes as well.

    `expiry_ms` is the ledger time after which it is void. `accept_risk` as in a Ballot.
    """

    proposer: NodeField
    action: Action
    expiry_ms: int
    base_config_hash: Annotated[Digest, Size(32)]
    accept_risk: bool
    valid_until_ms: int


@wire("Ballot")
@dataclass(frozen=True, slots=True)
class Ballot:
    """Say yes or no to a proposal, by its txid. Signed by the organisation's governance key. The last one counts.

    `accept_risk` says that what the change costs in safety (`change_risk`) is known and accepted.
    """

    organisation: NodeField
    proposal: Annotated[Txid, Size(32)]
    is_yes: bool
    accept_risk: bool
    valid_until_ms: int


@wire("Withdraw")
@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take a proposal back, also one that is decided and not in force yet. Signed by the proposer's governance key."""

    proposer: NodeField
    proposal: Annotated[Txid, Size(32)]
    valid_until_ms: int


def endorsement_form(network: NetworkId, node: NodeId, card: Card) -> bytes:
    """Return the bytes by which a member's old node key endorses a card with its new keys."""
    return signing.signed_form("endorse", network, node, *fields_plain(card))


def check_action(action: Action) -> None:
    """Check what holds of an action whatever the ledger's state; signatures apart.

    Raises:
        Invalid: an unknown role or kind, or a card of another version.
    """
    match action:
        case AddMember(card, role):
            if role not in ROLES:
                raise Invalid("a member is added in one of the roles voter, witness, observer, learner")
            _check_card(card)
        case ChangeRole(_, role):
            if role not in (*ROLES, SUSPENDED):
                raise Invalid("no role of that name")
        case RotateKeys(_, card, _):
            _check_card(card)
        case SetMinB(min_b):
            if not 0 <= min_b <= limits.MEMBERS_MAX:
                raise Invalid("more liars than members, or fewer than none")
        case RemoveMember():
            pass  # a node id has no other rule than its size


def _check_card(card: Card) -> None:
    try:
        card.check()
    except Refused as reason:
        raise Invalid(str(reason)) from None


def after(configuration: Configuration, action: Action, network: NetworkId) -> Configuration:
    """Return the configuration that an action makes of the one in force.

    Raises:
        Refused: it does not fit the members there are, or is no lawful change; a short reason for a receipt.
    """
    members = dict(configuration.by_node)
    min_b = configuration.min_b
    match action:
        case AddMember(card, role):
            _refuse_twin(configuration, card.member, None)
            members[card.member.node] = replace(card.member, role=role)
        case ChangeRole(node, role):
            members[node] = replace(_member(configuration, node), role=role)
        case RemoveMember(node):
            del members[_member(configuration, node).node]
        case RotateKeys(node, card, endorsement):
            old = _member(configuration, node)
            if not signing.verify(node, endorsement_form(network, node, card), endorsement):
                raise Refused("the old node key does not endorse the new keys")
            if card.member.node != node and node in configuration.signers:
                # The block that brings it in may need the vote of the new key, which begins to sign only above that block.
                raise Refused(
                    "a signer's node key changes while it is a learner or observer: demote it first"
                )
            _refuse_twin(configuration, card.member, node)
            del members[node]
            members[card.member.node] = replace(card.member, name=old.name, kind=old.kind, role=old.role)
        case SetMinB(least):
            min_b = least
    following = replace(
        configuration,
        members=tuple(sorted(members.values(), key=lambda member: member.node)),
        min_b=min_b,
        number=configuration.number + 1,
    )
    if len(following.members) > limits.MEMBERS_MAX:
        raise Refused("too many members")
    fault = change_fault(configuration, following)
    if fault is not None:
        raise Refused(fault)
    return following


def successions(before: Configuration, following: Configuration) -> dict[NodeId, NodeId]:
    """Return whose node key changed from one configuration to the next: the new node id, and the one that it replaces.

    A name passes from one member to another in no other way: it is free again one configuration later at the earliest.
    """
    old, new = before.by_node, following.by_node
    gone = {member.name: node for node, member in old.items() if node not in new}
    return {
        node: gone[member.name] for node, member in new.items() if node not in old and member.name in gone
    }


def _member(configuration: Configuration, node: NodeId) -> Member:
    member = configuration.by_node.get(node)
    if member is None:
        raise Refused("no member of this network")
    return member


def _refuse_twin(configuration: Configuration, new: Member, replaced: NodeId | None) -> None:
    """Refuse a name or key that another member has: one organisation would count as two, or answer for another."""
    keys = {new.node, new.governance, new.checkpoint, new.team}
    for member in configuration.members:
        if member.node == replaced:
            continue
        if member.name == new.name:
            raise Refused("another member has this name")
        if keys & {member.node, member.governance, member.checkpoint, member.team}:
            raise Refused("another member has one of these keys")


# --- who decides ----------------------------------------------------------------------------------------------


def concerned(action: Action) -> NodeId | None:
    """Return whom an action puts out, for good or for a time: not counted on either side; None where nobody."""
    match action:
        case RemoveMember(node):
            return node
        case ChangeRole(node, role) if role == SUSPENDED:
            return node
        case _:
            return None


def subject(action: Action) -> NodeId | None:
    """Return the member an action is about; it may propose that itself, whatever its role."""
    match action:
        case AddMember(card, _):
            return card.member.node
        case ChangeRole(node, _) | RemoveMember(node) | RotateKeys(node, _, _):
            return node
        case SetMinB():
            return None


def organisations(configuration: Configuration, action: Action) -> tuple[NodeId, ...]:
    """Return who decides about an action, sorted."""
    return tuple([node for node in configuration.signers if node != concerned(action)])


def ballots_needed(organisations_counted: int) -> int:
    """Return how many must say yes: more than two thirds."""
    return 2 * organisations_counted // 3 + 1


# --- what it does ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standing:
    """What a configuration withstands (ledger.md 1.3): m signers, b liars, q and r votes, crashes until a pause."""

    signers: int
    voters: int
    liars: int
    certificate_quorum: int
    raft_quorum: int
    crashes_ordering: int
    crashes_finality: int

    @staticmethod
    def of(configuration: Configuration) -> "Standing":
        """Return the standing of a configuration."""
        signers, voters = len(configuration.signers), len(configuration.voters)
        q, r = configuration.certificate_quorum, configuration.raft_quorum
        return Standing(
            signers, voters, configuration.liars_tolerated, q, r, voters - r, min(voters - r, signers - q)
        )


def change_risk(before: Configuration, following: Configuration) -> str | None:
    """Return in words what a change costs in safety, None where it needs no acceptance of a risk (ledger.md 7.2, 6)."""
    old, new = Standing.of(before), Standing.of(following)
    found = []
    if new.liars < old.liars:
        found.append(
            f"liars tolerated fall from {old.liars} to {new.liars}"
            + ("" if new.liars else ": one lying facility could have two versions of a block certified")
        )
    is_touched = (set(before.signers), before.min_b) != (set(following.signers), following.min_b)
    if is_touched and not new.crashes_finality:
        found.append("no member could fail any more without new blocks waiting for its return")
    return "; ".join(found) or None
