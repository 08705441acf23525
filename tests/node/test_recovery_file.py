import json
import random
from dataclasses import replace

import pytest

from node.recovery_file import Collected, Consent, Plan, file_text, parse_file
from node.recovery_plan import Custodian, checked, plan_digest, plan_document
from protocol.configuration import Configuration
from protocol.errors import Invalid, Refused
from protocol.identifiers import NetworkId, NodeId, PublicKey
from protocol.passphrase import Hardness
from protocol.recovery import check_consents, check_recovery
from protocol.signing import SigningKey, sha256
from storage.key_value import KeyValue
from storage.keystore import Keystore
from storage.memory import MemoryStore
from tests.protocol.test_recovery import Consortium

NET = Consortium(4)
BASE = NET.chain(3)[-1].header
ROTATED = SigningKey(sha256(b"rotated"))


def plan_of(**changes: object) -> Plan:
    return Plan(NET.network, NET.configuration, NET.recovery(BASE, **changes), None)


def custodian_of(member: int, rows: KeyValue | None = None) -> Custodian:
    """Return the custodian of an organisation; over `rows` that one has used before it is the same one after a restart."""
    entropy = random.Random(member).randbytes
    if rows is None or next(iter(rows.scan(b"", b"\xff")), None) is None:
        store = Keystore.create(rows or MemoryStore(), "x", entropy, hardness=Hardness(1, 8192))
    else:
        store = Keystore.unlock(rows, "x", entropy)

    def governance_key(configuration: Configuration) -> SigningKey:
        keys = {key.public: key for key in (NET.governance[member], ROTATED)}
        return keys[configuration.by_node[NET.configuration.signers[member]].governance]

    return Custodian(store, governance_key, NET.configuration.signers[member])


def consent_of(plan: Plan, member: int) -> Consent:
    return parse_file(custodian_of(member).consent(plan)["consent"], Consent, NET.network)


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
    signed, earlier = checked(plan, consents)
    check_recovery(signed, NET.network, NET.configuration)
    nodes = {one.signature.node for one in consents if one.signature is not None}
    assert ([one.node for one in signed.signatures], earlier) == (sorted(nodes), ())
    with pytest.raises(Invalid, match="needs the consent of 3"):
        checked(plan, consents[:2])


def crossing(change: Configuration) -> Plan:
    """Return a plan above a change of which nobody has a certificate."""
    after = replace(change, members=change.members[1:], number=change.number + 1)
    return Plan(
        NET.network,
        change,
        NET.recovery(BASE, before=change.digest, configuration=after),
        NET.configuration,
    )


def test_where_a_change_is_not_certified_those_of_either_configuration_consent_with_their_keys_of_each() -> (
    None
):
    before = NET.configuration
    changed = replace(before.members[0], governance=PublicKey(ROTATED.public))
    plan = crossing(replace(before, members=(changed, *before.members[1:]), number=1))
    assert plan_document(plan)["earlier"]["consents_needed"] == 3
    consents = [consent_of(plan, member) for member in (0, 1, 2)]
    signed, earlier = checked(plan, consents)
    check_recovery(signed, NET.network, plan.before)
    check_consents(plan.recovery, earlier, NET.network, before)
    assert [one.node for one in signed.signatures] == [one.node for one in earlier]
    assert signed.signatures != earlier
    with pytest.raises(Invalid, match="does not verify"):
        checked(plan, [replace(one, earlier=one.signature) for one in consents])
    with pytest.raises(Invalid, match="needs the consent of 3 organisations and has 0"):
        checked(plan, [replace(one, earlier=None) for one in consents])


def test_who_has_left_by_a_change_that_is_not_certified_still_has_its_say_about_it() -> None:
    before = NET.configuration
    plan = crossing(replace(before, members=before.members[:-1], number=1))
    given = consent_of(plan, 3)
    assert (given.signature, given.earlier is not None) == (None, True)


# --- the custodian ------------------------------------------------------------------------------------------------


def test_a_custodian_consents_to_one_plan_of_an_epoch_also_after_a_restart() -> None:
    rows = MemoryStore()
    first, other = plan_of(), plan_of(reason="another story")
    given = custodian_of(0, rows).consent(first)
    assert given["digest"] == plan_digest(first.recovery).hex()

    assert custodian_of(0, rows).consent(first) == given
    with pytest.raises(Refused, match=f"another plan for epoch 1, of digest {given['digest']}"):
        custodian_of(0, rows).consent(other)
    custodian_of(0, rows).consent(plan_of(epoch=2))


def test_another_plan_is_signed_only_for_whoever_names_the_first() -> None:
    rows = MemoryStore()
    first, other = plan_of(), plan_of(reason="another story")
    digest = custodian_of(0, rows).consent(first)["digest"]
    for name in ("", digest[:8], plan_digest(other.recovery).hex()):
        with pytest.raises(Refused, match="--instead-of"):
            custodian_of(0, rows).consent(other, instead_of=name)

    custodian_of(0, rows).consent(other, instead_of=digest[:16].upper())

    with pytest.raises(Refused, match=plan_digest(other.recovery).hex()):
        custodian_of(0, rows).consent(first)
    with pytest.raises(Refused, match="would not count"):  # what was refused is not remembered
        custodian_of(1).consent(plan_of(lost=(NET.configuration.signers[1],)))


def test_who_is_declared_lost_or_has_no_say_does_not_sign() -> None:
    lost = NET.configuration.signers[1]
    with pytest.raises(Refused, match="would not count"):
        consent_of(plan_of(lost=(lost,)), 1)
    stranger = Keystore.create(MemoryStore(), "x", random.Random(9).randbytes, hardness=Hardness(1, 8192))
    with pytest.raises(Refused, match="would not count"):
        Custodian(stranger, lambda _: NET.governance[0], NodeId(bytes(32))).consent(plan_of())


def test_a_plan_that_could_not_be_applied_is_not_signed() -> None:
    before, after = NET.configuration, plan_of().recovery.configuration
    for plan in (
        Plan(
            NET.network, replace(before, members=before.members[1:]), plan_of().recovery, None
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
