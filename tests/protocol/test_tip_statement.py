"""Tip statements: their bytes, their signature, and which of two processes is the later one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from protocol import codec
from protocol.identifiers import Height, NetworkId
from protocol.tip_statement import Farewell, Presence, Session, TipStatement, state_tip, tip_valid
from tests.protocol.chain import NETWORK, NOW_MS, VOTERS, filled

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "tip_statement.json").read_text())


def stated() -> TipStatement:
    return state_tip(
        VOTERS[0], NETWORK, Session(2, 5, filled("nonce")), epoch=1, certified_height=Height(70),
        vote_height=Height(72), vote_hash=filled("block 72"), time_ms=NOW_MS,
    )  # fmt: skip


def test_it_has_its_golden_bytes() -> None:
    assert codec.encode(stated()).hex() == VECTORS["statement"]
    assert codec.decode(bytes.fromhex(VECTORS["statement"]), TipStatement) == stated()
    assert codec.encode(Farewell(filled("nonce"))).hex() == VECTORS["farewell"]
    assert codec.encode(Presence(filled("nonce"))).hex() == VECTORS["presence"]


def test_its_signature_holds_for_all_of_it_and_for_one_network() -> None:
    statement = stated()
    assert tip_valid(statement, NETWORK)
    assert not tip_valid(statement, NetworkId(bytes(32)))
    for field in dataclasses.fields(statement):
        value = getattr(statement, field.name)
        changed: Any = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
        assert not tip_valid(dataclasses.replace(statement, **{field.name: changed}), NETWORK), field.name


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (Session(0, 9, b"z"), Session(1, 1, b"a")),
        (Session(1, 1, b"z"), Session(1, 2, b"a")),
        (Session(1, 2, b"a"), Session(1, 2, b"b")),
    ],
)
def test_a_higher_incarnation_is_later_then_a_higher_start_then_a_higher_nonce(
    earlier: Session, later: Session
) -> None:
    assert earlier < later
    assert stated().of == Session(2, 5, filled("nonce"))
