import dataclasses

import pytest
import trio
import trio.testing

from node.applier import AppliedHeight
from node.rejoin import GRACE_MS, Recall, Rejoin, Watermark
from protocol import codec
from protocol.certificate import Acknowledgement, acknowledge
from protocol.configuration import Configuration, network_id
from protocol.finality import CommitVote, cast_vote
from protocol.identifiers import ZERO, Digest, Height, NodeId, Term
from protocol.raft.state import HardState
from protocol.signing import SigningKey
from storage.key_value import Batch
from storage.ledger_store import HistoryMark, LedgerStore
from storage.memory import MemoryStore
from tests.node.ledger_double import DoubleClock
from tests.node.scripted_transport import Answer, ScriptedTransport
from tests.protocol.ledgers import configuration, key

KEYS = tuple(key(f"n{number}") for number in range(5))
SOMEBODY = bytes([7]) * 32


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


class RecallHouse(House):
    """A voter after an unclean start."""

    def __init__(self, voters: int) -> None:
        super().__init__(voters)
        self.key = next(key for key in KEYS if NodeId(key.public) == self.transport.me)
        self.rows = MemoryStore()
        self.store = LedgerStore(self.rows, self.configuration)
        self.recall = Recall(self.configuration, self.transport, DoubleClock(), self.store)
        self.before = dataclasses.replace(
            HardState.initial(),
            term=Term(5),
            vote=SOMEBODY,
            ack_term=Term(5),
            ack_height=Height(0),
            ack_hash=self.store.hash(Height(0)),
        )
        self.results: list[HardState | None] = []

    def ack(self, term: int, height: int, *, by: SigningKey | None = None) -> Acknowledgement:
        return acknowledge(
            by or self.key, network_id(self.configuration), epoch=0, incarnation=0, term=Term(term),
            height=Height(height), tip=Digest(b"h" * 32),
        )  # fmt: skip

    def saw(self, term: int, ack: Acknowledgement | None = None) -> Answer:
        async def answer(_body: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            return codec.encode(Watermark(Term(term), Height(0), ack))

        return answer

    async def run(self) -> None:
        self.results.append(await self.recall.wait(self.before))


async def test_a_voter_that_has_forgotten_nothing_goes_on_with_its_vote(nursery, autojump_clock) -> None:
    house = RecallHouse(3)
    first, second = house.others
    house.transport.calls = {first: house.saw(5, house.ack(4, 80)), second: house.saw(3)}
    await house.run()
    assert house.results == [house.before]
    assert house.recall.is_sure


async def test_the_highest_term_is_taken_and_its_vote_is_spent(nursery, autojump_clock) -> None:
    house = RecallHouse(3)
    first, second = house.others
    house.transport.calls = {first: house.saw(5), second: house.saw(8)}
    await house.run()
    assert house.results == [dataclasses.replace(house.before, term=Term(8), vote=house.transport.me)]


async def test_a_vote_of_the_own_term_that_may_have_been_forgotten_is_spent(nursery, autojump_clock) -> None:
    house = RecallHouse(3)
    house.before = dataclasses.replace(house.before, vote=ZERO)
    house.transport.calls = {node: house.saw(5) for node in house.others}
    await house.run()
    assert house.results == [dataclasses.replace(house.before, vote=house.transport.me)]


async def test_a_forgotten_acknowledgement_silences_the_voter(nursery, autojump_clock) -> None:
    house = RecallHouse(3)
    first, second = house.others
    house.transport.calls = {first: house.saw(5), second: house.saw(5, house.ack(5, 3))}
    await house.run()
    assert house.results == [None]


async def test_an_acknowledgement_below_an_installed_snapshot_silences_nobody(
    nursery, autojump_clock
) -> None:
    house = RecallHouse(3)
    first, second = house.others
    batch = Batch()
    gap = HistoryMark(Height(0), house.store.hash(Height(0)), 0, (), Height(80))
    house.store.put_history(batch, (), gap)
    house.rows.write(batch, sync=True)
    house.store.refresh()
    house.transport.calls = {first: house.saw(5), second: house.saw(5, house.ack(5, 79))}
    await house.run()
    assert house.results == [house.before]


async def test_nobody_can_silence_a_voter_with_what_it_did_not_sign(nursery, autojump_clock) -> None:
    house = RecallHouse(3)
    first, second = house.others
    forged = dataclasses.replace(house.ack(5, 3), height=Height(9))
    foreign = house.ack(9, 9, by=next(key for key in KEYS if key is not house.key))
    house.transport.calls = {first: house.saw(5, forged), second: house.saw(5, foreign)}
    await house.run()
    assert house.results == [house.before]


@pytest.mark.parametrize(("voters", "needed"), [(2, 1), (3, 1), (4, 2), (5, 2)])
async def test_whoever_is_away_is_waited_for_no_longer_than_the_grace_once_a_quorum_has_answered(
    voters: int, needed: int, nursery, autojump_clock
) -> None:
    house = RecallHouse(voters)
    house.transport.calls = {node: house.saw(5) for node in house.others[: needed - 1]}
    nursery.start_soon(house.run)
    await trio.sleep(60)
    assert house.results == []
    house.transport.calls[house.others[needed - 1]] = house.saw(5)
    await trio.sleep(5)
    assert house.results == [house.before]
    assert house.recall.is_sure == (needed == voters - 1)


async def test_all_are_waited_for_within_the_grace(nursery, autojump_clock) -> None:
    house = RecallHouse(3)
    first, second = house.others
    house.transport.calls = {first: house.saw(5)}
    nursery.start_soon(house.run)
    await trio.sleep(0.9)
    house.transport.calls[second] = house.saw(5, house.ack(6, 1))
    await trio.sleep(GRACE_MS / 1000)
    assert house.results == [None]


class VoteHouse(RecallHouse):
    """A signer whose peers hold a commit vote of it."""

    def vote(self, height: int) -> CommitVote:
        return cast_vote(
            self.key, network_id(self.configuration), epoch=0, incarnation=0, height=Height(height),
            tip=Digest(b"h" * 32), base_height=Height(0), base=self.store.hash(Height(0)),
        )  # fmt: skip

    def holds(self, vote: CommitVote) -> Answer:
        async def answer(_body: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            return codec.encode(Watermark(Term(5), Height(0), None, vote))

        return answer


async def test_a_forgotten_commit_vote_silences_the_voter(nursery, autojump_clock) -> None:
    house = VoteHouse(3)
    first, second = house.others
    house.transport.calls = {first: house.saw(5), second: house.holds(house.vote(3))}
    await house.run()
    assert house.results == [None]


@pytest.mark.parametrize("known", [3, 4])
async def test_a_commit_vote_that_is_remembered_silences_nobody(known: int, nursery, autojump_clock) -> None:
    house = VoteHouse(3)
    first, second = house.others
    house.before = dataclasses.replace(house.before, last_vote_height=Height(known), last_vote_hash=b"h" * 32)
    house.transport.calls = {first: house.saw(5), second: house.holds(house.vote(3))}
    await house.run()
    assert house.results == [house.before]


async def test_a_forged_commit_vote_silences_nobody(nursery, autojump_clock) -> None:
    house = VoteHouse(3)
    first, second = house.others
    forged = dataclasses.replace(house.vote(3), height=Height(9))
    house.transport.calls = {first: house.saw(5), second: house.holds(forged)}
    await house.run()
    assert house.results == [house.before]
