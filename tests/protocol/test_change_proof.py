"""Finality from genesis alone: over changes of signers, and every way in which a proof proves nothing (P5, ledger.md 7.2 and 8)."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from node.bench.made_history import MadeHistory, member, signing_key, transactions, with_members
from protocol import codec
from protocol.block import Header
from protocol.change_proof import (
    Change,
    ConfigurationChange,
    FinalityProof,
    at_genesis,
    check_final,
    follow,
    without_unsigned,
)
from protocol.errors import Invalid
from protocol.finality import Certificate, CommitVote
from protocol.identifiers import NetworkId, NodeId
from protocol.recovery import SignedRecovery, consent


def grown() -> MadeHistory:
    """Return a network of four voters and a witness after a learner came, became a voter, and a voter left."""
    chain = MadeHistory.of(*(f"house {n}" for n in range(4)), witnesses=("auditor",))
    chain.rotate(3)
    chain.cut(*transactions(2, chain.network))
    for _ in range(3):
        chain.cut()
    return chain


CHAIN = grown()
HEIGHT = 4
BLOCK = CHAIN.blocks[HEIGHT]
PROOF = CHAIN.proof(HEIGHT, CHAIN.certificate(BLOCK))
CERTIFICATE = PROOF.certificate
GONE = next(node for node in CHAIN.genesis.voters if node not in CHAIN.configuration.by_node)


def test_a_proof_holds_over_every_change_of_signers():
    in_force = PROOF.check()

    assert in_force.configuration == CHAIN.configuration
    assert in_force.height == HEIGHT - 1
    assert in_force.retired == {GONE}


def test_a_proof_survives_its_wire_form():
    assert codec.decode(codec.encode(PROOF), FinalityProof) == PROOF


def test_a_block_is_final_through_one_certified_above_it():
    proof = CHAIN.proof(HEIGHT, CHAIN.certificate(CHAIN.blocks[HEIGHT + 2]))

    assert [header.height for header in proof.ancestors] == [4, 5]
    assert proof.check() == PROOF.check()
    assert proof.header == BLOCK.header


def test_a_block_below_a_configuration_block_is_final_through_it():
    chain = MadeHistory.of("one", "two")
    chain.cut(*transactions(1, chain.network))
    chain.change(
        with_members(chain.configuration, (*chain.configuration.members, member("three", "learner")))
    )
    chain.cut()

    assert chain.proof(1, chain.certificate(chain.blocks[3])).check().height == 2


def test_votes_for_descendants_certify_with_the_headers_that_link_them():
    linked = CHAIN.certificate(BLOCK, voted=CHAIN.blocks[HEIGHT + 2])

    assert len(linked.links) == 2
    assert check_final(PROOF.check(), linked) == BLOCK.hash


def test_a_header_that_nothing_signs_is_refused_and_left_out_of_what_is_written():
    unsigned = replace(CERTIFICATE, links=(CHAIN.blocks[HEIGHT + 1].header,))

    with pytest.raises(Invalid, match="holds a header that nothing signs"):
        check_final(PROOF.check(), unsigned)
    assert without_unsigned(unsigned) == CERTIFICATE


def change(index: int, **changes: Any) -> tuple[Change, ...]:
    """Return the changes of the proof with one of them spoiled."""
    spoiled = replace(PROOF.changes[index], **changes)
    return (*PROOF.changes[:index], spoiled, *PROOF.changes[index + 1 :])


def certified_by(height: int, *nodes: NodeId) -> Certificate:
    return CHAIN.certificate(CHAIN.blocks[height], by=nodes)


SIGNERS = CHAIN.configuration.signers
SPOILED: dict[str, tuple[Callable[[], FinalityProof], str]] = {
    "another genesis": (
        lambda: replace(PROOF, genesis=replace(CHAIN.genesis, nonce=bytes(32))),
        "block 1 is of another network",
    ),
    "changes in another order": (
        lambda: replace(PROOF, changes=PROOF.changes[::-1]),
        "of another configuration",
    ),
    "a change twice": (
        lambda: replace(PROOF, changes=(*PROOF.changes, PROOF.changes[-1])),
        "out of order: block 3 stands after configuration block 3",
    ),
    "a change left out": (
        lambda: replace(PROOF, changes=PROOF.changes[1:]),
        "of another configuration",
    ),
    "a plain block among the changes": (
        lambda: replace(PROOF, changes=(*PROOF.changes, ConfigurationChange(CERTIFICATE, CHAIN.genesis))),
        "stands among the configuration blocks and is none",
    ),
    "another configuration than the header names": (
        lambda: replace(PROOF, changes=change(2, configuration=CHAIN.genesis)),
        "is not the one that its header names",
    ),
    "a change without the votes of the new signers": (
        lambda: replace(PROOF, changes=change(2, certificate=certified_by(3, GONE, *SIGNERS[:2]))),
        "needs the votes of 4 signers and holds [23]",
    ),
    "a vote under a removed key": (
        lambda: replace(PROOF, certificate=certified_by(HEIGHT, GONE, *SIGNERS[:3])),
        "a vote under a key that was removed before",
    ),
    "below the quorum": (
        lambda: replace(PROOF, certificate=certified_by(HEIGHT, *SIGNERS[:3])),
        "needs the votes of 4 signers and holds 3",
    ),
    "a vote more than needed": (
        lambda: replace(PROOF, certificate=certified_by(HEIGHT, *SIGNERS[:5])),
        "a vote that it does not need",
    ),
    "votes not sorted": (
        lambda: replace(PROOF, certificate=replace(CERTIFICATE, votes=CERTIFICATE.votes[::-1])),
        "distinct signers, sorted",
    ),
    "one signer's vote with another's signature": (
        lambda: replace(
            PROOF,
            certificate=replace(
                CERTIFICATE,
                votes=(
                    replace(CERTIFICATE.votes[0], signature=CERTIFICATE.votes[1].signature),
                    *CERTIFICATE.votes[1:],
                ),
            ),
        ),
        "a vote in a certificate does not verify",
    ),
    "a link of the chain left out": (
        lambda: replace(
            CHAIN.proof(HEIGHT, CHAIN.certificate(CHAIN.blocks[HEIGHT + 2])), ancestors=(BLOCK.header,)
        ),
        "block 6 of the proof does not follow",
    ),
    "a forged header below the certified one": (
        lambda: replace(
            CHAIN.proof(HEIGHT, CHAIN.certificate(CHAIN.blocks[HEIGHT + 1])),
            ancestors=(replace(BLOCK.header, time_ms=1),),
        ),
        "block 5 of the proof does not follow",
    ),
    "an ancestor of another network": (
        lambda: replace(
            CHAIN.proof(HEIGHT, CHAIN.certificate(CHAIN.blocks[HEIGHT + 1])),
            ancestors=(replace(BLOCK.header, net=NetworkId(bytes(32))),),
        ),
        "block 4 is of another network",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_proof_is_refused_with_the_check_that_failed(name):
    build, sentence = SPOILED[name]

    with pytest.raises(Invalid, match=sentence):
        build().check()


def test_changes_lead_from_any_configuration_that_is_known_to_be_in_force():
    half = follow(at_genesis(CHAIN.genesis), PROOF.changes[:2])

    assert follow(half, PROOF.changes[2:]) == PROOF.check()


def spoiled_fields(part: Header | CommitVote) -> Iterator[Any]:
    """Yield copies of a header or vote, each with one field altered."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        altered: Any = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
        yield replace(part, **{field.name: altered})


@pytest.mark.parametrize("header", spoiled_fields(CERTIFICATE.header))
def test_every_field_of_a_header_is_covered(header):
    with pytest.raises(Invalid):
        replace(PROOF, certificate=replace(CERTIFICATE, header=header)).check()


@pytest.mark.parametrize("vote", spoiled_fields(CERTIFICATE.votes[0]))
def test_every_field_of_a_vote_is_covered(vote):
    with pytest.raises(Invalid):
        replace(PROOF, certificate=replace(CERTIFICATE, votes=(vote, *CERTIFICATE.votes[1:]))).check()


# --- recovery ---------------------------------------------------------------------------------------------------


def recovered() -> MadeHistory:
    """Return a network of four that lost one after a change, went on in the next epoch, and changed again."""
    history = MadeHistory.of(*(f"house {n}" for n in range(4)))
    history.rotate(1)
    history.cut(*transactions(2, history.network))
    history.recover("house 3")
    history.cut(*transactions(3, history.network))
    history.rotate(1)
    history.cut()
    return history


RECOVERED = recovered()
RECOVERY = next(one for one in RECOVERED.changes if isinstance(one, SignedRecovery))
LATER = RECOVERED.proof(4, RECOVERED.certificate(RECOVERED.blocks[4]))


def test_a_proof_crosses_a_recovery():
    in_force = LATER.check()

    assert (in_force.epoch, in_force.height) == (1, 3)
    assert in_force.configuration == RECOVERY.recovery.configuration
    assert codec.decode(codec.encode(LATER), FinalityProof) == LATER


def test_what_was_final_before_stays_proven_by_the_signers_of_then():
    before = RECOVERED.proof(2, RECOVERED.certificate(RECOVERED.blocks[2]))

    assert before.check().epoch == 0


def test_what_stood_below_a_recovery_is_final_through_a_block_above_it():
    through = RECOVERED.proof(2, RECOVERED.certificate(RECOVERED.blocks[4]))

    assert [header.epoch for header in through.ancestors] == [0, 1]
    assert through.check() == LATER.check()


def other(**changes: Any) -> FinalityProof:
    asked = replace(RECOVERY.recovery, **changes)
    keys = {one.node: signing_key(f"{one.name} governance") for one in RECOVERED.genesis.members}
    signatures = [consent(keys[one.node], RECOVERED.network, asked, one.node) for one in RECOVERY.signatures]
    return replace(LATER, changes=(LATER.changes[0], SignedRecovery(asked, tuple(signatures))))


UNRECOVERED: dict[str, tuple[Callable[[], FinalityProof], str]] = {
    "too few consents": (
        lambda: replace(
            LATER, changes=(LATER.changes[0], replace(RECOVERY, signatures=RECOVERY.signatures[:2]))
        ),
        "needs the consent of 3 organisations and has 2",
    ),
    "another word signed": (
        lambda: replace(
            LATER,
            changes=(
                LATER.changes[0],
                replace(RECOVERY, recovery=replace(RECOVERY.recovery, reason="other")),
            ),
        ),
        "a signature of a recovery does not verify",
    ),
    "no later epoch": (lambda: other(epoch=0), "begins no later epoch"),
    "below the change before it": (lambda: other(base_height=0), "recovery block 1 stands after"),
    "nothing changed": (
        lambda: other(configuration=RECOVERED.in_force(3)),
        "recovery block 3 changes nothing",
    ),
    "an epoch skipped by the block": (lambda: other(epoch=2), "block 4 is of epoch 1, where 2 is in force"),
    "left out": (lambda: replace(LATER, changes=LATER.changes[:1]), "is of epoch 1, where 0 is in force"),
}


@pytest.mark.parametrize("name", UNRECOVERED)
def test_a_recovery_that_does_not_hold_is_refused(name):
    build, sentence = UNRECOVERED[name]

    with pytest.raises(Invalid, match=sentence):
        build().check()
