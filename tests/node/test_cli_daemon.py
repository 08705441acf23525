"""`carechain run` as a process of its own: joining, refusing a second, stopping, and the whole way of one record."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from node.demo_network import Facility, command, until
from node.home import Home

pytestmark = pytest.mark.slow

STOP_SECONDS = 30.0  # five, and what a busy machine adds
SAMPLES = Path(os.environ.get("CARECHAIN_SAMPLES", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture
def facility() -> Iterator[Facility]:
    """A network of one voter, running."""
    with TemporaryDirectory(dir="/tmp") as folder:
        home = Home(Path(folder) / "h")
        genesis = Path(folder) / "genesis.json"
        listen = ("--listen", "/ip4/127.0.0.1/tcp/0", "--http", "127.0.0.1:0")
        command("init", "--home", str(home.path), "--name", "alone", "--no-passphrase", *listen)
        command("genesis", str(home.card), "-o", str(genesis))
        running = Facility("alone", home)
        running.start("--genesis", str(genesis))
        try:
            running.ready()
            yield running
        finally:
            running.stop()


def run(facility: Facility, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-P", "-m", "node", *arguments, "--home", str(facility.home.path)]
    return subprocess.run(
        program, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=240
    )


def test_a_daemon_joins_once_refuses_a_second_and_stops_in_time(facility: Facility) -> None:
    second = run(facility, "run")
    assert (second.returncode, second.stderr.count("\n")) == (1, 1)
    assert "already running" in second.stderr

    assert facility.process is not None
    started = time.monotonic()
    facility.process.send_signal(signal.SIGTERM)
    assert facility.process.wait(STOP_SECONDS) == 0
    assert time.monotonic() - started < STOP_SECONDS
    assert facility.home.socket_path() is None
    assert run(facility, "status").returncode == 1

    facility.start()
    assert facility.ready()["facility"] == "alone"


def test_a_record_goes_in_and_comes_out_byte_for_byte(facility: Facility, tmp_path: Path) -> None:
    bundles = sorted((SAMPLES / "synthea_r4").rglob("*.json"), key=lambda file: file.stat().st_size)
    people = [file for file in bundles if not file.name.startswith(("practitioner", "hospital"))]
    if not people:
        pytest.skip("no Synthea sample found; set CARECHAIN_SAMPLES to the folder of sample data")
    until("a leader", lambda: facility.status()["leader"])
    registered = run(facility, "patient", "register", "--from", str(people[0]), "--json")
    assert registered.returncode == 0, registered.stderr
    added = run(facility, "record", "add", str(people[0]), "--json")
    assert added.returncode == 0, added.stderr
    record = json.loads(added.stdout)["records"][0]
    again = run(facility, "record", "add", str(people[0]), "--json")
    read = run(facility, "record", "get", record["record"][:16], "-o", str(tmp_path / "out"), "--json")
    exported = run(
        facility, "record", "export", "--patient", record["patient"], "-o", str(tmp_path / "all"), "--json"
    )
    assert record["state"] == "final"
    assert json.loads(again.stdout)["records"][0]["duplicate"] is True
    assert read.returncode == 0, read.stderr
    assert (tmp_path / "out").read_bytes() == people[0].read_bytes()
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "all" / record["record"]).read_bytes() == people[0].read_bytes()
    verified = run(facility, "audit", "verify", "--full", "--json")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["ok"] is True
