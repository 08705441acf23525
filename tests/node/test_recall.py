"""What a signer asks when it starts, and what it makes of the answers."""

import dataclasses

import pytest
import trio

from node.recall import GRACE_MS, UNSURE_GRACE_MS, Recall
from node.tips import Tips
from node.watermark import Watermark
from protocol import codec
from protocol.certificate import Acknowledgement, acknowledge
from protocol.configuration import Configuration, network_id
from protocol.errors import Superseded
from protocol.finality import CommitVote, cast_vote
from protocol.identifiers import ZERO, Digest, Height, NodeId, Term
from protocol.raft.state import HardState
from protocol.rejoining import INCARNATION_PREFIX, Incarnation
from protocol.signing import SigningKey
from protocol.tip_statement import Session, TipStatement, state_tip
from storage.key_value import Batch
from storage.ledger_store import HistoryMark, LedgerStore
from storage.memory import MemoryStore
from tests.node.ledger_double import DoubleClock, SeededEntropy
from tests.node.scripted_transport import Answer, ScriptedTransport
from tests.protocol.ledgers import configuration, key

KEYS = tuple(key(f"n{number}") for number in range(5))
SOMEBODY = bytes([7]) * 32


class RecallHouse:
    """A voter after an unclean start, and what the others tell it."""

    def __init__(self, voters: int) -> None:
        self.configuration: Configuration = configuration(*(f"n{i}" for i in range(voters)))
        me, *self.others = self.configuration.voters
        self.transport = ScriptedTransport(NodeId(me))
        self.key = next(key for key in KEYS if NodeId(key.public) == self.transport.me)
        self.rows = MemoryStore()
        self.store = LedgerStore(self.rows, self.configuration)
        self.clock = DoubleClock()
        self.tips = Tips(
            self.key, self.store.network, self.transport, self.clock, SeededEntropy("this process")
        )
        self.recall = Recall(self.configuration, self.transport, self.clock, self.store, self.tips)
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

    def saw(
        self, term: int, ack: Acknowledgement | None = None, *, is_sure: bool = True, epoch: int = 0
    ) -> Answer:
        async def answer(_body: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            return codec.encode(Watermark(Term(term), Height(0), ack, is_sure=is_sure, epoch=epoch))

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


async def test_those_that_ask_themselves_are_no_quorum_while_another_may_still_answer(
    nursery, autojump_clock
) -> None:
    house = RecallHouse(3)
    first, second = house.others
    house.transport.calls = {first: house.saw(5, is_sure=False)}
    nursery.start_soon(house.run)
    await trio.sleep((UNSURE_GRACE_MS - 1_000) / 1000)
    assert house.results == []
    # Both were restored from copies; this one was here all the time.
    house.transport.calls[second] = house.saw(5, house.ack(6, 1))
    await trio.sleep(2)
    assert house.results == [None]


async def test_after_a_blackout_those_that_are_back_go_on_without_the_one_that_is_not(
    nursery, autojump_clock
) -> None:
    house = RecallHouse(3)
    house.transport.calls = {house.others[0]: house.saw(5, is_sure=False)}
    await house.run()
    assert house.results == [house.before]
    assert trio.current_time() == pytest.approx(UNSURE_GRACE_MS / 1000, abs=0.5)


async def test_a_step_into_a_later_epoch_comes_first(nursery, autojump_clock) -> None:
    house = RecallHouse(3)
    first, second = house.others
    house.transport.calls = {first: house.saw(5), second: house.saw(5, epoch=1)}
    nursery.start_soon(house.run)
    await trio.sleep(8)
    assert house.results == [], "the step would end it"
    await trio.sleep(4)
    assert house.results == [house.before], "there is none, or it cannot be taken: the operator has been told"


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


# --- another process with the same key ------------------------------------------------------------------------------


class TwinHouse(RecallHouse):
    """A signer that starts while its peers remember another process with its key, which perhaps still speaks."""

    def __init__(self, *, speaks_until_ms: int, session: Session | None = None, slow_ms: int = 0) -> None:
        """The other process speaks once a second, until so long after this one's start; negative: before it.

        Its clock is `slow_ms` behind.
        """
        super().__init__(3)
        self._slow_ms = slow_ms
        self.started_ms = self.clock.now_ms()
        self._until_ms = speaks_until_ms
        self._session = session or Session(0, 4, b"o" * 32)
        self.transport.calls = dict.fromkeys(self.others, self.remembers)

    def said(self, at_ms: int) -> TipStatement:
        return state_tip(
            self.key, self.store.network, self._session, epoch=0, certified_height=Height(0),
            vote_height=Height(0), vote_hash=ZERO, time_ms=at_ms,
        )  # fmt: skip

    async def remembers(self, _body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        now_ms = self.clock.now_ms()
        last_ms = min(now_ms, self.started_ms + self._until_ms)
        last_ms -= (last_ms - self.started_ms) % 1_000
        tip = self.said(last_ms - self._slow_ms)
        return codec.encode(Watermark(Term(5), Height(0), None, None, tip, now_ms - last_ms, is_sure=True))


async def test_one_that_starts_while_another_speaks_ends(nursery, autojump_clock) -> None:
    house = TwinHouse(speaks_until_ms=100_000)
    with pytest.raises(Superseded, match="a home must never run twice"):
        await house.run()
    assert trio.current_time() < 5


@pytest.mark.parametrize(("ago_ms", "waits_s"), [(500, 2.0), (1_500, 0.0), (60_000, 0.0)])
async def test_its_own_last_life_keeps_nobody_from_starting(
    ago_ms: int, waits_s: float, nursery, autojump_clock
) -> None:
    house = TwinHouse(speaks_until_ms=-ago_ms)
    began = trio.current_time()
    await house.run()
    assert house.results == [house.before]
    assert trio.current_time() - began == pytest.approx(waits_s, abs=0.6)
    assert house.tips.session.number == 5, "later than all that others remember"


async def test_what_a_later_session_has_said_to_one_peer_alone_is_enough(nursery, autojump_clock) -> None:
    house = TwinHouse(speaks_until_ms=100_000)
    house.transport.calls[house.others[0]] = house.saw(5)
    with pytest.raises(Superseded):
        await house.run()
    assert house.results == []


async def test_a_clock_that_is_ahead_hides_nobody(nursery, autojump_clock) -> None:
    house = TwinHouse(speaks_until_ms=100_000, slow_ms=60_000)
    with pytest.raises(Superseded):
        await house.run()
    assert house.results == []


class MuteTwinHouse(RecallHouse):
    """A signer that starts while another process with its key runs and may not sign: it only says that it runs."""

    def __init__(self, voters: int, *, runs_until_s: float) -> None:
        super().__init__(voters)
        self._until_s = runs_until_s
        self.transport.calls = dict.fromkeys(self.others, self.saw(5))

    async def heard(self, _body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        ago_ms = round((now - min(float(int(now)), self._until_s)) * 1000)
        return codec.encode(Watermark(Term(5), Height(0), is_sure=True, beside_ms=ago_ms))


async def test_a_process_that_may_not_sign_is_not_replaced_either(nursery, autojump_clock) -> None:
    house = MuteTwinHouse(3, runs_until_s=100)
    house.transport.calls[house.others[1]] = house.heard
    with pytest.raises(Superseded, match="runs, and this one has ended"):
        await house.run()
    assert house.results == []


async def test_one_that_ended_a_moment_ago_is_waited_for_until_it_is_silent(nursery, autojump_clock) -> None:
    house = MuteTwinHouse(3, runs_until_s=0)
    house.transport.calls[house.others[1]] = house.heard
    await house.run()
    assert house.results == [house.before]
    assert trio.current_time() == pytest.approx(3, abs=0.6)


async def test_as_many_as_may_lie_keep_nobody_from_starting_for_long(nursery, autojump_clock) -> None:
    house = MuteTwinHouse(4, runs_until_s=100)
    house.transport.calls[house.others[0]] = house.heard
    await house.run()
    assert house.results == [house.before]
    assert trio.current_time() < 10
    house.recall = Recall(house.configuration, house.transport, house.clock, house.store, house.tips)
    house.transport.calls[house.others[1]] = house.heard
    with pytest.raises(Superseded):
        await house.run()


async def test_who_has_to_begin_anew_makes_sure_of_being_alone_as_well(nursery, autojump_clock) -> None:
    house = MuteTwinHouse(3, runs_until_s=100)
    house.transport.calls = {house.others[0]: house.heard}
    with pytest.raises(Superseded):
        await house.recall.make_sure_of_being_alone()
    assert not house.tips.is_alone.is_set()


async def test_alone_in_its_network_it_asks_nobody(nursery, autojump_clock) -> None:
    house = RecallHouse(1)
    await house.run()
    await house.recall.make_sure_of_being_alone()
    assert (house.results, trio.current_time()) == ([house.before], 0)
    assert house.tips.is_alone.is_set()


async def test_a_store_of_an_older_incarnation_than_the_ledger_says_has_forgotten(
    nursery, autojump_clock
) -> None:
    house = RecallHouse(3)
    batch = Batch()
    row = codec.encode(Incarnation(1, Height(0), 0))
    batch.put(house.store.state_prefix + INCARNATION_PREFIX + house.transport.me, row)
    house.rows.write(batch, sync=True)
    house.transport.calls = {node: house.saw(5) for node in house.others}
    await house.run()
    house.before = dataclasses.replace(house.before, incarnation=1)
    await house.run()
    assert house.results == [None, house.before]


async def test_what_an_older_incarnation_had_signed_silences_nobody(nursery, autojump_clock) -> None:
    house = RecallHouse(3)
    first, second = house.others
    house.before = dataclasses.replace(house.before, incarnation=1)
    house.transport.calls = {first: house.saw(5), second: house.saw(5, house.ack(5, 3))}
    await house.run()
    assert house.results == [house.before]


async def test_who_has_never_signed_by_its_own_store_asks_as_well(nursery, autojump_clock) -> None:
    house = RecallHouse(3)
    first, second = house.others
    house.before = HardState.initial()
    house.transport.calls = {first: house.saw(0), second: house.saw(0)}
    await house.run()
    house.transport.calls = {first: house.saw(5), second: house.saw(5, house.ack(5, 3))}
    house.recall = Recall(house.configuration, house.transport, house.clock, house.store, house.tips)
    await house.run()
    assert house.results == [HardState.initial(), None]
