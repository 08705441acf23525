"""A voter whose own clock was wrong follows again when it has been put right (ledger.md 1.1, Time)."""

from protocol.limits import CLOCK_AHEAD_HOLD_TICKS_MAX, CLOCK_AHEAD_MS_MAX, HEARTBEAT_TICKS, TICK_MS
from protocol.raft.messages import AppendEntries
from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster

LAGGING = 3
PATIENCE = CLOCK_AHEAD_HOLD_TICKS_MAX + 20


def given_up(*, behind_ms: int) -> Cluster:
    """Return a cluster in which voter 3 has given up its leader, because its own clock is that far behind."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.skew_ms[LAGGING] = -behind_ms
    cluster.propose(1)
    cluster.run(PATIENCE)
    assert cluster.rafts[LAGGING].leader is None
    return cluster


def test_a_voter_whose_clock_was_behind_follows_the_same_leader_once_it_is_put_right() -> None:
    cluster = given_up(behind_ms=3_600_000)
    term = cluster.rafts[1].term

    cluster.skew_ms[LAGGING] = 0
    cluster.run(10)

    assert cluster.rafts[LAGGING].leader == cluster.node(1)
    assert cluster.led()
    assert cluster.rafts[1].term == term


def test_a_voter_follows_again_when_its_clock_has_caught_up_by_itself() -> None:
    behind_ms = CLOCK_AHEAD_MS_MAX + 2 * PATIENCE * TICK_MS
    cluster = given_up(behind_ms=behind_ms)

    cluster.run(behind_ms // TICK_MS)

    assert cluster.rafts[LAGGING].leader == cluster.node(1)
    assert cluster.led()


def test_a_voter_whose_clock_stays_behind_goes_on_without_the_leader_and_disturbs_nobody() -> None:
    cluster = given_up(behind_ms=3_600_000)
    term = cluster.rafts[1].term

    cluster.propose(1)
    cluster.run(PATIENCE)

    assert cluster.rafts[LAGGING].leader is None
    assert cluster.role(1) is Role.LEADER
    assert cluster.rafts[1].term == term


def test_a_leader_that_broke_another_rule_stays_dead_whatever_the_clock_says() -> None:
    cluster = given_up(behind_ms=3_600_000)
    raft = cluster.rafts[LAGGING]
    # What a driver says when a block's body does not hold: the leader of the term, dead for its clock, is now dead for good.
    raft.distrust(cluster.node(1))

    cluster.skew_ms[LAGGING] = 0
    cluster.run(10)

    assert raft.leader is None


def test_blocks_that_a_voter_holds_for_its_clock_are_not_sent_to_it_over_and_over() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.skew_ms[LAGGING] = -3_600_000
    for _ in range(20):
        cluster.propose(1)
        cluster.run(1)
    before = len(cluster.sent(AppendEntries, 1, LAGGING))

    # Within the time that it waits for either clock to be put right.
    cluster.run(40)

    frames = cluster.sent(AppendEntries, 1, LAGGING)[before:]
    assert len(frames) <= 40 // HEARTBEAT_TICKS + 1
    assert not any(frame.blocks for frame in frames)


def test_held_blocks_are_taken_as_soon_as_the_clock_is_put_right() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.skew_ms[LAGGING] = -3_600_000
    for _ in range(20):
        cluster.propose(1)
        cluster.run(1)

    cluster.skew_ms[LAGGING] = 0
    cluster.run(2 * HEARTBEAT_TICKS)

    assert cluster.led()


def test_time_a_block_too_far_ahead_of_the_clock_is_not_acknowledged_until_it_is_not() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.skew_ms[1] = CLOCK_AHEAD_MS_MAX + 1000
    height = cluster.propose(1)
    cluster.settle()
    assert cluster.rafts[1].commit_height < height
    cluster.run(40)  # two seconds later it lies within the bound
    assert {raft.commit_height for raft in cluster.rafts.values()} == {height}
    assert cluster.leaders == [1]


def test_time_a_leader_whose_clock_stays_ahead_is_replaced() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.skew_ms[1] = 3_600_000
    height = cluster.propose(1)
    lost = cluster.rafts[1]._voter.log.hash(height)
    cluster.run_until(lambda: any(n != 1 for n in cluster.leaders), 300)
    cluster.run(10)
    assert cluster.chain.get(height) != lost
