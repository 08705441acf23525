"""The one table that says which category a FHIR resource falls into.

Claim, ExplanationOfBenefit, Coverage and their kin are `billing`, whatever they are about: a claim names diagnoses, so
a grant for `billing` shows them. Of everything else, the most protected match anywhere in the resource wins: any
coding, display, text, narrative, note, text attachment or contained resource. The order of `TABLE` is that order.

`emergency` and `mixed` are not in the table. Allergies, current medication and active problems without a protected
match are additionally copied to `emergency` (`is_emergency`); `mixed` holds whole documents (`views`).
"""

import base64
import binascii
import enum
import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from protocol.health import value_sets as sets
from protocol.health.fhir import FhirObject


class Category(enum.StrEnum):
    """What consent is granted for; the names are those of the command line."""

    GENERAL = "general"
    LABS = "labs"
    IMAGING = "imaging"
    MEDICATION = "medication"
    MENTAL_HEALTH = "mental-health"
    SUBSTANCE_USE = "substance-use"
    SEXUAL_HEALTH = "sexual-health"
    SOCIAL = "social"
    BILLING = "billing"
    EMERGENCY = "emergency"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Row:
    """One category and all that puts a resource into it."""

    category: Category
    types: frozenset[str] = frozenset()
    """Resource types that are of this category by themselves, contained ones too."""
    codes: Mapping[str, str] = field(default_factory=dict)
    """Code system → codes, parted by blanks."""
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """Code system → beginnings of codes; the longest beginning in the whole table decides."""
    words: re.Pattern[str] | None = None
    words_only_in: frozenset[str] = frozenset()
    """Types in which `words` count; empty: in all."""
    labels: frozenset[tuple[str, str]] = frozenset()
    """(end of a code system's URL, code) of category labels such as Observation.category."""


def _labels(system: str, codes: str) -> frozenset[tuple[str, str]]:
    return frozenset((system, code) for code in codes.split())


BILLING_TYPES: Final = frozenset(
    (  # noqa: SIM905 -- a block of words reads better
        "Account ChargeItem Claim ClaimResponse Contract Coverage CoverageEligibilityRequest CoverageEligibilityResponse "
        "EnrollmentRequest EnrollmentResponse ExplanationOfBenefit InsurancePlan Invoice PaymentNotice PaymentReconciliation"
    ).split()
)

TABLE: Final = (
    Row(
        Category.SUBSTANCE_USE,
        codes=sets.SUBSTANCE_USE_CODES,
        prefixes=sets.SUBSTANCE_USE_PREFIXES,
        words=sets.SUBSTANCE_USE_WORDS,
    ),
    Row(
        Category.SEXUAL_HEALTH,
        codes=sets.SEXUAL_HEALTH_CODES,
        prefixes=sets.SEXUAL_HEALTH_PREFIXES,
        words=sets.SEXUAL_HEALTH_WORDS,
    ),
    Row(
        Category.MENTAL_HEALTH,
        codes=sets.MENTAL_HEALTH_CODES,
        prefixes=sets.MENTAL_HEALTH_PREFIXES,
        words=sets.MENTAL_HEALTH_WORDS,
    ),
    Row(
        Category.SOCIAL,
        codes=sets.SOCIAL_CODES,
        prefixes=sets.SOCIAL_PREFIXES,
        words=sets.SOCIAL_WORDS,
    ),
    Row(
        Category.IMAGING,
        types=frozenset({"ImagingStudy", "ImagingSelection", "Media"}),
        codes=sets.IMAGING_CODES,
        words=sets.IMAGING_WORDS,
        # Elsewhere an X-ray is an aside: the note of a fracture stays general.
        words_only_in=frozenset(
            {"DiagnosticReport", "DocumentReference", "Observation", "Procedure", "ServiceRequest"}
        ),
        labels=_labels("observation-category", "imaging")
        | _labels("v2-0074", "CT CUS NMR NMS OUS RAD RUS RX VUS XRC"),
    ),
    Row(
        Category.MEDICATION,
        types=frozenset(
            {
                "Medication",
                "MedicationAdministration",
                "MedicationDispense",
                "MedicationKnowledge",
                "MedicationRequest",
                "MedicationStatement",
                "MedicationUsage",
            }
        ),
    ),
    Row(
        Category.LABS,
        types=frozenset({"GenomicStudy", "MolecularSequence", "Specimen"}),
        codes=sets.LABS_CODES,
        labels=_labels("observation-category", "laboratory")
        | _labels("v2-0074", "BLB CG CH CP GE HLA HM IMM LAB MB MCB MYC PAR PAT SP SR TX VR"),
    ),
)
PROTECTED: Final = frozenset(
    {Category.SUBSTANCE_USE, Category.SEXUAL_HEALTH, Category.MENTAL_HEALTH, Category.SOCIAL}
)
_RANK: Final = {row.category: rank for rank, row in enumerate(TABLE)} | {Category.GENERAL: len(TABLE)}

PERSON_TYPES: Final = frozenset({"Patient", "Person", "Practitioner", "RelatedPerson"})
"""Their text is names and addresses, which say nothing about a matter (a family may be called Hunger)."""
_UNREAD: Final = frozenset(
    "data fullUrl id identifier lastUpdated linkId profile reference system url versionId".split()  # noqa: SIM905 -- a block of words reads better
)
_TEXT_MEDIA: Final = re.compile(r"(?:text/|application/(?:[\w.-]+\+)?(?:xml|json|rtf))", re.IGNORECASE)
_ABOUT: Final = frozenset(
    (  # noqa: SIM905 -- a block of words reads better
        "addresses condition derivedFrom hasMember indication medication medicationReference outcomeReference problem "
        "reasonReference result target"
    ).split()
)
"""Elements whose reference says what a resource is about; encounters and subjects do not."""
_ICD10_SHAPE: Final = re.compile(r"[A-TV-Z]\d\d\.\d{1,2}")
_MEMO_ENTRIES_MAX: Final = 100_000
_WINDOW: Final = 16 * 1024
_WINDOW_OVERLAP: Final = 128
"""Characters; no phrase of the value sets is longer than the overlap."""
_TAG: Final = re.compile(r"<[^<>]{0,4096}>")


@dataclass(frozen=True, slots=True, repr=False)
class Reading:
    """What one resource tells about where it belongs."""

    category: Category
    references: frozenset[str]
    """Every `Reference.reference` in it."""
    about: frozenset[str]
    """Those that name what it is about, such as the Condition an Encounter was for."""
    is_emergency: bool
    """To be copied into the emergency view, as long as nothing it is about is protected."""


def more_protected(one: Category, other: Category) -> Category:
    """Return the category that stands first in the table; `billing` stays what it is."""
    if Category.BILLING in {one, other}:
        return one
    return min(one, other, key=_RANK.__getitem__)


class Classifier:
    """Applies the table. Remembers answers for strings met before; make one for each document, and drop it after."""

    def __init__(self) -> None:
        self._words: dict[str, tuple[Category, ...]] = {}

    def __repr__(self) -> str:
        return f"Classifier({len(self._words)} strings)"

    def read(self, resource: FhirObject) -> Reading:
        """Return where a parsed resource belongs, by itself."""
        references: set[str] = set()
        about: set[str] = set()
        found: set[Category] = set()
        resource_type = str(resource.get("resourceType"))
        for node, key in _nodes(resource):
            self._read_object(node, resource_type, found)
            reference = node.get("reference")
            if isinstance(reference, str):
                references.add(reference)
                if key in _ABOUT:
                    about.add(reference)
        category = min(found, key=_RANK.__getitem__, default=Category.GENERAL)
        if category is Category.GENERAL and _is_laboratory(resource):
            category = Category.LABS
        if resource_type in BILLING_TYPES:
            category = Category.BILLING
        return Reading(
            category,
            frozenset(references),
            frozenset(about),
            is_emergency=category not in PROTECTED and is_emergency(resource),
        )

    def _read_object(self, node: FhirObject, top_type: str, found: set[Category]) -> None:
        resource_type = node.get("resourceType")
        if isinstance(resource_type, str) and resource_type in _BY_TYPE:
            found.add(_BY_TYPE[resource_type])
        code = node.get("code")
        if isinstance(code, str):
            found.update(_categories_of_code(node.get("system"), code))
        names_a_person = _names_a_person(node.get("reference"))
        for key, value in node.items():
            if key in _UNREAD or (key == "display" and names_a_person):
                continue
            for text in value if isinstance(value, list) else (value,):
                if isinstance(text, str):
                    found.update(self._of_words(text, top_type))
        attached = _attached_text(node)
        if attached:
            found.update(self._of_words(attached, top_type))

    def _of_words(self, text: str, top_type: str) -> Iterator[Category]:
        categories = self._words.get(text)
        if categories is None:
            readable = html.unescape(_TAG.sub(" ", text)) if "<" in text or "&" in text else text
            categories = tuple(row.category for row in TABLE if row.words and _says(row.words, readable))
            if len(self._words) < _MEMO_ENTRIES_MAX:
                self._words[text] = categories
        for category in categories:
            only_in = _WORDS_ONLY_IN.get(category)
            if not only_in or top_type in only_in:
                yield category


def is_emergency(resource: FhirObject) -> bool:
    """Say whether a resource is an allergy, current medication or an active problem (FHIR R4 status elements)."""
    match resource.get("resourceType"):
        case "AllergyIntolerance":
            return not _status(resource, "verificationStatus") & {"refuted", "entered-in-error"} and not (
                _status(resource, "clinicalStatus") & {"inactive", "resolved"}
            )
        case "MedicationRequest":
            return bool(_status(resource, "status") & {"active"}) and not (
                _status(resource, "intent") & {"proposal", "plan"}
            )
        case "MedicationStatement" | "MedicationUsage":
            return bool(_status(resource, "status") & {"active", "intended", "recorded"})
        case "Condition":
            return bool(_status(resource, "clinicalStatus") & {"active", "recurrence", "relapse"}) and not (
                _status(resource, "verificationStatus") & {"refuted", "entered-in-error"}
            )
        case _:
            return False


def category_named(name: str) -> Category | None:
    """Return the category of this name, or None: what `--category` checks."""
    return next((category for category in Category if category.value == name), None)


def _says(words: re.Pattern[str], text: str) -> bool:
    """Say whether a word of a set stands in `text`, searched in windows.

    One search of a long letter would keep every other thread of the daemon waiting: it holds the interpreter lock from
    its beginning to its end.
    """
    return any(
        words.search(text, start, start + _WINDOW + _WINDOW_OVERLAP)
        for start in range(0, max(len(text), 1), _WINDOW)
    )


def _status(resource: FhirObject, member: str) -> frozenset[str]:
    """Return the codes of a status element, be it a code (DSTU2 to R4) or a CodeableConcept."""
    value = resource.get(member)
    if isinstance(value, str):
        return frozenset({value})
    codings = value.get("coding") if isinstance(value, dict) else None
    return frozenset(
        str(coding.get("code"))
        for coding in (codings if isinstance(codings, list) else ())
        if isinstance(coding, dict)
    )


def _is_laboratory(resource: FhirObject) -> bool:
    """Say whether an otherwise general resource is a laboratory's: a report without category, a result on a specimen."""
    match resource.get("resourceType"):
        case "DiagnosticReport":
            return not resource.get("category")
        case "Observation":
            return "specimen" in resource
        case _:
            return False


def _nodes(resource: FhirObject) -> Iterator[tuple[FhirObject, str]]:
    """Yield every object in a resource with the name of its element; persons contained in it are left out."""
    stack: list[tuple[Any, str]] = [(resource, "")]  # Any: parsed JSON
    while stack:
        node, key = stack.pop()
        if isinstance(node, dict):
            if key and node.get("resourceType") in PERSON_TYPES:
                continue
            yield node, key
            stack.extend(
                (value, name)
                for name, value in node.items()
                if name != "identifier" and isinstance(value, dict | list)
            )
        else:
            stack.extend((value, key) for value in node if isinstance(value, dict | list))


def _names_a_person(reference: object) -> bool:
    return isinstance(reference, str) and ("Patient/" in reference or "Practitioner/" in reference)


def _attached_text(node: FhirObject) -> str:
    """Return the text of an Attachment that is text: a clinical note tells more than its coding."""
    data, media_type = node.get("data"), node.get("contentType")
    if not (isinstance(data, str) and isinstance(media_type, str) and _TEXT_MEDIA.match(media_type)):
        return ""
    try:
        return base64.b64decode(data).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return ""  # Not base64: kept as received, and nothing to read.


# --- the table, turned into look-ups ----------------------------------------------------------------------------------
def _by_code() -> dict[tuple[str, str], Category]:
    codes: dict[tuple[str, str], Category] = {}
    for row in reversed(TABLE):  # the most protected is written last and stays
        for system, listed in row.codes.items():
            codes.update({(system, code): row.category for code in listed.split()})
    return codes


def _by_prefix() -> dict[tuple[str, str], Category | None]:
    prefixes: dict[tuple[str, str], Category | None] = {}
    for row in reversed(TABLE):
        for system, listed in row.prefixes.items():
            prefixes.update({(system, prefix): row.category for prefix in listed.split()})
    for system, listed in sets.TOBACCO_PREFIXES.items():
        prefixes.update({(system, prefix): None for prefix in listed.split()})
    return prefixes


_BY_TYPE: Final = {resource_type: row.category for row in TABLE for resource_type in row.types}
_BY_CODE: Final = _by_code()
_BY_PREFIX: Final = _by_prefix()
_BY_LABEL: Final = {label: row.category for row in reversed(TABLE) for label in row.labels}
_WORDS_ONLY_IN: Final = {row.category: row.words_only_in for row in TABLE}
_PREFIX_CHARACTERS_MAX: Final = max(len(prefix) for _, prefix in _BY_PREFIX)


def _categories_of_code(system: object, code: str) -> Iterator[Category]:
    label = (_label_system(system), code)
    if label in _BY_LABEL:
        yield _BY_LABEL[label]
    for known in _systems(system, code):
        category = _BY_CODE.get((known, code))
        if category is not None:
            yield category
            continue
        plain = code.replace(".", "").upper()[:_PREFIX_CHARACTERS_MAX]
        for length in range(len(plain), 0, -1):
            if (known, plain[:length]) in _BY_PREFIX:
                by_prefix = _BY_PREFIX[known, plain[:length]]
                if by_prefix is not None:
                    yield by_prefix
                break


def _label_system(system: object) -> str:
    if not isinstance(system, str):
        return "observation-category"
    name = system.rpartition("/")[2]
    return (
        "v2-0074" if name == "0074" or name.endswith("113883.12.74") else name
    )  # STU3's spelling, and CDA's


def _systems(system: object, code: str) -> tuple[str, ...]:
    """Return the code systems a coding may be of; without a system, those whose codes cannot be taken for others."""
    if not isinstance(system, str):
        return (sets.SNOMED, sets.LOINC)
    name = system.lower().removeprefix("urn:oid:")
    for piece, known in sets.SYSTEMS:
        if name == piece or (not piece[0].isdigit() and piece in name):
            return (known,)
    return (sets.ICD10,) if _ICD10_SHAPE.fullmatch(code) else ()
