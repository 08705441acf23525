"""Tip statements between processes: two with one key are noticed by others, and the earlier one ends."""

import dataclasses
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from node.tips import INTERVAL_MS, Standpoint, Tips
from protocol import codec
from protocol.errors import Superseded
from protocol.identifiers import Height, NodeId
from protocol.tip_statement import Presence, TipStatement, tip_valid
from tests.node.ledger_double import DoubleClock, SeededEntropy
from tests.node.scripted_transport import ScriptedTransport
from tests.protocol.chain import NETWORK, VOTERS

ME, PEER = NodeId(VOTERS[0].public), NodeId(VOTERS[1].public)


class Process:
    """A process of a member: what it says goes to the peer, what the peer answers is kept, and delivered on demand."""

    def __init__(self, name: str, key_number: int = 0) -> None:
        self.clock = DoubleClock()
        self.transport = ScriptedTransport(NodeId(VOTERS[key_number].public))
        self.tips = Tips(
            VOTERS[key_number], NETWORK, self.transport, self.clock, SeededEntropy(f"process {name}")
        )
        self.at: Standpoint | None = Standpoint(0, Height(7), Height(8), bytes(32))
        self.ended: str | None = None

    async def listen(self) -> None:
        try:
            await self.tips.listen()
        except Superseded as reason:
            self.ended = str(reason)

    async def say(self) -> None:
        await self.tips.say(lambda: self.at, lambda: (ME, PEER))

    def said(self) -> Iterator[TipStatement]:
        """Take what was stated since the last call."""
        sent, self.transport.sent = self.transport.sent, []
        words = [codec.decode_union(body, TipStatement | Presence) for _, body in sent]
        return (word for word in words if isinstance(word, TipStatement))

    def hears(self, source: NodeId, statement: TipStatement) -> None:
        self.transport.deliver("tips", source, codec.encode(statement))


class House:
    """Two processes with one key, and a peer that hears both of them in turn."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.older, self.later, self.peer = Process("older"), Process("later"), Process("peer", 1)
        for process in (self.older, self.later, self.peer):
            nursery.start_soon(process.listen)
        nursery.start_soon(self.older.say)
        nursery.start_soon(self.later.say)

    def succeed(self) -> None:
        """Let the later process know what the peer has heard under its key."""
        heard = self.peer.tips.of(ME)
        assert heard is not None
        self.later.tips.begin_after([heard.statement])

    async def carry(self, *speakers: Process) -> None:
        """Bring what they have said to the peer, one after the other, and back to each what the peer shows it."""
        await trio.sleep(INTERVAL_MS / 1000 + 0.01)  # past the instant at which all of them speak
        for speaker in speakers:
            for statement in speaker.said():
                self.peer.hears(ME, statement)
            await trio.testing.wait_all_tasks_blocked()
            for shown in self.peer.said():
                speaker.hears(PEER, shown)
        await trio.testing.wait_all_tasks_blocked()


async def test_a_signer_says_once_a_second_how_far_it_is(nursery, autojump_clock) -> None:
    process = Process("one")
    nursery.start_soon(process.say)
    await trio.sleep(2.5)
    process.at = None
    await trio.sleep(2.5)
    presence = codec.encode(Presence(process.tips.session.nonce))
    assert [body for _, body in process.transport.sent[-3:]] == [presence] * 3
    said = list(process.said())
    assert [statement.time_ms - said[0].time_ms for statement in said] == [0, 1000, 2000]
    assert all(tip_valid(statement, NETWORK) for statement in said)
    assert (said[0].certified_height, said[0].vote_height) == (7, 8)


async def test_the_earlier_of_two_sessions_ends_and_others_see_both(nursery, autojump_clock) -> None:
    house = House(nursery)
    await house.carry(house.older)
    house.succeed()
    assert house.peer.tips.twins() == ()
    for _ in range(3):
        await house.carry(house.later, house.older)
    assert house.peer.tips.twins() == (ME,)
    assert house.older.ended is not None
    assert "a home must never run twice" in house.older.ended
    assert house.later.ended is None


async def test_of_two_incarnations_the_earlier_ends_whatever_was_counted(nursery, autojump_clock) -> None:
    house = House(nursery)
    house.later.tips.begin(1)
    for _ in range(3):
        await house.carry(house.older, house.later)
    assert (house.older.ended is None, house.later.ended) == (False, None)


async def test_two_that_start_at_once_do_not_both_stay(nursery, autojump_clock) -> None:
    house = House(nursery)
    for _ in range(4):
        await house.carry(house.older, house.later)
    assert (house.older.ended is None) != (house.later.ended is None)


async def test_what_the_last_life_said_ends_nobody(nursery, autojump_clock) -> None:
    house = House(nursery)
    house.later.tips.begin(1)
    await house.carry(house.later)
    house.later.at = None
    for _ in range(8):
        await house.carry(house.older)
    assert house.older.ended is None


async def test_a_dead_session_of_the_same_incarnation_is_passed_over(nursery, autojump_clock) -> None:
    house = House(nursery)
    await house.carry(house.older)
    house.succeed()
    await house.carry(house.later)
    house.later.at = None
    for _ in range(10):
        await house.carry(house.older)
    assert house.older.ended is None
    assert house.older.tips.session.number > house.later.tips.session.number


@pytest.mark.parametrize("forged", [True, False])
async def test_nobody_else_can_end_a_process(forged: bool, nursery, autojump_clock) -> None:
    process, rival = Process("one"), Process("other", 0 if not forged else 1)
    nursery.start_soon(process.listen)
    nursery.start_soon(rival.say)
    rival.tips.begin(1)
    for _ in range(3):
        await trio.sleep(1)
        for statement in rival.said():
            process.hears(PEER, dataclasses.replace(statement, signer=ME))
    await trio.testing.wait_all_tasks_blocked()
    assert (process.ended is None) is forged


async def test_what_is_said_in_another_members_name_is_not_noted(nursery, autojump_clock) -> None:
    process, peer = Process("one"), Process("peer", 1)
    nursery.start_soon(peer.listen)
    nursery.start_soon(process.say)
    await trio.sleep(0.5)
    for statement in process.said():
        peer.hears(NodeId(VOTERS[2].public), statement)
    peer.transport.deliver("tips", ME, b"nonsense")
    await trio.testing.wait_all_tasks_blocked()
    assert peer.tips.of(ME) is None
    assert peer.ended is None


async def test_who_says_farewell_is_not_waited_for(nursery, autojump_clock) -> None:
    process, peer = Process("one"), Process("peer", 1)
    nursery.start_soon(peer.listen)
    nursery.start_soon(process.say)
    await trio.sleep(0.5)
    for statement in process.said():
        peer.hears(ME, statement)
    process.tips.end([ME, PEER])
    ((node, farewell),) = process.transport.sent
    for source in (NodeId(VOTERS[2].public), ME):
        await trio.testing.wait_all_tasks_blocked()
        heard = peer.tips.of(ME)
        assert heard is not None
        assert heard.age_ms < 1_000, "nobody says it for another"
        peer.transport.deliver("tips", source, farewell)
    await trio.testing.wait_all_tasks_blocked()
    heard = peer.tips.of(ME)
    assert (node, heard is not None and heard.age_ms >= 30_000) == (PEER, True)
    await trio.sleep(3)
    assert len(process.transport.sent) == 1
