"""Custody handed to the patient, by the command line, on real daemons: what the facility loses, what the wallet can do.

The facility's sealed copies of the roots are noted before the handover and searched for in its files afterwards.
"""

import base64
import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node.demo_network import Facility, Network, until
from storage import databases
from storage.keyspace import SECRET, prefix_range
from tests.node.daemons import Ran, carechain, consortium

pytestmark = pytest.mark.slow

PASSPHRASE = "a passphrase of the patient's own"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with consortium() as running:
        yield running


@dataclass
class Patient:
    """A patient of the hospital with one record, and what is needed to hand custody over."""

    handle: str
    record: str
    folder: Path

    @property
    def wallet(self) -> Path:
        return self.folder / "wallet"

    @property
    def secret(self) -> Path:
        return self.folder / "secret"

    @property
    def signed(self) -> tuple[str | Path, ...]:
        """The options that sign with the wallet."""
        return ("--wallet", self.wallet, "--wallet-passphrase-file", self.secret)


@pytest.fixture
def patient(network: Network, tmp_path: Path) -> Patient:
    person = {
        "resourceType": "Patient", "identifier": [{"system": "urn:example", "value": tmp_path.name}], "birthDate": "1970-01-01",
    }  # fmt: skip
    (tmp_path / "person.json").write_text(json.dumps(person))
    (tmp_path / "letter.pdf").write_bytes(b"%PDF-1.4 " + tmp_path.name.encode())
    (tmp_path / "secret").write_text(PASSPHRASE)
    handle = documents(
        carechain("patient", "register", "--from", tmp_path / "person.json", home=network["hospital"])
    )["patient"]
    added = carechain(
        "record", "add", tmp_path / "letter.pdf", "--patient", handle, "--category", "labs", home=network["hospital"]
    )  # fmt: skip
    return Patient(handle, documents(added)["records"][0]["record"], tmp_path)


def documents(ran: Ran, *, code: int = 0) -> Any:
    assert ran.code == code, ran.said
    assert ran.document is not None, ran.said
    return ran.document


def hand_over(network: Network, patient: Patient, *options: str) -> Ran:
    return carechain(
        "patient", "handover", patient.handle, "-o", patient.wallet, "--wallet-passphrase-file", patient.secret, *options,
        home=network["hospital"],
    )  # fmt: skip


def sealed_rows(facility: Facility, prefix: str) -> list[bytes]:
    """Return the sealed secrets under a prefix in the key store of a daemon that does not run."""
    opened = databases.open_keys(facility.home.path, create=False)
    try:
        # Without the nonce at the front: only what was sealed.
        return [value[24:] for _, value in opened.scan(*prefix_range(SECRET + prefix.encode()))]
    finally:
        opened.close()


def restart(network: Network, name: str) -> None:
    network[name].start()
    network[name].ready()
    assert network.connect()
    network.leader()


def copies(facility: Facility, sealed: list[bytes]) -> list[str]:
    """Return the files of a home in which sealed bytes can still be found, by 24 of them."""
    pieces = [row[start : start + 24] for row in sealed for start in range(0, len(row) - 24, 24)]
    files = [path for path in facility.home.path.rglob("*") if path.is_file()]
    return [path.name for path in files if any(piece in path.read_bytes() for piece in pieces)]


def assert_the_facility_may_not(facility: Facility, patient: Patient, granted: str) -> None:
    """Consents and the audit log want the wallet; the facility still lists the patient, and in whose custody."""
    for command in (
        ("consent", "grant", "--patient", patient.handle, "--to", "lab", "--category", "labs"),
        ("consent", "revoke", granted),
        ("consent", "list", "--patient", patient.handle),
        ("audit", "log", "--patient", patient.handle),
    ):
        refused = carechain(*command, home=facility)
        assert (refused.code, refused.document) == (1, None), command
        assert "--wallet" in refused.said
    known = documents(carechain("patient", "list", home=facility))["patients"]
    custody = next(one for one in known if one["patient"] == patient.handle)
    assert (custody["custody"], custody["granted_by"]) == ("patient", ["the patient"])


def test_after_the_handover_only_the_wallet_signs(network: Network, patient: Patient, tmp_path: Path) -> None:
    hospital, lab = network["hospital"], network["lab"]
    before = carechain(
        "consent", "grant", "--patient", patient.handle, "--to", "clinic", "--category", "labs", home=hospital
    )
    granted = documents(before)["grant"]

    handed = documents(hand_over(network, patient))

    assert handed["wallet"] == str(patient.wallet)
    assert stat.S_IMODE(patient.wallet.stat().st_mode) == 0o600
    assert patient.handle.encode() not in patient.wallet.read_bytes()
    assert_the_facility_may_not(hospital, patient, granted)

    # At a facility that knows nothing of the patient:
    log = documents(carechain("audit", "log", "--patient", "me", *patient.signed, home=lab))["entries"]
    assert [entry["action"] for entry in log].count("handover") == 1
    ended = documents(carechain("consent", "revoke", granted[:32], *patient.signed, home=hospital))
    assert ended["rotated"] is True
    theirs = carechain(
        "consent", "grant", "--patient", "me", "--to", "lab", "--category", "labs", *patient.signed, home=lab
    )
    elsewhere = documents(
        carechain(
            "consent",
            "grant",
            "--patient",
            "me",
            "--to",
            "clinic",
            "--category",
            "labs",
            *patient.signed,
            home=lab,
        )
    )
    until(
        "the clinic to read again",
        lambda: (
            carechain("record", "get", patient.record, "-o", tmp_path / "copy", home=network["clinic"]).code
            == 0
            or None
        ),
    )
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "letter.pdf").read_bytes()
    assert theirs.code == 1  # a facility needs no grant to itself
    assert elsewhere["facility"] == "clinic"


def test_the_grant_back_lets_the_facility_read_for_a_year(
    network: Network, patient: Patient, tmp_path: Path
) -> None:
    documents(hand_over(network, patient))

    until(
        "the hospital to open its grant",
        lambda: (
            carechain("record", "get", patient.record, "-o", tmp_path / "copy", home=network["hospital"]).code
            == 0
            or None
        ),
    )
    (grant,) = documents(
        carechain("consent", "list", "--patient", patient.handle, *patient.signed, home=network["hospital"])
    )["grants"]

    assert (grant["facility"], grant["purposes"], grant["rights"], grant["state"]) == (
        "hospital",
        ["TREAT"],
        "R",
        "live",
    )
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "letter.pdf").read_bytes()


def test_without_a_grant_back_the_facility_reads_nothing(
    network: Network, patient: Patient, tmp_path: Path
) -> None:
    documents(hand_over(network, patient, "--no-grant"))

    own = carechain("record", "get", patient.record, "-o", tmp_path / "no", home=network["hospital"])
    nothing = carechain("record", "get", "e" * 64, "-o", tmp_path / "no", home=network["hospital"])

    assert (own.code, own.said) == (1, nothing.said)
    assert not (tmp_path / "no").exists()


def test_a_wallet_and_its_passphrase_are_checked(network: Network, patient: Patient, tmp_path: Path) -> None:
    documents(hand_over(network, patient))
    wrong, none = tmp_path / "wrong", tmp_path / "none"
    wrong.write_text("another")
    none.write_bytes(b"not a wallet")
    command = ("consent", "list", "--patient", patient.handle)

    ran = [
        carechain(*command, "--wallet", wallet, *options, home=network["hospital"])
        for wallet, options in (
            (patient.wallet, ("--wallet-passphrase-file", wrong)),
            (none, ("--wallet-passphrase-file", patient.secret)),
            (patient.wallet, ()),
            (tmp_path / "missing", ("--wallet-passphrase-file", patient.secret)),
        )
    ]

    assert [one.code for one in ran] == [1, 1, 1, 1]
    assert "passphrase" in ran[0].said
    assert "not a carechain wallet" in ran[1].said
    assert not [one.said for one in ran if PASSPHRASE in one.said]


def test_no_copy_of_the_roots_is_left_whatever_crash_lay_between(
    network: Network, patient: Patient, tmp_path: Path
) -> None:
    """kill -9 after the wallet was prepared; the same command again; then the sealed roots are in no file."""
    hospital = network["hospital"]
    prepared = hospital.client.post(
        "/v1/patients/handover/prepare", patient=patient.handle, passphrase=base64.b64encode(PASSPHRASE.encode()).decode()
    )  # fmt: skip
    hospital.kill()
    sealed = [
        *sealed_rows(hospital, f"patient/{patient.handle}"),
        *sealed_rows(hospital, f"handover/{patient.handle}"),
    ]
    assert copies(hospital, sealed)
    restart(network, "hospital")

    handed = documents(hand_over(network, patient))

    assert handed["handover"] == prepared["handover"]
    assert patient.wallet.read_bytes() == base64.b64decode(prepared["wallet"])
    assert len(sealed) == 2
    assert copies(hospital, sealed) == []
    hospital.stop()
    assert copies(hospital, sealed) == []
    assert sealed_rows(hospital, f"handover/{patient.handle}") == []
    restart(network, "hospital")
    assert documents(carechain("audit", "log", "--patient", patient.handle, *patient.signed, home=hospital))[
        "entries"
    ]


def test_a_handover_whose_command_was_cut_off_is_completed_by_the_daemon(
    network: Network, patient: Patient
) -> None:
    hospital = network["hospital"]
    for name in ("clinic", "lab"):
        network[name].kill()

    queued = hand_over(network, patient)
    hospital.kill()
    for name in ("clinic", "lab"):
        network[name].start()
    restart(network, "hospital")

    def handed() -> bool | None:
        found = documents(carechain("patient", "list", home=hospital))["patients"]
        return next(one for one in found if one["patient"] == patient.handle)["custody"] == "patient" or None

    assert queued.code == 3
    assert queued.seconds < 60  # ten and what a busy machine adds; it does not wait for a quorum
    assert until("the daemon to complete it", handed)
    again = documents(hand_over(network, patient))
    assert (again["wallet"], again["patient"]) == (str(patient.wallet), patient.handle)
    assert documents(carechain("consent", "list", "--patient", "me", *patient.signed, home=network["lab"]))[
        "grants"
    ]


def test_no_wallet_is_ever_overwritten(network: Network, patient: Patient, tmp_path: Path) -> None:
    patient.wallet.write_bytes(b"\x94\xabwallet-file of somebody else")

    documents(hand_over(network, patient))

    kept = [path for path in tmp_path.iterdir() if path.name.startswith("wallet.before-")]
    assert [path.read_bytes() for path in kept] == [b"\x94\xabwallet-file of somebody else"]
    assert documents(carechain("consent", "list", "--patient", "me", *patient.signed, home=network["clinic"]))


def test_on_a_refusal_the_old_file_stays(network: Network, patient: Patient, tmp_path: Path) -> None:
    patient.wallet.write_text("what was here")

    ran = carechain(
        "patient", "handover", "f" * 16, "-o", patient.wallet, "--wallet-passphrase-file", patient.secret,
        home=network["hospital"],
    )  # fmt: skip

    assert ran.code == 1
    assert patient.wallet.read_text() == "what was here"
