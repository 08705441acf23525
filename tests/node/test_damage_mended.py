"""Bytes of stored blocks change on a disk: the daemon mends its ledger from the other members, and nobody is asked for anything.

Scenario 29 of ledger.md 3: a bit flip in the middle is detected, served to nobody, repaired from peers by hash.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node.demo_network import Facility, Network, until
from storage import table_file
from storage.keyspace import BLOCK, STATE
from tests.node.daemons import carechain, caught_up, consortium

pytestmark = pytest.mark.slow
_RECORDS = 16


@dataclass(frozen=True)
class Story:
    """A hospital with records, and what was put into each of them."""

    network: Network
    records: dict[str, str]  # id → SHA-256 of the bytes that came in

    @property
    def hospital(self) -> Facility:
        return self.network["hospital"]


def json_of(*arguments: str | Path, home: Facility) -> dict[str, Any]:
    ran = carechain(*arguments, home=home)
    assert ran.code == 0, ran.said
    assert ran.document is not None
    return ran.document


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder, draw = tmp_path_factory.mktemp("mended"), random.Random(29)
    with consortium() as network:
        hospital = network["hospital"]
        person = folder / "patient.json"
        identifier = {"system": "urn:example", "value": "29"}
        person.write_text(json.dumps({"resourceType": "Patient", "identifier": [identifier]}))
        patient = str(json_of("patient", "register", "--from", person, home=hospital)["patient"])
        records = {}
        for number in range(_RECORDS):
            file = folder / f"{number}.bin"
            file.write_bytes(draw.randbytes(2_000))
            added = json_of("record", "add", file, "--patient", patient, "--category", "labs", home=hospital)
            records[str(added["records"][0]["record"])] = hashlib.sha256(file.read_bytes()).hexdigest()
        yield Story(network, records)


def flip_within(home: Path, prefix: bytes, draw: random.Random) -> int:
    """Change one bit of a row in the middle of those under a prefix, in the largest table of the ledger; return how many there are.

    Another table may hold the row as well, and one of them be left over from a merge and read by nobody: it is changed in all.
    """
    tables = sorted((home / "ledger").glob("*.ldb"), key=lambda file: file.stat().st_size)
    changes = table_file.intact_changes(tables[-1].read_bytes(), lambda _first, _last: True)
    values = [change.value for change in changes if change.key[:1] == prefix and change.value]
    value, bit = values[len(values) // 2], 1 << draw.randrange(8)
    for table in tables:
        whole = bytearray(table.read_bytes())
        if value in whole:
            whole[whole.index(value) + len(value) // 2] ^= bit
            table.write_bytes(whole)
    return len(values)


def said(facility: Facility) -> str:
    return (facility.home.path / "log").read_text(errors="replace")


def asides(facility: Facility) -> int:
    return len(list(facility.home.path.glob("ledger.damaged-*")))


def assert_whole(story: Story) -> None:
    """The ledger is clean to the last byte, votes, and every record is read as it came in."""

    def clean() -> bool | None:
        ran = carechain("audit", "verify", "--full", home=story.hospital)
        return True if ran.document is not None and not ran.document["problems"] else None

    until("a clean audit", clean)

    def votes() -> bool | None:
        status = story.hospital.status()
        return True if status["raft_role"] is not None and not status["problems"] else None

    until("the hospital to vote, with nothing to complain of", votes)
    caught_up(story.network)
    for record, digest in story.records.items():
        with story.hospital.client.download("/v1/records/read", record=record, purpose="TREAT") as answer:
            assert hashlib.sha256(b"".join(answer[1])).hexdigest() == digest
    assert "Traceback" not in said(story.hospital)


def test_29_a_block_damaged_while_the_daemon_was_stopped_is_fetched_from_peers(story: Story) -> None:
    hospital = story.hospital
    hospital.stop()
    assert flip_within(hospital.home.path, BLOCK, random.Random(1)) > _RECORDS
    before = asides(hospital)

    hospital.start()

    until("the ledger to be made anew", lambda: asides(hospital) > before or None)
    hospital.ready()
    assert_whole(story)
    assert "damaged blocks were fetched again from other members" in said(hospital)


def test_29_a_block_damaged_while_the_daemon_runs_is_fetched_from_peers(story: Story) -> None:
    hospital = story.hospital
    hospital.stop()
    hospital.start()
    hospital.ready()
    process, before = hospital.process, asides(hospital)

    flip_within(hospital.home.path, BLOCK, random.Random(2))
    carechain(
        "audit", "verify", "--full", home=hospital
    )  # the word that has it looked into, or cut short by the mending

    until("the ledger to be made anew", lambda: asides(hospital) > before or None)
    hospital.ready()
    assert_whole(story)
    assert hospital.process is process
    assert process is not None
    assert process.poll() is None


def test_where_more_than_blocks_is_damaged_everything_is_fetched_from_peers(story: Story) -> None:
    hospital = story.hospital
    hospital.stop()
    flip_within(hospital.home.path, STATE, random.Random(3))
    before = asides(hospital)

    hospital.start()

    until("the ledger to be made anew", lambda: asides(hospital) > before or None)
    hospital.ready()
    assert_whole(story)
    assert "own rows were rescued" in said(hospital)
    assert "begun anew" in said(hospital)
