"""Offers of snapshots: what a leader says whose log begins above a follower's next block (ledger.md 3.1 no. 36, 39).

Sources: scylladb #29092 for 39. In this cluster the driver installs at once and whole; how a node gets state and blocks from
its peers, and what a crash leaves of that, is tried in tests/node.
"""

import dataclasses

import pytest

from protocol import limits
from protocol.certificate import Acknowledgement
from protocol.identifiers import Digest, Height, NodeId, Term
from protocol.raft.messages import AppendEntries, AppendReply, InstallSnapshot
from protocol.raft.progress import Progress
from tests.protocol.raft.cluster import Cluster
from tests.protocol.raft.left_behind import ROUND, behind, elected, healed, offer_of, rebuild, signed

# --- 36: what a leader does not hold it offers ------------------------------------------------------------------------


def test_36_a_follower_whose_next_block_the_leader_does_not_hold_is_told_so_and_goes_on_from_what_it_installs():
    cluster = healed()
    assert cluster.behind[3] == [11]
    assert cluster.rafts[3].commit_height < 11
    rebuild(cluster, 3, 11)
    cluster.run_until(cluster.converged)
    cluster.propose(1)
    cluster.run_until(cluster.converged)
    assert cluster.rafts[3].commit_height == 12
    assert cluster.faults == []
    assert cluster.leaders == [1]


def test_36_a_follower_that_has_acknowledged_blocks_in_the_term_takes_the_next_one_with_all_others():
    """What it acknowledged lies below what it installed, so it says nothing more in that term."""
    cluster = healed()
    cluster.install(3, 11)
    cluster.run_until(lambda: cluster.led() and cluster.rafts[1].term > 1)
    height = cluster.propose(cluster.leader())
    cluster.run_until(cluster.led)
    assert cluster.rafts[3].commit_height == height
    assert cluster.faults == []


def test_36_a_follower_that_lags_gets_blocks_as_long_as_the_leader_holds_its_next():
    cluster = behind()
    cluster.drop(1, cluster.rafts[3].commit_height)  # the block below the next is the last that is needed
    cluster.heal()
    cluster.run_until(cluster.converged)
    assert cluster.sent(InstallSnapshot) == []
    assert cluster.behind[3] == []


def test_36_a_log_from_block_1_on_is_whole():
    cluster = Cluster(3)
    cluster.partition((1, 2), (3,))
    cluster.elect(1)
    cluster.propose(1)
    cluster.settle()
    cluster.drop(1, 1)
    cluster.heal()
    cluster.run_until(cluster.converged)
    assert cluster.sent(InstallSnapshot) == []
    assert cluster.rafts[3].commit_height == 2


def test_36_a_leader_that_drops_blocks_while_a_follower_takes_them_ends_in_one_snapshot_and_no_loop(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(limits, "APPEND_BLOCKS_MAX", 2)
    cluster = behind(blocks=40)
    cluster.drop(1, 0)
    cluster.heal()
    frames = 0

    def few(source: int, target: int, message: object) -> bool:
        nonlocal frames
        frames += isinstance(message, AppendEntries) and bool(message.blocks) and target == 3
        return frames < 3 or target != 3

    cluster.filter = few
    cluster.run(ROUND)
    cluster.filter = lambda source, target, message: True
    cluster.drop(1, cluster.rafts[1].commit_height)
    cluster.run(3 * ROUND)
    assert len(cluster.behind[3]) == 1
    cluster.install(3, cluster.behind[3][0])
    cluster.run_until(lambda: cluster.led() and cluster.rafts[1].term > 1)
    offers = len(cluster.sent(InstallSnapshot))
    cluster.run(4 * ROUND)
    assert len(cluster.sent(InstallSnapshot)) == offers
    assert len(cluster.behind[3]) == 1


def test_36_a_leader_that_drops_what_it_has_sent_and_not_heard_of_offers_instead():
    cluster = behind(blocks=0)
    for _ in range(3):
        cluster.propose(1)
        cluster.settle()
    cluster.drop(1, cluster.rafts[1].commit_height)
    cluster.heal()
    cluster.run(3 * ROUND)
    assert cluster.behind[3] == [cluster.rafts[1].commit_height]
    cluster.install(3, cluster.behind[3][0])
    cluster.run_until(cluster.converged)
    assert cluster.faults == []


def test_36_the_others_are_served_and_blocks_are_committed_while_one_waits_for_a_snapshot():
    cluster = healed()
    for _ in range(2 * limits.IN_FLIGHT_APPENDS_MAX):
        cluster.propose(1)
        cluster.settle()
    assert (
        cluster.rafts[2].commit_height
        == cluster.rafts[1].commit_height
        == 11 + 2 * limits.IN_FLIGHT_APPENDS_MAX
    )


def test_36_nothing_but_offers_goes_to_who_waits_for_a_snapshot_and_they_are_repeated_with_the_heartbeat():
    cluster = healed()
    cluster.trace.clear()
    for _ in range(5):
        cluster.propose(1)
        cluster.settle()
    cluster.run(4 * ROUND)
    assert cluster.sent(AppendEntries, 1, 3) == []
    assert len(cluster.sent(InstallSnapshot, 1, 3)) == 4


def test_36_an_acknowledgement_of_an_old_block_opens_no_window_to_who_waits_for_a_snapshot():
    progress = Progress(Height(6), 0)
    progress.offer_snapshot()
    old = Acknowledgement(NodeId(bytes(32)), 0, 0, Term(1), Height(5), Digest(bytes(32)), bytes(64))
    progress.acknowledged(old)
    assert (progress.match_height, progress.snapshotting, progress.replicating) == (5, True, False)


def test_36_a_lost_offer_is_repeated():
    cluster = behind()
    cluster.heal()
    cluster.filter = lambda source, target, message: not isinstance(message, InstallSnapshot)
    cluster.run(2 * ROUND)
    assert cluster.behind[3] == []
    cluster.filter = lambda source, target, message: True
    cluster.run(ROUND)
    assert cluster.behind[3] == [11]


def test_36_blocks_are_sent_again_when_history_has_come_back_to_the_leader():
    cluster = healed()
    cluster.drop(1, 0)
    cluster.run_until(cluster.converged)
    assert cluster.rafts[3].commit_height == 11


def test_36_blocks_are_sent_again_when_history_has_come_back_far_enough_and_not_before():
    cluster = healed()
    next_height = cluster.rafts[3].tip_height + 1
    cluster.drop(1, next_height)
    cluster.run(2 * ROUND)
    assert cluster.rafts[3].tip_height < next_height
    cluster.drop(1, next_height - 1)
    cluster.run_until(cluster.converged)
    assert cluster.rafts[3].commit_height == 11


@pytest.mark.parametrize("proven", [None, 2])
def test_36_a_leader_that_cannot_prove_yet_what_it_holds_offers_nothing(proven: int | None):
    cluster = behind()
    held = cluster.rafts[1]._voter.certificates
    held.clear()
    if proven:
        held.append(cluster.certificates[proven])
    for height in [at for at in cluster.disks[1].certificates if at != proven]:
        del cluster.disks[1].certificates[height]
    cluster.heal()
    cluster.run(2 * ROUND)
    assert cluster.sent(InstallSnapshot) == []
    cluster.propose(1)
    cluster.run(2 * ROUND)
    assert cluster.behind[3] == [12]


def test_32_36_offers_wait_for_no_disk():
    cluster = behind()
    cluster.frozen.add(1)
    cluster.propose(1)
    cluster.heal()
    cluster.run(2 * ROUND)
    assert 1 in cluster.waiting
    assert cluster.behind[3] == [11]


def led_by_a_newcomer() -> Cluster:
    """Return a cluster where 4 leads, which joined while 3 was away, and holds only its newest blocks."""
    cluster = Cluster(3, spare=(4,))
    cluster.elect(1)
    cluster.partition((1, 2, 4), (3,))
    cluster.change(1, n4="learner")
    cluster.settle()
    cluster.join(4)
    cluster.run(2 * ROUND)
    cluster.change(1, n4="voter")
    cluster.run(2 * ROUND)
    cluster.elect(4)
    cluster.propose(4)
    cluster.run(2 * ROUND)
    cluster.drop(4, cluster.rafts[4].commit_height)
    return cluster


def test_36_a_member_that_was_away_while_somebody_joined_takes_the_offer_of_the_newcomer():
    cluster = led_by_a_newcomer()
    cluster.heal()
    cluster.run(2 * ROUND)
    assert cluster.behind[3] == [cluster.rafts[4].commit_height]
    cluster.install(3, cluster.behind[3][0])
    cluster.run_until(cluster.converged)
    assert cluster.faults == []


def test_36_a_learner_is_offered_a_snapshot_as_a_voter_is():
    cluster = behind(2, learners=(3,))
    cluster.heal()
    cluster.run(2 * ROUND)
    assert cluster.behind[3] == [11]
    cluster.install(3, 11)
    cluster.run_until(cluster.converged)
    assert cluster.faults == []


# --- 39: whoever leads --------------------------------------------------------------------------------------------------


def test_39_a_new_leader_offers_anew_and_what_was_installed_for_the_old_one_is_as_good():
    """scylladb #29092: a transfer that belongs to a term must not outlive it; an installation belongs to none."""
    cluster = healed()
    cluster.drop(2, cluster.rafts[2].commit_height)
    cluster.elect(2)
    cluster.run(2 * ROUND)
    assert cluster.behind[3] == [11, 12]
    cluster.install(3, 11)
    cluster.run_until(cluster.converged)
    assert cluster.rafts[3].commit_height == 12
    assert cluster.faults == []


def test_39_after_a_change_to_a_leader_with_all_blocks_no_snapshot_is_needed():
    cluster = healed()
    cluster.elect(2)
    cluster.run_until(cluster.converged)
    assert cluster.behind[3] == [11]
    assert cluster.rafts[3].commit_height == 12


def test_39_a_voter_that_waits_for_a_snapshot_votes_as_before_but_is_not_elected():
    cluster = healed()
    cluster.crash(2)
    cluster.run(2 * limits.ELECTION_TICKS_MAX)
    assert 3 not in cluster.leaders
    cluster.start(2)
    cluster.run_until(lambda: bool(cluster.leaders), ticks=400)
    assert cluster.leader() in (1, 2)


def test_39_a_leader_installed_from_a_snapshot_leads_before_history_has_come_back():
    cluster = healed()
    cluster.install(3, 11)
    cluster.run_until(cluster.converged)
    cluster.crash(2)
    cluster.elect(3)
    cluster.disks[2].lowest = Height(0)
    cluster.start(2)
    cluster.propose(3)
    cluster.run_until(cluster.converged)
    assert cluster.leaders == [3]
    assert cluster.faults == []


# --- offers that cannot be ----------------------------------------------------------------------------------------------


def test_an_offer_with_a_certificate_that_does_not_hold_condemns_its_leader():
    cluster = behind()
    raft = cluster.rafts[1]
    held = raft.certificate
    assert held is not None
    few = dataclasses.replace(held, votes=held.votes[:1])
    offer = InstallSnapshot(0, raft.term, cluster.node(1), Height(11), held, elected(cluster), bytes(64))
    for wrong in (dataclasses.replace(offer, certificate=few), dataclasses.replace(offer, first=Height(99))):
        cluster.crash(3)
        cluster.start(3)
        cluster.faults.clear()
        cluster.step(1, 3, signed(cluster, wrong))
        cluster.drain(3)
        assert len(cluster.faults) == 1
        assert cluster.behind[3] == []
        assert cluster.rafts[3].leader is None


def test_an_offer_is_signed_by_its_leader_over_what_it_offers():
    cluster = behind()
    cluster.heal()
    cluster.run(2 * ROUND)
    offer = offer_of(cluster)
    cluster.crash(3)
    cluster.start(3)
    cluster.behind[3].clear()
    cluster.step(1, 3, dataclasses.replace(offer, first=Height(3)))
    cluster.drain(3)
    assert len(cluster.faults) == 1
    assert cluster.behind[3] == []


def test_an_offer_to_who_does_not_know_the_leader_of_the_term_is_answered_with_the_wish_to():
    cluster = healed()
    cluster.drop(2, cluster.rafts[2].commit_height)
    cluster.elect(2)
    cluster.run(2 * ROUND)
    offer = dataclasses.replace(cluster.sent(InstallSnapshot, 2, 3)[-1], election=None)
    cluster.crash(3)
    cluster.start(3)
    cluster.behind[3].clear()
    cluster.trace.clear()
    cluster.step(2, 3, offer)
    cluster.drain(3)
    [reply] = cluster.sent(AppendReply, 3, 2)
    assert reply.refusal.needs_election
    assert cluster.behind[3] == []
    cluster.run(2 * ROUND)
    assert cluster.behind[3] == [12]


def test_an_offer_by_members_that_nobody_knows_is_taken_from_nobody():
    cluster = led_by_a_newcomer()
    offers: list[InstallSnapshot] = []

    def keep(source: int, target: int, message: object) -> bool:
        if isinstance(message, InstallSnapshot):
            offers.append(message)
        return not isinstance(message, InstallSnapshot)

    cluster.filter = keep
    cluster.heal()
    cluster.run(2 * ROUND)
    held = offers[-1].certificate
    strangers = tuple(vote for vote in held.votes if vote.signer == cluster.node(4))
    forged = tuple(dataclasses.replace(vote, signature=bytes(64)) for vote in held.votes)
    for votes in (strangers, forged):
        cluster.crash(3)
        cluster.start(3)
        cluster.faults.clear()
        few = dataclasses.replace(held, votes=votes)
        cluster.step(4, 3, dataclasses.replace(offers[0], certificate=few))
        cluster.drain(3)
        assert len(cluster.faults) == 1
        assert cluster.behind[3] == []


def test_an_offer_of_a_block_of_a_later_term_than_its_leaders_is_refused():
    cluster = behind(blocks=0)
    election = elected(cluster)
    term = cluster.rafts[1].term
    cluster.elect(2)
    cluster.propose(2)
    cluster.run(ROUND)
    held = cluster.rafts[2].certificate
    assert held is not None
    assert held.header.term > term == cluster.rafts[3].term
    offer = InstallSnapshot(0, term, cluster.node(1), held.height, held, election, bytes(64))
    cluster.step(1, 3, signed(cluster, offer))
    cluster.drain(3)
    [fault] = cluster.faults
    assert "cannot have" in str(fault)
    assert cluster.behind[3] == []
