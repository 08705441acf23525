"""`record get`, `list`, `status`, `export`: a Read on the ledger first, and only when it is final anything plain.

    which record ──► may we? ──► who note to the patient ──► Read, signed by actor and facility ──► final ──► open, stream

To everybody who may not open a record, the answer is one sentence, whether the record exists or not.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from node.announcing import Announcer
from node.attachments import Attachments
from node.opening import OpenedRecord, Opening
from node.patients import LocalPatient, Patients
from node.ports import Entropy
from node.receipts import Submitter
from node.record_ids import prefix_of, records_beginning
from node.record_index import RecordIndex
from node.record_report import RecordReport, day_of
from node.retrieval import Retrieval
from node.vaults import NOT_YOURS, ReadKey, Vaults
from protocol import limits
from protocol.errors import Erased, Forbidden, Refused, Unavailable
from protocol.identifiers import Txid, Vid
from protocol.ledger_rows import Receipt, Record
from protocol.signing import SigningKey
from protocol.transaction import PURPOSES
from storage.key_value import KeyValue
from storage.ledger_store import LedgerStore

Opened = tuple[dict[str, object], AsyncIterator[bytes]]
"""What is told before the bytes (sha256, bytes, transaction, …), and the bytes."""


class Query:
    """Reads records for the people of this facility."""

    def __init__(
        self,
        *,
        key: SigningKey,
        ledger: LedgerStore,
        rows: KeyValue,
        patients: Patients,
        vaults: Vaults,
        attachments: Attachments,
        retrieval: Retrieval,
        opening: Opening,
        submitter: Submitter,
        index: RecordIndex,
        report: RecordReport,
        entropy: Entropy,
    ) -> None:
        self._ledger = ledger
        self._rows = rows
        self._patients = patients
        self._vaults = vaults
        self._retrieval = retrieval
        self._opening = opening
        self._index = index
        self._report = report
        self._announcer = Announcer(
            key=key, ledger=ledger, attachments=attachments, submitter=submitter, entropy=entropy
        )

    async def read(
        self, record: str, *, purpose: str = "TREAT", user: str | None = None, start: int = 0
    ) -> Opened:
        """Return info and the exact bytes of a record, once the Read that tells the patient is final.

        The bytes begin at `start`, which the info repeats; at 0 when the record is no longer than that.

        Raises:
            Forbidden: this facility may not open it, or there is none; the sentence is the same.
            Refused: an unknown purpose, or a prefix of several records that this facility may open.
            Erased: it was this facility's to open, and exists no more.
            Unavailable: no quorum, or a part of the record is on no member that answers; nothing was opened.
            Corruption: its author sealed something that does not open.
        """
        _check_purpose(purpose)
        found = await self._find(record)
        key = await self._key_for(found, purpose)
        self._check_stands(found)
        await self._retrieval.envelope(
            found
        )  # ciphertext: a Read that cannot be served should not stand on the ledger
        receipt = await self._announcer.announce(found.vid, (found.rid,), key, purpose, user)
        opened = await self._opening.open(found, key.category_secret)
        start = start if start < opened.meta.plain_bytes else 0
        return {**_info(found, opened, receipt), "start": start}, opened.stream(start)

    async def list(self, patient: str) -> dict[str, object]:
        """Return {"records": […]} of a patient: id, category, day, state. Writes nothing to the ledger.

        Raises:
            Refused: no such patient here.
        """
        local = self._patients.resolve(patient)
        entries = {
            record.rid: self._report.of_record(record, local.handle, category)
            for category, record in self._readable(local)
        }
        for note in self._index.notes_of(local.handle):
            entries[note.rid] = self._report.of_note(note)
        return {"records": [*entries.values()]}

    async def status(self, record: str) -> dict[str, object]:
        """Return {"records": [entry]} of one record, also while it waits in the queue. Writes nothing to the ledger.

        Raises:
            Forbidden: none that this facility may know of.
        """
        wanted = prefix_of(record)
        own = [rid for rid in self._index.rids() if rid.hex().startswith(wanted)]
        if len(own) == 1:
            note = self._index.note(own[0])
            assert note is not None, "its key was just listed"
            return {"records": [self._report.of_note(note)]}
        found = await self._find(record)
        patient, category = self._whose(found.vid)
        return {"records": [self._report.of_record(found, patient, category)]}

    async def export(
        self, patient: str, *, purpose: str = "TREAT", user: str | None = None
    ) -> AsyncGenerator[Opened, None]:
        """Yield every record of a patient that this facility may open, announced 64 at a time.

        Raises:
            Refused, Forbidden, Unavailable, Corruption: as `read`.
        """
        _check_purpose(purpose)
        batches: dict[tuple[Vid, Txid], list[tuple[Record, ReadKey]]] = {}
        for _, record in self._readable(self._patients.resolve(patient)):
            if self._ledger.erasure(record.rid) is not None:
                continue  # nothing is left to export
            try:
                key = await self._vaults.key_for(record, purpose=purpose)
            except Forbidden:
                continue  # outside the period or purpose of the grant: not among what is readable
            batches.setdefault((record.vid, key.gid), []).append((record, key))
        for batch in batches.values():
            for start in range(0, len(batch), limits.READ_RIDS_MAX):
                async with aclosing(
                    self._read_batch(batch[start : start + limits.READ_RIDS_MAX], purpose, user)
                ) as opened:
                    async for one in opened:
                        yield one

    async def _read_batch(
        self, batch: Sequence[tuple[Record, ReadKey]], purpose: str, user: str | None
    ) -> AsyncGenerator[Opened, None]:
        rids = tuple(record.rid for record, _ in batch)
        receipt = await self._announcer.announce(batch[0][0].vid, rids, batch[0][1], purpose, user)
        for record, key in batch:
            opened = await self._opening.open(record, key.category_secret)
            yield _info(record, opened, receipt), opened.stream()

    # --- which record, and may we -------------------------------------------------------------------------------

    async def _find(self, text: str) -> Record:
        """Return the one record that a text names among those this facility may open."""
        prefix = prefix_of(text)
        found = []
        for rid in records_beginning(self._rows, self._ledger.state_prefix, prefix):
            record = self._ledger.record(rid)
            if record is not None and await self._may_open(record):
                found.append(record)
        if len(found) > 1:
            raise Refused(f"{len(found)} records begin like that; give more of the id")
        if found:
            return found[0]
        own = [rid for rid in self._index.rids() if rid.hex().startswith(prefix)]
        if any(self._ledger.record(rid) is None for rid in own):
            raise Unavailable(
                "the record is not final yet, so that nobody can open it; see carechain record status"
            )
        raise Forbidden(NOT_YOURS)

    async def _may_open(self, record: Record) -> bool:
        try:
            await self._vaults.key_for(record)
        except Forbidden:
            return False
        return True

    async def _key_for(self, record: Record, purpose: str) -> ReadKey:
        try:
            return await self._vaults.key_for(record, purpose=purpose)
        except Forbidden:
            await self._vaults.key_for(record)  # the same sentence for whoever may not open it at all
            raise Forbidden(
                f"the grant does not allow reading for the purpose {purpose}; ask for one that does"
            ) from None

    def _check_stands(self, record: Record) -> None:
        erasure = self._ledger.erasure(record.rid)
        if erasure is not None:
            raise Erased(
                f"the record was erased on {day_of(erasure.time_ms)}; the ledger keeps that it existed, and nothing else is left"
            )

    def _readable(self, patient: LocalPatient) -> Sequence[tuple[str, Record]]:
        """Return (category, record) of all vaults of a patient that are open to us, oldest first."""
        found = []
        for category, vids in self._vaults.vaults_of(patient).items():
            for vid in vids:
                records = (self._ledger.record(rid) for rid in self._ledger.records_of(vid))
                found += [(category, record) for record in records if record is not None]
        return sorted(found, key=lambda one: (one[1].height, one[1].rid))

    def _whose(self, vid: Vid) -> tuple[str, str]:
        for patient in self._patients.all():
            for category, vids in self._vaults.vaults_of(patient).items():
                if vid in vids:
                    return patient.handle, category
        raise Forbidden(NOT_YOURS)


def _check_purpose(purpose: str) -> None:
    if purpose not in PURPOSES:
        raise Refused(f"there is no purpose {purpose[:16]!r}; use one of: {', '.join(PURPOSES)}")


def _info(record: Record, opened: OpenedRecord, receipt: Receipt) -> dict[str, object]:
    meta = opened.meta
    return {
        "record": record.rid.hex(),
        "category": meta.category,
        "kind": meta.kind,
        "part_of": meta.original.hex() if meta.original is not None else None,
        "media_type": meta.media_type,
        "sha256": meta.sha256.hex(),
        "bytes": meta.plain_bytes,
        "transaction": receipt.txid.hex(),
        "height": receipt.height,
    }
