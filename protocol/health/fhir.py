"""A FHIR JSON document as it was received: every resource's own text, found and never rewritten.

`parse_document` walks a Bundle lexically and keeps spans; one resource at a time is held parsed while its type and
id are read, and `ResourceText.resource()` parses it again when somebody looks inside. Sources: FHIR R4 sections 2.6
(JSON), 3.1 Bundle; Bulk Data Access 3 (NDJSON).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from protocol.errors import Refused
from protocol.health import json_text
from protocol.health.json_text import JsonText, Span
from protocol.health.resource_types import RESOURCE_TYPES

FhirObject = dict[str, Any]
"""A parsed resource or element. Any: FHIR JSON is read leniently, every reader checks what it takes."""

_KEEP_OPAQUE = "add it with --media-type application/octet-stream to keep it as it is"


@dataclass(frozen=True, slots=True, repr=False)
class ResourceText:
    """One resource of a document: what it is called, and where its own text stands."""

    data: bytes
    """The whole document; shared by all its resources."""
    span: Span
    resource_type: str
    id: str | None
    full_url: Span | None
    """The `fullUrl` of its entry as a JSON string, quotes included."""

    @property
    def text(self) -> bytes:
        """The resource's own text, byte for byte."""
        return self.span.of(self.data)

    @property
    def full_url_text(self) -> bytes | None:
        """The entry's `fullUrl` as a JSON string, byte for byte."""
        return None if self.full_url is None else self.full_url.of(self.data)

    def resource(self) -> FhirObject:
        """Return the parsed resource, anew at each call: nobody holds a whole document parsed."""
        found: FhirObject = json_text.read(self.text)
        return found

    def url(self) -> str | None:
        """Return the decoded `fullUrl` of its entry."""
        raw = self.full_url_text
        return None if raw is None else str(json_text.read(raw))

    def __repr__(self) -> str:
        return f"ResourceText({self.resource_type}, {self.span.end - self.span.start} bytes)"


@dataclass(frozen=True, slots=True, repr=False)
class FhirDocument:
    """The received bytes and the resources in them, in their order."""

    data: bytes
    resource_type: str
    """Type of the document itself: `Bundle`, or that of its one resource."""
    resources: tuple[ResourceText, ...]

    def __repr__(self) -> str:
        return f"FhirDocument({self.resource_type}, {len(self.resources)} resources, {len(self.data)} bytes)"


def parse_document(data: bytes) -> FhirDocument:
    """Find the resources of a Bundle, or the one resource a document is. `data` may begin with a byte order mark.

    Raises:
        Refused: empty, not UTF-8, not JSON, not FHIR, a Bundle without resources or with an entry that is none.
    """
    text = JsonText(data)
    if not text.is_at(text.start, "{"):
        if not text.is_at(text.start, "["):
            text.value(text.start)
        raise Refused(f"the JSON is not a FHIR resource, because it is no object: {_KEEP_OPAQUE}")
    walk = _Walk(data, text)
    end = walk.document(text.start)
    text.end(end)
    resource_type = _known_type(walk.resource_type, "the JSON")
    if resource_type != "Bundle":
        whole = ResourceText(data, Span(text.start, end), resource_type, walk.id, None)
        return FhirDocument(data, resource_type, (whole,))
    return FhirDocument(
        data, resource_type, tuple(_resource_of(entry, data, number) for number, entry in walk.numbered())
    )


def resources_of_line(line: bytes) -> tuple[ResourceText, ...]:
    """Return the resources on one line of NDJSON: none on a blank line; those of a Bundle that stands on the line.

    A byte order mark (first line) and the CR of a CR LF ending are taken off.

    Raises:
        Refused: as `parse_document`; the caller adds the line's number (`line_refused`).
    """
    if not line.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n"):
        return ()
    return parse_document(line).resources


def lines_of(blocks: Iterator[bytes], *, line_bytes_max: int) -> Iterator[bytes]:
    """Cut a stream of byte blocks into lines without their LF; the last line may lack it.

    Raises:
        Refused: a line longer than `line_bytes_max`, which is not held in memory.
    """
    pending: list[
        bytes
    ] = []  # pieces of the line that no LF has ended yet; joined once, however many they are
    pending_bytes = 0
    for block in blocks:
        first, *others = block.split(b"\n")
        pending.append(first)
        pending_bytes += len(first)
        if pending_bytes > line_bytes_max:
            raise Refused(
                f"a line of the NDJSON file is longer than {line_bytes_max} bytes: write one resource a line"
            )
        if others:
            yield b"".join(pending)
            yield from others[:-1]
            pending, pending_bytes = [others[-1]], len(others[-1])
    if pending_bytes:
        yield b"".join(pending)


def line_refused(number: int, error: Refused) -> Refused:
    """Return `error` with the number of its line, counted from 1."""
    return Refused(f"line {number} of the NDJSON file: {error}")


@dataclass(slots=True)
class _Entry:
    """What an entry of a Bundle holds, before it is known whether the document is a Bundle at all."""

    resource: Span | None = None
    resource_type: object = None
    id: object = None
    full_url: Span | None = None
    names: frozenset[str] = frozenset()


class _Walk:
    """One pass over the outermost object and its `entry` array; keeps spans, drops parsed values at once."""

    def __init__(self, data: bytes, text: JsonText) -> None:
        self._data = data
        self._text = text
        self._entries: list[_Entry] = []
        self.resource_type: object = None
        self._id: object = None

    @property
    def id(self) -> str | None:
        return self._id if isinstance(self._id, str) else None

    def numbered(self) -> Iterator[tuple[int, _Entry]]:
        """Yield the entries that hold a resource, with their number from 1; refuse a Bundle without any."""
        found = False
        for number, entry in enumerate(self._entries, 1):
            # A deletion or a server's answer holds no resource (FHIR R4 3.1.1, bdl-5).
            if entry.resource is None and entry.names & {"request", "response"}:
                continue
            found = True
            yield number, entry
        if not found:
            raise Refused("the Bundle holds no resource, so there is nothing to keep: check the export")

    def document(self, position: int) -> int:
        """Walk the outermost object; return its end."""

        def member(name: str, at: int) -> int:
            if name == "entry" and self._text.is_at(at, "["):
                return self._array(at)
            value, span = self._text.value(at)
            if name == "resourceType":
                self.resource_type = value
            elif name == "id":
                self._id = value
            return span.end

        return self._object(position, member)[0]

    def _array(self, position: int) -> int:
        position = self._text.expect(position, "[")
        if self._text.is_at(position, "]"):
            return position + 1
        closed = False
        while not closed:
            position = self._entry(position)
            position, closed = self._text.next_or_end(position, "]")
        return position

    def _entry(self, position: int) -> int:
        entry = _Entry()
        self._entries.append(entry)
        if not self._text.is_at(position, "{"):
            return self._text.value(position)[1].end

        def member(name: str, at: int) -> int:
            value, span = self._text.value(at)
            if name == "resource" and isinstance(value, dict):
                entry.resource, entry.resource_type, entry.id = (
                    span,
                    value.get("resourceType"),
                    value.get("id"),
                )
            elif name == "fullUrl" and isinstance(value, str):
                entry.full_url = span
            return span.end

        position, entry.names = self._object(position, member)
        return position

    def _object(self, position: int, member: Callable[[str, int], int]) -> tuple[int, frozenset[str]]:
        """Walk an object: `member(name, position of the value)` returns the value's end."""
        start = position
        names: set[str] = set()
        position = self._text.expect(position, "{")
        if self._text.is_at(position, "}"):
            return position + 1, frozenset()
        closed = False
        while not closed:
            name, at = self._text.name(position)
            if name in names:
                raise Refused(
                    f"the JSON object at {self._text.place(start)} repeats a name, so that readers would disagree "
                    "about it: export it again"
                )
            names.add(name)
            position, closed = self._text.next_or_end(member(name, at), "}")
        return position, frozenset(names)


def _resource_of(entry: _Entry, data: bytes, number: int) -> ResourceText:
    if entry.resource is None:
        raise Refused(f"entry {number} of the Bundle holds no resource: check the export")
    resource_type = _known_type(entry.resource_type, f"entry {number} of the Bundle")
    identifier = entry.id if isinstance(entry.id, str) else None
    return ResourceText(data, entry.resource, resource_type, identifier, entry.full_url)


def _known_type(resource_type: object, what: str) -> str:
    if not isinstance(resource_type, str):
        raise Refused(f"{what} is not a FHIR resource, because it has no resourceType: {_KEEP_OPAQUE}")
    if resource_type not in RESOURCE_TYPES:
        raise Refused(f"{what} is of a resourceType that FHIR does not know: {_KEEP_OPAQUE}")
    return resource_type
