"""Three voters (b = 0, q = 2) and blocks that fork: what evidence tests begin with. The blocks need not be valid."""

from collections.abc import Iterable
from typing import Any

from protocol import certificate, codec, evidence, finality
from protocol.block import Block, Header, genesis_block, header_form
from protocol.certificate import Acknowledgement, ElectionGrant
from protocol.evidence import Conviction, Evidence
from protocol.evidence_lines import Fork, SignedHeader
from protocol.finality import Certificate, CommitVote
from protocol.identifiers import NodeId, Term
from protocol.merkle import Frontier
from protocol.raft.messages import RequestVote, request_vote_form
from tests.protocol.chain import CONFIGURATION, NETWORK, NODES, VOTERS, signed, successor

GENESIS = genesis_block(CONFIGURATION)
CONFIGURATIONS = {CONFIGURATION.digest: CONFIGURATION}
BODIES = signed()


def grown(parent: Block, *terms: int, branch: int = 0, leader: int = 0) -> tuple[Block, ...]:
    """Return blocks upon `parent`, one for each term, of a branch that no other number has."""
    blocks = [parent]
    for term in terms:
        blocks.append(
            successor(blocks[-1], Frontier(), leader=leader, term=term, body=BODIES[branch : branch + 1])
        )
    return tuple(blocks[1:])


TRUNK = grown(GENESIS, 1, 1, 1)
LEFT = grown(TRUNK[-1], 2, 2, 2, branch=1)
RIGHT = grown(TRUNK[-1], 3, 3, 3, branch=2, leader=1)
"""Heights 1 to 3, and 4 to 6 twice."""


def headers(blocks: Iterable[Block]) -> tuple[Header, ...]:
    return tuple(block.header for block in blocks)


def fork(one: Iterable[Block], other: Iterable[Block]) -> Fork:
    return Fork(headers(one), headers(other))


def signed_header(block: Block) -> SignedHeader:
    return SignedHeader(block.header, block.signature)


def resigned(header: Header, leader: int = 0) -> SignedHeader:
    return SignedHeader(header, VOTERS[leader].sign(header_form(header)))


def ack(block: Block, term: int, *, by: int = 0, incarnation: int = 0, epoch: int = 0) -> Acknowledgement:
    return certificate.acknowledge(
        VOTERS[by], NETWORK, epoch=epoch, incarnation=incarnation, term=Term(term), height=block.height, tip=block.hash
    )  # fmt: skip


def vote(
    block: Block, base: Block = GENESIS, *, by: int = 0, incarnation: int = 0, epoch: int = 0
) -> CommitVote:
    return finality.cast_vote(
        VOTERS[by], NETWORK, epoch=epoch, incarnation=incarnation, height=block.height, tip=block.hash,
        base_height=base.height, base=base.hash,
    )  # fmt: skip


def grant(
    term: int, candidate: int, tip: Block = GENESIS, *, by: int = 0, incarnation: int = 0
) -> ElectionGrant:
    return certificate.grant_vote(
        VOTERS[by], NETWORK, epoch=0, incarnation=incarnation, term=Term(term), candidate=NODES[candidate],
        tip=tip.hash,
    )  # fmt: skip


def request(
    term: int, tip: Block, ack_term: int, base: Block = GENESIS, *, by: int = 0, incarnation: int = 0
) -> RequestVote:
    form = request_vote_form(
        NETWORK, epoch=0, incarnation=incarnation, term=Term(term), candidate=NODES[by], tip=tip.header,
        tip_hash=tip.hash, ack_term=Term(ack_term), base_height=base.height, base_hash=base.hash,
    )  # fmt: skip
    return RequestVote(
        0, incarnation, Term(term), NODES[by], tip.header, tip.hash, Term(ack_term), base.height, base.hash,
        VOTERS[by].sign(form), transfer=False,
    )  # fmt: skip


def certify(*votes: CommitVote, block: Block, links: Iterable[Block] = ()) -> Certificate:
    return Certificate(block.header, headers(links), tuple(sorted(votes, key=lambda one: one.signer)))


def judged(found: Evidence, configurations: Any = None) -> Conviction:
    """Check evidence as a stranger does: from its bytes."""
    read = evidence.decode(codec.encode(found))
    assert read == found
    return evidence.check(read, NETWORK, CONFIGURATIONS if configurations is None else configurations)


def node(number: int) -> NodeId:
    return NODES[number]
