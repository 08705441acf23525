"""The crash-fault scenarios of ledger.md 3.1 about replication and commitment, by number, with where each bug shipped."""

import dataclasses

import pytest

from protocol import limits
from protocol.block import Block
from protocol.errors import Corruption, NotLeader, Unavailable
from protocol.identifiers import Height
from protocol.merkle import Frontier
from protocol.raft.messages import AppendEntries, AppendReply
from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster
from tests.protocol.raft.members import Disk


def commit_heights(cluster: Cluster) -> set[int]:
    return {raft.commit_height for raft in cluster.rafts.values()}


def test_01_figure_8_an_older_block_held_by_a_majority_is_not_committed_by_counting():
    cluster = Cluster(5)
    cluster.elect(1)
    cluster.partition((1, 2), (3, 4, 5))
    old = cluster.propose(1)
    cluster.settle()
    cluster.crash(1)
    cluster.start(1)
    cluster.heal()
    cluster.filter = lambda source, target, message: not isinstance(message, AppendEntries)
    cluster.elect(1)
    leader = cluster.rafts[1]
    for n in (2, 3):  # with the leader, a majority holds the old block now
        cluster.step(n, 1, cluster.acknowledgement(n, 1, old))
    cluster.drain(1)
    assert leader.commit_height < old
    for n in (2, 3):
        cluster.disks[n].blocks.update(
            {h: leader._voter.log.block(Height(h)) for h in (old, old + 1)}
        )  # they store them, too
        cluster.step(n, 1, cluster.acknowledgement(n, 1, old + 1))
    cluster.drain(1)
    assert leader.commit_height == old + 1


def test_02_a_new_leader_commits_the_older_tail_through_its_opening_without_any_client():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.filter = lambda source, target, message: not isinstance(message, AppendReply)
    height = cluster.propose(1)
    cluster.settle()
    assert commit_heights(cluster) == {1}
    cluster.crash(1)
    cluster.filter = lambda source, target, message: True
    cluster.elect(2)
    opening = cluster.rafts[2]._voter.log.block(Height(height + 1))
    assert opening.opening
    assert not opening.transactions
    assert commit_heights(cluster) == {height + 1}


def test_13_14_an_isolated_leader_commits_nothing_steps_down_and_gives_up_its_tail():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1,), (2, 3))
    lost = cluster.propose(1)
    lost_hash = cluster.rafts[1]._voter.log.hash(lost)
    cluster.run(limits.ELECTION_TICKS_MIN + 1)
    assert cluster.rafts[1].role is not Role.LEADER
    assert cluster.rafts[1].commit_height < lost
    with pytest.raises(NotLeader):
        cluster.propose(1)
    cluster.run_until(lambda: bool(cluster.leaders))
    kept = cluster.propose(cluster.leader())
    cluster.heal()
    cluster.run_until(cluster.converged)
    assert cluster.rafts[1]._voter.log.hash(lost) != lost_hash
    assert commit_heights(cluster) == {kept}


def test_19_every_message_may_come_twice_and_in_any_order():
    cluster = Cluster(3, seed=3)
    cluster.elect(1)
    for _ in range(20):
        cluster.propose(1)
        for n in cluster.keys:
            cluster.drain(n)
        cluster.wires += cluster.wires[:]
        cluster.random.shuffle(cluster.wires)
        cluster.settle()
    cluster.run(limits.ELECTION_TICKS_MIN)
    assert commit_heights(cluster) == {21}
    assert cluster.faults == []
    assert cluster.leaders == [1]


def test_20_an_acknowledgement_of_an_older_term_is_ignored():
    cluster = Cluster(3)
    cluster.elect(1)
    old = cluster.acknowledgement(2, 1, 1)
    cluster.elect(3)
    cluster.elect(1)
    cluster.partition((1,), (2,), (3,))
    height = cluster.propose(1)
    cluster.drain(1)
    before = cluster.rafts[1].commit_height
    cluster.step(2, 1, old)
    cluster.drain(1)
    assert cluster.rafts[1].commit_height == before < height


def test_21_a_stale_refusal_neither_moves_a_leader_below_the_match_nor_truncates_anything():
    """CCF #5991; openraft #1500."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1, 2), (3,))
    for _ in range(3):
        cluster.propose(1)
        cluster.settle()
    cluster.heal()
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    refusal = next(reply for reply in cluster.sent(AppendReply, 3, 1) if reply.refusal is not None)
    leadership = cluster.rafts[1]._leadership
    assert leadership is not None
    progress = leadership._progress[cluster.node(3)]
    next_height = progress.next_height
    cluster.step(3, 1, refusal)
    assert progress.replicating
    assert progress.match_height == 4
    assert progress.next_height == next_height == 5
    cluster.settle()
    assert cluster.rafts[3].commit_height == 4


def test_22_a_short_frame_that_is_a_prefix_of_the_log_leaves_the_longer_tail():
    cluster = Cluster(3)
    cluster.elect(1)
    for _ in range(3):
        cluster.propose(1)
        cluster.settle()
    first = next(frame for frame in cluster.sent(AppendEntries, 1, 2) if frame.blocks)
    cluster.step(1, 2, first)
    cluster.drain(2)
    assert cluster.rafts[2].tip_height == 4
    assert cluster.sent(AppendReply, 2)[-1].ack.height == cluster.disks[2].hard_state.ack_height == 4
    assert max(cluster.disks[2].blocks) == 4


def test_23_a_conflicting_block_and_all_after_it_are_replaced():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1,), (2, 3))
    for _ in range(3):
        cluster.propose(1)
    cluster.drain(1)
    assert max(cluster.disks[1].blocks) == 4
    cluster.elect(2)
    cluster.heal()
    cluster.run(4)
    assert max(cluster.disks[1].blocks) == 2
    assert cluster.disks[1].blocks == cluster.disks[2].blocks


def test_24_many_divergent_terms_take_a_bounded_number_of_round_trips():
    cluster = Cluster(3)
    cluster.elect(1)
    for _ in range(6):  # 1 and 2 lead by turns, by the vote of 3, and nobody else gets their blocks
        for n in (2, 1):
            cluster.filter = lambda source, target, message: not isinstance(message, AppendEntries)
            cluster.elect(n)
            cluster.propose(n)
            cluster.settle()
    cluster.filter = lambda source, target, message: True
    assert cluster.rafts[1].uncommitted_count > 10
    assert cluster.rafts[2].uncommitted_count > 10
    refusals = len([reply for reply in cluster.sent(AppendReply) if reply.refusal])
    cluster.run_until(cluster.led)
    refusals = len([reply for reply in cluster.sent(AppendReply) if reply.refusal]) - refusals
    assert refusals <= 2 * 2


def test_25_the_leaders_own_log_counts_only_where_it_is_durable():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1, 2), (3,))
    height = cluster.propose(1)
    cluster.drain(2)
    raft = cluster.rafts[1]
    frames = raft.ready()
    assert frames is not None
    assert not frames.must_persist
    cluster.finish(1, frames)
    ready = raft.ready()
    assert ready is not None
    cluster.disks[2].blocks[height] = ready.append[0]
    cluster.step(2, 1, cluster.acknowledgement(2, 1, height))
    assert raft.ready() is None or raft.commit_height < height
    assert raft.commit_height < height
    cluster.finish(1, ready)
    cluster.drain(1)
    assert raft.commit_height == height


def test_26_a_leader_that_crashes_before_its_own_write_has_no_block_and_the_others_commit_without_it():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.frozen.add(1)
    height = cluster.propose(1)
    cluster.drain(1)  # the block waits for the disk, the frame that carries it leaves
    cluster.settle()
    assert [raft.commit_height for n, raft in sorted(cluster.rafts.items())] == [height] * 3
    cluster.crash(1)
    assert cluster.start(1).tip_height < height
    cluster.run_until(cluster.led)
    assert min(commit_heights(cluster)) > height


def acknowledged_only(disk: Disk) -> None:
    """Let a voter have promised nothing of its blocks but that it holds them: no vote, no certificate."""
    disk.hard_state = dataclasses.replace(
        disk.hard_state, last_vote_height=Height(0), certificate_height=Height(0)
    )


def test_28_a_log_that_lost_an_acknowledged_block_is_not_voted_with():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1)
    cluster.settle()
    cluster.crash(2)
    disk = cluster.disks[2]
    disk.applied, disk.frontier = Height(0), Frontier()
    del disk.blocks[2]
    acknowledged_only(disk)
    with pytest.raises(Corruption, match="acknowledged"):
        cluster.start(2)


def test_28_29_a_log_with_another_block_than_the_acknowledged_one_is_not_voted_with():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.filter = lambda source, target, message: not isinstance(message, AppendReply)
    cluster.propose(1)
    cluster.settle()
    cluster.crash(2)
    other = Cluster(3)
    other.elect(3)
    other.propose(3)
    other.settle()
    disk = cluster.disks[2]
    assert disk.hard_state.ack_height == 2
    disk.blocks.update({h: other.disks[3].blocks[h] for h in (1, 2)})
    disk.applied, disk.frontier = Height(0), Frontier()
    acknowledged_only(disk)
    with pytest.raises(Corruption, match="acknowledged"):
        cluster.start(2)


@pytest.mark.parametrize("damaged", [3, 10])
def test_29_a_damaged_block_is_sent_to_nobody_and_what_is_committed_survives_it(monkeypatch, damaged):
    """The store says so with Corruption; the driver lets it end the voter, and the others have the block."""
    monkeypatch.setattr(limits, "LOG_CACHE_BYTES_MAX", 2_000)
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1, 2), (3,))
    for _ in range(20):
        cluster.propose(1)
        cluster.settle()
    disk, whole = cluster.disks[1], cluster.disks[1].block

    def block(height: Height) -> Block:
        if height == damaged:
            raise Corruption(f"block {height} does not decode")
        return whole(height)

    monkeypatch.setattr(disk, "block", block)
    cluster.heal()
    cluster.trace.clear()
    with pytest.raises(Corruption):
        cluster.run(2 * limits.HEARTBEAT_TICKS)
    sent = [frame for frame in cluster.sent(AppendEntries, 1, 3) if frame.blocks]
    assert all(not frame.prev_height < damaged <= frame.prev_height + len(frame.blocks) for frame in sent)
    assert disk.applied == max(disk.blocks) == 21  # nothing was truncated
    cluster.crash(1)
    cluster.run_until(lambda: bool(cluster.leaders))
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.disks[3].blocks[damaged] == cluster.disks[2].blocks[damaged]


def test_32_a_leader_whose_disk_stalls_keeps_its_heartbeats_and_its_leadership():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.frozen.add(1)
    height = cluster.propose(1)
    cluster.run(2 * limits.ELECTION_TICKS_MAX)
    assert cluster.leaders == [1]
    cluster.thaw(1)
    cluster.run(4)
    assert commit_heights(cluster) == {height}
    assert {raft.term for raft in cluster.rafts.values()} == {1}


def test_34_proposals_are_refused_when_too_much_is_uncommitted():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1,), (2,), (3,))
    for _ in range(limits.UNCERTIFIED_BLOCKS_MAX):
        assert cluster.rafts[1].may_propose
        cluster.propose(1)
    assert not cluster.rafts[1].may_propose
    with pytest.raises(Unavailable):
        cluster.propose(1)
    cluster.heal()
    cluster.run(4)
    assert commit_heights(cluster) == {limits.UNCERTIFIED_BLOCKS_MAX + 1}
    assert cluster.rafts[1].may_propose


def test_34_proposals_are_refused_when_too_many_bytes_are_uncommitted(monkeypatch):
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1,), (2,), (3,))
    with monkeypatch.context() as patch:
        patch.setattr(limits, "UNCERTIFIED_BYTES_MAX", 1)
        cluster.propose(1)
        assert not cluster.rafts[1].may_propose
        with pytest.raises(Unavailable):
            cluster.propose(1)
    cluster.heal()
    cluster.run(4)
    assert cluster.rafts[1].may_propose


def test_35_the_window_to_a_silent_follower_is_bounded_and_the_others_are_not_held_up():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut = {(3, 1)}
    before = len(cluster.sent(AppendEntries, 1, 3))
    for _ in range(40):
        cluster.propose(1)
        cluster.settle()
    frames = cluster.sent(AppendEntries, 1, 3)[before:]
    assert sum(bool(frame.blocks) for frame in frames) <= limits.IN_FLIGHT_APPENDS_MAX
    assert cluster.rafts[2].commit_height == 41
    cluster.heal()
    cluster.run_until(cluster.converged)
    assert cluster.rafts[3].commit_height == 41


def test_a_follower_far_behind_commits_as_it_catches_up_from_the_leaders_store(monkeypatch):
    monkeypatch.setattr(limits, "LOG_CACHE_BYTES_MAX", 20_000)
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1, 2), (3,))
    for _ in range(300):
        cluster.propose(1)
        cluster.settle()
    held: list[int] = []

    def watch(_source: int, _target: int, _message: object) -> bool:
        held.append(cluster.rafts[3].uncommitted_count)
        return True

    cluster.filter = watch
    cluster.heal()
    cluster.run_until(cluster.converged)
    assert cluster.rafts[3].commit_height == 301
    assert max(held) <= 2 * limits.APPEND_BLOCKS_MAX
    assert len(cluster.rafts[1]._voter.log._entries) < 60


def test_a_whole_cluster_that_lost_power_comes_back_with_what_it_had():
    cluster = Cluster(3)
    cluster.elect(1)
    for _ in range(5):
        cluster.propose(1)
        cluster.settle()
    for n in cluster.keys:
        cluster.crash(n)
        cluster.wires.clear()
    for n in cluster.keys:
        cluster.start(n)
    cluster.run_until(cluster.led)
    assert commit_heights(cluster) == {7}


def test_a_lost_frame_is_sent_again_after_a_bounded_time():
    cluster = Cluster(2)
    cluster.elect(1)
    cluster.cut = {(1, 2)}
    cluster.propose(1)
    cluster.settle()
    cluster.heal()
    ticks = cluster.run_until(cluster.converged)
    assert ticks <= 2 * limits.HEARTBEAT_TICKS
