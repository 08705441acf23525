"""Reading everything back: what `audit verify --full` and the background scrub are made of.

Every problem names what is damaged and is fit for a report to an operator. Verifying changes nothing; what to do
about a bad chunk (quarantine, repair from another member) is the caller's decision.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from protocol.cid import cid_text
from protocol.errors import Corruption
from protocol.identifiers import Cid, Rid
from storage.chunk_store import ChunkStore
from storage.envelope_store import EnvelopeStore
from storage.key_value import KeyValue
from storage.keyspace import SEQUENCE_END

Progress = Callable[[int, int], None]
"""Called with (things read, bytes read) after each of them."""


class Part(Enum):
    """What kind of thing is damaged."""

    CHUNK = "chunk"
    ENVELOPE = "envelope"
    ATTACHMENT = "attachment"
    ROWS = "rows"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. `name` is a content id, a record id, a hash or a range of keys, in hex or as people see it."""

    part: Part
    name: str
    sentence: str
    cid: Cid | None = None
    rid: Rid | None = None


def _no_progress(_things: int, _bytes: int) -> None:
    """Take no notice."""


def verify_payloads(chunks: ChunkStore, progress: Progress = _no_progress) -> tuple[Problem, ...]:
    """Read every chunk and check it against its content id; name those that fail, and those still in quarantine."""
    problems = []
    read = size = 0
    try:
        for cid in chunks.cids():
            try:
                size += len(chunks.get(cid) or b"")
            except Corruption as error:
                problems.append(Problem(Part.CHUNK, cid_text(cid), str(error), cid=cid))
            read += 1
            progress(read, size)
    except Corruption as error:
        problems.append(
            Problem(Part.ROWS, "chunk index", f"the index of chunks cannot be read further: {error}")
        )
    for sequence, cid in chunks.index.quarantined():
        if not chunks.has(cid):
            sentence = f"chunk {cid_text(cid)} (payload {sequence}) is in quarantine and not repaired yet"
            problems.append(Problem(Part.CHUNK, cid_text(cid), sentence, cid=cid))
    return tuple(problems)


def verify_envelopes(envelopes: EnvelopeStore, progress: Progress = _no_progress) -> tuple[Problem, ...]:
    """Read every envelope and attachment and check it against its hash; name records and hashes that fail."""
    problems = []
    read = size = 0
    try:
        for rid, _ in envelopes.records():
            try:
                size += len(envelopes.envelope_of(rid) or b"")
            except Corruption as error:
                problems.append(Problem(Part.ENVELOPE, rid.hex(), f"record {rid.hex()}: {error}", rid=rid))
            read += 1
            progress(read, size)
        for digest in envelopes.attachments():
            try:
                size += len(envelopes.attachment(digest) or b"")
            except Corruption as error:
                problems.append(Problem(Part.ATTACHMENT, digest.hex(), str(error)))
            read += 1
            progress(read, size)
    except Corruption as error:
        sentence = f"the list of envelopes cannot be read further: {error}"
        problems.append(Problem(Part.ROWS, "envelopes", sentence))
    return tuple(problems)


def verify_rows(
    database: KeyValue, name: str, rebuild: str, progress: Progress = _no_progress
) -> tuple[Problem, ...]:
    """Walk every row of a database, so that the checksum of every block on disk is verified (it is flushed first).

    Damage is named by the keys around it: what lies between them cannot be read. `rebuild` is the command that
    repairs the database called `name`.
    """
    try:
        database.flush()
    except Corruption as error:
        return (Problem(Part.ROWS, name, str(error)),)
    read = size = 0
    last = b""
    try:
        for key, value in database.scan(b"", SEQUENCE_END):
            last = key
            read += 1
            size += len(key) + len(value)
            progress(read, size)
    except Corruption as error:
        following = _first_readable_after(database, last)
        between = f"{last.hex() or 'the first'} and {following.hex() or 'the last'}"
        sentence = (
            f"database {name}: the rows between keys {between} cannot be read ({error}): run `{rebuild}`"
        )
        return (Problem(Part.ROWS, f"{name} {between}", sentence),)
    return ()


def _first_readable_after(database: KeyValue, damage: bytes) -> bytes:
    """Return the lowest key that can be reached from the end, b"" when there is none."""
    lowest = b""
    try:
        for key, _ in database.scan(damage + b"\0", SEQUENCE_END, reverse=True):
            lowest = key
    except Corruption:
        # Expected: this is the other edge of the damage.
        return lowest
    return lowest
