"""A consortium of real daemon processes for tests, and the command line as a person would use it."""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.demo_network import DemoError, Facility, Network, until
from tests.node.forked import Forked

VOTERS = (("hospital", "hospital", "voter"), ("clinic", "clinic", "voter"), ("lab", "lab", "voter"))
_COMMAND_SECONDS = 240.0
_MDNS_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Ran:
    """What one command did: its exit code, the JSON document (None when it printed none), its last line of errors."""

    code: int
    document: dict[str, Any] | None
    said: str
    seconds: float


@dataclass
class Daemon(Facility):
    """A facility whose daemon is forked from a process that has the program loaded."""

    def start(self, *options: str) -> None:
        """Start the daemon; its log goes to HOME/log. Any other `program` is started as it stands."""
        if self.program != type(self).program:
            super().start(*options)
            return
        log = self.home.path / "log"
        self.process = Forked("run", "--home", str(self.home.path), *options, output=log, errors=log)


def carechain(*arguments: str | Path, home: Facility | Path | None = None, **environment: str) -> Ran:
    """Run one command with `--json`."""
    where = [] if home is None else ["--home", str(home.home.path if isinstance(home, Facility) else home)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CARECHAIN_")}
    words = (*map(str, arguments), *where, "--json")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "output", Path(folder) / "errors"
        process = Forked(*words, output=output, errors=errors, environment=clean | environment)
        try:
            code = process.wait(_COMMAND_SECONDS)
        finally:
            process.kill()
        shown, said = output.read_bytes(), errors.read_text()
    assert "Traceback" not in said, said
    lines = said.strip().splitlines() or [""]
    return Ran(code, json.loads(shown) if shown.strip() else None, lines[-1], time.monotonic() - started)


def made(*arguments: str) -> dict[str, Any]:
    """Run one command that has to succeed and to say something; return its document."""
    ran = carechain(*arguments)
    if ran.code != 0 or ran.document is None:
        raise DemoError(f"carechain {arguments[0]} ended with {ran.code}: {ran.said}")
    return ran.document


@contextlib.contextmanager
def consortium(
    *names: tuple[str, str, str], prepare: Callable[[Network], None] = lambda _: None
) -> Iterator[Network]:
    """A network of running daemons, connected, with a leader; ended and removed afterwards. `prepare` sees it before it runs."""
    network = Network(names or VOTERS, facility=Daemon, run=made)
    try:
        network.found()
        prepare(network)
        network.start()
        if not network.connect(_MDNS_SECONDS):
            network.give_addresses()
            assert network.connect()
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
