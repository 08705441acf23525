"""Real daemon processes of a demonstration, in a folder of their own: made, started, killed, and cleared away."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from node import config
from node.cli.client import Client
from node.home import Home
from protocol.errors import CarechainError, Unavailable

T = TypeVar("T")
_PROGRAM = (sys.executable, "-P", "-m", "node")
# A wait ends when what it waits for is there; these are for machines that do much else.
_START_SECONDS = 90.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.1


class DemoError(Exception):
    """Something that the demonstration shows did not hold; its text says what."""


class Process(Protocol):
    """A running daemon: what is used here of `subprocess.Popen`. The tests have others, which start faster."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def returncode(self) -> int | None:
        """Its exit code, minus the number of the signal that ended it, or None as long as nobody has found it ended."""
        ...

    def poll(self) -> int | None:
        """Look whether it has ended, and return `returncode`."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and return its exit code; raise `subprocess.TimeoutExpired` after `timeout` seconds."""
        ...

    def send_signal(self, sig: int) -> None:
        """Send it a signal."""
        ...

    def kill(self) -> None:
        """Send it SIGKILL."""
        ...


@dataclass
class Facility:
    """One home, its daemon process while it runs, and its client."""

    name: str
    home: Home
    process: Process | None = None
    client: Client = field(init=False)
    program: tuple[str, ...] = _PROGRAM
    """What is started as its daemon, with `run` and options."""

    def __post_init__(self) -> None:
        self.client = Client(self.home)

    def start(self, *options: str) -> None:
        """Start the daemon; its log goes to HOME/log."""
        with (self.home.path / "log").open("ab") as log:
            command = [*self.program, "run", "--home", str(self.home.path), *options]
            self.process = subprocess.Popen(  # noqa: S603  (this very program)
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self) -> None:
        """End the daemon cleanly, or by force when it takes longer than it may."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
            self.process = None

    def kill(self) -> None:
        """End the daemon with SIGKILL, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def status(self) -> dict[str, Any]:
        """Return the daemon's status document."""
        return self.client.get("/v1/status")

    def ready(self) -> dict[str, Any]:
        """Wait until the daemon answers, and return its status."""
        return until(f"{self.name} to answer", self._status_or_none)

    def _status_or_none(self) -> dict[str, Any] | None:
        if self.process is not None and self.process.poll() is not None:
            lines = (self.home.path / "log").read_text(errors="replace").strip().splitlines() or ["no word"]
            raise DemoError(f"the daemon of {self.name} ended: {lines[-1]}")
        try:
            return self.status()
        except CarechainError:
            return None


def until(what: str, look: Callable[[], T | None], seconds: float = _START_SECONDS) -> T:
    """Look until there is something to see, and return it."""
    end = time.monotonic() + seconds
    while True:
        seen = look()
        if seen is not None:
            return seen
        if time.monotonic() > end:
            raise DemoError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(_POLL_SECONDS)


class Network:
    """A consortium in a temporary folder."""

    def __init__(
        self,
        names: tuple[tuple[str, str, str], ...],
        *,
        facility: Callable[[str, Home], Facility] = Facility,
        run: Callable[..., dict[str, Any]] | None = None,
    ) -> None:
        """`names` are (name, kind, role). `facility` makes each of them; `run` runs a command, by default `command`."""
        self.folder = Path(tempfile.mkdtemp(prefix="carechain-demo-"))
        self.facilities = {name: facility(name, Home(self.folder / name)) for name, _, _ in names}
        self._names = names
        self._run = run or command

    def __getitem__(self, name: str) -> Facility:
        return self.facilities[name]

    def found(self) -> str:
        """Make every home and the genesis configuration; return the network id."""
        for name, kind, role in self._names:
            home = str(self.folder / name)
            self._run(
                "init", "--home", home, "--name", name, "--kind", kind, "--role", role, "--no-passphrase",
                "--listen", "/ip4/127.0.0.1/tcp/0",
            )  # fmt: skip
        cards = [str(facility.home.card) for facility in self.facilities.values()]
        made = self._run("genesis", *cards, "-o", str(self.folder / "genesis.json"))
        return str(made["network"])

    def start(self) -> None:
        """Start every daemon."""
        for facility in self.facilities.values():
            facility.start("--genesis", str(self.folder / "genesis.json"))
        for facility in self.facilities.values():
            facility.ready()

    def connect(self, seconds: float = _START_SECONDS) -> bool:
        """Wait until everybody is connected to everybody; return False when that does not happen in time."""

        def all_connected() -> bool | None:
            reports = [facility.status() for facility in self.facilities.values()]
            return all(peer["connected"] for report in reports for peer in report["peers"]) or None

        try:
            return until("the daemons to find each other", all_connected, seconds)
        except DemoError:
            return False

    def give_addresses(self) -> None:
        """Where multicast is missing: write the addresses into each configuration and start again."""
        addresses = {
            name: tuple(facility.status()["addresses"]) for name, facility in self.facilities.items()
        }
        for name, facility in self.facilities.items():
            facility.stop()
            settings = config.load(facility.home.config)
            peers = tuple(address for other in addresses if other != name for address in addresses[other])
            changed = config.render(
                config.Config(
                    name=settings.name,
                    kind=settings.kind,
                    role=settings.role,
                    listen=addresses[name],
                    peers=peers,
                )
            )
            facility.home.config.write_text(changed)
        self.start()

    def leader(self) -> str:
        """Wait until the running daemons agree on a leader, and return its name."""

        def agreed() -> str | None:
            running = [facility for facility in self.facilities.values() if facility.process is not None]
            names = set()
            for facility in running:
                with contextlib.suppress(Unavailable):  # between two calls a daemon may just be starting
                    names.add(facility.status()["leader"])
            names.discard(None)
            name = names.pop() if len(names) == 1 else None
            return name if name is not None and self.facilities[name].process is not None else None

        return until("a leader", agreed)

    def clear(self, *, keep: bool) -> None:
        """End every daemon and remove the folder, unless it is to be kept running."""
        if keep:
            return
        for facility in self.facilities.values():
            if facility.process is not None:
                facility.process.send_signal(signal.SIGTERM)
        for facility in self.facilities.values():
            facility.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def command(*arguments: str) -> dict[str, Any]:
    """Run one command of this program and return its JSON document."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CARECHAIN_")}
    done = subprocess.run(  # noqa: S603  (this very program)
        [*_PROGRAM, *arguments, "--json"],
        stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60, env=environment,
    )  # fmt: skip
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no word"]
        raise DemoError(f"carechain {arguments[0]} ended with {done.returncode}: {said[-1]}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document
