"""The daemon as an operator meets it: it stops when told, survives a kill, a full disk and a command cut short, and idles."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.demo_network import Facility, Network, until
from tests.node.daemons import carechain, caught_up, consortium, verified

pytestmark = pytest.mark.slow
# Five, and what a machine adds on which everything runs at once.
_STOP_SECONDS = 30.0
_TMPFS_BYTES = 1024 * 1024 * 1024


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with consortium() as running:
        yield running


def done(*arguments: str | Path, home: Facility) -> dict[str, Any]:
    ran = carechain(*arguments, home=home)
    assert ran.code == 0, ran.said
    assert ran.document is not None
    return ran.document


def registered(home: Facility, folder: Path, number: int) -> str:
    person = folder / f"patient-{number}.json"
    identifier = {"system": "urn:example", "value": str(number)}
    person.write_text(json.dumps({"resourceType": "Patient", "identifier": [identifier]}))
    return str(done("patient", "register", "--from", person, home=home)["patient"])


def opaque(folder: Path, number: int, size: int = 100_000) -> Path:
    file = folder / f"{number}.bin"
    file.write_bytes(random.Random(number).randbytes(size))
    return file


def begun(*arguments: str | Path, home: Facility) -> "subprocess.Popen[bytes]":
    """Start a command and let it go on by itself."""
    program = (sys.executable, "-P", "-m", "node", *map(str, arguments), "--home", str(home.home.path))
    return subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def stopped(home: Facility, number: signal.Signals) -> float:
    """Send a signal; return how long the daemon took. It ended well and left no socket."""
    process = home.process
    assert process is not None
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(120) == 0
    home.process = None
    assert not (home.home.path / "api.sock").exists()
    return time.monotonic() - began


def back(network: Network, home: Facility) -> None:
    home.start()
    home.ready()
    assert network.connect()
    network.leader()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_daemon(network: Network, number: signal.Signals) -> None:
    seconds = stopped(network["lab"], number)
    back(network, network["lab"])

    assert seconds < _STOP_SECONDS


def test_a_signal_ends_a_daemon_that_takes_in_a_file_and_nothing_is_half_kept(
    network: Network, tmp_path: Path
) -> None:
    hospital = network["hospital"]
    patient = registered(hospital, tmp_path, 1)
    large = opaque(tmp_path, 1, 200_000_000)
    command = begun("record", "add", large, "--patient", patient, home=hospital)

    def is_taking_in() -> bool | None:
        return hospital.client.get("/v1/storage")["chunks"] > 8 or None

    until("the file to arrive", is_taking_in)
    seconds = stopped(hospital, signal.SIGTERM)
    _, said = command.communicate(timeout=120)
    back(network, hospital)

    assert seconds < _STOP_SECONDS
    assert command.returncode == 1
    assert b"the daemon went away before it answered" in said
    assert done("record", "list", "--patient", patient, home=hospital)["records"] == []


def test_a_signal_ends_a_daemon_without_a_quorum_while_a_record_waits(
    network: Network, tmp_path: Path
) -> None:
    hospital = network["hospital"]
    patient = registered(hospital, tmp_path, 2)
    for name in ("clinic", "lab"):
        network[name].kill()
    command = begun("record", "add", opaque(tmp_path, 2), "--patient", patient, home=hospital)
    until("the record to be queued", lambda: hospital.status()["queued"] or None)
    seconds = stopped(hospital, signal.SIGTERM)
    command.communicate(timeout=120)
    for facility in network.facilities.values():
        facility.start()
    for facility in network.facilities.values():
        facility.ready()
    assert network.connect()

    def is_final() -> bool | None:
        records = done("record", "list", "--patient", patient, home=hospital)["records"]
        return [record["state"] for record in records] == ["final"] or None

    assert seconds < _STOP_SECONDS
    assert until("the record to become final", is_final)


def test_the_socket_of_a_killed_daemon_deceives_nobody(network: Network) -> None:
    clinic = network["clinic"]
    clinic.kill()
    assert (clinic.home.path / "api.sock").exists()

    nobody = carechain("status", home=clinic)
    back(network, clinic)

    assert nobody.code == 1
    assert "no daemon is running" in nobody.said
    assert carechain("status", home=clinic).code == 0


def test_a_command_cut_short_by_a_kill_is_repeated_without_loss_or_double(
    network: Network, tmp_path: Path
) -> None:
    hospital, draw = network["hospital"], random.Random(4)
    person = tmp_path / "patient.json"
    identifier = {"system": "urn:example", "value": "cut short"}
    person.write_text(json.dumps({"resourceType": "Patient", "identifier": [identifier]}))

    def cut_short(*arguments: str | Path) -> dict[str, Any]:
        command = begun(*arguments, home=hospital)
        with contextlib.suppress(
            subprocess.TimeoutExpired
        ):  # in the middle of it, which is what we are after
            command.wait(draw.uniform(0.3, 0.9))
        hospital.kill()
        command.communicate(timeout=120)
        back(network, hospital)
        return done(*arguments, home=hospital)

    patient = str(cut_short("patient", "register", "--from", person)["patient"])
    file = opaque(tmp_path, 3, 1_000_000)
    cut_short("record", "add", file, "--patient", patient, "--category", "labs")
    cut_short("consent", "grant", "--patient", patient, "--to", "clinic", "--category", "labs")
    records = done("record", "list", "--patient", patient, home=hospital)["records"]
    grants = done("consent", "list", "--patient", patient, home=hospital)["grants"]
    cut_short("consent", "revoke", grants[0]["grant"])

    assert [record["state"] for record in records] == ["final"]
    assert len(grants) == 1
    caught_up(network)
    assert [verified(facility)["problems"] for facility in network.facilities.values()] == [[], [], []]


def test_an_idle_daemon_is_small_and_silent(network: Network) -> None:
    facility = network["lab"]
    facility.stop()
    Facility.start(facility)  # by itself: what a forked process shares counts as its own
    facility.ready()
    assert network.connect()
    network.leader()
    caught_up(network)
    log = facility.home.path / "log"
    seen = [(0, 0.0)]

    def is_silent() -> bool | None:
        """Whether nothing was written for six seconds; on a busy machine a leader may change before."""
        size, now = log.stat().st_size, time.monotonic()
        if size != seen[-1][0]:
            seen.append((size, now))
        return now > seen[-1][1] + 6.0 or None

    assert until("six silent seconds", is_silent)
    assert facility.process is not None
    status = Path(f"/proc/{facility.process.pid}/status").read_text()
    anonymous = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    assert int(anonymous.split()[1]) < 140 * 1024


@pytest.fixture
def small_disk(network: Network, tmp_path: Path) -> Iterator[Facility]:
    """The hospital with its home on a file system of 1 GiB."""
    hospital, kept = network["hospital"], tmp_path / "home"
    hospital.stop()
    home = hospital.home.path
    shutil.copytree(home, kept)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES},mode=0700", "tmpfs", str(home)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        back(network, hospital)
        pytest.skip("a small file system cannot be mounted here")
    try:
        shutil.copytree(kept, home, dirs_exist_ok=True)
        back(network, hospital)
        yield hospital
    finally:
        hospital.stop()
        subprocess.run(["umount", str(home)], check=True)
        back(network, hospital)


def leave_free(home: Path, left: int) -> None:
    """Fill the disk of a home up to so many bytes."""
    filler = os.open(home / "filler", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.posix_fallocate(filler, 0, shutil.disk_usage(home).free - left)
    finally:
        os.close(filler)


def codes(facility: Facility) -> set[str]:
    return {problem["code"] for problem in facility.status()["problems"]}


def test_a_full_disk_refuses_records_and_stops_nothing_else(
    network: Network, small_disk: Facility, tmp_path: Path
) -> None:
    patient = registered(small_disk, tmp_path, 5)
    there = done("record", "add", opaque(tmp_path, 50), "--patient", patient, home=small_disk)["records"][0]
    filler = small_disk.home.path / "filler"

    leave_free(small_disk.home.path, _TMPFS_BYTES // 30)
    refused = carechain("record", "add", opaque(tmp_path, 51), "--patient", patient, home=small_disk)
    assert refused.code == 1
    assert "keeps 5.0% for the ledger" in refused.said
    assert "disk" in codes(small_disk)
    done("record", "get", there["record"], "-o", tmp_path / "copy", home=small_disk)
    assert len(done("record", "list", "--patient", patient, home=small_disk)["records"]) == 1

    # Somebody else fills the rest: the node is silent, not dead, and comes back by itself.
    leave_free(small_disk.home.path, 1_000_000)
    other = registered(network["clinic"], tmp_path, 6)
    done("record", "add", opaque(tmp_path, 60), "--patient", other, home=network["clinic"])
    until("the full disk to be noticed", lambda: "disk-full" in codes(small_disk) or None)
    assert carechain("record", "add", opaque(tmp_path, 51), "--patient", patient, home=small_disk).code == 1

    filler.unlink()
    done("record", "add", opaque(tmp_path, 51), "--patient", patient, home=small_disk)
    until("the problem to be over", lambda: (not codes(small_disk) & {"disk", "disk-full"}) or None)
    caught_up(network)
    assert [verified(facility)["problems"] for facility in network.facilities.values()] == [[], [], []]
