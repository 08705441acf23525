from dataclasses import replace

import pytest

from protocol import codec, ledger_rows, transaction
from protocol.errors import Invalid
from protocol.identifiers import ZERO, Digest, NodeId, PublicKey, Rid, Txid, Vid
from protocol.ledger_rows import ACCEPTED, Vault
from protocol.transaction import CustodyTransfer, EpochRotate, Revoke
from tests.protocol.ledgers import (
    DAY,
    Ledger,
    configuration,
    grant_to,
    key,
    named,
    read_of,
    record_commit,
    vault_open,
)


@pytest.fixture
def ledger() -> Ledger:
    """A consortium of three voters and an observer, with one vault and one record."""
    ledger = Ledger(configuration("hospital", "clinic", "lab", observers=("payer",)))
    assert ledger.verdict(vault_open(ledger), "vault/auth", "hospital") == ACCEPTED
    assert ledger.verdict(record_commit(ledger, "r1"), "hospital") == ACCEPTED
    return ledger


def granted(ledger: Ledger, facility: str = "clinic", **changes: int | str) -> Txid:
    grant = grant_to(ledger, facility, **changes)  # type: ignore[arg-type]
    assert ledger.verdict(grant, "vault/auth") == ACCEPTED
    return ledger.txid(grant)


def test_a_vault_opens_once(ledger: Ledger) -> None:
    again = replace(vault_open(ledger), auth_pk=key("thief").public)

    assert ledger.verdict(again, "thief", "hospital") == "refused: vault exists"


@pytest.mark.parametrize("signers", [("thief", "hospital"), ("other/auth", "stranger")])
def test_a_vault_opens_with_its_auth_key_and_a_member(ledger: Ledger, signers: tuple[str, str]) -> None:
    assert ledger.verdict(vault_open(ledger, "other"), *signers) == "refused: signed by the wrong keys"


def test_nobody_becomes_custodian_without_signing(ledger: Ledger) -> None:
    assert (
        ledger.verdict(vault_open(ledger, "other"), "other/auth", "clinic")
        == "refused: the custodian did not sign"
    )


def test_break_glass_needs_the_second_leg(ledger: Ledger) -> None:
    with pytest.raises(Invalid, match="break-glass"):
        transaction.check_schema(replace(vault_open(ledger, "other"), flags=1))


def test_a_transaction_counts_once(ledger: Ledger) -> None:
    signed = ledger.sign(grant_to(ledger), "vault/auth")

    first, second = ledger.commit(signed)[0], ledger.commit(signed)[0]

    assert (first.verdict, second.verdict) == (ACCEPTED, "refused: already in the ledger")


def test_the_first_receipt_of_a_replayed_transaction_stands(ledger: Ledger) -> None:
    signed = ledger.sign(grant_to(ledger), "vault/auth")
    first = ledger.commit(signed)[0]

    ledger.commit(signed)

    assert codec.decode(ledger.rows[ledger_rows.receipt_key(first.txid)], ledger_rows.Receipt) == first


def test_an_expired_transaction_is_refused(ledger: Ledger) -> None:
    late = replace(grant_to(ledger), valid_until_ms=ledger.now_ms - 1)

    assert ledger.verdict(late, "vault/auth") == "refused: expired"


def test_a_transaction_is_valid_for_a_day_at_most(ledger: Ledger) -> None:
    long = replace(grant_to(ledger), valid_until_ms=ledger.now_ms + 2 * DAY)

    assert ledger.verdict(long, "vault/auth") == "refused: valid for longer than a day"


def test_a_stranger_to_the_vault_adds_no_record(ledger: Ledger) -> None:
    foreign = record_commit(ledger, "r2", author="clinic")

    assert ledger.verdict(foreign, "clinic") == "refused: the author may not write to this vault"


def test_a_grant_to_write_lets_a_facility_add_records_until_it_is_revoked(ledger: Ledger) -> None:
    gid = granted(ledger, rights="RW")
    assert ledger.verdict(record_commit(ledger, "r2", author="clinic"), "clinic") == ACCEPTED

    ledger.verdict(Revoke(Vid(named("vault")), gid, ledger.soon), "vault/auth")

    assert "may not write" in ledger.verdict(record_commit(ledger, "r3", author="clinic"), "clinic")


def test_a_record_is_added_under_its_authors_key_only(ledger: Ledger) -> None:
    assert ledger.verdict(record_commit(ledger, "r2"), "clinic") == "refused: signed by the wrong keys"


def test_a_record_id_is_used_once(ledger: Ledger) -> None:
    again = replace(record_commit(ledger, "r1"), valid_until_ms=ledger.soon + 1)

    assert ledger.verdict(again, "hospital") == "refused: record exists"


@pytest.mark.parametrize("receipts_by", [("hospital",), ("hospital", "payer")])
def test_a_record_needs_receipts_of_a_quorum_of_storing_members(
    ledger: Ledger, receipts_by: tuple[str, ...]
) -> None:
    scarce = record_commit(ledger, "r2", receipts_by=receipts_by)

    assert ledger.verdict(scarce, "hospital") == "refused: receipts stale"


def test_a_forged_receipt_never_enters_a_block(ledger: Ledger) -> None:
    genuine = record_commit(ledger, "r2")
    forged = replace(
        genuine, receipts=(genuine.receipts[0], replace(genuine.receipts[1], signature=bytes(64)))
    )

    with pytest.raises(Invalid, match="receipt"):
        transaction.check(codec.encode(ledger.sign(forged, "hospital")), ledger.network)


def test_a_receipt_counted_twice_never_enters_a_block(ledger: Ledger) -> None:
    one = record_commit(ledger, "r2").receipts[0]

    with pytest.raises(Invalid, match="distinct"):
        transaction.check_schema(replace(record_commit(ledger, "r2"), receipts=(one, one)))


def test_only_the_auth_key_grants(ledger: Ledger) -> None:
    for signer in ("hospital", "clinic", "vault/rec", "thief"):
        assert ledger.verdict(grant_to(ledger), signer) == "refused: signed by the wrong keys"


def test_a_grant_to_a_stranger_is_refused(ledger: Ledger) -> None:
    assert ledger.verdict(grant_to(ledger, "stranger"), "vault/auth") == "refused: unknown facility"


def test_a_grantee_reads_what_it_was_granted(ledger: Ledger) -> None:
    gid = granted(ledger)

    assert (
        ledger.verdict(read_of(ledger, "r1", gid=gid, actor="clinic/team"), "clinic/team", "clinic")
        == ACCEPTED
    )


def test_the_owner_reads_with_the_custodians_signature_only(ledger: Ledger) -> None:
    assert (
        ledger.verdict(read_of(ledger, "r1", nonce="a"), "vault/auth", "clinic") == "refused: not the owner"
    )
    assert ledger.verdict(read_of(ledger, "r1", nonce="b"), "vault/auth", "hospital") == ACCEPTED


@pytest.mark.parametrize(
    ("changes", "signers", "reason"),
    [
        ({"actor": "lab/team"}, ("lab/team", "lab"), "the grant is for somebody else"),
        ({"actor": "clinic/team"}, ("clinic/team", "lab"), "the grant is for somebody else"),
        ({"actor": "clinic/team"}, ("lab/team", "clinic"), "signed by the wrong keys"),
        ({"actor": "clinic/team"}, ("clinic/team", "stranger"), "signed by the wrong keys"),
        ({"actor": "clinic/team", "purpose": "HRESCH"}, ("clinic/team", "clinic"), "not for this purpose"),
        ({"actor": "clinic/team", "vault": "other"}, ("clinic/team", "clinic"), "unknown vault"),
    ],
)
def test_nobody_else_reads_by_a_grant(
    ledger: Ledger, changes: dict[str, str], signers: tuple[str, str], reason: str
) -> None:
    read = read_of(ledger, "r1", gid=granted(ledger), **changes)

    assert ledger.verdict(read, *signers) == f"refused: {reason}"


def test_a_grant_for_one_vault_opens_no_record_of_another(ledger: Ledger) -> None:
    ledger.verdict(vault_open(ledger, "other"), "other/auth", "hospital")
    ledger.verdict(record_commit(ledger, "secret", "other"), "hospital")
    gid = granted(ledger)

    same_vault = read_of(ledger, "secret", gid=gid, actor="clinic/team", nonce="a")
    other_vault = read_of(ledger, "secret", gid=gid, actor="clinic/team", vault="other", nonce="b")

    assert ledger.verdict(same_vault, "clinic/team", "clinic") == "refused: unknown record"
    assert ledger.verdict(other_vault, "clinic/team", "clinic") == "refused: no live grant"


def test_a_revoked_grant_reads_nothing(ledger: Ledger) -> None:
    gid = granted(ledger)
    assert ledger.verdict(Revoke(Vid(named("vault")), gid, ledger.soon), "vault/auth") == ACCEPTED

    read = read_of(ledger, "r1", gid=gid, actor="clinic/team")

    assert ledger.verdict(read, "clinic/team", "clinic") == "refused: no live grant"


def test_the_recovery_key_revokes_and_a_stranger_does_not(ledger: Ledger) -> None:
    gid = granted(ledger)

    assert "wrong keys" in ledger.verdict(Revoke(Vid(named("vault")), gid, ledger.soon), "clinic")
    assert ledger.verdict(Revoke(Vid(named("vault")), gid, ledger.soon + 1), "vault/rec") == ACCEPTED


def test_a_grant_of_another_vault_is_not_revoked(ledger: Ledger) -> None:
    gid = granted(ledger)
    ledger.verdict(vault_open(ledger, "other"), "other/auth", "hospital")

    assert (
        ledger.verdict(Revoke(Vid(named("other")), gid, ledger.soon), "other/auth")
        == "refused: unknown grant"
    )


def test_an_expired_grant_reads_nothing(ledger: Ledger) -> None:
    gid = granted(ledger, exp_ms=60_000)
    ledger.now_ms += 120_000

    assert (
        ledger.verdict(read_of(ledger, "r1", gid=gid, actor="clinic/team"), "clinic/team", "clinic")
        == "refused: no live grant"
    )


def test_a_grant_ends_after_its_reads_are_used(ledger: Ledger) -> None:
    gid = granted(ledger, max_reads=1)
    verdicts = [
        ledger.verdict(
            read_of(ledger, "r1", gid=gid, actor="clinic/team", nonce=nonce), "clinic/team", "clinic"
        )
        for nonce in ("a", "b")
    ]

    assert verdicts == [ACCEPTED, "refused: all reads used"]


def test_a_grant_for_a_period_reads_no_later_record(ledger: Ledger) -> None:
    gid = granted(ledger, rec_to=ledger.now_ms - 10 * DAY)

    read = read_of(ledger, "r1", gid=gid, actor="clinic/team")

    assert ledger.verdict(read, "clinic/team", "clinic") == "refused: outside the period granted"


def test_a_nonce_is_used_once(ledger: Ledger) -> None:
    ledger.verdict(read_of(ledger, "r1"), "vault/auth", "hospital")
    again = replace(read_of(ledger, "r1"), valid_until_ms=ledger.soon + 5)

    assert ledger.verdict(again, "vault/auth", "hospital") == "refused: nonce used"


def test_an_epoch_rotates_by_one_under_the_auth_key(ledger: Ledger) -> None:
    def rotate(epoch: int, signer: str) -> str:
        body = EpochRotate(
            Vid(named("vault")),
            epoch,
            PublicKey(named("cat1")),
            Digest(named("l")),
            Digest(named("w")),
            ledger.soon,
        )
        return ledger.verdict(body, signer)

    assert rotate(2, "vault/auth") == "refused: epoch stale"
    assert rotate(1, "hospital") == "refused: signed by the wrong keys"
    assert rotate(1, "vault/auth") == ACCEPTED
    assert ledger.verdict(grant_to(ledger), "vault/auth") == "refused: epoch stale"
    assert ledger.verdict(record_commit(ledger, "in-grace", epoch=0), "hospital") == ACCEPTED
    ledger.now_ms += 2 * DAY
    assert ledger.verdict(record_commit(ledger, "too-late", epoch=0), "hospital") == "refused: epoch stale"


def test_a_former_custodian_can_sign_nothing(ledger: Ledger) -> None:
    gid = granted(ledger)
    transfer = CustodyTransfer(
        Vid(named("vault")),
        NodeId(ZERO),
        key("new/auth").public,
        key("new/rec").public,
        PublicKey(named("new/audit")),
        ledger.soon,
    )
    assert ledger.verdict(transfer, "vault/auth", "thief") == "refused: signed by the wrong keys"
    # Seen and submitted by somebody else first, it is not burnt for its owner.
    assert ledger.verdict(transfer, "vault/auth", "new/auth") == ACCEPTED

    assert ledger.verdict(grant_to(ledger, "lab"), "vault/auth") == "refused: signed by the wrong keys"
    for old_key in ("vault/auth", "vault/rec"):
        assert "wrong keys" in ledger.verdict(Revoke(Vid(named("vault")), gid, ledger.soon), old_key)
    assert ledger.verdict(read_of(ledger, "r1"), "vault/auth", "hospital") == "refused: not the owner"
    assert ledger.verdict(grant_to(ledger, "lab"), "new/auth") == ACCEPTED


def test_transactions_of_one_block_see_each_other(ledger: Ledger) -> None:
    opening = ledger.sign(vault_open(ledger, "other"), "other/auth", "hospital")
    record = ledger.sign(record_commit(ledger, "first", "other"), "hospital")

    assert [receipt.verdict for receipt in ledger.commit(opening, record)] == [ACCEPTED, ACCEPTED]


def test_a_refused_transaction_changes_no_row_but_its_receipt(ledger: Ledger) -> None:
    before = dict(ledger.rows)

    receipt = ledger.commit(ledger.sign(grant_to(ledger, "stranger"), "vault/auth"))[0]

    assert ledger.rows == before | {ledger_rows.receipt_key(receipt.txid): codec.encode(receipt)}


def test_a_transaction_signed_by_the_wrong_keys_changes_nothing_at_all(ledger: Ledger) -> None:
    before = dict(ledger.rows)

    ledger.commit(ledger.sign(grant_to(ledger), "thief"))

    assert ledger.rows == before


def test_a_grant_that_begins_later_stays_in_the_vault_when_another_is_given(ledger: Ledger) -> None:
    # A client's clock 300 ms ahead of the leader's was enough; found by checking what clients had read.
    later = replace(grant_to(ledger, "lab", rights="W"), nbf=ledger.now_ms + 60_000)
    assert ledger.verdict(later, "vault/auth") == ACCEPTED
    now = granted(ledger)

    vault = codec.decode(ledger.rows[ledger_rows.vault_key(Vid(named("vault")))], Vault)
    assert vault.grants == (ledger.txid(later), now)
    ledger.now_ms += 60_000
    assert ledger.verdict(record_commit(ledger, "r2", author="lab"), "lab") == ACCEPTED


def test_the_vaults_grants_are_those_that_are_not_over(ledger: Ledger) -> None:
    short, long = granted(ledger, exp_ms=5000), granted(ledger, "lab")
    ledger.now_ms += 10_000
    newest = granted(ledger)

    vault = codec.decode(ledger.rows[ledger_rows.vault_key(Vid(named("vault")))], Vault)

    assert vault.grants == (long, newest)
    assert short not in vault.grants


def test_a_record_supersedes_one_of_its_own_vault_only(ledger: Ledger) -> None:
    newer = replace(record_commit(ledger, "r2"), supersedes=Rid(named("r1")))
    stray = replace(record_commit(ledger, "r3"), supersedes=Rid(named("nowhere")))

    assert ledger.verdict(newer, "hospital") == ACCEPTED
    assert ledger.verdict(stray, "hospital") == "refused: supersedes an unknown record"
