"""Daemons and commands as real processes that are forked from one that has the program loaded.

Loading costs a daemon more than a second of processor time, a command a third of one, and the tests start hundreds of each.
A process begun here differs from one begun by a shell in two things: nothing is loaded anew, and all of them share a hash
seed. `test_demo`, `test_cli_daemon`, `tests/real` and others begin theirs as a shell does.
"""

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.node.loaded import serve

_CONTEXT = multiprocessing.get_context("forkserver")
# Without xdist the main module is pytest, which multiprocessing loads in each process that has not.
_CONTEXT.set_forkserver_preload([serve.__module__, "pytest"])


class Forked:
    """A running process of the program. Methods and attributes are those of `subprocess.Popen`."""

    def __init__(
        self, *arguments: str, output: Path, errors: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it; what it writes is appended to `output` and `errors`. Without an `environment` it gets ours."""
        variables = dict(os.environ if environment is None else environment)
        words = (arguments, str(output), str(errors), variables)
        # `daemon` has multiprocessing end it with us, as what is left over after a failed test should be.
        self._process = _CONTEXT.Process(target=serve, args=words, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the number of the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return `returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended and return its exit code.

        Raises:
            TimeoutExpired: it has not after so many seconds.
        """
        self._process.join(timeout)
        code = self.returncode
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return code

    def send_signal(self, sig: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.send_signal(signal.SIGKILL)
