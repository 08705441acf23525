"""What the stories about storage with real daemons have in common: a patient, answers, and a disk that rots."""

import json
import random
from pathlib import Path
from typing import Any

from node.demo_network import Facility
from tests.node.daemons import carechain

PLACES = 10
MIB = 1 << 20


def json_of(*arguments: str | Path, home: Facility, code: int = 0) -> dict[str, Any]:
    ran = carechain(*arguments, home=home)
    assert ran.code == code, ran.said
    assert ran.document is not None
    return ran.document


def flip(home: Path, draw: random.Random) -> None:
    """Change one bit in each of ten places of the payload tables, more than a chunk apart."""
    tables = [file for file in sorted((home / "payloads").glob("*.ldb")) if file.stat().st_size > 3 * MIB]
    places = [
        (file, position)
        for file in tables
        for position in range(MIB, file.stat().st_size - MIB, MIB + MIB // 8)
    ]
    for file, position in draw.sample(places, PLACES):
        with file.open("r+b") as opened:
            opened.seek(position)
            byte = opened.read(1)[0]
            opened.seek(position)
            opened.write(bytes([byte ^ 1 << draw.randrange(8)]))


def registered(home: Facility, person: Path, number: int) -> str:
    """Register a patient, from a file that is written for it, and return the handle."""
    identifier = {"system": "urn:example", "value": str(number)}
    person.write_text(json.dumps({"resourceType": "Patient", "identifier": [identifier]}))
    return str(json_of("patient", "register", "--from", person, home=home)["patient"])


def figures(home: Facility) -> dict[str, Any]:
    """What `storage status` shows."""
    return home.client.get("/v1/storage")
