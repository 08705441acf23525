"""The storage drill on five real homes, three replicas: homes away, a payload folder gone, ten bytes rotten.

Every read is final before anything is opened. Of five signers four make a certificate, so with two homes away there would be
no read: a witness, which stores nothing, makes it four of six (ledger.md 1.3).
"""

import hashlib
import random
import shutil
from pathlib import Path

import pytest

from node.demo_network import Facility, Network, until
from tests.node.daemons import carechain, consortium
from tests.node.storage_daemons import MIB, PLACES, figures, flip, json_of, registered

pytestmark = pytest.mark.slow

HOMES = tuple((name, "hospital", "voter") for name in ("hospital", "clinic", "lab", "hospice", "archive"))
NOTARY = ("notary", "insurer", "witness")


def add(home: Facility, folder: Path, draw: random.Random) -> dict[str, str]:
    """Add scans and a small document, and return the SHA-256 of each by its record."""
    patient = registered(home, folder / "patient.json", 7)
    added = {}
    for number, size in enumerate((6 * MIB, 6 * MIB, 6 * MIB, 700)):
        file = folder / f"{number}.bin"
        file.write_bytes(draw.randbytes(size))
        answer = json_of("record", "add", file, "--patient", patient, "--category", "imaging", home=home)
        added[answer["records"][0]["record"]] = hashlib.sha256(file.read_bytes()).hexdigest()
    return added


def is_readable(home: Facility, records: dict[str, str], out: Path) -> bool:
    """Whether every record comes out as it went in."""
    read = {record: json_of("record", "get", record, "-o", out, home=home)["sha256"] for record in records}
    return read == records and hashlib.sha256(out.read_bytes()).hexdigest() in records.values()


def is_replicated(home: Facility) -> bool | None:
    """Whether every chunk of a home's own records is known to have three replicas."""
    found = figures(home)
    return (
        set(found["replicas"]) == {"3"} and not found["under_replicated"] and not found["lacking"]
    ) or None


def lose_payloads(home: Facility) -> None:
    """Stop a home, delete its folder as a failed disk does, and do what the program then says."""
    home.stop()
    shutil.rmtree(home.home.path / "payloads")
    said = carechain("run", home=home).said
    assert "run --rebuild payloads" in said
    home.start("--rebuild", "payloads")
    home.ready()


def rot(network: Network, home: Facility, draw: random.Random) -> None:
    """Flip ten bits in the payload tables of a home."""
    home.stop()  # a closed database has everything in tables
    flip(home.home.path, draw)
    home.start()
    home.ready()
    assert network.connect()


def test_records_survive_two_homes_away_a_folder_gone_and_rotten_bytes(tmp_path: Path) -> None:
    draw = random.Random(11)
    with consortium(*HOMES, NOTARY) as network:
        hospital, clinic = network["hospital"], network["clinic"]
        records = add(hospital, tmp_path, draw)
        until("three replicas of every chunk", lambda: is_replicated(hospital))
        chunks = figures(hospital)["chunks"]

        away = [network[name] for name in draw.sample(["clinic", "lab", "hospice", "archive"], 2)]
        for home in away:
            home.stop()
        network.leader()
        assert is_readable(hospital, records, tmp_path / "out")
        for home in away:
            home.start()
            home.ready()
        assert network.connect()

        # One home is away and the author has lost every chunk: two of three replicas may be gone.
        network["archive"].stop()
        lose_payloads(hospital)
        assert is_readable(hospital, records, tmp_path / "out")
        until("the folder to be filled again", lambda: figures(hospital)["chunks"] == chunks or None)
        network["archive"].start()
        network["archive"].ready()

        held = figures(clinic)["chunks"]
        assert held
        lose_payloads(clinic)
        until("the other folder to be filled again", lambda: figures(clinic)["chunks"] == held or None)

        rot(network, hospital, draw)
        scrubbed = json_of("storage", "scrub", home=hospital)
        # A small chunk shares a block of its table with the next one: both are bad then.
        assert PLACES <= scrubbed["bad"] <= 2 * PLACES
        assert (scrubbed["repaired"], scrubbed["corrupt"]) == (scrubbed["bad"], 0)

        assert is_readable(hospital, records, tmp_path / "out")
        until("three replicas of every chunk again", lambda: is_replicated(hospital))


def test_a_quota_refuses_records_in_one_sentence_and_nothing_else(tmp_path: Path) -> None:
    def limit(network: Network) -> None:
        config = network["hospital"].home.config
        config.write_text(
            config.read_text().replace("storage_quota_bytes = 0", f"storage_quota_bytes = {2 * MIB}")
        )

    with consortium(prepare=limit) as network:
        hospital, clinic = network["hospital"], network["clinic"]
        patient = registered(hospital, tmp_path / "patient.json", 8)
        scan = tmp_path / "scan.bin"
        scan.write_bytes(random.Random(8).randbytes(2 * MIB))
        taken = json_of("record", "add", scan, "--patient", patient, "--category", "imaging", home=hospital)
        scan.write_bytes(random.Random(9).randbytes(2 * MIB))

        refused = carechain(
            "record", "add", scan, "--patient", patient, "--category", "imaging", home=hospital
        )

        assert refused.code != 0
        assert "storage_quota_bytes in config.toml" in refused.said
        assert "quota" in {problem["code"] for problem in hospital.status()["problems"]}
        # The ledger goes on, with this voter, and what is stored is read.
        height = hospital.status()["height"]
        record = taken["records"][0]["record"]
        assert json_of("record", "get", record, "-o", tmp_path / "out", home=hospital)["bytes"] == 2 * MIB
        assert registered(clinic, tmp_path / "patient.json", 9)
        assert hospital.status()["height"] > height


def remove(network: Network, name: str) -> None:
    """Have a member removed by ballot, and wait until it is so at every other."""
    homes = [home for other, home in network.facilities.items() if other != name]
    proposal = json_of("member", "propose", name, "--remove", "--accept-risk", home=homes[0])["proposal"]
    for home in homes[1:3]:  # with the proposer's own, three of the four that are asked
        json_of("member", "vote", proposal, "yes", "--accept-risk", home=home)

    def is_gone() -> bool | None:
        return all(len(home.status()["voters"]) == len(homes) for home in homes) or None

    until("the configuration without it", is_gone)


def test_placement_heals_when_a_member_is_removed_by_ballot(tmp_path: Path) -> None:
    with consortium(*HOMES) as network:
        hospital = network["hospital"]
        records = add(hospital, tmp_path, random.Random(12))
        until("three replicas of every chunk", lambda: is_replicated(hospital))
        chunks, gone = figures(hospital)["chunks"], figures(network["archive"])["chunks"]
        assert gone
        before = sum(figures(home)["chunks"] for home in network.facilities.values()) - gone

        remove(network, "archive")

        def is_healed() -> bool | None:
            held = sum(
                figures(home)["chunks"] for name, home in network.facilities.items() if name != "archive"
            )
            return held == 3 * chunks or None

        until("its replicas to be with the others", is_healed)
        # Only its own replicas have moved: nobody has given any away.
        assert before + gone == 3 * chunks
        until("three replicas of every chunk again", lambda: is_replicated(hospital))
        assert is_readable(hospital, records, tmp_path / "out")
