"""Reading a record into a file, and going on where an earlier reading was interrupted.

    hidden file beside FILE ──all bytes──► length and SHA-256 are the record's ──► replaces FILE

What an interrupted reading (daemon gone, no replica left, kill -9) has left of a large record is asked for no more. The
digest of the whole decides; when it is wrong, everything is read anew.
"""

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from node.cli.client import BODY_PIECE_BYTES, Client
from node.cli.output import Document, progress
from node.home import replacing, write_all
from protocol.errors import Unavailable

KEPT_BYTES_MIN = 1024 * 1024
"""Less than this is sooner read again than explained: nothing hidden is left."""


class _DamagedError(Exception):
    """All bytes have come, and they are not the record's."""


def fetch(client: Client, file: Path, *, record: str, purpose: str, user: str | None) -> Document:
    """Read a record into a file that is replaced only once every byte has come and their digest is right.

    Raises:
        CarechainError: what the daemon refused; the old file stays.
        Unavailable: the answer broke off or was damaged; the old file stays.
    """
    asked = {"record": record, "purpose": purpose, "user": user}
    kept = (
        file.with_name(f".{file.name[:150]}.{record}.part")
        if record.isalnum() and len(record) <= 64
        else None
    )
    if kept is not None and _size(kept):
        with contextlib.suppress(_DamagedError):  # what was left is of no use: from the beginning
            return _read(client, file, kept, asked)
    try:
        return _read(client, file, kept, asked)
    except _DamagedError as damaged:
        raise Unavailable(str(damaged)) from None


def _read(client: Client, file: Path, kept: Path | None, asked: Document) -> Document:
    try:
        # The file is opened first: an access must not be written to the ledger for a reader who cannot keep the answer.
        with replacing(file, kept=kept) as descriptor:
            return _write(client, descriptor, asked)
    except _DamagedError:
        _forget(kept)
        raise
    except BaseException:
        if _size(kept) < KEPT_BYTES_MIN:
            _forget(kept)
        raise


def _write(client: Client, descriptor: int, asked: Document) -> Document:
    digest, done = _hashed(descriptor)
    with client.download("/v1/records/read", start=done, **asked) as (info, body):
        if info["start"] != done:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            digest, done = hashlib.sha256(), 0
        with progress("Reading", info["bytes"], in_bytes=True) as show:
            show(done)
            for piece in body:
                write_all(descriptor, piece)
                digest.update(piece)
                done += len(piece)
                show(done)
    if digest.hexdigest() != info["sha256"] or done != info["bytes"]:
        raise _DamagedError(
            f"the answer has {done} bytes and another digest than the record; nothing was replaced, read again"
        )
    return info


def _hashed(descriptor: int) -> "tuple[hashlib._Hash, int]":
    """Return the digest and the length of what is there, and stand at its end."""
    digest, done = hashlib.sha256(), 0
    while piece := os.read(descriptor, BODY_PIECE_BYTES):
        digest.update(piece)
        done += len(piece)
    return digest, done


def _size(kept: Path | None) -> int:
    try:
        found = kept.lstat() if kept is not None else None
    except OSError:
        return 0
    return found.st_size if found is not None and stat.S_ISREG(found.st_mode) else 0


def _forget(kept: Path | None) -> None:
    if kept is not None:
        with contextlib.suppress(OSError):  # gone, or not ours to remove
            kept.unlink()
