"""A consortium of real daemon processes for tests, and the command line as a person would use it."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.demo_network import Facility, Network, until

VOTERS = (("hospital", "hospital", "voter"), ("clinic", "clinic", "voter"), ("lab", "lab", "voter"))
_PROGRAM = (sys.executable, "-P", "-m", "node")


@dataclass(frozen=True, slots=True)
class Ran:
    """What one command did: its exit code, the JSON document (None when it printed none), its last line of errors."""

    code: int
    document: dict[str, Any] | None
    said: str
    seconds: float


def carechain(*arguments: str | Path, home: Facility | Path | None = None, **environment: str) -> Ran:
    """Run one command with `--json`."""
    where = [] if home is None else ["--home", str(home.home.path if isinstance(home, Facility) else home)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CARECHAIN_")}
    started = time.monotonic()
    done = subprocess.run(
        [*_PROGRAM, *map(str, arguments), *where, "--json"],
        capture_output=True, check=False, timeout=120, stdin=subprocess.DEVNULL, env=clean | environment,
    )  # fmt: skip
    lines = done.stderr.decode().strip().splitlines() or [""]
    assert "Traceback" not in done.stderr.decode(), done.stderr.decode()
    document = json.loads(done.stdout) if done.stdout.strip() else None
    return Ran(done.returncode, document, lines[-1], time.monotonic() - started)


@contextlib.contextmanager
def consortium(
    *names: tuple[str, str, str], prepare: Callable[[Network], None] = lambda _: None
) -> Iterator[Network]:
    """A network of running daemons, connected, with a leader; ended and removed afterwards. `prepare` sees it before it runs."""
    network = Network(names or VOTERS)
    try:
        network.found()
        prepare(network)
        network.start()
        if not network.connect(15.0):
            network.give_addresses()
            assert network.connect(15.0)
        network.leader()
        yield network
    finally:
        network.clear(keep=False)


def caught_up(network: Network) -> int:
    """Wait until every running daemon is at the same height, and return it."""

    def same() -> int | None:
        heights = {
            facility.status()["height"]
            for facility in network.facilities.values()
            if facility.process is not None
        }
        return heights.pop() if len(heights) == 1 else None

    return until("the daemons to be at one height", same)


def verified(facility: Facility) -> dict[str, Any]:
    """Return what `audit verify --full` finds."""
    return carechain("audit", "verify", "--full", home=facility).document or {}
