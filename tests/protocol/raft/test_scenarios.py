"""The crash-fault scenarios of ledger.md 3.1 that the core alone can play, by number, with where each bug shipped."""

import itertools

import pytest

from protocol import codec, limits
from protocol.errors import Corruption, Invalid, Malformed, NotLeader, Unavailable
from protocol.raft.messages import AppendEntries, AppendReply, PreVote, PreVoteReply, RequestVote, VoteReply
from protocol.raft.state import HardState, Role
from tests.protocol.raft.cluster import Cluster


def commit_heights(cluster: Cluster) -> set[int]:
    return {raft.commit_height for raft in cluster.rafts.values()}


def test_01_figure_8_an_older_block_held_by_a_majority_is_not_committed_by_counting():
    cluster = Cluster(5)
    cluster.elect(1)
    cluster.partition((1, 2), (3, 4, 5))
    old = cluster.propose(1)
    cluster.settle()
    cluster.crash(1)
    cluster.start(1)
    cluster.heal()
    cluster.filter = lambda source, target, message: not isinstance(message, AppendEntries)
    cluster.elect(1)
    leader = cluster.rafts[1]
    for n in (2, 3):  # with the leader, a majority holds the old block now
        cluster.step(n, 1, cluster.acknowledgement(n, 1, old))
    cluster.drain(1)
    assert leader.commit_height < old
    for n in (2, 3):
        cluster.disks[n].blocks.update(
            {h: leader._voter.log.block(h) for h in (old, old + 1)}
        )  # they store them, too
        cluster.step(n, 1, cluster.acknowledgement(n, 1, old + 1))
    cluster.drain(1)
    assert leader.commit_height == old + 1


def test_02_a_new_leader_commits_the_older_tail_through_its_opening_without_any_client():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.filter = lambda source, target, message: not isinstance(message, AppendReply)
    height = cluster.propose(1)
    cluster.settle()
    assert commit_heights(cluster) == {1}
    cluster.crash(1)
    cluster.filter = lambda source, target, message: True
    cluster.elect(2)
    opening = cluster.rafts[2]._voter.log.block(height + 1)
    assert opening.opening
    assert not opening.transactions
    assert commit_heights(cluster) == {height + 1}


@pytest.mark.parametrize("count", [3, 4, 5])
def test_03_a_split_vote_is_resolved_by_randomised_time_outs(count):
    for seed in range(5):
        cluster = Cluster(count, seed)
        for raft in cluster.rafts.values():
            raft._start_election()  # all of them time out together
        cluster.run_until(lambda cluster=cluster: bool(cluster.leaders), 10 * limits.ELECTION_TICKS_MAX)
        assert cluster.rafts[cluster.leader()].term <= 6


def test_04_a_candidate_with_a_shorter_log_and_a_higher_term_is_not_elected_and_the_cluster_recovers():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1, 2), (3,))
    height = cluster.propose(1)
    cluster.settle()
    stale = cluster.rafts[3]
    for _ in range(4):  # it cannot, with PreVote; but suppose it has campaigned
        stale._become_follower()
        stale._campaign()
    cluster.heal()
    cluster.run_until(lambda: bool(cluster.leaders) and cluster.converged())
    assert cluster.leader() != 3
    assert cluster.rafts[3].commit_height > height


def request_of(cluster: Cluster, n: int) -> RequestVote:
    raft = cluster.rafts[n]
    raft._campaign()
    request = raft._election._request()
    raft._voter.outbox.clear()
    return request


@pytest.mark.parametrize("restart", [False, True])
def test_05_06_a_voter_grants_one_candidate_a_term_also_after_a_crash(restart):
    cluster = Cluster(3)
    first, second = request_of(cluster, 1), request_of(cluster, 2)
    assert first.term == second.term
    cluster.step(1, 3, first)
    cluster.drain(3)
    if restart:
        cluster.crash(3)
        cluster.start(3)
    cluster.step(2, 3, second)
    cluster.drain(3)
    replies = cluster.sent(VoteReply, 3)
    assert [reply.grant is not None for reply in replies] == [True, False]
    assert cluster.rafts[3].term == first.term


def test_07_a_torn_hard_state_is_refused_and_never_read_as_another():
    record = codec.encode(HardState.initial(epoch=3, incarnation=9))
    assert codec.decode(record, HardState) == HardState.initial(epoch=3, incarnation=9)
    for length in range(len(record)):
        with pytest.raises(Malformed):
            codec.decode(record[:length], HardState)


def test_08_a_node_that_was_cut_off_comes_back_without_raising_the_term_or_changing_the_leader():
    cluster = Cluster(3)
    cluster.elect(1)
    term = cluster.rafts[1].term
    cluster.partition((1, 2), (3,))
    cluster.run(5 * limits.ELECTION_TICKS_MAX)
    cluster.heal()
    cluster.run(limits.ELECTION_TICKS_MAX)
    assert {raft.term for raft in cluster.rafts.values()} == {term}
    assert cluster.leaders == [1]


def test_08_a_follower_that_hears_its_leader_refuses_pre_votes_and_ignores_requests_for_votes():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.run(2)
    tip = cluster.rafts[3]._voter.log.tip
    cluster.step(3, 2, PreVote(2, cluster.node(3), tip.term, tip.height))
    cluster.drain(2)
    assert not cluster.sent(PreVoteReply, 2)[-1].granted
    cluster.step(3, 2, request_of(cluster, 3))
    assert cluster.rafts[2].term == 1


def test_09_a_node_left_in_an_old_term_rises_when_its_pre_vote_is_refused():
    """etcd #8243: A in term 5, C in term 1, the leader dies; somebody must still win."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1, 2), (3,))
    for n in (2, 1, 2, 1):
        cluster.elect(n)
    assert cluster.rafts[3].term < cluster.rafts[2].term
    cluster.crash(1)
    cluster.heal()
    cluster.run_until(lambda: cluster.leaders == [2])
    assert cluster.rafts[3].term == cluster.rafts[2].term


def test_10_pre_votes_of_a_former_leader_do_not_keep_the_others_from_electing():
    """hashicorp/raft #609."""
    cluster = Cluster(3)
    cluster.elect(1)
    term = cluster.rafts[1].term
    cluster.partition((1,), (2, 3))
    tip = cluster.rafts[1]._voter.log.tip
    for _ in range(2 * limits.ELECTION_TICKS_MAX):
        for n in (2, 3):
            cluster.step(1, n, PreVote(term + 1, cluster.node(1), tip.term, tip.height))
        cluster.run(1)
    assert any(cluster.rafts[n].role is Role.LEADER for n in (2, 3))


def test_11_the_old_leader_is_elected_again_while_one_node_is_down():
    """hashicorp/raft #605: followers that still remember it as their leader refused its PreVote."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.crash(3)
    cluster.rafts[1]._become_follower()
    cluster.rafts[1]._start_election()
    cluster.settle()
    assert cluster.leaders == [1]


def test_13_14_an_isolated_leader_commits_nothing_steps_down_and_gives_up_its_tail():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1,), (2, 3))
    lost = cluster.propose(1)
    lost_hash = cluster.rafts[1]._voter.log.hash(lost)
    cluster.run(limits.ELECTION_TICKS_MIN + 1)
    assert cluster.rafts[1].role is not Role.LEADER
    assert cluster.rafts[1].commit_height < lost
    with pytest.raises(NotLeader):
        cluster.propose(1)
    cluster.run_until(lambda: bool(cluster.leaders))
    kept = cluster.propose(cluster.leader())
    cluster.heal()
    cluster.run_until(cluster.converged)
    assert cluster.rafts[1]._voter.log.hash(lost) != lost_hash
    assert commit_heights(cluster) == {kept}


def test_15_a_leader_that_sends_but_does_not_receive_steps_down():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut = {(2, 1), (3, 1)}
    cluster.run(limits.ELECTION_TICKS_MIN + 1)
    assert cluster.rafts[1].role is not Role.LEADER
    cluster.run_until(lambda: any(n != 1 for n in cluster.leaders))
    assert cluster.rafts[cluster.leader()].term > 1


def test_16_a_leader_that_receives_but_cannot_send_is_replaced():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut = {(1, 2), (1, 3)}
    cluster.run_until(lambda: any(n != 1 for n in cluster.leaders))
    cluster.run(4)
    assert cluster.leaders == [cluster.leader()]


def test_17_two_halves_joined_by_one_node_elect_a_leader_and_go_on():
    cluster = Cluster(5)
    left, right = (1, 2), (4, 5)
    cluster.cut = {pair for a, b in itertools.product(left, right) for pair in ((a, b), (b, a))}
    cluster.run_until(
        lambda: any(cluster.rafts[n].commit_height for n in cluster.leaders), 10 * limits.ELECTION_TICKS_MAX
    )
    height = cluster.propose(cluster.leader())
    cluster.run_until(lambda: max(commit_heights(cluster)) >= height, 10 * limits.ELECTION_TICKS_MAX)
    assert cluster.rafts[3].commit_height >= 1


def test_18_a_link_that_flaps_at_the_heartbeat_period_does_not_make_terms_grow():
    cluster = Cluster(3)
    cluster.elect(1)
    for at in range(10 * limits.ELECTION_TICKS_MAX):
        cluster.cut = (
            {(1, 3), (3, 1)} if at % (2 * limits.HEARTBEAT_TICKS) < limits.HEARTBEAT_TICKS else set()
        )
        cluster.run(1)
    assert {raft.term for raft in cluster.rafts.values()} == {1}


def test_19_every_message_may_come_twice_and_in_any_order():
    cluster = Cluster(3, seed=3)
    cluster.elect(1)
    for _ in range(20):
        cluster.propose(1)
        for n in cluster.keys:
            cluster.drain(n)
        cluster.wires += cluster.wires[:]
        cluster.random.shuffle(cluster.wires)
        cluster.settle()
    cluster.run(limits.ELECTION_TICKS_MIN)
    assert commit_heights(cluster) == {21}
    assert cluster.faults == []
    assert cluster.leaders == [1]


def test_20_an_acknowledgement_of_an_older_term_is_ignored():
    cluster = Cluster(3)
    cluster.elect(1)
    old = cluster.acknowledgement(2, 1, 1)
    cluster.elect(3)
    cluster.elect(1)
    cluster.partition((1,), (2,), (3,))
    height = cluster.propose(1)
    cluster.drain(1)
    before = cluster.rafts[1].commit_height
    cluster.step(2, 1, old)
    cluster.drain(1)
    assert cluster.rafts[1].commit_height == before < height


def test_21_a_stale_refusal_neither_moves_a_leader_below_the_match_nor_truncates_anything():
    """CCF #5991; openraft #1500."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1, 2), (3,))
    for _ in range(3):
        cluster.propose(1)
        cluster.settle()
    cluster.heal()
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    refusal = next(reply for reply in cluster.sent(AppendReply, 3, 1) if reply.refusal is not None)
    progress = cluster.rafts[1]._leadership._progress[cluster.node(3)]
    next_height = progress.next_height
    cluster.step(3, 1, refusal)
    assert progress.replicating
    assert progress.match_height == 4
    assert progress.next_height == next_height == 5
    cluster.settle()
    assert cluster.rafts[3].commit_height == 4


def test_22_a_short_frame_that_is_a_prefix_of_the_log_leaves_the_longer_tail():
    cluster = Cluster(3)
    cluster.elect(1)
    for _ in range(3):
        cluster.propose(1)
        cluster.settle()
    first = next(frame for frame in cluster.sent(AppendEntries, 1, 2) if frame.blocks)
    cluster.step(1, 2, first)
    cluster.drain(2)
    assert cluster.rafts[2].tip_height == 4
    assert cluster.sent(AppendReply, 2)[-1].ack.height == cluster.disks[2].hard_state.ack_height == 4
    assert max(cluster.disks[2].blocks) == 4


def test_23_a_conflicting_block_and_all_after_it_are_replaced():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1,), (2, 3))
    for _ in range(3):
        cluster.propose(1)
    cluster.drain(1)
    assert max(cluster.disks[1].blocks) == 4
    cluster.elect(2)
    cluster.heal()
    cluster.run(4)
    assert max(cluster.disks[1].blocks) == 2
    assert cluster.disks[1].blocks == cluster.disks[2].blocks


def test_24_many_divergent_terms_take_a_bounded_number_of_round_trips():
    cluster = Cluster(3)
    cluster.elect(1)
    for _ in range(6):  # 1 and 2 lead by turns, by the vote of 3, and nobody else gets their blocks
        for n in (2, 1):
            cluster.filter = lambda source, target, message: not isinstance(message, AppendEntries)
            cluster.elect(n)
            cluster.propose(n)
            cluster.settle()
    cluster.filter = lambda source, target, message: True
    assert cluster.rafts[1].uncommitted_count > 10
    assert cluster.rafts[2].uncommitted_count > 10
    refusals = len([reply for reply in cluster.sent(AppendReply) if reply.refusal])
    cluster.run_until(lambda: bool(cluster.leaders) and cluster.converged())
    refusals = len([reply for reply in cluster.sent(AppendReply) if reply.refusal]) - refusals
    assert refusals <= 2 * 2


def test_25_the_leaders_own_log_counts_only_where_it_is_durable():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1, 2), (3,))
    height = cluster.propose(1)
    cluster.drain(2)
    raft = cluster.rafts[1]
    ready = raft.ready()
    assert ready is not None
    cluster.disks[2].blocks[height] = ready.append[0]
    cluster.step(2, 1, cluster.acknowledgement(2, 1, height))
    assert raft.ready() is None or raft.commit_height < height
    assert raft.commit_height < height
    cluster.finish(1, ready)
    cluster.drain(1)
    assert raft.commit_height == height


def test_26_a_leader_that_crashes_before_its_own_write_has_no_block_and_the_others_commit_without_it():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.frozen.add(1)
    cluster.propose(1)
    cluster.drain(1)  # the first block waits for the disk …
    height = cluster.propose(1)
    cluster.drain(1)  # … and the frames of what follows leave all the same
    cluster.settle()
    assert [raft.commit_height for n, raft in sorted(cluster.rafts.items())] == [height] * 3
    cluster.crash(1)
    assert cluster.start(1).tip_height < height
    cluster.run_until(lambda: bool(cluster.leaders) and cluster.converged())
    assert min(commit_heights(cluster)) > height


def test_28_a_log_that_lost_an_acknowledged_block_is_not_voted_with():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1)
    cluster.settle()
    cluster.crash(2)
    disk = cluster.disks[2]
    disk.applied, disk.frontier = 0, type(disk.frontier)()
    del disk.blocks[2]
    with pytest.raises(Corruption):
        cluster.start(2)


def test_32_a_leader_whose_disk_stalls_keeps_its_heartbeats_and_its_leadership():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.frozen.add(1)
    height = cluster.propose(1)
    cluster.run(2 * limits.ELECTION_TICKS_MAX)
    assert cluster.leaders == [1]
    cluster.thaw(1)
    cluster.run(4)
    assert commit_heights(cluster) == {height}
    assert {raft.term for raft in cluster.rafts.values()} == {1}


def test_34_proposals_are_refused_when_too_much_is_uncommitted():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1,), (2,), (3,))
    for _ in range(limits.UNCOMMITTED_BLOCKS_MAX):
        assert cluster.rafts[1].may_propose
        cluster.propose(1)
    assert not cluster.rafts[1].may_propose
    with pytest.raises(Unavailable):
        cluster.propose(1)
    cluster.heal()
    cluster.run(4)
    assert commit_heights(cluster) == {limits.UNCOMMITTED_BLOCKS_MAX + 1}
    assert cluster.rafts[1].may_propose


def test_35_the_window_to_a_silent_follower_is_bounded_and_the_others_are_not_held_up():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut = {(3, 1)}
    before = len(cluster.sent(AppendEntries, 1, 3))
    for _ in range(40):
        cluster.propose(1)
        cluster.settle()
    frames = cluster.sent(AppendEntries, 1, 3)[before:]
    assert sum(bool(frame.blocks) for frame in frames) <= limits.IN_FLIGHT_APPENDS_MAX
    assert cluster.rafts[2].commit_height == 41
    cluster.heal()
    cluster.run_until(cluster.converged)
    assert cluster.rafts[3].commit_height == 41


def test_a_lost_frame_is_sent_again_after_a_bounded_time():
    cluster = Cluster(2)
    cluster.elect(1)
    cluster.cut = {(1, 2)}
    cluster.propose(1)
    cluster.settle()
    cluster.heal()
    ticks = cluster.run_until(cluster.converged)
    assert ticks <= 2 * limits.HEARTBEAT_TICKS


def test_decision_12_a_term_far_ahead_is_ignored():
    cluster = Cluster(3)
    cluster.elect(1)
    term = cluster.rafts[1].term
    cluster.step(2, 1, AppendReply(term + limits.TERM_AHEAD_MAX + 1, cluster.node(2), None, 0, None))
    assert cluster.leaders == [1]
    cluster.step(2, 1, AppendReply(term + limits.TERM_AHEAD_MAX, cluster.node(2), None, 0, None))
    assert cluster.leaders == []


def test_a_message_in_the_name_of_another_voter_is_refused():
    cluster = Cluster(3)
    with pytest.raises(Invalid):
        cluster.rafts[1].step(cluster.node(2), PreVote(1, cluster.node(3), 0, 0), cluster.now_ms)
