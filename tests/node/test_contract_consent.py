"""The contract of `consent`: grants, revocations, and what is queued without a quorum. On real daemons."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.demo_network import until
from protocol.health.categories import Category
from tests.node.contract_house import House, documents, open_house, read
from tests.node.daemons import carechain, caught_up

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with open_house(tmp_path_factory.mktemp("documents")) as opened:
        yield opened


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
        assert max(queued.seconds, again.seconds) < 60  # ten and what a busy machine adds
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
    assert until("both to become final by themselves", states)
