"""Evidence of every kind has the bytes that it always had: what stands on a ledger is read for ever."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import codec, evidence, transaction
from protocol.errors import RemoteFault
from protocol.evidence import Evidence
from protocol.evidence_blocks import BrokenPromise, shown_invalid
from protocol.evidence_certificates import ConflictingCertificates, FalseBase
from protocol.evidence_freezes import FrozenVote
from protocol.evidence_statements import (
    HiddenLog,
    HiddenTerm,
    OtherTip,
    TwoAcknowledgements,
    TwoGrants,
    TwoHeaders,
    TwoVotes,
)
from protocol.evidence_trees import OtherTree, TwoTrees
from protocol.identifiers import ZERO, NodeId
from protocol.merkle import Frontier
from protocol.signing import sha256
from protocol.transaction import Accusation
from tests.protocol import evidence_cast as cast
from tests.protocol import test_evidence_blocks as blocks
from tests.protocol import test_evidence_certificates as certified
from tests.protocol.chain import NETWORK, UNTIL_MS, VOTERS, signed, successor
from tests.protocol.evidence_cast import (
    LEFT,
    RIGHT,
    TRUNK,
    ack,
    fork,
    grant,
    grown,
    headers,
    node,
    request,
    vote,
)
from tests.protocol.test_evidence_freezes import NAMED, frozen

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "evidence.json").read_text())
RIGHT_CERTIFIED = cast.certify(vote(RIGHT[1], by=0), vote(RIGHT[1], by=2), block=RIGHT[1])
TWICE = successor(blocks.OPENING, Frontier(), body=(signed()[0], signed()[0]))
SAMPLES: dict[str, Evidence] = {
    "E1": TwoHeaders(
        cast.signed_header(grown(cast.GENESIS, 1)[0]), cast.signed_header(grown(cast.GENESIS, 1, branch=1)[0])
    ),
    "E2": TwoAcknowledgements(ack(LEFT[0], 4), ack(RIGHT[2], 4), headers(RIGHT[1:])),
    "E3": TwoVotes(vote(LEFT[1]), vote(RIGHT[0]), fork(LEFT[:2], RIGHT[:1])),
    "E3 by certificates": ConflictingCertificates(
        certified.LEFT_CERTIFIED, RIGHT_CERTIFIED, fork(LEFT[:1], RIGHT[:2]), NodeId(ZERO)
    ),
    "E3b": FalseBase(vote(RIGHT[2], RIGHT[0]), certified.LEFT_CERTIFIED, ()),
    "E3c": FrozenVote(frozen(NAMED), vote(LEFT[2], TRUNK[2]), headers(LEFT[1:])),
    "E4": TwoGrants(grant(5, 1), grant(5, 2)),
    "E5a": HiddenTerm(request(5, LEFT[0], 2), ack(RIGHT[0], 3)),
    "E5b": HiddenLog(request(5, RIGHT[2], 2, TRUNK[2]), ack(LEFT[1], 2), fork(LEFT[:2], RIGHT), ()),
    "E5c": OtherTip(request(5, LEFT[2], 2), cast.signed_header(grown(RIGHT[0], 5, branch=3)[0]), ()),
    "E6": TwoTrees(node(0), certified.note(5, b"a" * 32), certified.note(5, b"b" * 32), 0, ()),
    "E6 by certificate": OtherTree(
        node(0),
        certified.note(LEFT[0].header.tree_size, b"a" * 32),
        certified.LEFT_CERTIFIED,
        0,
        (),
    ),
    "E7": shown_invalid(TWICE, blocks.OPENING.header),
    "E8": BrokenPromise(
        blocks.given(blocks.LEFT_OUT),
        cast.signed_header(blocks.EMPTY),
        headers((blocks.FULL,)),
        (signed(), ()),
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_evidence_has_its_golden_bytes_and_convicts(name: str) -> None:
    raw = codec.encode(SAMPLES[name])

    assert sha256(raw).hex() == VECTORS[name]
    conviction = evidence.check(evidence.decode(raw), NETWORK, certified.CONFIGURATIONS)
    assert conviction.kind == name.split(maxsplit=1)[0]


def test_an_accusation_has_its_golden_bytes() -> None:
    body = Accusation(NodeId(VOTERS[1].public), codec.encode(SAMPLES["E4"]), UNTIL_MS)
    raw = codec.encode(transaction.sign(body, NETWORK, VOTERS[1]))

    assert sha256(raw).hex() == VECTORS["accusation"]
    assert transaction.check(raw, NETWORK)[0].transaction == body


def test_every_kind_has_a_sample() -> None:
    assert {name.split()[0] for name in SAMPLES} == set(evidence.KINDS)
    assert {type(one) for one in SAMPLES.values()} == set(Evidence.__args__)


@given(
    name=st.sampled_from(sorted(SAMPLES)),
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 40),
)
@settings(max_examples=400, deadline=None)
def test_whatever_the_bytes_evidence_is_refused_or_convicts_the_same(
    name: str, edits: list[tuple[int, int]], cut: int
) -> None:
    """A ledger judges it while applying blocks: another error than a refusal would stop every node."""
    raw = bytearray(codec.encode(SAMPLES[name]))
    for at, value in edits:
        raw[at % len(raw)] = value
    honest = evidence.check(SAMPLES[name], NETWORK, certified.CONFIGURATIONS)

    try:
        read = evidence.decode(bytes(raw[: len(raw) - cut] if cut > 35 else raw))
        found = evidence.check(read, NETWORK, certified.CONFIGURATIONS)
    except RemoteFault:
        return

    assert found.nodes == honest.nodes
