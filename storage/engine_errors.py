"""What LevelDB says when something fails, as errors of ours: a sentence that names the database and what to do."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import plyvel

from protocol.errors import Corruption, Refused, StorageFull, Unreadable

_OUR_LIMITS = (b"Too many open files", b"Cannot allocate memory", b"Permission denied")


class EngineErrors:
    """The errors of one database. `rebuild` is the command that refills it; None when nothing but a copy brings it back."""

    def __init__(self, path: Path, rebuild: str | None) -> None:
        self._path = path
        self._name = path.name
        self._cure = f"run `{rebuild}`" if rebuild else "restore its directory from a copy"

    def refusal(self, reason: str, kind: type[Corruption] = Unreadable) -> Corruption:
        """Return that it does not open, and why."""
        return kind(f"database {self._name} does not open ({reason}): {self._cure}")

    def of_opening(self, error: Exception) -> Exception:
        """Return what an error of the engine means while it opens."""
        raw = _raw(error)
        if b"lock" in raw.lower() and isinstance(error, plyvel.IOError):
            return Refused(f"database {self._name} is in use by another process: stop that one first")
        if b"No space left" in raw:
            return StorageFull(f"the disk is full: database {self._name} cannot be opened")
        if any(text in raw for text in _OUR_LIMITS):
            return OSError(f"database {self._name}: {self._reason(raw)}")
        return self.refusal(self._reason(raw))

    def of_reading(self, error: Exception) -> Exception:
        """Return what an error of the engine means in reading."""
        raw = _raw(error)
        if any(text in raw for text in _OUR_LIMITS):
            return OSError(f"database {self._name}: {self._reason(raw)}")
        # A bad sector (EIO) or a wild offset in a footer (EINVAL) also means that the stored bytes are lost.
        return Unreadable(f"database {self._name} holds damaged bytes ({self._reason(raw)}): {self._cure}")

    def of_writing(self, error: Exception) -> tuple[Callable[[str], Exception], str]:
        """Return kind and sentence of what an error of the engine means in writing."""
        raw = _raw(error)
        reason = self._reason(raw)
        if isinstance(error, plyvel.CorruptionError):
            text = f"holds damaged bytes and takes no more writes ({reason}): {self._cure}"
            return Unreadable, f"database {self._name} {text}"
        if b"No space left" in raw or b"Disk quota exceeded" in raw:
            text = "takes no more writes because the disk is full: free space, then start again"
            return partial(StorageFull, until_restart=True), f"database {self._name} {text}"
        return OSError, f"database {self._name} takes no more writes after an error ({reason})"

    def _reason(self, raw: bytes) -> str:
        text = raw.decode(errors="replace")
        return text.replace(f"{self._path}/", "").replace(str(self._path), self._name)[:200]


def _raw(error: Exception) -> bytes:
    """Return the engine's text: plyvel raises with bytes, the system with (number, text)."""
    first = error.args[0] if error.args else b""
    return first if isinstance(first, bytes) else str(error).encode()
