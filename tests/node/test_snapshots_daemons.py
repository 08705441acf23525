"""Real daemons: a rebuilt voter installs a snapshot, serves and votes at once, and has all of history soon after."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.demo_network import Facility, Network, until
from storage.databases import SNAPSHOTS
from tests.node.daemons import carechain, caught_up, consortium, verified

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with consortium(prepare=_with_many_snapshots) as network:
        yield network


def _with_many_snapshots(network: Network) -> None:
    for facility in network.facilities.values():
        with facility.home.config.open("a") as config:
            config.write("snapshot_blocks = 1\n")


def installed(facility: Facility) -> int:
    return sum("installed a snapshot" in line for line in said(facility))


def said(facility: Facility) -> list[str]:
    return [
        line
        for line in (facility.home.path / "log").read_text().splitlines()
        if "snapshot" in line or "history" in line
    ]


def add_records(network: Network, folder: Path, label: str, count: int) -> None:
    hospital = network["hospital"]
    person = folder / "patient.json"
    identifier = {"system": "urn:example", "value": "39"}
    person.write_text(json.dumps({"resourceType": "Patient", "identifier": [identifier]}))
    registered = carechain("patient", "register", "--from", person, home=hospital)
    assert registered.document is not None, registered.said
    patient = str(registered.document["patient"])
    for number in range(count):
        file = folder / f"{number}.bin"
        file.write_bytes(f"{label} {number}".encode() * 100)
        added = carechain("record", "add", file, "--patient", patient, "--category", "labs", home=hospital)
        assert added.code == 0, added.said


@pytest.mark.parametrize("keeps_snapshots", [True, False])
def test_39_a_rebuilt_voter_installs_a_snapshot_and_verifies_every_block_afterwards(
    network: Network, tmp_path: Path, keeps_snapshots: bool
) -> None:
    clinic, label = network["clinic"], f"kept {keeps_snapshots}"
    add_records(network, tmp_path, label, 12)
    height, before = caught_up(network), installed(clinic)
    clinic.stop()
    if not keeps_snapshots:
        shutil.rmtree(clinic.home.path / SNAPSHOTS)
    clinic.start("--rebuild", "ledger")
    clinic.ready()
    assert network.connect()

    def is_whole() -> bool | None:
        status = clinic.status()
        problems = {problem["code"] for problem in status["problems"]}
        caught = status["history_height"] >= height and status["raft_role"] is not None
        return (caught and not problems & {"history", "rejoining"}) or None

    until("the rebuilt voter to vote and to have all blocks", is_whole)
    assert installed(clinic) == before + 1, said(clinic)
    report = verified(clinic)
    assert report["ok"], report
    # It counts again: with another voter stopped, its acknowledgements are needed.
    network["lab"].stop()
    add_records(network, tmp_path, f"{label}, later", 1)
    network["lab"].start()
    network["lab"].ready()
    assert network.connect()
    assert caught_up(network) > height
