import json
from dataclasses import replace

import pytest

from node.recovery_desk import plan_document, signed_consent
from node.recovery_file import Collected, Consent, Plan, file_text, parse_file, signed_plan
from protocol.configuration import Configuration
from protocol.errors import Invalid, Refused
from protocol.identifiers import NetworkId, NodeId
from protocol.recovery import check_recovery
from protocol.signing import SigningKey
from tests.protocol.test_recovery import Consortium

NET = Consortium(4)
BASE = NET.chain(3)[-1].header


def plan_of(**changes: object) -> Plan:
    return Plan(NET.network, NET.configuration, NET.recovery(BASE, **changes))


def consent_of(plan: Plan, member: int) -> Consent:
    def governance_key(_configuration: Configuration) -> SigningKey:
        return NET.governance[member]

    document = signed_consent(plan, governance_key, NET.configuration.signers[member])
    return parse_file(document["consent"], Consent, NET.network)


def test_what_is_written_is_read_again_and_nothing_else() -> None:
    plan = plan_of()
    text = file_text(plan)
    assert parse_file(text, Plan, NET.network) == plan
    again = json.dumps(json.loads(text))  # the same value in other clothes
    assert parse_file(again, Plan, NET.network) == plan
    with pytest.raises(Refused, match="holds no freeze-statements"):
        parse_file(text, Collected, NET.network)
    with pytest.raises(Refused, match="holds no recovery-consent"):
        parse_file(text, Consent, NET.network)
    with pytest.raises(Refused, match="another"):
        parse_file(text, Plan, NetworkId(bytes(32)))
    for bad in (
        "",
        "[]",
        "null",
        "{",
        text.replace('"version": 1', '"version": 2'),
        text.replace("=", "!")[:-40] + '"}',
    ):
        with pytest.raises(Refused, match="altered"):
            parse_file(bad, Plan, NET.network)


def test_consents_make_a_recovery_in_whatever_order_and_however_often_they_are_given() -> None:
    plan = plan_of()
    consents = [consent_of(plan, member) for member in (3, 0, 2, 0)]
    signed = signed_plan(plan, consents)
    check_recovery(signed, NET.network, NET.configuration)
    assert [one.node for one in signed.signatures] == sorted({one.signature.node for one in consents})
    with pytest.raises(Invalid, match="needs the consent of 3"):
        check_recovery(signed_plan(plan, consents[:2]), NET.network, NET.configuration)


def test_who_is_declared_lost_or_has_no_say_does_not_sign() -> None:
    lost = NET.configuration.signers[1]
    with pytest.raises(Refused, match="would not count"):
        consent_of(plan_of(lost=(lost,)), 1)
    with pytest.raises(Refused, match="would not count"):
        signed_consent(plan_of(), lambda _: NET.governance[0], NodeId(bytes(32)))


def test_a_plan_that_could_not_be_applied_is_not_signed() -> None:
    before, after = NET.configuration, plan_of().recovery.configuration
    for plan in (
        Plan(
            NET.network, replace(before, members=before.members[1:]), plan_of().recovery
        ),  # hides that one leaves
        plan_of(lost=(NodeId(bytes(32)),)),
        plan_of(configuration=replace(after, members=())),
        plan_of(configuration=replace(after, number=7)),
    ):
        with pytest.raises(Refused, match="does not lead from the configuration"):
            consent_of(plan, 2)


def test_a_plan_says_who_leaves_who_may_sign_and_what_is_left() -> None:
    lost = NET.configuration.signers[1]
    document = plan_document(plan_of(lost=(lost,)))
    names = sorted(member.name for member in NET.configuration.members)
    assert document["leaving"] == names
    assert document["lost"] == [NET.configuration.by_node[lost].name]
    assert document["may_sign"] == sorted(set(names) - set(document["lost"]))
    assert (document["consents_needed"], document["after"]["signers"]) == (3, 3)
