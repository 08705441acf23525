"""Whose a document is: identities in Patient resources, and references to patients that are not in the document.

The matching rule is deterministic on purpose. Two identities are of one patient when they share an identifier, that is
the same (system, value) (FHIR R4 2.24.0.4, Identifier); names never match anybody, because they are shared and
misspelt. A shared identifier with two birth dates is a conflict for a person to settle, never a guess.

Identifiers count when they have a system and a value. Those of a type that many people may share or that changes
hands are left out: driver's licence plates and employers' numbers never identify a patient here (`_WEAK_TYPES`).
"""

import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from protocol.errors import Refused
from protocol.health.fhir import FhirDocument, FhirObject

Identifier = tuple[str, str]
"""(system, value)."""

SUBJECTS_MAX = 1_000
"""References to patients of one document that are remembered until the Patient is met; a document of one patient
needs one or two spellings."""

# HL7 v2 table 0203: account, visit, employer, insured group and temporary numbers are shared or reused.
_WEAK_TYPES = frozenset({"AN", "ANON", "ANT", "EI", "EN", "GN", "NE", "PN", "VN", "XV"})
_SUBJECT_MEMBERS = ("subject", "patient", "beneficiary", "for", "individual")
_NESTED_MEMBERS = ("contained", "entry", "parameter")
_fhir_date = re.compile(r"\d{4}(?:-\d{2}(?:-\d{2})?)?")
_patient_reference = re.compile(r"(?:^|/)Patient/([^/?#]+)(?:/_history/[^/]+)?$")


class Match(enum.Enum):
    """How two identities relate."""

    SAME = "same"
    DIFFERENT = "different"
    CONFLICT = "conflict"
    """They share an identifier but not the birth date: refuse and let a person look."""


@dataclass(frozen=True, slots=True, repr=False)
class PatientIdentity:
    """What a Patient resource says about who it is. Missing values are empty."""

    identifiers: frozenset[Identifier]
    name: str
    birth_date: str
    """FHIR date: YYYY, YYYY-MM or YYYY-MM-DD."""
    gender: str = ""

    def __repr__(self) -> str:
        return f"PatientIdentity({len(self.identifiers)} identifiers)"


@dataclass(frozen=True, slots=True, repr=False)
class Subjects:
    """Whom a document is about, as far as it says so.

    An accepted document has at most one identity, from its Patient resource. Without one, it has identifiers of logical
    references, or at most one bare reference, which names nobody outside the server it comes from.
    """

    identity: PatientIdentity | None
    logical: frozenset[Identifier]
    """Identifiers of references such as `subject.identifier` that stand without a Patient in the document."""
    references: frozenset[str]
    """Ids or URLs of patients that are named but not in the document."""

    @property
    def is_ambiguous(self) -> bool:
        """Say whether resources refer to a patient beside the Patient in the document.

        Published summaries do this by mistake (a reference left from another server), so it is no refusal by itself;
        but such a document must not be taken for its Patient's unless somebody says whose it is (`--patient`).
        """
        return self.identity is not None and bool(self.references)

    def identifiers(self) -> frozenset[Identifier]:
        """Return every identifier by which the document names its patient."""
        return self.logical | (self.identity.identifiers if self.identity else frozenset())

    def __repr__(self) -> str:
        return f"Subjects({len(self.identifiers())} identifiers, {len(self.references)} references)"


def matches(one: PatientIdentity, other: PatientIdentity) -> Match:
    """Compare two identities; birth dates of unequal precision agree when one begins with the other."""
    if not one.identifiers & other.identifiers:
        return Match.DIFFERENT
    if not (one.birth_date.startswith(other.birth_date) or other.birth_date.startswith(one.birth_date)):
        return Match.CONFLICT
    return Match.SAME


def patient_identity(patient: FhirObject) -> PatientIdentity:
    """Return what a parsed Patient resource says; elements of unexpected shape count as absent."""
    birth_date, gender = patient.get("birthDate"), patient.get("gender")
    return PatientIdentity(
        identifiers=frozenset(_identifiers(patient.get("identifier"))),
        name=_name(patient.get("name")),
        birth_date=birth_date if isinstance(birth_date, str) and _fhir_date.fullmatch(birth_date) else "",
        gender=gender if isinstance(gender, str) and _is_text(gender) else "",
    )


def identity_of(document: FhirDocument) -> PatientIdentity:
    """Return the identity of the one Patient in a document: what `patient register --from` reads.

    Raises:
        Refused: no Patient, two, or one that cannot be told from others (no identifier and no name).
    """
    identity = document_subjects(document).identity
    if identity is None:
        raise Refused(
            "the document holds no Patient resource: register from a FHIR Patient or a Bundle with one"
        )
    if not identity.identifiers and not (identity.name and identity.birth_date):
        raise Refused(
            "the Patient has neither an identifier with system and value nor a name with a birth date: "
            "give them with --identifier, --name and --birth-date"
        )
    return identity


def document_subjects(document: FhirDocument) -> Subjects:
    """Return whom a document is about.

    Raises:
        Refused: it names two patients.
    """
    collector = SubjectCollector()
    elsewhere: set[str] = set()
    for text in document.resources:
        url = text.url()
        collector.add(text.resource(), url)
        if url is not None and text.resource_type != "Patient":
            elsewhere.add(url)
    return collector.finish(frozenset(elsewhere))


class SubjectCollector:
    """Gathers the subjects of a document one resource at a time; `add` for each, then `finish` once."""

    def __init__(self) -> None:
        self._identity: PatientIdentity | None = None
        self._names: set[str] = set()  # ids and URLs under which the Patient of this document is referred to
        self._references: set[str] = set()
        self._logical: set[Identifier] = set()

    def add(self, resource: FhirObject, url: str | None = None) -> None:
        """Take in one parsed resource and the `fullUrl` of its entry.

        Raises:
            Refused: a second patient.
        """
        waiting = [(resource, url)]
        while waiting:  # a stack of our own: how deeply resources are nested is the sender's choice
            one, one_url = waiting.pop()
            if one.get("resourceType") == "Patient":
                self._add_patient(one, one_url)
            for member in _SUBJECT_MEMBERS:
                self._add_reference(one.get(member), expects_patient=member in {"patient", "beneficiary"})
            waiting.extend(_nested(one))

    def finish(self, elsewhere: frozenset[str] = frozenset()) -> Subjects:
        """Return the subjects; `elsewhere` are full URLs of resources that are no patients.

        Raises:
            Refused: references without a Patient name two, or an identifier is not that of the Patient.
        """
        open_references = frozenset(self._references - self._names - elsewhere)
        if self._identity is not None:
            if not self._agrees(self._logical):
                raise _two_patients()
            return Subjects(self._identity, frozenset(self._logical), open_references)
        by_system = {system for system, _ in self._logical}
        if len(open_references) > 1 or len(by_system) < len(self._logical):
            raise _two_patients()
        return Subjects(None, frozenset(self._logical), open_references)

    def _agrees(self, logical: set[Identifier]) -> bool:
        """Say whether no logical reference gives another value in a system the Patient has one in."""
        assert self._identity is not None
        own = self._identity.identifiers
        systems = {system for system, _ in own}
        return all(one in own or one[0] not in systems for one in logical)

    def _add_patient(self, patient: FhirObject, url: str | None) -> None:
        identity = patient_identity(patient)
        names = {name for name in (patient.get("id"), url, _tail(url)) if isinstance(name, str)}
        if self._identity is None:
            self._identity = identity
        elif matches(self._identity, identity) is Match.SAME:
            # The same person twice, as when a document holds two versions: the identifiers of both count.
            merged = self._identity.identifiers | identity.identifiers
            self._identity = PatientIdentity(
                merged, self._identity.name or identity.name, self._identity.birth_date, self._identity.gender
            )
        elif not (identity == self._identity and names & self._names):
            raise _two_patients()
        self._names |= names | {f"#{name}" for name in names}

    def _add_reference(self, element: object, *, expects_patient: bool) -> None:
        if isinstance(element, list):  # subjects of a few resource types repeat
            for one in element:
                if isinstance(one, dict):
                    self._add_reference(one, expects_patient=expects_patient)
            return
        if not isinstance(element, dict):
            return
        reference = element.get("reference")
        if isinstance(reference, str):
            patient_id = _tail(reference)
            if patient_id is not None:
                self._remember(patient_id)
            elif expects_patient or (element.get("type") == "Patient") or reference.startswith("urn:"):
                self._remember(reference)
        elif expects_patient or element.get("type") == "Patient":
            self._logical.update(_identifiers([element.get("identifier")]))

    def _remember(self, reference: str) -> None:
        self._references.add(reference)
        if len(self._references) > SUBJECTS_MAX:
            raise _two_patients()


def _two_patients() -> Refused:
    return Refused("the document names two patients: split it and add one document for each")


def _tail(url: object) -> str | None:
    """Return the id in `Patient/id`, alone or at the end of a URL, with or without a version."""
    found = _patient_reference.search(url) if isinstance(url, str) else None
    return found.group(1) if found else None


def _nested(resource: FhirObject) -> Iterator[tuple[FhirObject, str | None]]:
    """Yield resources inside this one: contained, entries of an inner Bundle, parameters."""
    for member in _NESTED_MEMBERS:
        elements = resource.get(member)
        for element in elements if isinstance(elements, list) else ():
            if not isinstance(element, dict):
                continue
            inner = element if member == "contained" else element.get("resource")
            if isinstance(inner, dict) and isinstance(inner.get("resourceType"), str):
                url = element.get("fullUrl")
                yield inner, url if isinstance(url, str) else None


def _identifiers(elements: object) -> Iterator[Identifier]:
    for element in elements if isinstance(elements, list) else ():
        if not isinstance(element, dict):
            continue
        system, value = element.get("system"), element.get("value")
        if not (isinstance(system, str) and isinstance(value, str) and system and value.strip()):
            continue
        if not (_is_text(system) and _is_text(value)):
            continue
        if _type_codes(element.get("type")) & _WEAK_TYPES or element.get("use") in {"temp", "old"}:
            continue
        yield system, value.strip()


def _is_text(text: str) -> bool:
    """Say whether a string can be written as UTF-8: JSON escapes may spell half a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _type_codes(element: object) -> frozenset[str]:
    codings = element.get("coding") if isinstance(element, dict) else None
    return frozenset(
        str(coding.get("code"))
        for coding in (codings if isinstance(codings, list) else ())
        if isinstance(coding, dict)
    )


def _name(elements: object) -> str:
    """Return the official or else the first name, given names before the family name."""
    names = [
        element for element in (elements if isinstance(elements, list) else ()) if isinstance(element, dict)
    ]
    if not names:
        return ""
    name = next((name for name in names if name.get("use") == "official"), names[0])
    text = name.get("text")
    if isinstance(text, str) and text.strip() and _is_text(text):
        return text.strip()
    given = name.get("given")
    parts: Iterable[object] = (*(given if isinstance(given, list) else (given,)), name.get("family"))
    return " ".join(
        part.strip() for part in parts if isinstance(part, str) and part.strip() and _is_text(part)
    )
