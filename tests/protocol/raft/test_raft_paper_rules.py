"""One test per sentence of "Rules for Servers" in Figure 2 of the Raft paper; `test_raft_paper` has the rest and the deviations."""

import pytest

from protocol import limits
from protocol.identifiers import ZERO, Height, Term
from protocol.raft.messages import (
    AppendEntries,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    VoteReply,
)
from protocol.raft.quorum import quorum_height
from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster
from tests.protocol.raft.test_promises import elected, frame
from tests.protocol.raft.test_raft_paper import answer, candidacy

# --- All servers -------------------------------------------------------------------------------------------------


def of_term(cluster: Cluster, kind: type, term: Term) -> Message:
    """Return a message of node 2 to node 1 that names a higher term."""
    node, genesis = cluster.node(2), cluster.disks[2].blocks[0]
    if kind is RequestVote:
        voter = cluster.rafts[2]._voter
        voter.enter_term(term)
        return cluster.rafts[2]._election._request(
            transfer=True
        )  # a plain one the lease may stop (thesis §4.2.3)
    election = elected(cluster, 2, term=term, tip=genesis.hash, by=(2, 3))
    if kind is AppendEntries:
        return frame(cluster, 2, term=term, prev=genesis, election=election)
    if kind is Heartbeat:
        return Heartbeat(0, term, node, 0, election)
    if kind is AppendReply:
        return AppendReply(term, node, None, Height(0), None)
    if kind is VoteReply:
        return VoteReply(term, node, None)
    if kind is PreVoteReply:
        return PreVoteReply(term, node, granted=False)
    return HeartbeatReply(term, node, 0)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(
    "kind", [RequestVote, AppendEntries, Heartbeat, AppendReply, VoteReply, PreVoteReply, HeartbeatReply]
)
def test_all_servers_a_request_or_response_of_a_higher_term_makes_a_follower_of_that_term(kind, role):
    cluster = Cluster(3)
    raft = cluster.rafts[1]
    if role is Role.LEADER:
        cluster.elect(1)
    elif role is Role.CANDIDATE:
        raft._campaign()
    elif role is Role.PRE_CANDIDATE:
        raft._start_election()
    assert cluster.role(1) is role
    term = Term(raft.term + 5)
    cluster.step(2, 1, of_term(cluster, kind, term))
    assert cluster.faults == []
    assert raft.term == term
    assert cluster.role(1) is Role.FOLLOWER
    # A candidate asks for the vote that it may get in the new term; the vote of the old one is forgotten.
    assert raft._voter.hard.vote in (ZERO, cluster.node(2))


def test_all_servers_entries_are_applied_in_order_once_committed():
    cluster = Cluster(3)
    cluster.elect(1)
    for _ in range(5):
        cluster.propose(1)
    cluster.settle()
    # The cluster's disks assert order and absence of gaps with every Ready.
    assert {disk.applied for disk in cluster.disks.values()} == {6}


# --- Followers ---------------------------------------------------------------------------------------------------


def test_followers_respond_to_candidates_and_leaders():
    cluster = Cluster(3)
    cluster.run_until(cluster.led)
    leader = cluster.leader()
    cluster.rafts[leader].transfer_leadership(cluster.node(leader % 3 + 1))
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    asked = {
        (source, target, type(message))
        for source, target, message in cluster.trace
        if isinstance(message, PreVote | RequestVote | AppendEntries | Heartbeat)
    }
    replies = {
        PreVote: PreVoteReply,
        RequestVote: VoteReply,
        AppendEntries: AppendReply,
        Heartbeat: HeartbeatReply,
    }
    assert {kind for _, _, kind in asked} == set(replies)
    for source, target, kind in asked:
        assert cluster.sent(replies[kind], target, source), f"{target} owes {source} an answer to {kind}"


def test_followers_that_hear_their_leader_start_no_election():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.trace.clear()
    cluster.run(5 * limits.ELECTION_TICKS_MAX)
    assert cluster.sent(PreVote) == []
    assert cluster.leaders == [1]


def test_followers_start_an_election_when_they_hear_of_no_leader_within_the_time_out():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.crash(1)
    for _ in range(limits.ELECTION_TICKS_MIN - 1):
        cluster.tick(2)
    assert cluster.role(2) is Role.FOLLOWER
    for _ in range(limits.ELECTION_TICKS_MAX):
        cluster.tick(2)
    assert cluster.role(2) is Role.PRE_CANDIDATE


def test_followers_that_grant_a_vote_wait_for_another_time_out():
    cluster = Cluster(3)
    for _ in range(limits.ELECTION_TICKS_MIN // 2 - 1):
        cluster.tick(3)
    cluster.step(1, 3, candidacy(cluster, 1))
    assert cluster.rafts[3]._election._elapsed == 0


# --- Candidates --------------------------------------------------------------------------------------------------


def test_candidates_increment_the_term_vote_for_themselves_and_ask_all_others():
    cluster = Cluster(5)
    raft = cluster.rafts[1]
    raft._campaign()
    cluster.drain(1)
    assert (raft.term, raft._voter.hard.vote) == (1, cluster.node(1))
    assert cluster.disks[1].hard_state == raft._voter.hard
    assert sorted(target for _, target, message in cluster.trace if isinstance(message, RequestVote)) == [
        2,
        3,
        4,
        5,
    ]


def test_candidates_reset_their_election_timer():
    """Here: when they ask for PreVotes; what follows belongs to the same attempt."""
    cluster = Cluster(3)
    raft = cluster.rafts[1]
    drawn = raft._election._draws
    while raft.role is Role.FOLLOWER:
        cluster.tick(1)
    assert raft.role is Role.PRE_CANDIDATE
    assert raft._election._elapsed == 0
    assert raft._election._draws > drawn


def test_candidates_with_votes_of_a_majority_become_leader():
    cluster = Cluster(5)
    request = candidacy(cluster, 1)
    cluster.step(2, 1, answer(cluster, 2, request))
    assert cluster.role(1) is Role.CANDIDATE
    cluster.step(2, 1, answer(cluster, 2, request))  # the same vote twice is one vote
    assert cluster.role(1) is Role.CANDIDATE
    cluster.step(3, 1, answer(cluster, 3, request))
    assert cluster.role(1) is Role.LEADER


def test_candidates_that_hear_of_the_terms_leader_follow_it():
    cluster = Cluster(3)
    cluster.partition((1, 2), (3,))
    candidacy(cluster, 3)
    cluster.elect(1)
    cluster.heal()
    assert cluster.role(3) is Role.CANDIDATE
    assert cluster.rafts[3].term == cluster.rafts[1].term
    cluster.run(limits.HEARTBEAT_TICKS)
    assert cluster.role(3) is Role.FOLLOWER
    assert cluster.rafts[3].leader == cluster.node(1)


def test_candidates_whose_election_times_out_start_another():
    cluster = Cluster(3)
    raft = cluster.rafts[1]
    raft._campaign()
    for _ in range(limits.ELECTION_TICKS_MAX + 1):
        cluster.tick(1)
    assert cluster.role(1) is Role.PRE_CANDIDATE  # first it asks whether that has a chance (thesis §9.6)
    cluster.drain(1)
    assert cluster.sent(PreVote, 1)[-1].term == 2


# --- Leaders -----------------------------------------------------------------------------------------------------


def test_leaders_send_heartbeats_upon_election_and_during_idle_periods():
    cluster = Cluster(3)
    cluster.elect(1)
    assert cluster.sent(Heartbeat, 1, 2)
    cluster.trace.clear()
    cluster.run(limits.HEARTBEAT_TICKS * 10)
    assert len(cluster.sent(Heartbeat, 1, 2)) == 10
    assert not any(frame.blocks for frame in cluster.sent(AppendEntries))


def test_leaders_append_a_command_and_answer_when_it_is_applied():
    cluster = Cluster(3)
    cluster.elect(1)
    height = cluster.propose(1)
    assert cluster.rafts[1].tip_height == height
    assert cluster.disks[1].applied < height
    cluster.settle()
    assert cluster.disks[1].applied == height


def test_leaders_send_a_follower_what_its_log_lacks_from_next_index_on():
    cluster = Cluster(3)
    cluster.elect(1)
    leadership = cluster.rafts[1]._leadership
    assert leadership is not None
    for count in (1, 3):
        next_height = leadership._progress[cluster.node(2)].next_height
        cluster.trace.clear()
        for _ in range(count):
            last = cluster.propose(1)
        cluster.drain(1)
        (sent,) = [message for message in cluster.sent(AppendEntries, 1, 2) if message.blocks]
        assert (sent.prev_height + 1, sent.prev_height + len(sent.blocks)) == (next_height, last)
        cluster.settle()


def test_leaders_raise_next_and_match_index_on_success():
    cluster = Cluster(3)
    cluster.elect(1)
    height = cluster.propose(1)
    cluster.settle()
    leadership = cluster.rafts[1]._leadership
    assert leadership is not None
    for progress in leadership._progress.values():
        assert (progress.match_height, progress.next_height) == (height, height + 1)


def test_leaders_lower_next_index_on_inconsistency_and_retry():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1,), (2, 3))
    for _ in range(3):
        cluster.propose(1)
    cluster.drain(1)
    cluster.elect(2)
    cluster.heal()
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.converged()


@pytest.mark.parametrize(
    ("heights", "quorum", "expected"),
    [
        ([5], 1, 5),
        ([5, 3], 2, 3),
        ([5, 3, 1], 2, 3),
        ([5, 5, 1, 1], 3, 1),
        ([9, 7, 5, 3, 1], 3, 5),
        ([0, 0, 4], 2, 0),
    ],
)
def test_leaders_commit_the_highest_index_that_a_majority_matches(heights, quorum, expected):
    assert quorum_height(heights, quorum) == expected
    with pytest.raises(ValueError, match="quorum"):
        quorum_height(heights, len(heights) + 1)


def test_leaders_commit_only_entries_of_the_current_term_by_counting():
    """§5.4.2; the whole of Figure 8 is in test_replication."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.filter = lambda source, target, message: not isinstance(message, AppendReply)
    old = cluster.propose(1)
    cluster.settle()
    cluster.filter = lambda source, target, message: not isinstance(message, AppendEntries)
    cluster.elect(2)  # it and 3 hold the old block already
    cluster.step(3, 2, cluster.acknowledgement(3, 2, old))
    cluster.drain(2)
    assert cluster.rafts[2].commit_height < old
