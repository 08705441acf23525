import json
from typing import Any

import pytest

from protocol.errors import Refused
from protocol.health import view_stream
from protocol.health.categories import Category
from protocol.health.fhir import FhirDocument, lines_of, parse_document, resources_of_line
from protocol.health.view_stream import StreamSorter
from protocol.health.views import sort, views
from tests.samples import sample_files

DEPRESSION = {"text": "Depressive disorder"}
ACTIVE = {"coding": [{"code": "active"}]}


def bundle(**resources: dict[str, Any]) -> FhirDocument:
    entries = [{"fullUrl": f"urn:uuid:{name}", "resource": one} for name, one in resources.items()]
    return parse_document(json.dumps({"resourceType": "Bundle", "entry": entries}).encode())


def made(document: FhirDocument) -> dict[Category, bytes]:
    return {category: b"".join(pieces) for category, pieces in views(document, sort(document))}


def names(view: bytes) -> list[str]:
    return [entry["fullUrl"].removeprefix("urn:uuid:") for entry in json.loads(view)["entry"]]


def ref(name: str) -> dict[str, str]:
    return {"reference": f"urn:uuid:{name}"}


PATIENT = {"resourceType": "Patient"}
LAB = {"resourceType": "Specimen"}
HEART_RATE = {"resourceType": "Observation"}


def test_a_document_of_one_category_is_stored_once_there() -> None:
    found = sort(bundle(patient=PATIENT, a=LAB, b=LAB, who={"resourceType": "Practitioner"}))
    assert found.single is Category.LABS
    assert not found.views


def test_a_document_of_followers_alone_is_general() -> None:
    assert sort(bundle(patient=PATIENT)).single is Category.GENERAL
    assert sort(bundle(who={"resourceType": "Practitioner"})).single is Category.GENERAL


def test_a_document_across_categories_has_a_view_of_each() -> None:
    found = made(bundle(patient=PATIENT, a=LAB, b=HEART_RATE))
    assert {category: names(view) for category, view in found.items()} == {
        Category.GENERAL: ["patient", "b"],
        Category.LABS: ["patient", "a"],
    }


def test_an_allergy_is_stored_once_and_copied_for_emergencies() -> None:
    document = parse_document(b' {"resourceType":"AllergyIntolerance","n":1.50} ')
    assert sort(document).single is Category.GENERAL
    assert made(document) == {
        Category.EMERGENCY: b'{"resourceType":"Bundle","type":"collection","entry":[{"resource":'
        b'{"resourceType":"AllergyIntolerance","n":1.50}}]}'
    }


def test_the_emergency_view_holds_no_protected_matter() -> None:
    found = made(
        bundle(
            allergy={"resourceType": "AllergyIntolerance"},
            diabetes={"resourceType": "Condition", "clinicalStatus": ACTIVE},
            depression={"resourceType": "Condition", "clinicalStatus": ACTIVE, "code": DEPRESSION},
            sertraline={
                "resourceType": "MedicationRequest",
                "status": "active",
                "medication": {"text": "Sertraline"},
            },
            by_name={
                "resourceType": "MedicationRequest",
                "status": "active",
                "medicationReference": ref("prozac"),
            },
            prozac={"resourceType": "Medication", "code": {"text": "Prozac"}},
            insulin={
                "resourceType": "MedicationStatement",
                "status": "active",
                "medicationReference": ref("vial"),
            },
            vial={"resourceType": "Medication", "code": {"text": "insulin"}},
        )
    )
    assert names(found[Category.EMERGENCY]) == ["allergy", "diabetes", "insulin", "vial"]
    assert names(found[Category.MENTAL_HEALTH]) == ["depression", "sertraline", "by_name", "prozac"]
    assert names(found[Category.MEDICATION]) == ["insulin", "vial"]


def test_what_is_about_a_protected_condition_is_protected() -> None:
    found = made(
        bundle(
            depression={"resourceType": "Condition", "code": DEPRESSION},
            visit={"resourceType": "Encounter", "diagnosis": [{"condition": ref("depression")}]},
            other={"resourceType": "Observation", "encounter": ref("visit")},
        )
    )
    assert names(found[Category.MENTAL_HEALTH]) == ["depression", "visit"]
    assert names(found[Category.GENERAL]) == ["other"]


def test_followers_go_where_they_are_named() -> None:
    found = made(
        bundle(
            role={"resourceType": "PractitionerRole", "practitioner": {"reference": "Practitioner/9"}},
            doctor={"resourceType": "Practitioner", "id": "9"},
            hospital={"resourceType": "Organization", "identifier": [{"system": "urn:s", "value": "h"}]},
            stranger={"resourceType": "Organization"},
            patient=PATIENT,
            a={**LAB, "collection": {"collector": ref("role")}},
            b={**HEART_RATE, "performer": [{"reference": "Organization?identifier=urn:s|h"}]},
        )
    )
    assert names(found[Category.LABS]) == ["role", "doctor", "patient", "a"]
    assert names(found[Category.GENERAL]) == ["hospital", "stranger", "patient", "b"]


def test_every_view_of_the_samples_is_spliced_from_their_own_text() -> None:
    for path in sample_files("synthea_r4", "ips"):
        document = parse_document(path.read_bytes())
        found = sort(document)
        kept = set()
        for category, pieces in views(document, found):
            view = parse_document(b"".join(pieces))
            expected = [document.resources[position] for position in found.views[category]]
            assert [one.text for one in view.resources] == [one.text for one in expected], path.name
            assert [one.full_url_text for one in view.resources] == [one.full_url_text for one in expected]
            assert sum(one.resource_type == "Patient" for one in view.resources) == 1
            kept |= set(found.views[category])
        assert found.single or kept == set(range(len(document.resources))), path.name


def stream(lines: list[bytes]) -> tuple[StreamSorter, dict[Category, bytes]]:
    sorter = StreamSorter()
    found: dict[Category, bytes] = {}
    for line in lines_of(iter([b"\n".join(lines)]), line_bytes_max=1 << 20):
        for text in resources_of_line(line):
            for category, piece in sorter.add(text):
                found[category] = found.get(category, b"") + piece
    for category, piece in sorter.finish():
        found[category] += piece
    return sorter, found


def ids(view: bytes) -> list[str]:
    return [entry["resource"]["id"] for entry in json.loads(view)["entry"]]


def test_a_stream_is_sorted_like_a_document() -> None:
    lines = [
        b'{"resourceType":"Practitioner","id":"doc"}',
        b'{"resourceType":"Specimen","id":"s","v":1.00}',
        b"",
        b'{"resourceType":"Patient","id":"p","generalPractitioner":[{"reference":"Practitioner/gp"}]}',
        b'{"resourceType":"AllergyIntolerance","id":"a","recorder":{"reference":"Practitioner/doc"}}',
        b'{"resourceType":"Condition","id":"c","code":{"text":"Depression"}}',
        b'{"resourceType":"Encounter","id":"e","diagnosis":[{"condition":{"reference":"Condition/c"}}]}',
        b'{"resourceType":"Practitioner","id":"gp"}',
    ]
    sorter, found = stream(lines)
    assert sorter.single is None
    assert {category: ids(view) for category, view in found.items()} == {
        Category.LABS: ["s", "p", "gp"],
        Category.GENERAL: ["p", "a", "doc", "gp"],
        Category.EMERGENCY: ["p", "a", "doc", "gp"],
        Category.MENTAL_HEALTH: ["p", "c", "e", "gp"],
    }
    assert b'"v":1.00' in found[Category.LABS]


def test_a_stream_of_one_category_says_so() -> None:
    assert stream([b'{"resourceType":"Specimen","id":"s"}'])[0].single is Category.LABS
    assert stream([b'{"resourceType":"Patient","id":"s"}'])[0].single is Category.GENERAL


def test_synthea_as_a_stream_lands_in_the_same_categories() -> None:
    path = sample_files("synthea_r4")[0]
    document = parse_document(path.read_bytes())
    lines = [json.dumps(one.resource()).encode() for one in document.resources]
    _, found = stream(lines)
    expected = sort(document)
    for category in expected.views:
        in_view = {one["resource"]["id"] for one in json.loads(found[category])["entry"]}
        sorted_here = {
            document.resources[position].id
            for position in expected.views[category]
            if expected.categories[position] is not None
        }
        assert sorted_here <= in_view


def test_a_directory_of_practitioners_is_not_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_stream, "FOLLOWERS_BYTES_MAX", 100)
    with pytest.raises(Refused, match="more practitioners"):
        stream([b'{"resourceType":"Practitioner","id":"%d"}' % number for number in range(9)])
