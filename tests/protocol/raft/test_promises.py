"""P0, P2, P3 and the refusal rule of ledger.md 1.1: what a voter believes, promises and never takes back."""

import dataclasses

import pytest

from protocol import block, codec, limits
from protocol.certificate import CommitProof, ElectionCertificate, grant_vote
from protocol.errors import Invalid, RemoteFault
from protocol.finality import Certificate
from protocol.identifiers import ZERO, Digest, Height, NodeId, Term
from protocol.merkle import Frontier
from protocol.raft.leader_forms import append_form
from protocol.raft.messages import AppendEntries, AppendReply, check_append
from protocol.raft.state import Role
from tests.protocol.raft.cluster import Cluster


def frame(
    cluster: Cluster,
    n: int,
    *,
    term: int,
    prev: block.Block,
    blocks: tuple[block.Block, ...] = (),
    election: ElectionCertificate | None = None,
    proof: CommitProof | None = None,
    certificate: Certificate | None = None,
) -> AppendEntries:
    """Return a frame signed by `n`, whatever its machine thinks of it."""
    tip_hash = blocks[-1].hash if blocks else prev.hash
    form = append_form(
        cluster.network,
        epoch=0,
        term=Term(term),
        leader=cluster.node(n),
        prev_hash=prev.hash,
        tip_hash=tip_hash,
    )
    raws = tuple(entry.raw for entry in blocks)
    return AppendEntries(
        0,
        Term(term),
        cluster.node(n),
        prev.height,
        prev.hash,
        raws,
        tip_hash,
        election,
        proof,
        cluster.keys[n].sign(form),
        certificate,
    )


def elected(cluster: Cluster, n: int, *, term: int, tip: Digest, by: tuple[int, ...]) -> ElectionCertificate:
    grants = [
        grant_vote(
            cluster.keys[v],
            cluster.network,
            epoch=0,
            incarnation=0,
            term=Term(term),
            candidate=cluster.node(n),
            tip=tip,
        )
        for v in by
    ]
    return ElectionCertificate(
        Term(term), cluster.node(n), tip, tuple(sorted(grants, key=lambda grant: grant.voter))
    )


def take(cluster: Cluster, source: int, target: int, message: AppendEntries) -> None:
    cluster.rafts[target].step(cluster.node(source), check_append(message), cluster.now_ms)


def test_p0_nothing_is_taken_from_a_leader_whose_election_was_not_shown():
    cluster = Cluster(3)
    genesis = cluster.disks[2].blocks[0]
    take(cluster, 1, 2, frame(cluster, 1, term=1, prev=genesis))
    cluster.drain(2)
    reply = cluster.sent(AppendReply, 2)[-1]
    assert reply.refusal.needs_election
    assert reply.ack is None
    assert cluster.rafts[2].leader is None


@pytest.mark.parametrize("by", [(1,), (1, 1), ()])
def test_p0_too_few_grants_elect_nobody(by):
    cluster = Cluster(3)
    genesis = cluster.disks[2].blocks[0]
    election = elected(cluster, 1, term=1, tip=genesis.hash, by=by)
    with pytest.raises(Invalid):
        cluster.rafts[2].step(
            cluster.node(1), frame(cluster, 1, term=1, prev=genesis, election=election), cluster.now_ms
        )
    assert cluster.rafts[2].leader is None


def test_p0_a_second_leader_of_a_term_is_refused_even_with_a_certificate():
    cluster = Cluster(3)
    cluster.elect(1)
    genesis = cluster.disks[2].blocks[0]
    election = elected(cluster, 3, term=1, tip=genesis.hash, by=(1, 2, 3))  # the voters lied
    with pytest.raises(Invalid, match="second leader"):
        take(cluster, 3, 2, frame(cluster, 3, term=1, prev=genesis, election=election))
    assert cluster.rafts[2].leader == cluster.node(1)


def test_p0_a_term_without_its_opening_is_refused():
    cluster = Cluster(3)
    cluster.elect(1)
    raft = cluster.rafts[1]
    log = raft._voter.log
    cluster.elect(2)  # term 2; now 1 claims term 3 and cuts a block with no opening
    forged = block.cut(
        (),
        predecessor=log.tip,
        predecessor_hash=log.tip_hash,
        frontier=log.frontier(log.tip_height),
        term=Term(3),
        key=cluster.keys[1],
        now_ms=cluster.now_ms,
    )
    election = elected(cluster, 1, term=3, tip=log.tip_hash, by=(1, 2))
    prev = log.block(log.tip_height)
    with pytest.raises(Invalid, match="opens with its election certificate"):
        take(cluster, 1, 3, frame(cluster, 1, term=3, prev=prev, blocks=(forged,), election=election))
    assert cluster.rafts[3].leader is None  # dead for the term


@pytest.mark.parametrize(
    ("candidate", "by", "holds"), [(1, (1,), False), (2, (1, 2), False), (1, (1, 2), True)]
)
def test_p0_an_opening_without_a_quorum_for_its_leader_is_refused(candidate, by, holds):
    cluster = Cluster(3)
    genesis = cluster.disks[2].blocks[0]
    body = elected(cluster, candidate, term=1, tip=genesis.hash, by=by)
    opening = block.cut(
        (),
        opening=codec.encode(body),
        predecessor=genesis.header,
        predecessor_hash=genesis.hash,
        frontier=Frontier(),
        term=Term(1),
        key=cluster.keys[1],
        now_ms=cluster.now_ms,
    )
    shown = elected(cluster, 1, term=1, tip=genesis.hash, by=(1, 2))
    cluster.step(1, 2, frame(cluster, 1, term=1, prev=genesis, blocks=(opening,), election=shown))
    assert (cluster.faults == []) == holds
    assert cluster.rafts[2].tip_height == int(holds)


def test_p2_a_block_of_a_higher_term_than_its_senders_is_refused():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1, 2), (3,))
    cluster.elect(2)
    opening = cluster.disks[2].blocks[2]
    prev = cluster.disks[2].blocks[1]
    with pytest.raises(Invalid, match="cannot have"):
        take(cluster, 1, 3, frame(cluster, 1, term=1, prev=prev, blocks=(opening,)))
    assert cluster.rafts[3].tip_height == 1


def test_p0_a_restarted_follower_asks_for_the_election_again():
    cluster = Cluster(3)
    cluster.filter = lambda source, target, message: (
        not (isinstance(message, AppendEntries) and message.blocks)
    )
    cluster.elect(1)
    cluster.run(4)  # heartbeats alone: the opening is not in the follower's log
    cluster.crash(2)
    cluster.start(2)
    assert cluster.rafts[2]._voter.term_leader is None
    cluster.filter = lambda source, target, message: True
    cluster.run(limits.HEARTBEAT_TICKS * 4)
    assert cluster.rafts[2].commit_height == 1
    assert {raft.term for raft in cluster.rafts.values()} == {1}


def conflicting(cluster: Cluster, count: int) -> tuple[block.Block, ...]:
    """Return other blocks than the leader's of term 1, cut by the same leader after its opening: an equivocation."""
    log = cluster.rafts[1]._voter.log
    chain: list[block.Block] = []
    previous, frontier = log.block(Height(1)), log._entries[1].frontier
    for _ in range(count):
        cut = block.cut(
            (cluster.transaction(),),
            predecessor=previous.header,
            predecessor_hash=previous.hash,
            frontier=frontier,
            term=Term(1),
            key=cluster.keys[1],
            now_ms=cluster.now_ms + 7,
        )
        frontier = frontier.append(cut.leaves())
        chain.append(cut)
        previous = cut
    return tuple(chain)


@pytest.mark.parametrize("restart", [False, True])
def test_p2_what_was_acknowledged_in_a_term_is_not_replaced_in_it_also_after_a_restart(restart):
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.filter = lambda source, target, message: not (isinstance(message, AppendReply) and source == 3)
    cluster.partition((1, 2), (3,))
    other = conflicting(cluster, 2)
    cluster.cut = {(2, 1), (3, 1)}
    cluster.propose(1)
    cluster.settle()
    acknowledged = cluster.disks[2].hash(Height(2))
    if restart:
        cluster.crash(2)
        cluster.start(2)
    assert cluster.rafts[2].commit_height == 1
    with pytest.raises(Invalid, match="acknowledged in this term"):
        take(cluster, 1, 2, frame(cluster, 1, term=1, prev=cluster.disks[1].blocks[1], blocks=other))
    cluster.drain(2)
    assert cluster.disks[2].hash(Height(2)) == acknowledged
    assert cluster.rafts[2].leader is None
    heartbeat = frame(cluster, 1, term=1, prev=cluster.disks[1].blocks[1])
    take(cluster, 1, 2, heartbeat)
    assert cluster.rafts[2].leader is None  # dead for the term: its heartbeats hold no election back


def test_refusal_a_committed_block_is_never_replaced_by_any_leader():
    cluster = Cluster(3)
    cluster.elect(1)
    other = conflicting(cluster, 1)
    cluster.propose(1)
    cluster.settle()
    genesis = cluster.disks[3].blocks[1]
    election = elected(cluster, 1, term=9, tip=other[-1].hash, by=(1, 2))
    with pytest.raises(Invalid, match="certified"):
        take(cluster, 1, 3, frame(cluster, 1, term=9, prev=genesis, blocks=other, election=election))
    assert cluster.rafts[3].commit_height == 2
    assert cluster.rafts[3].leader is None


def proof_of(cluster: Cluster, height: int) -> CommitProof:
    return cluster.proofs[height]


def uncommitted_follower(cluster: Cluster) -> int:
    """Leave follower 2 with block 2 in its log and no proof for it; return its height."""
    cluster.elect(1)
    cluster.filter = lambda source, target, message: (
        not (isinstance(message, AppendEntries) and target == 2 and (message.proof or message.certificate))
    )
    height = cluster.propose(1)
    cluster.settle()
    assert cluster.rafts[2].tip_height == height
    assert cluster.rafts[2].commit_height < height
    cluster.trace.clear()
    return height


def test_p3_a_follower_commits_on_a_proof_whose_block_it_holds():
    cluster = Cluster(3)
    height = uncommitted_follower(cluster)
    take(
        cluster,
        1,
        2,
        frame(cluster, 1, term=1, prev=cluster.disks[1].blocks[height], proof=proof_of(cluster, height)),
    )
    assert cluster.rafts[2].commit_height == height


@pytest.mark.parametrize("spoil", ["signature", "quorum", "term"])
def test_p3_52_nothing_is_committed_on_a_proof_that_does_not_hold(spoil):
    cluster = Cluster(3)
    height = uncommitted_follower(cluster)
    proof = proof_of(cluster, height)
    first, *rest = proof.acknowledgements
    forged = {
        "signature": (dataclasses.replace(first, signature=bytes(64)), *rest),
        "quorum": (first,),
        "term": (dataclasses.replace(first, term=Term(2)), *rest),
    }[spoil]
    bad = dataclasses.replace(proof, acknowledgements=forged)
    before = cluster.rafts[2].commit_height
    with pytest.raises(RemoteFault):
        take(cluster, 1, 2, frame(cluster, 1, term=1, prev=cluster.disks[1].blocks[height], proof=bad))
    assert cluster.rafts[2].commit_height == before


def test_p3_a_proof_for_a_block_that_is_not_here_commits_nothing_and_is_no_fault():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1, 2), (3,))
    height = cluster.propose(1)
    cluster.settle()
    take(
        cluster,
        1,
        3,
        frame(cluster, 1, term=1, prev=cluster.disks[1].blocks[1], proof=proof_of(cluster, height)),
    )
    assert cluster.rafts[3].commit_height == 1


def test_p3_a_proof_for_another_block_of_the_height_commits_nothing():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.partition((1,), (2, 3))
    own = cluster.propose(1)
    cluster.drain(1)
    cluster.elect(2)
    proof = cluster.proofs[own]
    base = cluster.disks[1].blocks[1]
    election = elected(cluster, 2, term=2, tip=base.hash, by=(2, 3))
    take(cluster, 2, 1, frame(cluster, 2, term=2, prev=base, election=election, proof=proof))
    assert cluster.rafts[1].leader == cluster.node(2)
    assert cluster.rafts[1].commit_height < own


def test_p3_a_proof_covers_ancestors_through_linking_headers():
    cluster = Cluster(5)
    cluster.elect(1)
    cluster.partition((1,), (2, 3, 4, 5))
    for _ in range(3):
        cluster.propose(1)
    cluster.drain(1)
    for n, height in ((2, 2), (3, 4)):
        for block_height in range(2, height + 1):
            cluster.disks[n].blocks[block_height] = cluster.disks[1].blocks[block_height]
        cluster.step(n, 1, cluster.acknowledgement(n, 1, height))
    cluster.drain(1)
    proof = proof_of(cluster, 2)
    assert [link.height for link in proof.links] == [3, 4]
    assert {ack.height for ack in proof.acknowledgements} == {2, 4}
    own = next(ack for ack in proof.acknowledgements if ack.voter == cluster.node(1))
    assert own.height == 2


def test_p2_frames_between_two_readies_are_answered_by_one_acknowledgement_of_the_tip():
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.frozen.add(2)
    for _ in range(3):
        cluster.propose(1)
        cluster.settle()
    cluster.trace.clear()
    cluster.thaw(2)
    cluster.drain(2)
    acks = [reply.ack.height for reply in cluster.sent(AppendReply, 2)]
    assert acks[-1] == 4
    assert len(acks) <= 2


def test_an_invalid_body_makes_the_driver_distrust_the_leader_and_the_others_elect():
    cluster = Cluster(3)
    cluster.elect(1)
    for n in (2, 3):
        cluster.rafts[n].distrust(cluster.node(1))
        assert cluster.rafts[n].leader is None
    cluster.run_until(lambda: any(n != 1 for n in cluster.leaders))
    assert cluster.rafts[cluster.leader()].term == 2


def test_a_frame_signed_by_somebody_else_is_refused():
    cluster = Cluster(3)
    cluster.elect(1)
    genesis = cluster.disks[2].blocks[0]
    good = frame(cluster, 1, term=1, prev=genesis)
    with pytest.raises(Invalid, match="signature"):
        take(cluster, 1, 2, dataclasses.replace(good, signature=bytes(64)))
    assert cluster.rafts[2].role is Role.FOLLOWER


def test_only_voters_are_heard():
    cluster = Cluster(3)
    stranger = NodeId(ZERO)
    with pytest.raises(Invalid):
        cluster.rafts[1].step(stranger, AppendReply(Term(5), stranger, None, Height(0), None), cluster.now_ms)
    assert cluster.rafts[1].term == 0
