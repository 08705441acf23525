"""A facility comes and goes by ballot, with real daemons: proposal, ballots, ticket, configuration block, restart."""

from collections.abc import Iterator
from functools import partial

import pytest

from node.demo_network import Facility, Network, until
from node.home import Home
from tests.node.daemons import Daemon, carechain, caught_up, consortium, made, verified

pytestmark = [
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with consortium() as running:
        yield running


@pytest.fixture(scope="module")
def house(network: Network) -> Facility:
    """The home of a facility that is no member yet."""
    place = network.folder / "house"
    made(
        "init", "--home", str(place), "--name", "house", "--kind", "clinic", "--role", "observer",
        "--no-passphrase", "--listen", "/ip4/127.0.0.1/tcp/0",
    )  # fmt: skip
    return Daemon("house", Home(place))


def vote(network: Network, proposal: str, *options: str, by: tuple[str, ...] = ("clinic", "lab")) -> None:
    for name in by:
        done = carechain("member", "vote", proposal, "yes", *options, home=network[name])
        assert done.code == 0, done.said


def role_of(facility: Facility, name: str) -> str | None:
    rows = facility.client.get("/v1/members")["members"]
    return next((row["role"] for row in rows if row["name"] == name), None)


def has_role(facility: Facility, name: str, role: str | None) -> bool | None:
    return role_of(facility, name) == role or None


def wait_for_role(network: Network, name: str, role: str | None) -> None:
    for facility in network.facilities.values():
        if facility.process is not None:
            until(f"{name} to be {role}", partial(has_role, facility, name, role))


def test_a_stranger_without_a_ticket_or_with_a_foreign_one_is_told_what_to_do(
    network: Network, house: Facility
) -> None:
    done = carechain("run", "--genesis", network.folder / "genesis.json", home=house)
    assert (done.code, "ask a member for a ticket" in done.said) == (1, True)
    refused = carechain(
        "member", "ticket", house.home.card, "-o", network.folder / "t.json", home=network["lab"]
    )
    assert (refused.code, "propose its card first" in refused.said) == (1, True)


def test_a_proposed_facility_joins_by_ticket_and_follows(network: Network, house: Facility) -> None:
    proposed = carechain("member", "propose", house.home.card, home=network["hospital"])
    assert proposed.code == 0, proposed.said
    assert proposed.document is not None
    proposal = proposed.document["proposal"]
    assert (proposed.document["yes"], proposed.document["needed"]) == (1, 3)
    ticket = network.folder / "ticket.json"
    assert carechain("member", "ticket", house.home.card, "-o", ticket, home=network["hospital"]).code == 0
    house.start("--ticket", str(ticket))
    assert house.ready()["role"] == "candidate"
    vote(network, proposal)
    network.facilities["house"] = house
    wait_for_role(network, "house", "observer")
    until("the house to know it", lambda: house.status()["role"] == "observer" or None)
    caught_up(network)


def test_a_ticket_is_taken_once(network: Network, house: Facility) -> None:
    second = network.folder / "copy"
    house.stop()
    made(
        "init", "--home", str(second), "--name", "copy", "--no-passphrase", "--listen", "/ip4/127.0.0.1/tcp/0"
    )
    foreign = carechain("run", "--ticket", network.folder / "ticket.json", home=second)
    assert (foreign.code, "the ticket is for" in foreign.said) == (1, True)
    # The same home, robbed of what it had joined: to the sponsor it is somebody else with this key.
    house.home.genesis.rename(network.folder / "genesis-of-house.json")
    house.home.ticket.rename(network.folder / "ticket-of-house.json")
    used = carechain("run", "--ticket", network.folder / "ticket.json", home=house)
    assert (used.code, "has been used" in used.said) == (1, True)
    (network.folder / "genesis-of-house.json").rename(house.home.genesis)
    (network.folder / "ticket-of-house.json").rename(house.home.ticket)


def test_a_member_by_ticket_and_everybody_else_restart_into_the_configuration_in_force(
    network: Network, house: Facility
) -> None:
    house.start()
    for name in ("hospital", "clinic", "lab"):
        network[name].stop()
    for name in ("hospital", "clinic", "lab"):
        network[name].start()
    for facility in network.facilities.values():
        facility.ready()
    network.leader()
    wait_for_role(network, "house", "observer")
    caught_up(network)


def test_a_learner_becomes_a_voter_that_counts(network: Network, house: Facility) -> None:
    for role in ("learner", "voter"):
        done = carechain("member", "propose", "house", "--role", role, home=network["hospital"])
        assert done.document is not None, done.said
        vote(network, done.document["proposal"])
        wait_for_role(network, "house", role)
    assert house.status()["quorum"] == 3
    listed = carechain("member", "list", home=house).document or {}
    assert listed["withstands"]["liars"] == 1
    caught_up(network)


def test_letting_a_voter_go_names_its_price(network: Network) -> None:
    refused = carechain("member", "propose", "lab", "--remove", home=network["hospital"])
    assert (refused.code, "liars tolerated fall from 1 to 0" in refused.said) == (1, True)
    done = carechain("member", "propose", "lab", "--remove", "--accept-risk", home=network["hospital"])
    assert done.document is not None, done.said
    vote(network, done.document["proposal"], "--accept-risk", by=("clinic", "house"))
    for name in ("hospital", "clinic", "house"):
        until("the lab to have left", partial(has_role, network[name], "lab", None))
    until("the lab to know it", lambda: network["lab"].status()["role"] == "removed" or None)
    former = (carechain("member", "list", home=network["clinic"]).document or {})["former"]
    assert [one["name"] for one in former] == ["lab"]


def test_new_keys_come_by_ballot_and_sign_after_a_restart(network: Network, house: Facility) -> None:
    done = carechain("member", "rotate", "--governance", "--checkpoint", home=house)
    assert done.document is not None, done.said
    proposal = done.document["proposal"]
    vote(network, proposal, by=("hospital", "clinic"))

    def in_force() -> bool | None:
        rows = house.client.get("/v1/members")["proposals"]
        return any(row["proposal"] == proposal and row["state"] == "in force" for row in rows) or None

    until("the new keys to be in force", in_force)
    house.stop()
    house.start()
    house.ready()
    network.leader()
    done = carechain("member", "propose", "clinic", "--role", "suspended", "--accept-risk", home=house)
    assert done.code == 0, done.said
    assert verified(network["hospital"])["ok"], verified(network["hospital"])


def test_a_voter_that_was_away_when_it_was_let_go_is_told(network: Network, house: Facility) -> None:
    house.stop()
    done = carechain("member", "propose", "house", "--remove", "--accept-risk", home=network["hospital"])
    assert done.document is not None, done.said
    vote(network, done.document["proposal"], "--accept-risk", by=("clinic",))
    for name in ("hospital", "clinic"):
        until("the house to have left", partial(has_role, network[name], "house", None))
    house.start()
    house.ready()
    until("the house to know it", lambda: house.status()["role"] == "removed" or None)
