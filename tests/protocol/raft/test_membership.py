"""Voter changes one at a time, learners and leaving: scenarios 40 and 41 of ledger.md 3.1 (7.2; Raft thesis chapter 4)."""

from dataclasses import replace

import pytest

from protocol import limits
from protocol.configuration import change_fault
from protocol.errors import NotLeader, Refused, Unavailable
from protocol.identifiers import Height
from protocol.raft import replication
from protocol.raft.messages import AppendEntries, AppendReply, PreVote, TimeoutNow
from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster
from tests.protocol.raft.members import configuration_with


def led_by_1(count: int = 3, learners: tuple[int, ...] = (), spare: tuple[int, ...] = ()) -> Cluster:
    cluster = Cluster(count, learners=learners, spare=spare)
    cluster.elect(1)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    return cluster


def voters(cluster: Cluster, n: int) -> set[int]:
    return {cluster.number[node] for node in cluster.rafts[n].configuration.voters}


def commit_heights(cluster: Cluster) -> set[int]:
    return {raft.commit_height for raft in cluster.rafts.values()}


def without(cluster: Cluster, *kinds: type) -> None:
    cluster.filter = lambda source, target, message: not isinstance(message, kinds)


def everything(cluster: Cluster) -> None:
    cluster.filter = lambda source, target, message: True


# --- the mechanism (ledger.md 7.2) -------------------------------------------------------------------------------


def test_a_learner_receives_blocks_and_commits_and_is_never_counted():
    cluster = led_by_1(2, learners=(3,))
    height = cluster.propose(1)
    cluster.settle()
    assert cluster.rafts[3].commit_height == height
    cluster.crash(2)
    lost = cluster.propose(1)
    cluster.settle()
    assert cluster.rafts[3].tip_height == lost
    assert cluster.rafts[1].commit_height == height


def test_a_learner_never_campaigns_and_its_answers_hold_no_quorum():
    cluster = led_by_1(2, learners=(3,))
    cluster.crash(2)
    read = cluster.read(1)
    cluster.run(limits.ELECTION_TICKS_MIN + 1)
    assert cluster.role(1) is not Role.LEADER
    assert cluster.answers(1) == {read: None}
    cluster.crash(1)
    cluster.run(3 * limits.ELECTION_TICKS_MAX)
    assert cluster.rafts[3].role is Role.FOLLOWER
    assert cluster.sent(PreVote, 3) == []


def test_a_newcomer_becomes_a_learner_and_then_a_voter_that_counts():
    cluster = led_by_1(3, spare=(4,))
    cluster.change(1, n4="learner")
    cluster.settle()
    cluster.join(4)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    cluster.change(1, n4="voter")
    cluster.run(1)
    assert voters(cluster, 4) == {1, 2, 3, 4}
    cluster.crash(2)
    height = cluster.propose(1)
    cluster.settle()
    assert commit_heights(cluster) == {height}
    cluster.crash(4)
    cluster.propose(1)
    cluster.settle()
    assert cluster.rafts[1].commit_height == height  # two of four are no majority


@pytest.mark.parametrize(
    ("after", "fault"),
    [
        ({"1": "voter", "2": "voter", "3": "voter", "4": "learner", "5": "observer"}, None),
        ({"1": "voter", "2": "voter", "3": "voter", "4": "voter"}, None),
        ({"1": "voter", "2": "voter", "4": "learner"}, None),
        ({"1": "voter", "2": "learner", "3": "voter", "4": "learner"}, None),
        ({"1": "voter", "2": "voter", "3": "voter", "4": "learner"}, "nothing"),
        ({"1": "voter", "2": "voter", "3": "voter", "5": "voter"}, "learner first"),
        ({"1": "voter", "2": "voter", "4": "voter"}, "one voter"),
        ({"1": "voter"}, "one voter"),
        ({"2": "learner"}, "no voter"),
        ({"1": "voter", "2": "voter", "3": "emperor"}, "unknown role"),
    ],
)
def test_at_most_one_voter_changes_and_only_a_learner_is_promoted(after, fault):
    before = configuration_with(**{"1": "voter", "2": "voter", "3": "voter", "4": "learner"})
    text = change_fault(before, replace(configuration_with(**after), number=1))
    assert (text is None) if fault is None else (text is not None and fault in text)


def test_the_core_refuses_an_unlawful_change_and_a_follower_takes_none():
    cluster = led_by_1()
    with pytest.raises(Refused, match="one voter"):
        cluster.change(1, n2="", n3="")
    with pytest.raises(NotLeader):
        cluster.change(2, n3="")
    assert cluster.rafts[1].tip_height == 1


def test_voters_refuse_the_unlawful_change_of_a_lying_leader(monkeypatch):
    cluster = led_by_1()
    monkeypatch.setattr(replication, "change_fault", lambda before, after: None)
    cluster.change(1, n2="", n3="")
    cluster.drain(1)
    cluster.rafts[1]._voter.membership.truncate_from(Height(2))  # let the test's own checks go on
    cluster.crash(1)
    cluster.settle()
    assert [str(fault)[:30] for fault in cluster.faults] == ["block 2: no lawful change: mor"] * len(
        cluster.faults
    )
    assert cluster.rafts[2].tip_height == cluster.rafts[3].tip_height == 1


def test_only_openings_stand_above_a_configuration_that_is_not_committed():
    cluster = led_by_1(3, learners=(4,))
    without(cluster, AppendReply)
    cluster.change(1, n4="voter")
    cluster.settle()
    assert not cluster.rafts[1].may_propose
    with pytest.raises(Unavailable, match="membership"):
        cluster.propose(1)
    with pytest.raises(Unavailable, match="under way"):
        cluster.change(1, n4="")
    everything(cluster)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.rafts[1].may_propose


def test_a_configuration_is_not_taken_before_the_block_below_it_is_known_to_be_committed():
    cluster = led_by_1(3, learners=(4,))
    without(cluster, AppendReply)
    below = cluster.propose(1)
    cluster.settle()
    leadership = cluster.rafts[1]._leadership
    assert leadership is not None
    roles = {**{str(n): "voter" for n in (1, 2, 3)}, "4": "voter"}
    after = replace(configuration_with(**roles), number=1)
    for follower in (2, 3):
        cluster.rafts[follower].expect_configuration(after.digest)  # pending in their state already
    leadership._cut((), configuration=after)  # a leader without rule 1
    cluster.run(4 * limits.HEARTBEAT_TICKS)
    assert {cluster.rafts[n].tip_height for n in (2, 3)} == {below}
    assert voters(cluster, 2) == {1, 2, 3}


def test_a_follower_far_behind_takes_several_changes_as_it_catches_up():
    cluster = led_by_1(4, learners=(5,))
    cluster.partition((1, 2, 3, 5), (4,))
    for role in ("voter", "learner", "voter", "learner"):
        cluster.change(1, n5=role)
        cluster.settle()
        for _ in range(5):
            cluster.propose(1)
            cluster.settle()
    cluster.heal()
    cluster.run_until(cluster.converged, 40)
    assert cluster.faults == []
    assert cluster.disks[4].applied == 25


# --- 40 ----------------------------------------------------------------------------------------------------------


def test_40_two_leaders_of_consecutive_terms_cannot_both_change_the_voters_of_one_parent():
    """The single-server bug of 2015 (raft-dev; braft #182; openraft #2051): D adds 5, the next leader removes 1."""
    cluster = led_by_1(4, learners=(5,))
    cluster.partition((1, 5), (2, 3, 4))
    cluster.change(1, n5="voter")
    cluster.settle()
    assert voters(cluster, 1) == voters(cluster, 5) == {1, 2, 3, 4, 5}
    without(cluster, AppendReply)
    cluster.elect(2)
    with pytest.raises(Unavailable, match="under way"):
        cluster.change(2, n1="")
    everything(cluster)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    cluster.change(2, n1="")  # its own term has committed: 1 and 5 cannot win with the older log any more
    cluster.settle()
    assert voters(cluster, 3) == {2, 3, 4}
    cluster.heal()
    cluster.run(3 * limits.ELECTION_TICKS_MAX)
    assert [voters(cluster, n) for n in (1, 2, 3, 4, 5)] == [{2, 3, 4}] * 5
    assert cluster.leaders == [2]


def test_40_a_new_leader_counts_in_the_uncommitted_configuration_that_it_found_in_its_log():
    """eBay/NuRaft #67: a new leader ignored it; a restart forgot it."""
    cluster = led_by_1(3, learners=(4,))
    without(cluster, AppendReply)
    height = cluster.change(1, n4="voter")
    cluster.settle()
    cluster.crash(1)
    for n in (2, 3, 4):
        cluster.crash(n)
        cluster.start(n)
        assert voters(cluster, n) == {1, 2, 3, 4}
    everything(cluster)
    cluster.crash(4)
    cluster.run(3 * limits.ELECTION_TICKS_MAX)
    assert cluster.leaders == []  # two of four
    cluster.start(4)
    cluster.run_until(lambda: bool(cluster.leaders))
    cluster.run(4)
    assert cluster.rafts[cluster.leader()].commit_height > height


# --- 41 ----------------------------------------------------------------------------------------------------------


def test_41_a_leader_that_removes_itself_leads_until_that_is_committed_and_names_a_successor():
    cluster = led_by_1()
    height = cluster.change(1, n1="")
    cluster.settle()
    assert cluster.sent(TimeoutNow, 1)
    assert cluster.role(1) is Role.FOLLOWER
    assert len(cluster.leaders) == 1
    assert cluster.leaders != [1]
    after = cluster.propose(cluster.leader())
    cluster.settle()
    assert after > height
    assert {cluster.rafts[n].commit_height for n in (2, 3)} == {after}


def test_41_a_leader_whose_leaving_is_certified_cuts_nothing_before_it_steps_down():
    # Between the answer that certifies its leaving and the next Ready it still leads by name: what it cut there,
    # everybody took for an offence ("not cut by a voter").
    cluster = led_by_1()
    height, leader = cluster.change(1, n1=""), cluster.rafts[1]
    while leader.role is Role.LEADER:
        leader.commit_acknowledged()
        assert not leader.may_propose
        with pytest.raises(Unavailable):
            cluster.propose(1)
        ready = leader.ready()
        if ready is not None:
            cluster.finish(1, ready)
        else:
            cluster.deliver()
            cluster.drain(2)
            cluster.drain(3)
    cluster.settle()
    assert leader.tip_height == height
    assert cluster.faults == []


def test_41_a_leaving_leader_does_not_count_itself():
    cluster = led_by_1()
    cluster.partition((1, 2), (3,))
    height = cluster.change(1, n1="")
    cluster.run(2)
    assert cluster.rafts[1].commit_height < height  # 2 alone is no majority of 2 and 3
    assert cluster.leaders == [1]
    cluster.heal()
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.rafts[2].commit_height >= height


def test_41_47_a_leaving_leader_is_none_of_the_quorum_that_it_must_hear_nor_of_one_that_confirms_a_read():
    cluster = led_by_1()
    cluster.partition((1, 2), (3,))
    cluster.change(1, n1="")
    cluster.settle()
    read = cluster.read(1)
    cluster.run(limits.ELECTION_TICKS_MIN - 4)
    assert (cluster.leaders, cluster.answers(1)) == ([1], {})
    cluster.run(5)
    assert cluster.role(1) is not Role.LEADER
    assert cluster.answers(1) == {read: None}


@pytest.mark.parametrize("laggard", [2, 3])
def test_41_the_successor_that_a_leaving_leader_names_has_the_longest_log(laggard):
    cluster = led_by_1(4)
    cluster.cut = {(1, laggard)}
    cluster.change(1, n1="")
    cluster.settle()
    assert cluster.sent(TimeoutNow, 1)
    assert cluster.sent(TimeoutNow, 1, laggard) == []


@pytest.mark.parametrize("change", [{"n1": ""}, {"n3": ""}, {"n4": "voter"}], ids=str)
@pytest.mark.parametrize("reached", [(), (2,), (2, 3), (3,)], ids=str)
def test_41_a_crash_of_the_leader_before_the_commit_leaves_the_old_or_the_new_configuration(change, reached):
    cluster = led_by_1(3, learners=(4,))
    old = {1, 2, 3}
    cluster.cut = {(1, n) for n in (2, 3, 4) if n not in reached} | {(n, 1) for n in (2, 3, 4)}
    cluster.change(1, **change)
    cluster.settle()
    new = voters(cluster, 1)
    cluster.crash(1)
    cluster.wires.clear()
    cluster.heal()
    cluster.run(2 * limits.ELECTION_TICKS_MAX)
    cluster.start(1)
    cluster.run_until(lambda: bool(cluster.leaders), 400)
    height = cluster.propose(cluster.leader())
    cluster.run(2 * limits.ELECTION_TICKS_MAX)
    assert cluster.rafts[cluster.leader()].commit_height >= height
    assert all(voters(cluster, n) in (old, new) for n in cluster.rafts)
    assert {frozenset(voters(cluster, n)) for n in voters(cluster, cluster.leader())} == {
        frozenset(voters(cluster, cluster.leader()))
    }


@pytest.mark.parametrize("role", ["", "learner"])
@pytest.mark.parametrize("reached", [False, True])
def test_41_of_two_voters_one_that_leaves_and_crashes_leaves_nobody_stuck(reached, role):
    """Raft thesis §4.2.2: the leaving one still campaigns until its leaving is committed, or nobody could (seed 1024)."""
    cluster = led_by_1(2)
    cluster.cut = {(2, 1)} if reached else {(1, 2), (2, 1)}
    height = cluster.change(1, n1=role)
    cluster.settle()
    cluster.crash(1)
    cluster.heal()
    cluster.start(1)
    cluster.run_until(lambda: cluster.leaders == [2], 400)
    cluster.run(4)
    assert voters(cluster, 2) == {2}
    assert cluster.rafts[2].commit_height > height


def test_41_who_has_started_since_takes_the_opening_of_one_that_left_without_knowing_it():
    """It knows the configuration in force and not the one before, which no block above names (seed 100012)."""
    cluster = led_by_1(7)
    informed = {1, 4}
    cluster.filter = lambda source, target, message: (
        source != 1 or target in informed or not (isinstance(message, AppendEntries) and message.proof)
    )
    height = cluster.change(1, n2="")
    cluster.settle()
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert {n for n, raft in cluster.rafts.items() if raft.commit_height >= height} == informed
    cluster.crash(1)
    cluster.crash(4)
    cluster.start(4)
    cluster.filter = lambda source, target, message: True
    for raft in cluster.rafts.values():
        raft._voter.leader = None
    while (
        cluster.rafts[2].term == 1
    ):  # until it is elected, by 3, 5, 6 and 7, who do not know that it has left
        cluster.tick(2)
        cluster.settle()
    cluster.start(1)
    cluster.run_until(
        lambda: all(cluster.rafts[n].commit_height > height + 1 for n in (1, 3, 4, 5, 6, 7)), 400
    )
    assert cluster.disks[4].blocks[height + 1].header.leader == cluster.node(2)


def test_41_a_change_proposed_by_a_leader_cut_off_is_undone_with_its_block():
    cluster = led_by_1(3, learners=(4,))
    cluster.partition((1,), (2, 3, 4))
    cluster.change(1, n4="voter")
    cluster.drain(1)
    assert voters(cluster, 1) == {1, 2, 3, 4}
    cluster.run_until(lambda: bool({2, 3} & set(cluster.leaders)), 200)
    cluster.propose(cluster.leader())
    cluster.heal()
    cluster.run_until(cluster.converged)
    assert voters(cluster, 1) == {1, 2, 3}
