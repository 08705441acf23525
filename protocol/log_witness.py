"""What a witness of logs is asked, and when it may say yes (C2SP tlog-witness, add-checkpoint).

    old <size of the checkpoint that the witness cosigned last>
    <hash in base64>                                         the consistency proof from there, zero lines or more

    <checkpoint, a signed note>

A witness never cosigns two checkpoints of one log that do not agree, nor a smaller one after a larger. For that the record
that a request is judged by must still be the newest when the new one is stored: the driver (`node.log_witness`) holds a
lock from reading to storing, and stores durably before it answers.
"""

from dataclasses import dataclass
from typing import Annotated

from protocol import limits, merkle
from protocol.checkpoint import NoteKey, SignedCheckpoint, encode_hashes, parse_hash, parse_size
from protocol.codec import Size, wire
from protocol.errors import Invalid, Malformed
from protocol.identifiers import Digest

REQUEST_BYTES_MAX = limits.NOTE_BYTES_MAX + 4 * limits.KIB
SIZE_MEDIA_TYPE = "text/x.tlog.size"
_OLD = "old "


class Declined(Invalid):
    """The witness does not cosign. `status` is HTTP's; `size` that of the checkpoint it has cosigned, where that is the answer."""

    def __init__(self, status: int, reason: str, size: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.size = size


@wire("witnessed")
@dataclass(frozen=True, slots=True)
class Witnessed:
    """What a witness remembers of one log: the head that it cosigned last."""

    size: int
    root: Annotated[Digest, Size(32)]


NOTHING = Witnessed(0, merkle.EMPTY_ROOT)
"""The record of a log of which nothing was cosigned yet."""


@dataclass(frozen=True, slots=True)
class KnownLog:
    """A log that the witness answers for: `threshold` of `keys` must have signed a checkpoint."""

    origin: str
    keys: tuple[NoteKey, ...]
    threshold: int = 1


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """A request to cosign: the new checkpoint, and that it continues the one of `old` leaves."""

    old: int
    proof: tuple[Digest, ...]
    note: SignedCheckpoint

    def encode(self) -> bytes:
        """Return the request's body."""
        return f"{_OLD}{self.old}\n{encode_hashes(self.proof)}\n".encode() + self.note.encode()

    @staticmethod
    def parse(body: bytes) -> "AddCheckpoint":
        """Return the request that a body spells.

        Raises:
            Malformed: it is none.
        """
        head, blank, note = body.partition(b"\n\n")
        if not blank or len(body) > REQUEST_BYTES_MAX or not head.isascii():
            raise Malformed("a request is an old size, a proof, an empty line and a checkpoint")
        first, *hashes = head.decode().split("\n")
        if not first.startswith(_OLD):
            raise Malformed("a request begins with the old size")
        if len(hashes) > limits.CONSISTENCY_HASHES_MAX:
            raise Malformed(f"a proof of more than {limits.CONSISTENCY_HASHES_MAX} hashes")
        proof = tuple(Digest(parse_hash(one)) for one in hashes)
        return AddCheckpoint(parse_size(first[len(_OLD) :]), proof, SignedCheckpoint.parse(note))


def check_signed(request: AddCheckpoint, log: KnownLog | None) -> None:
    """Check that a known log has signed the checkpoint; only then is it worth comparing with anything.

    Raises:
        Declined: 404 for an unknown log, 403 where too few of its keys, or a false one, have signed, 400 for impossible sizes.
    """
    if log is None:
        raise Declined(404, "a log that this witness does not know")
    try:
        signed = request.note.signed_by(log.keys)
    except Invalid as fault:
        raise Declined(403, str(fault)) from None
    if len(signed) < log.threshold:
        raise Declined(
            403, f"signed by {len(signed)} of the {log.threshold} keys of this log that are needed"
        )
    if request.old > request.note.checkpoint.size:
        raise Declined(400, "the old size is above the checkpoint's")


def check_growth(request: AddCheckpoint, record: Witnessed) -> Witnessed:
    """Check that a signed checkpoint continues the one on record; return the record to store before anything is answered.

    Raises:
        Declined: 409 with the size on record when the request is not from there, or names another root for that size;
            422 when the proof does not hold.
    """
    checkpoint = request.note.checkpoint
    if request.old != record.size:
        raise Declined(409, f"the checkpoint cosigned last has {record.size} leaves", record.size)
    if checkpoint.size == record.size and checkpoint.root != record.root:
        raise Declined(409, f"another root for {record.size} leaves than the one cosigned", record.size)
    try:
        merkle.verify_consistency(record.size, checkpoint.size, record.root, checkpoint.root, request.proof)
    except Invalid as fault:
        raise Declined(422, str(fault)) from None
    return Witnessed(checkpoint.size, checkpoint.root)
