import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from protocol.health.categories import PROTECTED, Category, Classifier, category_named, is_emergency
from protocol.health.fhir import parse_document
from protocol.health.views import sort
from tests.samples import sample_files

SNOMED = "http://snomed.info/sct"
LOINC = "http://loinc.org"

# What must never be read outside a protected category (or billing) in the published samples, written without a look
# at the table's own words.
SENSITIVE = re.compile(
    r"depress|suicid|\banxi|schizo|psych|mental (?:health|ill|dis)|bipolar dis|dementia|alzheimer|attention deficit"
    r"|opioid|overdos|alcohol|addict|drug (?:abuse|rehab|detox|misuse)|substance abuse|\bHIV\b|\bAIDS\b"
    r"|immunodeficiency|chlamydia|gonorr|syphilis|contracepti|pregnan|prenatal|antenatal|abortion|childbirth|fetal"
    r"|intrauterine|sexual|homeless|food (?:insecur|pantr)|housing|transport|employment|unemploy|refugee|violence"
    r"|fluoxetine|sertraline|methylphenidate|buprenorphine|ethinyl estradiol",
    re.IGNORECASE,
)


def category_of(resource: dict[str, Any]) -> Category:
    return Classifier().read(resource).category


def coded(system: str, code: str, display: str = "", **more: Any) -> dict[str, Any]:
    coding = {"system": system, "code": code, "display": display}
    return {"resourceType": "Observation", "code": {"coding": [coding]}, **more}


def strings(node: Any, key: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from strings(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value, key)
    elif isinstance(node, str) and key in {"display", "text", "div", "valueString", "note", "description"}:
        yield node


@pytest.mark.parametrize("folder", ["synthea_r4", "us_core", "ips"])
def test_no_sensitive_words_of_the_samples_stand_outside_a_protected_category(folder: str) -> None:
    leaks = set()
    for path in sample_files(folder):
        document = parse_document(path.read_bytes())
        for text, category in zip(document.resources, sort(document).categories, strict=True):
            if category is None or category is Category.BILLING or category in PROTECTED:
                continue
            leaks |= {
                (path.name[:20], text.resource_type, found.group())
                for one in strings(text.resource())
                for found in [SENSITIVE.search(one)]
                if found
            }
    assert not leaks


def test_protected_matters_of_synthea_are_found_whatever_the_type() -> None:
    found = set()
    for path in sample_files("synthea_r4"):
        document = parse_document(path.read_bytes())
        for text, category in zip(document.resources, sort(document).categories, strict=True):
            if category in PROTECTED:
                found.add((category, text.resource_type))
    for category, *types in (
        (Category.SUBSTANCE_USE, "Encounter", "Condition", "CarePlan"),
        (
            Category.SEXUAL_HEALTH,
            "Procedure",
            "Encounter",
            "Condition",
            "CarePlan",
            "Observation",
            "MedicationRequest",
        ),
        (Category.MENTAL_HEALTH, "Procedure", "Condition", "CarePlan", "MedicationRequest"),
    ):
        assert {(category, name) for name in types} <= found


@pytest.mark.parametrize(
    ("prefix", "category"),
    [
        ("Observation-PHQ9", Category.MENTAL_HEALTH),
        ("Observation-AUDIT-C", Category.SUBSTANCE_USE),
        ("Observation-TAPS", Category.SUBSTANCE_USE),
        ("Observation-PRAPARE", Category.SOCIAL),
        ("Observation-HVS", Category.SOCIAL),
        ("QuestionnaireResponse-PRAPARE", Category.SOCIAL),
        ("condition-SDOH", Category.SOCIAL),
        ("servicerequest-foodpantry", Category.SOCIAL),
        ("observation-pregnancy", Category.SEXUAL_HEALTH),
        ("observation-serum", Category.LABS),
        ("diagnosticreport-metabolic", Category.LABS),
        ("media-chest-xray", Category.IMAGING),
        ("observation-xray", Category.IMAGING),
        ("medication", Category.MEDICATION),
        ("coverage", Category.BILLING),
        ("heart-rate", Category.GENERAL),
        ("blood-pressure", Category.GENERAL),
        ("packs-years", Category.GENERAL),
    ],
)
def test_us_core_examples_fall_where_their_instrument_says(prefix: str, category: Category) -> None:
    paths = [path for path in sample_files("us_core") if path.name.startswith(prefix)]
    assert paths
    for path in paths:
        assert sort(parse_document(path.read_bytes())).single is category, path.name


@pytest.mark.parametrize(
    "kind", ["Claim", "ExplanationOfBenefit", "Coverage", "ClaimResponse", "Invoice", "Account"]
)
def test_billing_is_billing_whatever_it_is_about(kind: str) -> None:
    assert category_of({"resourceType": kind, "item": [{"text": "Drug overdose"}]}) is Category.BILLING


@pytest.mark.parametrize(
    ("resource", "category"),
    [
        (coded(SNOMED, "35489007"), Category.MENTAL_HEALTH),
        (coded("urn:oid:2.16.840.1.113883.6.96", "55680006"), Category.SUBSTANCE_USE),
        (coded("http://hl7.org/fhir/sid/icd-10-cm", "F32.1"), Category.MENTAL_HEALTH),
        (coded("http://hl7.org/fhir/sid/icd-10-cm", "F1020"), Category.SUBSTANCE_USE),
        (coded("http://hl7.org/fhir/sid/icd-10", "F17.2"), Category.GENERAL),
        (coded("http://hl7.org/fhir/sid/icd-10", "B20"), Category.SEXUAL_HEALTH),
        (coded("http://hl7.org/fhir/sid/icd-10", "Z59.0"), Category.SOCIAL),
        (coded("http://hl7.org/fhir/sid/icd-10", "E11.9"), Category.GENERAL),
        (coded("urn:oid:9.9.9", "F32.1"), Category.MENTAL_HEALTH),
        (coded("http://www.whocc.no/atc", "N06AB06"), Category.MENTAL_HEALTH),
        (coded("http://www.whocc.no/atc", "A10BA02"), Category.GENERAL),
        (coded("http://hl7.org/fhir/sid/icpc-2", "P15"), Category.SUBSTANCE_USE),
        (coded("http://hl7.org/fhir/sid/icpc-2", "P17"), Category.GENERAL),
        (coded(LOINC, "88122-7"), Category.SOCIAL),
        ({"resourceType": "Observation", "code": {"coding": [{"code": "44250-9"}]}}, Category.MENTAL_HEALTH),
        ({"resourceType": "Basic", "meta": {"security": [{"system": "http://t/v3-ActCode", "code": "HIV"}]}}, Category.SEXUAL_HEALTH),
        ({"resourceType": "Condition", "note": [{"text": "long opioid history"}]}, Category.SUBSTANCE_USE),
        ({"resourceType": "Encounter", "text": {"div": "<div>Visit for d&#101;pression</div>"}}, Category.MENTAL_HEALTH),
        ({"resourceType": "Basic", "extension": [{"valueString": "Patient is homeless"}]}, Category.SOCIAL),
        ({"resourceType": "Procedure", "contained": [coded(SNOMED, "35489007")]}, Category.MENTAL_HEALTH),
        ({"resourceType": "Basic", "a": [["x", {"display": "HIV antibody"}]]}, Category.SEXUAL_HEALTH),
        ({"resourceType": "Encounter", "reasonReference": [{"reference": "x", "display": "Anxiety"}]}, Category.MENTAL_HEALTH),
        ({"resourceType": "CarePlan", "text": {"div": "anxiety and alcohol"}}, Category.SUBSTANCE_USE),
        ({"resourceType": "Observation", "specimen": {"reference": "Specimen/1"}}, Category.LABS),
        ({"resourceType": "DiagnosticReport"}, Category.LABS),
        ({"resourceType": "ImagingStudy"}, Category.IMAGING),
        ({"resourceType": "Procedure", "code": {"text": "Chest X-ray"}}, Category.IMAGING),
        ({"resourceType": "Condition", "code": {"text": "Fracture, seen on X-ray"}}, Category.GENERAL),
        ({"resourceType": "MedicationStatement"}, Category.MEDICATION),
        ({"resourceType": "Immunization"}, Category.GENERAL),
    ],
)  # fmt: skip
def test_the_most_protected_match_anywhere_wins(resource: dict[str, Any], category: Category) -> None:
    assert category_of(resource) is category


@pytest.mark.parametrize(
    "text",
    [
        "Benzyl alcohol allergy",
        "alcohol swab",
        "Respiratory depression",
        "Hearing aids",
        "HEARING AIDS",
        "Chlamydia pneumoniae IgG",
        "Bipolar hemiarthroplasty",
        "tongue depressor",
        "Zinc transporter 8 Ab",
        "house dust mite",
        "Exercise stress test",
        "Pap smear",
        "Opioid analgesic",
        "Allergy education",
        "Family Stdorf",
    ],
)
def test_innocent_words_stay_general(text: str) -> None:
    assert category_of({"resourceType": "AllergyIntolerance", "code": {"text": text}}) is Category.GENERAL


def test_a_note_attached_as_text_is_read_and_an_image_is_not() -> None:
    note = base64.b64encode(b"Patient reports suicidal thoughts.").decode()
    attachment = {"contentType": "text/plain; charset=utf-8", "data": note}
    document = {"resourceType": "DocumentReference", "content": [{"attachment": attachment}]}
    assert category_of(document) is Category.MENTAL_HEALTH
    attachment["contentType"] = "image/png"
    assert category_of(document) is Category.GENERAL
    attachment |= {"contentType": "text/plain", "data": "not base64!"}
    assert category_of(document) is Category.GENERAL


@pytest.mark.parametrize("place", [0, 16_370, 16_384, 16_390, 40_000])
def test_a_word_is_found_anywhere_in_a_long_letter(place: int) -> None:
    letter = "x " * (place // 2) + "alcohol use disorder" + " x" * 20_000
    assert category_of({"resourceType": "Basic", "text": {"div": letter}}) is Category.SUBSTANCE_USE


def test_names_of_people_say_nothing_about_a_matter() -> None:
    person = {"resourceType": "Practitioner", "name": [{"family": "Hunger"}]}
    reference = {"reference": "Practitioner/1", "display": "Dr. Hunger"}
    resource = {
        "resourceType": "Encounter",
        "contained": [person],
        "participant": [{"individual": reference}],
    }
    assert category_of(resource) is Category.GENERAL


def test_shapes_no_standard_allows_are_read_without_failing() -> None:
    odd = {
        "resourceType": "Observation",
        "code": "x",
        "category": 7,
        "identifier": 3,
        "x": [[None, [True]], {"code": []}],
    }
    assert category_of(json.loads(json.dumps(odd))) is Category.GENERAL
    assert not is_emergency({"resourceType": "Condition", "clinicalStatus": {"coding": "active"}})


@pytest.mark.parametrize(
    ("kind", "statuses", "expected"),
    [
        ("AllergyIntolerance", {}, True),
        ("AllergyIntolerance", {"verificationStatus": {"coding": [{"code": "refuted"}]}}, False),
        ("AllergyIntolerance", {"clinicalStatus": {"coding": [{"code": "resolved"}]}}, False),
        ("MedicationRequest", {"status": "active", "intent": "order"}, True),
        ("MedicationRequest", {"status": "active", "intent": "proposal"}, False),
        ("MedicationRequest", {"status": "stopped"}, False),
        ("MedicationStatement", {"status": "intended"}, True),
        ("MedicationStatement", {"status": "completed"}, False),
        ("Condition", {"clinicalStatus": {"coding": [{"code": "active"}]}}, True),
        ("Condition", {"clinicalStatus": "active"}, True),
        ("Condition", {"clinicalStatus": {"coding": [{"code": "resolved"}]}}, False),
        ("Condition", {}, False),
        ("Observation", {"status": "active"}, False),
    ],
)
def test_emergencies_need_allergies_current_medication_and_active_problems(
    kind: str, statuses: dict[str, Any], expected: bool
) -> None:
    assert Classifier().read({"resourceType": kind, **statuses}).is_emergency is expected


def test_protected_problems_are_no_emergency() -> None:
    active = {"coding": [{"code": "active"}]}
    reading = Classifier().read(
        coded(SNOMED, "35489007", clinicalStatus=active) | {"resourceType": "Condition"}
    )
    assert not reading.is_emergency


def test_category_names_are_those_of_the_command_line() -> None:
    assert category_named("mental-health") is Category.MENTAL_HEALTH
    assert category_named("Mental-Health") is None
    assert [category.value for category in Category] == [
        "general", "labs", "imaging", "medication", "mental-health", "substance-use", "sexual-health", "social",
        "billing", "emergency", "mixed",
    ]  # fmt: skip
