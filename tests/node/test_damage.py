"""One byte changed on the disk of a stopped node: mended by itself, named, of no consequence, or, in a key store, refused.

Whatever happens, no wrong byte is served (issue: done when, 3).
"""

import collections
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node.demo_network import Facility, Network, until
from protocol.errors import CarechainError
from tests.node.daemons import carechain, consortium

pytestmark = pytest.mark.slow
FLIPS = int(os.environ.get("CARECHAIN_FLIPS", "12"))
"""How many bytes are changed, each in a fresh copy of the home; 60 and more by hand."""
DATABASES = ("ledger", "payloads", "keys")


@dataclass
class Story:
    """A hospital with records, one of them not final, and grants. `kept` are copies of all homes after SIGKILL."""

    network: Network
    kept: Path
    patient: str
    records: dict[str, str]  # id → SHA-256 of the bytes that came in
    files: dict[str, Path]

    @property
    def hospital(self) -> Facility:
        return self.network["hospital"]

    def restore(self) -> None:
        """Put every home back to what it was, all at one moment, and start all daemons but the hospital's."""
        for name, facility in self.network.facilities.items():
            facility.kill()
            shutil.rmtree(facility.home.path)
            shutil.copytree(self.kept / name, facility.home.path)
        for name in ("clinic", "lab"):
            self.network[name].start()


def json_of(*arguments: str | Path, home: Facility, code: int = 0) -> dict[str, Any]:
    ran = carechain(*arguments, home=home)
    assert ran.code == code, ran.said
    assert ran.document is not None
    return ran.document


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("damage")
    draw = random.Random(13)
    with consortium() as network:
        hospital = network["hospital"]
        person = folder / "patient.json"
        identifier = {"system": "urn:example", "value": "13"}
        person.write_text(json.dumps({"resourceType": "Patient", "identifier": [identifier]}))
        patient = str(json_of("patient", "register", "--from", person, home=hospital)["patient"])
        made = Story(network, folder / "kept", patient, {}, {})

        def add(number: int, code: int = 0) -> None:
            file = folder / f"{number}.bin"
            file.write_bytes(draw.randbytes(draw.randrange(1_000, 2_000_000)))
            category = draw.choice(("labs", "imaging"))
            added = json_of(
                "record", "add", file, "--patient", patient, "--category", category, home=hospital, code=code
            )
            record = added["records"][0]["record"]
            made.records[record] = hashlib.sha256(file.read_bytes()).hexdigest()
            made.files[record] = file

        for number in range(6):
            add(number)
        for category in ("labs", "imaging"):
            json_of(
                "consent", "grant", "--patient", patient, "--to", "clinic", "--category", category, home=hospital
            )  # fmt: skip
        # A clean stop moves all of it into tables; what comes after stays in the logs.
        hospital.stop()
        hospital.start()
        hospital.ready()
        assert network.connect()
        network.leader()
        for number in range(6, 9):
            add(number)
        for name in ("clinic", "lab"):
            network[name].kill()
        add(9, code=3)
        hospital.kill()
        for name, facility in network.facilities.items():
            (facility.home.path / "api.sock").unlink()  # a socket cannot be copied
            shutil.copytree(facility.home.path, made.kept / name)
        yield made


def flip(home: Path, draw: random.Random) -> str:
    """Change one bit of one live byte and say where: any database, small files as often as large ones."""
    files = [
        file
        for name in DATABASES
        for file in sorted((home / name).iterdir())
        if not file.name.startswith("LO") and file.stat().st_size  # the engine's own log and lock
    ]
    file = draw.choice(files)
    whole = bytearray(file.read_bytes())
    position = draw.randrange(len(whole))
    whole[position] ^= 1 << draw.randrange(8)
    file.write_bytes(whole)
    return f"{file.parent.name}/{file.name} at {position} of {len(whole)}"


def last_words(facility: Facility) -> str:
    return (facility.home.path / "log").read_text(errors="replace").strip().splitlines()[-1]


def started(facility: Facility, *options: str) -> bool:
    """Start the daemon; return whether it serves, False when it ended."""
    facility.start(*options)
    process = facility.process
    assert process is not None

    def look() -> bool | None:
        if process.poll() is not None:
            return False
        try:
            return bool(facility.status())
        except CarechainError:
            return None

    serves = until("the daemon to serve or to end", look)
    if not serves:
        assert process.returncode == 1
        facility.process = None
    return serves


def assert_everything_is_there(story: Story) -> None:
    """Every record is read byte for byte, listed with what its author noted, known again; grants and trail are there."""
    hospital = story.hospital

    def all_final() -> list[dict[str, Any]] | None:
        entries = hospital.client.post("/v1/records/list", patient=story.patient)["records"]
        final = [entry for entry in entries if entry["state"] == "final"]
        return entries if len(final) == len(story.records) == len(entries) else None

    entries = until("every record to be final", all_final)
    assert {entry["record"] for entry in entries} == set(story.records)
    assert_nothing_wrong_is_served(story, may_refuse=False)
    assert json_of("patient", "list", home=hospital)["patients"][0]["patient"] == story.patient
    assert len(json_of("consent", "list", "--patient", story.patient, home=hospital)["grants"]) == 2
    assert json_of("audit", "log", "--patient", story.patient, home=hospital)["entries"]


def assert_nothing_wrong_is_served(story: Story, *, may_refuse: bool) -> None:
    for record, digest in story.records.items():
        refusal, served = "", b""
        try:
            with story.hospital.client.download("/v1/records/read", record=record, purpose="TREAT") as answer:
                served = b"".join(answer[1])
        except CarechainError as error:
            refusal = str(error)
        if refusal:
            assert may_refuse, f"{record} is refused: {refusal}"
            assert "internal" not in refusal
        else:
            assert hashlib.sha256(served).hexdigest() == digest


def is_voting_again(story: Story) -> bool | None:
    status = story.hospital.status()
    codes = {problem["code"] for problem in status["problems"]}
    return True if status["raft_role"] is not None and not codes & {"rejoining", "no-quorum"} else None


def outcome_of(story: Story, where: str) -> str:
    """Start the damaged node, and say what became of the changed byte."""
    hospital, database = story.hospital, where.split("/", maxsplit=1)[0]
    if not started(hospital):
        sentence = last_words(hospital)
        assert "Traceback" not in (hospital.home.path / "log").read_text(errors="replace")
        assert database == "keys", sentence
        assert "key" in sentence
        assert "from a copy" in sentence, sentence
        return "keys: refused"
    assert_nothing_wrong_is_served(story, may_refuse=True)
    problems = until("an audit that is not overtaken by mending", lambda: audited(story, database))
    if problems:
        return f"{database}: named"
    until("the node to vote", lambda: is_voting_again(story))
    assert_everything_is_there(story)
    if list(hospital.home.path.glob("*.damaged-*")):
        return f"{database}: mended by itself"
    return f"{database}: of no consequence"


def audited(story: Story, database: str) -> list[str] | None:
    """Return what an audit names, None while the ledger is being mended."""
    hospital = story.hospital
    ran = carechain("audit", "verify", "--full", home=hospital)
    assert hospital.process is not None
    assert hospital.process.poll() is None, last_words(hospital)
    if ran.document is None:
        return None
    problems: list[str] = ran.document["problems"]
    return None if problems and database == "ledger" else problems


def test_one_changed_byte_is_refused_named_or_of_no_consequence(story: Story) -> None:
    draw = random.Random(20_261_122)
    outcomes: collections.Counter[str] = collections.Counter()
    for number in range(FLIPS):
        story.restore()
        where = flip(story.hospital.home.path, draw)
        try:
            outcome = outcome_of(story, where)
        except Exception as failure:
            raise AssertionError(f"flip {number}, {where}: {failure}") from failure
        print(f"{number:3} {where}: {outcome}")
        outcomes[outcome] += 1

    assert outcomes.total() == FLIPS
