"""Actions on a configuration: which are lawful, who decides, and what they cost (ledger.md 1.3, 7.1, 7.2)."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import governance
from protocol.configuration import SUSPENDED, Card, Configuration, change_fault, network_id
from protocol.errors import Invalid, Refused
from protocol.governance import (
    Action,
    AddMember,
    ChangeRole,
    RemoveMember,
    RotateKeys,
    SetMinB,
    Standing,
    ballots_needed,
    change_risk,
    check_action,
)
from protocol.identifiers import NodeId
from tests.protocol.ledgers import configuration, key, member

THREE = configuration("a", "b", "c")
NETWORK = network_id(THREE)


def node(name: str) -> NodeId:
    return NodeId(key(name).public)


def card(name: str, role: str = "observer") -> Card:
    return Card.make(member(name, role), key(name))


def changed(before: Configuration, *actions: Action) -> Configuration:
    for action in actions:
        before = governance.after(before, action, NETWORK)
    return before


def test_a_facility_becomes_observer_learner_and_then_voter() -> None:
    four = changed(THREE, AddMember(card("d"), "observer"), ChangeRole(node("d"), "learner"))
    assert four.learners == (node("d"),)
    assert four.signers == THREE.signers
    assert changed(four, ChangeRole(node("d"), "voter")).voters == tuple(sorted(map(node, "abcd")))


def test_coming_back_to_old_members_makes_another_configuration() -> None:
    back = changed(THREE, AddMember(card("d"), "observer"), RemoveMember(node("d")))
    assert back.members == THREE.members
    assert (back.number, back.digest != THREE.digest) == (2, True)
    assert change_fault(changed(THREE, AddMember(card("d"), "observer")), THREE) is not None


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (AddMember(card("d"), "voter"), "learner first"),
        (AddMember(card("a"), "observer"), "this name"),
        (
            AddMember(Card.make(dataclasses.replace(member("a"), name="other"), key("a")), "observer"),
            "one of these keys",
        ),
        (ChangeRole(node("d"), "observer"), "no member"),
        (ChangeRole(node("a"), "voter"), "nothing would change"),
        (RemoveMember(node("d")), "no member"),
        (SetMinB(3), "so many liars"),
        (RotateKeys(node("a"), card("e"), bytes(64)), "does not endorse"),
    ],
)
def test_what_does_not_fit_the_members_is_refused(action: Action, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        governance.after(THREE, action, NETWORK)


def test_the_last_voter_cannot_leave() -> None:
    with pytest.raises(Refused, match="no voter"):
        governance.after(configuration("a"), RemoveMember(node("a")), NETWORK)


def test_keys_rotate_under_the_old_node_key_and_name_and_role_stay() -> None:
    before = configuration("a", "b", "c", observers=("o",))
    new = card("o2")
    form = governance.endorsement_form(NETWORK, node("o"), new)
    following = changed(before, RotateKeys(node("o"), new, key("o").sign(form)))
    rotated = following.by_node[node("o2")]
    assert (rotated.name, rotated.role, rotated.governance) == ("o", "observer", new.member.governance)
    assert node("o") not in following.by_node


def test_a_new_node_key_leads_back_to_the_old_one_and_no_other_change_does() -> None:
    before = configuration("a", "b", "c", observers=("o",))
    new = card("o2")
    form = governance.endorsement_form(NETWORK, node("o"), new)
    following = changed(before, RotateKeys(node("o"), new, key("o").sign(form)))
    assert governance.successions(before, following) == {node("o2"): node("o")}
    assert governance.successions(before, changed(before, RemoveMember(node("o")))) == {}
    assert governance.successions(before, changed(before, AddMember(card("d"), "observer"))) == {}


def test_a_signers_node_key_changes_only_while_it_is_a_learner_or_observer() -> None:
    new = card("a2")
    rotate = RotateKeys(node("a"), new, key("a").sign(governance.endorsement_form(NETWORK, node("a"), new)))
    with pytest.raises(Refused, match="demote it first"):
        governance.after(THREE, rotate, NETWORK)
    following = changed(THREE, ChangeRole(node("a"), "learner"), rotate, ChangeRole(node("a2"), "voter"))
    assert node("a2") in following.voters


def test_a_voter_rotates_governance_and_checkpoint_keys_in_place() -> None:
    other = dataclasses.replace(
        member("a"), governance=key("a/new gov").public, checkpoint=key("a/new check").public
    )
    new = Card.make(other, key("a"))
    form = governance.endorsement_form(NETWORK, node("a"), new)
    following = changed(THREE, RotateKeys(node("a"), new, key("a").sign(form)))
    assert following.voters == THREE.voters
    assert following.by_node[node("a")].governance == key("a/new gov").public


def test_a_suspended_member_takes_no_part_and_can_come_back() -> None:
    suspended = changed(THREE, ChangeRole(node("c"), SUSPENDED))
    assert not suspended.takes_part(node("c"))
    assert suspended.voters == tuple(sorted(map(node, "ab")))
    assert changed(suspended, ChangeRole(node("c"), "learner")).takes_part(node("c"))


@given(st.integers(1, 64))
def test_more_than_two_thirds_decide(counted: int) -> None:
    needed = ballots_needed(counted)
    assert 3 * needed > 2 * counted >= 3 * (needed - 1)
    assert needed <= counted


@pytest.mark.parametrize("action", [RemoveMember(node("c")), ChangeRole(node("c"), SUSPENDED)])
def test_who_is_to_leave_is_not_counted(action: Action) -> None:
    assert governance.organisations(THREE, action) == tuple(sorted(map(node, "ab")))
    assert governance.organisations(THREE, SetMinB(1)) == THREE.signers


@pytest.mark.parametrize(
    ("voters", "witnesses", "r", "b", "q", "ordering", "finality"),
    [  # the table of ledger.md 1.3, and the line below it
        (2, 0, 2, 0, 2, 0, 0),
        (3, 0, 2, 0, 2, 1, 1),
        (4, 0, 3, 1, 3, 1, 1),
        (5, 0, 3, 1, 4, 2, 1),
        (6, 0, 4, 1, 4, 2, 2),
        (7, 0, 4, 2, 5, 3, 2),
        (9, 0, 5, 2, 6, 4, 3),
        (3, 1, 2, 1, 3, 1, 1),
        (3, 2, 2, 1, 4, 1, 1),
        (4, 1, 3, 1, 4, 1, 1),
        (5, 1, 3, 1, 4, 2, 2),
        (5, 2, 3, 2, 5, 2, 2),
    ],
)
def test_a_network_withstands_what_the_table_says(
    voters: int, witnesses: int, r: int, b: int, q: int, ordering: int, finality: int
) -> None:
    roles = ["voter"] * voters + ["witness"] * witnesses
    members = tuple(sorted((member(f"n{i}", role) for i, role in enumerate(roles)), key=lambda one: one.node))
    standing = Standing.of(dataclasses.replace(THREE, members=members))
    assert (standing.raft_quorum, standing.liars, standing.certificate_quorum) == (r, b, q)
    assert (standing.crashes_ordering, standing.crashes_finality) == (ordering, finality)


def test_risk_is_named_where_liars_or_slack_are_lost_and_not_else() -> None:
    four = changed(THREE, AddMember(card("d"), "learner"), ChangeRole(node("d"), "voter"))
    fewer = change_risk(four, changed(four, RemoveMember(node("d"))))
    assert fewer is not None
    assert "from 1 to 0" in fewer
    two = change_risk(THREE, changed(THREE, RemoveMember(node("c"))))
    assert two is not None
    assert "no member could fail" in two
    assert change_risk(THREE, changed(THREE, AddMember(card("d"), "observer"))) is None
    pair = configuration("a", "b")
    assert change_risk(pair, changed(pair, AddMember(card("d"), "observer"))) is None


def test_a_stranger_cannot_be_proposed_with_a_card_that_somebody_altered() -> None:
    altered = dataclasses.replace(card("d"), member=member("e"))
    with pytest.raises(Invalid, match="altered"):
        check_action(AddMember(altered, "observer"))
    with pytest.raises(Invalid):
        check_action(AddMember(card("d"), SUSPENDED))
