"""Grants, acknowledgements and commit proofs: golden bytes, and every way in which a proof proves nothing (P0, P2, P3)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from protocol import certificate, codec
from protocol.certificate import Acknowledgement, CommitProof, ElectionCertificate, ElectionGrant
from protocol.errors import Invalid, RemoteFault
from protocol.identifiers import Height, NetworkId, NodeId, Term
from protocol.merkle import Frontier
from tests.protocol import chain

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "certificate.json").read_text())
CHAIN = chain.build()
GENESIS, OPENING, FULL, EMPTY = CHAIN
PROOF = chain.proof(CHAIN)
FIRST, SECOND = PROOF.acknowledgements
ELECTION = chain.election(term=3, leader=0, tip=GENESIS.hash)


@pytest.mark.parametrize(
    ("name", "value"),
    [("acknowledgement", FIRST), ("grant", ELECTION.grants[0]), ("election", ELECTION), ("proof", PROOF)],
)
def test_signed_forms_have_their_golden_bytes(name, value):
    assert codec.encode(value).hex() == VECTORS[name]
    assert codec.decode(bytes.fromhex(VECTORS[name]), type(value)) == value


def test_a_good_proof_proves_its_block():
    assert certificate.check_commit_proof(PROOF, chain.NETWORK, chain.CONFIGURATION) == FULL.hash


def proof(**changes: Any) -> CommitProof:
    return dataclasses.replace(PROOF, **changes)


SPOILED = {
    "of another network": (PROOF, NetworkId(bytes(32))),
    "a quorum is missing": (proof(acknowledgements=(FIRST,)), chain.NETWORK),
    "one voter twice": (proof(acknowledgements=(FIRST, FIRST)), chain.NETWORK),
    "not sorted": (proof(acknowledgements=(SECOND, FIRST)), chain.NETWORK),
    "of a stranger": (
        proof(
            acknowledgements=tuple(
                sorted(
                    (FIRST, dataclasses.replace(SECOND, voter=NodeId(chain.OWNER.public))),
                    key=lambda a: a.voter,
                )
            )
        ),
        chain.NETWORK,
    ),
    "a link is missing": (proof(links=()), chain.NETWORK),
    "links of another chain": (proof(links=(OPENING.header,)), chain.NETWORK),
    "for an ancestor": (proof(acknowledgements=(chain.acknowledgement(0, OPENING), SECOND)), chain.NETWORK),
    "of an older term": (
        proof(acknowledgements=(chain.acknowledgement(0, FULL, term=2), SECOND)),
        chain.NETWORK,
    ),
    "of a newer term": (
        proof(
            acknowledgements=(chain.acknowledgement(0, FULL, term=4), chain.acknowledgement(1, EMPTY, term=4))
        ),
        chain.NETWORK,
    ),
    "of another epoch": (
        proof(acknowledgements=(dataclasses.replace(FIRST, epoch=1), SECOND)),
        chain.NETWORK,
    ),
    "at another height": (
        proof(acknowledgements=(dataclasses.replace(FIRST, height=Height(3)), SECOND)),
        chain.NETWORK,
    ),
    "a false signature": (
        proof(acknowledgements=(dataclasses.replace(FIRST, signature=bytes(64)), SECOND)),
        chain.NETWORK,
    ),
    "another header": (proof(header=dataclasses.replace(FULL.header, time_ms=1)), chain.NETWORK),
}


@pytest.mark.parametrize(("bad", "network"), SPOILED.values(), ids=SPOILED)
def test_a_proof_that_breaks_a_rule_proves_nothing(bad, network):
    with pytest.raises(Invalid):
        certificate.check_commit_proof(bad, network, chain.CONFIGURATION)


def test_an_older_block_is_not_proven_by_acknowledgements_of_a_later_term():
    """Raft §5.4.2, Figure 8: it commits through the opening above it only."""
    acks = tuple(chain.acknowledgement(n, FULL, term=5) for n in (0, 1))
    with pytest.raises(Invalid, match="another term"):
        certificate.check_commit_proof(CommitProof(FULL.header, (), acks), chain.NETWORK, chain.CONFIGURATION)


def test_only_acknowledgements_named_as_verified_are_taken_unverified():
    forged = dataclasses.replace(FIRST, signature=bytes(64))
    spoiled = proof(acknowledgements=(forged, SECOND))
    assert certificate.check_commit_proof(spoiled, chain.NETWORK, chain.CONFIGURATION, {forged}) == FULL.hash
    with pytest.raises(Invalid):
        certificate.check_commit_proof(spoiled, chain.NETWORK, chain.CONFIGURATION, {FIRST})


def test_an_acknowledgement_is_bound_to_every_field():
    assert certificate.acknowledgement_valid(FIRST, chain.NETWORK)
    others: dict[str, Any] = {
        "epoch": 1,
        "incarnation": 1,
        "term": 4,
        "height": 1,
        "header_hash": bytes(32),
        "voter": chain.NODES[1],
    }
    for name, value in others.items():
        assert not certificate.acknowledgement_valid(
            dataclasses.replace(FIRST, **{name: value}), chain.NETWORK
        )
    assert not certificate.acknowledgement_valid(FIRST, NetworkId(bytes(32)))


def test_a_grant_is_no_acknowledgement_though_the_fields_agree():
    grant = ELECTION.grants[0]
    as_ack = Acknowledgement(grant.voter, 0, 0, grant.term, Height(0), grant.tip_hash, grant.signature)
    assert certificate.grant_valid(grant, chain.NETWORK)
    assert not certificate.acknowledgement_valid(as_ack, chain.NETWORK)


def spoiled_elections() -> dict[str, ElectionCertificate]:
    first, second = ELECTION.grants
    stranger = dataclasses.replace(second, voter=NodeId(chain.OWNER.public))
    return {
        "too few": dataclasses.replace(ELECTION, grants=(first,)),
        "one twice": dataclasses.replace(ELECTION, grants=(first, first)),
        "not sorted": dataclasses.replace(ELECTION, grants=(second, first)),
        "of a stranger": dataclasses.replace(
            ELECTION, grants=tuple(sorted((first, stranger), key=lambda g: g.voter))
        ),
        "for another term": dataclasses.replace(ELECTION, term=Term(4)),
        "for another candidate": dataclasses.replace(ELECTION, candidate=chain.NODES[1]),
        "for another tip": dataclasses.replace(ELECTION, tip_hash=FULL.hash),
        "a false signature": dataclasses.replace(
            ELECTION, grants=(dataclasses.replace(first, signature=bytes(64)), second)
        ),
    }


@pytest.mark.parametrize("bad", spoiled_elections().values(), ids=spoiled_elections())
def test_an_election_certificate_that_breaks_a_rule_elects_nobody(bad):
    certificate.check_election(ELECTION, chain.NETWORK, chain.CONFIGURATION)
    with pytest.raises(Invalid):
        certificate.check_election(bad, chain.NETWORK, chain.CONFIGURATION)


def test_an_opening_elects_its_own_leader_upon_its_own_predecessor():
    certificate.check_opening(OPENING, chain.CONFIGURATION)
    frontier = Frontier()
    others = (
        codec.encode(chain.election(term=3, leader=1, tip=GENESIS.hash)),
        codec.encode(chain.election(term=4, leader=0, tip=GENESIS.hash)),
        codec.encode(chain.election(term=3, leader=0, tip=FULL.hash)),
        codec.encode(chain.election(term=3, leader=0, tip=GENESIS.hash, by=(0,))),
        codec.encode(PROOF),
        b"anything",
    )
    for opening in others:
        with pytest.raises(RemoteFault):
            certificate.check_opening(
                chain.successor(GENESIS, frontier, term=3, opening=opening), chain.CONFIGURATION
            )


def test_a_grant_names_its_voter():
    assert isinstance(ELECTION.grants[0], ElectionGrant)
    assert [grant.voter for grant in ELECTION.grants] == list(chain.NODES[:2])
