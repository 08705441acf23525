"""The crash-fault scenarios of ledger.md 3.1 about elections, by number, with where each bug shipped."""

import itertools

import pytest

from protocol import codec, limits
from protocol.errors import Invalid, Malformed
from protocol.identifiers import Height, Term
from protocol.raft.messages import AppendReply, PreVote, PreVoteReply, RequestVote, VoteReply
from protocol.raft.state import HardState, Role
from tests.protocol.raft.cluster import Cluster


@pytest.mark.parametrize("count", [3, 4, 5])
def test_03_a_split_vote_is_resolved_by_randomised_time_outs(count):
    for seed in range(5):
        cluster = Cluster(count, seed)
        for raft in cluster.rafts.values():
            raft._start_election()  # all of them time out together
        cluster.run_until(cluster.led, 10 * limits.ELECTION_TICKS_MAX)
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
    cluster.run_until(cluster.led)
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
    cluster.step(3, 2, PreVote(Term(2), cluster.node(3), tip.term, tip.height))
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
            cluster.step(1, n, PreVote(Term(term + 1), cluster.node(1), tip.term, tip.height))
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
    cluster.crash(5)  # a majority, and a quorum of signers, without one of them
    cluster.cut = {pair for a, b in itertools.product(left, right) for pair in ((a, b), (b, a))}
    cluster.run_until(
        lambda: any(cluster.rafts[n].commit_height for n in cluster.leaders), 10 * limits.ELECTION_TICKS_MAX
    )
    height = cluster.propose(cluster.leader())
    cluster.run_until(
        lambda: max(raft.commit_height for raft in cluster.rafts.values()) >= height,
        10 * limits.ELECTION_TICKS_MAX,
    )
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


def test_decision_12_a_term_far_ahead_is_ignored():
    cluster = Cluster(3)
    cluster.elect(1)
    term = cluster.rafts[1].term
    cluster.step(
        2, 1, AppendReply(Term(term + limits.TERM_AHEAD_MAX + 1), cluster.node(2), None, Height(0), None)
    )
    assert cluster.leaders == [1]
    cluster.step(
        2, 1, AppendReply(Term(term + limits.TERM_AHEAD_MAX), cluster.node(2), None, Height(0), None)
    )
    assert cluster.leaders == []


def test_a_message_in_the_name_of_another_voter_is_refused():
    cluster = Cluster(3)
    with pytest.raises(Invalid):
        cluster.rafts[1].step(
            cluster.node(2), PreVote(Term(1), cluster.node(3), Term(0), Height(0)), cluster.now_ms
        )
