"""Learners and their promotion, and followers that do not know a change yet: scenario 43 of ledger.md 3.1 (Raft thesis §4.1, §4.2.1)."""

import pytest

from protocol import limits
from protocol.errors import Refused, Unavailable
from protocol.raft.messages import AppendEntries, RequestVote, VoteReply
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


def test_44_the_leadership_is_not_handed_to_a_learner_nor_to_a_removed_voter():
    cluster = led_by_1(3, learners=(4,))
    cluster.change(1, n3="")
    cluster.settle()
    for n in (3, 4):
        with pytest.raises(Refused):
            cluster.rafts[1].transfer_leadership(cluster.node(n))
    assert cluster.rafts[1].may_propose
