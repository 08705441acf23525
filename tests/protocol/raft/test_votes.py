"""What an election counts and what a voter grants, rule by rule (Raft §5.2, §5.4.1; thesis §9.6; ledger.md 1.1, P0)."""

import dataclasses

import pytest

from protocol import limits
from protocol.certificate import grant_vote
from protocol.errors import Invalid
from protocol.identifiers import ZERO, Digest, NetworkId, Term
from protocol.raft.messages import (
    AppendEntries,
    PreVote,
    PreVoteReply,
    RequestVote,
    VoteReply,
    request_vote_form,
)
from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster
from tests.protocol.raft.test_raft_paper import answer, candidacy


def pre_vote_of(cluster: Cluster, n: int, term: int) -> PreVote:
    tip = cluster.rafts[n]._voter.log.tip
    return PreVote(Term(term), cluster.node(n), tip.term, tip.height)


def asked(cluster: Cluster, voter: int, request: PreVote) -> PreVoteReply:
    cluster.step(cluster.number[request.candidate], voter, request)
    cluster.drain(voter)
    reply = cluster.sent(PreVoteReply, voter)[-1]
    assert isinstance(reply, PreVoteReply)
    return reply


def diverged() -> Cluster:
    """Node 1 has the longer log, of term 1; 2 and 3 the one whose last term is higher."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1,), (2, 3))
    for _ in range(3):
        cluster.propose(1)
    cluster.drain(1)
    cluster.elect(2)
    cluster.wires.clear()
    cluster.heal()
    assert [cluster.rafts[n].tip_height for n in (1, 2, 3)] == [4, 2, 2]
    for n in (1, 2, 3):
        cluster.rafts[n]._become_follower()
    return cluster


def test_04_the_term_of_the_last_block_decides_before_the_length_of_the_log():
    cluster = diverged()
    cluster.rafts[1]._voter.enter_term(Term(3))
    assert answer(cluster, 3, candidacy(cluster, 1)).grant is None
    cluster = diverged()
    assert answer(cluster, 1, candidacy(cluster, 2)).grant is not None


def test_04_a_pre_vote_asks_for_as_much_of_a_log_as_a_vote_does():
    cluster = diverged()
    assert not asked(cluster, 3, pre_vote_of(cluster, 1, 9)).granted
    assert asked(cluster, 1, pre_vote_of(cluster, 2, 9)).granted


def test_05_who_knows_the_leader_of_a_term_votes_for_nobody_else_in_it():
    cluster = Cluster(5)
    cluster.partition((1, 2, 3), (4,), (5,))
    cluster.elect(1)
    rival = candidacy(cluster, 5)
    cluster.heal()
    cluster.filter = lambda source, target, message: not isinstance(message, AppendEntries)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    voter = cluster.rafts[4]._voter
    assert (voter.leader, voter.hard.vote) == (cluster.node(1), ZERO)
    cluster.rafts[4]._become_follower()  # it has lost touch, and its vote is free
    assert answer(cluster, 4, rival).grant is None
    assert voter.hard.vote == ZERO


def won_by(cluster: Cluster, reply: VoteReply) -> bool:
    """Return whether node 1, one vote short, is elected by a reply of node 2."""
    cluster.step(2, 1, reply)
    return cluster.role(1) is Role.LEADER


@pytest.mark.parametrize(
    ("by", "named"),
    [
        (2, {"candidate": 3}),
        (2, {"term": 7}),
        (2, {"tip": 7}),
        (3, {}),
        (2, {}),
    ],
    ids=["candidate", "term", "tip", "voter", "genuine"],
)
def test_a_vote_counts_in_the_election_that_it_was_signed_for(by, named):
    cluster = Cluster(3)
    request = candidacy(cluster, 1)
    grant = grant_vote(
        cluster.keys[by],
        cluster.network,
        epoch=0,
        incarnation=0,
        term=Term(named.get("term", request.term)),
        candidate=cluster.node(named.get("candidate", 1)),
        tip=Digest(b"\x01" * 32) if "tip" in named else request.tip_hash,
    )
    is_genuine = (by, named) == (2, {})
    assert won_by(cluster, VoteReply(request.term, cluster.node(2), grant)) == is_genuine
    assert [type(fault) for fault in cluster.faults] == [Invalid] * (not is_genuine)


def test_a_vote_counts_when_its_signature_verifies():
    cluster = Cluster(3)
    reply = answer(cluster, 2, candidacy(cluster, 1))
    assert reply.grant is not None
    forged = dataclasses.replace(reply.grant, signature=bytes(64))
    assert not won_by(cluster, dataclasses.replace(reply, grant=forged))
    assert won_by(cluster, reply)


def test_20_a_vote_of_an_older_election_counts_for_nothing_and_is_no_fault():
    cluster = Cluster(3)
    late = answer(cluster, 2, candidacy(cluster, 1))
    candidacy(cluster, 1)
    assert not won_by(cluster, late)
    assert cluster.faults == []


def test_votes_that_come_when_the_candidacy_is_over_elect_nobody():
    cluster = Cluster(3)
    late = answer(cluster, 2, candidacy(cluster, 1))
    cluster.rafts[1]._become_follower()
    assert not won_by(cluster, late)


def test_08_pre_votes_of_an_older_round_or_that_come_late_start_no_campaign():
    cluster = Cluster(3)
    raft = cluster.rafts[1]
    raft._voter.enter_term(Term(3))
    raft._start_election()
    cluster.step(2, 1, PreVoteReply(Term(2), cluster.node(2), granted=True))
    assert (raft.role, raft.term) == (Role.PRE_CANDIDATE, 3)
    raft._become_follower()
    cluster.step(2, 1, PreVoteReply(Term(4), cluster.node(2), granted=True))
    assert (raft.role, raft.term) == (Role.FOLLOWER, 3)


def test_09_a_pre_vote_for_a_term_that_is_over_is_refused_with_the_newer_term():
    cluster = Cluster(3)
    cluster.rafts[2]._voter.enter_term(Term(5))
    reply = asked(cluster, 2, pre_vote_of(cluster, 3, 5))
    assert (reply.granted, reply.term) == (False, 5)
    cluster.step(2, 3, reply)
    assert cluster.rafts[3].term == 5


def test_09_the_only_node_that_can_win_is_in_an_old_term_and_wins():
    """etcd #8243: 2 is in term 5 and lacks a committed block, 3 has it and is in term 1; the leader dies."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1, 3), (2,))
    height = cluster.propose(1)
    cluster.settle()
    assert cluster.rafts[3].commit_height == height
    cluster.crash(1)
    cluster.rafts[2]._become_follower(Term(5))
    cluster.heal()
    cluster.run_until(lambda: cluster.leaders == [3])
    assert cluster.rafts[3].term == 6


def test_10_the_lease_of_a_leader_that_fell_silent_ends_before_the_own_time_out_does():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    cluster.crash(1)
    request = pre_vote_of(cluster, 2, 2)
    follower = cluster.rafts[3]
    follower._election._timeout = limits.ELECTION_TICKS_MAX
    for _ in range(limits.ELECTION_TICKS_MIN - 1):
        cluster.tick(3)
    assert not asked(cluster, 3, request).granted
    cluster.tick(3)
    assert follower.leader == cluster.node(1)
    assert asked(cluster, 3, request).granted


def test_08_a_leader_helps_nobody_to_replace_it():
    cluster = Cluster(3)
    cluster.elect(1)
    for _ in range(limits.ELECTION_TICKS_MAX):
        cluster.rafts[
            1
        ]._voter.tick += 1  # its last word from itself is long ago; CheckQuorum is another rule
    assert not asked(cluster, 1, pre_vote_of(cluster, 2, 2)).granted
    cluster.step(2, 1, candidacy(cluster, 2))
    assert (cluster.role(1), cluster.rafts[1].term) == (Role.LEADER, 1)


@pytest.mark.parametrize("spoil", ["signature", "tip_hash", "network"])
def test_a_request_that_is_not_what_its_candidate_signed_is_refused_and_raises_no_term(spoil):
    cluster = Cluster(3)
    request = candidacy(cluster, 1)
    other = dataclasses.replace(request.tip, net=NetworkId(b"\x01" * 32))
    forged: RequestVote = {
        "signature": dataclasses.replace(request, signature=bytes(64)),
        "tip_hash": dataclasses.replace(request, tip_hash=Digest(b"\x01" * 32)),
        "network": dataclasses.replace(request, tip=other),
    }[spoil]
    cluster.step(1, 3, forged)
    cluster.drain(3)
    assert len(cluster.faults) == 1
    assert cluster.rafts[3].term == 0
    assert cluster.sent(VoteReply, 3) == []


def test_a_request_signed_over_a_tip_that_is_not_its_header_is_refused():
    cluster = Cluster(3)
    cluster.elect(1)
    raft = cluster.rafts[3]
    raft._become_follower()
    raft._campaign()
    log = raft._voter.log
    log._tip_hash = Digest(b"\x01" * 32)  # it signs the hash of a block that it does not show
    request = raft._election._request(transfer=True)
    cluster.step(3, 2, request)
    assert len(cluster.faults) == 1
    assert cluster.rafts[2].term == 1


def test_decision_12_a_request_from_far_ahead_is_ignored():
    cluster = Cluster(3)
    raft = cluster.rafts[1]
    raft._voter.enter_term(Term(limits.TERM_AHEAD_MAX))
    cluster.step(1, 3, candidacy(cluster, 1))
    cluster.drain(3)
    assert cluster.rafts[3].term == 0
    assert cluster.sent(VoteReply, 3) == []
    cluster.rafts[3]._voter.enter_term(Term(1))
    cluster.step(1, 3, raft._election._request())
    assert cluster.rafts[3].term == limits.TERM_AHEAD_MAX + 1


def test_e4_a_request_that_comes_twice_gets_the_same_grant_and_one_for_another_tip_gets_none():
    """One signature for each of two tips would be two votes of one term, whoever made the candidate show two."""
    cluster = Cluster(3)
    cluster.partition((1, 2), (3,))
    cluster.elect(1)
    request = candidacy(cluster, 2)
    tip = cluster.disks[3].blocks[0]  # voter 3 has nothing else: either tip is as up to date as its own
    form = request_vote_form(
        cluster.network,
        epoch=request.epoch,
        incarnation=request.incarnation,
        term=request.term,
        candidate=request.candidate,
        tip=tip.header,
        tip_hash=tip.hash,
        ack_term=request.ack_term,
        base_height=request.base_height,
        base_hash=request.base_hash,
    )
    signature = cluster.keys[2].sign(form)
    other = dataclasses.replace(request, tip=tip.header, tip_hash=tip.hash, signature=signature)
    first, again, second = (answer(cluster, 3, message).grant for message in (request, request, other))
    assert first is not None
    assert again == first
    assert second is None
    assert cluster.faults == []


def test_e4_who_has_restarted_since_it_voted_grants_nothing_more_in_that_term():
    cluster = Cluster(3)
    request = candidacy(cluster, 2)
    assert answer(cluster, 3, request).grant is not None
    cluster.crash(3)
    cluster.start(3)
    assert answer(cluster, 3, request).grant is None
    assert cluster.rafts[3]._voter.hard.vote == cluster.node(2)
