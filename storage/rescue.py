"""What is whole in a damaged database, brought into the new one (`node.rebuild`).

Of the payloads: every chunk that a record names. Of the ledger only what no other member has: blocks and state come back
from other members, and the watchers' rows from the blocks. Envelopes and attachments could, mostly; but what this facility
noted of its records, its fingerprints of files, and above all the sealed records that are not final yet are nowhere else.
So every such row is carried over whose checksum still holds in the files, which are read here without the engine: it
refuses a database, or a table, as a whole.
"""

import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

from protocol import limits
from protocol.identifiers import Cid
from storage import keyspace, table_file
from storage.key_value import Batch, KeyValue
from storage.payload_store import CID_BYTES
from storage.table_file import Change
from storage.write_ahead_log import intact_records

OWN_ROWS = (
    keyspace.RECORD_QUEUE,
    keyspace.RECORD_NOTE,
    keyspace.RECORD_FILE,
    keyspace.FINGERPRINT,
    keyspace.ERASURE,
    keyspace.DESTRUCTION,
    keyspace.ENVELOPE,
    keyspace.ENVELOPE_OF_RECORD,
    keyspace.ATTACHMENT,
    keyspace.CHUNK_LIST,
    keyspace.UNDER_REPLICATED,
    keyspace.STANDING,
    keyspace.CHUNK_QUARANTINE,
    keyspace.CHUNK_RECLAIM,
    keyspace.RESTORED,
)
"""Not the chunk index: the payloads tell it. Not the watchers' marks: they read the new blocks from the first."""
_BATCH_BYTES = 4 * limits.MIB
_BATCH_HEADER_BYTES = 12


def rescue_own_rows(damaged: Path, rows: KeyValue) -> int:
    """Carry the facility's own rows over from a database that was moved aside, durably; return how many.

    What was overwritten or deleted stays so, unless the very bytes that said it are the damaged ones: every one of
    these rows may be met again without harm (a queued record that is final leaves the queue, a wrap of an ended grant
    is forgotten again).
    """
    newest: dict[bytes, tuple[int, Path | None]] = {}
    # Twice, so that the values of a large database need not be in memory together: first which file has the newest.
    for file in _files(damaged):
        for change in _own_changes(file):
            known = newest.get(change.key)
            if known is None or known[0] <= change.sequence:
                newest[change.key] = change.sequence, None if change.value is None else file
    batch, count = Batch(), 0
    for file in _files(damaged):
        for change in _own_changes(file):
            if change.value is None or newest[change.key] != (change.sequence, file):
                continue
            batch.put(change.key, change.value)
            count += 1
            if batch.bytes > _BATCH_BYTES:
                rows.write(batch, sync=False)
                batch = Batch()
    rows.write(batch, sync=True)
    return count


def rescue_payloads(damaged: Path, wanted: Collection[Cid]) -> Iterator[tuple[Cid, bytes]]:
    """Yield those of the wanted chunks that are still whole in a payload database that was moved aside."""
    missing = set(wanted)
    for file in _files(damaged):
        if not missing:
            return
        for change in _changes(file, _everything, checked=False):  # a chunk's id is its hash
            value = change.value or b""
            cid, data = Cid(value[:CID_BYTES]), value[CID_BYTES:]
            if cid in missing and hashlib.sha256(data).digest() == cid:
                missing.discard(cid)
                yield cid, data


def _everything(_first: bytes, _last: bytes) -> bool:
    return True


def _files(directory: Path) -> list[Path]:
    return sorted([*directory.glob("*.ldb"), *directory.glob("*.sst"), *directory.glob("*.log")])


def _own_changes(file: Path) -> Iterator[Change]:
    for change in _changes(file, _has_own, checked=True):
        if change.key[:1] in OWN_ROWS:
            yield change


def _changes(file: Path, wanted: table_file.Wanted, *, checked: bool) -> Iterator[Change]:
    try:
        data = file.read_bytes()
    except OSError:
        return  # a sector that cannot be read is what brought us here; other files may be whole
    if file.suffix == ".log":
        yield from _logged(data)
    else:
        yield from table_file.intact_changes(data, wanted, checked=checked)


def _has_own(first: bytes, last: bytes) -> bool:
    """Whether a row of ours may lie in (first, last]."""
    return any(first[:1] <= prefix <= last[:1] for prefix in OWN_ROWS)


def _logged(log: bytes) -> Iterator[Change]:
    """Yield the changes in a write-ahead log: each record is a batch, sequence u64le ‖ count u32le ‖ changes."""
    for record in intact_records(log):
        try:
            yield from _batch(record)
        except ValueError:
            continue  # its checksum holds and it is no batch: not one of ours


def _batch(record: bytes) -> list[Change]:
    sequence, position = int.from_bytes(record[:8], "little"), _BATCH_HEADER_BYTES
    changes: list[Change] = []
    while position < len(record):
        kind = record[position]
        key, position = _prefixed(record, position + 1)
        value = b""
        if kind == table_file.VALUE:
            value, position = _prefixed(record, position)
        changes.append(table_file.change_of(key, sequence + len(changes), kind, value))
    return changes


def _prefixed(data: bytes, position: int) -> tuple[bytes, int]:
    length, position = table_file.varint(data, position)
    if position + length > len(data):
        raise ValueError("a batch ends within a change")
    return data[position : position + length], position + length
