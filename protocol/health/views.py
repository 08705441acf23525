"""A document sorted by category, and the views spliced from it.

A document whose resources all fall into one category is stored once, there. One that spans categories is stored whole
as an original (`mixed`) and as a view for each category. Either way the resources meant for emergencies are copied into
an `emergency` view.

Followers have no category: the Patient goes into every view, Practitioner, PractitionerRole, Organization and Location
where a resource of that view names them, directly or through another follower. A Medication follows in the same way
whoever is copied into the emergency view with a reference to it. A resource about another one (an Encounter for a
Condition, a MedicationRequest for a Medication) is at least as protected as what it is about, if that is in the document.

A view is a FHIR `collection` Bundle (R4 3.1.1): its own twenty words around texts that are copied byte for byte.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from protocol.health.categories import PROTECTED, Category, Classifier, Reading, more_protected
from protocol.health.fhir import FhirDocument, FhirObject, ResourceText

FOLLOWER_TYPES: Final = frozenset({"Location", "Organization", "Patient", "Practitioner", "PractitionerRole"})

_HEAD: Final = b'{"resourceType":"Bundle","type":"collection"'


@dataclass(frozen=True, slots=True)
class Sorted:
    """Where the resources of a document belong."""

    single: Category | None
    """The category the whole document is stored in; None: it spans categories and becomes an original."""
    views: Mapping[Category, tuple[int, ...]]
    """For each view to be made: indexes into `FhirDocument.resources`, ascending, copies and followers included.

    Holds every category of a document that spans several; at most `emergency` of one that does not."""
    categories: tuple[Category | None, ...]
    """The category of each resource; None for followers."""


def sort(document: FhirDocument) -> Sorted:
    """Sort a document's resources by category."""
    classifier = Classifier()
    readings: list[Reading] = []
    index = _References()
    for position, text in enumerate(document.resources):
        resource = text.resource()
        readings.append(classifier.read(resource))
        index.add(position, text, resource)
    categories = [
        None if text.resource_type in FOLLOWER_TYPES else _with_what_it_is_about(reading, index, readings)
        for text, reading in zip(document.resources, readings, strict=True)
    ]
    members: dict[Category, set[int]] = {}
    for position, category in enumerate(categories):
        if category is not None:
            members.setdefault(category, set()).add(position)
            if readings[position].is_emergency and category not in PROTECTED:
                members.setdefault(Category.EMERGENCY, set()).add(position)
    found = [category for category in members if category is not Category.EMERGENCY]
    single = None if len(found) > 1 else found[0] if found else Category.GENERAL
    patients = {
        position for position, text in enumerate(document.resources) if text.resource_type == "Patient"
    }
    followed: set[int] = set()
    views: dict[Category, tuple[int, ...]] = {}
    for category in Category:  # in the order of the enumeration, the same on every node
        if category in members and (single is None or category is Category.EMERGENCY):
            together = index.followed(members[category] | patients, readings, document)
            followed |= together
            views[category] = tuple(sorted(together))
    unnamed = {position for position, category in enumerate(categories) if category is None} - followed
    if unnamed and Category.GENERAL in views:
        views[Category.GENERAL] = tuple(sorted({*views[Category.GENERAL], *unnamed}))
    return Sorted(single, views, tuple(categories))


def views(document: FhirDocument, sorted_: Sorted) -> Iterator[tuple[Category, Iterator[bytes]]]:
    """Yield each view's category and its bytes, in pieces no larger than one resource's text."""
    for category, positions in sorted_.views.items():
        yield category, _spliced(document.resources[position] for position in positions)


def _spliced(texts: Iterable[ResourceText]) -> Iterator[bytes]:
    writer = ViewWriter()
    for text in texts:
        yield from writer.add(text)
    yield writer.finish()


class ViewWriter:
    """Writes one view resource by resource; `add` for each, then `finish` once, and join what they return."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, text: ResourceText) -> tuple[bytes, bytes, bytes]:
        """Return the pieces that add one resource: glue, its own text, glue."""
        glue = b"," if self._count else _HEAD + b',"entry":['
        self._count += 1
        url = text.full_url_text
        named = b"" if url is None else b'"fullUrl":' + url + b","
        return glue + b"{" + named + b'"resource":', text.text, b"}"

    def finish(self) -> bytes:
        """Return what closes the Bundle. An empty one has no `entry`: FHIR forbids empty arrays."""
        return b"]}" if self._count else _HEAD + b"}"


class _References:
    """Finds the resources of one document by the ways in which FHIR refers to them."""

    def __init__(self) -> None:
        self._positions: dict[str, int] = {}

    def add(self, position: int, text: ResourceText, resource: FhirObject) -> None:
        for name in names_of(text, resource):
            self._positions.setdefault(name, position)

    def position(self, reference: str) -> int | None:
        """Return the resource a reference names: by full URL, `Type/id`, absolute or versioned, or by identifier."""
        reference = reference.partition("/_history/")[0]
        found = self._positions.get(reference)
        return found if found is not None else self._positions.get("/".join(reference.rsplit("/", 2)[-2:]))

    def followed(self, start: set[int], readings: list[Reading], document: FhirDocument) -> set[int]:
        """Return `start` and every follower it names, and those they name."""
        found = set(start)
        fresh = list(start)
        while fresh:
            position = fresh.pop()
            emergency = readings[position].is_emergency
            for reference in readings[position].references:
                target = self.position(reference)
                if target is None or target in found:
                    continue
                target_type = document.resources[target].resource_type
                if target_type in FOLLOWER_TYPES or (emergency and target_type == "Medication"):
                    found.add(target)
                    fresh.append(target)
        return found


def names_of(text: ResourceText, resource: FhirObject) -> Iterator[str]:
    """Yield the strings by which other resources may refer to this one."""
    url = text.url()
    if url is not None:
        yield url
        if url.count("/") >= 1:
            yield "/".join(url.rsplit("/", 2)[-2:])
    if text.id is not None:
        yield f"{text.resource_type}/{text.id}"
    identifiers = resource.get("identifier")
    if text.resource_type in FOLLOWER_TYPES and isinstance(identifiers, list):
        for identifier in identifiers:
            if isinstance(identifier, dict):
                # Conditional references of transactions (FHIR R4 3.1.0.7.3), as Synthea writes them.
                yield f"{text.resource_type}?identifier={identifier.get('system')}|{identifier.get('value')}"


def _with_what_it_is_about(reading: Reading, index: _References, readings: list[Reading]) -> Category:
    category = reading.category
    for reference in reading.about:
        target = index.position(reference)
        if target is not None and readings[target].category in PROTECTED:
            category = more_protected(category, readings[target].category)
    return category
