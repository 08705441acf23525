import dataclasses

import pytest

from protocol.block import Block
from protocol.identifiers import Digest, Height, Term
from protocol.raft.state import HardState
from simulations.certified import Chains, OneCertifiedChain, OneChainOfVotes
from simulations.checkers import DurableState
from tests.node.test_forks import OTHER
from tests.protocol import chain
from tests.protocol.chain import CONFIGURATION, NODES, certificate_of, commit_vote

CHAIN = chain.build()
ME = NODES[0]


@pytest.fixture
def chains() -> Chains:
    known = Chains()
    for block in (*CHAIN, *OTHER):
        known.stored(block)
    return known


@pytest.fixture
def found() -> list[str]:
    return []


def durable(block: Block) -> HardState:
    return dataclasses.replace(
        HardState.initial(), term=Term(3), last_vote_height=block.height, last_vote_hash=block.hash
    )


@pytest.mark.parametrize(
    ("one", "other", "height"),
    [
        (CHAIN[3], CHAIN[1], None),
        (CHAIN[2], CHAIN[2], None),
        (CHAIN[2], OTHER[2], 2),
        (CHAIN[3], OTHER[4], 2),
        (OTHER[4], CHAIN[2], 2),
        (OTHER[4], CHAIN[1], None),
    ],
)
def test_two_chains_part_at_the_lowest_block_that_differs(
    chains: Chains, one: Block, other: Block, height: int | None
) -> None:
    assert chains.parting(one.hash, other.hash) == chains.parting(other.hash, one.hash) == height


def test_votes_up_one_chain_are_fine(chains: Chains, found: list[str]) -> None:
    votes = OneChainOfVotes(found.append, chains)
    for block in CHAIN[1:]:
        votes.sent(ME, commit_vote(0, block), durable(block))
    votes.sent(ME, commit_vote(1, OTHER[2]), durable(CHAIN[3]))  # passed on, not cast
    assert found == []


def test_a_vote_on_another_branch_without_a_base_there_is_found(chains: Chains, found: list[str]) -> None:
    votes = OneChainOfVotes(found.append, chains)
    votes.sent(ME, commit_vote(0, CHAIN[2]), durable(CHAIN[2]))
    votes.sent(ME, commit_vote(0, OTHER[3]), durable(OTHER[3]))
    assert len(found) == 1
    assert found[0].startswith("one chain of votes")


def test_a_vote_on_another_branch_upon_a_certified_block_of_it_is_fine(
    chains: Chains, found: list[str]
) -> None:
    votes = OneChainOfVotes(found.append, chains)
    votes.sent(ME, commit_vote(0, CHAIN[2]), durable(CHAIN[2]))
    votes.sent(ME, commit_vote(0, OTHER[3], base=(2, OTHER[2].hash)), durable(OTHER[3]))
    assert found == []


def test_a_vote_that_leaves_before_it_is_durable_is_found(chains: Chains, found: list[str]) -> None:
    votes = OneChainOfVotes(found.append, chains)
    votes.sent(ME, commit_vote(0, CHAIN[2]), durable(CHAIN[1]))
    votes.sent(ME, commit_vote(0, CHAIN[3]), None)
    assert [one.partition(":")[0] for one in found] == ["persist before send"] * 2


def test_a_vote_below_a_durable_one_of_its_chain_may_leave_and_of_another_may_not(
    chains: Chains, found: list[str]
) -> None:
    votes = OneChainOfVotes(found.append, chains)
    votes.sent(ME, commit_vote(0, CHAIN[2]), durable(CHAIN[3]))
    assert found == []
    votes.sent(NODES[1], commit_vote(1, CHAIN[2]), durable(OTHER[3]))
    assert [one.partition(":")[0] for one in found] == ["persist before send"]


def test_certificates_of_one_chain_are_fine_whoever_voted(chains: Chains, found: list[str]) -> None:
    certified = OneCertifiedChain(found.append, chains, CONFIGURATION)
    for block in (CHAIN[1], CHAIN[3], CHAIN[2]):
        certified.seen(ME, certificate_of(block))
        certified.seen(NODES[1], certificate_of(block, 1, 2))
    assert found == []


def test_two_certified_blocks_of_a_height_are_found(chains: Chains, found: list[str]) -> None:
    certified = OneCertifiedChain(found.append, chains, CONFIGURATION)
    certified.seen(ME, certificate_of(CHAIN[2]))
    certified.seen(NODES[1], certificate_of(OTHER[2]))
    assert len(found) == 1
    assert found[0].startswith("certified twice")


def test_a_certified_block_that_does_not_descend_from_a_lower_one_is_found(
    chains: Chains, found: list[str]
) -> None:
    certified = OneCertifiedChain(found.append, chains, CONFIGURATION)
    certified.seen(ME, certificate_of(CHAIN[2]))
    certified.seen(NODES[1], certificate_of(OTHER[3]))
    assert len(found) == 1
    assert found[0].startswith("certified chain")


def test_a_certificate_without_a_quorum_is_found(chains: Chains, found: list[str]) -> None:
    OneCertifiedChain(found.append, chains, CONFIGURATION).seen(ME, certificate_of(CHAIN[2], 1))
    assert len(found) == 1
    assert found[0].startswith("certificate")


def test_a_block_conflicts_with_what_is_certified_on_another_branch(chains: Chains, found: list[str]) -> None:
    certified = OneCertifiedChain(found.append, chains, CONFIGURATION)
    assert not certified.conflicts(CHAIN[3].hash)
    certified.seen(ME, certificate_of(OTHER[2]))
    assert certified.conflicts(CHAIN[3].hash)
    assert not certified.conflicts(OTHER[4].hash)
    assert not certified.conflicts(CHAIN[1].hash)
    assert not certified.conflicts(Digest(bytes(32)))


def test_what_a_certificate_undid_is_not_forgotten(chains: Chains, found: list[str]) -> None:
    certified = OneCertifiedChain(found.append, chains, CONFIGURATION)
    checker = DurableState(found.append, certified.conflicts)
    before = dataclasses.replace(
        HardState.initial(), term=Term(3), ack_term=Term(3), ack_height=Height(3), ack_hash=CHAIN[3].hash
    )
    after = dataclasses.replace(before, term=Term(4), ack_height=Height(1), ack_hash=CHAIN[1].hash)
    checker.written(ME, before)
    certified.seen(ME, certificate_of(OTHER[2]))
    checker.written(ME, after)
    assert found == []
    certified = OneCertifiedChain(found.append, chains, CONFIGURATION)
    checker = DurableState(found.append, certified.conflicts)
    checker.written(ME, before)
    certified.seen(ME, certificate_of(CHAIN[2]))
    checker.written(ME, after)
    assert len(found) == 1
    assert "forgot that it acknowledged block 3" in found[0]
