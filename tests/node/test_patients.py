import json

import pytest

from node.held_grants import HeldGrants
from node.patients import LocalPatient, Patients
from protocol.errors import Refused
from storage.keystore import Keystore
from tests.node.ledger_double import MemberDouble

SSN = "http://hl7.org/fhir/sid/us-ssn"


def registry(member: MemberDouble) -> Patients:
    return Patients(member.keystore, HeldGrants(member.keystore), member.entropy)


@pytest.fixture
def member() -> MemberDouble:
    return MemberDouble("hospital", "voter", "patients")


@pytest.fixture
def patients(member: MemberDouble) -> Patients:
    return registry(member)


def fhir_patient(*identifiers: tuple[str, str], birth_date: str = "1980-02-03") -> bytes:
    return json.dumps(
        {
            "resourceType": "Patient",
            "identifier": [{"system": system, "value": value} for system, value in identifiers],
            "name": [{"given": ["Ada"], "family": "Sample"}],
            "birthDate": birth_date,
        }
    ).encode()


async def add(
    patients: Patients, *identifiers: tuple[str, str], birth_date: str = "1980-02-03"
) -> LocalPatient:
    answer = await patients.register(fhir_patient(*identifiers, birth_date=birth_date))
    return patients.resolve(str(answer["patient"]))


async def test_a_known_identifier_returns_the_same_patient(patients: Patients) -> None:
    first = await patients.register(fhir_patient((SSN, "1")))
    second = await patients.register(fhir_patient((SSN, "1"), ("urn:mrn", "7")))

    assert first["known"] is False
    assert second == {"patient": first["patient"], "known": True}


async def test_registering_again_teaches_new_identifiers(patients: Patients) -> None:
    await add(patients, (SSN, "1"))
    patient = await add(patients, (SSN, "1"), ("urn:mrn", "7"))

    found = patients.match({("urn:mrn", "7")})

    assert found is not None
    assert found.handle == patient.handle


async def test_two_identifiers_of_two_patients_are_refused(patients: Patients) -> None:
    await add(patients, (SSN, "1"))
    await add(patients, (SSN, "2"))

    with pytest.raises(Refused, match="two patients"):
        await patients.register(fhir_patient((SSN, "1"), (SSN, "2")))


async def test_a_differing_birth_date_is_refused(patients: Patients) -> None:
    await add(patients, (SSN, "1"))

    with pytest.raises(Refused, match="another birth date"):
        await patients.register(fhir_patient((SSN, "1"), birth_date="1981-01-01"))
    with pytest.raises(Refused, match="another birth date"):
        patients.match({(SSN, "1")}, "1981-01-01")


async def test_a_less_precise_birth_date_agrees(patients: Patients) -> None:
    known = await add(patients, (SSN, "1"))

    assert (await add(patients, (SSN, "1"), birth_date="1980")).person == known.person


async def test_names_never_match_anybody(patients: Patients) -> None:
    first = await patients.register(None, name="Ada Sample", birth_date="1980-02-03")
    second = await patients.register(None, name="Ada Sample", birth_date="1980-02-03")

    assert first["patient"] != second["patient"]


@pytest.mark.parametrize(
    ("identifiers", "name", "birth_date"),
    [
        ((), None, None),
        ((), "Ada", None),
        ((("", "1"),), None, None),
        (((SSN, " "),), None, None),
        (((SSN, "1"),), None, "1980-02-31"),
        (((SSN, "1"),), None, "3.2.1980"),
        (((SSN, "1" * 300),), None, None),
    ],
)
async def test_what_does_not_identify_anybody_is_refused(
    patients: Patients, identifiers: tuple[tuple[str, str], ...], name: str | None, birth_date: str | None
) -> None:
    with pytest.raises(Refused):
        await patients.register(None, identifiers=identifiers, name=name, birth_date=birth_date)

    assert patients.all() == ()


async def test_a_refusal_repeats_nothing_personal(patients: Patients) -> None:
    await add(patients, (SSN, "123-45-6789"))

    with pytest.raises(Refused) as refusal:
        await patients.register(fhir_patient((SSN, "123-45-6789"), birth_date="1999-09-09"))

    assert "123-45" not in str(refusal.value)
    assert "1999" not in str(refusal.value)


async def test_a_patient_is_found_by_an_unambiguous_prefix_only(patients: Patients) -> None:
    handles = [(await add(patients, (SSN, str(number)))).handle for number in range(40)]
    shared = next(a[:1] for a in handles for b in handles if a != b and a[:1] == b[:1])

    assert patients.resolve(handles[0]).handle == handles[0]
    assert patients.resolve(handles[0][:14]).handle == handles[0]
    with pytest.raises(Refused, match="give more"):
        patients.resolve(shared)


@pytest.mark.parametrize("text", ["", "zz", "0123456789abcdef00"])
async def test_an_unknown_patient_is_refused_in_one_sentence(patients: Patients, text: str) -> None:
    await add(patients, (SSN, "1"))

    with pytest.raises(Refused, match="no patient of this facility has that handle"):
        patients.resolve(text)


async def test_patients_survive_a_restart(member: MemberDouble, patients: Patients) -> None:
    patient = await add(patients, (SSN, "1"))
    reopened = Keystore.unlock(member.secrets.reopened(), "x", member.entropy.bytes)

    again = Patients(reopened, HeldGrants(reopened), member.entropy)

    assert again.resolve(patient.handle).person == patient.person
    assert again.row(patient.handle) == patients.row(patient.handle)


async def test_a_damaged_row_is_named_and_the_others_are_served(
    member: MemberDouble, patients: Patients
) -> None:
    lost = await add(patients, (SSN, "1"))
    kept = await add(patients, (SSN, "2"))
    key = b"kpatient/" + lost.handle.encode()
    row = member.secrets.get(key)
    assert row is not None
    member.secrets._values[key] = row[:-1] + bytes([row[-1] ^ 1])

    again = registry(member)

    assert [patient.handle for patient in again.all()] == [kept.handle]
    assert lost.handle in again.problems[0]


async def test_the_list_shows_custody_and_no_vaults_before_first_use(patients: Patients) -> None:
    patient = await add(patients, (SSN, "1"))

    assert await patients.list() == {
        "patients": [
            {
                "patient": patient.handle,
                "name": "Ada Sample",
                "custody": "facility",
                "granted_by": [],
                "categories": [],
            }
        ]
    }


async def test_a_document_names_somebody_else_when_nothing_agrees(patients: Patients) -> None:
    patient = await add(patients, (SSN, "1"))
    await add(patients, (SSN, "2"))

    assert not patients.names_somebody_else(patient, {(SSN, "1")}, "1980-02-03")
    assert not patients.names_somebody_else(patient, (), "")
    assert patients.names_somebody_else(patient, {(SSN, "2")})
    assert patients.names_somebody_else(patient, {(SSN, "9")})
    assert patients.names_somebody_else(patient, {(SSN, "1")}, "1999-01-01")
    assert patients.names_somebody_else(patient, {(SSN, "1"), (SSN, "2")})


async def test_nothing_that_prints_a_patient_shows_who_it_is(patients: Patients) -> None:
    patient = await add(patients, (SSN, "123-45-6789"))

    shown = repr(patient) + repr(patients.row(patient.handle)) + repr(patient.person)

    assert "Sample" not in shown
    assert "123-45" not in shown
