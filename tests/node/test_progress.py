"""Progress bars: rate and time left on a terminal, nothing in a pipe."""

import os
import pty
import subprocess
import sys

import pytest

_PROGRAM = """
from node.cli.output import progress

with progress("Copying", 10 * 2**20, in_bytes={in_bytes}) as show:
    for done in range(11):
        show(done * 2**20)
"""


def shown(*, in_bytes: bool) -> str:
    """Return what a program with a progress bar writes to a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "140"}
    try:
        subprocess.run(
            [sys.executable, "-P", "-c", _PROGRAM.format(in_bytes=in_bytes)],
            stderr=theirs, check=True, env=environment, timeout=120,
        )  # fmt: skip
        return os.read(ours, 65_536).decode()
    finally:
        os.close(theirs)
        os.close(ours)


@pytest.mark.parametrize(("in_bytes", "amount"), [(True, "10.0/10.0 MiB"), (False, "10485760/10485760")])
def test_a_terminal_shows_how_much_is_done_and_the_time_left(in_bytes: bool, amount: str) -> None:
    text = shown(in_bytes=in_bytes)

    assert "Copying" in text
    assert amount in text
    assert "0:00:00" in text
    assert "/s" in text


def test_a_pipe_shows_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM.format(in_bytes=True)],
        capture_output=True,
        check=True,
        timeout=120,
    )

    assert (done.stdout, done.stderr) == (b"", b"")
