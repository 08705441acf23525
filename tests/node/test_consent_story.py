"""What a grant means, by the command line, on real daemons: beginnings, ends, several at once, and daemons that were away."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node.demo_network import Facility, Network, until
from tests.node.daemons import VOTERS, Ran, carechain, consortium

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with consortium(*VOTERS, ("archive", "regulator", "observer")) as running:
        yield running


def documents(ran: Ran, *, code: int = 0) -> Any:
    assert ran.code == code, ran.said
    assert ran.document is not None, ran.said
    return ran.document


@dataclass
class Patient:
    """A patient of the hospital, and what people do with their records."""

    network: Network
    handle: str
    folder: Path
    count: int = 0

    @property
    def hospital(self) -> Facility:
        return self.network["hospital"]

    def add(self, size: int = 5_000) -> tuple[str, bytes]:
        """Add a record to `labs`; return its id and bytes."""
        self.count += 1
        file = self.folder / f"{self.count}.bin"
        file.write_bytes(os.urandom(size))
        ran = carechain(
            "record", "add", file, "--patient", self.handle, "--category", "labs", home=self.hospital
        )
        return documents(ran)["records"][0]["record"], file.read_bytes()

    def grant(self, to: str, *options: str) -> str:
        ran = carechain(
            "consent", "grant", "--patient", self.handle, "--to", to, "--category", "labs", *options, home=self.hospital
        )  # fmt: skip
        return str(documents(ran)["grant"])

    def revoke(self, grant: str) -> None:
        assert documents(carechain("consent", "revoke", grant, home=self.hospital))["rotated"] is True

    def read(self, facility: str, record: str) -> bytes | None:
        """Return what a facility reads at once, or None when it is refused."""
        file = self.folder / "copy"
        file.unlink(missing_ok=True)
        code = carechain("record", "get", record, "-o", file, home=self.network[facility]).code
        assert (code == 0) == file.exists()
        return file.read_bytes() if code == 0 else None

    def comes_to_read(self, facility: str, record: str) -> bytes:
        return until(f"{facility} to read", lambda: self.read(facility, record))

    def comes_to_be_refused(self, facility: str, record: str) -> bool:
        return until(f"{facility} to be refused", lambda: self.read(facility, record) is None or None)


@pytest.fixture
def patient(network: Network, tmp_path: Path) -> Patient:
    person = {"resourceType": "Patient", "identifier": [{"system": "urn:example", "value": tmp_path.name}]}
    (tmp_path / "person.json").write_text(json.dumps(person))
    registered = carechain(
        "patient", "register", "--from", tmp_path / "person.json", home=network["hospital"]
    )
    return Patient(network, documents(registered)["patient"], tmp_path)


def restart(network: Network, *names: str, kill: bool = True) -> None:
    for name in names:
        if kill:
            network[name].kill()
    for name in names:
        network[name].start()
    for name in names:
        network[name].ready()
    assert network.connect()
    network.leader()


def test_grant_revoke_and_grant_again(patient: Patient) -> None:
    old, old_data = patient.add()
    first = patient.grant("clinic")
    assert patient.comes_to_read("clinic", old) == old_data
    patient.revoke(first)
    assert patient.comes_to_be_refused("clinic", old)
    new, new_data = patient.add()

    second = patient.grant("clinic")

    assert second != first
    assert patient.comes_to_read("clinic", new) == new_data
    assert patient.read("clinic", old) == old_data


def test_of_two_overlapping_grants_the_other_still_holds(patient: Patient) -> None:
    record, data = patient.add()
    narrow, wide = (
        patient.grant("clinic"),
        patient.grant("clinic", "--purpose", "TREAT", "--purpose", "PUBHLTH"),
    )
    assert patient.comes_to_read("clinic", record) == data

    patient.revoke(wide)
    later, later_data = patient.add()

    assert patient.comes_to_read("clinic", later) == later_data
    assert patient.read("clinic", record) == data
    patient.revoke(narrow)
    assert patient.comes_to_be_refused("clinic", record)


def test_who_is_not_revoked_reads_on_old_and_new_after_restarts_at_every_step(
    patient: Patient, network: Network
) -> None:
    old, old_data = patient.add()
    clinic, lab, archive = (patient.grant(name) for name in ("clinic", "lab", "archive"))
    restart(network, "clinic", "archive")
    for name in ("clinic", "lab", "archive"):
        assert patient.comes_to_read(name, old) == old_data

    patient.revoke(clinic)
    restart(network, "hospital", "lab")
    new, new_data = patient.add()
    restart(network, "clinic", "archive")

    for name in ("lab", "archive"):
        assert patient.comes_to_read(name, new) == new_data
        assert patient.read(name, old) == old_data
    assert patient.comes_to_be_refused("clinic", new)
    assert patient.comes_to_be_refused("clinic", old)
    patient.revoke(lab)
    assert patient.comes_to_read("archive", patient.add()[0])
    patient.revoke(archive)


def test_a_grantee_that_was_away_for_grant_and_rotation_reads_when_it_is_back(
    patient: Patient, network: Network
) -> None:
    other = patient.grant("lab")
    network["clinic"].kill()
    network["archive"].kill()
    network.leader()
    old, old_data = patient.add()
    for name in ("clinic", "archive"):
        patient.grant(name)
    patient.revoke(other)
    new, new_data = patient.add()

    restart(network, "clinic", "archive", kill=False)

    for name in ("clinic", "archive"):
        assert patient.comes_to_read(name, new) == new_data
        assert patient.read(name, old) == old_data


def test_a_grantee_that_was_away_for_grant_and_revocation_reads_nothing(
    patient: Patient, network: Network
) -> None:
    record, _ = patient.add()
    network["clinic"].kill()
    network.leader()
    patient.revoke(patient.grant("clinic"))

    restart(network, "clinic", kill=False)
    until("the clinic to have caught up", lambda: same_height(network))

    assert patient.read("clinic", record) is None
    assert not [
        one
        for one in documents(carechain("patient", "list", home=network["clinic"]))["patients"]
        if one["custody"] == "granted" and one["categories"] == []
    ]


def same_height(network: Network) -> bool | None:
    return (
        len({facility.status()["certified_height"] for facility in network.facilities.values()}) == 1 or None
    )


def test_a_revocation_in_the_midst_of_a_read_ends_the_next_one(patient: Patient, network: Network) -> None:
    record, data = patient.add(24_000_000)
    grant = patient.grant("clinic")
    assert patient.comes_to_read("clinic", record) == data
    copy = patient.folder / "streamed"
    command = [sys.executable, "-P", "-m", "node", "record", "get", record, "-o", str(copy), "--json"]
    with subprocess.Popen(
        [*command, "--home", str(network["clinic"].home.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as reading:
        patient.revoke(grant)
        reading.wait(60)

    # It began before or after: all of it or nothing, never a part.
    assert (reading.returncode == 0) == copy.exists()
    assert not copy.exists() or copy.read_bytes() == data
    assert not [path for path in patient.folder.iterdir() if path.name.endswith(".part")]
    assert patient.comes_to_be_refused("clinic", record)


def test_a_facility_with_a_writing_grant_adds_to_the_hospitals_patient(
    patient: Patient, network: Network
) -> None:
    record, data = patient.add()
    grant = patient.grant("clinic", "--write")
    assert patient.comes_to_read("clinic", record) == data
    theirs = next(
        one["patient"]
        for one in documents(carechain("patient", "list", home=network["clinic"]))["patients"]
        if one["granted_by"] == ["hospital"]
        and "labs" in one["categories"]
        and knows(network, one["patient"], record)
    )
    file = patient.folder / "from-the-clinic.bin"
    file.write_bytes(os.urandom(3_000))

    added = documents(
        carechain("record", "add", file, "--patient", theirs, "--category", "labs", home=network["clinic"])
    )
    elsewhere = carechain(
        "record", "add", file, "--patient", theirs, "--category", "imaging", home=network["clinic"]
    )

    new = added["records"][0]["record"]
    assert patient.comes_to_read("hospital", new) == file.read_bytes()
    assert patient.read("clinic", new) == file.read_bytes()
    assert elsewhere.code == 1
    log = documents(carechain("audit", "log", "--patient", patient.handle, home=patient.hospital))["entries"]
    assert [entry["facility"] for entry in log if entry["action"] == "add"] == ["hospital", "clinic"]
    patient.revoke(grant)
    assert patient.comes_to_be_refused("clinic", record)
    file.write_bytes(os.urandom(3_000))
    refused = carechain(
        "record", "add", file, "--patient", theirs, "--category", "labs", home=network["clinic"]
    )
    assert refused.code == 1
    assert patient.read("lab", new) is None


def knows(network: Network, handle: str, record: str) -> bool:
    listed = documents(carechain("record", "list", "--patient", handle, home=network["clinic"]))["records"]
    return record in {one["record"] for one in listed}


def test_a_grant_to_read_is_none_to_write(patient: Patient, network: Network) -> None:
    record, _ = patient.add()
    patient.grant("lab")
    patient.comes_to_read("lab", record)
    handles = [
        one["patient"] for one in documents(carechain("patient", "list", home=network["lab"]))["patients"]
    ]
    file = patient.folder / "no.bin"
    file.write_bytes(os.urandom(1_000))

    codes = {
        carechain("record", "add", file, "--patient", handle, "--category", "labs", home=network["lab"]).code
        for handle in handles
    }

    assert codes == {1}
