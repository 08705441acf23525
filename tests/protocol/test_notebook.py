"""A notebook finds every liar, by whatever it sees last, says each thing once, and stays small."""

import dataclasses
import itertools
from collections.abc import Iterable

import pytest

from protocol import codec, evidence, limits
from protocol.evidence import Evidence
from protocol.evidence_blocks import shown_invalid
from protocol.evidence_certificates import ConflictingCertificates, FalseBase
from protocol.identifiers import NodeId
from protocol.merkle import Frontier
from protocol.notebook import Notebook, SignedNote, Statement
from tests.protocol import test_evidence_blocks as blocks
from tests.protocol import test_evidence_certificates as certified
from tests.protocol.chain import NETWORK, key, signed, successor
from tests.protocol.evidence_cast import (
    CONFIGURATIONS,
    GENESIS,
    LEFT,
    RIGHT,
    TRUNK,
    ack,
    certify,
    grant,
    grown,
    headers,
    node,
    request,
    resigned,
    signed_header,
    vote,
)
from tests.protocol.test_evidence_freezes import NAMED, frozen

ALL = headers((GENESIS, *TRUNK, *LEFT, *RIGHT))
REWRITTEN = grown(RIGHT[0], 5, branch=3)[0]
LIES: dict[str, tuple[Statement, ...]] = {
    "E1": (signed_header(grown(GENESIS, 1)[0]), signed_header(grown(GENESIS, 1, branch=1)[0])),
    "E2": (ack(LEFT[0], 4), ack(RIGHT[2], 4)),
    "E3": (vote(LEFT[1], TRUNK[2]), vote(RIGHT[0], TRUNK[0])),
    "E3b": (vote(RIGHT[2], RIGHT[1]), certified.LEFT_CERTIFIED),
    "E3c": (frozen(NAMED), vote(LEFT[2], TRUNK[2])),
    "E4": (grant(5, 1), grant(5, 2)),
    "E4 for two logs": (grant(5, 1, LEFT[0]), grant(5, 1, RIGHT[0])),
    "E5a": (request(5, LEFT[0], 2), ack(RIGHT[0], 3)),
    "E5b": (request(5, RIGHT[2], 2, TRUNK[2]), ack(LEFT[1], 2)),
    "E5c": (request(5, LEFT[2], 2), signed_header(REWRITTEN)),
    "E6": (
        SignedNote(node(0), certified.note(5, b"a" * 32)),
        SignedNote(node(0), certified.note(5, b"b" * 32)),
    ),
}


def notebook() -> Notebook:
    return Notebook(NETWORK, lambda: {**CONFIGURATIONS, **certified.CONFIGURATIONS})


def seen(notes: Notebook, statements: Iterable[Statement]) -> list[Evidence]:
    return [found for statement in statements for found in notes.see(statement, ALL)]


@pytest.mark.parametrize(("kind", "order"), itertools.product(LIES, (1, -1)))
def test_a_liar_is_found_whichever_statement_comes_last(kind: str, order: int) -> None:
    found = seen(notebook(), LIES[kind][::order])

    convictions = [
        evidence.check(one, NETWORK, {**CONFIGURATIONS, **certified.CONFIGURATIONS}) for one in found
    ]
    assert [(one.kind, one.nodes) for one in convictions] == [(kind.split(maxsplit=1)[0], (node(0),))]


@pytest.mark.parametrize("kind", LIES)
def test_a_lie_is_told_once(kind: str) -> None:
    notes = notebook()
    seen(notes, LIES[kind])

    assert seen(notes, LIES[kind]) == []
    assert seen(notes, LIES[kind][::-1]) == []


def test_a_shorter_log_than_was_acknowledged_is_found() -> None:
    assert len(seen(notebook(), [ack(LEFT[2], 2), request(5, LEFT[0], 2)])) == 1


def test_conflicting_certificates_convict_by_their_votes_as_well() -> None:
    other = certify(vote(RIGHT[1], by=0), vote(RIGHT[1], by=2), block=RIGHT[1])

    found = seen(notebook(), [certified.LEFT_CERTIFIED, other])

    convicted = {nodes for one in found for nodes in evidence.check(one, NETWORK, CONFIGURATIONS).nodes}
    assert convicted == {node(2)}


def test_who_stood_on_what_a_later_certificate_makes_final_is_cleared() -> None:
    notes = notebook()
    seen(notes, [certified.LEFT_CERTIFIED, vote(RIGHT[2], RIGHT[0], by=0)])
    other = certify(vote(RIGHT[1], by=0), vote(RIGHT[1], by=2), block=RIGHT[1])

    found = seen(notes, [other])

    conflicts = [one for one in found if isinstance(one, ConflictingCertificates)]
    assert [one.accused for one in conflicts] == [node(0)]


def test_who_is_accused_after_the_conflict_was_found_is_cleared_by_the_certificate_that_comes_last() -> None:
    """Liars seed 3024, three voters: the certificate was made by whoever voted upon it, and came after the vote."""
    notes = notebook()
    below = certify(vote(RIGHT[0], by=0), vote(RIGHT[0], by=2), block=RIGHT[0])
    seen(notes, [certified.LEFT_CERTIFIED, below, vote(RIGHT[2], RIGHT[1], by=0)])
    other = certify(vote(RIGHT[1], by=0), vote(RIGHT[1], by=2), block=RIGHT[1])

    (found,) = seen(notes, [other])

    assert evidence.check(found, NETWORK, CONFIGURATIONS).cleared == node(0)


def test_who_has_the_certificate_of_a_base_clears_whom_another_accuses_of_it() -> None:
    notes = notebook()
    seen(notes, [certify(vote(RIGHT[1], by=0), vote(RIGHT[1], by=2), block=RIGHT[1])])
    accusation = FalseBase(vote(RIGHT[2], RIGHT[0]), certified.LEFT_CERTIFIED, ())

    (found,) = notes.rebut(accusation)

    assert evidence.check(found, NETWORK, CONFIGURATIONS).cleared == node(0)
    assert notes.rebut(accusation) == (), "said once"
    assert notebook().rebut(accusation) == (), "nothing is known of such a certificate"


def test_without_the_headers_nothing_is_said() -> None:
    notes = notebook()

    assert [notes.see(statement) for statement in (ack(LEFT[2], 4), ack(RIGHT[1], 4))] == [(), ()]


def test_what_is_said_again_when_the_headers_have_come_is_compared_again() -> None:
    notes = notebook()
    for statement in (ack(LEFT[2], 4), ack(RIGHT[1], 4)):
        notes.see(statement)

    assert len(notes.see(ack(RIGHT[1], 4), ALL)) == 1


def test_a_checkpoint_beside_a_certified_header_is_found() -> None:
    size = LEFT[0].header.tree_size
    note = SignedNote(node(0), certified.note(size, b"a" * 32))

    assert len(seen(notebook(), [note, certified.LEFT_CERTIFIED])) == 1
    assert len(seen(notebook(), [certified.LEFT_CERTIFIED, note])) == 1


def test_an_invalid_block_is_shown_by_the_part_that_is_at_fault() -> None:
    twice = (*signed()[:3], signed()[1])
    bad = successor(blocks.OPENING, Frontier(), body=(*signed()[:2], b"no transaction"))
    for block in (successor(blocks.OPENING, Frontier(), body=twice), bad):
        assert notebook().is_news(shown_invalid(block, blocks.OPENING.header))

    assert not notebook().is_news(shown_invalid(blocks.FULL, blocks.OPENING.header))


def test_a_block_with_a_wrong_tree_is_shown_with_the_tree_before() -> None:
    wrong = successor(blocks.FULL, Frontier().append(blocks.FULL.leaves()[:1]))
    header = dataclasses.replace(wrong.header, tree_size=blocks.FULL.header.n_tx)
    lie = dataclasses.replace(
        shown_invalid(wrong, blocks.FULL.header, Frontier(), blocks.FULL.leaves()),
        header=resigned(header),
    )

    assert notebook().is_news(lie)


def test_what_strangers_sign_is_not_kept() -> None:
    stranger = dataclasses.replace(grant(5, 1), voter=NodeId(key("stranger").public))
    notes = notebook()

    notes.see(stranger)

    assert notes._grants._of == {}


def test_a_notebook_stays_small() -> None:
    notes = notebook()
    for term in range(1, 3 * limits.NOTEBOOK_STATEMENTS_MAX):
        notes.see(grant(term, 1))

    kept = notes._grants.of(node(0))
    assert len(kept) == limits.NOTEBOOK_STATEMENTS_MAX
    assert kept[0].term == 3 * limits.NOTEBOOK_STATEMENTS_MAX - 1


def test_evidence_too_long_to_be_sent_is_not_said() -> None:
    body = tuple(bytes([n]) * 15_000 for n in range(4))
    block = successor(blocks.OPENING, Frontier(), body=body)
    lie = dataclasses.replace(
        shown_invalid(block, blocks.OPENING.header), special=bytes(limits.EVIDENCE_BYTES_MAX)
    )

    assert len(codec.encode(lie)) > limits.EVIDENCE_BYTES_MAX
    assert not notebook().is_news(lie)
