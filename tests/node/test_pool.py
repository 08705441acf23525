import pytest

from node.pool import Pool
from protocol import codec, limits
from protocol.errors import Unavailable
from protocol.identifiers import Height, Txid
from protocol.signing import sha256
from protocol.transaction import SignedTransaction
from tests.protocol.chain import signed as samples

SIGNED = codec.decode(samples()[0], SignedTransaction)


def txid(number: int) -> Txid:
    return Txid(sha256(number.to_bytes(8, "big")))


def filled(count: int, size: int = 10) -> Pool:
    pool = Pool()
    for number in range(count):
        pool.add(txid(number), bytes(size), SIGNED)
    return pool


def test_a_transaction_waits_once_however_often_it_is_added() -> None:
    pool = filled(3)
    pool.add(txid(1), bytes(10), SIGNED)
    entries, raw = pool.take()
    assert [one for _, one in entries] == [txid(0), txid(1), txid(2)]
    assert len(raw) == 3


def test_a_late_copy_of_what_was_ordered_is_not_taken_again() -> None:
    pool = filled(1)
    pool.ordered(Height(5), *pool.take())
    for height in (4, 5):
        pool.add(txid(0), bytes(10), SIGNED)
        assert len(pool) == 0
        pool.applied(Height(height))
    pool.add(txid(0), bytes(10), SIGNED)
    assert len(pool) == 0


def test_a_body_ordered_under_a_strangers_signature_does_not_keep_the_real_one_out() -> None:
    pool = Pool()
    pool.add(txid(0), b"signed by a stranger", SIGNED)
    pool.ordered(Height(5), *pool.take())
    pool.applied(Height(5))

    pool.add(txid(0), b"signed by the right key", SIGNED)

    assert len(pool) == 1


def test_the_pool_is_bounded_in_bytes_and_gives_the_room_back() -> None:
    pool = filled(limits.POOL_BYTES_MAX // limits.MIB, limits.MIB)
    with pytest.raises(Unavailable):
        pool.add(txid(10_000), b"x", SIGNED)
    pool.take()
    pool.add(txid(10_000), b"x", SIGNED)
    assert len(pool) == limits.POOL_BYTES_MAX // limits.MIB


def test_the_pool_is_bounded_in_number() -> None:
    pool = filled(limits.POOL_TRANSACTIONS_MAX, 1)
    with pytest.raises(Unavailable):
        pool.add(txid(limits.POOL_TRANSACTIONS_MAX), b"x", SIGNED)
    assert len(pool) == limits.POOL_TRANSACTIONS_MAX


def test_a_block_takes_at_most_its_number_and_its_bytes() -> None:
    assert len(filled(limits.BLOCK_TRANSACTIONS_MAX + 1).take()[0]) == limits.BLOCK_TRANSACTIONS_MAX
    sizes = [len(raw) for raw in filled(200, limits.TRANSACTION_BYTES_MAX).take()[1]]
    assert limits.BLOCK_BYTES_MAX - limits.TRANSACTION_BYTES_MAX < sum(sizes) <= limits.BLOCK_BYTES_MAX


def test_a_transaction_larger_than_a_block_does_not_block_the_pool() -> None:
    pool = Pool()
    pool.add(txid(0), bytes(limits.BLOCK_BYTES_MAX + 1), SIGNED)
    pool.add(txid(1), b"x", SIGNED)
    assert len(pool.take()[0]) == 1
    assert len(pool) == 1


def test_clear_forgets_what_waits_and_what_is_in_flight() -> None:
    pool = filled(4)
    pool.ordered(Height(1), *pool.take())
    pool.clear()
    pool.add(txid(0), bytes(10), SIGNED)
    assert len(pool) == 1


@pytest.mark.parametrize(("count", "size"), [(3, 10), (2_500, 10), (12, limits.BLOCK_BYTES_MAX // 3)])
def test_what_waits_goes_into_the_block_that_was_told_whatever_comes_behind_it(count: int, size: int) -> None:
    pool = filled(count, size)
    told = {number: pool.blocks_until(txid(number), at_most=10) for number in range(count)}
    for number in range(count, count + 5):
        pool.add(txid(number), bytes(size), SIGNED)
    blocks = 0
    while len(pool):
        blocks += 1
        entries, _ = pool.take()
        waited = {number for number in range(count) if txid(number) in {one for _, one in entries}}
        assert {told[number] for number in waited} <= {blocks}
    assert pool.blocks_until(txid(0), at_most=10) is None


def test_no_word_is_given_about_what_waits_too_far_back() -> None:
    pool = filled(9, limits.BLOCK_BYTES_MAX)
    assert [pool.blocks_until(txid(number), at_most=4) for number in (0, 3, 4, 8)] == [1, 4, None, None]
