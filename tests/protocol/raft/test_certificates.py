"""P4 to P6 of ledger.md 1.1 without lies: who votes when, what is certified, and what happens when nothing is."""

import dataclasses

import pytest

from protocol import limits
from protocol.errors import Invalid, Unavailable
from protocol.identifiers import Height
from protocol.raft.messages import AppendEntries, AppendReply, CertificateNotice, PreVote, VoteNotice
from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster
from tests.protocol.raft.lies import vote_of


def led_by_1(count: int = 3, *, witnesses: tuple[int, ...] = ()) -> Cluster:
    cluster = Cluster(count, witnesses=witnesses)
    cluster.elect(1)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    cluster.trace.clear()
    return cluster


def without_certificates(cluster: Cluster, *, but: int | None = None) -> None:
    """Let no certificate come from node 1, the leader, but to one node."""
    cluster.filter = lambda source, target, message: (
        not (source == 1 and target != but and isinstance(message, AppendEntries) and message.certificate)
    )


# --- votes


@pytest.mark.parametrize(("voters", "quorum"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 4)])
def test_p5_what_is_handed_out_has_the_votes_of_exactly_q_signers(voters: int, quorum: int) -> None:
    cluster = led_by_1(voters)
    height = cluster.propose(1)
    cluster.run(1)
    assert {cluster.disks[n].applied for n in cluster.keys} == {height}
    assert len(cluster.certificates[height].votes) == quorum


def test_p4_one_vote_covers_all_that_was_ordered_while_the_disk_was_busy() -> None:
    cluster = led_by_1()
    cluster.frozen.add(2)
    for _ in range(5):
        cluster.propose(1)
        cluster.settle()
    before = len(cluster.votes[2])
    cluster.thaw(2)
    cluster.settle()
    assert cluster.disks[2].applied == 6
    assert len(cluster.votes[2]) - before <= 2


def test_p4_a_vote_waits_for_its_disk() -> None:
    cluster = led_by_1()
    cluster.partition((1, 2), (3,))
    cluster.frozen.add(2)
    height = cluster.propose(1)
    cluster.settle()
    cluster.thaw(2)
    cluster.frozen.add(2)  # the block is durable, the vote is not
    cluster.settle()
    assert cluster.rafts[2].commit_height == height
    assert cluster.rafts[1].certified_height < height
    cluster.thaw(2)
    cluster.settle()
    assert cluster.rafts[1].certified_height == height


def test_p4_the_leaders_own_vote_counts_only_when_it_is_durable() -> None:
    cluster = led_by_1()
    cluster.partition((1, 2), (3,))
    height = cluster.propose(1)
    cluster.drain(1)
    cluster.frozen.add(1)
    cluster.settle()
    assert cluster.votes[2][-1].height == height
    assert cluster.rafts[1].certified_height < height
    cluster.thaw(1)
    cluster.settle()
    assert cluster.rafts[1].certified_height == height


def test_p4_what_is_not_proven_gets_no_vote() -> None:
    cluster = led_by_1()
    cluster.filter = lambda source, target, message: (
        not (source == 1 and isinstance(message, AppendEntries) and (message.proof or message.certificate))
    )
    height = cluster.propose(1)
    cluster.settle()
    assert cluster.rafts[2].tip_height == height
    assert cluster.disks[2].hard_state.last_vote_height < height


def test_p4_a_vote_after_a_restart_names_a_base_that_the_crash_did_not_forget() -> None:
    cluster = led_by_1()
    for _ in range(3):
        height = cluster.propose(1)
        cluster.settle()
    applied, disk = cluster.disks[2].hard_state.certificate_height, cluster.disks[2]
    assert 0 < applied < height
    disk.applied = Height(0)  # what was applied was not synchronised
    disk.frontier = cluster.states[0][1]
    disk.certificates.clear()
    cluster.crash(2)
    cluster.start(2)
    base = cluster.rafts[2]._voter.base[0]
    assert base == applied
    cluster.run_until(lambda: cluster.disks[2].applied == height)
    assert all(vote.base_height >= applied for vote in cluster.votes[2][-1:])


def test_p4_a_vote_upon_a_base_that_is_not_known_to_be_certified_is_not_counted_until_it_is() -> None:
    cluster = led_by_1()
    cluster.filter = lambda source, target, message: not isinstance(message, AppendReply | VoteNotice)
    for _ in range(2):
        cluster.propose(1)
    cluster.settle()
    log = cluster.rafts[1]._voter.log
    certifying = cluster.rafts[1]._certifying
    early = vote_of(cluster, 2, log.block(Height(3)), log.block(Height(2)))
    certifying.take_vote(early)
    assert not certifying._counts(early)
    cluster.filter = lambda source, target, message: True
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.rafts[1].certified_height == 3


def test_p4_a_vote_that_was_not_signed_by_its_signer_is_refused() -> None:
    cluster = led_by_1()
    cluster.filter = lambda source, target, message: not isinstance(message, AppendReply)
    height = cluster.propose(1)
    cluster.settle()
    log = cluster.rafts[1]._voter.log
    vote = vote_of(cluster, 2, log.block(height), log.block(Height(height - 1)))
    forged = dataclasses.replace(vote, signature=bytes(64))
    with pytest.raises(Invalid, match="commit vote"):
        cluster.rafts[1].step(cluster.node(2), VoteNotice(forged), cluster.now_ms)


# --- certificates that are withheld or lost


def test_53_signers_make_the_certificate_that_their_leader_withholds() -> None:
    cluster = led_by_1(4)
    without_certificates(cluster)
    height = cluster.propose(1)
    cluster.settle()
    assert [cluster.disks[n].applied for n in (2, 3, 4)] == [height - 1] * 3
    cluster.run(limits.VOTE_NOTICE_TICKS + 1)
    assert [cluster.disks[n].applied for n in (2, 3, 4)] == [height] * 3
    assert cluster.sent(CertificateNotice)


def test_53_who_has_the_certificate_answers_who_still_votes_for_its_block() -> None:
    cluster = led_by_1()
    without_certificates(cluster, but=2)
    kept = cluster.filter
    cluster.filter = lambda source, target, message: (
        kept(source, target, message) and not (isinstance(message, VoteNotice) and (source, target) != (3, 2))
    )
    height = cluster.propose(1)
    cluster.settle()
    assert (cluster.disks[2].applied, cluster.disks[3].applied) == (height, height - 1)
    cluster.run(limits.VOTE_NOTICE_TICKS + 1)
    assert cluster.disks[3].applied == height
    assert cluster.sent(CertificateNotice, 2, 3)


def test_p6_no_vote_is_noticed_while_certificates_come_in_time() -> None:
    cluster = led_by_1(4)
    for _ in range(20):
        cluster.propose(1)
        cluster.run(1)
    assert cluster.sent(VoteNotice) == cluster.sent(CertificateNotice) == []


def test_p6_a_vote_is_noticed_after_some_ticks_and_then_now_and_then() -> None:
    cluster = led_by_1(4)
    cluster.filter = lambda source, target, message: (
        not (
            isinstance(message, CertificateNotice | VoteNotice)
            or (source == 1 and target != 1 and isinstance(message, AppendEntries) and message.certificate)
        )
    )
    noticed: list[int] = []
    kept = cluster.filter

    def count(source: int, target: int, message: object) -> bool:
        if isinstance(message, VoteNotice) and source == 2:
            noticed.append(target)
        return kept(source, target, message)  # type: ignore[arg-type]

    cluster.filter = count
    cluster.propose(1)
    cluster.settle()
    cluster.run(limits.VOTE_NOTICE_TICKS - 1)
    assert noticed == []
    cluster.run(2)
    assert noticed == sorted(noticed, key=cluster.node)
    assert len(noticed) == 3
    cluster.run(limits.VOTE_NOTICE_AGAIN_TICKS)
    assert len(noticed) == 6


def test_p5_a_certificate_of_a_block_that_is_not_here_yet_is_remembered_until_it_comes() -> None:
    cluster = led_by_1()
    cluster.partition((1, 2), (3,))
    height = cluster.propose(1)
    cluster.settle()
    notice = CertificateNotice(cluster.node(2), cluster.certificates[height])
    cluster.step(2, 3, notice)
    assert cluster.rafts[3].certified_height < height
    cluster.filter = lambda source, target, message: (
        not (isinstance(message, AppendEntries) and (message.certificate or message.proof))
    )
    cluster.rafts[3].step(cluster.node(2), notice, cluster.now_ms)  # heard twice
    cluster.heal()
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.faults == []
    assert cluster.rafts[3].tip_height <= height


def test_p5_who_knows_of_a_certified_block_that_it_does_not_hold_does_not_stand_for_election() -> None:
    cluster = led_by_1()
    cluster.partition((1, 2), (3,))
    height = cluster.propose(1)
    cluster.settle()
    cluster.step(2, 3, CertificateNotice(cluster.node(2), cluster.certificates[height]))
    cluster.trace.clear()
    cluster.run(3 * limits.ELECTION_TICKS_MAX)
    assert cluster.sent(PreVote, 3) == []


# --- fewer than q


def test_p6_finality_pauses_below_q_and_ordering_goes_on_up_to_the_bound() -> None:
    cluster = led_by_1(5)
    cluster.crash(4)
    cluster.crash(5)
    certified = cluster.rafts[1].certified_height
    for _ in range(limits.UNCERTIFIED_BLOCKS_MAX):
        height = cluster.propose(1)
        cluster.settle()
    assert cluster.rafts[1].commit_height == height
    assert cluster.rafts[1].certified_height == certified
    with pytest.raises(Unavailable, match="final"):
        cluster.propose(1)
    cluster.elect(2)  # at the limit the opening of a term stands above it all the same
    assert cluster.rafts[2].tip_height == height + 1
    cluster.start(4)
    cluster.run_until(lambda: cluster.rafts[2].certified_height == height + 1)
    assert cluster.rafts[2].may_propose


def test_p6_no_election_helps_while_fewer_than_q_signers_are_heard() -> None:
    cluster = led_by_1(5)
    cluster.crash(4)
    cluster.crash(5)
    cluster.propose(1)
    cluster.run(3 * limits.CERTIFIED_PROGRESS_TICKS_MIN)
    assert cluster.leaders == [1]
    assert cluster.rafts[1].term == 1


def test_53_voters_replace_a_leader_under_which_nothing_becomes_final() -> None:
    cluster = led_by_1(4)
    cluster.filter = lambda source, target, message: (
        not (source == 1 and isinstance(message, AppendEntries) and (message.proof or message.certificate))
    )
    height = cluster.propose(1)
    cluster.run(limits.CERTIFIED_PROGRESS_TICKS_MIN // 2)
    assert cluster.leaders == [1]
    cluster.run_until(lambda: cluster.leaders not in ([1], []), 3 * limits.CERTIFIED_PROGRESS_TICKS_MIN)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert all(cluster.disks[n].applied > height for n in (2, 3, 4))


def test_p6_a_transaction_that_only_waits_is_reason_enough() -> None:
    cluster = led_by_1()
    for _ in range(limits.CERTIFIED_PROGRESS_TICKS_MIN + 2 * limits.VOTE_NOTICE_AGAIN_TICKS):
        for n in (2, 3):
            cluster.rafts[n].tick(cluster.now_ms, waiting=True)
        cluster.rafts[1].tick(cluster.now_ms)
        cluster.settle()
    assert cluster.rafts[2].term > 1


# --- witnesses


def test_p6_a_witness_votes_and_its_acknowledgements_count_for_nothing() -> None:
    cluster = led_by_1(3, witnesses=(4,))  # q is 3 of 4, r is 2 of 3
    cluster.partition((1, 4), (2, 3))
    height = cluster.propose(1)
    cluster.settle()
    assert cluster.rafts[4].tip_height == height
    assert cluster.rafts[1].commit_height < height
    cluster.partition((1, 2, 4), (3,))
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.disks[4].applied >= height
    assert cluster.node(4) in {vote.signer for vote in cluster.certificates[height].votes}


def test_p6_a_witness_never_stands_for_election_nor_votes_in_one() -> None:
    cluster = led_by_1(3, witnesses=(4,))
    cluster.crash(1)
    cluster.crash(2)
    cluster.run(4 * limits.ELECTION_TICKS_MAX)
    assert cluster.role(4) is Role.FOLLOWER
    assert cluster.leaders == []
    assert cluster.disks[4].hard_state.vote == bytes(32)


# --- configurations (ledger.md 7.2)


def test_7_2_a_configuration_is_taken_only_by_who_has_applied_that_it_is_pending() -> None:
    cluster = Cluster(3, learners=(4,))
    cluster.elect(1)
    cluster.run(2)
    cluster.expects = False
    height = cluster.change(1, n4="voter")
    cluster.settle()
    assert [cluster.rafts[n].tip_height for n in (2, 3)] == [height - 1] * 2
    cluster.expects = True
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.disks[2].applied == height


def test_7_2_a_configuration_needs_a_quorum_of_the_old_signers_and_of_the_new() -> None:
    cluster = Cluster(3, learners=(4,))
    cluster.elect(1)
    cluster.run(2)
    height = cluster.change(1, n4="voter")  # q is 2 of the three, 3 of the four
    cluster.partition((1, 4, 2), (3,))
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert len(cluster.certificates[height].votes) == 3


def test_7_2_who_leaves_votes_for_its_leaving_and_for_nothing_above() -> None:
    cluster = led_by_1(4)
    cluster.filter = lambda source, target, message: target != 4 and not isinstance(message, AppendReply)
    height = cluster.change(1, n4="")
    cluster.settle()
    cluster.crash(1)
    # Three of the four must vote for it; the vote of 4 comes to nobody, and those of the others not to 4.
    cluster.filter = lambda source, target, message: (
        not (
            isinstance(message, VoteNotice)
            or (source == 4 and isinstance(message, AppendReply) and message.vote)
        )
    )
    cluster.elect(2)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    raft = cluster.rafts[4]
    assert raft.commit_height > height > raft.certified_height  # the opening of term 2 is ordered as well
    assert cluster.disks[4].hard_state.last_vote_height == height


def test_7_2_a_later_leader_sends_who_leaves_the_block_that_its_vote_is_needed_for() -> None:
    """Tier A seed 319: the block was ordered without it, and could not become final without it."""
    cluster = led_by_1(4)
    cluster.filter = lambda source, target, message: target != 4 and not isinstance(message, AppendReply)
    height = cluster.change(1, n4="")
    cluster.settle()
    cluster.crash(1)
    cluster.filter = lambda source, target, message: True
    cluster.elect(2)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.disks[4].applied >= height
    assert cluster.node(4) in {vote.signer for vote in cluster.certificates[height].votes}


def test_7_2_a_leader_that_forgot_the_certificate_of_its_base_hears_that_of_a_configuration_block() -> None:
    """Tier A seed 500382: its vote named the configuration block as base, so nobody sent it that block's certificate."""
    cluster = Cluster(3, learners=(4,))
    cluster.elect(1)
    cluster.run(2)
    configuration = cluster.change(1, n4="voter")
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    cluster.propose(1)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    disk = cluster.disks[1]
    assert disk.hard_state.certificate_height >= configuration
    disk.applied = Height(0)  # what was applied was not synchronised
    disk.frontier = cluster.states[0][1]
    disk.certificates.clear()
    cluster.crash(1)
    cluster.start(1)
    assert cluster.rafts[1].certified_height < configuration
    cluster.elect(1)
    cluster.run_until(lambda: disk.applied == cluster.rafts[1].tip_height)
    assert cluster.rafts[1].certified_height > configuration


def test_7_2_who_forgot_the_certificates_of_two_changes_takes_one_after_the_other() -> None:
    """Tier A seed 601784: the second counts in a configuration that is neither the certified one nor the newest."""
    cluster = Cluster(3, learners=(4, 5))
    cluster.elect(1)
    cluster.run(2)
    for learner in ("n4", "n5"):
        cluster.change(1, **{learner: "voter"})
        cluster.run(2 * limits.HEARTBEAT_TICKS)
    disk, height = cluster.disks[2], cluster.rafts[1].certified_height
    disk.applied = Height(0)  # what was applied was not synchronised
    disk.frontier = cluster.states[0][1]
    disk.certificates.clear()
    cluster.crash(2)
    cluster.start(2)
    log = cluster.rafts[2]._voter.log
    assert (log.certified, log.tip_height) == (0, height)
    cluster.run_until(lambda: disk.applied == height)
    assert cluster.faults == []
