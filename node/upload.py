"""One file on its way in: what it says, the records it becomes, and their sealing. Pure work, fit for a worker thread.

    consume (each block) ──► finish ──► seal_main ──► seal_views… ──► records

Who may add it, and what is stored where, is decided by `node/ingest.py` between these calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from node.documents import Findings, media_type_of, reader_of
from node.patients import LocalPatient
from node.ports import Entropy
from node.staging import StagedRecord
from protocol.health import document_kind
from protocol.health.categories import Category
from protocol.identifiers import ZERO, Cid, Rid
from protocol.sealing import SealedChunk

_STEP_CHUNKS = 8


@dataclass(frozen=True, slots=True, repr=False)
class Owner:
    """Whose the file is; `override` when its own words say otherwise and the caller insisted."""

    patient: LocalPatient
    override: bool


@dataclass(frozen=True, slots=True, repr=False)
class Part:
    """One record that a file became. `part_of` is the original of a view, else ZERO."""

    category: str
    kind: str
    part_of: Rid
    staged: StagedRecord


class Upload:
    """Reads and seals one file. Used by one worker at a time."""

    def __init__(
        self,
        head: bytes,
        *,
        media_type: str | None,
        file_suffix: str,
        chosen: Category | None,
        entropy: Entropy,
    ) -> None:
        """`head` are its first bytes, `chosen` the category of somebody who does not want it sorted.

        Raises:
            Refused: it is not of the kind that was said.
        """
        kind = document_kind.detect(media_type, head[: document_kind.HEAD_BYTES], file_suffix)
        self._reader = reader_of(kind, sorts=chosen is None)
        self._media_type = media_type_of(kind, media_type)
        self._chosen = chosen
        self._entropy = entropy
        self._findings: Findings | None = None
        self.main = self._staged()
        self.views: dict[Category, StagedRecord] = {}

    @property
    def findings(self) -> Findings:
        """What the file says, once it has been read."""
        assert self._findings is not None, "finish comes first"
        return self._findings

    @property
    def cids(self) -> tuple[Cid, ...]:
        """All chunks of the records that it became."""
        return tuple([cid for staged in (self.main, *self.views.values()) for cid in staged.cids])

    def consume(self, block: bytes) -> list[SealedChunk]:
        """Seal a block of the file, and what it adds to the views.

        Raises:
            Refused: it is not what it seemed, or of two patients.
        """
        chunks = self.main.write(block)
        for category, piece in self._reader.feed(block):
            chunks += self._view(category).write(piece)
        return chunks

    def finish(self) -> Findings:
        """Read the end, and return what the file says.

        Raises:
            Refused: as `consume`.
        """
        self._findings = self._reader.finish()
        return self._findings

    def seal_main(self, owner: Owner) -> list[SealedChunk]:
        """Seal the rest of the record that holds the exact bytes.

        Raises:
            Refused: the media type is too long.
        """
        category, kind = self._place()
        return self.main.finish(
            media_type=self._media_type,
            kind=kind,
            category=category,
            part_of=None,
            identity_override=owner.override,
        )

    def seal_views(self, owner: Owner) -> list[SealedChunk]:
        """Seal some more of the views; nothing when they are done, and those that nobody wants are dropped."""
        chunks: list[SealedChunk] = []
        for category, piece in self.findings.rest:
            if category in self.findings.wanted:
                chunks += self._view(category).write(piece)
                if len(chunks) >= _STEP_CHUNKS:
                    return chunks
        self.views = {name: view for name, view in self.views.items() if name in self.findings.wanted}
        for category, view in self.views.items():
            if not view.cids:
                chunks += view.finish(
                    media_type="application/fhir+json",
                    kind="view",
                    category=category.value,
                    part_of=self.main.rid,
                    identity_override=owner.override,
                )
        return chunks

    def parts(self) -> Sequence[Part]:
        """Return the records that it became, the one with the exact bytes first."""
        category, kind = self._place()
        views = [
            Part(view.value, "view", self.main.rid, self.views[view])
            for view in Category
            if view in self.views
        ]
        return (Part(category, kind, Rid(ZERO), self.main), *views)

    def _view(self, category: Category) -> StagedRecord:
        if category not in self.views:
            self.views[category] = self._staged()
        return self.views[category]

    def _staged(self) -> StagedRecord:
        return StagedRecord(Rid(self._entropy.bytes(32)), self._entropy.bytes(32))

    def _place(self) -> tuple[str, str]:
        """Return category and kind of the record that holds the exact bytes."""
        if self._chosen is not None:
            return self._chosen.value, "document"
        if self.findings.category is None:
            return Category.MIXED.value, "original"
        return self.findings.category.value, "document"

    def __repr__(self) -> str:
        return f"Upload({self.main!r}, {len(self.views)} views)"
