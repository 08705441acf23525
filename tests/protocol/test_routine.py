"""What may be put aside unread, and that nothing which contradicts anything is among it."""

import pytest

from protocol import limits
from protocol.block import Block
from protocol.certificate import Acknowledgement, CommitProof
from protocol.evidence_lines import SignedHeader
from protocol.finality import Certificate, CommitVote
from protocol.identifiers import Height, Term
from protocol.raft.messages import (
    AppendEntries,
    AppendReply,
    CertificateNotice,
    CheckedAppend,
    Heartbeat,
    HeartbeatReply,
    VoteNotice,
    VoteReply,
)
from protocol.routine import Routine
from tests.protocol.chain import NODES, election
from tests.protocol.evidence_cast import LEFT, RIGHT, TRUNK, ack, certify, grant, headers, request, vote

LEADER, OTHER = NODES[:2]


def frame(
    *blocks: Block, proof: CommitProof | None = None, certificate: Certificate | None = None
) -> CheckedAppend:
    append = AppendEntries(
        0, Term(1), LEADER, Height(blocks[0].height - 1), blocks[0].header.prev_hash,
        tuple(block.raw for block in blocks), blocks[-1].hash, None, proof, bytes(64), certificate,
    )  # fmt: skip
    return CheckedAppend(append, blocks)


def reply(said: Acknowledgement | None = None, voted: CommitVote | None = None) -> AppendReply:
    return AppendReply(Term(1), OTHER, said, Height(0), None, voted)


@pytest.fixture
def routine() -> Routine:
    """Follows the trunk, and the left branch."""
    routine = Routine()
    for block in (*TRUNK, *LEFT):
        routine.follow(block)
    return routine


def test_what_is_of_the_chain_is_put_aside(routine: Routine) -> None:
    tip = LEFT[-1]
    acks = ack(tip, 2), ack(tip, 2, by=1)
    votes = vote(tip, TRUNK[0]), vote(tip, TRUNK[1], by=1)
    messages = (
        frame(LEFT[-1], proof=CommitProof(tip.header, (), acks), certificate=certify(*votes, block=tip)),
        reply(acks[1], votes[1]),
        VoteNotice(votes[1]),
        CertificateNotice(OTHER, certify(*votes, block=tip)),
        HeartbeatReply(Term(1), OTHER, 7),
    )

    assert [routine.take(OTHER, message) for message in messages] == [True] * 5
    aside, line = routine.read()
    assert {type(statement) for statement in aside} >= {SignedHeader, Acknowledgement, CommitVote}
    assert line == headers((*TRUNK, *LEFT))
    assert routine.read() == ((), ())


def test_the_next_block_is_of_the_chain(routine: Routine) -> None:
    assert not routine.follow(RIGHT[-1]), "of another chain"
    fresh = Routine()

    assert [fresh.take(LEADER, frame(block)) for block in (TRUNK[1], TRUNK[2])] == [True, True]


@pytest.mark.parametrize(
    "message",
    [
        frame(RIGHT[0]),
        reply(ack(RIGHT[1], 3, by=1)),
        reply(voted=vote(RIGHT[1], TRUNK[0], by=1)),
        VoteNotice(vote(LEFT[-1], RIGHT[0], by=1)),
        CertificateNotice(OTHER, certify(vote(RIGHT[0]), vote(RIGHT[0], by=1), block=RIGHT[0])),
        frame(LEFT[-1], proof=CommitProof(RIGHT[-1].header, (), (ack(RIGHT[-1], 3),))),
    ],
    ids=["block", "acknowledgement", "vote", "base", "certificate", "proof"],
)
def test_what_is_of_another_chain_is_compared(routine: Routine, message: CheckedAppend) -> None:
    assert not routine.take(OTHER, message)


def test_words_about_elections_are_compared_each_time_that_they_are_new(routine: Routine) -> None:
    elected = election(term=4, leader=0, tip=LEFT[-1].hash)
    beat = Heartbeat(0, Term(4), LEADER, 1, elected)

    assert not routine.take(OTHER, request(4, LEFT[-1], 2, by=1))
    assert not routine.take(OTHER, VoteReply(Term(4), OTHER, grant(4, 0, LEFT[-1], by=1)))
    assert [routine.take(LEADER, beat) for _ in range(2)] == [False, True]


def test_what_was_said_of_a_block_before_it_came_is_held_against_it() -> None:
    for said in (ack(RIGHT[0], 3, by=1), ack(LEFT[0], 2, by=1)):
        routine = Routine()
        for block in TRUNK:
            routine.follow(block)
        assert routine.take(OTHER, reply(said)), "nobody can tell yet"

        assert routine.take(LEADER, frame(LEFT[0])) == (said.header_hash == LEFT[0].hash)
        assert said in routine.read()[0]


def test_what_is_put_aside_is_bounded_and_the_newest_stays(routine: Routine) -> None:
    many = [reply(ack(LEFT[-1], term, by=1)) for term in range(2, 2 + 2 * limits.NOTEBOOK_STATEMENTS_MAX)]
    for message in many:
        routine.take(OTHER, message)
    aside, _ = routine.read()

    assert len(aside) == limits.NOTEBOOK_STATEMENTS_MAX
    assert aside[-1] == many[-1].ack
