"""The contract of the command line, line by line: commands, options, JSON fields, exit codes. On real daemons."""

import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node.demo_network import Facility, Network, until
from protocol.health.categories import Category
from tests.node.daemons import VOTERS, Ran, carechain, caught_up, consortium

pytestmark = pytest.mark.slow

COMMANDS = {
    "": {"init", "genesis", "run", "status", "member", "storage", "demo", "bench", "version", "patient", "record", "consent", "audit"},
    "member": {"list"},
    "storage": {"status"},
    "bench": {"consensus", "storage"},
    "patient": {"register", "list", "handover"},
    "record": {"add", "list", "status", "get", "export"},
    "consent": {"grant", "list", "revoke"},
    "audit": {"log", "verify"},
}  # fmt: skip
OPTIONS = {
    "init": {"--name", "--kind", "--role", "--listen", "--announce", "--peer", "--http", "--no-passphrase", "--passphrase-file"},
    "genesis": {"-o"},
    "run": {"--genesis", "--rebuild", "--log-level", "--log-format", "--passphrase-file"},
    "demo": {"--keep", "--facilities"},
    "bench consensus": {"--minutes", "--compare"},
    "bench storage": {"--minutes", "--fill", "--compare"},
    "patient register": {"--from", "--identifier", "--birth-date", "--name"},
    "patient handover": {"-o", "--no-grant", "--wallet-passphrase-file"},
    "record add": {"--patient", "--category", "--media-type", "--force"},
    "record list": {"--patient"},
    "record get": {"-o", "--purpose", "--user"},
    "record export": {"--patient", "-o"},
    "consent grant": {"--patient", "--to", "--category", "--purpose", "--expires", "--write", "--wallet", "--wallet-passphrase-file"},
    "consent list": {"--patient", "--wallet", "--wallet-passphrase-file"},
    "consent revoke": {"--wallet", "--wallet-passphrase-file"},
    "audit log": {"--patient", "--wallet", "--wallet-passphrase-file"},
    "audit verify": {"--full"},
}  # fmt: skip
ABSENT = (
    "member propose", "member vote", "member ticket", "member leave", "recover", "storage scrub", "storage repair",
    "storage reclaim", "backup", "restore", "record erase", "audit receipt", "verify", "bench read", "bench catchup",
    "consent simulate",
)  # fmt: skip
STATUS_FIELDS = {
    "facility", "network", "role", "leader", "term", "height", "certified_height", "tree_size", "tree_root", "voters",
    "quorum", "release_gate", "addresses", "http", "problems", "peers",
}  # fmt: skip
RECORD_FIELDS = {
    "record", "patient", "category", "kind", "part_of", "duplicate", "state", "bytes", "chunks", "transaction", "height",
}  # fmt: skip
AUDIT_FIELDS = {
    "action", "facility", "actor", "purpose", "time", "record", "category", "grant", "transaction", "height",
}  # fmt: skip
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


def help_of(command: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "node", *command.split(), "--help"], capture_output=True, check=False, text=True
    )  # fmt: skip
    return done.returncode, done.stdout


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


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    file = tmp_path_factory.mktemp("documents") / "bundle.json"
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


# --- commands and options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("noun", sorted(COMMANDS))
def test_exactly_the_commands_of_this_issue_exist(noun: str) -> None:
    code, text = help_of(noun)
    listed = text[text.index("Commands:") :].splitlines()[1:]

    assert code == 0
    assert {line.split()[0] for line in listed if re.match(r"  \w", line)} == COMMANDS[noun]


@pytest.mark.parametrize("command", sorted(OPTIONS))
def test_a_command_has_the_options_of_the_contract(command: str) -> None:
    code, text = help_of(command)
    found = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text[text.index("Options:") :]))

    assert code == 0
    assert OPTIONS[command] | {"--home", "--json", "--help"} <= found


@pytest.mark.parametrize("command", ABSENT)
def test_a_command_of_a_later_issue_is_wrong_usage_and_no_stub(command: str, tmp_path: Path) -> None:
    ran = carechain(*command.split(), home=tmp_path)

    assert ran.code == 2
    assert "--help" in ran.said


def test_version_names_program_wire_and_store() -> None:
    document = documents(carechain("version"))

    assert isinstance(document["version"], str)
    assert len(document) >= 3


# --- node -------------------------------------------------------------------------------------------------------


def test_init_and_genesis_answer_what_they_made(tmp_path: Path) -> None:
    made = documents(carechain("init", "--name", "solo", "--no-passphrase", home=tmp_path / "solo"))
    founded = carechain("genesis", made["card"], "-o", tmp_path / "genesis.json")
    card = json.loads(Path(made["card"]).read_text())

    assert {"facility", "peer_id", "card"} <= set(made)
    assert {
        "version",
        "name",
        "kind",
        "role",
        "governance",
        "node",
        "kex",
        "team",
        "peer_id",
        "addresses",
    } <= set(card)
    assert {"network", "members"} <= set(documents(founded))
    assert "warning" in founded.said
    assert carechain("init", "--name", "solo", "--no-passphrase", home=tmp_path / "solo").code == 1
    assert 'listen = ["/ip4/0.0.0.0/tcp/0"]' in (tmp_path / "solo" / "config.toml").read_text()


def test_status_has_every_field(house: House) -> None:
    report = documents(carechain("status", home=house.hospital))
    observer = documents(carechain("status", home=house.network["archive"]))

    assert set(report) >= STATUS_FIELDS
    assert report["release_gate"] is False
    assert report["leader"] in report["voters"]
    assert (report["quorum"], len(report["voters"]), report["role"], observer["role"]) == (
        2,
        3,
        "voter",
        "observer",
    )
    assert report["height"] >= report["certified_height"] > 0
    for peer in report["peers"]:
        assert {"name", "peer_id", "connected", "address", "found_by"} <= set(peer)
        assert peer["found_by"] in ("mdns", "config", "genesis", "book", "inbound")


def test_members_and_storage_are_listed(house: House) -> None:
    members = documents(carechain("member", "list", home=house.hospital))
    stored = documents(carechain("storage", "status", home=house.hospital))

    assert {member["name"] for member in members["members"]} == {"hospital", "clinic", "lab", "archive"}
    assert members["proposals"] == []
    assert {"chunks", "bytes", "under_replicated", "corrupt"} <= set(stored)
    assert stored["chunks"] > 0


def test_a_missing_peer_is_a_problem_that_status_names(house: House) -> None:
    house.network["lab"].stop()

    def named() -> bool | None:
        problems = documents(carechain("status", home=house.hospital))["problems"]
        return any("lab" in problem["text"] for problem in problems) or None

    assert until("status to name it", named)
    house.network["lab"].start()
    house.network["lab"].ready()
    assert house.network.connect(20.0)


# --- patients and records ---------------------------------------------------------------------------------------


def test_a_known_patient_is_the_same_one(house: House) -> None:
    height = caught_up(house.network)

    again = documents(carechain("patient", "register", "--from", house.file, home=house.hospital))

    assert again == {"patient": house.patient, "known": True}
    assert caught_up(house.network) == height  # vaults are opened at first use


def test_a_name_on_the_command_line_warns(house: House) -> None:
    ran = carechain(
        "patient", "register", "--name", "Nora Newcomer", "--birth-date", "1990-01-01", home=house.hospital
    )

    assert documents(ran)["known"] is False
    assert "warning" in ran.said
    assert "Nora" not in ran.said


def test_the_original_comes_first_then_views_by_category(house: House) -> None:
    first, *views = house.records
    categories = [view["category"] for view in views]

    assert all(set(record) >= RECORD_FIELDS for record in house.records)
    assert (first["kind"], first["category"], first["part_of"]) == ("original", "mixed", None)
    assert {view["kind"] for view in views} == {"view"}
    assert {view["part_of"] for view in views} == {first["record"]}
    assert categories == [category.value for category in Category if category.value in categories]
    assert {"labs", "mental-health"} <= set(categories)
    assert {record["state"] for record in house.records} == {"final"}
    assert first["bytes"] == len(house.file.read_bytes())


def test_list_and_status_show_no_titles_and_write_nothing(house: House) -> None:
    height = caught_up(house.network)

    listed = documents(carechain("record", "list", "--patient", house.patient[:6], home=house.hospital))[
        "records"
    ]
    shown = documents(carechain("record", "status", house.of("labs")[:12], home=house.hospital))["records"]

    assert {record["record"] for record in listed} == {record["record"] for record in house.records}
    assert {"record", "category", "day", "state", "transaction"} <= set(listed[0])
    assert not {"title", "name"} & set(listed[0])
    assert [record["record"] for record in shown] == [house.of("labs")]
    assert caught_up(house.network) == height


def test_get_returns_what_the_contract_says_and_replaces_atomically(house: House, tmp_path: Path) -> None:
    file = tmp_path / "copy.json"
    file.write_text("old")

    document = documents(
        carechain(
            "record",
            "get",
            house.records[0]["record"][:10],
            "-o",
            file,
            "--user",
            "Dr Own",
            home=house.hospital,
        )
    )

    assert {"sha256", "bytes", "transaction"} <= set(document)
    assert file.read_bytes() == house.file.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["copy.json"]
    assert (
        carechain(
            "record", "get", house.of("labs"), "-o", file, "--purpose", "GOSSIP", home=house.hospital
        ).code
        == 1
    )
    assert carechain("record", "get", "0" * 64, "-o", file, home=house.hospital).code == 1
    assert file.read_bytes() == house.file.read_bytes()


def test_export_wants_an_empty_folder_and_names_files_by_id(house: House, tmp_path: Path) -> None:
    folder = tmp_path / "export"

    document = documents(
        carechain("record", "export", "--patient", house.patient, "-o", folder, home=house.hospital)
    )
    again = carechain("record", "export", "--patient", house.patient, "-o", folder, home=house.hospital)

    names = {path.name for path in folder.iterdir()}
    assert document["records"] == len(house.records)
    assert names == {record["record"] for record in house.records} | {"bundle.json", "receipts.json"}
    assert b"72.5" in (folder / "bundle.json").read_bytes()
    assert (again.code, "empty" in again.said) == (1, True)


# --- consent ----------------------------------------------------------------------------------------------------


def test_one_grant_for_each_category_under_one_bundle(house: House) -> None:
    grants = house.grant["grants"]

    assert house.grant["grant"] not in {grant["grant"] for grant in grants}
    assert {grant["category"] for grant in grants} == {"labs", "mental-health"}
    assert all({"grant", "category", "transaction"} <= set(grant) for grant in grants)


def test_a_repeated_grant_is_the_same_grant(house: House) -> None:
    height = caught_up(house.network)

    again = documents(
        carechain(
            "consent", "grant", "--patient", house.patient, "--to", "clin", "--category", "mental-health", "--category", "labs",
            home=house.hospital,
        )
    )  # fmt: skip

    assert again == house.grant
    assert caught_up(house.network) == height


def test_granted_by_is_a_name(house: House) -> None:
    def granted() -> list[dict[str, Any]] | None:
        found = documents(carechain("patient", "list", home=house.clinic))["patients"]
        return [one for one in found if set(one["categories"]) >= {"labs", "mental-health"}] or None

    (theirs,) = until("the clinic to list the patient", granted)
    own = documents(carechain("patient", "list", home=house.hospital))["patients"]

    assert {"patient", "name", "custody", "granted_by", "categories"} <= set(theirs)
    assert (theirs["custody"], theirs["granted_by"], theirs["name"]) == (
        "granted",
        ["hospital"],
        "Cora Contract",
    )
    assert theirs["patient"] != house.patient
    assert "facility" in {patient["custody"] for patient in own}


def test_all_says_what_it_exposes_and_opens_everything_to_an_observer(house: House, tmp_path: Path) -> None:
    archive = house.network["archive"]

    ran = carechain(
        "consent",
        "grant",
        "--patient",
        house.patient,
        "--to",
        "archive",
        "--category",
        "all",
        home=house.hospital,
    )
    read(house, archive, house.records[0]["record"], tmp_path / "copy")

    assert {grant["category"] for grant in documents(ran)["grants"]} == {
        category.value for category in Category
    }
    assert "mental-health" in ran.said
    assert "whole documents" in ran.said
    assert (tmp_path / "copy").read_bytes() == house.file.read_bytes()
    ended = documents(carechain("consent", "revoke", documents(ran)["grant"][:8], home=house.hospital))
    assert len(ended["grants"]) == len(Category)


def test_revoke_by_prefix_says_what_it_does_not_do(house: House, tmp_path: Path) -> None:
    made = documents(
        carechain("consent", "grant", "--patient", house.patient, "--to", "lab", "--category", "labs", home=house.hospital)
    )  # fmt: skip
    read(house, house.network["lab"], house.of("labs"), tmp_path / "copy")

    ran = carechain("consent", "revoke", made["grant"][:10], home=house.hospital)
    repeated = carechain("consent", "revoke", made["grant"], home=house.hospital)

    assert documents(ran)["grant"] == made["grant"]
    assert documents(repeated)["grants"] == documents(ran)["grants"]
    assert "without a trace" in ran.said
    until(
        "the laboratory to be refused",
        lambda: (
            carechain(
                "record", "get", house.of("labs"), "-o", tmp_path / "no", home=house.network["lab"]
            ).code
            or None
        ),
    )
    states = documents(carechain("consent", "list", "--patient", house.patient, home=house.hospital))[
        "grants"
    ]
    assert next(grant for grant in states if grant["bundle"] == made["grant"])["state"] == "revoked"


@pytest.mark.parametrize("text", ["5", "0d", "1w", "-1d", "1.5h", "", "10000000000d"])
def test_a_duration_that_is_none_is_refused(house: House, text: str) -> None:
    ran = carechain(
        "consent", "grant", "--patient", house.patient, "--to", "lab", "--category", "labs", f"--expires={text}",
        home=house.hospital,
    )  # fmt: skip

    assert (ran.code, ran.document) == (1, None)


# --- audit ------------------------------------------------------------------------------------------------------


def test_the_audit_log_tells_every_action_and_who(house: House, tmp_path: Path) -> None:
    read(house, house.clinic, house.of("labs"), tmp_path / "copy", "--user", "Dr Curious")

    entries = documents(carechain("audit", "log", "--patient", house.patient, home=house.hospital))["entries"]
    elsewhere = carechain("audit", "log", "--patient", house.patient, home=house.clinic)

    assert all(set(entry) == AUDIT_FIELDS for entry in entries)
    assert {entry["action"] for entry in entries} >= {"open", "add", "grant", "read", "revoke", "rotate"}
    reads = [entry for entry in entries if entry["action"] == "read" and entry["facility"] == "clinic"]
    assert reads[-1]["record"] == house.of("labs")
    assert "Dr Curious" in reads[-1]["actor"]
    assert [entry["height"] for entry in entries] == sorted(entry["height"] for entry in entries)
    assert elsewhere.code == 1


def test_a_grantee_is_told_why_it_sees_no_audit_log(house: House) -> None:
    (theirs,) = [
        one
        for one in documents(carechain("patient", "list", home=house.clinic))["patients"]
        if one["custody"] == "granted"
    ]

    ran = carechain("audit", "log", "--patient", theirs["patient"], home=house.clinic)

    assert ran.code == 1
    assert "--wallet" in ran.said


def test_verification_answers_its_fields_everywhere(house: House) -> None:
    caught_up(house.network)
    found = [
        documents(carechain("audit", "verify", "--full", home=one))
        for one in house.network.facilities.values()
    ]

    assert all({"ok", "height", "tree_root", "problems"} <= set(one) for one in found)
    assert {one["tree_root"] for one in found} == {found[0]["tree_root"]}
    assert all(one["ok"] for one in found), found


def test_people_read_text_and_programs_one_document(house: House) -> None:
    home = str(house.hospital.home.path)
    for command in (
        ["status"],
        ["patient", "list"],
        ["member", "list"],
        ["storage", "status"],
        ["record", "list", "--patient", house.patient],
    ):
        shown = subprocess.run(
            [sys.executable, "-P", "-m", "node", *command, "--home", home], capture_output=True, check=True, text=True
        )  # fmt: skip
        assert shown.stdout.strip()
        assert not shown.stdout.lstrip().startswith("{")
        assert shown.stderr == ""


# --- without a quorum -------------------------------------------------------------------------------------------


def test_what_is_queued_ends_with_three_and_the_same_ids(house: House, tmp_path: Path) -> None:
    ended = documents(
        carechain("consent", "grant", "--patient", house.patient, "--to", "lab", "--category", "labs", home=house.hospital)
    )  # fmt: skip
    caught_up(house.network)
    for name in ("clinic", "lab"):
        house.network[name].kill()
    granting = (
        "consent",
        "grant",
        "--patient",
        house.patient,
        "--to",
        "archive",
        "--category",
        "labs",
        "--expires",
        "30d",
    )
    revoking = ("consent", "revoke", ended["grant"])

    for command in (granting, revoking):
        queued, again = (carechain(*command, home=house.hospital) for _ in range(2))
        assert max(queued.seconds, again.seconds) < 12
        assert documents(queued, code=3)["ids"] == documents(again, code=3)["ids"]
        assert documents(queued, code=3)["grants"] == documents(again, code=3)["grants"]
        assert "queued" in queued.said
    read_now = carechain("record", "get", house.of("labs"), "-o", tmp_path / "no", home=house.hospital)
    for name in ("clinic", "lab"):
        house.network[name].start()

    def states() -> bool | None:
        listed = carechain("consent", "list", "--patient", house.patient, home=house.hospital).document or {
            "grants": []
        }
        known = {(grant["facility"], grant["state"]) for grant in listed["grants"] if grant["bundle"]}
        revoked = {grant["state"] for grant in listed["grants"] if grant["bundle"] == ended["grant"]}
        return (("archive", "live") in known and revoked == {"revoked"}) or None

    assert (read_now.code, (tmp_path / "no").exists()) == (1, False)
    assert until("both to become final by themselves", states, 40.0)
