"""The contract of the command line, line by line: JSON fields, exit codes, what is written where. On real daemons."""

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.demo_network import until
from protocol.health.categories import Category
from tests.node.contract_house import House, documents, open_house, read
from tests.node.daemons import carechain, caught_up

pytestmark = pytest.mark.slow

STATUS_FIELDS = {
    "facility", "network", "role", "leader", "term", "height", "certified_height", "ordered_height", "tree_size", "tree_root", "voters",
    "quorum", "release_gate", "addresses", "http", "problems", "peers",
}  # fmt: skip
RECORD_FIELDS = {
    "record", "patient", "category", "kind", "part_of", "duplicate", "state", "bytes", "chunks", "transaction", "height",
}  # fmt: skip
AUDIT_FIELDS = {
    "action", "facility", "actor", "purpose", "time", "record", "category", "grant", "transaction", "height",
}  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with open_house(tmp_path_factory.mktemp("documents")) as opened:
        yield opened


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
    assert report["height"] >= report["ordered_height"] >= report["certified_height"] > 0
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
    assert house.network.connect()


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


# --- audit ------------------------------------------------------------------------------------------------------


def test_the_audit_log_tells_every_action_and_who(house: House, tmp_path: Path) -> None:
    read(house, house.clinic, house.of("labs"), tmp_path / "copy", "--user", "Dr Curious")
    ended = documents(
        carechain("consent", "grant", "--patient", house.patient, "--to", "lab", "--category", "labs", home=house.hospital)
    )  # fmt: skip
    assert documents(carechain("consent", "revoke", ended["grant"], home=house.hospital))["rotated"] is True

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
