import json
import re
import subprocess
import sys
from decimal import Decimal

import pytest

from node.sample_records import synthesise
from protocol.health.categories import Category
from protocol.health.document_kind import Kind, detect
from protocol.health.fhir import parse_document
from protocol.health.identity import document_subjects
from protocol.health.views import sort, views

SEEDS = range(0, 200, 20)


def test_equal_seeds_give_equal_bytes_in_another_process() -> None:
    source = "import hashlib; from node.sample_records import synthesise as s; print([hashlib.sha256(d).hexdigest() for _, d in s(7).files()])"
    runs = {
        subprocess.run(
            [sys.executable, "-c", source],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_seeds_give_different_patients() -> None:
    assert len({synthesise(seed).patient_identifier for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bundle_spans_the_categories_the_demonstration_needs(seed: int) -> None:
    document = parse_document(synthesise(seed).fhir_bundle)
    found = sort(document)
    assert found.single is None
    assert {category: len(positions) for category, positions in found.views.items()} == {
        Category.GENERAL: 8,  # three vitals, an allergy, a problem; patient, practitioner, organization
        Category.LABS: 11,  # seven results and their report
        Category.MEDICATION: 3,
        Category.MENTAL_HEALTH: 5,
        Category.SOCIAL: 4,
        Category.EMERGENCY: 5,
    }
    for _, pieces in views(document, found):
        assert json.loads(b"".join(pieces))["type"] == "collection"


@pytest.mark.parametrize("seed", SEEDS)
def test_decimals_are_written_with_their_zeros(seed: int) -> None:
    sample = synthesise(seed)
    parsed = json.loads(sample.fhir_bundle, parse_float=Decimal)
    values = [
        str(entry["resource"]["valueQuantity"]["value"])
        for entry in parsed["entry"]
        if "valueQuantity" in entry["resource"]
    ]
    assert len(values) == 10
    assert any(re.fullmatch(r"\d+\.\d0", value) for value in values)
    observed = [
        segment.split("|")[5] for segment in sample.hl7v2_message.decode().split("\r") if segment[:3] == "OBX"
    ]
    assert observed == values[: len(observed)]


def test_every_reference_is_to_the_bundle_itself() -> None:
    text = synthesise(1).fhir_bundle.decode()
    urls = set(re.findall(r'"fullUrl": "([^"]+)"', text))
    assert set(re.findall(r'"reference": "([^"]+)"', text)) <= urls


def test_bundle_and_message_name_the_same_patient() -> None:
    sample = synthesise(3)
    subjects = document_subjects(parse_document(sample.fhir_bundle))
    assert subjects.identity is not None
    assert not subjects.is_ambiguous
    assert subjects.identity.identifiers == {sample.patient_identifier}
    assert subjects.identity.name == sample.patient_name
    assert subjects.identity.birth_date == sample.birth_date
    identifier = sample.hl7v2_message.decode().split("\r")[1].split("|")[3].split("^")
    system = identifier[3].split("&")[1]
    assert (f"urn:oid:{system}", identifier[0]) == sample.patient_identifier


def test_the_message_ends_its_segments_with_cr() -> None:
    message = synthesise(3).hl7v2_message
    assert message.endswith(b"\r")
    assert b"\n" not in message
    assert message.split(b"|")[8] == b"ORU^R01^ORU_R01"


def test_the_pdf_has_a_true_cross_reference_table() -> None:
    pdf = synthesise(3).pdf
    found = re.search(rb"startxref\n(\d+)\n%%EOF\n$", pdf)
    assert found is not None
    table = pdf[int(found.group(1)) :]
    assert table.startswith(b"xref\n0 6\n")
    offsets = re.findall(rb"(\d{10}) 00000 n \n", table)
    assert len(offsets) == 5
    for number, offset in enumerate(offsets, 1):
        assert pdf[int(offset) :].startswith(b"%d 0 obj\n" % number)
    length = re.search(rb"/Length (\d+) >>\nstream\n", pdf)
    assert length is not None
    assert pdf[length.end() + int(length.group(1)) :].startswith(b"endstream")


def test_documents_are_what_their_names_say() -> None:
    kinds = [detect(None, data, f".{name.rpartition('.')[2]}") for name, data in synthesise(5).files()]
    assert kinds == [Kind.FHIR_JSON, Kind.HL7V2, Kind.PDF]
