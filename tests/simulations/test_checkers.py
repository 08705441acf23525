"""Each checker finds the broken history that it is there to find, and passes the sound one."""

import dataclasses

import pytest

from protocol.block import Block, genesis_block
from protocol.certificate import Acknowledgement, ElectionGrant
from protocol.configuration import Card, Configuration, Member, found
from protocol.identifiers import ZERO, Digest, Height, NodeId, PublicKey, Term, Txid
from protocol.ledger_rows import Receipt
from protocol.raft.messages import AppendEntries, AppendReply, VoteReply
from protocol.raft.state import HardState
from protocol.signing import SigningKey
from simulations import checkers
from simulations.checkers import (
    DurableState,
    ElectionSafety,
    LogMatching,
    PersistBeforeSend,
    Promises,
    StateMachineSafety,
)

ONE, OTHER = NodeId(b"1" * 32), NodeId(b"2" * 32)
KEY = SigningKey(bytes(32))
TXID = Txid(b"t" * 32)


@pytest.fixture
def found_violations() -> list[str]:
    return []


@pytest.fixture
def configuration() -> Configuration:
    public = PublicKey(KEY.public)
    member = Member("member-0", "clinic", "voter", NodeId(public), public, public, public, public, ())
    return found((Card.make(member, KEY),), nonce=bytes(32))


def after(block: Block, *, term: int = 1, time_ms: int = 1) -> Block:
    header = dataclasses.replace(
        block.header,
        height=Height(block.height + 1),
        prev_hash=block.hash,
        term=Term(term),
        leader=ONE,
        time_ms=time_ms,
    )
    return Block(header, bytes(64), b"", ())


@pytest.fixture
def chain(found_violations: list[str], configuration: Configuration) -> StateMachineSafety:
    return StateMachineSafety(found_violations.append, configuration, genesis_block(configuration))


def state(term: int, vote: bytes = ZERO, *, ack_height: int = 0) -> HardState:
    return dataclasses.replace(
        HardState.initial(), term=Term(term), vote=vote, ack_term=Term(1), ack_height=Height(ack_height)
    )


def receipt(height: int, index: int = 0, txid: Txid = TXID) -> Receipt:
    return Receipt(txid, Height(height), index, 1, "accepted")


def test_election_safety_finds_two_leaders_of_a_term(found_violations: list[str]) -> None:
    checker = ElectionSafety(found_violations.append)
    checker.led(Term(1), ONE)
    checker.led(Term(1), ONE)
    checker.led(Term(2), OTHER)
    assert not found_violations
    checker.led(Term(2), ONE)
    assert "term 2 was led by" in found_violations[0]


def test_log_matching_finds_two_blocks_of_one_height_and_term(
    found_violations: list[str], configuration: Configuration
) -> None:
    checker, genesis = LogMatching(found_violations.append), genesis_block(configuration)
    checker.stored(after(genesis))
    checker.stored(after(genesis))
    checker.stored(after(genesis, term=2))
    assert not found_violations
    checker.stored(after(genesis, time_ms=2))
    assert "two blocks of height 1 and term 1" in found_violations[0]


@pytest.mark.parametrize(
    ("first", "second", "finding"),
    [
        (state(2), state(1), "went back from term 2 to 1"),
        (state(2, ONE), state(2, OTHER), "changed its vote"),
        (state(2, ONE), state(2), "changed its vote"),
        (state(2, ack_height=5), state(3, ack_height=4), "forgot that it acknowledged block 5"),
        (state(2), None, "lost its hard state"),
    ],
)
def test_durable_state_finds_what_was_taken_back(
    found_violations: list[str], first: HardState, second: HardState | None, finding: str
) -> None:
    checker = DurableState(found_violations.append)
    checker.started(ONE, None)
    checker.written(ONE, first)
    checker.started(ONE, first)
    assert not found_violations
    checker.started(ONE, second)
    assert finding in found_violations[0]


def test_a_hard_state_that_is_not_synchronised_is_found(found_violations: list[str]) -> None:
    DurableState(found_violations.append).written(ONE, state(1), sync=False)
    assert "without synchronising" in found_violations[0]


def grant(term: int, candidate: NodeId) -> VoteReply:
    given = ElectionGrant(ONE, 0, 0, Term(term), candidate, Digest(ZERO), bytes(64))
    return VoteReply(Term(term), ONE, given)


def test_a_vote_that_leaves_before_it_is_durable_is_found(found_violations: list[str]) -> None:
    durable = DurableState(found_violations.append)
    checker = PersistBeforeSend(found_violations.append, durable)
    durable.written(ONE, state(2, OTHER))
    checker.sent(ONE, grant(2, OTHER), lambda _: None)
    checker.sent(ONE, VoteReply(Term(2), ONE, None), lambda _: None)
    assert not found_violations
    checker.sent(ONE, grant(3, OTHER), lambda _: None)
    assert "voted in term 3 before that was durable" in found_violations[0]


def test_a_vote_that_a_higher_durable_term_has_overtaken_is_none(found_violations: list[str]) -> None:
    # Seed 54, 60 s: a voter granted term 5, heard of term 6 in the same turn, and wrote both at once.
    durable = DurableState(found_violations.append)
    checker = PersistBeforeSend(found_violations.append, durable)
    durable.written(ONE, state(6, ONE))
    checker.sent(ONE, grant(5, OTHER), lambda _: None)
    assert not found_violations


def test_a_frame_of_a_term_that_is_not_durable_is_found(found_violations: list[str]) -> None:
    durable = DurableState(found_violations.append)
    checker = PersistBeforeSend(found_violations.append, durable)
    durable.written(ONE, state(2, ONE))
    for term in (2, 3):
        tip = Digest(ZERO)
        frame = AppendEntries(0, Term(term), ONE, Height(0), tip, (), tip, None, None, bytes(64))
        checker.sent(ONE, frame, lambda _: None)
    assert len(found_violations) == 1
    assert "led term 3 before that was durable" in found_violations[0]


def test_two_votes_in_a_term_are_found(found_violations: list[str]) -> None:
    durable = DurableState(lambda _: None)
    checker = PersistBeforeSend(found_violations.append, durable)
    for candidate in (ONE, OTHER):
        durable.written(ONE, state(2, candidate))
        checker.sent(ONE, grant(2, candidate), lambda _: None)
    assert "voted for two candidates in term 2" in found_violations[0]


def test_an_acknowledgement_that_leaves_before_its_block_is_durable_is_found(
    found_violations: list[str],
) -> None:
    durable = DurableState(found_violations.append)
    checker = PersistBeforeSend(found_violations.append, durable)
    tip = Digest(b"h" * 32)
    reply = AppendReply(
        Term(1),
        ONE,
        Acknowledgement(ONE, 0, 0, Term(1), Height(5), tip, bytes(64)),
        Height(0),
        None,
    )
    durable.written(ONE, state(1, ack_height=5))
    checker.sent(ONE, reply, lambda _: tip)
    assert not found_violations
    checker.sent(ONE, reply, lambda _: None)
    assert "acknowledged block 5 before it was durable" in found_violations[0]


def test_state_machine_safety_finds_another_block_at_a_height(
    found_violations: list[str], chain: StateMachineSafety, configuration: Configuration
) -> None:
    genesis = genesis_block(configuration)
    chain.applied(ONE, after(genesis), Term(1))
    chain.applied(OTHER, after(genesis), Term(1))
    assert not found_violations
    chain.started(OTHER, Height(0))
    chain.applied(OTHER, after(genesis, time_ms=2), Term(1))
    assert "applied another block 1" in found_violations[0]


def test_state_machine_safety_finds_a_gap_and_a_repetition(
    found_violations: list[str], chain: StateMachineSafety, configuration: Configuration
) -> None:
    first = after(genesis_block(configuration))
    chain.applied(ONE, after(first), Term(1))
    assert "applied block 2, not 1" in found_violations[0]
    chain.applied(ONE, first, Term(1))
    chain.applied(ONE, first, Term(1))
    assert "applied block 1, not 2" in found_violations[1]


def test_state_machine_safety_finds_a_block_that_does_not_follow(
    found_violations: list[str], chain: StateMachineSafety, configuration: Configuration
) -> None:
    genesis = genesis_block(configuration)
    chain.applied(ONE, after(genesis), Term(1))
    chain.applied(ONE, after(after(genesis, time_ms=2)), Term(1))
    assert "does not follow what others applied" in found_violations[0]


def test_leader_completeness_finds_a_leader_without_a_committed_block(
    found_violations: list[str], chain: StateMachineSafety, configuration: Configuration
) -> None:
    block = after(genesis_block(configuration))
    chain.applied(ONE, block, Term(1))
    chain.led(Term(2), OTHER, lambda height: block.hash if height == 1 else None)
    # A leader of the same term may be seen late: it is the one that committed the block.
    chain.led(Term(1), ONE, lambda _: genesis_block(configuration).hash)
    assert not found_violations
    chain.led(Term(2), OTHER, lambda _: None)
    assert "leads term 2 without committed block 1" in found_violations[0]


@pytest.fixture
def promises(found_violations: list[str], chain: StateMachineSafety) -> Promises:
    chain.positions[TXID] = (Height(3), 0)
    return Promises(found_violations.append, chain)


def test_promises_find_a_receipt_for_another_place(found_violations: list[str], promises: Promises) -> None:
    promises.submitted(TXID)
    promises.told(receipt(3))
    promises.told(receipt(3))
    assert not found_violations
    promises.told(receipt(4))
    assert "two receipts" in found_violations[0]
    assert "not at the place" in found_violations[1]


def test_promises_find_a_lost_acknowledgement(found_violations: list[str], promises: Promises) -> None:
    promises.told(receipt(3))
    promises.kept(ONE, lambda _: receipt(3))
    assert not found_violations
    promises.kept(ONE, lambda _: None)
    assert "has lost" in found_violations[0]


def test_promises_find_an_order_against_real_time(
    found_violations: list[str], promises: Promises, chain: StateMachineSafety
) -> None:
    later = Txid(b"l" * 32)
    chain.positions[later] = (Height(2), 0)
    promises.told(receipt(3))
    promises.submitted(later)
    promises.told(receipt(2, txid=later))
    assert "real-time order" in found_violations[0]


def test_agreement_finds_other_trees_and_other_states(
    found_violations: list[str], chain: StateMachineSafety
) -> None:
    root = Digest(b"r" * 32)
    chain.rows[b"key"] = b"value"
    sound = (Height(1), root, {b"key": b"value"})
    checkers.agreed(found_violations.append, chain, {ONE: sound, OTHER: sound})
    assert not found_violations
    checkers.agreed(
        found_violations.append, chain, {ONE: sound, OTHER: (Height(1), Digest(ZERO), {b"key": b"value"})}
    )
    checkers.agreed(found_violations.append, chain, {ONE: sound, OTHER: (Height(1), root, {})})
    assert "root of their trees" in found_violations[0]
    assert "not what its blocks mean" in found_violations[1]
