import dataclasses

import pytest
import trio
import trio.testing

from node.applier import AppliedHeight
from node.rejoin import Rejoin, Watermark
from protocol import codec
from protocol.configuration import Configuration
from protocol.identifiers import ZERO, Height, NodeId, Term
from protocol.raft.state import HardState
from tests.node.ledger_double import DoubleClock
from tests.node.scripted_transport import Answer, ScriptedTransport
from tests.protocol.ledgers import configuration


def says(term: int, height: int) -> Answer:
    async def answer(_body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return codec.encode(Watermark(Term(term), Height(height)))

    return answer


class House:
    """A rejoining voter, and what the others tell it."""

    def __init__(self, voters: int) -> None:
        self.configuration: Configuration = configuration(*(f"n{i}" for i in range(voters)))
        me, *self.others = self.configuration.voters
        self.transport = ScriptedTransport(NodeId(me))
        self.applied = AppliedHeight(Height(0))
        self.rejoin = Rejoin(self.configuration, self.transport, DoubleClock(), self.applied)
        self.result: HardState | None = None

    async def run(self) -> None:
        self.result = await self.rejoin.wait()


@pytest.mark.parametrize("voters", [2, 3, 4, 5])
async def test_it_signs_nothing_before_every_other_voter_has_answered(
    voters, nursery, autojump_clock
) -> None:
    house = House(voters)
    house.applied.advance(Height(100))
    house.transport.calls = {node: says(3, 7) for node in house.others[:-1]}
    nursery.start_soon(house.run)
    await trio.sleep(60)
    assert house.result is None
    # The one that holds a forgotten acknowledgement may be the very last.
    house.transport.calls[house.others[-1]] = says(9, 120)
    await trio.sleep(10)
    assert house.result is None
    house.applied.advance(Height(119))
    await trio.sleep(10)
    assert house.result is None
    house.applied.advance(Height(120))
    await trio.testing.wait_all_tasks_blocked()
    result: HardState | None = house.result
    assert result == dataclasses.replace(HardState.initial(), term=Term(9), vote=house.transport.me)


async def test_a_voter_that_has_answered_is_not_asked_again_and_may_go(nursery, autojump_clock) -> None:
    house = House(3)
    first, second = house.others
    house.transport.calls = {first: says(1, 0)}
    nursery.start_soon(house.run)
    await trio.sleep(10)
    del house.transport.calls[first]
    house.transport.calls[second] = says(2, 0)
    await trio.sleep(10)
    assert [peer for peer, _, _ in house.transport.asked].count(first) == 1
    assert house.result is not None
    assert (house.result.term, house.result.ack_hash) == (2, ZERO)


async def test_nonsense_and_silence_are_no_answers(nursery, autojump_clock) -> None:
    house = House(3)
    first, second = house.others

    async def nonsense(_body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"nonsense"

    async def silence(_body: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    house.transport.calls = {first: nonsense, second: silence}
    nursery.start_soon(house.run)
    await trio.sleep(30)
    assert house.result is None
    house.transport.calls = {first: says(0, 0), second: says(0, 0)}
    await trio.sleep(30)
    assert house.result is not None
