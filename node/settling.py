"""Whose a file is, whether it was added before, and the rows by which it is safe: decided once it has been read.

    owner ──► known? ──► stage (notes, fingerprint, queue rows: one batch) ──► entry, when it is final

For one file as for many: `node/ingest.py` and `node/small_documents.py` bring the files and write the batch.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio

from node.documents import Findings
from node.patients import LocalPatient, Patients
from node.ports import Clock
from node.queued_record import QueuedRecord
from node.record_index import RecordIndex, RecordNote
from node.record_queue import RecordQueue
from node.record_report import RecordReport
from node.sealed_rows import SealedRows
from node.upload import Owner, Upload
from node.vaults import Vaults
from protocol.errors import NotFinal, Refused
from protocol.health.categories import Category, category_named
from storage.key_value import Batch

_FINAL_MS = 8_000


@dataclass(frozen=True, slots=True, repr=False)
class Settled:
    """What a file became, now or when it was added before."""

    notes: tuple[RecordNote, ...]
    is_duplicate: bool
    notice: str

    def again(self) -> "Settled":
        """Return what the same file becomes that comes again."""
        return replace(self, is_duplicate=True)


class Settling:
    """What adding one file and adding many have in common. `check_room` raises StorageFull at the disk's reserve."""

    def __init__(
        self,
        *,
        patients: Patients,
        vaults: Vaults,
        queue: RecordQueue,
        index: RecordIndex,
        rows: SealedRows,
        report: RecordReport,
        clock: Clock,
        check_room: Callable[[], None],
    ) -> None:
        self._patients = patients
        self._vaults = vaults
        self._queue = queue
        self._index = index
        self._rows = rows
        self._report = report
        self._clock = clock
        self._check_room = check_room
        self._adding: dict[bytes, trio.Lock] = {}

    def options(
        self, patient: str | None, category: str | None
    ) -> tuple[LocalPatient | None, Category | None]:
        """Return what was said beside a file, checked before any of it has been sent for nothing.

        Raises:
            Refused, Forbidden: no such patient or category, or no right to write it.
            StorageFull: there is no room for a record.
        """
        named = self._patients.resolve(patient) if patient else None
        chosen = _category(category)
        if named is not None and chosen is not None and named.custody != "facility":
            self._vaults.handle(named, chosen.value)
        self._queue.check_room()
        self._check_room()
        return named, chosen

    def owner(self, findings: Findings, named: LocalPatient | None, *, force: bool) -> Owner:
        """Decide whose the file is.

        Raises:
            Refused: it does not say, names nobody known, or names somebody else than the caller does.
        """
        subjects = findings.subjects
        identifiers = subjects.identifiers() if subjects is not None else frozenset()
        birth_date = subjects.identity.birth_date if subjects is not None and subjects.identity else ""
        if named is not None:
            if not self._patients.names_somebody_else(named, identifiers, birth_date):
                return Owner(named, override=False)
            if not force:
                raise Refused(
                    "the document names somebody else than --patient; check it, or record the override with --force"
                )
            return Owner(named, override=True)
        if not identifiers:
            raise Refused(
                "the document does not say by an identifier whose it is; name the patient with --patient"
            )
        known = self._patients.match(identifiers, birth_date)
        if known is None:
            raise Refused(
                "the document is about nobody registered here; register the patient first, or name one with --patient"
            )
        return Owner(known, override=False)

    def fingerprint(self, upload: Upload) -> bytes:
        """Return the keyed fingerprint of a file that has been read."""
        return self._rows.fingerprint(upload.main.sha256, upload.main.plain_bytes)

    @asynccontextmanager
    async def alone(self, fingerprint: bytes) -> AsyncIterator[None]:
        """Let one upload of the same bytes pass at a time: the second finds what the first has become."""
        lock = self._adding.setdefault(fingerprint, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._adding.pop(fingerprint, None)

    def known(self, upload: Upload, owner: Owner) -> Settled | None:
        """Return what this very file became before; None for a new one. To be called `alone`.

        Raises:
            Refused: it became another patient's.
        """
        family = self._index.family(self.fingerprint(upload))
        if family is None:
            return None
        handle, notes = family
        if handle != owner.patient.handle:
            raise Refused("this very file was added for another patient before; check whose it is")
        return Settled(notes, True, upload.findings.notice)

    def stage(self, batch: Batch, upload: Upload, owner: Owner) -> tuple[Settled, list[QueuedRecord]]:
        """Stage notes and fingerprint of a sealed file, and return its queue rows: written together they make it safe.

        Raises:
            Forbidden, Unavailable: its patient has no vault that this facility may write to; nothing was staged.
        """
        parts = upload.parts()
        handles = [self._vaults.handle(owner.patient, part.category) for part in parts]
        now_ms, notes, queued = self._clock.now_ms(), list[RecordNote](), list[QueuedRecord]()
        for part, handle in zip(parts, handles, strict=True):
            staged = part.staged
            notes.append(
                RecordNote(
                    staged.rid,
                    handle.vid,
                    owner.patient.handle,
                    part.category,
                    part.kind,
                    part.part_of,
                    staged.plain_bytes,
                    len(staged.cids),
                    staged.padding_bytes,
                    now_ms,
                )
            )
            queued.append(QueuedRecord(staged.rid, handle.vid, handle.epoch, staged.dek, b"", staged.cids))
            self._index.put_note(batch, notes[-1])
        rids = tuple([note.rid for note in notes])
        self._index.put_family(batch, self.fingerprint(upload), owner.patient.handle, rids)
        return Settled(tuple(notes), False, upload.findings.notice), queued

    # --- what is told -------------------------------------------------------------------------------------------

    async def is_final(self, settled: Sequence[Settled]) -> bool:
        """Wait until all records are final, or nothing moves any more; return which."""
        return await self._queue.wait([note.rid for one in settled for note in one.notes], _FINAL_MS)

    def entry(self, settled: Settled) -> dict[str, object]:
        """Return {"records": […]} of one file, the original or only record first.

        Raises:
            Refused: the ledger never will take one of them.
        """
        for note in settled.notes:
            found = self._index.note(note.rid)
            if found is not None and found.refusal:
                raise Refused(f"the ledger refused the record: {found.refusal}")
        document: dict[str, object] = {
            "records": [self._report.of_note(note, duplicate=settled.is_duplicate) for note in settled.notes]
        }
        if settled.notice:
            document["notice"] = settled.notice
        return document

    def not_final(self, settled: Sequence[Settled], document: dict[str, object]) -> NotFinal:
        """Return the error that tells of records that are safe and wait."""
        waiting = [
            note.rid for one in settled for note in one.notes if self._report.state(note.rid) != "final"
        ]
        return NotFinal(self._queue.waits_for(waiting), tuple(rid.hex() for rid in waiting), document)


def _category(name: str | None) -> Category | None:
    if name is None:
        return None
    found = category_named(name)
    if found is None:
        raise Refused(f"there is no category of that name; use one of: {', '.join(Category)}")
    return found
