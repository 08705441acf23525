"""The story of the first issue, by the command line, on real daemons: every published sample in, out, and refused."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.demo_network import Network, until
from tests.node.daemons import Ran, carechain, caught_up, consortium, verified
from tests.samples import sample_files

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("CARECHAIN_KILLS", "6"))
"""How often the kill test kills; 50 by hand."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with consortium() as running:
        yield running


def documents(ran: Ran, *, code: int = 0) -> dict[str, Any]:
    assert ran.code == code, ran.said
    assert ran.document is not None
    return ran.document


def registered(network: Network, file: Path) -> str:
    return str(
        documents(carechain("patient", "register", "--from", file, home=network["hospital"]))["patient"]
    )


def added(network: Network, *arguments: str | Path) -> list[dict[str, Any]]:
    return list(documents(carechain("record", "add", *arguments, home=network["hospital"]))["records"])


def test_every_synthea_file_comes_out_elsewhere_as_it_went_in(network: Network, tmp_path: Path) -> None:
    files = sample_files("synthea_r4", suffix=".json")
    patient = ""
    for file in sorted(files, key=lambda path: path.name.startswith("practitioner")):
        names_nobody = file.name.startswith("practitioner")
        if not names_nobody:
            patient = registered(network, file)
        records = added(network, file, *(["--patient", patient] if names_nobody else []))
        grant = documents(
            carechain(
                "consent",
                "grant",
                "--patient",
                patient,
                "--to",
                "clinic",
                "--category",
                "all",
                home=network["hospital"],
            )
        )
        copy = tmp_path / "copy"

        def read(record: str = records[0]["record"], copy: Path = copy) -> bool | None:
            return carechain("record", "get", record, "-o", copy, home=network["clinic"]).code == 0 or None

        until("the clinic to read", read)

        assert copy.read_bytes() == file.read_bytes()
        assert grant["grants"]
    assert caught_up(network) > 0


def test_labs_alone_open_nothing_else(network: Network, tmp_path: Path) -> None:
    file = next(file for file in sample_files("synthea_r4", suffix=".json") if file.name.startswith("Kathy"))
    patient = registered(network, file)
    records = added(network, file)
    documents(
        carechain(
            "consent",
            "grant",
            "--patient",
            patient,
            "--to",
            "lab",
            "--category",
            "labs",
            home=network["hospital"],
        )
    )
    labs = next(record["record"] for record in records if record["category"] == "labs")
    until(
        "the laboratory to read labs",
        lambda: (
            carechain("record", "get", labs, "-o", tmp_path / "labs", home=network["lab"]).code == 0 or None
        ),
    )

    refusals = {
        carechain("record", "get", record["record"], "-o", tmp_path / "no", home=network["lab"]).said
        for record in records
        if record["category"] != "labs"
    }
    nothing = carechain("record", "get", "f" * 64, "-o", tmp_path / "no", home=network["lab"])

    assert json.loads((tmp_path / "labs").read_bytes())["type"] == "collection"
    assert {record["kind"] for record in records} == {"original", "view"}
    assert refusals == {nothing.said}
    assert nothing.code == 1
    assert not (tmp_path / "no").exists()


def test_a_file_that_comes_twice_is_recognised(network: Network) -> None:
    file = sample_files("synthea_r4", suffix=".json")[0]
    registered(network, file)
    first = added(network, file)
    height = caught_up(network)

    again = added(network, file)

    assert [record["record"] for record in again] == [record["record"] for record in first]
    assert all(record["duplicate"] for record in again)
    assert caught_up(network) == height


def test_every_node_verifies(network: Network) -> None:
    caught_up(network)

    assert [verified(facility)["problems"] for facility in network.facilities.values()] == [[], [], []]


def test_nothing_that_was_final_is_missing_after_kills(tmp_path: Path) -> None:
    """kill -9 of any daemon at any moment, again and again, while records are added (issue: done when, 2)."""
    draw = random.Random(2026)
    with consortium() as network:
        hospital, final = network["hospital"], {}
        person = tmp_path / "patient.json"
        person.write_text(
            json.dumps(
                {
                    "resourceType": "Patient",
                    "identifier": [{"system": "urn:example", "value": "1"}],
                    "birthDate": "1980-01-01",
                }
            )
        )
        patient = registered(network, person)
        for number in range(KILLS):
            victim = network[draw.choice(("hospital", "clinic", "lab"))]
            file = tmp_path / f"{number}.bin"
            file.write_bytes(draw.randbytes(draw.randrange(1, 3_000_000)))
            if draw.random() < 0.5:
                victim.kill()
                ran = carechain("record", "add", file, "--patient", patient, home=hospital)
                victim.start()
            else:
                ran = carechain("record", "add", file, "--patient", patient, home=hospital)
                victim.kill()
                victim.start()
            if ran.code == 0 and ran.document is not None:
                final[file] = ran.document["records"][0]["record"]
            victim.ready()
        assert network.connect()
        caught_up(network)

        for file, record in final.items():
            copy = tmp_path / "copy"
            assert carechain("record", "get", record, "-o", copy, home=hospital).code == 0
            assert copy.read_bytes() == file.read_bytes()
        assert final
        assert [verified(facility)["problems"] for facility in network.facilities.values()] == [[], [], []]


def test_without_a_quorum_a_record_is_queued_and_becomes_final_by_itself(tmp_path: Path) -> None:
    with consortium() as network:
        hospital = network["hospital"]
        person = tmp_path / "patient.json"
        person.write_text(
            json.dumps({"resourceType": "Patient", "identifier": [{"system": "urn:example", "value": "2"}]})
        )
        patient = registered(network, person)
        file = tmp_path / "scan.bin"
        file.write_bytes(b"an opaque scan" * 1000)
        for name in ("clinic", "lab"):
            network[name].kill()

        queued = carechain("record", "add", file, "--patient", patient, home=hospital)
        record = documents(queued, code=3)["records"][0]
        hospital.kill()
        for facility in network.facilities.values():
            facility.start()

        def is_final() -> bool | None:
            rows = (carechain("record", "status", record["record"], home=hospital).document or {}).get(
                "records", [{}]
            )
            return rows[0].get("state") == "final" or None

        assert queued.seconds < 60  # ten and what a busy machine adds; it does not wait for a quorum
        assert record["state"] == "received"
        assert until("the queued record to become final", is_final)
