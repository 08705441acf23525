"""E3c: who votes on after a freeze statement is convicted; who voted before it never is (ledger.md 7.4)."""

import dataclasses

import pytest

from protocol import recovery
from protocol.block import Block
from protocol.errors import Invalid
from protocol.evidence_freezes import FrozenVote
from protocol.finality import Certificate, CommitVote
from protocol.identifiers import Term
from protocol.recovery import FreezeStatement
from tests.protocol.chain import NETWORK, VOTERS
from tests.protocol.evidence_cast import (
    GENESIS,
    LEFT,
    RIGHT,
    TRUNK,
    certify,
    headers,
    judged,
    node,
    vote,
)

CERTIFIED = certify(vote(TRUNK[2], by=0), vote(TRUNK[2], by=1), block=TRUNK[2])


def frozen(
    last: CommitVote | None,
    certificate: Certificate | None = CERTIFIED,
    links: tuple[Block, ...] = LEFT,
    *,
    incarnation: int = 0,
) -> FreezeStatement:
    """Return a freeze statement of voter 0, whose log ends with the block of LEFT."""
    return recovery.freeze(
        VOTERS[0], NETWORK, epoch=0, incarnation=incarnation, term=Term(2), certificate=certificate,
        links=headers(links), vote=last,
    )  # fmt: skip


NAMED = vote(LEFT[0], TRUNK[2])


@pytest.mark.parametrize("base", [TRUNK[2], LEFT[0], LEFT[1]])
def test_a_vote_that_only_a_signer_which_goes_on_can_cast_convicts_it(base: Block) -> None:
    later = vote(LEFT[2], base)

    conviction = judged(FrozenVote(frozen(NAMED), later, headers(LEFT[1:])))

    assert (conviction.kind, conviction.nodes, conviction.height) == ("E3c", (node(0),), later.height)


@pytest.mark.parametrize(
    ("statement", "other", "line", "reason"),
    [
        (frozen(NAMED), vote(LEFT[0], GENESIS), (), "may be older"),
        # The last vote is signed again on what is certified by now.
        (frozen(NAMED), vote(LEFT[0], LEFT[0]), (), "may be older"),
        (frozen(NAMED), vote(TRUNK[1]), (), "may be older"),
        # Before a certificate led it to the left branch it may have voted higher up on the right one.
        (frozen(NAMED), vote(RIGHT[2], TRUNK[0]), RIGHT[1:], "may be older"),
        # A crash may have taken the certificate that this vote stands upon: the statement then names an older one.
        (frozen(NAMED), vote(RIGHT[2], RIGHT[0]), RIGHT[1:], "may be older"),
        (frozen(None), vote(LEFT[0], TRUNK[2]), LEFT[:1], "names no vote"),
        (frozen(NAMED), vote(LEFT[2], TRUNK[2], by=1), LEFT[1:], "two signers"),
        (frozen(NAMED), vote(LEFT[2], TRUNK[2], incarnation=1), LEFT[1:], "incarnations"),
        (frozen(NAMED), vote(LEFT[2], TRUNK[2], epoch=1), LEFT[1:], "epochs"),
    ],
)
def test_what_an_honest_signer_has_voted_before_does_not_convict_it(
    statement: FreezeStatement, other: CommitVote, line: tuple[Block, ...], reason: str
) -> None:
    with pytest.raises(Invalid, match=reason):
        judged(FrozenVote(statement, other, headers(line)))


def test_a_statement_or_a_vote_that_nobody_signed_convicts_nobody() -> None:
    later = vote(LEFT[2], TRUNK[2])
    for statement, other in (
        (dataclasses.replace(frozen(NAMED), term=Term(9)), later),
        (frozen(NAMED), dataclasses.replace(later, signature=bytes(64))),
    ):
        with pytest.raises(Invalid, match="verify"):
            judged(FrozenVote(statement, other, headers(LEFT[1:])))
