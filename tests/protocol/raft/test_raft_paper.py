"""One test per sentence of Figure 2 of the Raft paper (extended version), as this core keeps it; `test_raft_paper_rules` has
the "Rules for Servers".

Where the core deviates on purpose the test says how: a commit proof stands for `leaderCommit`, a signed election
certificate for trust in the sender, PreVote comes before candidacy, and block hashes are compared instead of terms.
"""

import dataclasses

import pytest

from protocol import limits
from protocol.errors import NotLeader
from protocol.identifiers import ZERO, Height, Term
from protocol.raft.messages import AppendEntries, AppendReply, RequestVote, VoteReply
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


def test_voted_for_is_nobody_at_first_and_again_in_every_new_term():
    cluster = Cluster(3)
    voter = cluster.rafts[3]._voter
    assert voter.hard.vote == ZERO
    answer(cluster, 3, candidacy(cluster, 1))
    assert cluster.disks[3].hard_state.vote == cluster.node(1)
    cluster.step(1, 3, AppendReply(Term(2), cluster.node(1), None, Height(0), None))
    cluster.drain(3)
    assert (cluster.disks[3].hard_state.term, cluster.disks[3].hard_state.vote) == (2, ZERO)
    candidacy(cluster, 2)
    assert answer(cluster, 3, candidacy(cluster, 2)).grant is not None


def test_each_log_entry_has_its_commands_and_the_term_of_its_leader_and_the_first_index_is_one():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, 2)
    cluster.settle()
    cluster.elect(2)
    blocks = cluster.disks[3].blocks
    assert sorted(blocks) == [0, 1, 2, 3]  # 0 is genesis: every log has it before there is a leader
    assert [(blocks[h].term, len(blocks[h].transactions)) for h in (1, 2, 3)] == [(1, 0), (1, 2), (2, 0)]


def test_commit_index_and_last_applied_are_zero_at_first_and_only_rise():
    cluster = Cluster(3)
    seen = [(cluster.rafts[3].commit_height, cluster.disks[3].applied)]
    assert seen == [(0, 0)]
    for leader in (1, 2, 3, 1):
        cluster.elect(leader)
        cluster.propose(leader)
        cluster.settle()
        seen.append((cluster.rafts[3].commit_height, cluster.disks[3].applied))
    assert seen == sorted(set(seen))


def test_match_index_only_rises():
    cluster = Cluster(3)
    cluster.elect(1)
    for _ in range(3):
        cluster.propose(1)
        cluster.settle()
    leadership = cluster.rafts[1]._leadership
    assert leadership is not None
    progress = leadership._progress[cluster.node(2)]
    assert progress.match_height == 4
    for late in (2, 1):
        cluster.step(2, 1, cluster.acknowledgement(2, 1, late))
        assert (progress.match_height, progress.next_height) == (4, 5)


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


def test_request_vote_names_the_candidate_its_term_and_the_index_and_term_of_its_last_entry():
    cluster = Cluster(3)
    cluster.elect(1)
    height = cluster.propose(1)
    cluster.settle()
    request = candidacy(cluster, 2)
    assert (request.candidate, request.term) == (cluster.node(2), 2)
    assert (request.tip.height, request.tip.term, request.tip_hash) == (
        height,
        1,
        cluster.disks[2].hash(height),
    )


def test_request_vote_results_name_the_voters_term_for_the_candidate_to_update_itself():
    cluster = Cluster(3)
    request = candidacy(cluster, 1)
    for _ in range(4):
        later = candidacy(cluster, 2)
    answer(cluster, 3, later)
    cluster.step(3, 1, answer(cluster, 3, request))
    assert cluster.rafts[1].term == later.term == 4
    assert cluster.role(1) is Role.FOLLOWER


def test_request_vote_1_reply_false_if_the_term_is_below_current_term():
    """Also when the vote of the current term is free and the candidate's log is up to date."""
    cluster = Cluster(3)
    request = candidacy(cluster, 1)
    cluster.step(2, 3, AppendReply(Term(2), cluster.node(2), None, Height(0), None))
    reply = answer(cluster, 3, request)
    assert (reply.grant, reply.term) == (None, 2)
    assert cluster.disks[3].hard_state.vote == ZERO


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


def test_append_entries_names_the_leader_so_that_a_follower_can_redirect_clients():
    cluster = Cluster(3)
    cluster.elect(1)
    assert all(message.leader == cluster.node(1) for message in cluster.sent(AppendEntries, 1))
    with pytest.raises(NotLeader) as refusal:
        cluster.propose(3)
    assert refusal.value.leader == cluster.node(1)


def test_append_entries_names_the_entry_before_its_own_and_may_carry_none_or_several():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1, 2), (3,))
    for _ in range(5):
        cluster.propose(1)
        cluster.settle()
    cluster.heal()
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    frames = cluster.sent(AppendEntries, 1, 3)
    assert {len(message.blocks) for message in frames} >= {0, 1, 5}
    blocks = cluster.disks[1].blocks
    for message in frames:
        assert message.prev_hash == blocks[message.prev_height].hash
        following = [blocks[message.prev_height + 1 + at].raw for at in range(len(message.blocks))]
        assert list(message.blocks) == following


def test_append_entries_results_name_the_followers_term_for_the_leader_to_update_itself():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1,), (2, 3))
    old = cluster.sent(AppendEntries, 1, 3)[-1]
    cluster.elect(2)
    cluster.heal()
    cluster.wires.clear()
    cluster.step(1, 3, old)
    cluster.drain(3)
    cluster.step(3, 1, cluster.sent(AppendReply, 3, 1)[-1])
    assert (cluster.role(1), cluster.rafts[1].term) == (Role.FOLLOWER, cluster.rafts[2].term)


def test_append_entries_succeeds_when_the_follower_holds_the_entry_before():
    cluster = Cluster(3)
    cluster.elect(1)
    height = cluster.propose(1)
    cluster.settle()
    reply = cluster.sent(AppendReply, 2, 1)[-1]
    assert reply.refusal is None
    assert (reply.ack.height, reply.ack.header_hash) == (height, cluster.disks[1].hash(height))


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
    proof = cluster.proofs[height]
    heartbeat = next(
        frame for frame in cluster.sent(AppendEntries, 1, 3) if frame.prev_height == 1 and not frame.blocks
    )
    cluster.step(1, 3, dataclasses.replace(heartbeat, proof=proof))
    assert cluster.faults == []
    assert cluster.rafts[3].commit_height == 1
