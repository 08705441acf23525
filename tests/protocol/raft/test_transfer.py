"""Scenario 44 of ledger.md 3.1: leadership transfer (Raft thesis §3.10; hashicorp/raft #696) completes or times out."""

import pytest

from protocol import limits
from protocol.errors import NotLeader, Refused, Unavailable
from protocol.identifiers import ZERO, NodeId, Term
from protocol.raft.messages import AppendEntries, PreVote, RequestVote, TimeoutNow
from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster


def led_by_1(count: int = 3) -> Cluster:
    cluster = Cluster(count)
    cluster.elect(1)
    cluster.run(2)
    return cluster


def transfer(cluster: Cluster, target: int) -> None:
    cluster.rafts[1].transfer_leadership(cluster.node(target))


def test_44_a_transfer_to_an_up_to_date_voter_completes_without_a_time_out_and_writes_resume():
    cluster = led_by_1()
    transfer(cluster, 2)
    cluster.settle()
    assert cluster.leaders == [2]
    height = cluster.propose(2)
    cluster.settle()
    assert {raft.commit_height for raft in cluster.rafts.values()} == {height}


def test_44_the_successor_asks_for_votes_without_pre_vote_and_the_lease_of_the_leader_does_not_stop_it():
    cluster = led_by_1()
    before = len(cluster.sent(PreVote))
    transfer(cluster, 3)
    cluster.settle()
    assert [request.transfer for request in cluster.sent(RequestVote, 3)] == [True, True]
    assert len(cluster.sent(PreVote)) == before
    assert cluster.rafts[1].role is Role.FOLLOWER


def test_44_a_transfer_to_a_lagging_voter_brings_it_up_to_date_first():
    cluster = led_by_1()
    cluster.partition((1, 2), (3,))
    for _ in range(100):
        cluster.propose(1)
        cluster.settle()
    cluster.heal()
    transfer(cluster, 3)
    cluster.run_until(lambda: cluster.leaders == [3], limits.ELECTION_TICKS_MIN)
    assert cluster.rafts[3].tip_height == 102
    frames = [message for _, _, message in cluster.trace if isinstance(message, AppendEntries | TimeoutNow)]
    call = next(at for at, message in enumerate(frames) if isinstance(message, TimeoutNow))
    assert any(isinstance(frame, AppendEntries) and frame.prev_height + len(frame.blocks) == 101 for frame in frames[:call])  # fmt: skip


def test_44_no_block_is_cut_while_the_leadership_is_handed_over():
    cluster = led_by_1()
    cluster.crash(2)
    transfer(cluster, 2)
    assert not cluster.rafts[1].may_propose
    with pytest.raises(Unavailable, match="handed over"):
        cluster.propose(1)


@pytest.mark.parametrize("dead", ["crashed", "deaf"])
def test_44_a_transfer_to_a_dead_voter_times_out_and_writes_resume(dead):
    cluster = led_by_1()
    if dead == "crashed":
        cluster.crash(2)
    else:
        cluster.filter = lambda source, target, message: not isinstance(message, TimeoutNow)
    transfer(cluster, 2)
    cluster.run(limits.ELECTION_TICKS_MIN)
    assert cluster.leaders == [1]
    assert cluster.rafts[1].successor is None
    height = cluster.propose(1)
    cluster.settle()
    assert cluster.rafts[1].commit_height == cluster.rafts[3].commit_height == height


def test_44_a_lost_call_is_repeated_with_the_next_heartbeat():
    cluster = led_by_1()
    cluster.cut = {(1, 2)}
    transfer(cluster, 2)
    cluster.settle()
    cluster.heal()
    cluster.run_until(lambda: cluster.leaders == [2], 2 * limits.HEARTBEAT_TICKS)
    assert len(cluster.sent(TimeoutNow)) == 2


def test_44_a_transfer_to_a_member_that_does_not_vote_is_refused_and_changes_nothing():
    cluster = led_by_1()
    with pytest.raises(Refused):
        cluster.rafts[1].transfer_leadership(NodeId(ZERO))
    assert cluster.rafts[1].may_propose


def test_44_a_transfer_to_itself_changes_nothing_and_ends_one_under_way():
    cluster = led_by_1()
    cluster.crash(2)
    transfer(cluster, 2)
    transfer(cluster, 1)
    assert cluster.rafts[1].may_propose
    cluster.settle()
    assert cluster.leaders == [1]
    assert cluster.sent(TimeoutNow) == []


def test_44_asking_twice_does_not_extend_the_time_out():
    cluster = led_by_1()
    cluster.crash(2)
    transfer(cluster, 2)
    cluster.run(limits.ELECTION_TICKS_MIN - 1)
    transfer(cluster, 2)
    cluster.run(1)
    assert cluster.rafts[1].may_propose


def test_44_a_second_transfer_to_another_voter_replaces_the_first():
    cluster = led_by_1()
    cluster.crash(2)
    transfer(cluster, 2)
    cluster.run(2)
    transfer(cluster, 3)
    cluster.settle()
    assert cluster.leaders == [3]


def test_44_a_leader_interrupted_in_a_transfer_and_elected_again_takes_writes():
    """hashicorp/raft #696: the mark "transfer in progress" outlived the leadership, and writes were refused for ever."""
    cluster = led_by_1()
    cluster.filter = lambda source, target, message: not isinstance(message, TimeoutNow)
    transfer(cluster, 2)
    cluster.settle()
    cluster.rafts[1]._become_follower()
    cluster.elect(1)
    height = cluster.propose(1)
    cluster.settle()
    assert cluster.rafts[1].commit_height == height


def test_44_a_leader_cut_off_in_a_transfer_steps_down_and_takes_writes_when_it_leads_again():
    cluster = led_by_1()
    cluster.partition((1,), (2, 3))
    transfer(cluster, 2)
    cluster.run(2 * limits.ELECTION_TICKS_MAX)
    assert cluster.role(1) is not Role.LEADER
    cluster.heal()
    cluster.run_until(cluster.led)
    cluster.elect(1)
    assert cluster.rafts[1].may_propose


def test_44_a_call_of_another_term_or_of_somebody_else_starts_no_election():
    cluster = led_by_1()
    term = cluster.rafts[2].term
    for sender, named in ((1, Term(term - 1)), (1, Term(term + 1)), (3, term)):
        cluster.step(sender, 2, TimeoutNow(named, cluster.node(sender)))
    assert cluster.rafts[2].role is Role.FOLLOWER
    assert cluster.rafts[2].term == term


def test_44_a_follower_cannot_hand_over():
    cluster = led_by_1()
    with pytest.raises(NotLeader):
        cluster.rafts[2].transfer_leadership(cluster.node(3))


def test_44_with_one_voter_down_a_transfer_completes_by_the_votes_of_the_two():
    cluster = led_by_1()
    cluster.crash(3)
    transfer(cluster, 2)
    cluster.settle()
    assert cluster.leaders == [2]
    assert cluster.rafts[1].role is Role.FOLLOWER
