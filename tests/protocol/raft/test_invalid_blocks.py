"""What voters do with a block that breaks a rule, and with keys that should not sign (ledger.md 3.3, scenarios 54, 58 and 59)."""

from dataclasses import replace
from typing import Any

import pytest

from protocol import codec, evidence, limits
from protocol.block import Block, body_root, check_place, header_form
from protocol.certificate import Acknowledgement
from protocol.errors import Invalid, RemoteFault
from protocol.evidence import Evidence
from protocol.evidence_blocks import shown_invalid
from protocol.finality import Certificate, CommitVote, check_certificate
from protocol.identifiers import Digest
from protocol.merkle import leaf_hash
from protocol.notebook import Notebook
from protocol.raft.messages import RequestVote
from protocol.transaction import SignedTransaction
from tests.protocol.raft.cluster import Cluster
from tests.protocol.raft.lies import certificate_of, proof_by
from tests.protocol.raft.test_frames import cut_above
from tests.protocol.raft.test_lies import opened, sent_by, two_blocks
from tests.protocol.raft.test_promises import frame, take

HOUR_MS = 3_600_000


def lying_block(cluster: Cluster, below: Block, *transactions: bytes, **lies: Any) -> Block:
    """Return a block of leader 1 with this body, and with whatever it says falsely in its header."""
    block = cut_above(cluster, below, by=1, term=1)
    leaves = tuple([leaf_hash(raw) for raw in transactions])
    body = {"n_tx": len(transactions), "tx_root": body_root(b"", leaves)} if transactions else {}
    header = replace(block.header, **{**body, **lies})
    return Block(header, cluster.keys[1].sign(header_form(header)), b"", transactions)


def badly_signed(cluster: Cluster) -> bytes:
    good = codec.decode(cluster.transaction(), SignedTransaction)
    return codec.encode(replace(good, signatures=(replace(good.signatures[0], signature=bytes(64)),)))


@pytest.mark.parametrize("lie", ["signature", "root", "size", "twice", "too-many"])
def test_54_an_invalid_block_is_refused_by_every_voter_convicts_its_leader_and_costs_it_the_term(
    lie: str,
) -> None:
    cluster = opened(4)
    cluster.liars.add(1)
    base, raw = cluster.disks[1].blocks[1], cluster.transaction()
    block = {
        "signature": lambda: lying_block(cluster, base, badly_signed(cluster)),
        "root": lambda: lying_block(cluster, base, raw, tree_root=Digest(bytes(32))),
        "size": lambda: lying_block(cluster, base, raw, tree_size=7),
        "twice": lambda: lying_block(cluster, base, raw, raw),
        "too-many": lambda: lying_block(cluster, base, *([b"x"] * (limits.BLOCK_TRANSACTIONS_MAX + 1))),
    }[lie]()
    for n in (2, 3, 4):
        with pytest.raises(RemoteFault):
            take(cluster, 1, n, frame(cluster, 1, term=1, prev=base, blocks=(block,)))
        cluster.rafts[n].distrust(cluster.node(1))  # as the driver does for a body, and the core for a header
        assert cluster.rafts[n].tip_height == base.height
    configuration = cluster.configuration_at(1)
    found = evidence.decode(codec.encode(shown_invalid(block, base.header)))

    conviction = evidence.check(found, cluster.network, {configuration.digest: configuration})

    assert (conviction.kind, conviction.nodes) == ("E7", (cluster.node(1),))
    cluster.run_until(lambda: any(n != 1 for n in cluster.leaders), 300)
    assert cluster.rafts[2].leader != cluster.node(1)


def test_54_a_block_of_the_future_is_held_and_convicts_nobody() -> None:
    cluster = opened(4)
    base = cluster.disks[1].blocks[1]
    cluster.now_ms += HOUR_MS
    block = cut_above(cluster, base, by=1, term=1)
    cluster.now_ms -= HOUR_MS
    cluster.liars.add(1)
    take(cluster, 1, 2, frame(cluster, 1, term=1, prev=base, blocks=(block,)))
    configuration = cluster.configuration_at(1)

    with pytest.raises(Invalid, match="not shown to break a rule"):
        evidence.check(
            shown_invalid(block, base.header), cluster.network, {configuration.digest: configuration}
        )
    assert cluster.rafts[2].tip_height == base.height


# --- 58: one key, two processes


def kinds_of(notebook: Notebook, cluster: Cluster, *said: Any, headers: tuple[Block, ...] = ()) -> set[str]:
    found = list[Evidence]()
    for statement in said:
        found += notebook.see(statement, [block.header for block in headers])
    configuration = cluster.configuration_at(1)
    judged = [evidence.check(one, cluster.network, {configuration.digest: configuration}) for one in found]
    assert {node for one in judged for node in one.nodes} <= {cluster.node(2)}
    return {one.kind for one in judged}


def test_58_two_processes_with_one_key_that_acknowledge_and_vote_are_convicted() -> None:
    """The copy of a voter hears another leader's half of the network; neither process does wrong, both together do."""
    said: list[Acknowledgement | CommitVote] = []
    for which in (1, 2):
        cluster = opened(3)
        blocks = two_blocks(cluster)
        base, block = blocks[0], blocks[which]
        take(cluster, 1, 2, frame(cluster, 1, term=1, prev=base, blocks=(block,)))
        reply = sent_by(cluster, 2)
        take(cluster, 1, 2, frame(cluster, 1, term=1, prev=block, proof=proof_by(cluster, block, (1, 2))))
        vote = sent_by(cluster, 2).vote
        assert reply.ack is not None
        assert vote is not None
        said += [reply.ack, vote]
    configuration = cluster.configuration_at(1)
    notebook = Notebook(cluster.network, lambda: {configuration.digest: configuration})

    assert kinds_of(notebook, cluster, *said, headers=blocks) == {"E2", "E3"}


def test_58_two_processes_with_one_key_that_elect_two_leaders_are_convicted() -> None:
    grants = []
    for candidate in (1, 3):
        cluster = Cluster(3)
        cluster.filter = lambda source, target, message: True
        cluster.rafts[2].step(cluster.node(candidate), request_of(cluster, candidate), cluster.now_ms)
        cluster.drain(2)
        grants += [message.grant for _, _, message in cluster.trace if hasattr(message, "grant")]
    configuration = cluster.configuration_at(0)
    notebook = Notebook(cluster.network, lambda: {configuration.digest: configuration})

    assert len(grants) == 2
    assert kinds_of(notebook, cluster, *grants) == {"E4"}


def request_of(cluster: Cluster, n: int) -> RequestVote:
    """Return what a candidate that has never heard of anybody asks."""
    other = Cluster(3)
    other.elect(n)
    request: RequestVote = other.sent(RequestVote, n)[0]
    return request


# --- 59: a key that signs no more


def test_59_who_has_left_signs_nothing_from_the_exact_height_and_what_it_signed_before_holds() -> None:
    cluster = opened(4)
    below = cluster.propose(1)
    cluster.settle()
    switch = cluster.change(1, n4="")
    cluster.run(10)
    above = cluster.propose(1)
    cluster.settle()
    blocks, network = cluster.disks[1].blocks, cluster.network
    old, new = cluster.configuration_at(below), cluster.configuration_at(above)

    def signed(height: int, *by: int) -> Certificate:
        return certificate_of(cluster, blocks[height], blocks[1], by)

    check_certificate(signed(below, 1, 2, 4), network, old)
    check_certificate(signed(above, 1, 2), network, new)
    with pytest.raises(Invalid):
        check_certificate(signed(above, 1, 4), network, new)
    forged = cut_above(cluster, blocks[switch], by=4, term=1)
    forged = Block(replace(forged.header, config_hash=new.digest), forged.signature, b"", ())
    with pytest.raises(Invalid, match="not cut by a voter"):
        check_place(forged, blocks[switch].header, blocks[switch].hash, new)
