"""Erasure by the command line, on real daemons: everything goes, also where somebody was away or was killed meanwhile."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.demo_network import Facility, Network, until
from tests.node.contract_house import bundle, documents
from tests.node.daemons import VOTERS, carechain, caught_up, consortium, verified

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with consortium(*VOTERS, ("archive", "regulator", "observer")) as running:
        yield running


def added(network: Network, file: Path) -> tuple[str, list[dict[str, Any]]]:
    file.write_bytes(bundle())
    hospital = network["hospital"]
    patient = documents(carechain("patient", "register", "--from", file, home=hospital))["patient"]
    return patient, documents(carechain("record", "add", file, home=hospital))["records"]


def chunks_of(facility: Facility) -> int:
    return int(documents(carechain("storage", "status", home=facility))["chunks"])


def restart(network: Network, *names: str) -> None:
    for name in names:
        network[name].start()
    for name in names:
        network[name].ready()
    assert network.connect()
    network.leader()


def test_a_family_is_erased_everywhere_and_completed_by_who_was_away(
    network: Network, tmp_path: Path
) -> None:
    hospital, clinic, lab = (network[name] for name in ("hospital", "clinic", "lab"))
    patient, records = added(network, tmp_path / "bundle.json")
    labs = next(record["record"] for record in records if record["category"] == "labs")
    documents(
        carechain("consent", "grant", "--patient", patient, "--to", "clinic", "--category", "labs", home=hospital)
    )  # fmt: skip
    copy = tmp_path / "copy"
    until(
        "the clinic to read",
        lambda: carechain("record", "get", labs, "-o", copy, home=clinic).code == 0 or None,
    )
    until("everybody to hold it", lambda: chunks_of(lab) == chunks_of(hospital) or None)
    lab.kill()
    network.leader()

    alone = carechain("record", "erase", labs, "--only", home=hospital)
    foreign = carechain("record", "erase", labs, home=clinic)
    asked = subprocess.run(
        [sys.executable, "-P", "-m", "node", "record", "erase", labs, "--home", str(hospital.home.path)],
        capture_output=True, check=False, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    erased = documents(carechain("record", "erase", labs[:14], home=hospital))

    assert (alone.code, foreign.code, asked.returncode) == (1, 1, 1)
    assert "hold the same" in alone.said
    assert "patient's signature" in foreign.said
    assert all(record["record"] in asked.stdout for record in records)
    assert "give --yes" in asked.stderr
    assert {record["record"] for record in erased["records"]} == {record["record"] for record in records}
    assert {entry["facility"] for entry in erased["pending"]} == {"lab"}
    assert {entry["facility"] for entry in erased["attestations"]} == {"hospital", "clinic", "archive"}
    for facility in (hospital, clinic):
        gone = carechain("record", "get", labs, "-o", tmp_path / "no", home=facility)
        assert (gone.code, gone.document) == (1, None)
        assert "was erased on 20" in gone.said
        assert chunks_of(facility) == 0
    assert not (tmp_path / "no").exists()

    # Back for a moment, killed again wherever it then is, and back for good.
    lab.start()
    lab.ready()
    lab.kill()
    hospital.kill()
    restart(network, "lab", "hospital")

    def complete() -> dict[str, Any] | None:
        answer = documents(carechain("record", "erase", labs, home=hospital))
        return answer if not answer["pending"] else None

    answer = until("the laboratory's word", complete)
    assert len(answer["attestations"]) == 4 * len(records)
    assert chunks_of(lab) == 0
    caught_up(network)
    assert [verified(facility)["problems"] for facility in network.facilities.values()] == [[], [], [], []]
    log = documents(carechain("audit", "log", "--patient", patient, home=hospital))["entries"]
    assert {entry["record"] for entry in log if entry["action"] == "erase"} == {
        record["record"] for record in records
    }


def test_killed_in_the_midst_of_it_an_erasure_goes_on_by_itself(network: Network, tmp_path: Path) -> None:
    hospital = network["hospital"]
    _, records = added(network, tmp_path / "bundle.json")
    assert not any(record["duplicate"] for record in records)
    record = records[0]["record"]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "node", "record", "erase", record, "--json", "--home", str(hospital.home.path)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as erasing:  # fmt: skip
        until(
            "the erasure to begin",
            lambda: any(one["state"] == "erased" for one in states(hospital, record)) or erasing.poll() is not None or None,
        )  # fmt: skip
        hospital.kill()
        erasing.wait(60)
    restart(network, "hospital")

    answer = documents(carechain("record", "erase", record, home=hospital))

    assert (answer["erased"], answer["pending"]) == (True, [])
    assert {entry["record"] for entry in answer["records"]} == {one["record"] for one in records}
    assert {chunks_of(facility) for facility in network.facilities.values()} == {0}
    again = documents(carechain("record", "add", tmp_path / "bundle.json", home=hospital))["records"]
    assert not any(one["duplicate"] for one in again)
    documents(carechain("record", "get", again[0]["record"], "-o", tmp_path / "copy", home=hospital))
    assert (tmp_path / "copy").read_bytes() == bundle()


def states(facility: Facility, record: str) -> list[dict[str, Any]]:
    return list((carechain("record", "status", record, home=facility).document or {"records": []})["records"])


def test_without_a_quorum_an_erasure_is_queued_and_final_when_it_is_back(
    network: Network, tmp_path: Path
) -> None:
    hospital = network["hospital"]
    file = tmp_path / "letter.pdf"
    file.write_bytes(b"%PDF-1.4 a letter without a quorum")
    patient = documents(carechain("patient", "list", home=hospital))["patients"][0]["patient"]
    (record,) = documents(
        carechain("record", "add", file, "--patient", patient, "--category", "general", home=hospital)
    )["records"]
    for name in ("clinic", "lab"):
        network[name].kill()

    queued = carechain("record", "erase", record["record"], home=hospital)

    assert queued.code == 3
    assert documents(queued, code=3)["ids"] == [record["record"]]
    restart(network, "clinic", "lab")
    until(
        "the erasure to be final",
        lambda: any(one["state"] == "erased" for one in states(hospital, record["record"])) or None,
    )
    until(
        "every word",
        lambda: (
            not documents(carechain("record", "erase", record["record"], home=hospital))["pending"] or None
        ),
    )
