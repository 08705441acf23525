import hashlib
from collections.abc import Iterator, Sequence
from itertools import combinations

import pytest

from protocol import chunk_exchange as exchange
from protocol import placement
from protocol.errors import Invalid
from protocol.identifiers import Cid, NetworkId, NodeId
from protocol.signing import SigningKey

NETWORK = NetworkId(b"n" * 32)
KEYS = sorted((SigningKey(bytes([number]) * 32) for number in range(5)), key=lambda key: key.public)
STORING = tuple(NodeId(key.public) for key in KEYS)
CIDS = tuple(Cid(hashlib.sha256(bytes([number])).digest()) for number in range(40))


def placed(members: int = 5, replicas: int = 3) -> exchange.PlacedChunks:
    return exchange.PlacedChunks(CIDS, STORING[0], min(replicas, members))


def receipts(
    record: exchange.PlacedChunks, *indexes: int, storing=STORING
) -> tuple[exchange.StorageReceipt, ...]:
    shares = record.holders(storing)
    return tuple(exchange.storage_receipt(shares[STORING[i]], KEYS[i], NETWORK) for i in indexes)


def powerset(members: Sequence[NodeId]) -> Iterator[tuple[NodeId, ...]]:
    for count in range(len(members) + 1):
        yield from combinations(members, count)


def test_the_author_and_one_other_are_enough_where_everybody_stores_everything():
    record = placed(3)

    exchange.check_confirmed(record, receipts(record, 0, 2, storing=STORING[:3]), STORING[:3], NETWORK)

    assert record.holders(STORING[:3]) == dict.fromkeys(STORING[:3], CIDS)


def test_every_chunk_needs_its_own_second_replica_where_members_store_a_part():
    record = placed()

    with pytest.raises(Invalid, match="too few"):
        exchange.check_confirmed(record, receipts(record, 0, 1), STORING, NETWORK)
    exchange.check_confirmed(record, receipts(record, 0, 1, 2, 3, 4), STORING, NETWORK)

    assert set(record.share_of(STORING[0], STORING)) == set(CIDS)
    assert sum(len(share) for share in record.holders(STORING).values()) == 3 * len(CIDS)


def test_a_receipt_for_other_chunks_or_of_another_member_does_not_count():
    record = placed(3)
    good, other = receipts(record, 0, 1, storing=STORING[:3])
    stolen = exchange.StorageReceipt(STORING[2], other.root, other.signature)
    short = exchange.storage_receipt(CIDS[1:], KEYS[1], NETWORK)

    for bad in (stolen, short):
        with pytest.raises(Invalid):
            exchange.check_confirmed(record, (good, bad), STORING[:3], NETWORK)
    with pytest.raises(Invalid, match="two storage receipts"):
        exchange.check_confirmed(record, (good, good), STORING[:3], NETWORK)


def test_a_receipt_counts_in_its_own_network_only():
    receipt = exchange.storage_receipt(CIDS, KEYS[0], NETWORK)

    exchange.check_storage_receipt(receipt, CIDS, NETWORK)
    with pytest.raises(Invalid):
        exchange.check_storage_receipt(receipt, CIDS, NetworkId(b"m" * 32))


@pytest.mark.parametrize("members", [3, 5])
def test_the_sets_of_replicas_say_what_every_chunk_would(members: int):
    record, storing = placed(members), STORING[:members]
    needed = placement.confirmations_needed(storing, record.replicas)
    sets = record.replica_sets(storing)

    for confirmed in map(frozenset, powerset(storing)):
        by_sets = all(len(confirmed & replicas) >= needed for replicas in sets)
        assert by_sets == (not exchange.unconfirmed(record, confirmed, storing))
    assert len(sets) <= 6
