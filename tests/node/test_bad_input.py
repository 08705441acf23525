"""What bad input gets: one sentence, the right exit code, and nothing lost or half-taken. On real daemons."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.demo_network import Facility, Network, until
from node.home import Home
from tests.node.daemons import Daemon, carechain, caught_up, consortium

pytestmark = pytest.mark.slow

ALICE = {
    "resourceType": "Patient", "identifier": [{"system": "urn:example", "value": "alice"}], "birthDate": "1980-01-01",
    "name": [{"family": "Sample", "given": ["Alice"]}],
}  # fmt: skip
BOB = {
    "resourceType": "Patient",
    "identifier": [{"system": "urn:example", "value": "bob"}],
    "birthDate": "1990-02-02",
}
LAB = {
    "resourceType": "Observation", "status": "final", "subject": {"type": "Patient", "identifier": {"system": "urn:example", "value": "alice"}},
    "category": [{"coding": [{"code": "laboratory"}]}], "code": {"coding": [{"system": "http://loinc.org", "code": "2339-0"}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with consortium() as running:
        yield running


@pytest.fixture(scope="module")
def hospital(network: Network) -> Facility:
    return network["hospital"]


@pytest.fixture(scope="module")
def patients(hospital: Facility, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("patients")
    handles = {}
    for name, resource in (("alice", ALICE), ("bob", BOB)):
        file = folder / f"{name}.json"
        file.write_text(json.dumps(resource))
        ran = carechain("patient", "register", "--from", file, home=hospital)
        assert ran.document is not None, ran.said
        handles[name] = ran.document["patient"]
    return handles


def one_sentence(said: str) -> bool:
    return 10 < len(said) < 400 and "Traceback" not in said


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("empty.json", b"", []),
        ("broken.json", b'{"resourceType": "Patient", ', []),
        ("not-fhir.json", b'{"hello": "world"}', []),
        ("really-a-picture.json", b"\x89PNG\r\n\x1a\n" + bytes(100), []),
        ("two.json", json.dumps({"resourceType": "Bundle", "type": "collection", "entry": [{"resource": ALICE}, {"resource": BOB}]}).encode(), []),
        ("nobody.json", json.dumps({"resourceType": "Observation", "status": "final", "code": {"text": "x"}}).encode(), []),
        ("stranger.json", json.dumps(ALICE | {"identifier": [{"system": "urn:example", "value": "carol"}]}).encode(), []),
        ("letter.pdf", b"%PDF-1.4\n%%EOF\n", []),
        ("letter.pdf", b"%PDF-1.4\n%%EOF\n", ["--patient", "ffffffffffffffff"]),
        ("letter.pdf", b"%PDF-1.4\n%%EOF\n", ["--patient", "PATIENT", "--category", "horoscope"]),
        ("bob.json", json.dumps(BOB).encode(), ["--patient", "PATIENT"]),
        ("birth.json", json.dumps(ALICE | {"birthDate": "1981-01-01"}).encode(), []),
    ],
    ids=[
        "empty", "invalid-json", "not-fhir", "not-what-it-says", "two-patients", "names-nobody", "unknown-patient", "opaque-without-patient",
        "no-such-patient", "no-such-category", "somebody-else", "differing-birth-date",
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_and_nothing_kept(
    hospital: Facility,
    patients: dict[str, str],
    tmp_path: Path,
    name: str,
    content: bytes,
    options: list[str],
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    chunks = (carechain("storage", "status", home=hospital).document or {})["chunks"]
    height = hospital.status()["height"]

    ran = carechain(
        "record", "add", file, *(patients["alice"] if o == "PATIENT" else o for o in options), home=hospital
    )

    assert ran.code == 1, ran.said
    assert one_sentence(ran.said)
    assert "Alice" not in ran.said
    assert (carechain("storage", "status", home=hospital).document or {})["chunks"] == chunks
    assert hospital.status()["height"] == height


def test_what_names_somebody_else_is_kept_when_forced(
    hospital: Facility, patients: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "bob.json"
    file.write_text(json.dumps(BOB | {"gender": "male"}))

    ran = carechain("record", "add", file, "--patient", patients["alice"], "--force", home=hospital)

    assert ran.code == 0, ran.said


def test_the_same_file_for_another_patient_is_refused(
    hospital: Facility, patients: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "scan.bin"
    file.write_bytes(os.urandom(5000))
    assert carechain("record", "add", file, "--patient", patients["alice"], home=hospital).code == 0

    ran = carechain("record", "add", file, "--patient", patients["bob"], home=hospital)

    assert ran.code == 1
    assert one_sentence(ran.said)


def test_grants_to_nobody_and_of_nothing_are_refused(hospital: Facility, patients: dict[str, str]) -> None:
    def grant(*options: str) -> tuple[int, str]:
        ran = carechain("consent", "grant", "--patient", patients["alice"], *options, home=hospital)
        return ran.code, ran.said

    for options in (
        ("--to", "nowhere", "--category", "labs"),
        ("--to", "clinic", "--category", "horoscope"),
        ("--to", "clinic", "--category", "labs", "--purpose", "CURIOSITY"),
        ("--to", "clinic", "--category", "labs", "--expires", "10000d"),
    ):
        code, said = grant(*options)
        assert code == 1, (options, said)
        assert one_sentence(said)


def test_wrong_usage_ends_with_two(hospital: Facility) -> None:
    assert carechain("record", "add", home=hospital).code == 2
    assert carechain("consent", "grant", "--nonsense", home=hospital).code == 2


def test_an_expired_grant_opens_nothing(
    network: Network, hospital: Facility, patients: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "lab.json"
    file.write_text(json.dumps(LAB | {"id": "expiry"}))
    added = carechain("record", "add", file, home=hospital)
    assert added.document is not None, added.said
    record = added.document["records"][0]["record"]
    seconds = 8
    carechain(
        "consent",
        "grant",
        "--patient",
        patients["alice"],
        "--to",
        "clinic",
        "--category",
        "labs",
        "--expires",
        f"{seconds}s",
        home=hospital,
    )
    granted_at = time.monotonic()

    def read() -> int:
        return carechain("record", "get", record, "-o", tmp_path / "copy", home=network["clinic"]).code

    until("the clinic to read", lambda: read() == 0 or None, seconds)
    until("the grant to expire", lambda: time.monotonic() > granted_at + seconds + 1 or None, seconds + 5.0)

    assert read() == 1


def test_a_refusal_leaves_the_old_file(network: Network, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("what was here")

    ran = carechain("record", "get", "ab" * 32, "-o", old, home=network["clinic"])

    assert ran.code == 1
    assert old.read_text() == "what was here"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_two_gigabytes_of_zeros_are_streamed(
    hospital: Facility, patients: dict[str, str], tmp_path: Path
) -> None:
    """Memory stays flat, whatever is sent (issue: what bad input gets)."""
    zeros = tmp_path / "zeros.bin"
    zeros.touch()
    os.truncate(zeros, 2 * 1024**3)
    peak = 0
    assert hospital.process is not None
    program = [
        sys.executable,
        "-P",
        "-m",
        "node",
        "record",
        "add",
        str(zeros),
        "--patient",
        patients["alice"],
    ]
    with subprocess.Popen(
        [*program, "--home", str(hospital.home.path), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as adding:
        while adding.poll() is None:
            peak = max(peak, anonymous_kib(hospital.process.pid))
            until("a moment", lambda: True, 0.2)
        document = json.loads(adding.stdout.read()) if adding.stdout is not None else {}

    assert adding.returncode in (0, 3)
    assert document["records"][0]["category"] == "mixed"
    assert document["records"][0]["bytes"] == 2 * 1024**3
    assert peak < 300 * 1024


def anonymous_kib(pid: int) -> int:
    found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


# --- homes and starting ---------------------------------------------------------------------------------------


def started(home: Path, *options: str | Path, **environment: str) -> tuple[int, str]:
    ran = carechain("run", *options, home=home, **environment)
    return ran.code, ran.said


def made(folder: Path, name: str, *options: str) -> Path:
    ran = carechain(
        "init",
        "--name",
        name,
        "--listen",
        "/ip4/127.0.0.1/tcp/0",
        *(options or ("--no-passphrase",)),
        home=folder / name,
    )
    assert ran.code == 0, ran.said
    return folder / name


def genesis_of(folder: Path, *homes: Path, name: str = "genesis.json") -> Path:
    ran = carechain("genesis", *(home / "card.json" for home in homes), "-o", folder / name)
    assert ran.code == 0, ran.said
    return folder / name


def test_a_second_daemon_on_one_home_is_refused(hospital: Facility) -> None:
    code, said = started(hospital.home.path)

    assert (code, one_sentence(said)) == (1, True)


def test_init_overwrites_nothing(hospital: Facility) -> None:
    assert carechain("init", "--name", "other", "--no-passphrase", home=hospital).code == 1


def test_two_cards_of_one_name_are_refused(tmp_path: Path) -> None:
    one, two = made(tmp_path / "a", "twin"), made(tmp_path / "b", "twin")

    ran = carechain("genesis", one / "card.json", two / "card.json", "-o", tmp_path / "genesis.json")

    assert ran.code == 1
    assert "twin" in ran.said
    assert not (tmp_path / "genesis.json").exists()


def test_an_altered_card_is_refused(tmp_path: Path) -> None:
    home = made(tmp_path, "honest")
    card = json.loads((home / "card.json").read_text())
    (home / "card.json").write_text(json.dumps(card | {"role": "witness"}))

    assert carechain("genesis", home / "card.json", "-o", tmp_path / "genesis.json").code == 1


def test_a_joined_home_takes_no_other_network(hospital: Facility, network: Network, tmp_path: Path) -> None:
    stranger = made(tmp_path, "stranger")
    other = genesis_of(tmp_path, stranger, hospital.home.path)
    lab = network["lab"]
    lab.stop()

    code, said = started(lab.home.path, "--genesis", other)
    lab.start()
    lab.ready()
    network.connect()
    caught_up(network)

    assert code == 1
    assert "network" in said


def test_a_wrong_passphrase_is_refused(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("correct horse battery staple\n")
    wrong.write_text("incorrect\n")
    home = made(tmp_path, "sealed", "--passphrase-file", str(right))
    genesis = genesis_of(tmp_path, home)

    code, said = started(home, "--genesis", genesis, "--passphrase-file", wrong)
    silent, _ = started(home, "--genesis", genesis)

    assert (code, silent) == (1, 1)
    assert "passphrase" in said


def test_a_corrupt_configuration_is_refused(tmp_path: Path) -> None:
    home = made(tmp_path, "corrupt")
    genesis = genesis_of(tmp_path, home)
    (home / "config.toml").write_text("name = \n[[[")

    code, said = started(home, "--genesis", genesis)

    assert (code, one_sentence(said)) == (1, True)


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = carechain(
            "init",
            "--name",
            "late",
            "--listen",
            f"/ip4/127.0.0.1/tcp/{port}",
            "--no-passphrase",
            home=tmp_path / "late",
        )
        assert ran.code == 0
        genesis = genesis_of(tmp_path, tmp_path / "late")

        code, said = started(tmp_path / "late", "--genesis", genesis)

    assert code == 1
    assert "use" in said


def test_a_home_whose_path_is_too_long_for_a_socket_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90) / ("e" * 90)
    home = made(deep, "deep")
    genesis = genesis_of(tmp_path, home)
    daemon = Daemon("deep", Home(home))
    daemon.start("--genesis", str(genesis))
    try:
        assert daemon.ready()["facility"] == "deep"
        assert (home / "api.path").exists()
    finally:
        daemon.stop()
    assert not (home / "api.path").exists()


def test_commands_without_a_daemon_say_so(tmp_path: Path) -> None:
    home = made(tmp_path, "asleep")

    for command in (("status",), ("patient", "list"), ("audit", "verify")):
        ran = carechain(*command, home=home)
        assert ran.code == 1
        assert "carechain run" in ran.said
