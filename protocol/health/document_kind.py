"""What a received file is, by what it claims and by what its first bytes say; the two must not contradict each other.

Sources of the marks: RFC 8259 (JSON), HL7 v2 chapter 2 (MSH, FHS, BHS), DICOM PS3.10 7.1 (preamble and DICM), ISO 32000
7.5.2 (%PDF-), CDA R2 (ClinicalDocument); image marks from their formats' specifications.
"""

import enum
import json
import re
from typing import Final

from protocol.errors import Refused

HEAD_BYTES: Final = 64 * 1024
"""How much of a file `detect` should be given; less is enough when the file is shorter."""


class Kind(enum.Enum):
    """What a file is to the rest of the system."""

    FHIR_JSON = "fhir-json"
    NDJSON = "ndjson"
    HL7V2 = "hl7v2"
    CCDA = "ccda"
    DICOM = "dicom"
    PDF = "pdf"
    OPAQUE = "opaque"


_BOM: Final = b"\xef\xbb\xbf"
_SUFFIX_MEDIA: Final = {
    ".json": "application/fhir+json",
    ".ndjson": "application/fhir+ndjson",
    ".jsonl": "application/fhir+ndjson",
    ".hl7": "application/hl7-v2",
    ".ccda": "application/cda+xml",
    ".ccd": "application/cda+xml",
    ".cda": "application/cda+xml",
    ".xml": "application/xml",
    ".dcm": "application/dicom",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".zip": "application/zip",
    ".gz": "application/gzip",
}
_MEDIA_KINDS: Final = {
    "application/fhir+json": Kind.FHIR_JSON,
    "application/json": Kind.FHIR_JSON,
    "application/json+fhir": Kind.FHIR_JSON,
    "text/json": Kind.FHIR_JSON,
    "application/fhir+ndjson": Kind.NDJSON,
    "application/ndjson": Kind.NDJSON,
    "application/x-ndjson": Kind.NDJSON,
    "application/hl7-v2": Kind.HL7V2,
    "application/hl7-v2+er7": Kind.HL7V2,
    "x-application/hl7-v2+er7": Kind.HL7V2,
    "application/cda+xml": Kind.CCDA,
    "application/hl7-cda+xml": Kind.CCDA,
    "application/dicom": Kind.DICOM,
    "application/pdf": Kind.PDF,
}
_OPAQUE_MARKS: Final = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/tiff": (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),
    "application/zip": (b"PK\x03\x04", b"PK\x05\x06"),
    "application/gzip": (b"\x1f\x8b",),
}
_NAMES: Final = {
    Kind.FHIR_JSON: "FHIR JSON",
    Kind.NDJSON: "NDJSON",
    Kind.HL7V2: "an HL7 v2 message",
    Kind.CCDA: "a C-CDA document",
    Kind.DICOM: "a DICOM file",
    Kind.PDF: "a PDF",
}
_OPAQUE_MEDIA: Final = "application/octet-stream"
_hl7_start: Final = re.compile(rb"(?:MSH|FHS|BHS)[^\w\s]")
_clinical_document: Final = re.compile(rb"<(?:[\w.-]+:)?ClinicalDocument[\s>/]")
_resource_type: Final = re.compile(rb'"resourceType"\s*:\s*"[A-Z]')


def detect(media_type: str | None, head: bytes, name_suffix: str) -> Kind:
    """Return what a file is. `head` is its beginning (`HEAD_BYTES`), `name_suffix` begins with a dot or is empty.

    A media type counts more than a suffix; `application/octet-stream` asks for the bytes to be kept unread.

    Raises:
        Refused: empty, or not what it claims to be.
    """
    if not head.removeprefix(_BOM).strip():
        raise Refused("the file is empty: check that it was written completely and add it again")
    stated = media_type.partition(";")[0].strip().lower() if media_type else None
    if stated == _OPAQUE_MEDIA:
        return Kind.OPAQUE
    claim = stated or _SUFFIX_MEDIA.get(name_suffix.lower())
    seen = _seen(head)
    if claim is None:
        return seen
    if claim in _OPAQUE_MARKS:
        if not head.startswith(_OPAQUE_MARKS[claim]):
            raise _contradiction(claim)
        return Kind.OPAQUE
    claimed = _MEDIA_KINDS.get(claim)
    if claimed is None:  # XML, text and whatever nobody claims to read: what it shows itself to be
        return seen
    if claimed in {Kind.FHIR_JSON, Kind.NDJSON}:
        return _json_kind(claimed, head)
    if seen is not claimed:
        raise _contradiction(_NAMES[claimed])
    return claimed


def _seen(head: bytes) -> Kind:
    """Return what the first bytes say."""
    text = head.removeprefix(_BOM).lstrip(b" \t\r\n\x0b")
    if b"%PDF-" in head[:1024]:
        return Kind.PDF
    if head[128:132] == b"DICM":
        return Kind.DICOM
    if _hl7_start.match(text):
        return Kind.HL7V2
    if text.startswith(b"<") and _clinical_document.search(head):
        return Kind.CCDA
    if text.startswith(b"{") and _resource_type.search(head):
        return Kind.NDJSON if _is_one_a_line(text) else Kind.FHIR_JSON
    return Kind.OPAQUE


def _json_kind(claimed: Kind, head: bytes) -> Kind:
    """Tell one document from one resource a line, whichever of the two was claimed."""
    text = head.removeprefix(_BOM).lstrip(b" \t\r\n")
    if not text.startswith(b"{"):
        raise Refused(
            f"the file is said to be {_NAMES[claimed]} but does not begin with an object: check it, or add it with "
            f"--media-type {_OPAQUE_MEDIA} to keep it as it is"
        )
    return Kind.NDJSON if claimed is Kind.NDJSON or _is_one_a_line(text) else Kind.FHIR_JSON


def _is_one_a_line(text: bytes) -> bool:
    """Say whether the first line is a whole object and another line begins one."""
    first, _, rest = text.partition(b"\n")
    if not rest.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _contradiction(claim: str) -> Refused:
    return Refused(
        f"the file is said to be {claim} but its first bytes are not: check the file, or add it with --media-type "
        f"{_OPAQUE_MEDIA} to keep it as it is"
    )
