"""The drill: a machine is lost for good, and comes back from a backup and the recovery key. Real daemons, real files.

Nothing that was final is missing afterwards, whether it came before the backup or after it; what was only queued when the
backup was made becomes final; and the voter signs again only when it has caught up.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from node.demo_network import Facility, Network, until
from tests.node.daemons import carechain, caught_up, consortium, verified

pytestmark = pytest.mark.slow


@dataclass
class Drill:
    """A network whose hospital is going to be lost. `records` are id → SHA-256 of the bytes that came in."""

    network: Network
    folder: Path
    records: dict[str, str] = field(default_factory=dict)
    draw: random.Random = field(default_factory=lambda: random.Random(29))

    @property
    def hospital(self) -> Facility:
        return self.network["hospital"]

    def ask(self, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
        ran = carechain(*arguments, home=self.hospital)
        assert ran.code == code, ran.said
        return ran.document or {}

    def register(self, value: str) -> str:
        person = self.folder / "person.json"
        identifier = {"system": "urn:example", "value": value}
        person.write_text(json.dumps({"resourceType": "Patient", "identifier": [identifier]}))
        return str(self.ask("patient", "register", "--from", person)["patient"])

    def add(self, patient: str, category: str, code: int = 0) -> str:
        file = self.folder / "document.bin"
        file.write_bytes(self.draw.randbytes(self.draw.randrange(1_000, 1_500_000)))
        added = self.ask("record", "add", file, "--patient", patient, "--category", category, code=code)
        record = str(added["records"][0]["record"])
        self.records[record] = hashlib.sha256(file.read_bytes()).hexdigest()
        return record

    def digest(self, record: str) -> str:
        return str(self.ask("record", "get", record, "-o", self.folder / "out")["sha256"])

    def backup(self, name: str) -> dict[str, Any]:
        return self.ask("backup", "-o", self.folder / name)

    def lose(self) -> None:
        self.hospital.kill()
        shutil.rmtree(self.hospital.home.path)

    def restore(self, name: str, key: Path) -> dict[str, Any]:
        restored = self.ask("restore", self.folder / name, "--recovery-key", key)
        self.hospital.start()
        self.hospital.ready()
        until("the hospital to vote again", lambda: not self.problems() or None)
        return restored

    def problems(self) -> list[str]:
        return [problem["code"] for problem in self.hospital.status()["problems"]]

    def log(self) -> str:
        return (self.hospital.home.path / "log").read_text(errors="replace")


@pytest.fixture
def drill(tmp_path: Path) -> Iterator[Drill]:
    with consortium() as network:
        yield Drill(network, tmp_path)


def test_a_lost_machine_comes_back_with_everything_that_was_final(drill: Drill, tmp_path: Path) -> None:
    key, passphrase = tmp_path / "in the safe", tmp_path / "passphrase"
    shutil.move(drill.hospital.home.recovery_key, key)
    patient, leaving = drill.register("1"), drill.register("2")
    before = drill.add(patient, "labs")
    erased = drill.add(patient, "medication")
    drill.add(leaving, "labs")
    made = drill.backup("first")
    after = drill.add(patient, "labs")
    imaging = drill.add(patient, "imaging")  # its vault is not in the backup
    drill.ask("consent", "grant", "--patient", patient, "--to", "clinic", "--category", "imaging")
    drill.add(drill.register("3"), "labs")  # neither is this patient
    passphrase.write_text("the patient's own")
    drill.ask(
        "patient", "handover", leaving, "-o", tmp_path / "wallet", "--wallet-passphrase-file", passphrase, "--no-grant"
    )  # fmt: skip
    drill.ask("record", "erase", erased)
    height = caught_up(drill.network)
    assert b"urn:example" not in (tmp_path / "first").read_bytes()

    drill.lose()
    restored = drill.restore("first", key)
    until("the vault of imaging", lambda: "found a vault" in drill.log() or None)

    assert made["height"] == restored["height"] < height <= caught_up(drill.network)
    assert drill.log().index("signs nothing until it has caught up") < drill.log().index("voting again")
    listed = {
        entry["record"]: entry for entry in drill.ask("record", "list", "--patient", patient)["records"]
    }
    standing = dict.fromkeys((before, after, imaging), "final")
    assert {record: entry["state"] for record, entry in listed.items()} == standing | {erased: "erased"}
    assert listed[imaging]["category"] == "imaging"
    # The custody patient's records are read here, and by whom they were granted to.
    assert {record: drill.digest(record) for record in standing} == {
        record: drill.records[record] for record in standing
    }
    read = carechain("record", "get", imaging, "-o", tmp_path / "out", home=drill.network["clinic"])
    assert read.document is not None, read.said
    assert read.document["sha256"] == drill.records[imaging]
    # What was given up or erased after the backup does not come back with it.
    custody = {known["patient"]: known["custody"] for known in drill.ask("patient", "list")["patients"]}
    assert custody == {patient: "facility", leaving: "patient"}
    refused = carechain("record", "get", erased, "-o", tmp_path / "out", home=drill.hospital)
    assert (refused.code, "was erased on" in refused.said) == (1, True)
    assert "registered after the backup" in drill.log()
    assert verified(drill.hospital)["problems"] == []


def test_a_record_that_was_only_queued_becomes_final_on_the_new_machine(drill: Drill, tmp_path: Path) -> None:
    key = tmp_path / "key"
    shutil.move(drill.hospital.home.recovery_key, key)
    patient = drill.register("1")
    drill.add(patient, "labs")
    for name in ("clinic", "lab"):
        drill.network[name].kill()
    queued = drill.add(patient, "labs", code=3)
    drill.backup("alone")
    drill.lose()
    for name in ("clinic", "lab"):
        drill.network[name].start()

    drill.restore("alone", key)
    until(
        "the queued record to become final",
        lambda: drill.ask("record", "status", queued)["records"][0]["state"] == "final" or None,
    )

    assert {record: drill.digest(record) for record in drill.records} == drill.records
    # The new machine votes: one of the others may go.
    drill.network["lab"].kill()
    drill.network.leader()
    assert drill.digest(drill.add(patient, "labs"))


def test_a_backup_made_with_a_later_recovery_key_opens_with_that_one_only(
    drill: Drill, tmp_path: Path
) -> None:
    first, later = drill.hospital.home.recovery_key, tmp_path / "later"
    drill.ask("backup", "-o", tmp_path / "b", "--new-recovery-key", later)
    shutil.move(first, tmp_path / "first")
    drill.lose()

    refused = carechain("restore", tmp_path / "b", "--recovery-key", tmp_path / "first", home=drill.hospital)
    assert (refused.code, drill.hospital.home.path.exists()) == (1, False)
    assert "another recovery key" in refused.said
    drill.restore("b", later)
