"""Each checker of tier A finds the broken history that it is there to find, and passes the sound one."""

import dataclasses

import pytest

from protocol.block import Block, cut, genesis_block
from protocol.configuration import Card, Configuration, Member, found, network_id
from protocol.finality import Certificate, CommitVote, cast_vote
from protocol.identifiers import Height, NodeId, PublicKey, Term
from protocol.merkle import Frontier
from protocol.raft.messages import VoteNotice
from protocol.raft.state import HardState
from protocol.signing import SigningKey
from simulations.checkers import DurableState
from simulations.core_checkers import Commits, Configurations, FreshReads, TreeRoots, VoteChains, replay

KEYS = [SigningKey(bytes([number] * 32)) for number in (1, 2, 3)]
IDS = [NodeId(key.public) for key in KEYS]


def configuration(*roles: str) -> Configuration:
    cards = []
    for number, (key, role) in enumerate(zip(KEYS, roles, strict=True)):
        public = PublicKey(key.public)
        member = Member(
            f"member-{number}", "clinic", role, NodeId(public), public, public, public, public, ()
        )
        cards.append(Card.make(member, key))
    return found(tuple(cards), nonce=bytes(32))


GENESIS = configuration("voter", "voter", "voter")
BASE = genesis_block(GENESIS)


def after(block: Block, *, term: int = 1, now_ms: int = 1, following: Configuration | None = None) -> Block:
    return cut(
        (),
        configuration=following,
        predecessor=block.header,
        predecessor_hash=block.hash,
        frontier=Frontier(),
        term=Term(term),
        key=KEYS[0],
        now_ms=now_ms,
    )


def vote_of(number: int, block: Block, base: Block = BASE) -> CommitVote:
    return cast_vote(
        KEYS[number],
        network_id(GENESIS),
        epoch=0,
        incarnation=0,
        height=block.height,
        tip=block.hash,
        base_height=base.height,
        base=base.hash,
    )


def certificate_of(block: Block, *, signers: int = 2) -> Certificate:
    votes = [vote_of(number, block) for number in range(signers)]
    return Certificate(block.header, (), tuple(sorted(votes, key=lambda vote: vote.signer)))


@pytest.fixture
def findings() -> list[str]:
    return []


@pytest.fixture
def commits(findings: list[str]) -> Commits:
    return Commits(findings.append, BASE, Configurations(findings.append, GENESIS))


def everybody(_: Block) -> frozenset[NodeId]:
    return frozenset(IDS)


def test_a_header_that_names_another_tree_than_its_blocks_make_is_found(findings: list[str]) -> None:
    trees, block = TreeRoots(findings.append, BASE), after(BASE)
    trees.stored(block)
    trees.stored(block)
    assert not findings
    assert trees.after(block.hash) == Frontier()
    trees.stored(Block(dataclasses.replace(block.header, tree_size=1), bytes(64), b"", ()))
    assert "does not name the tree" in findings[0]


def test_a_block_stored_without_its_predecessor_is_found(findings: list[str]) -> None:
    TreeRoots(findings.append, BASE).stored(after(after(BASE)))
    assert "its predecessor never was" in findings[0]


def test_a_configuration_that_is_not_the_newest_in_the_log_is_found(findings: list[str]) -> None:
    following = dataclasses.replace(GENESIS, members=GENESIS.members[1:], number=1)
    checker, block = Configurations(findings.append, GENESIS), after(BASE, following=following)
    checker.stored(block)
    checker.in_force(IDS[0], following, block)
    checker.in_force(IDS[0], GENESIS, BASE)
    assert checker.above(block) == following
    assert not findings
    checker.in_force(IDS[0], GENESIS, block)
    assert "not the newest in its log" in findings[0]


def test_blocks_that_are_certified_durable_and_one_chain_are_sound(
    findings: list[str], commits: Commits
) -> None:
    one = after(BASE)
    two = after(one)
    commits.started(IDS[0], Height(0))
    commits.handed_out(IDS[0], (one, two), certificate_of(two), everybody)
    commits.handed_out(IDS[1], (one,), certificate_of(one), everybody)
    commits.reached(IDS[0], Height(2))
    commits.led(Term(2), IDS[1], lambda height: (BASE, one, two)[height].hash)
    assert not findings
    assert commits.height == 2


def test_a_committed_height_that_falls_is_found(findings: list[str], commits: Commits) -> None:
    commits.started(IDS[0], Height(0))
    commits.reached(IDS[0], Height(5))
    commits.reached(IDS[0], Height(4))
    assert "went back from 5 to 4" in findings[0]


def test_a_restart_may_fall_back_to_what_was_applied(findings: list[str], commits: Commits) -> None:
    commits.reached(IDS[0], Height(5))
    commits.started(IDS[0], Height(3))
    commits.reached(IDS[0], Height(4))
    assert not findings


def test_two_blocks_certified_at_one_height_are_found(findings: list[str], commits: Commits) -> None:
    one, other = after(BASE), after(BASE, now_ms=9)
    commits.handed_out(IDS[0], (one,), certificate_of(one), everybody)
    commits.handed_out(IDS[1], (other,), certificate_of(other), everybody)
    assert "two blocks are certified at height 1" in findings[0]


def test_a_certified_block_that_no_quorum_has_on_its_disks_is_found(
    findings: list[str], commits: Commits
) -> None:
    one = after(BASE)
    commits.handed_out(IDS[0], (one,), certificate_of(one), lambda _: frozenset(IDS[:1]))
    assert "without being durable on a Raft quorum" in findings[0]


def test_a_certificate_that_does_not_hold_is_found(findings: list[str], commits: Commits) -> None:
    one = after(BASE)
    commits.handed_out(IDS[0], (one,), certificate_of(one, signers=1), everybody)
    assert "the certificate of block 1 does not hold" in findings[0]


def test_a_gap_between_certified_blocks_is_found(findings: list[str], commits: Commits) -> None:
    two = after(after(BASE))
    commits.handed_out(IDS[0], (two,), certificate_of(two), everybody)
    assert "beyond" in findings[0]


def test_a_leader_without_a_certified_block_is_found(findings: list[str], commits: Commits) -> None:
    one = after(BASE)
    commits.handed_out(IDS[0], (one,), certificate_of(one), everybody)
    commits.led(Term(1), IDS[0], lambda _: BASE.hash)
    assert not findings
    commits.led(Term(2), IDS[1], lambda height: BASE.hash if height == 0 else None)
    assert "leads term 2 without certified block 1" in findings[0]


def test_a_stale_read_is_found_and_no_answer_is_none(findings: list[str], commits: Commits) -> None:
    reads, one = FreshReads(findings.append, commits), after(BASE)
    reads.began(IDS[0], 1)
    commits.handed_out(IDS[0], (one,), certificate_of(one), everybody)
    reads.began(IDS[0], 2)
    reads.began(IDS[0], 3)
    reads.began(IDS[1], 4)
    reads.answered(IDS[0], 1, Height(0))
    reads.answered(IDS[0], 2, None)
    assert not findings
    reads.answered(IDS[0], 3, Height(0))
    assert "answered 0 when 1 was certified" in findings[0]
    reads.lost(IDS[1])
    reads.answered(IDS[1], 4, Height(1))
    assert "nobody waits for" in findings[1]


def test_votes_on_one_chain_that_are_durable_are_sound_and_others_are_found(
    findings: list[str], commits: Commits
) -> None:
    durable = DurableState(findings.append)
    votes, one, other = VoteChains(findings.append, durable, commits), after(BASE), after(BASE, now_ms=9)
    two = after(one)
    held = dataclasses.replace(HardState.initial(), last_vote_height=Height(2), last_vote_hash=two.hash)
    durable.written(IDS[0], held)
    votes.sent(IDS[0], VoteNotice(vote_of(0, one)))
    votes.sent(IDS[0], VoteNotice(vote_of(0, two)))
    votes.sent(IDS[0], VoteNotice(vote_of(0, two)))
    assert not findings
    votes.sent(IDS[0], VoteNotice(vote_of(0, one)))
    votes.sent(IDS[1], VoteNotice(vote_of(1, one)))
    votes.sent(IDS[0], VoteNotice(vote_of(0, other)))
    words = " ".join(findings)
    for sentence in ("after it had for 2", "before that was durable", "two blocks of height 1"):
        assert sentence in words


def test_replaying_no_transactions_gives_no_rows() -> None:
    assert replay((after(BASE),), GENESIS) == ({}, Frontier())
