import json
from typing import Any

import pytest

from protocol.errors import Refused
from protocol.health.fhir import FhirDocument, parse_document
from protocol.health.identity import Match, PatientIdentity, document_subjects, identity_of, matches
from tests.samples import sample_files


def patient(value: str = "1", birth: str = "1980-01-02", **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "id": f"p{value}",
        "identifier": [{"system": "urn:s", "value": value}],
        "birthDate": birth,
        **more,
    }


def bundle(*resources: dict[str, Any]) -> FhirDocument:
    entries = [
        {"fullUrl": f"http://x/{one['resourceType']}/{one.get('id')}", "resource": one} for one in resources
    ]
    return parse_document(json.dumps({"resourceType": "Bundle", "entry": entries}).encode())


def identity(*values: str, birth: str = "1980-01-02") -> PatientIdentity:
    return PatientIdentity(frozenset(("urn:s", value) for value in values), "", birth)


def test_a_shared_identifier_is_the_same_patient() -> None:
    assert matches(identity("1", "2"), identity("2", "3")) is Match.SAME


def test_no_shared_identifier_is_another_patient() -> None:
    assert matches(identity("1"), identity("2")) is Match.DIFFERENT
    assert matches(identity(), identity()) is Match.DIFFERENT


def test_a_shared_identifier_with_another_birth_date_is_a_conflict() -> None:
    assert matches(identity("1"), identity("1", birth="1980-01-03")) is Match.CONFLICT


@pytest.mark.parametrize("birth", ["", "1980", "1980-01"])
def test_a_less_precise_birth_date_agrees(birth: str) -> None:
    assert matches(identity("1"), identity("1", birth=birth)) is Match.SAME


def test_identity_is_read_from_a_patient() -> None:
    found = identity_of(bundle(patient(name=[{"family": "Sample", "given": ["Ada", "B"]}], gender="female")))
    assert found == PatientIdentity(frozenset({("urn:s", "1")}), "Ada B Sample", "1980-01-02", "female")
    assert "Sample" not in repr(found)


@pytest.mark.parametrize(
    "identifier",
    [
        {"value": "1"},
        {"system": "urn:s"},
        {"system": "urn:s", "value": " "},
        {"system": "urn:s", "value": 1},
        {"system": "urn:s", "value": "1", "type": {"coding": [{"code": "AN"}]}},
        "1",
    ],
)
def test_an_identifier_that_identifies_nobody_is_left_out(identifier: Any) -> None:
    found = document_subjects(bundle(patient() | {"identifier": [identifier]})).identity
    assert found is not None
    assert not found.identifiers


def test_two_patients_are_refused() -> None:
    with pytest.raises(Refused, match="two patients"):
        document_subjects(bundle(patient("1"), patient("2")))


def test_a_second_patient_hidden_in_another_resource_is_refused() -> None:
    contained = {"resourceType": "Observation", "contained": [patient("2")]}
    inner = {"resourceType": "Bundle", "entry": [{"resource": patient("2")}]}
    for hidden in (contained, inner):
        with pytest.raises(Refused, match="two patients"):
            document_subjects(bundle(patient("1"), hidden))


def test_two_versions_of_one_patient_are_one() -> None:
    found = document_subjects(bundle(patient("1"), patient("1", gender="male"))).identity
    assert found is not None
    assert found.identifiers == {("urn:s", "1")}


def test_references_without_a_patient_are_named() -> None:
    one = {"resourceType": "Observation", "subject": {"reference": "Patient/7"}}
    other = {
        "resourceType": "AllergyIntolerance",
        "patient": {"reference": "http://x/fhir/Patient/7/_history/2"},
    }
    assert document_subjects(bundle(one, other)).references == {"7"}


def test_references_to_two_patients_are_refused() -> None:
    observations = [{"resourceType": "Observation", "subject": {"reference": f"Patient/{n}"}} for n in (7, 8)]
    with pytest.raises(Refused, match="two patients"):
        document_subjects(bundle(*observations))


def test_a_logical_reference_names_the_patient_by_identifier() -> None:
    one = {"resourceType": "Coverage", "beneficiary": {"identifier": {"system": "urn:s", "value": "1"}}}
    assert document_subjects(bundle(one)).identifiers() == {("urn:s", "1")}


def test_a_logical_reference_to_somebody_else_is_refused() -> None:
    one = {"resourceType": "Coverage", "beneficiary": {"identifier": {"system": "urn:s", "value": "2"}}}
    with pytest.raises(Refused, match="two patients"):
        document_subjects(bundle(patient("1"), one))


def test_a_reference_beside_the_patient_makes_the_document_ambiguous() -> None:
    stray = {"resourceType": "Observation", "subject": {"reference": "Patient/9"}}
    own = {"resourceType": "Observation", "subject": {"reference": "Patient/p1"}}
    assert document_subjects(bundle(patient(), own, stray)).is_ambiguous
    assert not document_subjects(bundle(patient(), own)).is_ambiguous


def test_registering_needs_a_patient_that_can_be_told_from_others() -> None:
    with pytest.raises(Refused, match="no Patient"):
        identity_of(bundle({"resourceType": "Observation"}))
    with pytest.raises(Refused, match="neither"):
        identity_of(bundle({"resourceType": "Patient", "name": [{"family": "Sample"}]}))


def test_every_synthea_bundle_names_one_patient_and_the_practitioner_file_nobody() -> None:
    for path in sample_files("synthea_r4"):
        subjects = document_subjects(parse_document(path.read_bytes()))
        assert not subjects.references
        assert (len(subjects.identifiers()) >= 2) is not path.name.startswith("practitioner"), path.name


def test_every_other_sample_names_at_most_one_patient() -> None:
    for path in sample_files("us_core", "ips"):
        assert len(document_subjects(parse_document(path.read_bytes())).references) <= 1, path.name


def test_deeply_nested_resources_are_looked_through_or_refused() -> None:
    deep = '{"resourceType":"Basic","contained":['
    for depth in (300, 450, 490, 2_000):
        text = deep * depth + json.dumps(patient()) + "]}" * depth
        try:
            found = document_subjects(parse_document(text.encode())).identity
        except Refused as refusal:
            assert "nested too deeply" in str(refusal)  # noqa: PT017 -- either outcome is right
        else:
            assert found is not None


def test_text_that_cannot_be_written_is_left_out() -> None:
    broken = patient("\ud800") | {"name": [{"text": "\udfff", "family": "Sample"}], "birthDate": "soon"}
    found = document_subjects(bundle(broken)).identity
    assert found == PatientIdentity(frozenset(), "Sample", "")
