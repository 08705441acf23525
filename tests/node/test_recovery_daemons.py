"""The loss of a majority with real daemons: two of three homes are gone for good, and the network goes on (ledger.md 7.4)."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from node.demo_network import Facility, Network, until
from tests.interop import standalone_verifier
from tests.node.daemons import carechain, consortium, verified

pytestmark = [pytest.mark.slow]

_PATIENT = {"resourceType": "Patient", "id": "p", "identifier": [{"system": "urn:oid:1.2.3", "value": "77"}]}


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with consortium() as running:
        yield running


@pytest.fixture(scope="module")
def folder(network: Network) -> Path:
    return Path(network.folder)


def status_where(facility: Facility, name: str, value: object) -> dict[str, Any] | None:
    status = facility.status()
    return status if status[name] == value else None


def added(network: Network, name: str) -> str:
    """Add a record at the hospital; return its transaction."""
    file = network.folder / f"{name}.json"
    observation = {"resourceType": "Observation", "status": "final", "code": {"text": name}}
    bundle = {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [{"resource": _PATIENT}, {"resource": observation}],
    }
    file.write_text(json.dumps(bundle))
    done = carechain("record", "add", file, home=network["hospital"])
    assert done.code == 0, done.said
    assert done.document is not None
    return str(done.document["records"][0]["transaction"])


def receipt(network: Network, transaction: str, name: str) -> Path:
    file = Path(network.folder) / f"{name}.receipt"
    done = carechain("audit", "receipt", transaction, "-o", file, home=network["hospital"])
    assert done.code == 0, done.said
    return file


def test_the_network_goes_on_after_two_of_three_homes_are_gone(network: Network, folder: Path) -> None:
    hospital = network["hospital"]
    patient = folder / "patient.json"
    patient.write_text(json.dumps(_PATIENT))
    assert carechain("patient", "register", "--from", patient, home=hospital).code == 0
    before = receipt(network, added(network, "before"), "before")
    for name in ("clinic", "lab"):
        network[name].kill()
    collected = carechain("recover", "collect", "--freeze", "-o", folder / "frozen", home=hospital)
    assert collected.code == 0, collected.said
    assert collected.document is not None
    assert (collected.document["settled"], collected.document["frozen"]) == (True, ["hospital"])
    assert {one["name"] for one in collected.document["missing"]} == {"clinic", "lab"}
    assert "frozen" in {one["code"] for one in hospital.status()["problems"]}
    refused = carechain("recover", "cancel", home=hospital)
    assert (refused.code, "only a recovery ends this" in refused.said) == (1, True)

    plan = folder / "plan"
    proposed = carechain(
        "recover", "propose", folder / "frozen", "--lost", "lab", "--gone", "clinic", "--reason", "two halls burnt down",
        "-o", plan, home=hospital,
    )  # fmt: skip
    assert proposed.code == 0, proposed.said
    assert proposed.document is not None
    assert (proposed.document["consents_needed"], proposed.document["may_sign"]) == (
        2,
        ["clinic", "hospital"],
    )

    signatures = [folder / "hospital.sig", folder / "clinic.sig"]
    for file, name in zip(signatures, ("hospital", "clinic"), strict=True):
        signed = carechain("recover", "sign", plan, "-o", file, home=network[name])
        assert signed.code == 0, signed.said
    another = carechain(
        "recover", "propose", folder / "frozen", "--gone", "lab", "--gone", "clinic", "--reason", "on second thoughts",
        "-o", folder / "another", home=hospital,
    )  # fmt: skip
    assert another.code == 0, another.said
    for name in ("hospital", "clinic"):  # by its daemon, and by its keys alone
        refused = carechain("recover", "sign", folder / "another", "-o", folder / "twice", home=network[name])
        assert (refused.code, proposed.document["digest"] in refused.said) == (1, True)
    assert not (folder / "twice").exists()
    too_few = carechain("recover", "apply", plan, signatures[0], home=hospital)
    assert (too_few.code, "needs the consent of 2" in too_few.said) == (1, True)
    for _ in range(2):  # the second time changes nothing
        applied = carechain("recover", "apply", plan, *signatures, home=hospital)
        assert applied.code == 0, applied.said

    status = until("the hospital to lead", partial(status_where, hospital, "leader", "hospital"))
    assert (status["epoch"], status["voters"]) == (1, ["hospital"])
    after = receipt(network, added(network, "after"), "after")
    for file in (before, after, receipt(network, added(network, "again"), "again")):
        checked = carechain("verify", file, "--trust", network.folder / "genesis.json")
        assert checked.code == 0, checked.said
        assert standalone_verifier.verify(file.read_bytes())["txid"]
    found = verified(hospital)
    assert (found["ok"], found["problems"]) == (True, [])


def test_members_that_were_given_up_come_back_and_follow(network: Network) -> None:
    hospital = network["hospital"]
    # Both at once are a majority of the old configuration: they sign nothing before they have heard of the new one.
    for name in ("clinic", "lab"):
        network[name].start()
    for name in ("clinic", "lab"):
        network[name].ready()
        status = until(f"{name} to follow", partial(status_where, network[name], "epoch", 1))
        assert status["role"] == "removed"
        assert not {"fork", "recovered-without"} & {one["code"] for one in status["problems"]}
    assert hospital.status()["epoch"] == 1
