"""Learners, their promotion, and members that do not know a change yet or have left: scenarios 42 and 43 of ledger.md 3.1
(Raft thesis §4.1, §4.2)."""

import pytest

from protocol import limits
from protocol.errors import Refused, Unavailable
from protocol.raft.messages import AppendEntries, PreVote, RequestVote, TimeoutNow, VoteReply
from protocol.raft.progress import Progress
from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster
from tests.protocol.raft.test_membership import commit_heights, led_by_1, voters


def test_43_a_learner_that_lags_is_not_promoted_until_it_has_caught_up():
    cluster = led_by_1(3, learners=(4,))
    cluster.partition((1, 2, 3), (4,))
    cluster.propose(1)
    cluster.settle()
    with pytest.raises(Unavailable, match="caught up"):
        cluster.change(1, n4="voter")
    cluster.heal()
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    height = cluster.change(1, n4="voter")
    cluster.run(2)
    assert commit_heights(cluster) == {height}


def test_43_a_promoted_learner_that_does_not_know_it_answers_requests_for_votes():
    cluster = led_by_1(3, learners=(4,))
    cluster.cut = {(1, 4)}
    height = cluster.change(1, n4="voter")
    cluster.settle()
    assert cluster.rafts[1].commit_height == height
    assert voters(cluster, 4) == {1, 2, 3}
    cluster.crash(1)
    cluster.filter = lambda source, target, message: not (target == 4 and isinstance(message, AppendEntries))
    cluster.elect(2)  # three of four: the vote of 4 is needed
    assert any(request.candidate == cluster.node(2) for request in cluster.sent(RequestVote, 2, 4))
    assert [reply.grant is not None for reply in cluster.sent(VoteReply, 4, 2)] == [True]


def test_43_a_learner_by_the_own_log_that_asks_for_a_vote_may_be_a_voter_by_now():
    cluster = led_by_1(3, learners=(4,))
    cluster.cut = {(1, 3)}
    height = cluster.change(1, n4="voter")
    cluster.settle()
    assert cluster.rafts[1].commit_height == height
    assert voters(cluster, 3) == {1, 2, 3}
    cluster.crash(1)
    cluster.filter = lambda source, target, message: not (target == 3 and isinstance(message, AppendEntries))
    cluster.elect(4)  # three of four: the vote of 3 is needed
    assert [reply.grant is not None for reply in cluster.sent(VoteReply, 3, 4)] == [True]


def test_43_a_follower_follows_a_leader_that_became_a_voter_while_it_was_away():
    cluster = led_by_1(3, spare=(4,))
    cluster.partition((1, 2, 4), (3,))
    cluster.change(1, n4="learner")
    cluster.settle()
    cluster.join(4)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    cluster.change(1, n4="voter")
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    cluster.rafts[1].transfer_leadership(cluster.node(4))
    cluster.settle()
    assert cluster.leaders == [4]
    cluster.heal()
    cluster.run(2 * limits.ELECTION_TICKS_MAX)
    assert cluster.leaders == [4]
    assert voters(cluster, 3) == {1, 2, 3, 4}
    assert len(commit_heights(cluster)) == 1


@pytest.mark.parametrize("role", ["", "learner"])
def test_43_one_that_was_away_follows_the_only_voter_that_is_left(role):
    """Soak seed 1119: elected by its own vote alone, upon blocks that the other had not got, it was not believed."""
    cluster = led_by_1(2, learners=(3,))
    cluster.partition((1, 2), (3,))
    cluster.change(1, n2=role)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    cluster.crash(1)
    cluster.start(1)
    cluster.run_until(lambda: cluster.leaders == [1])
    height = cluster.propose(1)
    cluster.heal()
    cluster.run(limits.ELECTION_TICKS_MAX)
    assert cluster.rafts[3].commit_height == height
    assert voters(cluster, 3) == {1}


def test_43_a_configuration_begins_its_frame():
    """It would not be taken with the blocks below it, and have to be sent again."""
    cluster = led_by_1(4, learners=(5,))
    cluster.partition((1, 2, 3, 5), (4,))
    changes = []
    for role in ("voter", "learner"):
        cluster.propose(1)
        cluster.settle()
        changes.append(cluster.change(1, n5=role))
        cluster.settle()
    cluster.heal()
    cluster.trace.clear()
    cluster.run_until(cluster.converged)
    frames = [frame for frame in cluster.sent(AppendEntries, 1, 4) if frame.blocks]
    firsts = {frame.prev_height + 1 for frame in frames}
    assert firsts >= set(changes)
    inside = {height for frame in frames for height in range(frame.prev_height + 2, frame.prev_height + 1 + len(frame.blocks))}  # fmt: skip
    assert inside.isdisjoint(changes)


def test_43_who_holds_the_block_below_a_configuration_without_its_certificate_gets_that_with_the_configuration():
    cluster = led_by_1(4, learners=(5,))
    cluster.filter = lambda source, target, message: (
        not (isinstance(message, AppendEntries) and target == 4 and (message.proof or message.certificate))
    )
    below = cluster.propose(1)
    cluster.settle()
    assert (cluster.rafts[4].tip_height, cluster.rafts[4].commit_height) == (below, below - 1)
    cluster.partition((1, 2, 3, 5), (4,))
    cluster.filter = lambda source, target, message: True
    cluster.change(1, n5="voter")
    cluster.settle()
    cluster.propose(1)
    cluster.settle()
    cluster.heal()
    cluster.run_until(cluster.converged, limits.HEARTBEAT_TICKS + 1)  # without it, an interval later
    assert voters(cluster, 4) == {1, 2, 3, 4, 5}


def test_43_the_certificate_of_the_block_below_a_configuration_is_kept_by_itself():
    """Who catches up from this node later takes the configuration upon that very certificate (ledger.md 7.2, 1)."""
    cluster = led_by_1(3, learners=(4,))
    cluster.frozen.add(2)
    for _ in range(2):  # the first keeps the disk busy; the second is written together with the configuration
        below = cluster.propose(1)
        cluster.settle()
    assert cluster.change(1, n4="voter") == below + 1
    cluster.settle()
    cluster.thaw(2)
    cluster.settle()
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.disks[2].applied == below + 1
    assert {below, below + 1} <= cluster.disks[2].certificates.keys()


def test_44_the_leadership_is_not_handed_to_a_learner_nor_to_a_removed_voter():
    cluster = led_by_1(3, learners=(4,))
    cluster.change(1, n3="")
    cluster.settle()
    for n in (3, 4):
        with pytest.raises(Refused):
            cluster.rafts[1].transfer_leadership(cluster.node(n))
    assert cluster.rafts[1].may_propose


def test_43_44_a_learner_that_is_called_to_campaign_does_not():
    cluster = led_by_1(3, learners=(4,))
    cluster.step(1, 4, TimeoutNow(cluster.rafts[1].term, cluster.node(1)))
    assert (cluster.role(4), cluster.rafts[4].term) == (Role.FOLLOWER, 1)


def test_44_the_membership_does_not_change_while_the_leadership_is_handed_over():
    cluster = led_by_1(3, learners=(4,))
    cluster.crash(2)
    cluster.rafts[1].transfer_leadership(cluster.node(2))
    with pytest.raises(Unavailable, match="under way"):
        cluster.change(1, n4="voter")


def progress_of(cluster: Cluster, n: int) -> Progress | None:
    leadership = cluster.rafts[cluster.leader()]._leadership
    assert leadership is not None
    return leadership._progress.get(cluster.node(n))


def test_42_one_that_left_is_sent_nothing_more_once_it_knows():
    cluster = led_by_1()
    cluster.change(1, n3="")
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.rafts[3].commit_height == 2
    assert progress_of(cluster, 3) is None


def test_42_one_that_left_and_is_silent_is_forgotten_after_a_time():
    cluster = led_by_1()
    cluster.partition((1, 2), (3,))
    cluster.change(1, n3="")
    cluster.run(2)
    assert progress_of(cluster, 3) is not None
    cluster.run(limits.ELECTION_TICKS_MAX)
    assert progress_of(cluster, 3) is None


def test_42_one_that_left_and_came_back_at_once_is_a_member_like_the_others():
    cluster = led_by_1()
    cluster.partition((1, 2), (3,))
    cluster.change(1, n3="")
    cluster.run(2)  # its leaving is noted at a tick
    cluster.change(1, n3="learner")
    cluster.run(limits.ELECTION_TICKS_MAX + 1)
    cluster.heal()
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.rafts[3].commit_height == 3


def test_of_the_committed_configurations_the_newest_two_are_kept():
    cluster = led_by_1(3, learners=(4,))
    for role in ("voter", "learner") * 3:
        cluster.change(1, n4=role)
        cluster.settle()
    assert {len(raft._voter.membership._entries) for raft in cluster.rafts.values()} == {2}


def test_42_a_removed_voter_is_told_and_campaigns_no_more():
    cluster = led_by_1()
    height = cluster.change(1, n3="")
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.rafts[3].commit_height == height
    cluster.trace.clear()
    cluster.run(5 * limits.ELECTION_TICKS_MAX)
    assert cluster.leaders == [1]
    assert cluster.sent(PreVote, 3) == []
    assert cluster.sent(AppendEntries, 1, 3) == []


def test_42_a_voter_that_was_away_when_it_was_removed_disturbs_nobody_and_learns_of_it():
    """hashicorp/raft #524."""
    cluster = led_by_1()
    cluster.partition((1, 2), (3,))
    cluster.change(1, n3="")
    cluster.run(5 * limits.ELECTION_TICKS_MAX)
    cluster.propose(1)
    cluster.settle()
    cluster.heal()
    cluster.run(2 * limits.ELECTION_TICKS_MAX)
    assert voters(cluster, 3) == {1, 2}
    assert cluster.leaders == [1]
    assert {raft.term for raft in cluster.rafts.values()} == {1}
    cluster.trace.clear()
    cluster.run(3 * limits.ELECTION_TICKS_MAX)
    assert cluster.sent(PreVote, 3) == []


def test_42_a_removed_voter_that_campaigns_raises_no_term_and_gets_no_vote():
    cluster = led_by_1()
    cluster.change(1, n3="")
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    cluster.crash(1)
    for _ in range(3):
        cluster.rafts[3]._campaign()
    request = cluster.rafts[3]._election._request(transfer=True)
    cluster.step(3, 2, request)
    cluster.drain(2)
    assert request.term == 4
    assert cluster.rafts[2].term == 1
    assert cluster.sent(VoteReply, 2, 3) == []
