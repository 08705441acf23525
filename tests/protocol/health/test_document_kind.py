import pytest

from protocol.errors import Refused
from protocol.health.document_kind import HEAD_BYTES, Kind, detect
from tests.samples import sample_files

FHIR = b'{\n "resourceType" : "Patient"}'
LINES = b'{"resourceType":"Patient"}\r\n{"resourceType":"Patient"}\n'
DICOM = bytes(128) + b"DICM"


@pytest.mark.parametrize(
    ("media_type", "head", "suffix", "kind"),
    [
        (None, FHIR, ".json", Kind.FHIR_JSON),
        (None, b"\xef\xbb\xbf" + FHIR, ".JSON", Kind.FHIR_JSON),
        (None, FHIR, "", Kind.FHIR_JSON),
        ("application/fhir+json; charset=utf-8", FHIR, "", Kind.FHIR_JSON),
        (None, LINES, ".ndjson", Kind.NDJSON),
        (None, LINES, ".json", Kind.NDJSON),
        (None, LINES, "", Kind.NDJSON),
        (None, LINES[:10], ".ndjson", Kind.NDJSON),
        (None, b"MSH|^~\\&|A", ".hl7", Kind.HL7V2),
        (None, b"\xef\xbb\xbfMSH|^~\\&|A", ".txt", Kind.HL7V2),
        (None, b"\x0bMSH|^~\\&|A", "", Kind.HL7V2),
        (None, b"<?xml version='1.0'?><ClinicalDocument xmlns='urn:hl7-org:v3'>", ".xml", Kind.CCDA),
        (None, b"<x/>", ".xml", Kind.OPAQUE),
        (None, DICOM, ".dcm", Kind.DICOM),
        (None, DICOM, "", Kind.DICOM),
        (None, b"%PDF-1.7\n", ".pdf", Kind.PDF),
        (None, b"\x89PNG\r\n\x1a\n...", ".png", Kind.OPAQUE),
        (None, b'{"a":1}', "", Kind.OPAQUE),
        (None, b"hello", ".txt", Kind.OPAQUE),
        (None, bytes(1000), "", Kind.OPAQUE),
        ("application/octet-stream", b"hello", ".json", Kind.OPAQUE),
        ("text/plain", b"hello", ".json", Kind.OPAQUE),
    ],
)
def test_a_file_is_what_it_says_and_shows(
    media_type: str | None, head: bytes, suffix: str, kind: Kind
) -> None:
    assert detect(media_type, head, suffix) is kind


@pytest.mark.parametrize(
    ("media_type", "head", "suffix"),
    [
        (None, b"%PDF-1.7", ".json"),
        (None, b"[1]", ".json"),
        ("application/fhir+json", b"MSH|^~\\&|", ""),
        ("application/fhir+ndjson", b"hello", ""),
        (None, FHIR, ".pdf"),
        (None, FHIR, ".hl7"),
        (None, b"GIF89a", ".dcm"),
        (None, b"<html/>", ".ccda"),
        (None, b"%PDF-1.7", ".png"),
        ("application/pdf", FHIR, ".json"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(media_type: str | None, head: bytes, suffix: str) -> None:
    with pytest.raises(Refused, match="is said to be"):
        detect(media_type, head, suffix)


@pytest.mark.parametrize("head", [b"", b" \r\n", b"\xef\xbb\xbf\n"])
def test_an_empty_file_is_refused(head: bytes) -> None:
    with pytest.raises(Refused, match="empty"):
        detect(None, head, ".pdf")


@pytest.mark.parametrize(
    ("folder", "suffix", "kind"),
    [
        ("synthea_r4", ".json", Kind.FHIR_JSON),
        ("us_core", ".json", Kind.FHIR_JSON),
        ("ips", ".json", Kind.FHIR_JSON),
        ("hl7v2", ".hl7", Kind.HL7V2),
        ("ccda", "", Kind.CCDA),
    ],
)
def test_published_samples_are_recognised(folder: str, suffix: str, kind: Kind) -> None:
    for path in sample_files(folder, suffix=suffix):
        head = path.read_bytes()[:HEAD_BYTES]
        assert detect(None, head, path.suffix) is kind, path.name
        assert detect(None, head, "") is kind, path.name
