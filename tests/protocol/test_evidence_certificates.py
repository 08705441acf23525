"""E3b, conflicting certificates and E6: what convicts, and what an honest member of a forked network may have signed."""

import dataclasses

import pytest

from protocol import merkle
from protocol.block import Block, Header
from protocol.checkpoint import Checkpoint, SignedCheckpoint, origin_of, sign_checkpoint
from protocol.errors import Invalid
from protocol.evidence_certificates import ConflictingCertificates, FalseBase
from protocol.evidence_lines import Fork
from protocol.evidence_trees import OtherTree, PlacedLeaf, TwoTrees
from protocol.identifiers import ZERO, Digest, NodeId
from protocol.signing import SigningKey
from tests.protocol.chain import CONFIGURATION, NETWORK
from tests.protocol.evidence_cast import (
    BODIES,
    GENESIS,
    LEFT,
    RIGHT,
    TRUNK,
    certify,
    fork,
    headers,
    judged,
    node,
    vote,
)

NOBODY = NodeId(ZERO)
LEFT_CERTIFIED = certify(vote(LEFT[0], by=1), vote(LEFT[0], by=2), block=LEFT[0])

# --- E3b


@pytest.mark.parametrize(
    ("base", "line"),
    [(RIGHT[0], ()), (RIGHT[1], headers(RIGHT[1:2]))],
)
def test_a_base_on_another_branch_than_a_certified_block_convicts_the_signer(base, line) -> None:
    conviction = judged(FalseBase(vote(RIGHT[2], base), LEFT_CERTIFIED, line))

    assert (conviction.kind, conviction.nodes, conviction.claim) == ("E3b", (node(0),), base.hash)


def test_a_base_that_never_was_convicts_the_signer() -> None:
    invented = dataclasses.replace(TRUNK[1].header, time_ms=1)
    found = vote(RIGHT[2], _block_of(invented))

    assert judged(FalseBase(found, LEFT_CERTIFIED, headers((TRUNK[2], LEFT[0])))).kind == "E3b"


@pytest.mark.parametrize(
    ("cast", "line", "reason"),
    [
        # the short form: the block voted for conflicts; its signer knew a proof there, and not the certificate
        (vote(RIGHT[2], TRUNK[2]), headers(LEFT[:1]), "on the certified chain"),
        (vote(LEFT[2], LEFT[0]), (), "on the certified chain"),
        (vote(LEFT[2], LEFT[1]), headers(LEFT[1:2]), "on the certified chain"),
        (vote(RIGHT[2], GENESIS), headers((*TRUNK, LEFT[0])), "everybody's base"),
        (vote(RIGHT[2], RIGHT[0], epoch=1), (), "two epochs"),
    ],
)
def test_a_signer_that_stands_on_a_certified_base_is_not_convicted(cast, line, reason) -> None:
    with pytest.raises(Invalid, match=reason):
        judged(FalseBase(cast, LEFT_CERTIFIED, line))


@pytest.mark.parametrize(
    "certificate",
    [
        certify(vote(LEFT[0], by=1), block=LEFT[0]),
        certify(vote(LEFT[0], by=1), vote(LEFT[0], LEFT[0], by=2), block=LEFT[0]),
    ],
)
def test_without_a_valid_certificate_there_is_no_false_base(certificate) -> None:
    with pytest.raises(Invalid):
        judged(FalseBase(vote(RIGHT[2], RIGHT[0]), certificate, ()))


def test_a_certificate_of_an_unknown_configuration_convicts_nobody() -> None:
    other = dataclasses.replace(CONFIGURATION, nonce=bytes(31) + b"1")

    with pytest.raises(Invalid, match="not known here"):
        judged(FalseBase(vote(RIGHT[2], RIGHT[0]), LEFT_CERTIFIED, ()), {other.digest: other})


# --- two certificates


def test_conflicting_certificates_convict_who_signed_both() -> None:
    other = certify(vote(RIGHT[1], TRUNK[0], by=0), vote(RIGHT[1], TRUNK[2], by=2), block=RIGHT[1])

    conviction = judged(ConflictingCertificates(LEFT_CERTIFIED, other, fork(LEFT[:1], RIGHT[:2]), NOBODY))

    assert (conviction.kind, conviction.nodes) == ("E3", (node(2),))


def test_a_signer_common_to_both_that_was_led_over_by_a_certificate_is_not_convicted() -> None:
    """Signer 1 voted left; then it learned a certificate for RIGHT[0] and voted on, upon that base. Only 2 lied."""
    later = certify(vote(RIGHT[2], RIGHT[0], by=1), vote(RIGHT[2], TRUNK[2], by=2), block=RIGHT[2])

    conviction = judged(ConflictingCertificates(LEFT_CERTIFIED, later, fork(LEFT[:1], RIGHT), NOBODY))

    assert conviction.nodes == (node(2),)


def test_certificates_whose_common_signers_are_all_excused_convict_nobody() -> None:
    later = certify(vote(RIGHT[2], RIGHT[0], by=1), vote(RIGHT[2], RIGHT[0], by=2), block=RIGHT[2])

    with pytest.raises(Invalid, match="nobody voted on both"):
        judged(ConflictingCertificates(LEFT_CERTIFIED, later, fork(LEFT[:1], RIGHT), NOBODY))


def test_certificates_of_one_chain_do_not_conflict() -> None:
    above = certify(vote(LEFT[1], by=1), vote(LEFT[1], by=2), block=LEFT[1])

    with pytest.raises(Invalid):
        judged(ConflictingCertificates(LEFT_CERTIFIED, above, fork(LEFT[:1], LEFT[:2]), NOBODY))


def test_a_certificate_clears_the_base_that_it_makes_final() -> None:
    right = certify(vote(RIGHT[1], by=0), vote(RIGHT[1], by=2), block=RIGHT[1])
    found = ConflictingCertificates(LEFT_CERTIFIED, right, fork(LEFT[:1], RIGHT[:2]), node(1))

    assert judged(found).cleared == node(1)
    assert found.clears(RIGHT[0].hash)
    assert found.clears(LEFT[0].hash)
    assert not found.clears(RIGHT[2].hash)


# --- E6

CHECKPOINT = SigningKey(bytes(31) + b"c")
CONFIGURATIONS = {
    each.digest: each
    for each in [
        CONFIGURATION,
        dataclasses.replace(
            CONFIGURATION,
            members=(
                dataclasses.replace(CONFIGURATION.members[0], checkpoint=CHECKPOINT.public),
                *CONFIGURATION.members[1:],
            ),
        ),
    ]
}


def note(size: int, root: bytes, key: SigningKey = CHECKPOINT, origin: str = "") -> bytes:
    checkpoint = Checkpoint(origin or origin_of(NETWORK), size, Digest(root))
    return SignedCheckpoint(checkpoint, (sign_checkpoint(key, checkpoint),)).encode()


def test_two_checkpoints_of_one_size_convict_their_signer() -> None:
    found = TwoTrees(node(0), note(5, b"a" * 32), note(5, b"b" * 32), 0, ())

    conviction = judged(found, CONFIGURATIONS)

    assert (conviction.kind, conviction.nodes) == ("E6", (node(0),))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (note(6, b"b" * 32), "two sizes"),  # the short form: two checkpoints with different roots
        (note(5, b"a" * 32), "one tree twice"),
        (note(5, b"b" * 32, SigningKey(bytes(32))), "not signed"),
        (note(5, b"b" * 32, origin="carechain/" + "00" * 32), "another log"),
    ],
)
def test_checkpoints_of_an_honest_member_do_not_convict_it(other, reason) -> None:
    with pytest.raises(Invalid, match=reason):
        judged(TwoTrees(node(0), note(5, b"a" * 32), other, 0, ()), CONFIGURATIONS)


def leaf_of(entries: list[bytes], index: int) -> PlacedLeaf:
    leaves = [merkle.leaf_hash(entry) for entry in entries]

    def subtree(level: int, at: int) -> Digest:
        return merkle.root_of_leaves(leaves[at << level : (at + 1) << level])

    return PlacedLeaf(leaves[index], merkle.inclusion_proof(index, len(entries), subtree))


def test_two_leaves_under_one_index_of_two_sizes_convict_the_signer() -> None:
    one, other = [b"a", b"b", b"c"], [b"a", b"x", b"c", b"d"]
    notes = note(3, merkle.root_of(one)), note(4, merkle.root_of(other))

    found = TwoTrees(node(0), *notes, 1, (leaf_of(one, 1), leaf_of(other, 1)))

    assert judged(found, CONFIGURATIONS).nodes == (node(0),)


@pytest.mark.parametrize(("index", "reason"), [(0, "not two different leaves"), (1, "does not lead")])
def test_leaves_that_agree_or_stand_elsewhere_convict_nobody(index, reason) -> None:
    one, other = [b"a", b"b", b"c"], [b"a", b"b", b"c", b"d"]
    notes = note(3, merkle.root_of(one)), note(4, merkle.root_of(other))
    placed = leaf_of(one, index), leaf_of(other, 0 if index == 0 else 3)

    with pytest.raises(Invalid, match=reason):
        judged(TwoTrees(node(0), *notes, index, placed), CONFIGURATIONS)


def test_a_checkpoint_beside_a_certified_header_of_its_size_convicts_its_signer() -> None:
    size = LEFT[0].header.tree_size
    conviction = judged(OtherTree(node(0), note(size, b"a" * 32), LEFT_CERTIFIED, 0, ()), CONFIGURATIONS)

    assert (conviction.kind, conviction.claim) == ("E6", b"a" * 32)
    assert ConflictingCertificates(
        LEFT_CERTIFIED, LEFT_CERTIFIED, Fork((_with_root(b"a" * 32),), headers(RIGHT[:1])), node(0)
    ).clears(conviction.claim)


def test_a_checkpoint_over_the_tree_of_the_header_convicts_nobody() -> None:
    header = LEFT[0].header

    with pytest.raises(Invalid, match="one tree twice"):
        judged(
            OtherTree(node(0), note(header.tree_size, header.tree_root), LEFT_CERTIFIED, 0, ()),
            CONFIGURATIONS,
        )


def _with_root(root: bytes) -> Header:
    return dataclasses.replace(RIGHT[0].header, tree_root=Digest(root))


def _block_of(header: Header) -> Block:
    return Block(header, bytes(64), b"", BODIES[:1])
