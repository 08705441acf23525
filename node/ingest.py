"""`record add`: the bytes of a file become sealed records of one patient, on disk and in the queue before it is reported.

    read ──► kind ──► seal and store while it streams ──► whose, which categories ──► vaults, envelopes ──► queue ──► final

The received bytes are kept exactly, as the first record. When they fall into one category that record is the document;
when they span several it is the original, in `mixed`, and every category gets a view. Refused at any point: the chunks
stored so far are deleted again, and nothing is kept.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from node.documents import Findings, Piece, Reader, media_type_of, reader_of
from node.patients import LocalPatient, Patients
from node.ports import Clock, Entropy, Workers
from node.record_index import RecordIndex, RecordNote
from node.record_queue import QueuedRecord, RecordQueue
from node.record_report import RecordReport
from node.sealed_rows import SealedRows
from node.staging import StagedRecord, Staging
from node.vaults import Vaults
from protocol import limits
from protocol.errors import NotFinal, Refused
from protocol.health import document_kind
from protocol.health.categories import Category, category_named
from protocol.identifiers import ZERO, Rid
from protocol.sealing import SealedChunk
from storage.chunk_store import ChunkStore
from storage.key_value import Batch

_BLOCK_BYTES = 4 * limits.MIB
"""Gathered before a worker is called: large enough to keep it busy, small enough to be held three times."""
_UPLOADS_MAX = 4
_FINAL_MS = 8_000
_STEP_CHUNKS = 8


@dataclass(slots=True, repr=False)
class _Upload:
    """One file on its way in."""

    main: StagedRecord
    reader: Reader
    staging: Staging
    media_type: str
    views: dict[Category, StagedRecord] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, repr=False)
class _Owner:
    """Whose the file is; `override` when its own words say otherwise and the caller insisted."""

    patient: LocalPatient
    override: bool


class Ingest:
    """Takes files in. `check_room` raises StorageFull at the disk's reserve."""

    def __init__(
        self,
        *,
        patients: Patients,
        vaults: Vaults,
        chunks: ChunkStore,
        queue: RecordQueue,
        index: RecordIndex,
        rows: SealedRows,
        report: RecordReport,
        workers: Workers,
        clock: Clock,
        entropy: Entropy,
        check_room: Callable[[], None],
    ) -> None:
        self._patients = patients
        self._vaults = vaults
        self._chunks = chunks
        self._queue = queue
        self._index = index
        self._rows = rows
        self._report = report
        self._workers = workers
        self._clock = clock
        self._entropy = entropy
        self._check_room = check_room
        self._uploads = trio.CapacityLimiter(_UPLOADS_MAX)
        self._adding: dict[bytes, trio.Lock] = {}

    async def add(
        self,
        stream: AsyncIterator[bytes],
        *,
        patient: str | None = None,
        category: str | None = None,
        media_type: str | None = None,
        file_suffix: str = "",
        force: bool = False,
    ) -> dict[str, object]:
        """Return {"records": […]}, the original or only record first, once all of them are final.

        Raises:
            Refused, Forbidden: nothing was kept.
            StorageFull: no room; nothing was kept.
            NotFinal: sealed and queued, with the same document in `details`; it becomes final by itself.
        """
        named = self._patients.resolve(patient) if patient else None
        chosen = _category(category)
        if named is not None and chosen is not None and named.custody != "facility":
            # Without a right to write, refused before the whole file has been sent for nothing.
            self._vaults.handle(named, chosen.value)
        self._queue.check_room()
        self._check_room()
        async with self._uploads:
            staging = Staging(self._chunks, self._workers, self._check_room)
            async with aclosing(_gathered(stream)) as blocks, _dropped_on_failure(staging):
                head = await anext(blocks, b"")
                kind = document_kind.detect(media_type, head[: document_kind.HEAD_BYTES], file_suffix)
                reader = reader_of(kind, sorts=chosen is None)
                upload = _Upload(self._staged(), reader, staging, media_type_of(kind, media_type))
                await self._seal(upload, head, blocks)
                findings = await self._workers.run(upload.reader.finish)
                owner = self._owner(findings, named, force=force)
                settled = await self._settle(upload, findings, owner, chosen)
        return await self._answer(*settled, findings.notice)

    # --- while it streams ---------------------------------------------------------------------------------------

    async def _seal(self, upload: _Upload, head: bytes, blocks: AsyncIterator[bytes]) -> None:
        block = head
        while block:
            await upload.staging.put(await self._workers.run(self._consume, upload, block))
            block = await anext(blocks, b"")

    def _consume(self, upload: _Upload, block: bytes) -> list[SealedChunk]:
        """Seal a block of the file and what it adds to the views. Runs in a worker."""
        chunks = upload.main.write(block)
        for category, piece in upload.reader.feed(block):
            chunks += self._view(upload, category).write(piece)
        return chunks

    def _view(self, upload: _Upload, category: Category) -> StagedRecord:
        if category not in upload.views:
            upload.views[category] = self._staged()
        return upload.views[category]

    def _staged(self) -> StagedRecord:
        return StagedRecord(Rid(self._entropy.bytes(32)), self._entropy.bytes(32))

    # --- once it has arrived ------------------------------------------------------------------------------------

    def _owner(self, findings: Findings, named: LocalPatient | None, *, force: bool) -> _Owner:
        """Decide whose the file is.

        Raises:
            Refused: it does not say, names nobody known, or names somebody else than the caller does.
        """
        subjects = findings.subjects
        identifiers = subjects.identifiers() if subjects is not None else frozenset()
        birth_date = subjects.identity.birth_date if subjects is not None and subjects.identity else ""
        if named is not None:
            if not self._patients.names_somebody_else(named, identifiers, birth_date):
                return _Owner(named, override=False)
            if not force:
                raise Refused(
                    "the document names somebody else than --patient; check it, or record the override with --force"
                )
            return _Owner(named, override=True)
        if not identifiers:
            raise Refused(
                "the document does not say by an identifier whose it is; name the patient with --patient"
            )
        known = self._patients.match(identifiers, birth_date)
        if known is None:
            raise Refused(
                "the document is about nobody registered here; register the patient first, or name one with --patient"
            )
        return _Owner(known, override=False)

    async def _settle(
        self, upload: _Upload, findings: Findings, owner: _Owner, chosen: Category | None
    ) -> tuple[tuple[RecordNote, ...], bool]:
        """Turn the upload into queued records, or find those that it became before; return them, and whether it did."""
        await self._finish_main(upload, findings, owner, chosen)
        fingerprint = self._rows.fingerprint(upload.main.sha256, upload.main.plain_bytes)
        async with self._adding_alone(fingerprint):
            family = self._index.family(fingerprint)
            if family is not None:
                handle, notes = family
                if handle != owner.patient.handle:
                    raise Refused("this very file was added for another patient before; check whose it is")
                await upload.staging.drop()
                return notes, True
            await self._write_views(upload, findings, owner)
            await upload.staging.finish()
            used = {cid for staged in (upload.main, *upload.views.values()) for cid in staged.cids}
            await upload.staging.drop([cid for cid in upload.staging.stored if cid not in used])
            return await self._enqueue(upload, findings, owner, chosen, fingerprint), False

    async def _finish_main(
        self, upload: _Upload, findings: Findings, owner: _Owner, chosen: Category | None
    ) -> None:
        category, kind = _place(findings, chosen)
        finish = partial(
            upload.main.finish,
            media_type=upload.media_type,
            kind=kind,
            category=category,
            part_of=None,
            identity_override=owner.override,
        )
        await upload.staging.put(await self._workers.run(finish))

    async def _write_views(self, upload: _Upload, findings: Findings, owner: _Owner) -> None:
        """Seal the rest of every view; delete those that turned out not to be needed."""
        while chunks := await self._workers.run(self._step, upload, findings.rest, findings.wanted):
            await upload.staging.put(chunks)
        for category in sorted(set(upload.views) - findings.wanted):
            del upload.views[category]  # its chunks are deleted below, when it is known which ones are used
        for category, view in upload.views.items():
            finish = partial(
                view.finish,
                media_type="application/fhir+json",
                kind="view",
                category=category.value,
                part_of=upload.main.rid,
                identity_override=owner.override,
            )
            await upload.staging.put(await self._workers.run(finish))

    def _step(self, upload: _Upload, rest: Iterator[Piece], wanted: frozenset[Category]) -> list[SealedChunk]:
        """Seal pieces until a few chunks came of them, or none are left. Runs in a worker."""
        chunks: list[SealedChunk] = []
        for category, piece in rest:
            if category in wanted:
                chunks += self._view(upload, category).write(piece)
                if len(chunks) >= _STEP_CHUNKS:
                    break
        return chunks

    async def _enqueue(
        self, upload: _Upload, findings: Findings, owner: _Owner, chosen: Category | None, fingerprint: bytes
    ) -> tuple[RecordNote, ...]:
        """Write queue rows, notes and fingerprint in one batch: the point from which the file is safe."""
        category, kind = _place(findings, chosen)
        order = [
            (category, kind, upload.main),
            *((view.value, "view", upload.views[view]) for view in Category if view in upload.views),
        ]
        now_ms, batch = self._clock.now_ms(), Batch()
        notes: list[RecordNote] = []
        queued: list[QueuedRecord] = []
        for place, what, staged in order:
            handle = self._vaults.handle(owner.patient, place)
            part_of = Rid(ZERO) if staged is upload.main else upload.main.rid
            notes.append(
                RecordNote(
                    staged.rid,
                    handle.vid,
                    owner.patient.handle,
                    place,
                    what,
                    part_of,
                    staged.plain_bytes,
                    len(staged.cids),
                    now_ms,
                )
            )
            queued.append(QueuedRecord(staged.rid, handle.vid, handle.epoch, staged.dek, b"", staged.cids))
            self._index.put_note(batch, notes[-1])
        self._index.put_family(batch, fingerprint, owner.patient.handle, tuple(note.rid for note in notes))
        await self._queue.add(queued, batch)
        upload.staging.keep()
        return tuple(notes)

    async def _answer(self, notes: tuple[RecordNote, ...], duplicate: bool, notice: str) -> dict[str, object]:
        is_final = await self._queue.wait([note.rid for note in notes], _FINAL_MS)
        document: dict[str, object] = {
            "records": [self._report.of_note(note, duplicate=duplicate) for note in notes]
        }
        if notice:
            document["notice"] = notice
        refusals = [
            found.refusal
            for note in notes
            if (found := self._index.note(note.rid)) is not None and found.refusal
        ]
        if refusals:
            raise Refused(f"the ledger refused the record: {refusals[0]}")
        if not is_final:
            raise NotFinal(
                "no quorum confirmed the record yet; it is sealed and queued, and becomes final by itself",
                tuple(note.rid.hex() for note in notes),
                document,
            )
        return document

    @asynccontextmanager
    async def _adding_alone(self, fingerprint: bytes) -> AsyncIterator[None]:
        """Let one upload of the same bytes pass at a time: the second finds what the first has become."""
        lock = self._adding.setdefault(fingerprint, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._adding.pop(fingerprint, None)


def _category(name: str | None) -> Category | None:
    if name is None:
        return None
    found = category_named(name)
    if found is None:
        raise Refused(f"there is no category of that name; use one of: {', '.join(Category)}")
    return found


def _place(findings: Findings, chosen: Category | None) -> tuple[str, str]:
    """Return category and kind of the record that holds the exact bytes."""
    if chosen is not None:
        return chosen.value, "document"
    if findings.category is None:
        return Category.MIXED.value, "original"
    return findings.category.value, "document"


async def _gathered(stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the stream in blocks of `_BLOCK_BYTES`, the last one shorter."""
    pieces: list[bytes] = []
    size = 0
    async for piece in stream:
        pieces.append(piece)
        size += len(piece)
        if size >= _BLOCK_BYTES:
            yield b"".join(pieces)
            pieces, size = [], 0
    if pieces:
        yield b"".join(pieces)


@asynccontextmanager
async def _dropped_on_failure(staging: Staging) -> AsyncIterator[None]:
    """Run a staging beside the body; when the body fails, delete what was stored and raise the body's own error."""
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(staging.run)
        try:
            yield
        except BaseException as error:  # noqa: BLE001  (raised again below, outside the nursery, so that it stays itself)
            failure = error
            with trio.CancelScope(shield=True):
                await staging.drop()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
