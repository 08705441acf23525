"""Voters that go on from a snapshot, with whatever they had promised before, and offers that come late (ledger.md 3.1 no. 37, 38).

Sources: hashicorp/raft #697 for 37; camunda #6092 and #4451, RedisLabs/raft #49, atomix #417 for 38.
"""

import dataclasses

import pytest

from protocol.errors import Corruption
from protocol.identifiers import Height, Term
from protocol.raft.messages import AppendEntries, AppendReply, InstallSnapshot
from protocol.raft.state import HardState, Role
from tests.protocol.raft.cluster import Cluster
from tests.protocol.raft.left_behind import (
    ROUND,
    behind,
    diverged,
    elected,
    healed,
    installed,
    offer_of,
    rebuild,
    signed,
)

# --- 37: what loses to an installed block is gone, whole, and nothing else --------------------------------------------


@pytest.mark.parametrize("tail", [2, 5, 6, 7, 20])
def test_37_a_conflicting_tail_is_gone_whole_after_the_installation_and_blocks_are_taken_again(tail: int):
    """hashicorp/raft #697: kept, it would be conflicted with for ever."""
    cluster = diverged(tail)
    lost = cluster.disks[3].hash(Height(1 + tail))
    cluster.heal()
    cluster.run(3 * ROUND)
    height = cluster.behind[3][0]
    raft = cluster.install(3, height)
    assert (raft.tip_height, raft.commit_height) == (height, height)
    cluster.run_until(cluster.converged)
    for _ in range(tail):
        cluster.propose(cluster.leader())
        cluster.settle()
    cluster.run_until(cluster.converged)
    assert cluster.disks[3].hash(Height(1 + max(tail, height))) != lost
    assert cluster.faults == []


def test_37_where_a_tail_diverged_is_not_looked_for_below_what_the_leader_holds():
    cluster = diverged(20)
    cluster.elect(2)  # which knows nothing of 3 and has to ask
    cluster.drop(2, 7)
    cluster.heal()
    cluster.run(3 * ROUND)
    assert cluster.behind[3] == [8]
    cluster.install(3, 8)
    cluster.run_until(cluster.converged)
    assert cluster.faults == []


def test_37_an_acknowledged_block_that_lost_to_the_installed_one_does_not_keep_a_voter_from_starting():
    for tail in (2, 5, 20):  # below, and above what is installed
        cluster = diverged(tail)
        marker = cluster.disks[3].hard_state
        assert (marker.ack_term, marker.ack_height) == (1, 1 + tail)
        raft = cluster.install(3, 7)
        assert raft.term == 2


def test_37_what_lost_needs_no_word_of_the_installation():
    cluster = diverged(20)
    disk = cluster.disks[3]
    marker = disk.hard_state
    cluster.crash(3)
    disk.install(*cluster.states[7], cluster.certificates[7])
    disk.hard_state = marker
    assert cluster.start(3).term == 2


def test_37_an_acknowledged_block_that_is_gone_without_having_lost_is_still_damage():
    """The certified block is not of a later term than the acknowledgement: its leader held what was acknowledged."""
    cluster = diverged(20)
    disk = cluster.disks[3]
    marker = dataclasses.replace(disk.hard_state, term=Term(2), ack_term=Term(2))
    cluster.crash(3)
    disk.install(*cluster.states[7], cluster.certificates[7])
    disk.hard_state = marker  # no installation has said that a tail made way for it
    with pytest.raises(Corruption):
        cluster.start(3)


# --- 37: what a liar led this voter to acknowledge, in the very term that goes on -------------------------------------


@pytest.mark.parametrize("tail", [2, 5, 20])  # below what is installed, at its height, above it
def test_37_in_a_term_whose_acknowledgements_cannot_be_compared_with_the_installed_block_nothing_more_is_said(
    tail: int,
):
    """If the leader of that term lied, they may be of another branch, and the next one of the term would convict (E2)."""
    cluster = diverged(tail)
    disk = cluster.disks[3]
    disk.hard_state = dataclasses.replace(disk.hard_state, term=Term(2), ack_term=Term(2))
    raft = cluster.install(3, 6 if tail == 5 else 7)
    assert raft.term == 3
    assert raft.leader is None
    cluster.drain(3)
    hard = disk.hard_state
    assert (hard.term, hard.ack_term, hard.ack_height) == (3, 2, 1 + tail)
    cluster.drop(1, 0)
    cluster.heal()
    cluster.run_until(lambda: disk.hard_state.ack_term > 3)
    cluster.run_until(cluster.led)
    assert cluster.faults == []


def test_37_a_term_is_not_left_when_what_was_acknowledged_in_it_is_there_and_the_same():
    cluster = behind(blocks=3)
    cluster.heal()
    cluster.drop(1, 0)
    cluster.run_until(cluster.converged)
    term = cluster.rafts[3].term
    cluster.crash(3)
    raft = cluster.start(3)
    assert (raft.term, cluster.disks[3].hard_state.ack_term) == (term, term)


def test_37_a_voter_whose_acknowledgement_lost_below_what_is_certified_starts_and_leaves_the_term():
    """History has come since it was installed: the block that it acknowledged is another one there."""
    cluster = diverged(2)
    disk = cluster.disks[3]
    disk.hard_state = dataclasses.replace(disk.hard_state, term=Term(2), ack_term=Term(2))
    cluster.crash(3)
    disk.install(*cluster.states[7], cluster.certificates[7])
    disk.blocks.update({at: cluster.states[at][0] for at in range(1, 7)})
    disk.lowest = Height(0)
    assert cluster.start(3).term == 3


def test_37_an_acknowledged_block_missing_above_a_tail_that_links_is_still_damage():
    cluster = healed()
    cluster.heal()
    cluster.install(3, 11)
    cluster.run_until(cluster.converged)
    cluster.partition((1, 2), (3,))
    disk = cluster.disks[3]
    cluster.propose(1)
    cluster.propose(1)
    cluster.settle()
    block = cluster.disks[1].block(Height(12))
    disk.blocks[12] = block
    older = dataclasses.replace(
        disk.hard_state, ack_term=Term(0), ack_height=Height(13), ack_hash=bytes([9] * 32)
    )
    disk.hard_state = older
    cluster.crash(3)
    with pytest.raises(Corruption):
        cluster.start(3)


def test_37_an_offer_truncates_nothing():
    cluster = diverged(4)
    before = dict(cluster.disks[3].blocks)
    cluster.heal()
    cluster.run(3 * ROUND)
    assert cluster.behind[3]
    assert cluster.disks[3].blocks == before


def test_37_a_voter_takes_the_term_of_what_it_installed_and_remembers_it():
    cluster = diverged(2)
    assert cluster.disks[3].hard_state.term == 1
    raft = cluster.install(3, 7)
    cluster.drain(3)
    hard = cluster.disks[3].hard_state
    assert raft.term == hard.term == 2
    assert hard.vote == bytes(32)
    assert (hard.ack_term, hard.ack_height) == (1, 3)  # what was promised was promised


def test_37_a_rebuilt_voter_that_starts_from_a_snapshot_campaigns_above_its_term():
    cluster = diverged(2)
    cluster.disks[3].hard_state = HardState.initial()
    raft = cluster.install(3, 7)
    assert raft.term == 2


# --- 38: what is late, doubled or old changes nothing -----------------------------------------------------------------


def test_38_an_offer_that_comes_twice_is_told_once_and_a_newer_one_again():
    cluster = healed()
    offer = offer_of(cluster)
    for _ in range(3):
        cluster.step(1, 3, offer)
        cluster.drain(3)
    assert cluster.behind[3] == [11]
    cluster.propose(1)
    cluster.settle()
    cluster.run(2 * ROUND)
    cluster.step(1, 3, offer)
    cluster.drain(3)
    assert cluster.behind[3] == [11, 12]


def test_38_an_offer_of_what_was_committed_meanwhile_is_answered_and_changes_nothing():
    cluster, late = installed()
    before = cluster.disks[3].blocks.copy()
    cluster.trace.clear()
    cluster.step(1, 3, late)
    cluster.drain(3)
    assert cluster.behind[3] == [11]
    assert cluster.disks[3].blocks == before
    [reply] = cluster.sent(AppendReply, 3, 1)
    assert reply.commit_height >= 11


def test_38_an_offer_of_a_higher_block_is_not_needed_by_who_can_take_the_leaders_blocks():
    cluster, late = installed()
    cluster.partition((1, 2), (3,))
    cluster.propose(1)
    cluster.run(ROUND)
    held = cluster.rafts[1].certificate
    assert held is not None
    offer = signed(cluster, dataclasses.replace(late, certificate=held))
    cluster.step(1, 3, offer)
    cluster.drain(3)
    assert cluster.behind[3] == [11]
    assert cluster.faults == []


def test_38_an_offer_certifies_what_this_log_holds_already():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.filter = lambda source, target, message: (
        not (target == 3 and isinstance(message, AppendEntries) and (message.proof or message.certificate))
    )
    for _ in range(3):
        cluster.propose(1)
        cluster.settle()
    assert cluster.rafts[3].commit_height == 1
    height = cluster.rafts[3].tip_height
    cluster.run(ROUND)
    raft = cluster.rafts[1]
    held = raft.certificate
    assert held is not None
    unsigned = InstallSnapshot(0, raft.term, cluster.node(1), Height(2), held, elected(cluster), bytes(64))
    cluster.step(1, 3, signed(cluster, unsigned))
    cluster.drain(3)
    assert cluster.rafts[3].certified_height == held.height <= height
    assert cluster.behind[3] == []


def test_38_a_tail_that_follows_the_installed_block_is_kept_with_what_was_acknowledged_of_it():
    """camunda #6092: a snapshot of a prefix dropped newer entries, which the others had counted."""
    cluster = Cluster(3)
    cluster.elect(1)
    for _ in range(4):
        cluster.propose(1)
        cluster.settle()
    cluster.filter = lambda source, target, message: not isinstance(message, AppendReply)
    for _ in range(3):
        cluster.propose(1)
        cluster.settle()
    tip = cluster.rafts[3].tip_height
    raft = cluster.install(3, 4)
    assert (raft.commit_height, raft.tip_height) == (4, tip)
    assert cluster.disks[3].hard_state.ack_height == tip
    cluster.filter = lambda source, target, message: True
    cluster.run_until(cluster.converged)
    assert cluster.faults == []


def test_38_an_offer_of_an_older_term_is_answered_with_the_newer_one():
    cluster = healed()
    late = offer_of(cluster)
    cluster.partition((1,), (2, 3))
    cluster.run_until(lambda: 2 in cluster.leaders and cluster.rafts[3].leader == cluster.node(2), ticks=400)
    told = list(cluster.behind[3])
    cluster.trace.clear()
    cluster.step(1, 3, late)
    cluster.drain(3)
    assert cluster.behind[3] == told
    [reply] = cluster.sent(AppendReply, 3, 1)
    assert reply.term == cluster.rafts[3].term > late.term
    assert cluster.rafts[3].leader == cluster.node(2)


def test_38_an_old_frame_below_the_installed_block_is_refused_and_the_leader_goes_on_above_it():
    cluster = behind()
    cluster.drop(1, 0)
    rebuild(cluster, 3, 11)
    frame = next(m for m in cluster.sent(AppendEntries, 1, 2) if m.blocks and m.prev_height == 4)
    cluster.heal()
    cluster.run_until(cluster.converged)
    cluster.trace.clear()
    cluster.step(1, 3, frame)
    cluster.drain(3)
    [reply] = cluster.sent(AppendReply, 3, 1)
    assert [hint.height for hint in reply.refusal.hints] == [11]
    cluster.propose(1)
    cluster.run_until(cluster.converged)
    assert cluster.faults == []


def test_38_a_follower_that_took_a_snapshot_by_itself_is_sent_what_follows_it():
    """The leader knows it by an acknowledgement of this term far below, and holds all blocks."""
    cluster = behind(blocks=0)
    cluster.heal()
    cluster.run_until(cluster.converged)
    cluster.crash(3)
    for _ in range(5):
        cluster.propose(1)
        cluster.settle()
    rebuild(cluster, 3, cluster.rafts[1].commit_height)
    cluster.run_until(cluster.converged)
    cluster.propose(1)
    cluster.run_until(cluster.converged)
    assert cluster.faults == []
    assert cluster.leaders == [1]


def test_38_one_that_took_a_snapshot_and_forgot_its_leader_is_sent_what_follows():
    """The leader begins anew just above what it acknowledged, which is not held there any more."""
    cluster = behind()
    cluster.elect(2)
    cluster.filter = lambda source, target, message: (
        not (target == 3 and isinstance(message, AppendEntries) and message.blocks)
    )
    cluster.heal()
    cluster.run(3 * ROUND)
    marker = cluster.disks[3].hard_state
    assert (marker.ack_term, marker.ack_height) == (2, 1)
    rebuild(cluster, 3, 11)
    cluster.filter = lambda source, target, message: True
    cluster.run(4 * ROUND)
    assert cluster.rafts[3].commit_height == 12
    assert cluster.sent(InstallSnapshot) == []
    assert cluster.faults == []


def test_38_an_acknowledgement_from_before_the_log_began_is_not_signed_again():
    """It holds less than when it started: certificates of an older term have taken it beyond what it acknowledged in this one."""
    cluster = behind(blocks=5)
    cluster.heal()
    cluster.drop(1, 0)
    cluster.run_until(cluster.converged)
    voter = cluster.rafts[3]._voter
    voter.hard = dataclasses.replace(voter.hard, ack_height=Height(1), ack_hash=voter.log.hash(Height(1)))
    cluster.drop(3, 6)
    old = next(m for m in cluster.sent(AppendEntries, 1, 2) if m.blocks and m.prev_height == 2)
    cluster.trace.clear()
    cluster.step(1, 3, old)
    cluster.drain(3)
    [reply] = cluster.sent(AppendReply, 3, 1)
    assert reply.ack is None
    assert reply.commit_height == 6


def test_38_an_acknowledgement_of_what_the_leader_does_not_hold_any_more_is_passed_over():
    cluster = behind(blocks=2)
    cluster.drop(1, 0)
    late = cluster.acknowledgement(3, 1, 2)
    cluster.propose(1)
    cluster.settle()
    cluster.drop(1, cluster.rafts[1].commit_height)
    cluster.step(3, 1, late)
    cluster.drain(1)
    assert cluster.faults == []
    assert cluster.role(1) is Role.LEADER
