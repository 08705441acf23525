"""The daemon processes of one run: made, started, killed, stopped for a while, cut off, and healed."""

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from node.demo_network import Facility, command, until
from node.home import Home
from protocol.errors import CarechainError
from tests.real.links import Links, connect
from tests.real.slow_disk import SlowDisk, slow_disk

MEMBERS = (
    ("hospital", "hospital", "voter"),
    ("clinic", "clinic", "voter"),
    ("lab", "lab", "voter"),
    ("archive", "regulator", "observer"),
)
"""(name, kind, role); the voters first."""
VOTERS = 3
_PROGRAM = (sys.executable, "-P", "-m", "node")
_CONNECT_S = 60.0
_SETTLE_S = 90.0
_STOP_S = 15.0
_LINES_SHOWN = 3


@dataclass
class Daemon(Facility):
    """A daemon behind its line."""

    prefix: tuple[str, ...] = ()

    def start(self, *options: str) -> None:
        """Start the daemon where its line is; its log goes to HOME/log."""
        with (self.home.path / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *_PROGRAM, "run", "--home", str(self.home.path), *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def running(self) -> int | None:
        """The process id while the daemon is meant to run."""
        return self.process.pid if self.process is not None else None

    def last_words(self) -> str:
        """Return the end of the log, on one line."""
        lines = (self.home.path / "log").read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-_LINES_SHOWN:])


class Consortium:
    """All daemons of a run, their lines and their disks."""

    def __init__(self, *, proxies: bool = False) -> None:
        """`proxies` asks for loopback and proxies also where there are namespaces."""
        self.folder = Path(tempfile.mkdtemp(prefix="carechain-real-"))
        self.links: Links = connect(len(MEMBERS), proxies=proxies)
        self.disk: SlowDisk = slow_disk(self.folder)
        self.daemons = tuple(
            Daemon(name, Home(self.folder / name), prefix=self.links.place(number).prefix)
            for number, (name, _, _) in enumerate(MEMBERS)
        )
        self._stopped: set[int] = set()

    @property
    def conditions(self) -> str:
        """What this run could do on this machine."""
        return f"links: {self.links.kind}; slow disk: {self.disk.kind}"

    def found(self) -> None:
        """Make every home and the genesis configuration, start everybody, and wait for a leader."""
        for number, (name, kind, role) in enumerate(MEMBERS):
            place = self.links.place(number)
            options = ["--listen", place.listen]
            for option, addresses in (("--announce", place.announce), ("--peer", place.peers)):
                for address in addresses:
                    options += [option, address]
            home = str(self.folder / name)
            command(
                "init", "--home", home, "--name", name, "--kind", kind, "--role", role, "--no-passphrase", *options
            )  # fmt: skip
        cards = [str(daemon.home.card) for daemon in self.daemons]
        command("genesis", *cards, "-o", str(self.folder / "genesis.json"))
        for daemon in self.daemons:
            daemon.start("--genesis", str(self.folder / "genesis.json"))
        for daemon in self.daemons:
            daemon.ready()
        self.wait_for_connections()
        self.wait_for_leader()

    # --- faults -------------------------------------------------------------------------------------------------------

    def kill(self, number: int) -> None:
        """End a daemon with SIGKILL; one that was ended is left so."""
        self._stopped.discard(number)
        self.daemons[number].kill()

    def start(self, number: int) -> None:
        """Start a daemon that does not run."""
        if self.daemons[number].process is None:
            self.daemons[number].start()

    def pause(self, number: int) -> None:
        """Stop a daemon with SIGSTOP: its sockets stay open, its clock goes on."""
        process = self.daemons[number].process
        if process is not None:
            process.send_signal(signal.SIGSTOP)
            self._stopped.add(number)

    def resume(self, number: int) -> None:
        """Let a stopped daemon go on."""
        process = self.daemons[number].process
        if number in self._stopped and process is not None:
            process.send_signal(signal.SIGCONT)
        self._stopped.discard(number)

    def heal(self) -> None:
        """End every fault: everybody runs, hears everybody, and writes as fast as the disk can."""
        self.links.heal()
        self.disk.heal()
        for number in range(len(self.daemons)):
            self.resume(number)
            self.start(number)

    def slow_down(self, number: int, writes_per_s: int) -> None:
        """Give a running daemon a slow disk."""
        process = self.daemons[number].running
        if process is not None:
            self.disk.slow(process, writes_per_s)

    def wait_for_answers(self) -> None:
        """Wait until every daemon answers on its socket.

        Raises:
            DemoError: one does not, or ended.
        """
        for daemon in self.daemons:
            daemon.ready()

    # --- looking ------------------------------------------------------------------------------------------------------

    def ended_by_themselves(self) -> list[str]:
        """Return what is said of daemons that are meant to run and do not."""
        return [
            f"the daemon of {daemon.name} ended by itself with {daemon.process.returncode}: {daemon.last_words()}"
            for daemon in self.daemons
            if daemon.process is not None and daemon.process.poll() is not None
        ]

    def passed_by(self) -> list[str]:
        """Return what is said of daemons that reach another one where its proxies alone should."""
        hidden = {self.links.place(number).hidden: name for number, (name, _, _) in enumerate(MEMBERS)}
        return [
            f"{daemon.name} reaches {hidden[peer['address']]} past the proxies"
            for daemon in self.daemons
            for peer in daemon.status()["peers"]
            if peer["address"] in hidden
        ]

    def leader(self) -> int | None:
        """Return the number of a voter that says of itself that it leads, as far as somebody answers quickly."""
        for number, daemon in enumerate(self.daemons[:VOTERS]):
            if daemon.process is None or number in self._stopped:
                continue
            with contextlib.suppress(CarechainError):  # it may just be starting
                if daemon.status()["leader"] == daemon.name:
                    return number
        return None

    def wait_for_connections(self) -> None:
        """Wait until everybody is connected to everybody.

        Raises:
            DemoError: it does not happen.
        """

        def connected() -> bool | None:
            reports = [daemon.status() for daemon in self.daemons]
            return all(peer["connected"] for report in reports for peer in report["peers"]) or None

        until("the daemons to be connected", connected, _CONNECT_S)

    def wait_for_leader(self) -> None:
        """Wait until the voters name one leader.

        Raises:
            DemoError: they do not.
        """

        def agreed() -> bool | None:
            names = {daemon.status()["leader"] for daemon in self.daemons[:VOTERS]}
            return True if len(names) == 1 and None not in names else None

        until("one leader", agreed, _CONNECT_S)

    def wait_for_one_height(self) -> int:
        """Wait until everybody, the observer too, has applied the same block; return its height.

        Raises:
            DemoError: they do not come to it.
        """

        def same() -> int | None:
            heights = {daemon.status()["height"] for daemon in self.daemons}
            return heights.pop() if len(heights) == 1 else None

        return until("the daemons to be at one height", same, _SETTLE_S)

    def stop(self) -> list[str]:
        """End every daemon cleanly; return what is said of those that did not end well."""
        for daemon in self.daemons:
            if daemon.process is not None:
                daemon.process.send_signal(signal.SIGTERM)
        problems = []
        for daemon in self.daemons:
            process, daemon.process = daemon.process, None
            if process is None:
                continue
            try:
                code = process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            if code != 0:
                problems.append(f"the daemon of {daemon.name} ended with {code} when told to stop")
        return problems

    def close(self, *, keep: bool = False) -> None:
        """End everything and remove whatever was made; `keep` leaves the homes where they are."""
        for daemon in self.daemons:
            daemon.kill()
        self.disk.close()
        self.links.close()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
