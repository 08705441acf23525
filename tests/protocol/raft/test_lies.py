"""What a lying leader cannot do (ledger.md 1.1 P4, P5, Refusal; scenarios 50 to 53), with lies made by hand."""

import dataclasses

import pytest

from protocol import block, codec, limits
from protocol.block import Block
from protocol.certificate import ElectionCertificate
from protocol.errors import Invalid
from protocol.identifiers import ZERO, Height, Term
from protocol.merkle import Frontier
from protocol.raft.messages import AppendReply, CertificateNotice, PreVoteReply, RequestVote
from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster
from tests.protocol.raft.lies import certificate_of, proof_by, vote_of
from tests.protocol.raft.test_frames import cut_above
from tests.protocol.raft.test_promises import conflicting, elected, frame, take


def opened(count: int) -> Cluster:
    """Return a cluster in which the opening of term 1, led by 1, is certified everywhere, and 1 is about to lie."""
    cluster = Cluster(count)
    cluster.elect(1)
    cluster.run(4)
    cluster.trace.clear()
    return cluster


def two_blocks(cluster: Cluster) -> tuple[Block, Block, Block]:
    """Return the opening, and two blocks of one height and term that leader 1 has signed above it."""
    base = cluster.disks[1].blocks[1]
    one = cut_above(cluster, base, by=1, term=1)
    cluster.now_ms += 1
    other = cut_above(cluster, base, by=1, term=1)
    assert one.hash != other.hash
    cluster.crash(1)
    cluster.liars.add(1)
    return base, one, other


def sent_by(cluster: Cluster, n: int) -> AppendReply:
    """Let a node answer, and return what it says; nothing of it arrives anywhere."""
    cluster.filter = lambda source, target, message: True
    cluster.drain(n)
    reply: AppendReply = cluster.sent(AppendReply, n)[-1]
    cluster.wires.clear()
    return reply


# --- 50: two blocks of one height


def test_50_with_four_signers_two_blocks_of_one_height_never_have_a_quorum_each() -> None:
    cluster = opened(4)
    base, one, other = two_blocks(cluster)
    for n, lie in ((2, one), (3, other), (4, other)):
        take(cluster, 1, n, frame(cluster, 1, term=1, prev=base, blocks=(lie,)))
        assert sent_by(cluster, n).ack is not None
    proof = proof_by(cluster, other, (1, 3, 4))
    for n in (3, 4):
        take(cluster, 1, n, frame(cluster, 1, term=1, prev=other, proof=proof))
        vote = sent_by(cluster, n).vote
        assert vote is not None
        assert vote.header_hash == other.hash
    take(cluster, 1, 2, frame(cluster, 1, term=1, prev=one, proof=proof))
    assert sent_by(cluster, 2).vote is None
    with pytest.raises(Invalid):  # two liars' worth of votes would be needed
        cluster.rafts[2].step(
            cluster.node(3),
            CertificateNotice(cluster.node(3), certificate_of(cluster, one, base, (1, 2))),
            cluster.now_ms,
        )


def test_50_who_holds_the_other_block_leaves_it_for_the_certified_one_and_keeps_what_convicts() -> None:
    cluster = opened(4)
    base, one, other = two_blocks(cluster)
    cluster.liars.add(3)  # it acknowledges everything as well
    take(cluster, 1, 2, frame(cluster, 1, term=1, prev=base, blocks=(one,)))
    sent_by(cluster, 2)
    take(cluster, 1, 2, frame(cluster, 1, term=1, prev=one, proof=proof_by(cluster, one, (1, 2, 3))))
    assert sent_by(cluster, 2).vote is not None
    certificate = certificate_of(cluster, other, base, (1, 3, 4))
    cluster.rafts[2].step(cluster.node(3), CertificateNotice(cluster.node(3), certificate), cluster.now_ms)
    raft = cluster.rafts[2]
    assert raft.tip_height == 1
    assert raft.term == 2  # in term 1 it has acknowledged the other one
    hard = raft._voter.hard
    assert (hard.ack_term, hard.ack_height, hard.left_height) == (1, 2, 2)
    assert hard.last_vote_hash == one.hash


def test_50_what_nobody_relies_on_makes_way_for_the_next_leaders_blocks() -> None:
    cluster = opened(4)
    base, one, other = two_blocks(cluster)
    take(cluster, 1, 2, frame(cluster, 1, term=1, prev=base, blocks=(one,)))
    sent_by(cluster, 2)
    certificate = certificate_of(cluster, other, base, (1, 3, 4))
    cluster.rafts[2].step(cluster.node(3), CertificateNotice(cluster.node(3), certificate), cluster.now_ms)
    raft = cluster.rafts[2]
    assert (raft.tip_height, raft.term) == (2, 1)
    assert not raft._may_campaign


def test_50_two_blocks_of_one_leader_height_and_term_are_kept_as_evidence() -> None:
    cluster = opened(4)
    base, one, other = two_blocks(cluster)
    take(cluster, 1, 2, frame(cluster, 1, term=1, prev=base, blocks=(one,)))
    sent_by(cluster, 2)
    with pytest.raises(Invalid, match="acknowledged in this term"):
        take(cluster, 1, 2, frame(cluster, 1, term=1, prev=base, blocks=(other,)))
    cluster.drain(2)
    [(n, found)] = cluster.contradictions
    assert (n, found.rule, {found.first, found.second}) == (2, "E1", {one, other})


def test_50_a_header_that_its_leader_has_not_signed_convicts_nobody() -> None:
    cluster = opened(4)
    base, one, other = two_blocks(cluster)
    take(cluster, 1, 2, frame(cluster, 1, term=1, prev=base, blocks=(one,)))
    forged = Block(other.header, bytes(64), b"", ())
    with pytest.raises(Invalid):
        take(cluster, 1, 2, frame(cluster, 1, term=1, prev=base, blocks=(forged,)))
    cluster.drain(2)
    assert cluster.contradictions == []


def test_50_with_three_signers_a_fork_is_found_at_the_first_exchange() -> None:
    certificates = []
    for n, which in ((2, 1), (3, 2)):  # two halves of one network: the same keys, the same opening
        cluster = opened(3)
        blocks = two_blocks(cluster)
        base, lie = blocks[0], blocks[which]
        take(cluster, 1, n, frame(cluster, 1, term=1, prev=base, blocks=(lie,)))
        assert sent_by(cluster, n).ack is not None
        proof = proof_by(cluster, lie, (1, n))
        take(cluster, 1, n, frame(cluster, 1, term=1, prev=lie, proof=proof))
        vote = sent_by(cluster, n).vote
        assert vote is not None
        certificate = certificate_of(cluster, lie, base, (1, n))
        take(cluster, 1, n, frame(cluster, 1, term=1, prev=lie, certificate=certificate))
        sent_by(cluster, n)
        assert cluster.disks[n].applied == 2
        certificates.append(certificate)
    notice = CertificateNotice(cluster.node(2), certificates[0])
    cluster.rafts[3].step(cluster.node(2), notice, cluster.now_ms)
    cluster.drain(3)
    [(_, found)] = cluster.contradictions
    assert (found.rule, found.first, found.second) == ("fork", certificates[0], certificates[1].header)
    assert cluster.disks[3].applied == 2


# --- 51: a forged tip


def test_51_a_certified_block_is_not_given_up_for_any_leader_and_the_refusal_says_why() -> None:
    cluster = opened(4)
    height = cluster.propose(1)
    cluster.settle()
    other = conflicting(cluster, 1)
    base = cluster.disks[1].blocks[1]
    election = elected(cluster, 4, term=9, tip=other[-1].hash, by=(2, 3, 4))
    cluster.trace.clear()
    with pytest.raises(Invalid, match="certified block"):
        take(cluster, 4, 2, frame(cluster, 4, term=9, prev=base, blocks=other, election=election))
    reply = sent_by(cluster, 2)
    assert reply.certificate == cluster.certificates[height]
    assert cluster.rafts[2].certified_height == height
    assert cluster.rafts[2].leader is None


def voted_only(count: int = 4) -> tuple[Cluster, Height]:
    """Return a cluster in which 2 has voted for a block that is not certified anywhere it knows of."""
    cluster = opened(count)
    cluster.filter = lambda source, target, message: (
        not (isinstance(message, AppendReply) and message.vote is not None)
    )
    height = cluster.propose(1)
    cluster.settle()
    assert cluster.disks[2].hard_state.last_vote_height == height
    assert cluster.rafts[2].certified_height < height
    return cluster, height


@pytest.mark.parametrize("restart", [False, True])
def test_51_p4_what_was_voted_for_is_not_given_up_without_a_certificate(restart: bool) -> None:
    cluster, height = voted_only()
    if restart:
        cluster.crash(2)
        cluster.start(2)
        assert cluster.rafts[2].commit_height < height
    base = cluster.disks[2].blocks[1]
    opening, election = cut_opening(cluster, base, by=4, term=9)
    with pytest.raises(Invalid, match="proven"):
        take(cluster, 4, 2, frame(cluster, 4, term=9, prev=base, blocks=(opening,), election=election))
    assert cluster.rafts[2].tip_height == height
    proof = sent_by(cluster, 2).proof
    assert restart or (proof is not None and proof.header.height == height)


def cut_opening(cluster: Cluster, base: Block, *, by: int, term: int) -> tuple[Block, ElectionCertificate]:
    """Return a block that opens a term of a liar upon `base`, and the election in which all but 2 voted for it."""
    election = elected(cluster, by, term=term, tip=base.hash, by=(1, 3, 4))
    return cut_by(cluster, base, by=by, term=term, opening=codec.encode(election)), election


def cut_by(cluster: Cluster, below: Block, *, by: int, term: int, opening: bytes = b"") -> Block:
    """Return a block without transactions of any member upon a block without any below it."""
    return block.cut(
        (),
        opening=opening,
        predecessor=below.header,
        predecessor_hash=below.hash,
        frontier=Frontier(),
        term=Term(term),
        key=cluster.keys[by],
        now_ms=cluster.now_ms,
    )


def test_51_p4_for_a_certificate_what_was_voted_for_is_given_up_and_votes_go_on_above_it() -> None:
    cluster, height = voted_only()
    before = cluster.disks[2].hard_state
    base = cluster.disks[2].blocks[1]
    opening, election = cut_opening(cluster, base, by=4, term=9)
    certificate = certificate_of(cluster, opening, base, (1, 3, 4))
    cluster.crash(1)
    raft = cluster.rafts[2]
    raft.step(cluster.node(3), CertificateNotice(cluster.node(3), certificate), cluster.now_ms)
    assert (raft.tip_height, raft.term) == (1, 9)
    assert not raft._may_campaign
    assert (raft._voter.hard.left_height, raft._voter.hard.last_vote_hash) == (height, before.last_vote_hash)
    take(cluster, 4, 2, frame(cluster, 4, term=9, prev=base, blocks=(opening,), election=election))
    assert (raft.tip_height, raft.certified_height) == (height, height)
    assert raft._voter.log.hash(height) == opening.hash
    above = cut_by(cluster, opening, by=4, term=9)
    take(cluster, 4, 2, frame(cluster, 4, term=9, prev=opening, blocks=(above,)))
    take(cluster, 4, 2, frame(cluster, 4, term=9, prev=above, proof=proof_by(cluster, above, (1, 3, 4))))
    raft._certifying.cast()
    vote = raft._certifying.uncertified_vote
    assert vote is not None
    assert (vote.height, vote.base_height, vote.base_hash) == (height + 1, height, opening.hash)
    assert raft._voter.hard.left_height == 0


def test_e5b_a_pre_candidate_that_leaves_its_tail_asks_for_no_vote_before_it_holds_the_certified_block() -> (
    None
):
    """The tip that it would show leaves out what it has acknowledged, and no certified base excuses it yet."""
    cluster, height = voted_only()
    base = cluster.disks[2].blocks[1]
    opening, election = cut_opening(cluster, base, by=4, term=9)
    cluster.crash(1)
    take(cluster, 4, 2, frame(cluster, 4, term=9, prev=base, election=election))
    raft = cluster.rafts[2]
    raft._patience._elapsed = limits.CERTIFIED_PROGRESS_TICKS_MIN
    raft._start_election()
    certificate = certificate_of(cluster, opening, base, (1, 3, 4))
    take(cluster, 4, 2, frame(cluster, 4, term=9, prev=base, certificate=certificate))
    assert (raft.role, raft.term, raft.tip_height) == (Role.PRE_CANDIDATE, 9, 1)
    cluster.drain(2)
    for n in (3, 4):
        raft.step(cluster.node(n), PreVoteReply(Term(10), cluster.node(n), granted=True), cluster.now_ms)
    cluster.drain(2)
    assert cluster.sent(RequestVote, 2) == []
    assert raft.term == 9
    take(cluster, 4, 2, frame(cluster, 4, term=9, prev=base, blocks=(opening,)))
    assert raft.certified_height == height
    assert raft._may_campaign


def test_p4_no_vote_is_cast_beside_the_last_one_before_the_base_is_above_the_fork() -> None:
    cluster, height = voted_only()
    raft = cluster.rafts[2]
    voter = raft._voter
    voter.hard = dataclasses.replace(voter.hard, last_vote_height=Height(height + 3), left_height=Height(0))
    assert raft._certifying._target() is None
    voter.hard = dataclasses.replace(voter.hard, left_height=Height(height))
    assert raft._certifying._target() is None
    voter.hard = dataclasses.replace(voter.hard, left_height=Height(1))
    assert raft._certifying._target() == height


# --- 52: a commit without proof


@pytest.mark.parametrize("by", [(1, 2), (1,), (1, 5, 6)])
def test_52_a_false_proof_brings_neither_order_nor_vote(by: tuple[int, ...]) -> None:
    cluster = Cluster(4, spare=(5, 6))
    cluster.elect(1)
    cluster.run(4)
    base, one, _ = two_blocks(cluster)
    take(cluster, 1, 2, frame(cluster, 1, term=1, prev=base, blocks=(one,)))
    with pytest.raises(Invalid):
        take(cluster, 1, 2, frame(cluster, 1, term=1, prev=one, proof=proof_by(cluster, one, by)))
    cluster.drain(2)
    assert cluster.rafts[2].commit_height == 1
    assert cluster.disks[2].hard_state.last_vote_height <= 1


# --- refusal


def test_refusal_a_leader_that_did_not_know_the_certified_branch_steps_down() -> None:
    cluster = opened(3)
    cluster.partition((1,), (2, 3))
    own = cluster.propose(1)
    cluster.drain(1)
    cluster.elect(2)
    cluster.propose(2)
    cluster.run(2)
    certificate = cluster.certificates[own]
    stale = cluster.rafts[1]
    stale._role = Role.LEADER  # it has not heard yet that its term is over
    reply = AppendReply(stale.term, cluster.node(2), None, Height(1), None, certificate=certificate)
    stale.step(cluster.node(2), reply, cluster.now_ms)
    assert stale.role is Role.FOLLOWER
    assert stale.term >= certificate.header.term


def test_refusal_a_certificate_that_does_not_hold_makes_nobody_step_down() -> None:
    cluster = opened(3)
    log = cluster.rafts[1]._voter.log
    opening = log.block(Height(1))
    height = cluster.propose(1)
    cluster.drain(1)
    cluster.crash(3)
    other = certificate_of(cluster, opening, cluster.disks[1].blocks[0], (2,))
    forged = dataclasses.replace(other, header=dataclasses.replace(log.header(height), time_ms=5))
    reply = AppendReply(cluster.rafts[1].term, cluster.node(2), None, Height(1), None, certificate=forged)
    with pytest.raises(Invalid):
        cluster.rafts[1].step(cluster.node(2), reply, cluster.now_ms)
    assert cluster.role(1) is Role.LEADER


def test_e3_a_vote_beside_what_is_certified_is_kept() -> None:
    cluster = opened(4)
    base, _, other = two_blocks(cluster)
    cluster.start(1)
    cluster.elect(2)
    cluster.propose(2)
    cluster.run(4)
    vote = vote_of(cluster, 1, other, base)
    raft = cluster.rafts[3]
    raft._certifying.take_vote(vote)
    raft._certifying.take_vote(vote)
    [found] = raft._voter.contradictions
    assert (found.rule, found.first, found.second) == ("E3", vote, raft._voter.log.header(Height(2)))
    assert vote.base_hash != ZERO
