"""Heartbeats apart from appends, and the windows of what is under way (Raft §5.2; ledger.md 6.3, scenarios 15, 32 and 35)."""

import dataclasses

from protocol import limits
from protocol.certificate import ElectionCertificate
from protocol.errors import Invalid
from protocol.identifiers import Term
from protocol.raft.messages import AppendEntries, AppendReply, Heartbeat, HeartbeatReply, is_urgent
from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster


def led_by_1(count: int = 3) -> Cluster:
    cluster = Cluster(count)
    cluster.elect(1)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    return cluster


def test_an_idle_leader_sends_heartbeats_and_nothing_else():
    cluster = led_by_1()
    cluster.trace.clear()
    cluster.run(limits.ELECTION_TICKS_MIN)
    assert {type(message) for _, _, message in cluster.trace} == {Heartbeat, HeartbeatReply}


def test_32_blocks_that_are_long_under_way_cost_neither_the_leader_its_quorum_nor_the_followers_their_leader():
    cluster = led_by_1()
    cluster.filter = lambda source, target, message: not isinstance(message, AppendEntries | AppendReply)
    height = cluster.propose(1)
    cluster.run(3 * limits.ELECTION_TICKS_MAX)
    assert cluster.leaders == [1]
    assert {raft.leader for raft in cluster.rafts.values()} == {cluster.node(1)}
    cluster.filter = lambda source, target, message: True
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert {raft.commit_height for raft in cluster.rafts.values()} == {height}


def test_15_a_leader_that_hears_no_answer_to_its_heartbeats_steps_down():
    cluster = led_by_1()
    cluster.cut = {(2, 1), (3, 1)}
    cluster.run(limits.ELECTION_TICKS_MIN + 1)
    assert cluster.role(1) is Role.FOLLOWER


def test_a_heartbeat_brings_the_election_with_it_until_the_follower_knows_it():
    cluster = Cluster(3)
    cluster.filter = lambda source, target, message: not isinstance(message, AppendEntries)
    cluster.elect(1)
    cluster.run(limits.HEARTBEAT_TICKS)
    assert cluster.rafts[2].leader == cluster.node(1)
    cluster.trace.clear()
    cluster.run(limits.HEARTBEAT_TICKS)
    assert [heartbeat.election for heartbeat in cluster.sent(Heartbeat)] == [None, None]


def test_a_follower_that_forgot_the_election_in_a_restart_asks_for_it():
    cluster = Cluster(3)
    cluster.filter = lambda source, target, message: not isinstance(message, AppendEntries)
    cluster.elect(1)
    cluster.run(limits.HEARTBEAT_TICKS)
    cluster.crash(2)
    cluster.start(2)
    assert cluster.rafts[2].leader is None
    cluster.run(3 * limits.HEARTBEAT_TICKS)
    assert any(reply.refusal and reply.refusal.needs_election for reply in cluster.sent(AppendReply, 2))
    assert cluster.rafts[2].leader == cluster.node(1)


def heartbeat_of(cluster: Cluster, n: int, term: int, election: ElectionCertificate | None) -> Heartbeat:
    return Heartbeat(0, Term(term), cluster.node(n), 0, election)


def test_p0_a_heartbeat_of_a_second_leader_of_the_term_is_refused():
    cluster = led_by_1()
    genuine = next(heartbeat for heartbeat in cluster.sent(Heartbeat, 1) if heartbeat.election)
    for election in (None, genuine.election):
        cluster.step(3, 2, heartbeat_of(cluster, 3, cluster.rafts[2].term, election))
    assert [type(fault) for fault in cluster.faults] == [Invalid, Invalid]
    assert cluster.rafts[2].leader == cluster.node(1)


def test_p0_a_heartbeat_whose_certificate_does_not_elect_its_sender_is_not_followed():
    cluster = led_by_1()
    genuine = next(heartbeat for heartbeat in cluster.sent(Heartbeat, 1) if heartbeat.election).election
    forged = dataclasses.replace(genuine, term=Term(5), candidate=cluster.node(3))
    cluster.step(3, 2, heartbeat_of(cluster, 3, 5, forged))
    assert len(cluster.faults) == 1
    assert cluster.rafts[2].leader is None


def test_a_heartbeat_of_an_older_term_is_answered_with_the_newer_one_and_its_sender_steps_down():
    cluster = led_by_1()
    cluster.partition((1,), (2, 3))
    cluster.elect(2)
    cluster.heal()
    old = cluster.sent(Heartbeat, 1)[-1]
    cluster.step(1, 3, old)
    cluster.drain(3)
    answer = cluster.sent(HeartbeatReply, 3, 1)[-1]
    assert (answer.term, answer.context) == (cluster.rafts[3].term, 0)
    cluster.settle()
    assert cluster.leaders == [2]


def test_an_answer_to_a_round_that_has_not_begun_is_refused():
    cluster = led_by_1()
    cluster.step(2, 1, HeartbeatReply(cluster.rafts[1].term, cluster.node(2), 1))
    assert len(cluster.faults) == 1


def test_32_a_follower_whose_disk_stalls_still_answers_heartbeats():
    cluster = led_by_1()
    cluster.frozen.add(2)
    cluster.propose(1)
    cluster.settle()
    cluster.trace.clear()
    cluster.run(limits.HEARTBEAT_TICKS)
    assert cluster.sent(HeartbeatReply, 2, 1)
    assert not cluster.sent(AppendReply, 2, 1)


def test_a_follower_does_not_answer_for_a_term_that_its_disk_has_not_got_yet():
    cluster = Cluster(3)
    cluster.frozen.add(2)
    cluster.elect(1)
    cluster.run(limits.HEARTBEAT_TICKS * 3)
    assert cluster.disks[2].hard_state.term == 0
    assert not cluster.sent(HeartbeatReply, 2, 1)
    cluster.thaw(2)
    cluster.run(limits.HEARTBEAT_TICKS)
    assert cluster.sent(HeartbeatReply, 2, 1)


def test_35_the_window_is_bounded_in_blocks_and_bytes_and_opens_again(monkeypatch):
    for bound, value in (("IN_FLIGHT_BLOCKS_MAX", 3), ("IN_FLIGHT_BYTES_MAX", 1500)):
        with monkeypatch.context() as patch:
            patch.setattr(limits, bound, value)
            patch.setattr(limits, "IN_FLIGHT_APPENDS_MAX", 1000)
            patch.setattr(limits, "APPEND_BLOCKS_MAX", 1)
            cluster = led_by_1()
            cluster.cut = {(3, 1)}
            cluster.trace.clear()
            for _ in range(20):
                cluster.propose(1)
                cluster.settle()
            frames = [frame for frame in cluster.sent(AppendEntries, 1, 3) if frame.blocks]
            assert 1 <= len(frames) <= 3
            assert cluster.rafts[2].commit_height == 21
            cluster.heal()
            cluster.run_until(cluster.converged)
            assert cluster.rafts[3].commit_height == 21


def test_a_block_larger_than_the_window_is_sent_all_the_same(monkeypatch):
    monkeypatch.setattr(limits, "IN_FLIGHT_BYTES_MAX", 1)
    cluster = led_by_1()
    height = cluster.propose(1, 20)
    cluster.settle()
    assert {raft.commit_height for raft in cluster.rafts.values()} == {height}


def test_heartbeats_and_their_answers_are_urgent_and_what_carries_blocks_is_not():
    cluster = led_by_1()
    cluster.propose(1)
    cluster.settle()
    urgent = {type(message) for _, _, message in cluster.trace if is_urgent(message)}
    patient = {type(message) for _, _, message in cluster.trace if not is_urgent(message)}
    assert urgent == {Heartbeat, HeartbeatReply}
    assert AppendEntries in patient


def test_45_a_late_answer_to_an_older_round_takes_nothing_back():
    cluster = led_by_1()
    for _ in range(2):
        cluster.read(1)
        cluster.settle()
    leadership = cluster.rafts[1]._leadership
    assert leadership is not None
    for context in (2, 1):
        cluster.step(2, 1, HeartbeatReply(cluster.rafts[1].term, cluster.node(2), context))
        assert leadership._progress[cluster.node(2)].confirmed == 2


def test_45_an_answer_in_a_newer_term_confirms_no_round_of_the_older():
    """Its sender may lead that newer term by then, and count rounds from one again."""
    cluster = led_by_1()
    cluster.partition((1,), (2, 3))
    cluster.elect(2)
    cluster.heal()
    cluster.step(1, 3, Heartbeat(0, Term(1), cluster.node(1), 5, None))
    cluster.drain(3)
    answer = cluster.sent(HeartbeatReply, 3, 1)[-1]
    assert (answer.term, answer.context) == (cluster.rafts[3].term, 0)


def test_p2_a_leader_that_was_given_up_in_one_term_is_followed_in_the_next():
    cluster = led_by_1()
    for n in (2, 3):
        cluster.rafts[n].distrust(cluster.node(1))
    cluster.rafts[1]._become_follower()
    cluster.elect(1)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert [cluster.rafts[n].leader for n in (2, 3)] == [cluster.node(1)] * 2
