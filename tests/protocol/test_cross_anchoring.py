"""Other networks' headers on our ledger: each member's own record, which never goes back."""

import re
from dataclasses import replace

import pytest

from protocol import codec, limits, signing, transaction
from protocol.cross_anchoring import ForeignCheckpoint, ForeignHeads, foreign_key
from protocol.identifiers import Digest, Height, NetworkId, NodeId
from protocol.ledger_rows import ACCEPTED
from tests.protocol import ledgers
from tests.protocol.ledgers import NOW, Ledger, key, named

OTHER = NetworkId(named("other network"))
GOLDEN_BYTES = "f4dfb320996d8af0d2443cd1e6b8cac2cf5c98747fa96aa811f3abd9ac6c37ef"
GOLDEN_TXID = "1726f876643a39c40b49f250f3b8280c0fce4f3bcc358d7843e2140fb3d0b401"


def checkpoint(
    height: int, *, member: str = "a", foreign: bytes = OTHER, size: int | None = None
) -> ForeignCheckpoint:
    return ForeignCheckpoint(
        NodeId(key(member).public),
        NetworkId(foreign),
        0,
        Height(height),
        height * 3 if size is None else size,
        Digest(named(f"root {height}")),
        Digest(named(f"header {height}")),
        NOW + 3_600_000,
    )


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(ledgers.configuration("a", "b", "c"))


def verdict(ledger: Ledger, body: ForeignCheckpoint, by: str = "a") -> str:
    return ledger.verdict(body, by)


def heads(ledger: Ledger, member: str = "a") -> ForeignHeads:
    return codec.decode(ledger.rows[foreign_key(NodeId(key(member).public))], ForeignHeads)


def test_a_member_records_another_network_and_goes_on(ledger):
    assert verdict(ledger, checkpoint(5)) == ACCEPTED
    assert verdict(ledger, checkpoint(9)) == ACCEPTED

    (head,) = heads(ledger).heads
    assert (head.foreign, head.height, head.header_hash) == (OTHER, 9, named("header 9"))
    assert head.time_ms >= NOW


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (checkpoint(4), "goes back"),
        (checkpoint(8, size=14), "goes back"),
        (
            replace(checkpoint(5), header_hash=Digest(named("another"))),
            "contradicts what the member recorded of that height",
        ),
        (replace(checkpoint(7, size=15), tree_root=Digest(named("another"))), "contradicts .* of that tree"),
        (replace(checkpoint(5), valid_until_ms=NOW + 7_200_000), "on record already"),
    ],
)
def test_what_goes_back_or_contradicts_is_refused(body, reason, ledger):
    assert verdict(ledger, checkpoint(5)) == ACCEPTED
    before = heads(ledger)

    assert re.search(f"^refused: .*{reason}", verdict(ledger, body))
    assert heads(ledger) == before


def test_members_record_each_for_itself(ledger):
    """A member that lies about a height cannot keep the others from recording the true one."""
    assert verdict(ledger, checkpoint(2**60, member="b", size=2**60), "b") == ACCEPTED
    assert verdict(ledger, checkpoint(5)) == ACCEPTED
    assert heads(ledger, "b").heads[0].height == 2**60


def test_nobody_records_for_another(ledger):
    assert verdict(ledger, checkpoint(5), by="b") == "refused: signed by the wrong keys"
    assert verdict(ledger, checkpoint(5, member="stranger"), by="stranger").startswith("refused: ")


def test_our_own_network_is_no_other(ledger):
    assert "this network itself" in verdict(ledger, checkpoint(5, foreign=ledger.network))


def test_a_member_records_so_many_networks_and_no_more(ledger):
    for n in range(limits.FOREIGN_NETWORKS_MAX):
        assert verdict(ledger, checkpoint(1, foreign=named(f"network {n}"))) == ACCEPTED

    assert "more than" in verdict(ledger, checkpoint(1, foreign=named("one more")))
    assert verdict(ledger, checkpoint(2, foreign=named("network 3"))) == ACCEPTED
    kept = [one.foreign for one in heads(ledger).heads]
    assert kept == sorted(kept)


def test_its_bytes_and_its_id_are_golden():
    raw = codec.encode(checkpoint(5))

    assert codec.decode(raw, ForeignCheckpoint) == checkpoint(5)
    assert signing.sha256(raw).hex() == GOLDEN_BYTES
    assert transaction.txid_of(checkpoint(5), NetworkId(bytes(32))).hex() == GOLDEN_TXID
