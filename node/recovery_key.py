"""The file of a facility's recovery key: written once, read by `restore`, and by no daemon."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from protocol.backup import parse_recovery_key, recovery_key_text
from protocol.errors import Refused
from protocol.hpke import SECRET_BYTES, x25519_public
from protocol.identifiers import PublicKey
from storage.directories import sync_directory

FILE_BYTES_MAX = 16 * 1024


def make_recovery_key(file: Path, entropy: Callable[[int], bytes]) -> PublicKey:
    """Write a new recovery key to a file that does not exist yet (mode 0600), durably; return its public half.

    Raises:
        Refused: the file exists, or cannot be written; nothing is left of it.
    """
    secret = entropy(SECRET_BYTES)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Refused(f"{file} exists, and a recovery key is never overwritten; name another file") from None
    except OSError as error:
        raise Refused(f"{file} cannot be written ({error.strerror}); name another file") from None
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(recovery_key_text(secret).encode())
            opened.flush()
            # Persist before anything is sealed to it: what is sealed to a lost key is lost.
            os.fsync(opened.fileno())
        sync_directory(file.absolute().parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # the sentence below says what failed; half a key opens nothing
            file.unlink(missing_ok=True)
        raise Refused(f"{file} cannot be written ({error.strerror}); name another file") from None
    return x25519_public(secret)


def read_recovery_key(file: Path) -> bytes:
    """Return the secret in a recovery key's file.

    Raises:
        Refused: it cannot be read, or holds something else.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(FILE_BYTES_MAX)
    except OSError as error:
        raise Refused(
            f"the recovery key {file} cannot be read ({error.strerror}); name another file"
        ) from None
    return parse_recovery_key(data.decode(errors="replace"))
