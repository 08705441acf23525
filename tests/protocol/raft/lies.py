"""What a liar can make with its own key, and with the statements that it has talked others into: proofs and certificates."""

from protocol.block import Block
from protocol.certificate import CommitProof, acknowledge
from protocol.finality import Certificate, CommitVote, cast_vote
from protocol.identifiers import Height, Term
from tests.protocol.raft.cluster import Cluster


def vote_of(cluster: Cluster, n: int, block: Block, base: Block) -> CommitVote:
    """Return the vote of `n` for a block upon a base, whatever its machine thinks of it."""
    return cast_vote(
        cluster.keys[n],
        cluster.network,
        epoch=0,
        incarnation=0,
        height=block.height,
        tip=block.hash,
        base_height=base.height,
        base=base.hash,
    )


def certificate_of(cluster: Cluster, block: Block, base: Block, by: tuple[int, ...]) -> Certificate:
    """Return a certificate of a block with the votes of `by`."""
    votes = [vote_of(cluster, n, block, base) for n in by]
    return Certificate(block.header, (), tuple(sorted(votes, key=lambda vote: vote.signer)))


def proof_by(cluster: Cluster, block: Block, by: tuple[int, ...], *, term: int | None = None) -> CommitProof:
    """Return a commit proof of a block with the acknowledgements of `by`."""
    acks = [
        acknowledge(
            cluster.keys[n],
            cluster.network,
            epoch=0,
            incarnation=0,
            term=Term(block.term if term is None else term),
            height=Height(block.height),
            tip=block.hash,
        )
        for n in by
    ]
    return CommitProof(block.header, (), tuple(sorted(acks, key=lambda ack: ack.voter)))
