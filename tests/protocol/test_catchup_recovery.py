"""Runs of blocks that lead into another epoch: its first block needs no certificate, and makes what it stands on final."""

import pytest

from protocol import finality
from protocol.block import Block, genesis_block
from protocol.catchup import Position, Run
from protocol.errors import Invalid, RemoteFault
from protocol.merkle import Frontier
from protocol.recovery_block import configuration_set_by, recovery_block
from tests.protocol.test_recovery import Consortium

NET = Consortium(3)
GENESIS = genesis_block(NET.configuration)


def run() -> Run:
    return Run(Position(GENESIS.header, GENESIS.hash, Frontier()), NET.configuration)


def recovery(*by: int) -> Block:
    return recovery_block(NET.signed(NET.recovery(GENESIS.header), *by), GENESIS.header, Frontier())


def test_a_recovery_with_enough_consents_ends_a_run_without_a_certificate() -> None:
    block = recovery(0, 1, 2)
    one = run()
    one.extend((block,))
    assert one.tip == Position(block.header, block.hash, Frontier())
    assert one.configuration == configuration_set_by(block)
    assert one.recovered() == (block,)
    with pytest.raises(Invalid, match="begins an epoch"):
        one.recovered()


def test_too_few_consents_or_a_run_without_a_recovery_are_refused() -> None:
    one = run()
    with pytest.raises(Invalid):
        one.extend((recovery(0, 1),))
    with pytest.raises(Invalid, match="begins an epoch"):
        run().recovered()
    again = recovery(0, 1, 2)
    one = run()
    one.extend((again,))
    with pytest.raises(RemoteFault):
        one.extend((again,))


def test_above_a_recovery_only_the_new_signers_certify() -> None:
    block = recovery(0, 1, 2)
    one = run()
    one.extend((block,))
    votes = tuple(
        finality.cast_vote(
            key, NET.network, epoch=1, incarnation=0, height=block.height, tip=block.hash, base_height=GENESIS.height, base=GENESIS.hash
        )
        for key in NET.voters
    )  # fmt: skip
    certificate = finality.Certificate(block.header, (), votes)
    with pytest.raises(Invalid):
        one.certify(certificate)
