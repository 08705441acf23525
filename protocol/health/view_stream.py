"""Sorting NDJSON as it streams by: views grow resource by resource, and nothing larger than one line is held.

What differs from `views.sort`, which sees a whole document: whether the file spans categories is known at the end only
(`single`); a resource inherits the protection of what it is about when that stood on an earlier line; followers are
held back (they are small and few) and written at the end to the views that named them, except the Patient, who is
written at once to every view.
"""

from collections.abc import Iterator
from typing import Final

from protocol.errors import Refused
from protocol.health.categories import PROTECTED, Category, Classifier, Reading, more_protected
from protocol.health.fhir import ResourceText
from protocol.health.views import FOLLOWER_TYPES, ViewWriter, names_of

FOLLOWERS_BYTES_MAX: Final = 16 * 1024 * 1024
"""Followers held back until the end; a file of more is one of a directory, not of a patient."""
NAMES_MAX: Final = 200_000
"""Names of protected resources and references to followers that are remembered."""

Piece = tuple[Category, bytes]
"""Bytes to append to the view of a category."""


class StreamSorter:
    """Sorts a stream of resources; `add` for each, then `finish` once; append each piece to its category's view."""

    def __init__(self) -> None:
        self._classifier = Classifier()
        self._writers: dict[Category, ViewWriter] = {}
        self._named: dict[Category, set[str]] = {}
        self._patients: list[ResourceText] = []
        self._patient_references: frozenset[str] = frozenset()
        self._followers: list[tuple[ResourceText, Reading, frozenset[str]]] = []
        self._held_bytes = 0
        self._protected: dict[str, Category] = {}

    @property
    def single(self) -> Category | None:
        """The category of everything so far, None when there are several; `general` when nothing has one."""
        found = [category for category in self._writers if category is not Category.EMERGENCY]
        return None if len(found) > 1 else found[0] if found else Category.GENERAL

    def add(self, text: ResourceText) -> Iterator[Piece]:
        """Sort one resource; yield what to append.

        Raises:
            Refused: more followers than are held back.
        """
        resource = text.resource()
        reading = self._classifier.read(resource)
        if text.resource_type in FOLLOWER_TYPES:
            yield from self._hold(text, reading, frozenset(names_of(text, resource)))
            return
        category = self._category(reading)
        if category in PROTECTED and len(self._protected) < NAMES_MAX:
            self._protected.update(dict.fromkeys(names_of(text, resource), category))
        copied = reading.is_emergency and category not in PROTECTED
        for view in (category, Category.EMERGENCY) if copied else (category,):
            yield from self._open(view)
            yield from ((view, piece) for piece in self._writers[view].add(text))
            named = self._named[view]
            if len(named) < NAMES_MAX:
                named.update(reading.references)

    def finish(self) -> Iterator[Piece]:
        """Yield the followers and the end of every view."""
        for category, writer in self._writers.items():
            waiting = list(self._followers)
            named = self._named[category] | self._patient_references
            found = True
            while found:
                followed = [one for one in waiting if one[2] & named]
                found = bool(followed)
                for one in followed:
                    waiting.remove(one)
                    named |= one[1].references
                    yield from ((category, piece) for piece in writer.add(one[0]))
            yield category, writer.finish()

    def _open(self, category: Category) -> Iterator[Piece]:
        if category not in self._writers:
            writer = self._writers[category] = ViewWriter()
            self._named[category] = set()
            for patient in self._patients:
                yield from ((category, piece) for piece in writer.add(patient))

    def _category(self, reading: Reading) -> Category:
        category = reading.category
        for reference in reading.about:
            about = self._protected.get(reference)
            if about is not None:
                category = more_protected(category, about)
        return category

    def _hold(self, text: ResourceText, reading: Reading, names: frozenset[str]) -> Iterator[Piece]:
        self._held_bytes += len(text.text)
        if self._held_bytes > FOLLOWERS_BYTES_MAX:
            raise Refused(
                "the file holds more practitioners, organizations and locations than a patient's record does: add it "
                "with --media-type application/octet-stream to keep it as it is"
            )
        if text.resource_type == "Patient":
            self._patients.append(text)
            self._patient_references |= reading.references
            for category, writer in self._writers.items():
                yield from ((category, piece) for piece in writer.add(text))
        else:
            self._followers.append((text, reading, names))
