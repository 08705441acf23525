"""One test per sentence of Figure 2 of the Raft paper (extended version), as this core keeps it.

Where the core deviates on purpose the test says how: a commit proof stands for `leaderCommit`, a signed election
certificate for trust in the sender, PreVote comes before candidacy, and block hashes are compared instead of terms.
"""

import dataclasses

import pytest

from protocol import limits
from protocol.identifiers import ZERO, Height, Term
from protocol.raft.messages import AppendEntries, AppendReply, Heartbeat, PreVote, RequestVote, VoteReply
from protocol.raft.quorum import quorum_height
from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster


def candidacy(cluster: Cluster, n: int) -> RequestVote:
    """Make `n` a candidate of the next term and return its request, unsent."""
    raft = cluster.rafts[n]
    raft._become_follower()
    raft._campaign()
    raft._voter.outbox.clear()
    return raft._election._request()


def answer(cluster: Cluster, voter: int, request: RequestVote) -> VoteReply:
    cluster.step(cluster.number[request.candidate], voter, request)
    cluster.drain(voter)
    reply = cluster.sent(VoteReply, voter)[-1]
    assert isinstance(reply, VoteReply)
    return reply


# --- State -------------------------------------------------------------------------------------------------------


def test_persistent_state_is_updated_on_stable_storage_before_responding():
    cluster = Cluster(3)
    cluster.step(1, 2, candidacy(cluster, 1))
    ready = cluster.rafts[2].ready()
    assert ready is not None
    assert ready.hard_state is not None
    assert (ready.hard_state.term, ready.hard_state.vote) == (1, cluster.node(1))
    assert [type(message) for _, message in ready.messages] == [VoteReply]


def test_current_term_is_initialised_to_zero_on_first_boot_and_increases_monotonically():
    cluster = Cluster(3)
    assert cluster.rafts[1].term == 0
    terms = []
    for n in (1, 2, 3):
        cluster.elect(n)
        terms.append(cluster.rafts[n].term)
    assert terms == sorted(set(terms))


def test_next_index_starts_just_after_the_last_log_index_and_match_index_at_zero():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.filter = lambda source, target, message: not isinstance(message, AppendEntries)
    cluster.elect(2)
    leadership = cluster.rafts[2]._leadership
    assert leadership is not None
    for progress in leadership._progress.values():
        assert (progress.next_height, progress.match_height) == (
            2,
            0,
        )  # block 1 was the last before the opening


# --- RequestVote RPC ---------------------------------------------------------------------------------------------


def test_request_vote_1_reply_false_if_the_term_is_below_current_term():
    cluster = Cluster(3)
    request = candidacy(cluster, 1)
    candidacy(cluster, 2)
    later = candidacy(cluster, 2)
    answer(cluster, 3, later)
    reply = answer(cluster, 3, request)
    assert (reply.grant, reply.term) == (None, later.term)


def test_request_vote_2_grant_if_free_and_the_candidates_log_is_at_least_as_up_to_date():
    cluster = Cluster(3)
    request = candidacy(cluster, 1)
    assert answer(cluster, 3, request).grant is not None
    assert answer(cluster, 3, request).grant is not None  # asked again: the same vote
    assert answer(cluster, 3, candidacy(cluster, 2)).grant is None


@pytest.mark.parametrize(("voter", "granted"), [(2, False), (3, True)])
def test_request_vote_2_refuse_if_the_candidates_log_is_less_up_to_date(voter, granted):
    cluster = Cluster(4)
    cluster.elect(1)
    cluster.partition((1, 2), (3, 4))
    cluster.propose(1)
    cluster.settle()
    cluster.heal()
    cluster.rafts[voter]._voter.leader = None
    reply = answer(cluster, voter, candidacy(cluster, 4))
    assert (reply.grant is not None) == granted


# --- AppendEntries RPC -------------------------------------------------------------------------------------------


def test_append_entries_1_reply_false_if_the_term_is_below_current_term():
    cluster = Cluster(3)
    cluster.elect(1)
    old = cluster.sent(AppendEntries, 1, 3)[0]
    cluster.elect(2)
    cluster.trace.clear()
    cluster.step(1, 3, old)
    cluster.drain(3)
    reply = cluster.sent(AppendReply, 3, 1)[-1]
    assert (reply.ack, reply.term) == (None, cluster.rafts[2].term)


def test_append_entries_2_reply_false_if_the_log_has_no_matching_entry_at_prev():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1, 2), (3,))
    for _ in range(2):
        cluster.propose(1)
        cluster.settle()
    later = cluster.sent(AppendEntries, 1, 2)[-1]
    assert later.prev_height == 3
    cluster.trace.clear()
    cluster.step(1, 3, later)
    cluster.drain(3)
    reply = cluster.sent(AppendReply, 3)[-1]
    assert reply.refusal.prev_height == 3
    assert reply.ack.height == 1  # what it acknowledged before, nothing of this


def test_append_entries_3_a_conflicting_entry_and_all_that_follow_are_deleted():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1,), (2, 3))
    for _ in range(3):
        cluster.propose(1)
    cluster.drain(1)
    cluster.elect(2)
    cluster.heal()
    cluster.filter = lambda source, target, message: target != 3
    cluster.run(limits.HEARTBEAT_TICKS)
    assert cluster.disks[1].blocks == cluster.disks[2].blocks


def test_append_entries_4_entries_not_already_in_the_log_are_appended():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1)
    cluster.settle()
    before = dict(cluster.disks[2].blocks)
    for frame in cluster.sent(AppendEntries, 1, 2):
        cluster.step(1, 2, frame)
    cluster.drain(2)
    assert cluster.disks[2].blocks == before == cluster.disks[1].blocks


def test_append_entries_5_commit_index_follows_the_leaders_only_as_far_as_the_log_reaches():
    """Here: on a proof, and only when its block is in the log."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1, 2), (3,))
    height = cluster.propose(1)
    cluster.settle()
    assert cluster.rafts[1].commit_height == height
    proof = cluster.disks[1].proofs[height]
    heartbeat = next(
        frame for frame in cluster.sent(AppendEntries, 1, 3) if frame.prev_height == 1 and not frame.blocks
    )
    cluster.step(1, 3, dataclasses.replace(heartbeat, proof=proof))
    assert cluster.faults == []
    assert cluster.rafts[3].commit_height == 1


# --- Rules for servers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER])
def test_all_servers_a_higher_term_makes_a_follower_of_it(role):
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
    cluster.step(2, 1, AppendReply(term, cluster.node(2), None, Height(0), None))
    cluster.step(2, 1, VoteReply(term, cluster.node(2), None))
    assert raft.term == term
    assert cluster.role(1) is Role.FOLLOWER
    assert raft._voter.hard.vote == ZERO


def test_all_servers_entries_are_applied_in_order_once_committed():
    cluster = Cluster(3)
    cluster.elect(1)
    for _ in range(5):
        cluster.propose(1)
    cluster.settle()
    # The cluster's disks assert order and absence of gaps with every Ready.
    assert {disk.applied for disk in cluster.disks.values()} == {6}


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
