"""A slow disk for one process.

Where the kernel throttles block devices by control group (version 1 `blkio`), the process writes at so many operations
a second: every synchronised write really waits for the device. Elsewhere the process is stopped for short periods
instead, which delays its disk and everything else of it: a stand-in, and it is said which of the two was used.
"""

import contextlib
import itertools
import os
import signal
import threading
from pathlib import Path
from typing import Protocol

_ROOT = Path("/sys/fs/cgroup/blkio")
_LIMIT = "blkio.throttle.write_iops_device"
_STOP_S, _GO_S = 0.12, 0.06
_numbers = itertools.count()


class SlowDisk(Protocol):
    """Makes the disk of one process slow, and fast again. Nothing of it remains after `close`."""

    kind: str
    """Which of the two it is."""

    def slow(self, process: int, writes_per_s: int) -> None:
        """Slow down a process; at most one at a time."""
        ...

    def heal(self) -> None:
        """Let the disk be as fast as it is."""
        ...

    def close(self) -> None:
        """Remove whatever was made."""
        ...


def slow_disk(folder: Path) -> SlowDisk:
    """Return what this machine can do to the disk under `folder`."""
    try:
        return ThrottledDisk(folder)
    except OSError:
        return ShortStops()


class ThrottledDisk:
    """A control group in which the device under a folder is slow."""

    kind = "throttled block device (cgroup blkio)"

    def __init__(self, folder: Path) -> None:
        """Make the group, and try whether the device can be throttled.

        Raises:
            OSError: not on this machine, or not for this user.
        """
        device = folder.stat().st_dev
        self._device = f"{os.major(device)}:{os.minor(device)}"
        self._group = _ROOT / f"carechain-{os.getpid()}-{next(_numbers)}"
        self._processes: list[int] = []
        self._group.mkdir()
        try:
            self._limit(1)
            self._limit(0)
        except OSError:
            self.close()
            raise

    def _limit(self, writes_per_s: int) -> None:
        (self._group / _LIMIT).write_text(f"{self._device} {writes_per_s}")

    def slow(self, process: int, writes_per_s: int) -> None:
        """Move a process into the group."""
        self._limit(writes_per_s)
        _move(process, self._group)
        self._processes.append(process)

    def heal(self) -> None:
        """Lift the limit and let the process out."""
        self._limit(0)
        for process in self._processes:
            _move(process, _ROOT)
        self._processes.clear()

    def close(self) -> None:
        """Remove the group."""
        with contextlib.suppress(
            OSError
        ):  # a process that will not leave keeps an empty group without a limit
            if self._processes:
                self.heal()
            self._group.rmdir()


def _move(process: int, group: Path) -> None:
    with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
        (group / "cgroup.procs").write_text(str(process))


class ShortStops:
    """Stops a process again and again for a tenth of a second."""

    kind = "short SIGSTOPs as a stand-in (no throttled block device here)"

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def slow(self, process: int, writes_per_s: int) -> None:
        """Begin; the rate is what it is."""
        del writes_per_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(process, self._ended), daemon=True)
        self._thread.start()

    def _run(self, process: int, ended: threading.Event) -> None:
        with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
            while not ended.wait(_GO_S):
                os.kill(process, signal.SIGSTOP)
                ended.wait(_STOP_S)
                os.kill(process, signal.SIGCONT)

    def heal(self) -> None:
        """End it, with the process going on."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Nothing is left to remove."""
        self.heal()
