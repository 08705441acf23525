"""Quorum arithmetic, and the assembly of commit proofs and certificates (ledger.md 1.1 P3, P5; Raft §5.3, §5.4.2)."""

from collections.abc import Iterable, Mapping

from protocol.certificate import Acknowledgement, CommitProof
from protocol.configuration import Configuration
from protocol.finality import Certificate, CommitVote
from protocol.identifiers import Height, NodeId
from protocol.raft.log import Log


def quorum_height(heights: Iterable[int], quorum: int) -> Height:
    """Return the highest height that at least `quorum` of `heights` reach (one entry per voter; 0 for the unknown).

    The caller must still check that the block there is of its own term (Raft §5.4.2, Figure 8).

    Raises:
        ValueError: fewer heights than `quorum`, or a quorum of none.
    """
    descending = sorted(heights, reverse=True)
    if not 0 < quorum <= len(descending):
        raise ValueError(f"a quorum of {quorum} among {len(descending)} voters")
    return Height(descending[quorum - 1])


def assemble_proof(
    log: Log,
    height: Height,
    acknowledgements: Mapping[NodeId, Acknowledgement],
    quorum: int,
    own: Acknowledgement | None,
) -> CommitProof:
    """Return the commit proof for the block at `height`, with as few linking headers as the acknowledgements allow.

    `own` is the leader's for exactly `height`, or None while its disk lags; `acknowledgements` are the others', verified.
    The caller has seen that a quorum reaches `height`.
    """
    reaching = sorted(
        (ack for ack in acknowledgements.values() if ack.height >= height),
        key=lambda ack: (ack.height, ack.voter),
    )
    chosen = ([own] if own else []) + reaching
    chosen = chosen[:quorum]
    assert len(chosen) == quorum, "a proof is assembled for a height that a quorum reaches"
    top = max(ack.height for ack in chosen)
    links = tuple([log.header(Height(above)) for above in range(height + 1, top + 1)])
    return CommitProof(log.header(height), links, tuple(sorted(chosen, key=lambda ack: ack.voter)))


def assemble_certificate(
    log: Log, height: Height, votes: Iterable[CommitVote], configurations: Iterable[Configuration]
) -> Certificate:
    """Return the certificate of the block at `height`: no vote more than needed, and as few linking headers as that allows.

    `votes` are verified, one of each signer, for that block or descendants; the caller has seen that they hold a quorum of
    every one of `configurations`.
    """
    chosen = {vote.signer: vote for vote in votes}
    counts = [(set(one.signers), one.certificate_quorum) for one in configurations]
    for vote in sorted(chosen.values(), key=lambda vote: (vote.height, vote.signer), reverse=True):
        rest = chosen.keys() - {vote.signer}
        if all(len(rest & signers) >= quorum for signers, quorum in counts):
            del chosen[vote.signer]
    top = max(vote.height for vote in chosen.values())
    links = tuple([log.header(Height(above)) for above in range(height + 1, top + 1)])
    return Certificate(log.header(height), links, tuple([chosen[signer] for signer in sorted(chosen)]))
