"""Real daemons: ten bytes rot in the payloads of one of them; a scrub finds all ten, and the others mend them."""

import hashlib
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from node.demo_network import Facility, until
from tests.node.daemons import caught_up, consortium
from tests.node.storage_daemons import MIB, PLACES, flip, json_of, registered

pytestmark = pytest.mark.slow


def interrupted(home: Facility) -> None:
    """Begin a slow scrub, watch it for a moment, and see that it goes on after Ctrl-C."""
    command = (sys.executable, "-P", "-m", "node", "storage", "scrub", "--rate", "500K/s", "--home")
    with subprocess.Popen([*command, str(home.home.path)], stderr=subprocess.PIPE) as watching:

        def asked() -> dict[str, Any] | None:
            walk = home.client.get("/v1/storage")["scrub"]["walk"]
            return walk if walk is not None and walk["asked"] else None

        begun = until("the scrub to begin", asked)
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=120)

    assert watching.returncode == 1
    assert b"goes on in the daemon" in said
    left = asked()
    assert left is not None
    assert left["started_ms"] == begun["started_ms"]


def test_ten_rotten_bytes_are_found_and_mended_from_the_others(tmp_path: Path) -> None:
    draw = random.Random(5)
    with consortium() as network:
        hospital = network["hospital"]
        patient = registered(hospital, tmp_path / "patient.json", 5)
        files: dict[str, bytes] = {}
        for number in range(3):
            scan = tmp_path / f"{number}.bin"
            scan.write_bytes(draw.randbytes(8 * MIB))
            added = json_of(
                "record", "add", scan, "--patient", patient, "--category", "imaging", home=hospital
            )
            files[added["records"][0]["record"]] = scan.read_bytes()
        caught_up(network)

        def is_spread() -> bool | None:
            counts = {
                network[name].client.get("/v1/storage")["chunks"] for name in ("hospital", "clinic", "lab")
            }
            return len(counts) == 1 or None

        until("the chunks to be everywhere", is_spread)
        hospital.stop()  # a closed database has everything in tables
        flip(hospital.home.path, draw)
        hospital.start()
        hospital.ready()
        assert network.connect()

        scrubbed = json_of("storage", "scrub", "--rate", "200M/s", home=hospital)

        assert scrubbed["ok"]
        # A small chunk shares a block of its table with the next one: both are bad then.
        assert PLACES <= scrubbed["bad"] <= 2 * PLACES
        assert (scrubbed["repaired"], scrubbed["corrupt"]) == (scrubbed["bad"], 0)
        interrupted(hospital)
        again = json_of("storage", "scrub", "--rate", "1G/s", home=hospital)
        assert (again["bad"], again["chunks"]) == (0, scrubbed["chunks"])
        for record, data in files.items():
            out = tmp_path / "out"
            read = json_of("record", "get", record, "-o", out, home=hospital)
            assert read["sha256"] == hashlib.sha256(data).hexdigest()
            assert out.read_bytes() == data
        repaired = json_of("storage", "repair", home=hospital)
        assert (repaired["ok"], repaired["records"], repaired["unhelpful"]) == (True, 3, [])
        reclaimed = json_of("storage", "reclaim", home=hospital)
        assert reclaimed["quarantined"] == scrubbed["bad"]
        figures = json_of("storage", "status", home=hospital)
        assert (figures["corrupt"], figures["under_replicated"], figures["records"]) == (0, 0, 3)
        assert figures["replicas"] == {"3": figures["chunks"]}
        assert figures["scrub"]["last"]["bad"] == 0


def test_a_member_that_was_away_is_brought_what_it_lacks_at_once_and_is_named_before(tmp_path: Path) -> None:
    with consortium() as network:
        hospital = network["hospital"]
        patient = registered(hospital, tmp_path / "patient.json", 6)
        network["lab"].kill()
        scan = tmp_path / "scan.bin"
        scan.write_bytes(random.Random(6).randbytes(2 * MIB))
        json_of("record", "add", scan, "--patient", patient, "--category", "imaging", home=hospital)

        lacking = json_of("storage", "repair", home=hospital, code=1)
        assert lacking["under_replicated"] > 0
        assert [member["facility"] for member in lacking["unhelpful"]] == ["lab"]

        network["lab"].start()
        network["lab"].ready()
        assert network.connect()
        caught_up(network)
        mended = json_of("storage", "repair", home=hospital)
        assert (mended["ok"], mended["under_replicated"]) == (True, 0)
