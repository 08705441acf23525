"""What belongs together when it is erased: what another facility added, what a wallet signs for, and versions."""

import json

import pytest
from trio.testing import MockClock

from node.sealed_wallet import SealedWallet
from protocol.errors import Erased, Forbidden, NotFinal, Refused
from protocol.identifiers import Rid
from protocol.ledger_rows import newer_version_key, older_version_key, record_key
from storage.key_value import Batch
from storage.keyspace import STATE
from tests.node.contract_house import bundle
from tests.node.erasing_house import ErasingFacility, erasing_houses
from tests.node.record_house import entries
from tests.node.test_erasure import admit, complete, everywhere, family_of, letter_of

PASSPHRASE = b"correct horse"


def rid_of(record: str) -> Rid:
    return Rid(bytes.fromhex(record))


async def wallet_of(house: ErasingFacility, patient: str) -> SealedWallet:
    prepared = await house.desk.prepare_handover(patient, passphrase=PASSPHRASE)
    await house.desk.complete_handover(str(prepared["handover"]), grant=True)
    wallet = prepared["wallet"]
    assert isinstance(wallet, bytes)
    return SealedWallet(wallet, PASSPHRASE)


async def added_by_the_clinic(hospital: ErasingFacility, clinic: ErasingFacility, patient: str) -> list[str]:
    """Let the clinic add a file of several categories to a patient of the hospital."""
    for name in ("mixed", "labs", "mental-health", "general"):
        await hospital.vaults.writable(hospital.patients.resolve(patient), name)
    await hospital.consent.grant(
        patient=patient, to="clinic", categories=("all",), purposes=("TREAT",), expires_ms=86_400_000, write=True, wallet=None,
    )  # fmt: skip
    await clinic.until("the grants to be opened", lambda: len(list(clinic.held)) >= 4)
    await clinic.until("the watcher", lambda: bool(clinic.patients.all()))
    theirs = clinic.patients.all()[0].handle
    return [entry["record"] for entry in entries(await clinic.add(bundle(), patient=theirs))]


async def test_what_another_facility_added_is_found_by_its_manifests_and_the_patient_sees_it(
    autojump_clock: MockClock,
) -> None:
    async with erasing_houses() as houses:
        hospital, clinic, _ = houses
        patient = await admit(hospital)
        own = await letter_of(hospital, patient)
        records = await added_by_the_clinic(hospital, clinic, patient)
        assert len(records) >= 3
        await everywhere(houses, records)

        answer = await hospital.erase(records[1])

        assert {entry["record"] for entry in entries(answer)} == set(records)
        assert answer["pending"] == []
        assert [house.holds(record) for house in houses for record in records] == [set()] * 3 * len(records)
        assert hospital.store.erasure(rid_of(own)) is None
        log = await hospital.audit.log(patient)
        looked = {entry["record"] for entry in log["entries"] if entry["purpose"] == "PATRQT"}  # type: ignore[attr-defined]  # JSON
        assert set(records) <= looked
        assert not any(entry["duplicate"] for entry in entries(await clinic.add(
            bundle(), patient=clinic.patients.all()[0].handle
        )))  # fmt: skip


@pytest.mark.parametrize("where", [0, 1])
async def test_after_a_handover_the_wallet_erases_at_any_facility(
    autojump_clock: MockClock, where: int
) -> None:
    async with erasing_houses() as houses:
        hospital = houses[0]
        patient, records = await family_of(hospital)
        await everywhere(houses, records)
        wallet = await wallet_of(hospital, patient)
        with pytest.raises(Forbidden, match="--wallet"):
            await hospital.erase(records[0])

        answer = await houses[where].erase(records[0], wallet=wallet)

        assert {entry["record"] for entry in entries(answer)} == set(records)
        assert (answer["erased"], answer["pending"]) == (True, [])
        assert [house.holds(record) for house in houses for record in records] == [set()] * 3 * len(records)
        with pytest.raises(Erased):
            await hospital.get(records[1])


async def test_a_record_erased_elsewhere_can_be_asked_about_with_the_wallet(
    autojump_clock: MockClock,
) -> None:
    async with erasing_houses() as houses:
        hospital, clinic, _ = houses
        patient = await admit(hospital)
        record = await letter_of(hospital, patient)
        wallet = await wallet_of(hospital, patient)
        await hospital.erase(record, wallet=wallet)

        answer = await clinic.erase(record, wallet=wallet)

        assert (answer["erased"], len(answer["attestations"]), answer["pending"]) == (True, 3, [])
        assert complete(clinic, record)


async def test_versions_go_together_and_only_spares_the_newer(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital = houses[0]
        patient = await admit(hospital)
        older, newer, other = [
            await letter_of(hospital, patient, data) for data in (b"old text", b"corrected text", b"another")
        ]
        superseded(hospital, older, newer)

        for record in (older, newer):
            listed = await hospital.erasures.erase(record)
            assert entries(listed)[0]["record"] == record
            assert {entry["record"] for entry in entries(listed)} == {older, newer}
        await hospital.erase(older, only=True)

        assert (await hospital.get(newer))[1] == b"corrected text"
        assert {entry["record"] for entry in entries(await hospital.erase(newer))} == {newer}
        assert (await hospital.get(other))[1] == b"another"


def superseded(house: ErasingFacility, older: str, newer: str) -> None:
    """Leave the rows that a RecordCommit with `supersedes` leaves (tests/protocol/test_record_erase.py)."""
    batch = Batch()
    batch.put(STATE + newer_version_key(rid_of(older), rid_of(newer)), b"")
    batch.put(STATE + older_version_key(rid_of(newer)), rid_of(older))
    house.member.rows.write(batch, sync=True)


async def test_too_short_a_prefix_names_nothing(autojump_clock: MockClock) -> None:
    async with erasing_houses(voters=1) as (hospital,):
        record = await letter_of(hospital, await admit(hospital))

        with pytest.raises(Forbidden, match="no such record"):
            await hospital.erasures.erase(record[:3])
        assert hospital.store.erasure(rid_of(record)) is None


async def test_what_the_ledger_refused_is_forgotten_where_it_was_added(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital, _, laboratory = houses
        patient = await admit(hospital)
        await hospital.vaults.writable(hospital.patients.resolve(patient), "labs")
        grant = await hospital.consent.grant(
            patient=patient, to="laboratory", categories=("labs",), purposes=("TREAT",), expires_ms=86_400_000, write=True, wallet=None,
        )  # fmt: skip
        await laboratory.until("the grant to be opened", lambda: bool(laboratory.patients.all()))
        theirs = laboratory.patients.all()[0].handle
        laboratory.leaves()
        with pytest.raises(NotFinal) as queued:
            await laboratory.add(b"too late", patient=theirs, category="labs")
        (record,) = queued.value.ids
        await hospital.consent.revoke(str(grant["grant"]))
        await laboratory.catch_up()
        laboratory.comes_back()
        await laboratory.until(
            "it to be refused", lambda: laboratory.report.state(rid_of(record)) == "refused"
        )
        assert list(laboratory.chunks.cids())

        answer = await laboratory.erase(record)

        assert [entry["state"] for entry in entries(answer)] == ["erased"]
        assert (answer["attestations"], answer["pending"]) == ([], [])
        assert laboratory.holds(record) == set()
        assert not list(laboratory.chunks.cids())


async def test_a_sibling_that_the_ledger_has_not_come_to_yet_is_not_taken_for_refused(
    autojump_clock: MockClock,
) -> None:
    async with erasing_houses() as houses:
        hospital = houses[0]
        _, records = await family_of(hospital)
        await everywhere(houses, records)
        # As after `--rebuild ledger`: own notes are there, and the ledger catches up with what they are of.
        batch = Batch()
        batch.delete(STATE + record_key(rid_of(records[1])))
        hospital.member.rows.write(batch, sync=True)

        with pytest.raises(Refused, match="not final yet"):
            await hospital.erase(records[0])

        assert "note" in hospital.holds(records[1])


@pytest.mark.parametrize("where", [0, 1])
async def test_the_copy_for_emergencies_of_a_document_goes_with_it(
    autojump_clock: MockClock, where: int
) -> None:
    """A file of one category is a document, not an original with views; what matters in an emergency is copied all the same."""
    async with erasing_houses() as houses:
        hospital = houses[0]
        patient = await admit(hospital)
        added = entries(await hospital.add(allergies(), patient=patient))
        assert [entry["kind"] for entry in added] == ["document", "view"]
        document, copy = [str(entry["record"]) for entry in added]
        await everywhere(houses, [document, copy])
        wallet = await wallet_of(hospital, patient)

        with pytest.raises(Refused):
            await houses[where].erasures.erase(document, wallet=wallet, only=True)
        answer = await houses[where].erase(document, wallet=wallet)

        assert {entry["record"] for entry in entries(answer)} == {document, copy}
        assert [house.holds(copy) for house in houses] == [set()] * 3


def allergies() -> bytes:
    """Return a Bundle of one category with something for emergencies."""
    subject = {"reference": "Patient/p"}
    person = {
        "resourceType": "Patient",
        "id": "p",
        "identifier": [{"system": "urn:example", "value": "contract"}],
        "birthDate": "1980-01-01",
        "name": [{"family": "Contract", "given": ["Cora"]}],
    }
    allergy = {
        "resourceType": "AllergyIntolerance",
        "patient": subject,
        "clinicalStatus": {"coding": [{"code": "active"}]},
        "code": {"text": "peanut"},
    }
    entries_of = [{"resource": resource} for resource in (person, allergy)]
    return json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries_of}).encode()
