"""What the ledger says of an erasure: whose word it takes, what it stops, and what it leaves."""

from dataclasses import replace

import pytest

from protocol import codec, ledger_rows
from protocol.identifiers import Rid, Vid
from protocol.ledger_rows import ACCEPTED, Erasure, Record
from protocol.transaction import RecordErase
from tests.protocol.ledgers import (
    Ledger,
    configuration,
    grant_to,
    key,
    named,
    read_of,
    record_commit,
    vault_open,
)

R1 = Rid(named("r1"))


@pytest.fixture
def ledger() -> Ledger:
    """A vault of the hospital with two records."""
    ledger = Ledger(configuration("hospital", "clinic", "lab"))
    assert ledger.verdict(vault_open(ledger), "vault/auth", "hospital") == ACCEPTED
    for rid in ("r1", "r2"):
        assert ledger.verdict(record_commit(ledger, rid), "hospital") == ACCEPTED
    return ledger


def erase(ledger: Ledger, rid: str = "r1", vault: str = "vault") -> RecordErase:
    return RecordErase(Vid(named(vault)), Rid(named(rid)), ledger.soon)


def test_the_auth_key_erases_and_leaves_a_tombstone_beside_the_record(ledger: Ledger) -> None:
    body = erase(ledger)
    (receipt,) = ledger.commit(ledger.sign(body, "vault/auth"))

    tomb = codec.decode(ledger.rows[ledger_rows.erasure_key(R1)], Erasure)
    assert receipt.verdict == ACCEPTED
    assert tomb == Erasure(R1, Vid(named("vault")), receipt.height, receipt.time_ms, ledger.txid(body))
    assert codec.decode(ledger.rows[ledger_rows.record_key(R1)], Record).rid == R1
    assert ledger_rows.vault_record_key(Vid(named("vault")), R1) in ledger.rows


@pytest.mark.parametrize("signer", ["hospital", "clinic", "vault/rec", "thief", "clinic/team"])
def test_nobody_else_erases(ledger: Ledger, signer: str) -> None:
    ledger.verdict(grant_to(ledger, rights="RWG"), "vault/auth")

    assert ledger.verdict(erase(ledger), signer) == "refused: signed by the wrong keys"
    assert ledger_rows.erasure_key(R1) not in ledger.rows


def test_a_refusal_for_wrong_keys_does_not_stand_in_the_way_of_the_right_ones(ledger: Ledger) -> None:
    body = erase(ledger)
    ledger.verdict(body, "thief")

    assert ledger.verdict(body, "vault/auth") == ACCEPTED


def test_a_record_is_erased_once_and_from_its_own_vault(ledger: Ledger) -> None:
    ledger.verdict(vault_open(ledger, "other"), "other/auth", "hospital")

    assert ledger.verdict(erase(ledger, vault="other"), "other/auth") == "refused: unknown record"
    assert ledger.verdict(erase(ledger, "none"), "vault/auth") == "refused: unknown record"
    assert ledger.verdict(erase(ledger), "vault/auth") == ACCEPTED
    again = replace(erase(ledger), valid_until_ms=ledger.soon + 1)
    assert ledger.verdict(again, "vault/auth") == "refused: record erased"


def test_nobody_reads_what_is_erased_and_everybody_the_rest(ledger: Ledger) -> None:
    grant = grant_to(ledger)
    ledger.verdict(grant, "vault/auth")
    ledger.verdict(erase(ledger), "vault/auth")

    by_grant = read_of(ledger, "r1", gid=ledger.txid(grant), actor="clinic/team", nonce="a")
    assert ledger.verdict(by_grant, "clinic/team", "clinic") == "refused: record erased"
    assert (
        ledger.verdict(read_of(ledger, "r1", nonce="b"), "vault/auth", "hospital") == "refused: record erased"
    )
    assert (
        ledger.verdict(read_of(ledger, "r2", "r1", nonce="c"), "vault/auth", "hospital")
        == "refused: record erased"
    )
    assert ledger.verdict(read_of(ledger, "r2", nonce="d"), "vault/auth", "hospital") == ACCEPTED


def test_a_read_in_the_same_block_counts_by_its_place(ledger: Ledger) -> None:
    first = ledger.sign(read_of(ledger, "r1", nonce="a"), "vault/auth", "hospital")
    last = ledger.sign(read_of(ledger, "r1", nonce="b"), "vault/auth", "hospital")

    receipts = ledger.commit(first, ledger.sign(erase(ledger), "vault/auth"), last)

    assert [receipt.verdict for receipt in receipts] == [ACCEPTED, ACCEPTED, "refused: record erased"]


def test_the_id_of_an_erased_record_is_used_up(ledger: Ledger) -> None:
    ledger.verdict(erase(ledger), "vault/auth")
    again = replace(record_commit(ledger, "r1"), valid_until_ms=ledger.soon + 1)

    assert ledger.verdict(again, "hospital") == "refused: record exists"


def test_versions_are_found_in_both_directions(ledger: Ledger) -> None:
    newer = replace(record_commit(ledger, "r3"), supersedes=R1)

    assert ledger.verdict(newer, "hospital") == ACCEPTED

    assert ledger.rows[ledger_rows.older_version_key(newer.rid)] == R1
    assert ledger_rows.newer_version_key(R1, newer.rid) in ledger.rows


def test_an_erasure_is_an_event_of_its_vault(ledger: Ledger) -> None:
    body = erase(ledger)
    ledger.verdict(body, "vault/auth")
    prefix = ledger_rows.event_key(Vid(named("vault")), 0)[:-8]
    events = [value for row, value in sorted(ledger.rows.items()) if row.startswith(prefix)]

    assert events[-1] == ledger.txid(body)
    assert key("vault/auth").public not in events
