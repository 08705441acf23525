"""What a follower takes of a frame, and in which order: nothing goes before what takes its place has been checked (Raft §5.3; P2)."""

import dataclasses

import pytest

from protocol import block, codec, limits
from protocol.block import Block
from protocol.errors import Invalid, RemoteFault
from protocol.identifiers import Digest, Height, Term
from protocol.merkle import Frontier
from protocol.raft.messages import AppendEntries, AppendReply, Heartbeat, check_append
from tests.protocol.raft.cluster import Cluster
from tests.protocol.raft.test_membership import led_by_1, voters
from tests.protocol.raft.test_promises import conflicting, elected, frame, proof_of, take


def cut_above(cluster: Cluster, below: Block, *, by: int, term: int) -> Block:
    """Return a block upon one whose chain holds no transactions, cut by whoever in whatever term."""
    log = cluster.rafts[1]._voter.log
    return block.cut(
        (),
        predecessor=below.header,
        predecessor_hash=below.hash,
        frontier=log._entries[below.height].frontier,
        term=Term(term),
        key=cluster.keys[by],
        now_ms=cluster.now_ms + 1,
    )


def deaf_to_2(cluster: Cluster) -> None:
    """Let nothing of the leader's log come to node 2 by itself."""
    cluster.filter = lambda source, target, message: not (isinstance(message, AppendEntries) and target == 2)


def blocks_of(cluster: Cluster, first: int, last: int) -> tuple[Block, ...]:
    return tuple(cluster.disks[1].blocks[height] for height in range(first, last + 1))


def test_a_frame_brings_blocks_and_the_proof_of_them_together():
    cluster = led_by_1()
    deaf_to_2(cluster)
    for _ in range(3):
        cluster.propose(1)
        cluster.settle()
    blocks = blocks_of(cluster, 1, 4)
    take(
        cluster,
        1,
        2,
        frame(cluster, 1, term=1, prev=blocks[0], blocks=blocks[1:], proof=proof_of(cluster, 4)),
    )
    assert cluster.rafts[2].commit_height == 4


def test_43_a_frame_that_begins_with_a_configuration_brings_what_it_stands_upon():
    cluster = led_by_1(3, learners=(4,))
    cluster.filter = lambda source, target, message: (
        not (isinstance(message, AppendEntries) and target == 2 and (message.proof or message.certificate))
    )
    below = cluster.propose(1)
    cluster.settle()
    assert (cluster.rafts[2].tip_height, cluster.rafts[2].commit_height) == (below, below - 1)
    deaf_to_2(cluster)
    cluster.change(1, n4="voter")
    cluster.settle()
    blocks = blocks_of(cluster, below, below + 1)
    cluster.rafts[2].expect_configuration(cluster.rafts[1].configuration.digest)
    take(
        cluster,
        1,
        2,
        frame(cluster, 1, term=1, prev=blocks[0], blocks=blocks[1:], certificate=cluster.certificates[below]),
    )
    assert voters(cluster, 2) == {1, 2, 3, 4}


@pytest.mark.parametrize("kind", [AppendEntries, Heartbeat])
def test_a_leader_of_another_epoch_is_not_followed(kind):
    cluster = led_by_1()
    genuine = next(message for message in cluster.sent(kind, 1, 2) if message.election)
    cluster.rafts[2]._become_follower()
    cluster.step(1, 2, dataclasses.replace(genuine, epoch=1))
    assert len(cluster.faults) == 1
    assert cluster.rafts[2].leader is None


def test_a_frame_signed_for_another_tip_than_that_of_its_blocks_is_refused():
    cluster = led_by_1()
    deaf_to_2(cluster)
    for _ in range(2):
        cluster.propose(1)
        cluster.settle()
    blocks = blocks_of(cluster, 1, 3)
    longer = frame(cluster, 1, term=1, prev=blocks[0], blocks=blocks[1:])
    with pytest.raises(Invalid, match="tip"):
        take(cluster, 1, 2, dataclasses.replace(longer, blocks=longer.blocks[:1]))
    assert cluster.rafts[2].tip_height == 1


def test_p2_a_body_that_is_not_the_one_of_its_header_is_found_before_the_frame_is_stepped():
    cluster = led_by_1()
    height = cluster.propose(1, 2)
    cluster.settle()
    genuine = cluster.disks[1].blocks[height]
    other = Block(genuine.header, genuine.signature, b"", genuine.transactions[::-1])
    base = cluster.disks[1].blocks[height - 1]
    assert check_append(frame(cluster, 1, term=1, prev=base, blocks=(genuine,))).blocks == (genuine,)
    with pytest.raises(RemoteFault):
        check_append(frame(cluster, 1, term=1, prev=base, blocks=(other,)))


@pytest.mark.parametrize("is_committed", [True, False])
def test_21_a_frame_above_another_block_than_the_one_committed_or_acknowledged_condemns_its_leader(
    is_committed,
):
    """Without blocks it would truncate nothing; but what it claims below can only be a lie."""
    cluster = led_by_1()
    other = conflicting(cluster, 1)
    if not is_committed:
        cluster.filter = lambda source, target, message: not isinstance(message, AppendReply)
    height = cluster.propose(1)
    cluster.settle()
    assert (cluster.rafts[2].commit_height == height) == is_committed
    with pytest.raises(Invalid, match="certified" if is_committed else "acknowledged in this term"):
        take(cluster, 1, 2, frame(cluster, 1, term=1, prev=other[0]))
    assert cluster.rafts[2].leader is None


def test_21_nothing_is_truncated_for_blocks_that_do_not_hold():
    """CCF #5991: a rollback before the check loses what the check would have kept."""
    cluster = led_by_1()
    cluster.filter = lambda source, target, message: not isinstance(message, AppendReply)
    height = cluster.propose(1)
    cluster.settle()
    before = cluster.rafts[2]._voter.log.hash(height)
    base = cluster.disks[2].blocks[1]
    no_opening = cut_above(cluster, base, by=3, term=2)  # a term opens with its election certificate
    election = elected(cluster, 3, term=2, tip=base.hash, by=(1, 3))
    message = frame(cluster, 3, term=2, prev=base, blocks=(no_opening,), election=election)
    with pytest.raises(Invalid, match="opens with its election certificate"):
        take(cluster, 3, 2, message)
    cluster.drain(2)
    assert cluster.rafts[2].tip_height == height
    assert cluster.disks[2].hash(height) == before


def test_22_a_short_frame_leaves_a_tail_that_is_not_committed_either():
    cluster = led_by_1()
    cluster.filter = lambda source, target, message: not isinstance(message, AppendReply)
    for _ in range(3):
        cluster.propose(1)
        cluster.settle()
    assert (cluster.rafts[2].tip_height, cluster.rafts[2].commit_height) == (4, 1)
    blocks = blocks_of(cluster, 1, 2)
    for entries in (blocks[1:], ()):
        take(cluster, 1, 2, frame(cluster, 1, term=1, prev=blocks[0], blocks=entries))
        cluster.drain(2)
        assert cluster.rafts[2].tip_height == max(cluster.disks[2].blocks) == 4
        assert cluster.disks[2].hard_state.ack_height == 4


def test_34_a_follower_takes_a_bounded_amount_that_is_not_certified(monkeypatch):
    cluster = led_by_1()
    deaf_to_2(cluster)
    for _ in range(6):
        cluster.propose(1)
        cluster.settle()
    blocks = blocks_of(cluster, 1, 7)
    monkeypatch.setattr(limits, "UNCERTIFIED_BYTES_MAX", len(blocks[2].raw))  # twice that: two blocks
    take(cluster, 1, 2, frame(cluster, 1, term=1, prev=blocks[0], blocks=blocks[1:]))
    assert cluster.rafts[2].tip_height == 3
    take(
        cluster,
        1,
        2,
        frame(cluster, 1, term=1, prev=blocks[2], blocks=blocks[3:], certificate=cluster.certificates[3]),
    )
    assert cluster.rafts[2].tip_height == 5


def test_p0_the_opening_of_another_leader_of_the_term_is_refused_even_with_its_certificate():
    cluster = Cluster(3)
    genesis = cluster.disks[2].blocks[0]
    mine, other = (
        elected(cluster, n, term=1, tip=genesis.hash, by=(1, 2, 3)) for n in (1, 3)
    )  # the voters lied
    opening = block.cut(
        (),
        opening=codec.encode(other),
        predecessor=genesis.header,
        predecessor_hash=genesis.hash,
        frontier=Frontier(),
        term=Term(1),
        key=cluster.keys[3],
        now_ms=cluster.now_ms,
    )
    with pytest.raises(Invalid, match="cannot have"):
        take(cluster, 1, 2, frame(cluster, 1, term=1, prev=genesis, blocks=(opening,), election=mine))
    assert cluster.rafts[2].tip_height == 0


@pytest.mark.parametrize(("candidate", "term"), [(1, 5), (3, 4)])
def test_p0_a_certificate_elects_its_candidate_in_its_term_and_nobody_else(candidate, term):
    cluster = led_by_1()
    tip = cluster.disks[2].hash(Height(1))
    election = elected(cluster, candidate, term=term, tip=tip, by=(1, 2, 3))
    cluster.step(3, 2, Heartbeat(0, Term(5), cluster.node(3), 0, election))
    assert len(cluster.faults) == 1
    assert cluster.rafts[2].leader is None


def test_decision_12_a_leader_from_far_ahead_raises_the_term_upon_its_certificate_only():
    cluster = led_by_1()
    term = Term(cluster.rafts[2].term + limits.TERM_AHEAD_MAX + 1)
    tip = cluster.disks[2].hash(Height(1))
    for by in ((), (3,), (1, 3)):
        election = elected(cluster, 3, term=term, tip=tip, by=by) if by else None
        cluster.step(3, 2, Heartbeat(0, term, cluster.node(3), 0, election))
        assert (cluster.rafts[2].term == term) == (by == (1, 3))
    assert len(cluster.faults) == 2


def test_42_43_a_stranger_raises_no_term_without_a_certificate_of_somebody_known():
    cluster = led_by_1(3, spare=(4,))
    tip = cluster.disks[2].hash(Height(1))
    own = elected(cluster, 4, term=5, tip=Digest(b"\x07" * 32), by=(4,))
    genuine = elected(cluster, 4, term=5, tip=tip, by=(2, 3))
    for election in (None, own):
        cluster.step(4, 2, Heartbeat(0, Term(5), cluster.node(4), 0, election))
        assert cluster.rafts[2].term == 1
    assert len(cluster.faults) == 2
    cluster.step(4, 2, Heartbeat(0, Term(5), cluster.node(4), 0, genuine))
    assert cluster.rafts[2].leader == cluster.node(4)


def test_p0_a_certificate_upon_an_unknown_log_needs_grants_that_verify_and_of_somebody_known():
    cluster = led_by_1()
    unknown = Digest(b"\x07" * 32)
    genuine = elected(cluster, 3, term=5, tip=unknown, by=(1, 3))
    spoilt = tuple(dataclasses.replace(grant, signature=bytes(64)) for grant in genuine.grants)
    cluster.rafts[2]._become_follower()
    for election in (dataclasses.replace(genuine, grants=spoilt), dataclasses.replace(genuine, grants=())):
        cluster.step(3, 2, Heartbeat(0, Term(5), cluster.node(3), 0, election))
        assert cluster.rafts[2].leader is None
    assert len(cluster.faults) == 2
    cluster.step(3, 2, Heartbeat(0, Term(5), cluster.node(3), 0, genuine))
    assert cluster.rafts[2].leader == cluster.node(3)
    assert cluster.rafts[2].commit_height == Height(1)


def test_20_what_is_owed_to_the_leader_of_a_term_ends_with_the_term():
    cluster = led_by_1()
    cluster.filter = lambda source, target, message: target != 2
    cluster.propose(1)
    cluster.settle()
    cluster.filter = lambda source, target, message: True
    cluster.trace.clear()
    blocks = blocks_of(cluster, 1, 2)
    take(cluster, 1, 2, frame(cluster, 1, term=1, prev=blocks[1]))  # refused: block 2 is not here
    cluster.step(3, 2, AppendReply(Term(2), cluster.node(3), None, Height(0), None))
    cluster.drain(2)
    assert cluster.sent(AppendReply, 2) == []
