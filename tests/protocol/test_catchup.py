import dataclasses

import pytest

from protocol import codec
from protocol.block import Block, genesis_block
from protocol.catchup import Announce, BlocksFrom, Position, Run, Segment, check_run
from protocol.claims import Claim, hold
from protocol.configuration import Card, found, network_id
from protocol.errors import Invalid, Malformed, RemoteFault
from protocol.finality import Certificate
from protocol.identifiers import Height
from protocol.merkle import Frontier
from tests.protocol import chain
from tests.protocol.chain import CONFIGURATION, NETWORK, certificate_of, commit_vote
from tests.protocol.ledgers import key, member

CHAIN = chain.build()
AGED = tuple(commit_vote(n, CHAIN[3], base=(3, CHAIN[3].hash)) for n in (0, 1))
START = Position(CHAIN[0].header, CHAIN[0].hash, Frontier())


def with_header(block: Block, **changes: object) -> Block:
    header = dataclasses.replace(block.header, **changes)  # type: ignore[arg-type]
    return Block(header, block.signature, block.opening, block.transactions)


def test_a_run_counts_with_the_certificate_of_its_last_block_and_goes_on_after_it() -> None:
    run = Run(START, CONFIGURATION)
    run.extend(CHAIN[1:3])
    assert run.certify(chain.linked_certificate(CHAIN)) == CHAIN[1:3]
    run.extend(CHAIN[3:])
    assert run.certify(certificate_of(CHAIN[3])) == CHAIN[3:]


@pytest.mark.parametrize(
    "blocks",
    [
        (CHAIN[2],),
        (CHAIN[1], CHAIN[3]),
        (CHAIN[2], CHAIN[1]),
        (CHAIN[1], CHAIN[1]),
        (CHAIN[0], CHAIN[1]),
        (with_header(CHAIN[1], net=bytes(32)),),
        (with_header(CHAIN[1], epoch=1),),
        (with_header(CHAIN[1], time_ms=CHAIN[1].header.time_ms + 1),),
        (with_header(CHAIN[1], config_hash=bytes(32)),),
        (with_header(CHAIN[1], tree_size=7),),
        (Block(CHAIN[1].header, b"", CHAIN[1].opening, ()),),
        (CHAIN[1], Block(CHAIN[2].header, bytes(64), b"", CHAIN[2].transactions)),
    ],
    ids=[
        "gap",
        "hole",
        "backwards",
        "twice",
        "genesis",
        "network",
        "epoch",
        "altered",
        "configuration",
        "tree",
        "unsigned",
        "forged",
    ],
)
def test_a_broken_link_is_found_at_once(blocks: tuple[Block, ...]) -> None:
    with pytest.raises(Invalid):
        Run(START, CONFIGURATION).extend(blocks)


def test_signatures_of_leaders_are_left_to_who_asks_for_them_and_nothing_else_is() -> None:
    unsigned = Block(CHAIN[2].header, bytes(64), b"", CHAIN[2].transactions)
    claimed = list[Claim]()
    run = Run(START, CONFIGURATION)
    run.extend((CHAIN[1], unsigned, CHAIN[3]), claimed)
    assert run.certify(certificate_of(CHAIN[3])) == (CHAIN[1], unsigned, CHAIN[3])
    assert [hold([claim]) for claim in claimed] == [True, False, True]
    with pytest.raises(RemoteFault):
        Run(START, CONFIGURATION).extend((CHAIN[1], with_header(CHAIN[2], tree_size=7)), claimed)


def test_a_term_opens_only_with_the_election_of_its_leader() -> None:
    tip = CHAIN[0].hash
    for opening in (
        codec.encode(chain.election(term=4, leader=0, tip=tip)),
        codec.encode(chain.election(term=3, leader=1, tip=tip)),
        codec.encode(chain.election(term=3, leader=0, tip=CHAIN[1].hash)),
        codec.encode(chain.election(term=3, leader=0, tip=tip, by=(0,))),
        b"\x90",
    ):
        block = chain.successor(CHAIN[0], Frontier(), term=3, opening=opening)
        with pytest.raises(RemoteFault):
            Run(START, CONFIGURATION).extend((block,))
    without = chain.successor(CHAIN[0], Frontier(), term=3)
    with pytest.raises(Invalid):
        Run(START, CONFIGURATION).extend((without,))


@pytest.mark.parametrize(
    "certificate",
    [
        certificate_of(CHAIN[2]),
        certificate_of(CHAIN[1]),
        certificate_of(CHAIN[3], 0),
        certificate_of(CHAIN[3], 0, 0),
        dataclasses.replace(certificate_of(CHAIN[3]), votes=AGED),
        Certificate(CHAIN[3].header, (), (commit_vote(0, CHAIN[3]), commit_vote(1, CHAIN[2]))),
        dataclasses.replace(certificate_of(CHAIN[3]), links=(CHAIN[3].header,)),
        dataclasses.replace(
            certificate_of(CHAIN[3]),
            votes=(
                commit_vote(0, CHAIN[3]),
                dataclasses.replace(commit_vote(1, CHAIN[3]), signature=bytes(64)),
            ),
        ),
    ],
    ids=["below", "lower", "few", "doubled", "above-its-base", "of-an-ancestor", "not-a-chain", "forged"],
)
def test_nothing_counts_without_a_certificate_of_exactly_the_last_block(certificate: Certificate) -> None:
    with pytest.raises(Invalid):
        check_run(START, CHAIN[1:], certificate, CONFIGURATION)


def test_a_certificate_by_members_that_do_not_vote_makes_nothing_final() -> None:
    with pytest.raises(Invalid):
        check_run(
            START,
            CHAIN[1:],
            certificate_of(CHAIN[3]),
            dataclasses.replace(
                CONFIGURATION,
                members=tuple(dataclasses.replace(one, role="observer") for one in CONFIGURATION.members[:2])
                + CONFIGURATION.members[2:],
            ),
        )


def test_blocks_of_another_network_do_not_continue_ours() -> None:
    other = found((Card.make(member("hospital"), key("hospital")),), nonce=bytes(31) + b"\x01")
    assert network_id(other) != NETWORK
    foreign = genesis_block(other)
    with pytest.raises(Invalid):
        Run(Position(foreign.header, foreign.hash, Frontier()), other).extend(CHAIN[1:])


def test_an_empty_run_cannot_be_proven() -> None:
    with pytest.raises(Invalid):
        Run(START, CONFIGURATION).certify(certificate_of(CHAIN[1]))


def test_messages_round_trip_and_bound_their_parts() -> None:
    certificate = certificate_of(CHAIN[3])
    for message in (
        BlocksFrom(Height(7)),
        Segment((CHAIN[1].raw,), None),
        Segment((CHAIN[1].raw,), certificate),
        Announce(certificate, ()),
    ):
        assert codec.decode(codec.encode(message), type(message)) == message
    for raw in (codec.encode(Segment((), certificate)), codec.encode(Segment((b"x",) * 257, None))):
        with pytest.raises(Malformed):
            codec.decode(raw, Segment)
    with pytest.raises(Malformed):
        codec.decode(codec.encode(Announce(certificate, (b"x",) * 65)), Announce)
