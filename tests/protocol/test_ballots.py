"""Ballots as they change ledger state: who is heard, what decides, what a configuration block clears (ledger.md 7.1)."""

import pytest

from protocol import ballots, codec, governance
from protocol.ballots import Governance, Proposal
from protocol.configuration import Card, Configuration
from protocol.governance import (
    Action,
    AddMember,
    Ballot,
    ChangeRole,
    Propose,
    RemoveMember,
    RotateKeys,
    SetMinB,
    Withdraw,
)
from protocol.identifiers import Digest, NodeId, Txid
from protocol.ledger_rows import ACCEPTED
from tests.protocol.ledgers import (
    DAY,
    Ledger,
    configuration,
    grant_to,
    key,
    member,
    read_of,
    record_commit,
    vault_open,
)

JOIN = AddMember(Card.make(member("d", "observer"), key("d")), "observer")


def node(name: str) -> NodeId:
    return NodeId(key(name).public)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(configuration("hospital", "clinic", "lab", observers=("insurer",)))


def propose(
    ledger: Ledger, action: Action = JOIN, by: str = "hospital", *, risk: bool = False, lasts_ms: int = DAY
) -> Propose:
    return Propose(node(by), action, ledger.now_ms + lasts_ms, ledger.configuration.digest, risk, ledger.soon)


def vote(
    ledger: Ledger, txid: Txid, by: str, *, yes: bool = True, risk: bool = False, signed_by: str = ""
) -> str:
    return ledger.verdict(Ballot(node(by), txid, yes, risk, ledger.soon), signed_by or by)


def proposed(ledger: Ledger, body: Propose, by: str = "hospital") -> Txid:
    assert ledger.verdict(body, by) == ACCEPTED
    return ledger.txid(body)


def governance_of(ledger: Ledger) -> Governance:
    row = ledger.rows.get(ballots.GOVERNANCE_KEY)
    return codec.decode(row, Governance) if row is not None else ballots.EMPTY


def proposal_of(ledger: Ledger, txid: Txid) -> Proposal:
    return codec.decode(ledger.rows[ballots.proposal_key(txid)], Proposal)


def decided(ledger: Ledger) -> tuple[Txid, Configuration]:
    txid = proposed(ledger, propose(ledger))
    assert vote(ledger, txid, "clinic") == vote(ledger, txid, "lab") == ACCEPTED
    pending = governance_of(ledger).pending
    assert pending is not None
    return txid, pending


def test_the_deciding_ballot_only_sets_what_is_pending(ledger: Ledger) -> None:
    txid = proposed(ledger, propose(ledger))
    assert vote(ledger, txid, "clinic") == ACCEPTED
    assert governance_of(ledger).pending is None  # two of three are not more than two thirds
    assert vote(ledger, txid, "lab") == ACCEPTED
    pending = governance_of(ledger).pending
    assert pending == governance.after(ledger.genesis, JOIN, ledger.network)
    assert proposal_of(ledger, txid).state == ballots.ACCEPTED
    assert ledger.configuration == ledger.genesis


def test_a_configuration_block_clears_what_is_pending_and_makes_open_proposals_void(ledger: Ledger) -> None:
    other = proposed(ledger, propose(ledger, ChangeRole(node("insurer"), "learner")))
    txid, pending = decided(ledger)
    ledger.commit(configuration=pending)
    assert governance_of(ledger) == ballots.EMPTY
    assert proposal_of(ledger, txid).state == ballots.IN_FORCE
    assert proposal_of(ledger, other).state == ballots.VOID
    row = ledger.rows[ballots.configuration_key(ledger.chain[-1].height)]
    assert codec.decode(row, Configuration) == pending
    assert "is void" in vote(ledger, other, "clinic")


def test_a_proposal_for_a_configuration_that_is_gone_is_refused(ledger: Ledger) -> None:
    stale = propose(ledger, ChangeRole(node("insurer"), "learner"))
    ledger.commit(configuration=decided(ledger)[1])
    assert "has changed since" in ledger.verdict(stale, "hospital")


def test_a_change_that_nobody_could_bring_into_force_gives_way_when_it_expires(ledger: Ledger) -> None:
    txid, _ = decided(ledger)
    assert "another change is decided" in ledger.verdict(propose(ledger, by="clinic"), "clinic")
    ledger.now_ms += 2 * DAY
    second = proposed(ledger, propose(ledger, by="clinic"), "clinic")
    assert governance_of(ledger).pending is None
    assert (proposal_of(ledger, txid).state, proposal_of(ledger, second).state) == ("expired", "open")


def test_enough_noes_close_a_proposal(ledger: Ledger) -> None:
    txid = proposed(ledger, propose(ledger))
    assert vote(ledger, txid, "clinic", yes=False) == ACCEPTED
    assert proposal_of(ledger, txid).state == "rejected"
    assert "is rejected" in vote(ledger, txid, "lab")


def test_an_organisation_may_change_its_mind_and_counts_once(ledger: Ledger) -> None:
    four = Ledger(configuration("hospital", "clinic", "lab", "house"))
    txid = proposed(four, propose(four))
    assert vote(four, txid, "clinic") == vote(four, txid, "clinic", yes=False) == ACCEPTED
    assert (proposal_of(four, txid).said(True), proposal_of(four, txid).said(False)) == (1, 1)
    assert vote(four, txid, "clinic") == vote(four, txid, "lab") == ACCEPTED
    assert governance_of(four).pending is not None


def test_who_is_to_leave_has_no_ballot_and_the_others_suffice(ledger: Ledger) -> None:
    removal = propose(ledger, RemoveMember(node("lab")), risk=True)
    txid = proposed(ledger, removal)
    assert "not to leave" in vote(ledger, txid, "lab", yes=False)
    assert vote(ledger, txid, "clinic", risk=True) == ACCEPTED
    pending = governance_of(ledger).pending
    assert pending is not None
    assert node("lab") not in pending.by_node


def test_a_yes_to_what_costs_safety_accepts_the_risk_or_does_not_count(ledger: Ledger) -> None:
    removal = RemoveMember(node("lab"))
    assert "risk accepted" in ledger.verdict(propose(ledger, removal), "hospital")
    txid = proposed(ledger, propose(ledger, removal, risk=True))
    assert "risk accepted" in vote(ledger, txid, "clinic")
    assert vote(ledger, txid, "clinic", yes=False) == ACCEPTED


def test_a_member_may_propose_its_own_leaving_and_nothing_else(ledger: Ledger) -> None:
    assert "not about themselves" in ledger.verdict(propose(ledger, by="insurer"), "insurer")
    txid = proposed(ledger, propose(ledger, RemoveMember(node("insurer")), by="insurer"), "insurer")
    assert proposal_of(ledger, txid).ballots == ()
    assert "have a ballot" in vote(ledger, txid, "insurer")


def test_only_the_named_organisations_governance_key_is_heard(ledger: Ledger) -> None:
    txid = proposed(ledger, propose(ledger))
    assert "wrong keys" in vote(ledger, txid, "clinic", signed_by="lab")
    assert "wrong keys" in vote(ledger, txid, "stranger")
    assert "wrong keys" in ledger.verdict(Withdraw(node("hospital"), txid, ledger.soon), "clinic")


def test_a_proposer_takes_back_also_what_is_decided(ledger: Ledger) -> None:
    txid, _ = decided(ledger)
    assert "no proposal of that member" in ledger.verdict(
        Withdraw(node("clinic"), txid, ledger.soon), "clinic"
    )
    assert ledger.verdict(Withdraw(node("hospital"), txid, ledger.soon), "hospital") == ACCEPTED
    assert governance_of(ledger).pending is None
    assert proposal_of(ledger, txid).state == "withdrawn"


def test_a_proposal_ends_within_its_time(ledger: Ledger) -> None:
    assert "within 90 days" in ledger.verdict(propose(ledger, lasts_ms=91 * DAY), "hospital")
    txid = proposed(ledger, propose(ledger, lasts_ms=DAY))
    ledger.now_ms += 2 * DAY
    assert "expired" in vote(ledger, txid, "clinic")


def test_ballots_on_what_was_never_proposed_are_refused(ledger: Ledger) -> None:
    assert "unknown proposal" in vote(ledger, Txid(Digest(bytes(32))), "clinic")


def test_more_liars_to_tolerate_are_decided_by_ballot_as_far_as_a_quorum_is_left(ledger: Ledger) -> None:
    assert "so many liars" in ledger.verdict(propose(ledger, SetMinB(3), risk=True), "hospital")
    txid = proposed(ledger, propose(ledger, SetMinB(1), risk=True))
    assert vote(ledger, txid, "clinic", risk=True) == vote(ledger, txid, "lab", risk=True) == ACCEPTED
    pending = governance_of(ledger).pending
    assert pending is not None
    assert (pending.liars_tolerated, pending.certificate_quorum) == (1, 3)


def new_node_key(ledger: Ledger, old: str, new: str) -> RotateKeys:
    """Return the change of the node key of one name to that of another."""
    card = Card.make(member(new, "observer"), key(new))
    form = governance.endorsement_form(ledger.network, node(old), card)
    return RotateKeys(node(old), card, key(old).sign(form))


def test_what_a_facility_has_on_the_ledger_stays_its_own_under_a_new_node_key(ledger: Ledger) -> None:
    for body in (vault_open(ledger, custodian="insurer", writers=("insurer",)), vault_open(ledger, "other")):
        custodian = "insurer" if node("insurer") == body.custodian else "hospital"
        signers = ("vault/auth" if custodian == "insurer" else "other/auth", custodian)
        assert ledger.verdict(body, *signers) == ACCEPTED
    assert ledger.verdict(record_commit(ledger, "r1", author="insurer"), "insurer") == ACCEPTED
    assert ledger.verdict(record_commit(ledger, "r2", "other"), "hospital") == ACCEPTED
    grant = grant_to(ledger, "insurer", "other", rights="RW")
    assert ledger.verdict(grant, "other/auth") == ACCEPTED
    gid = ledger.txid(grant)
    change = new_node_key(ledger, "insurer", "insurer2")
    ledger.commit(configuration=governance.after(ledger.configuration, change, ledger.network))

    assert "signed by the wrong keys" in ledger.verdict(
        record_commit(ledger, "r3", author="insurer"), "insurer"
    )
    for vault, record in (("vault", "r4"), ("other", "r5")):
        commit = record_commit(ledger, record, vault, author="insurer2")
        assert ledger.verdict(commit, "insurer2") == ACCEPTED
    assert ledger.verdict(read_of(ledger, "r1", nonce="one"), "vault/auth", "insurer2") == ACCEPTED
    by_grant = read_of(ledger, "r2", gid=gid, actor="insurer/team", vault="other", nonce="two")
    assert ledger.verdict(by_grant, "insurer/team", "insurer2") == ACCEPTED


def test_a_node_key_that_was_given_up_comes_back_to_nobody(ledger: Ledger) -> None:
    change = new_node_key(ledger, "insurer", "insurer2")
    ledger.commit(configuration=governance.after(ledger.configuration, change, ledger.network))
    thief = AddMember(Card.make(member("insurer", "observer"), key("insurer")), "observer")
    assert "given up" in ledger.verdict(propose(ledger, thief), "hospital")
