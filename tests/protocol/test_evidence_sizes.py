"""Evidence as it is sent: whatever is made of headers and votes fits, so that no fork is too long to convict its makers."""

import random
import zlib
from dataclasses import replace
from functools import cache

import pytest

from node.bench.made_history import BEGIN_MS, MadeHistory, signing_key, transactions
from protocol import codec, evidence, limits, transaction
from protocol.block import Block
from protocol.errors import Invalid, Malformed
from protocol.evidence import Evidence
from protocol.evidence_blocks import shown_invalid
from protocol.evidence_certificates import ConflictingCertificates
from protocol.evidence_freezes import FrozenVote
from protocol.evidence_lines import Fork
from protocol.evidence_statements import TwoVotes
from protocol.finality import Certificate
from protocol.identifiers import ZERO, NodeId, Term
from protocol.merkle import Frontier
from protocol.recovery import freeze
from protocol.transaction import Accusation
from tests.protocol import test_evidence_blocks as blocks
from tests.protocol.chain import signed, successor
from tests.protocol.evidence_cast import LEFT, RIGHT, fork, vote

LONGEST = limits.EVIDENCE_HEADERS_MAX


def branch(first: int) -> MadeHistory:
    """Return a history of as many members as there may be, all of whose votes a certificate needs, with other transactions."""
    chain = MadeHistory.of(*(f"house {n}" for n in range(limits.MEMBERS_MAX)))
    chain.configuration = chain.genesis = replace(chain.genesis, min_b=limits.MEMBERS_MAX - 2)
    chain.blocks.clear()
    chain.__post_init__()
    for raw in transactions(first + 2 * LONGEST, chain.network)[first:]:
        chain.cut(raw)
    return chain


def certificate(chain: MadeHistory) -> Certificate:
    """Return a certificate as long as one can be: of votes for a block as far above as may stand uncertified."""
    return chain.certificate(chain.blocks[LONGEST], voted=chain.blocks[2 * LONGEST])


@cache
def longest() -> tuple[MadeHistory, ConflictingCertificates]:
    """Return the longest evidence of a fork, and one of its branches."""
    left, right = branch(0), branch(2 * LONGEST)
    lines = [tuple(one.header for one in chain.blocks[1 : LONGEST + 1]) for chain in (left, right)]
    found = ConflictingCertificates(certificate(left), certificate(right), Fork(*lines), NodeId(ZERO))
    return left, found


def test_the_longest_fork_convicts_everybody_who_made_it_from_one_transaction() -> None:
    chain, found = longest()
    assert len(codec.encode(found)) > 90_000

    raw = evidence.encode(found)

    assert len(raw) <= limits.EVIDENCE_BYTES_MAX
    assert evidence.decode(raw) == found
    known = {chain.genesis.digest: chain.genesis}
    assert evidence.check(found, chain.network, known).nodes == chain.genesis.voters
    accuser = signing_key("house 0")
    body = Accusation(NodeId(accuser.public), raw, BEGIN_MS)
    transaction.check(codec.encode(transaction.sign(body, chain.network, accuser)), chain.network)


def test_so_does_a_vote_after_the_longest_of_freeze_statements() -> None:
    chain, _ = longest()
    key = signing_key("house 0")
    node = NodeId(key.public)
    tail = tuple(one.header for one in chain.blocks[LONGEST + 1 :])
    stated = freeze(
        key, chain.network, epoch=0, incarnation=0, term=Term(1), certificate=certificate(chain), links=tail,
        vote=chain.vote(node, chain.blocks[LONGEST]),
    )  # fmt: skip
    found = FrozenVote(stated, chain.vote(node, chain.blocks[-1]), tail)
    assert len(codec.encode(found)) > limits.EVIDENCE_BYTES_MAX

    raw = evidence.encode(found)

    assert len(raw) <= limits.EVIDENCE_BYTES_MAX
    assert evidence.check(
        evidence.decode(raw), chain.network, {chain.genesis.digest: chain.genesis}
    ).nodes == (node,)


def test_a_transaction_at_fault_is_shown_without_the_leaves_of_the_block_below() -> None:
    entry = signed()[0]
    below = successor(blocks.OPENING, Frontier(), body=(entry,))
    tree = Frontier()
    above = successor(below, tree.append(below.leaves()), body=(b"no transaction",))

    shown = shown_invalid(above, below.header, tree, below.leaves())
    wrong = shown_invalid(successor(below, tree, body=()), below.header, tree, below.leaves())

    assert (len(shown.entries), shown.leaves, shown.peaks) == (1, (), ())
    assert wrong.leaves == below.leaves()


def test_short_evidence_has_one_spelling_and_long_evidence_no_bad_one() -> None:
    short: Evidence = TwoVotes(vote(LEFT[1]), vote(RIGHT[0]), fork(LEFT[:2], RIGHT[:1]))
    assert evidence.encode(short) == codec.encode(short)
    raw = evidence.encode(longest()[1])
    for bad in (
        raw[:1] + zlib.compress(codec.encode(short)),
        raw[:-1],
        raw + b"\0",
        raw[:1] + b"junk",
        raw[:1],
        raw[:1] + zlib.compress(raw[:1] * (limits.EVIDENCE_BYTES_MAX + 1)),
    ):
        with pytest.raises(Malformed):
            evidence.decode(bad)


def test_what_is_too_long_in_either_form_is_refused_before_it_is_made() -> None:
    for size in (limits.MIB, limits.EVIDENCE_UNPACKED_BYTES_MAX + 1):
        with pytest.raises(Invalid, match="unpacked"):
            evidence.decode(b"\xc1" + zlib.compress(bytes(size), 9))
    with pytest.raises(Invalid, match="over the limit of 49152"):
        evidence.decode(b"\xc1" + random.Random(1).randbytes(limits.EVIDENCE_BYTES_MAX))


def test_a_block_is_no_evidence() -> None:
    block: Block = LEFT[0]
    with pytest.raises(Malformed):
        evidence.decode(block.raw)
