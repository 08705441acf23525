"""A Rejoin on the ledger: one number after the other, by the member alone, where the others can do without it."""

from dataclasses import replace

import pytest

from protocol.configuration import Configuration
from protocol.identifiers import Height, NodeId
from protocol.rejoining import NEVER, Incarnation, Rejoin, can_rejoin, can_return_with, incarnation_of
from tests.protocol.ledgers import Ledger, configuration, key, member

ME = NodeId(key("clinic").public)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(configuration("hospital", "clinic", "lab"))


def rejoin(ledger: Ledger, number: int, nonce: bytes = bytes(32)) -> Rejoin:
    return Rejoin(ME, number, nonce, ledger.soon)


def test_a_rejoin_begins_the_next_incarnation_at_its_block(ledger: Ledger) -> None:
    assert incarnation_of(ledger.rows.get, ME) == NEVER

    assert ledger.verdict(rejoin(ledger, 1), "clinic") == "accepted"

    assert incarnation_of(ledger.rows.get, ME) == Incarnation(1, Height(1), ledger.now_ms)
    assert ledger.verdict(rejoin(ledger, 2), "clinic") == "accepted"
    assert incarnation_of(ledger.rows.get, ME).number == 2
    assert incarnation_of(ledger.rows.get, NodeId(key("lab").public)) == NEVER


@pytest.mark.parametrize("number", [0, 1, 3])
def test_only_the_next_number_counts(ledger: Ledger, number: int) -> None:
    ledger.verdict(rejoin(ledger, 1), "clinic")
    before = dict(ledger.rows)

    verdict = ledger.verdict(rejoin(ledger, number, bytes([7]) * 32), "clinic")

    assert verdict == "refused: the next incarnation is 2"
    assert incarnation_of(ledger.rows.get, ME) == incarnation_of(before.get, ME)


@pytest.mark.parametrize("signer", ["hospital", "stranger"])
def test_nobody_begins_anew_for_another(ledger: Ledger, signer: str) -> None:
    assert ledger.verdict(rejoin(ledger, 1), signer) == "refused: signed by the wrong keys"
    assert ledger.verdict(rejoin(ledger, 1), "clinic") == "accepted", "its id was not used up"


def test_a_stranger_has_nothing_to_begin_anew(ledger: Ledger) -> None:
    stranger = Rejoin(NodeId(key("stranger").public), 1, bytes(32), ledger.soon)

    assert ledger.verdict(stranger, "stranger") == "refused: signed by the wrong keys"


def of_roles(voters: int, witnesses: int, min_b: int = 0) -> Configuration:
    members = [member(f"v{n}") for n in range(voters)] + [
        member(f"w{n}", "witness") for n in range(witnesses)
    ]
    genesis = configuration("hospital")
    return replace(genesis, members=tuple(sorted(members, key=lambda one: one.node)), min_b=min_b)


@pytest.mark.parametrize(
    ("voters", "witnesses", "min_b", "expected"),
    [
        (1, 0, 0, False),
        (2, 0, 0, False),
        (3, 0, 0, True),
        (4, 0, 0, True),
        (4, 0, 2, False),
        (7, 0, 0, True),
        (2, 1, 0, False),
        (3, 1, 0, True),
    ],
)
def test_whether_the_others_can_do_without_a_voter(
    voters: int, witnesses: int, min_b: int, expected: bool
) -> None:
    made = of_roles(voters, witnesses, min_b)

    assert can_rejoin(made, made.voters[0]) is expected


def test_a_witness_is_missed_by_the_certificate_alone() -> None:
    made = of_roles(2, 1)

    assert can_rejoin(made, made.witnesses[0]) is True


@pytest.mark.parametrize(
    ("voters", "witnesses", "me", "connected", "can"),
    [
        (3, 0, "v0", ["v1", "v2"], True),
        (3, 0, "v0", ["v1"], False),
        (2, 0, "v0", ["v1"], True),
        (2, 0, "v0", [], False),
        (1, 0, "v0", [], False),
        (5, 0, "v0", ["v1", "v2", "v3", "v4"], True),
        (5, 0, "v0", ["v1", "v2", "v3"], False),
        (3, 1, "w0", ["v0", "v1"], False),
        (3, 1, "w0", ["v0", "v1", "v2"], True),
        (3, 0, "observer", ["v1"], True),
        (3, 0, "observer", ["another observer"], False),
    ],
)
def test_who_has_lost_its_ledger_comes_back_with_enough_others(
    voters: int, witnesses: int, me: str, connected: list[str], can: bool
) -> None:
    nodes = [NodeId(key(name).public) for name in connected]

    assert can_return_with(of_roles(voters, witnesses), NodeId(key(me).public), nodes) is can
