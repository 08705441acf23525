"""What a leader takes from its followers, and how much it sends them at once (Raft §5.3; ledger.md 1.1 P2, P3; 3.1 no. 19 to 21, 35)."""

import dataclasses

import pytest

from protocol import limits
from protocol.certificate import Acknowledgement, acknowledge
from protocol.errors import Invalid, LocalFault
from protocol.identifiers import Digest, Height, Term
from protocol.raft.messages import AppendEntries, AppendReply, Hint, Refusal, VoteNotice
from protocol.raft.progress import Progress
from tests.protocol.raft.cluster import Cluster


def led_by_1(count: int = 3) -> Cluster:
    cluster = Cluster(count)
    cluster.elect(1)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    return cluster


def waiting() -> tuple[Cluster, Height]:
    """Return a leader with one block that nobody has acknowledged, and the block's height."""
    cluster = led_by_1()
    cluster.partition((1,), (2,), (3,))
    height = cluster.propose(1)
    cluster.drain(1)
    cluster.wires.clear()
    return cluster, height


def progress_of(cluster: Cluster, n: int) -> Progress:
    leadership = cluster.rafts[1]._leadership
    assert leadership is not None
    return leadership._progress[cluster.node(n)]


def ack_of(cluster: Cluster, by: int, height: int, *, term: int = 1, epoch: int = 0, tip: Digest | None = None) -> Acknowledgement:  # fmt: skip
    log = cluster.rafts[1]._voter.log
    return acknowledge(
        cluster.keys[by],
        cluster.network,
        epoch=epoch,
        incarnation=0,
        term=Term(term),
        height=Height(height),
        tip=tip or log.hash(Height(min(height, log.tip_height))),
    )


@pytest.mark.parametrize(
    "spoil", ["another voter", "another term", "another epoch", "another block", "above the tip", "signature"]
)
def test_20_only_a_genuine_acknowledgement_of_the_leaders_own_block_in_its_term_counts(spoil):
    cluster, height = waiting()
    genuine = ack_of(cluster, 2, height)
    ack = {
        "another voter": ack_of(cluster, 3, height),
        "another term": ack_of(cluster, 2, height, term=7),
        "another epoch": ack_of(cluster, 2, height, epoch=1),
        "another block": ack_of(cluster, 2, height, tip=Digest(b"\x01" * 32)),
        "above the tip": ack_of(cluster, 2, height + 1),
        "signature": dataclasses.replace(genuine, signature=bytes(64)),
    }[spoil]
    cluster.step(2, 1, AppendReply(Term(1), cluster.node(2), ack, Height(0), None))
    cluster.drain(1)
    assert [type(fault) for fault in cluster.faults] == [Invalid]
    assert cluster.rafts[1].commit_height < height
    assert progress_of(cluster, 2).match_height < height


def test_19_an_acknowledgement_that_comes_late_is_neither_a_fault_nor_news():
    cluster = led_by_1()
    late = AppendReply(Term(1), cluster.node(2), ack_of(cluster, 2, 1), Height(0), None)
    height = cluster.propose(1)
    cluster.settle()
    cluster.step(2, 1, late)
    progress = progress_of(cluster, 2)
    assert cluster.faults == []
    assert (progress.match_height, progress.ack) == (height, ack_of(cluster, 2, height))


def refusal_of(cluster: Cluster, prev: int, common: int = 1) -> AppendReply:
    log = cluster.rafts[1]._voter.log
    hint = Hint(Height(common), Term(1), log.hash(Height(common)))
    refusal = Refusal(Height(prev), needs_election=False, hints=(hint,))
    return AppendReply(Term(1), cluster.node(2), None, Height(1), refusal)


def test_21_a_refusal_of_what_the_follower_has_acknowledged_is_stale():
    cluster = led_by_1()
    for _ in range(3):
        cluster.propose(1)
        cluster.settle()
    progress = progress_of(cluster, 2)
    cluster.step(2, 1, refusal_of(cluster, 4))
    assert (progress.replicating, progress.match_height, progress.next_height) == (True, 4, 5)


def test_21_while_probing_a_refusal_of_another_probe_than_the_one_under_way_is_stale():
    cluster = led_by_1()
    cluster.cut = {(1, 2), (2, 1)}
    for _ in range(5):
        cluster.propose(1)
        cluster.settle()
    progress = progress_of(cluster, 2)
    progress.probe_from(Height(4), blocks=False)
    cluster.step(2, 1, refusal_of(cluster, 5))
    assert progress.next_height == 4
    cluster.step(2, 1, refusal_of(cluster, 3))
    assert progress.next_height == 2


def test_24_a_follower_that_refuses_the_same_over_and_over_is_not_answered_at_once_for_ever():
    """It names the very block it refuses to follow as common: one of two liars, or of two certified chains (seed 6017)."""
    cluster = led_by_1()
    cluster.cut = {(1, 2), (2, 1)}
    for _ in range(3):
        cluster.propose(1)
        cluster.settle()
    progress = progress_of(cluster, 2)
    progress.probe_from(Height(4), blocks=True)
    cluster.drain(1)
    before = len(cluster.sent(AppendEntries, 1, 2))
    for _ in range(10 * limits.PROBES_PER_HEARTBEAT_MAX):
        cluster.step(2, 1, refusal_of(cluster, 3, common=3))
        cluster.drain(1)
        # An acknowledgement of what is acknowledged already is no reason to start anew either.
        progress.acknowledged(ack_of(cluster, 2, 1))
    assert len(cluster.sent(AppendEntries, 1, 2)) - before <= limits.PROBES_PER_HEARTBEAT_MAX
    cluster.run(limits.HEARTBEAT_TICKS)
    before = len(cluster.sent(AppendEntries, 1, 2))
    cluster.step(2, 1, refusal_of(cluster, 3, common=3))
    cluster.drain(1)
    assert len(cluster.sent(AppendEntries, 1, 2)) > before, "the next interval has answers of its own"
    cluster.cut = set()
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.rafts[2].tip_height == cluster.rafts[1].tip_height


def test_21_no_guess_of_a_refusal_goes_below_what_is_acknowledged():
    progress = Progress(Height(9), 0, match_height=Height(6))
    progress.probe_from(Height(3), blocks=True)
    assert progress.next_height == 7


def test_19_next_index_stays_above_match_index_whatever_comes_late():
    """Frames sent before a refusal are acknowledged after it."""
    cluster = led_by_1()
    for _ in range(4):
        cluster.propose(1)
        cluster.settle()
    progress = Progress(Height(2), 0)
    for height in (2, 5, 3):
        progress.acknowledged(ack_of(cluster, 2, height))
        assert progress.next_height > progress.match_height
    assert (progress.match_height, progress.next_height) == (5, 6)


def test_35_what_was_under_way_before_a_refusal_leaves_the_window():
    progress = Progress(Height(2), 0)
    progress.replicating = True
    progress.sent(Height(9), limits.IN_FLIGHT_BYTES_MAX)
    assert not progress.window_open()
    progress.probe_from(Height(2), blocks=True)
    progress.replicating = True
    assert progress.window_open()


def test_19_a_proof_that_was_lost_is_sent_again():
    cluster = led_by_1()
    cluster.filter = lambda source, target, message: (
        not (isinstance(message, AppendEntries) and target == 2 and (message.proof or message.certificate))
    )
    height = cluster.propose(1)
    cluster.settle()
    assert cluster.rafts[2].tip_height == height
    assert cluster.rafts[2].commit_height < height
    cluster.filter = lambda source, target, message: True
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.rafts[2].commit_height == height


def test_19_the_proof_on_a_frame_that_was_refused_is_sent_again():
    progress = Progress(Height(9), 0, proof_height=Height(8), commit_height=Height(3))
    progress.probe_from(Height(4), blocks=True)
    assert progress.proof_height == 3


def test_19_a_follower_that_forgot_in_a_restart_what_is_committed_is_told_again():
    """What is committed is not durable by itself; until the leader tells it again a configuration is not taken (seed 100335)."""
    cluster = led_by_1()
    height = cluster.propose(1)
    cluster.settle()
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert progress_of(cluster, 2).certified_height == height
    said = cluster.acknowledgement(2, 1, height)
    forgetful = dataclasses.replace(said, certified_height=Height(height - 1))
    cluster.step(2, 1, forgetful)
    before = len(cluster.sent(AppendEntries, 1, 2))
    cluster.run(limits.HEARTBEAT_TICKS)
    frames = cluster.sent(AppendEntries, 1, 2)[before:]
    assert any(frame.certificate is not None and frame.certificate.height == height for frame in frames)


@pytest.mark.parametrize("applied", [1, 2])
def test_19_a_follower_that_restarts_within_one_heartbeat_is_told_again_what_it_had_certified(applied: int):
    """It had not applied it yet, holds every block, and so refuses nothing (seed 203078)."""
    cluster = led_by_1()
    height = cluster.propose(1)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert height == 2
    cluster.crash(3)
    disk = cluster.disks[3]
    disk.applied, disk.frontier = Height(applied), cluster.states[applied][1]
    disk.certificates = {at: one for at, one in disk.certificates.items() if at <= applied}
    raft = cluster.start(3)
    assert (raft.certified_height, raft.tip_height) == (applied, height)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert disk.applied == raft.certified_height == height


def test_19_a_follower_that_restarts_within_one_heartbeat_is_told_again_what_is_ordered():
    """Where its vote is needed, nothing would become final before the next block: it must know the proof to cast it."""
    cluster = Cluster(2)
    cluster.elect(1)
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    cluster.filter = lambda source, target, message: (
        not (isinstance(message, AppendReply | VoteNotice) and message.vote is not None)
    )
    voted = cluster.disks[2].hard_state
    height = cluster.propose(1)
    cluster.settle()
    said = cluster.acknowledgement(2, 1, height)
    cluster.step(2, 1, dataclasses.replace(said, commit_height=height, certified_height=Height(height - 1)))
    assert progress_of(cluster, 2).is_settled(height, Height(height - 1))
    cluster.crash(2)
    disk = cluster.disks[2]
    disk.hard_state = dataclasses.replace(
        disk.hard_state, last_vote_height=voted.last_vote_height, last_vote_hash=voted.last_vote_hash
    )  # as if it had stopped before it voted
    cluster.votes[2].pop()
    cluster.filter = lambda source, target, message: True
    cluster.start(2)
    cluster.run(3 * limits.HEARTBEAT_TICKS)
    assert {raft.certified_height for raft in cluster.rafts.values()} == {height}


def test_35_a_follower_that_holds_blocks_back_is_not_sent_them_with_every_answer():
    """Each answer had them all sent anew, each of those frames was refused, each refusal was a probe: a storm (seed 100335)."""
    cluster = led_by_1()
    held = cluster.propose(1)
    cluster.settle()
    cluster.partition((1, 2), (3,))
    for _ in range(6):
        cluster.propose(1)
        cluster.settle()
    tip = cluster.rafts[1].tip_height
    answer = cluster.acknowledgement(3, 1, held)
    assert answer.ack is not None
    refused = Refusal(tip, needs_election=False, hints=(Hint(held, Term(1), answer.ack.header_hash),))
    before = len(cluster.sent(AppendEntries, 1, 3))
    for _ in range(20):
        for reply in (dataclasses.replace(answer, refusal=refused), answer):
            cluster.step(3, 1, reply)
            cluster.drain(1)
    assert len(cluster.sent(AppendEntries, 1, 3)) - before <= 2
    cluster.heal()
    cluster.run(2 * limits.HEARTBEAT_TICKS)
    assert cluster.rafts[3].tip_height == tip


@pytest.mark.parametrize(("bound", "value"), [("APPEND_BLOCKS_MAX", 3), ("APPEND_BYTES_MAX", 1_500)])
def test_35_a_frame_is_bounded_in_blocks_and_bytes(monkeypatch, bound, value):
    cluster = led_by_1()
    cluster.partition((1, 2), (3,))
    for _ in range(12):
        cluster.propose(1)
        cluster.settle()
    monkeypatch.setattr(limits, bound, value)
    cluster.heal()
    cluster.trace.clear()
    cluster.run_until(cluster.converged)
    frames = [message.blocks for message in cluster.sent(AppendEntries, 1, 3) if message.blocks]
    assert max(len(blocks) for blocks in frames) <= 3
    assert max(sum(map(len, blocks)) for blocks in frames) <= 2_000
    assert len(frames) >= 4


def test_25_26_a_proof_made_while_the_leaders_disk_lags_does_not_hold_its_acknowledgement():
    cluster = led_by_1()
    cluster.frozen.add(1)
    height = cluster.propose(1)
    cluster.settle()
    raft = cluster.rafts[1]
    assert raft.commit_height == height
    assert max(cluster.disks[1].blocks) < height
    proof = raft._voter.proof
    assert proof is not None
    assert {cluster.number[ack.voter] for ack in proof.acknowledgements} == {2, 3}


def test_28_the_leaders_own_marker_is_written_with_its_block():
    cluster, height = waiting()
    hard = cluster.disks[1].hard_state
    assert (hard.ack_term, hard.ack_height, hard.ack_hash) == (1, height, cluster.disks[1].hash(height))


def test_blocks_that_nobody_has_checked_are_our_own_mistake():
    cluster = led_by_1()
    cluster.propose(1)
    cluster.settle()
    unchecked = next(message for message in cluster.sent(AppendEntries, 1, 2) if message.blocks)
    with pytest.raises(LocalFault):
        cluster.rafts[2].step(cluster.node(1), unchecked, cluster.now_ms)


def test_what_is_durable_is_not_written_again():
    cluster = led_by_1()
    cluster.propose(1)
    cluster.settle()
    for n in (1, 2, 3):
        ready = cluster.rafts[n].ready()
        assert ready is None or not ready.must_persist
    cluster.tick(1)
    cluster.tick(1)
    ready = cluster.rafts[1].ready()
    assert ready is not None
    assert not ready.must_persist
