"""How a record is shown: the JSON entry of `record add`, `list` and `status` (cli.md). No titles, no names."""

from datetime import UTC, datetime

from node.record_index import RecordIndex, RecordNote
from node.record_queue import RecordQueue
from protocol.identifiers import Rid
from protocol.ledger_rows import Record
from storage.ledger_store import LedgerStore


class RecordReport:
    """Joins what this facility remembers of a record with what the ledger says."""

    def __init__(self, ledger: LedgerStore, index: RecordIndex, queue: RecordQueue) -> None:
        self._ledger = ledger
        self._index = index
        self._queue = queue

    def state(self, rid: Rid) -> str:
        """Return received, ordered or final, refused when the ledger never will take it, erased when it was."""
        if self._ledger.erasure(rid) is not None:
            return "erased"
        note = self._index.note(rid)
        return "refused" if note is not None and note.refusal else self._queue.state(rid)

    def of_note(self, note: RecordNote, *, duplicate: bool = False) -> dict[str, object]:
        """Return the entry of a record that this facility added."""
        record = self._ledger.record(note.rid)
        return {
            "record": note.rid.hex(),
            "patient": note.patient,
            "category": note.category,
            "kind": note.kind,
            "part_of": note.original.hex() if note.original is not None else None,
            "duplicate": duplicate,
            "state": self.state(note.rid),
            "bytes": note.plain_bytes,
            "chunks": note.chunks,
            **_place(record, note.added_ms),
        }

    def of_record(self, record: Record, patient: str, category: str) -> dict[str, object]:
        """Return the entry of a record that stands on the ledger, whoever added it."""
        note = self._index.note(record.rid)
        if note is not None:
            return self.of_note(note)
        return {
            "record": record.rid.hex(),
            "patient": patient,
            "category": category,
            "kind": None,
            "part_of": None,
            "duplicate": False,
            "state": self.state(record.rid),
            "bytes": None,
            "chunks": None,
            **_place(record, record.time_ms),
        }


def _place(record: Record | None, time_ms: int) -> dict[str, object]:
    """Return where a record stands on the ledger, and its day (UTC)."""
    return {
        "day": day_of(record.time_ms if record is not None else time_ms),
        "transaction": record.txid.hex() if record is not None else None,
        "height": record.height if record is not None else None,
    }


def day_of(time_ms: int) -> str:
    """Return the UTC day of a Unix time, YYYY-MM-DD."""
    return datetime.fromtimestamp(time_ms // 1_000, UTC).date().isoformat()
