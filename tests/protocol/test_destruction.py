import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec
from protocol.destruction import Attestation, attest, check_attestation
from protocol.errors import Invalid
from protocol.identifiers import NetworkId, NodeId, Rid, Txid
from tests.protocol.ledgers import key, named

NETWORK, RID, TXID = NetworkId(named("network")), Rid(named("rid")), Txid(named("erase"))
HOLDER = key("holder")
NODE = NodeId(HOLDER.public)
VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "destruction.json").read_text())
WORD = attest(HOLDER, NETWORK, RID, TXID, chunks=3, shared=1, time_ms=1_700_000_000_000)


def test_a_members_word_is_its_own_and_travels() -> None:
    received = codec.decode(codec.encode(WORD), Attestation)

    check_attestation(received, NETWORK, node=NODE, rid=RID, txid=TXID)
    assert (received.chunks, received.shared) == (3, 1)
    assert codec.encode(WORD).hex() == VECTORS["attestation"]


@pytest.mark.parametrize(
    "changes",
    [{"chunks": 4}, {"shared": 0}, {"time_ms": 1}, {"signature": bytes(64)}, {"rid": named("x")}, {"txid": named("x")}],
)  # fmt: skip
def test_a_changed_word_is_nobodys(changes: dict[str, int | bytes]) -> None:
    with pytest.raises(Invalid):
        check_attestation(replace(WORD, **changes), NETWORK, node=NODE, rid=RID, txid=TXID)  # type: ignore[arg-type]


def test_a_word_is_not_another_members_nor_of_another_network() -> None:
    other = NodeId(key("other").public)

    with pytest.raises(Invalid):
        check_attestation(WORD, NETWORK, node=other, rid=RID, txid=TXID)
    with pytest.raises(Invalid):
        check_attestation(replace(WORD, node=other), NETWORK, node=other, rid=RID, txid=TXID)
    with pytest.raises(Invalid):
        check_attestation(WORD, NetworkId(named("elsewhere")), node=NODE, rid=RID, txid=TXID)


@pytest.mark.parametrize("time_ms", [2**62, 253_402_300_800_000])
def test_a_word_of_a_time_that_no_calendar_has_is_refused(time_ms: int) -> None:
    word = attest(HOLDER, NETWORK, RID, TXID, chunks=0, shared=0, time_ms=time_ms)

    with pytest.raises(Invalid, match="calendar"):
        check_attestation(word, NETWORK, node=NODE, rid=RID, txid=TXID)


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**47))
def test_whatever_was_deleted_can_be_attested(chunks: int, shared: int, time_ms: int) -> None:
    word = attest(HOLDER, NETWORK, RID, TXID, chunks=chunks, shared=shared, time_ms=time_ms)

    check_attestation(word, NETWORK, node=NODE, rid=RID, txid=TXID)
    assert word.node == NODE
