"""Files through real daemons by the command line: many small ones together, and a large one read in two goes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.demo_network import Network, until
from tests.node.daemons import carechain, caught_up, consortium

SMALL, LARGE_MIB = 40, 128


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with consortium() as found:
        yield found


@pytest.fixture(scope="module")
def patient(network: Network) -> str:
    arguments = ("--identifier", "urn:test|1", "--name", "Ada", "--birth-date", "1980-02-03")
    answer = carechain("patient", "register", *arguments, home=network["hospital"]).document
    assert answer is not None
    return str(answer["patient"])


@pytest.mark.slow
def test_small_files_are_added_together_and_are_final_everywhere(
    network: Network, patient: str, tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}.bin" for number in range(SMALL)]
    for file in files:
        file.write_bytes(os.urandom(2048))

    added = carechain(
        "record", "add", *files, tmp_path / "absent", "--patient", patient, home=network["hospital"]
    )

    assert added.code == 1  # one of them is not there
    assert added.document is not None
    assert [record["state"] for record in added.document["records"]] == ["final"] * SMALL
    assert len(added.document["refused"]) == 1
    last = added.document["records"][-1]["record"]
    read = carechain("record", "get", last, "-o", tmp_path / "back", home=network["hospital"])
    assert read.code == 0
    assert (tmp_path / "back").read_bytes() == files[-1].read_bytes()
    caught_up(network)
    held = [facility.client.get("/v1/storage") for facility in network.facilities.values()]
    assert all(figures["chunks"] >= 2 * SMALL for figures in held)


@pytest.mark.slow
def test_a_reading_that_was_killed_goes_on_in_the_file_it_left(
    network: Network, patient: str, tmp_path: Path
) -> None:
    hospital, data = network["hospital"], os.urandom(LARGE_MIB << 20)
    (tmp_path / "scan").write_bytes(data)
    added = carechain("record", "add", tmp_path / "scan", "--patient", patient, home=hospital)
    assert added.document is not None
    record = added.document["records"][0]["record"]
    left = tmp_path / f".back.{record}.part"
    command = ("record", "get", record, "-o", str(tmp_path / "back"), "--home", str(hospital.home.path))
    reading = subprocess.Popen([sys.executable, "-P", "-m", "node", *command])

    until("a part of it", lambda: (left.exists() and left.stat().st_size > 4 << 20) or None)
    reading.kill()
    assert reading.wait() < 0
    kept = left.stat()
    again = carechain("record", "get", record, "-o", tmp_path / "back", home=hospital)

    assert again.code == 0
    assert kept.st_size < len(data)
    assert (tmp_path / "back").stat().st_ino == kept.st_ino
    assert (tmp_path / "back").read_bytes() == data
    assert not left.exists()
