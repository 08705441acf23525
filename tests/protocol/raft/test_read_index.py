"""ReadIndex (Raft thesis §6.4), scenarios 45 to 47 of ledger.md 3.2: what is read is not stale, whatever clocks do."""

import pytest

from protocol import limits
from protocol.errors import NotLeader, Unavailable
from protocol.raft.messages import AppendReply, HeartbeatReply, ReadIndexReply, ReadIndexRequest
from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster

HOUR_MS = 3_600_000


def led_by_1(count: int = 3) -> Cluster:
    cluster = Cluster(count)
    cluster.elect(1)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    return cluster


def test_a_read_at_the_leader_is_answered_with_its_committed_height_after_one_round():
    cluster = led_by_1()
    height = cluster.propose(1)
    cluster.settle()
    read = cluster.read(1)
    assert cluster.answers(1) == {}
    cluster.settle()
    assert cluster.answers(1) == {read: height}


def test_a_read_at_a_follower_is_answered_through_the_leader():
    cluster = led_by_1()
    height = cluster.propose(1)
    cluster.settle()
    read = cluster.read(3)
    cluster.settle()
    assert cluster.answers(3) == {read: height}


def test_reads_of_one_turn_share_a_round_and_need_no_tick():
    cluster = led_by_1()
    cluster.trace.clear()
    reads = [cluster.read(1) for _ in range(100)]
    cluster.settle()
    assert sorted(cluster.answers(1)) == reads
    assert len(cluster.sent(HeartbeatReply)) == 2


def test_a_lone_voter_reads_without_asking_anybody():
    cluster = Cluster(1)
    cluster.run(1)
    read = cluster.read(1)
    cluster.settle()
    assert cluster.answers(1) == {read: 1}


def test_46_a_read_at_a_new_leader_waits_for_the_first_commit_of_its_own_term():
    cluster = led_by_1()
    cluster.filter = lambda source, target, message: not isinstance(message, AppendReply)
    cluster.elect(2)
    read = cluster.read(2)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.answers(2) == {}
    cluster.filter = lambda source, target, message: True
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.answers(2) == {read: cluster.rafts[2].commit_height}
    assert cluster.rafts[2]._voter.log.term(cluster.rafts[2].commit_height) == cluster.rafts[2].term


def test_47_a_leader_cut_off_answers_no_read_and_says_so_when_it_steps_down():
    cluster = led_by_1()
    cluster.partition((1,), (2, 3))
    read = cluster.read(1)
    cluster.run(limits.ELECTION_TICKS_MIN - 2)
    assert cluster.answers(1) == {}
    cluster.run_until(lambda: cluster.leaders not in ([1], []))
    cluster.propose(cluster.leader())
    cluster.run(limits.ELECTION_TICKS_MIN)
    assert cluster.answers(1) == {read: None}


def test_47_a_read_at_a_follower_cut_off_is_given_up_and_a_node_without_a_leader_takes_none():
    cluster = led_by_1()
    cluster.partition((1, 2), (3,))
    read = cluster.read(3)
    cluster.run(limits.ELECTION_TICKS_MAX)
    assert cluster.answers(3) == {read: None}
    with pytest.raises(NotLeader):
        cluster.read(3)


def test_47_a_read_that_reaches_a_former_leader_is_refused_at_once():
    cluster = led_by_1()
    cluster.partition((1, 3), (2,))
    cluster.rafts[1]._become_follower()
    read = cluster.read(3)
    cluster.settle()
    assert cluster.answers(3) == {read: None}


@pytest.mark.parametrize("jump_ms", [HOUR_MS, -HOUR_MS])
def test_45_a_jump_of_the_leaders_clock_changes_nothing_for_reads(jump_ms):
    cluster = led_by_1()
    height = cluster.propose(1)
    cluster.settle()
    cluster.skew_ms[1] = jump_ms
    reads = cluster.read(1), cluster.read(2)
    cluster.run(1)
    assert (cluster.answers(1), cluster.answers(2)) == ({reads[0]: height}, {reads[1]: height})


def test_45_a_leader_that_slept_through_its_replacement_never_answers_with_the_old_height():
    """etcd #20418: a pause of the process (SIGSTOP) with reads in flight, and answers from before the pause on the way."""
    cluster = led_by_1()
    leadership = cluster.rafts[1]._leadership
    assert leadership is not None
    leadership._heartbeats._due = True
    cluster.drain(1)
    for n in (2, 3):  # answers to an earlier round are under way when it falls asleep
        while any(target == n for _, target, _ in cluster.wires):
            cluster.deliver(next(at for at, (_, target, _) in enumerate(cluster.wires) if target == n))
        cluster.drain(n)
    asleep = [wire for wire in cluster.wires if wire[1] == 1]
    assert asleep
    cluster.wires.clear()
    before = cluster.read(1)
    sleeper = cluster.rafts.pop(1)
    for _ in range(3 * limits.ELECTION_TICKS_MAX):
        cluster.run(1)
    newer = cluster.propose(cluster.leader())
    cluster.settle()
    cluster.rafts[1] = sleeper
    assert cluster.rafts[1].role is Role.LEADER
    after = cluster.read(1)
    cluster.wires = asleep + cluster.wires
    cluster.drain(1)
    cluster.settle()
    cluster.run(2)
    assert newer > 1
    assert cluster.answers(1) == {before: None, after: None}


def test_an_answer_to_an_earlier_round_confirms_no_later_read():
    cluster = led_by_1()
    first = cluster.read(1)
    cluster.settle()
    old = cluster.sent(HeartbeatReply, 2, 1)[-1]
    cluster.partition((1,), (2, 3))
    second = cluster.read(1)
    cluster.drain(1)
    cluster.step(2, 1, old)
    cluster.drain(1)
    assert cluster.answers(1).keys() == {first}
    assert second != first


def test_a_forwarded_read_is_answered_only_by_the_leader_it_was_sent_to_and_once():
    cluster = led_by_1()
    read = cluster.read(2)
    cluster.step(3, 2, ReadIndexReply(cluster.node(3), read, None))
    cluster.drain(2)
    assert cluster.answers(2) == {}
    cluster.wires += [wire for wire in cluster.wires if wire[0] == 2]
    cluster.settle()
    assert cluster.answers(2) == {read: 1}


def test_numbers_of_reads_do_not_come_again_after_a_restart():
    cluster = led_by_1()
    before = {cluster.read(2) for _ in range(10)}
    cluster.crash(2)
    cluster.start(2)
    cluster.run(4)
    assert before.isdisjoint({cluster.read(2) for _ in range(10)})


def test_reads_that_wait_are_bounded(monkeypatch):
    monkeypatch.setattr(limits, "READS_PENDING_MAX", 3)
    cluster = led_by_1()
    cluster.partition((1,), (2,), (3,))
    for n in (1, 2):
        for _ in range(3):
            cluster.read(n)
        with pytest.raises(Unavailable):
            cluster.read(n)
    cluster.step(3, 1, ReadIndexRequest(cluster.node(3), 7))
    cluster.drain(1)
    assert cluster.sent(ReadIndexReply, 1, 3) == [ReadIndexReply(cluster.node(1), 7, None)]


def test_32_reads_go_on_while_the_leaders_disk_stalls():
    cluster = led_by_1()
    cluster.frozen.add(1)
    cluster.propose(1)
    cluster.settle()
    read = cluster.read(1)
    cluster.settle()
    assert cluster.answers(1) == {read: cluster.rafts[1].commit_height}


def test_47_an_answered_read_makes_room_for_another(monkeypatch):
    monkeypatch.setattr(limits, "READS_PENDING_MAX", 2)
    cluster = led_by_1()
    for n in (1, 2):
        for _ in range(3):
            reads = {cluster.read(n), cluster.read(n)}
            cluster.settle()
            assert reads <= cluster.answers(n).keys()


def test_47_what_the_old_leader_was_asked_is_given_up_as_soon_as_there_is_another():
    cluster = led_by_1()
    cluster.cut = {(3, 1)}  # the question is lost, the heartbeats are not
    read = cluster.read(3)
    cluster.settle()
    cluster.heal()
    cluster.rafts[1].transfer_leadership(cluster.node(2))
    cluster.settle()
    assert cluster.rafts[3].leader == cluster.node(2)
    cluster.run(1)
    assert cluster.answers(3) == {read: None}


def test_20_45_an_answer_of_an_older_term_confirms_no_read_and_shows_no_life():
    """Rounds are counted from one in every leadership."""
    cluster = led_by_1()
    cluster.read(1)
    cluster.settle()
    old = cluster.sent(HeartbeatReply, 2, 1)[-1]
    assert old.context == 1
    cluster.elect(2)
    cluster.elect(1)
    cluster.partition((1,), (2, 3))
    read = cluster.read(1)
    cluster.drain(1)
    for _ in range(limits.ELECTION_TICKS_MIN + 1):
        cluster.step(2, 1, old)
        cluster.drain(1)
        assert cluster.answers(1).get(read) is None
        cluster.run(1)
    assert cluster.role(1) is Role.FOLLOWER
    assert cluster.answers(1)[read] is None
    assert cluster.faults == []


@pytest.mark.parametrize("stalled", [1, 3], ids=["leader", "reader"])
def test_32_a_forwarded_read_waits_for_no_disk_either(stalled):
    cluster = led_by_1()
    cluster.frozen.add(stalled)
    cluster.propose(1)
    cluster.settle()
    read = cluster.read(3)
    cluster.settle()
    assert cluster.answers(3) == {read: cluster.rafts[1].commit_height}
    assert stalled in cluster.waiting


def test_47_a_read_that_waited_for_the_first_commit_of_a_term_is_given_up_with_the_term():
    cluster = led_by_1()
    cluster.filter = lambda source, target, message: not isinstance(message, AppendReply)
    cluster.elect(2)
    read = cluster.read(2)
    cluster.settle()
    cluster.rafts[2]._become_follower()
    cluster.drain(2)
    assert cluster.answers(2) == {read: None}


def test_47_a_read_that_was_lost_on_the_way_is_given_up_while_its_leader_is_heard():
    cluster = led_by_1()
    cluster.filter = lambda source, target, message: not isinstance(message, ReadIndexRequest)
    read = cluster.read(3)
    cluster.run(limits.ELECTION_TICKS_MAX)
    assert cluster.rafts[3].leader == cluster.node(1)
    assert cluster.answers(3) == {read: None}
