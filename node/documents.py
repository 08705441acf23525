"""What a received file says while it streams by: whose it is, and which categories its parts fall into.

Three readers of one shape, `feed` for each block and `finish` once, all run in a worker:

    OpaqueReader   HL7 v2, C-CDA, DICOM, PDF and whatever else is kept unread
    WholeReader    a FHIR resource or Bundle, held in memory up to 64 MiB; above, it is kept unsorted
    LineReader     NDJSON of any size, line by line

`feed` and `Findings.rest` hand out (category, piece): the next bytes of that category's view.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from protocol import limits
from protocol.errors import Refused
from protocol.health import fhir, view_stream, views
from protocol.health.categories import Category
from protocol.health.document_kind import Kind
from protocol.health.identity import SubjectCollector, Subjects, document_subjects

Piece = tuple[Category, bytes]

LINE_BYTES_MAX = 16 * limits.MIB
_MEDIA_TYPES = {
    Kind.FHIR_JSON: "application/fhir+json",
    Kind.NDJSON: "application/fhir+ndjson",
    Kind.HL7V2: "application/hl7-v2",
    Kind.CCDA: "application/cda+xml",
    Kind.DICOM: "application/dicom",
    Kind.PDF: "application/pdf",
    Kind.OPAQUE: "application/octet-stream",
}
_UNSORTED = (
    "the document is over 64 MiB and not NDJSON, so it was not sorted: it is one record in the category mixed"
)


@dataclass(frozen=True, slots=True, repr=False)
class Findings:
    """What is known at the end. `category` None: the document spans categories and becomes an original.

    `subjects` None: the document was not read for its patient. `wanted` are the views to keep; `rest` their last pieces.
    """

    subjects: Subjects | None
    category: Category | None
    wanted: frozenset[Category]
    rest: Iterator[Piece]
    notice: str = ""

    def __repr__(self) -> str:
        return f"Findings({self.category}, {len(self.wanted)} views)"


class OpaqueReader:
    """Reads nothing."""

    def feed(self, block: bytes) -> list[Piece]:  # noqa: ARG002  (the shape of a reader)
        """Return nothing."""
        return []

    def finish(self) -> Findings:
        """Return that nothing is known: the file goes into `mixed`."""
        return Findings(None, Category.MIXED, frozenset(), iter(()))


class WholeReader:
    """Holds a FHIR document until it can be parsed as a whole."""

    def __init__(self, *, sorts: bool) -> None:
        self._sorts = sorts
        self._blocks: list[bytes] = []
        self._bytes = 0

    def feed(self, block: bytes) -> list[Piece]:
        """Keep a block; let go of all of them when the document is too large to be sorted."""
        self._bytes += len(block)
        if self._bytes <= limits.SORTED_BYTES_MAX:
            self._blocks.append(block)
        else:
            self._blocks = []
        return []

    def finish(self) -> Findings:
        """Parse, find the patient, sort.

        Raises:
            Refused: not FHIR JSON, or of two patients.
        """
        if self._bytes > limits.SORTED_BYTES_MAX:
            return Findings(None, Category.MIXED, frozenset(), iter(()), _UNSORTED)
        data = self._blocks[0] if len(self._blocks) == 1 else b"".join(self._blocks)
        self._blocks = []
        document = fhir.parse_document(data)
        subjects = document_subjects(document)
        if not self._sorts:
            return Findings(subjects, None, frozenset(), iter(()))
        sorted_ = views.sort(document)
        rest = ((category, piece) for category, pieces in views.views(document, sorted_) for piece in pieces)
        return Findings(subjects, sorted_.single, frozenset(sorted_.views), rest)


class LineReader:
    """Reads NDJSON line by line; the followers of each view come at the end."""

    def __init__(self, *, sorts: bool) -> None:
        self._sorter = view_stream.StreamSorter() if sorts else None
        self._subjects = SubjectCollector()
        self._elsewhere: set[str] = set()
        self._line: list[bytes] = []
        self._line_bytes = 0
        self._number = 0
        self._streamed: set[Category] = set()
        self._resources = 0

    def feed(self, block: bytes) -> list[Piece]:
        """Read the lines that a block completes.

        Raises:
            Refused: a line is too long, not FHIR JSON, or about a second patient.
        """
        first, *others = block.split(b"\n")
        self._keep(first)
        pieces: list[Piece] = []
        for other in others:
            pieces += self._read()
            self._keep(other)
        return pieces

    def finish(self) -> Findings:
        """Read the last line and close the views.

        Raises:
            Refused: as `feed`; or there is no resource at all.
        """
        last = self._read()
        if not self._resources:
            raise Refused("the NDJSON file holds no resource, so there is nothing to keep: check the export")
        subjects = self._subjects.finish(frozenset(self._elsewhere))
        if self._sorter is None:
            return Findings(subjects, None, frozenset(), iter(()))
        single = self._sorter.single
        closing = list(self._sorter.finish())
        found = self._streamed | {category for category, _ in (*last, *closing)}
        wanted = found if single is None else found & {Category.EMERGENCY}
        return Findings(subjects, single, frozenset(wanted), iter([*last, *closing]))

    def _keep(self, part: bytes) -> None:
        self._line.append(part)
        self._line_bytes += len(part)
        if self._line_bytes > LINE_BYTES_MAX:
            raise Refused(
                f"line {self._number + 1} of the NDJSON file is over {LINE_BYTES_MAX >> 20} MiB: write one resource a line"
            )

    def _read(self) -> list[Piece]:
        line = b"".join(self._line)
        self._line, self._line_bytes = [], 0
        self._number += 1
        try:
            pieces: list[Piece] = []
            for text in fhir.resources_of_line(line):
                self._resources += 1
                url = text.url()
                self._subjects.add(text.resource(), url)
                if (
                    url is not None
                    and text.resource_type != "Patient"
                    and len(self._elsewhere) < view_stream.NAMES_MAX
                ):
                    self._elsewhere.add(url)
                if self._sorter is not None:
                    pieces += self._sorter.add(text)
        except Refused as error:
            raise fhir.line_refused(self._number, error) from None
        self._streamed.update(category for category, _ in pieces)
        return pieces


Reader = OpaqueReader | WholeReader | LineReader


def reader_of(kind: Kind, *, sorts: bool) -> Reader:
    """Return the reader for a kind of file; with `sorts` false the whole file goes into one category."""
    match kind:
        case Kind.FHIR_JSON:
            return WholeReader(sorts=sorts)
        case Kind.NDJSON:
            return LineReader(sorts=sorts)
        case _:
            return OpaqueReader()


def media_type_of(kind: Kind, stated: str | None) -> str:
    """Return the media type to record: what was stated, else what the kind is called."""
    return stated or _MEDIA_TYPES[kind]
