"""The log: frontiers, durability marks, bounded cache."""

import pytest

from protocol import block, limits
from protocol.errors import LocalFault
from protocol.identifiers import Height, Term
from protocol.merkle import Frontier
from protocol.raft.log import Log
from tests.protocol.raft.cluster import START_MS, Cluster
from tests.protocol.raft.members import key_of


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(1)


def extend(log: Log, count: int, *, term: int = 1, transactions: tuple[bytes, ...] = ()) -> None:
    for _ in range(count):
        log.append(
            block.cut(
                transactions,
                predecessor=log.tip,
                predecessor_hash=log.tip_hash,
                frontier=log.frontier(log.tip_height),
                term=Term(term),
                key=key_of(1),
                now_ms=START_MS,
            )
        )


def log_of(cluster: Cluster, count: int = 0) -> Log:
    log = Log(cluster.disks[1], Height(0), Frontier())
    extend(log, count)
    return log


def test_every_block_is_cut_upon_the_frontier_of_the_ones_before(cluster):
    log = log_of(cluster)
    extend(log, 1, transactions=(b"a", b"b", b"c"))
    extend(log, 1, transactions=(b"d",))
    assert log.frontier(Height(2)).size == 4
    assert log.header(Height(2)).tree_size == 3
    log.certify(Height(1))
    assert log.frontier(Height(1)).size == 3
    assert log.uncommitted_count == 1
    assert log.uncertified_bytes == len(log.block(Height(2)).raw)


def test_a_batch_counts_as_durable_only_after_it_was_marked(cluster):
    log = log_of(cluster, 3)
    truncate_from, blocks = log.take_unpersisted()
    assert (truncate_from, len(blocks), log.persisted) == (None, 3, 0)
    assert log.take_unpersisted() == (None, ())
    log.mark_persisted(blocks)
    assert log.persisted == 3


def test_27_a_write_that_ends_after_its_heights_were_rewritten_does_not_count(cluster):
    """The "async append ABA" of etcd's trace tests."""
    log = log_of(cluster, 3)
    _, first = log.take_unpersisted()
    log.truncate_from(Height(2))
    extend(log, 2, term=2)
    log.mark_persisted(first)
    assert log.persisted == 1
    truncate_from, second = log.take_unpersisted()
    assert truncate_from == 2
    assert [entry.term for entry in second] == [2, 2]
    log.mark_persisted(second)
    assert log.persisted == 3


def test_what_is_truncated_is_no_longer_durable(cluster):
    log = log_of(cluster, 3)
    log.mark_persisted(log.take_unpersisted()[1])
    log.truncate_from(Height(2))
    assert (log.persisted, log.tip_height) == (1, 1)
    extend(log, 1, term=2)
    assert log.persisted == 1


def test_a_truncation_of_what_was_never_written_is_not_the_disks_business(cluster):
    log = log_of(cluster, 3)
    log.truncate_from(Height(2))
    truncate_from, blocks = log.take_unpersisted()
    assert truncate_from is None
    assert [entry.height for entry in blocks] == [1]


def test_two_truncations_before_one_write_are_one_from_the_lower_height(cluster):
    log = log_of(cluster, 4)
    log.take_unpersisted()
    log.truncate_from(Height(2))
    extend(log, 3, term=2)
    log.truncate_from(Height(3))
    truncate_from, blocks = log.take_unpersisted()
    assert truncate_from == 2
    assert [entry.height for entry in blocks] == [2]


def test_certified_blocks_are_never_truncated(cluster):
    log = log_of(cluster, 3)
    log.certify(Height(2))
    with pytest.raises(LocalFault):
        log.truncate_from(Height(2))
    log.truncate_from(Height(3))
    assert log.tip_height == 2


def test_what_is_only_ordered_is_truncated_for_a_certificate_and_not_ordered_any_more(cluster):
    log = log_of(cluster, 3)
    log.commit(Height(3))
    log.truncate_from(Height(2))
    assert (log.committed, log.certified, log.tip_height) == (1, 0, 1)


def test_what_is_certified_is_ordered(cluster):
    log = log_of(cluster, 3)
    log.certify(Height(2))
    assert (log.committed, log.certified, log.uncertified_count) == (2, 2, 1)


def test_heights_above_the_tip_are_our_own_mistake(cluster):
    log = log_of(cluster, 1)
    with pytest.raises(LocalFault):
        log.header(Height(2))


def test_the_cache_is_bounded_and_older_blocks_are_read_back(cluster, monkeypatch):
    monkeypatch.setattr(limits, "LOG_CACHE_BYTES_MAX", 5_000)
    log = log_of(cluster)
    disk = cluster.disks[1]
    for height in range(1, 41):
        extend(log, 1, transactions=(b"%d" % height * 100,))
        _, blocks = log.take_unpersisted()
        disk.blocks[height] = blocks[0]
        log.mark_persisted(blocks)
        log.certify(Height(height))
    assert log._bytes <= 5_000
    assert len(log._entries) < 20
    assert log.block(Height(1)) == disk.blocks[1]
    assert log.hash(Height(3)) == disk.blocks[3].hash


def test_a_log_restarts_from_its_certified_height_and_durable_tail(cluster):
    log = log_of(cluster, 5)
    disk = cluster.disks[1]
    disk.blocks.update({height: log.block(Height(height)) for height in range(1, 6)})
    again = Log(disk, Height(3), log.frontier(Height(3)), [disk.blocks[4], disk.blocks[5]])
    assert (again.certified, again.persisted, again.tip_height, again.tip_hash) == (3, 5, 5, log.tip_hash)
    assert again.frontier(Height(5)) == log.frontier(Height(5))
    assert again.take_unpersisted() == (None, ())


def test_34_what_is_truncated_no_longer_counts_against_the_bound(cluster):
    log = log_of(cluster, 3)
    log.truncate_from(Height(2))
    assert log.uncertified_bytes == len(log.block(Height(1)).raw)
    assert log.uncommitted_count == 1


def test_26_what_is_certified_and_not_written_yet_stays_in_memory(cluster, monkeypatch):
    """Others may commit what the own disk has not got yet: it is nowhere else (thesis §10.2.1)."""
    monkeypatch.setattr(limits, "LOG_CACHE_BYTES_MAX", 1)
    log = log_of(cluster, 3)
    log.certify(Height(3))
    _, blocks = log.take_unpersisted()
    assert [block.height for block in blocks] == [1, 2, 3]
    assert log.block(Height(1)) == blocks[0]
