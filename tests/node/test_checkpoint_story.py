"""Real daemons: the ledger's head is signed by its signers, cosigned by a witness over HTTP, and shown to everybody."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from node import config
from node.demo_network import Facility, until
from node.log_settings import LogWitnessSettings, OutsideWitness
from protocol.checkpoint import NoteKey, SignedCheckpoint
from tests.node.daemons import carechain, consortium, verified

pytestmark = pytest.mark.slow
FACILITIES = (
    ("hospital", "hospital", "voter"),
    ("clinic", "clinic", "voter"),
    ("regulator", "regulator", "witness"),
)


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def checkpoint(facility: Facility, *options: str) -> dict[str, Any] | None:
    ran = carechain("audit", "checkpoint", *options, home=facility)
    return ran.document if ran.code == 0 else None


def restart(facility: Facility, **changes: Any) -> None:
    facility.stop()
    settings = replace(config.load(facility.home.config), **changes)
    facility.home.config.write_text(config.render(settings))
    facility.start()
    facility.ready()


def add_record(facility: Facility, folder: Path, number: int) -> None:
    """Put transactions on the ledger: a patient's vault and a record in it."""
    person, record = folder / f"person-{number}.json", folder / f"record-{number}.txt"
    identifier = {"system": "urn:example", "value": str(number)}
    person.write_text(json.dumps({"resourceType": "Patient", "identifier": [identifier]}))
    record.write_text(f"synthetic record {number}")
    registered = carechain("patient", "register", "--from", person, home=facility)
    patient = (registered.document or {})["patient"]
    added = carechain("record", "add", record, "--patient", patient, home=facility)
    assert added.code == 0, added.said


def test_a_ledger_is_signed_cosigned_and_shown(tmp_path: Path) -> None:
    with consortium(*FACILITIES) as network:
        hospital, clinic, regulator = network["hospital"], network["clinic"], network["regulator"]
        listen, http = free_address(), free_address()
        restart(regulator, log_witness=LogWitnessSettings(listen))
        assert carechain("audit", "checkpoint", home=hospital).code == 1
        add_record(hospital, tmp_path, 1)

        signed = until("all signatures", lambda: _complete(hospital))
        keys = [NoteKey.parse(entry["key"]) for entry in signed["keys"]]
        note = SignedCheckpoint.parse(str(signed["checkpoint"]).encode())
        assert len(note.signed_by(keys)) == 3
        assert note.checkpoint.size == signed["tree_size"] == hospital.status()["tree_size"]

        # The operator names the regulator as a witness: it compares with its own copy of the ledger, and cosigns.
        witness_key = NoteKey.parse(str((checkpoint(regulator) or {})["witness_key"]))
        assert witness_key.text in (regulator.home.path / "log").read_text()
        restart(hospital, witness=(OutsideWitness(f"http://{listen}", witness_key),), http=http)
        file = tmp_path / "checkpoint.txt"
        witnessed = until("a cosignature", lambda: checkpoint(hospital, "--witnessed", "-o", str(file)))
        assert [one["name"] for one in witnessed["cosigned_by"]] == [witness_key.name]
        assert witness_key in SignedCheckpoint.parse(file.read_bytes()).signed_by([*keys, witness_key])

        add_record(hospital, tmp_path, 2)
        size = hospital.status()["tree_size"]
        until("the larger head to be cosigned", lambda: _witnessed_at(hospital, size))
        public = httpx.get(f"http://{http}/checkpoint", timeout=60)
        assert public.headers["content-type"].startswith("text/plain")
        assert SignedCheckpoint.parse(public.content).checkpoint.size == size
        assert httpx.get(f"http://{http}/add-checkpoint", timeout=60).status_code == 404

        clinic.kill()
        clinic.start()
        clinic.ready()
        assert (checkpoint(clinic) or {})["tree_size"] == size, "it was kept over the crash"
        assert verified(clinic)["ok"]


def _complete(facility: Facility) -> dict[str, Any] | None:
    document = checkpoint(facility)
    return document if document and len(document["signed_by"]) == 3 else None


def _witnessed_at(facility: Facility, size: int) -> bool | None:
    return (checkpoint(facility, "--witnessed") or {}).get("tree_size") == size or None
