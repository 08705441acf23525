"""A running consortium with one patient, records and a grant, for the contract tests."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.demo_network import Facility, Network, until
from tests.node.daemons import VOTERS, Ran, carechain, consortium

SUBJECT = {"reference": "Patient/p"}


def bundle() -> bytes:
    """One document of three categories; a weight whose digits must survive."""
    person = {
        "resourceType": "Patient", "id": "p", "identifier": [{"system": "urn:example", "value": "contract"}],
        "birthDate": "1980-01-01", "name": [{"family": "Contract", "given": ["Cora"]}],
    }  # fmt: skip
    labs = {
        "resourceType": "Observation", "status": "final", "subject": SUBJECT, "category": [{"coding": [{"code": "laboratory"}]}],
        "code": {"coding": [{"system": "http://loinc.org", "code": "2339-0"}]}, "valueQuantity": {"value": 72.5},
    }  # fmt: skip
    depression = {
        "resourceType": "Condition", "subject": SUBJECT, "code": {"coding": [{"system": "http://snomed.info/sct", "code": "370143000"}]},
    }  # fmt: skip
    entries = [{"resource": resource} for resource in (person, labs, depression)]
    return json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}).encode()


def documents(ran: Ran, *, code: int = 0) -> Any:
    assert ran.code == code, ran.said
    assert ran.document is not None, ran.said
    return ran.document


@dataclass
class House:
    """The running consortium, and what the story of the module has made."""

    network: Network
    file: Path
    patient: str
    records: list[dict[str, Any]]
    grant: dict[str, Any]

    @property
    def hospital(self) -> Facility:
        return self.network["hospital"]

    @property
    def clinic(self) -> Facility:
        return self.network["clinic"]

    def of(self, category: str) -> str:
        return str(next(record["record"] for record in self.records if record["category"] == category))


@contextmanager
def open_house(folder: Path) -> Iterator[House]:
    """Start four daemons, add a document of three categories, and grant two of them to the clinic."""
    file = folder / "bundle.json"
    file.write_bytes(bundle())
    with consortium(*VOTERS, ("archive", "regulator", "observer")) as network:
        hospital = network["hospital"]
        patient = documents(carechain("patient", "register", "--from", file, home=hospital))["patient"]
        records = documents(carechain("record", "add", file, home=hospital))["records"]
        grant = documents(
            carechain(
                "consent", "grant", "--patient", patient, "--to", "clinic", "--category", "labs", "--category", "mental-health",
                home=hospital,
            )
        )  # fmt: skip
        yield House(network, file, patient, records, grant)


def read(house: House, facility: Facility, record: str, file: Path, *options: str) -> Ran:
    """Read a record, waiting until the facility has opened its grant."""
    until(
        "the grant to be opened",
        lambda: carechain("record", "get", record, "-o", file, home=facility).code == 0 or None,
    )
    return carechain("record", "get", record, "-o", file, *options, home=facility)
