"""What this facility remembers of the records it added: whose, which category, which file. Never leaves the facility."""

from dataclasses import dataclass
from typing import Annotated

from node.sealed_rows import SealedRows
from protocol import codec
from protocol.codec import Size, wire
from protocol.identifiers import ZERO, Rid
from protocol.transaction import RidField, VidField
from storage.key_value import Batch
from storage.keyspace import FINGERPRINT, RECORD_FILE, RECORD_NOTE

FAMILY_MAX = 16
"""An original and a view for each category."""


@wire("record-note")
@dataclass(frozen=True, slots=True, repr=False)
class RecordNote:
    """One record we added. `part_of` is the original of a view, else ZERO.

    `plain_bytes` is the size of the exact bytes, `padding_bytes` of the zeros in its chunks.
    `refusal` is empty, or why the ledger refused the record for good.
    """

    rid: RidField
    vid: VidField
    patient: Annotated[str, Size(1, 64)]
    category: Annotated[str, Size(1, 32)]
    kind: Annotated[str, Size(1, 16)]
    part_of: RidField
    plain_bytes: int
    chunks: int
    padding_bytes: int
    added_ms: int
    refusal: Annotated[str, Size(0, 200)] = ""

    @property
    def original(self) -> Rid | None:
        """The original that this view is part of."""
        return None if self.part_of == ZERO else self.part_of

    def __repr__(self) -> str:
        return f"RecordNote({self.rid.hex()[:16]})"


@wire("fingerprint")
@dataclass(frozen=True, slots=True, repr=False)
class _Family:
    """The records that one file became, the original or only one first."""

    patient: Annotated[str, Size(1, 64)]
    rids: Annotated[tuple[RidField, ...], Size(1, FAMILY_MAX)]


class RecordIndex:
    """Reads and stages the notes."""

    def __init__(self, rows: SealedRows) -> None:
        self._rows = rows

    def put_note(self, batch: Batch, note: RecordNote) -> None:
        """Stage a note."""
        self._rows.put(batch, RECORD_NOTE + note.rid, codec.encode(note))

    def note(self, rid: Rid) -> RecordNote | None:
        """Return what we know of a record, or None when it is not ours."""
        row = self._rows.get(RECORD_NOTE + rid)
        return None if row is None else codec.decode(row, RecordNote)

    def rids(self) -> tuple[Rid, ...]:
        """Return all records we added, sorted."""
        return tuple(Rid(key) for key in self._rows.keys(RECORD_NOTE))

    def notes_of(self, patient: str) -> tuple[RecordNote, ...]:
        """Return the notes of a patient's records, in the order in which they were added."""
        notes = (codec.decode(row, RecordNote) for _, row in self._rows.scan(RECORD_NOTE))
        return tuple(
            sorted(
                (note for note in notes if note.patient == patient),
                key=lambda note: (note.added_ms, note.rid),
            )
        )

    def put_family(self, batch: Batch, fingerprint: bytes, patient: str, rids: tuple[Rid, ...]) -> None:
        """Stage that a file has become these records."""
        self._rows.put(batch, FINGERPRINT + fingerprint, codec.encode(_Family(patient, rids)))
        self._rows.put(batch, RECORD_FILE + rids[0], fingerprint)

    def forget(self, batch: Batch, note: RecordNote) -> None:
        """Stage that nothing is remembered of an erased record, nor of the file it came in: that may be added again.

        A file that was added by an older version is found by `file_of` alone.
        """
        batch.delete(RECORD_NOTE + note.rid)
        fingerprint = self._rows.get(RECORD_FILE + (note.original or note.rid))
        if fingerprint is not None:
            batch.delete(FINGERPRINT + fingerprint)
            batch.delete(RECORD_FILE + (note.original or note.rid))

    def forget_file(self, batch: Batch, fingerprint: bytes) -> None:
        """Stage that a file was never added."""
        batch.delete(FINGERPRINT + fingerprint)

    def has_file(self, note: RecordNote) -> bool:
        """Whether the file of a record can be found without a search."""
        return self._rows.get(RECORD_FILE + (note.original or note.rid)) is not None

    def file_of(self, rid: Rid) -> bytes | None:
        """Return the fingerprint of the file that became a record. Reads them all: fit for a worker thread."""
        for fingerprint, row in self._rows.scan(FINGERPRINT):
            if rid in codec.decode(row, _Family).rids:
                return fingerprint
        return None

    def family(self, fingerprint: bytes) -> tuple[str, tuple[RecordNote, ...]] | None:
        """Return the patient and the records that a file became before, or None for a new file.

        A file whose records the ledger refused for good counts as new.
        """
        row = self._rows.get(FINGERPRINT + fingerprint)
        if row is None:
            return None
        family = codec.decode(row, _Family)
        notes = tuple(note for note in map(self.note, family.rids) if note is not None)
        if any(note.refusal for note in notes) or len(notes) < len(family.rids):
            return None
        return family.patient, notes
