"""What the driver of the core owes it: one batch, order, and nothing of an old leadership in a new one (package docstring of protocol.raft)."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar, TypeVarTuple

import pytest
import trio

from node import consensus as consensus_driver
from node.consensus_inputs import ConsensusInput, FromPeer, Tick
from node.consensus_reception import CHANNEL, URGENT_CHANNEL
from node.verification import INLINE_MAX
from protocol import block as blocks
from protocol import codec, limits
from protocol.block import Entries
from protocol.certificate import acknowledge, grant_vote
from protocol.errors import Corruption, Unavailable
from protocol.identifiers import Digest, Height, NodeId, Term
from protocol.merkle import Frontier
from protocol.raft.log import Log
from protocol.raft.machine import Raft
from protocol.raft.messages import (
    AppendEntries,
    AppendReply,
    Heartbeat,
    Message,
    PreVoteReply,
    RequestVote,
    VoteReply,
    check_append,
)
from protocol.raft.state import Role
from protocol.transaction import SignedTransaction, txid_of
from storage import keyspace
from storage.key_value import Batch
from tests.node.ledger_double import InlineDisk, InlineWorkers
from tests.node.test_consensus import BAD_BODY, CHAIN, LEADER, ME, OPENING, House, frame, settle
from tests.node.test_verification import vaults
from tests.protocol import chain
from tests.protocol.chain import CONFIGURATION, NETWORK, NODES, VOTERS

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

OTHER = NODES[2]
RAW = chain.signed()


def entries_of(*raw: bytes) -> Entries:
    signed = [codec.decode(one, SignedTransaction) for one in raw]
    return tuple((one, txid_of(one.transaction, NETWORK)) for one in signed)


def vote_of_other(term: Term, tip: Digest) -> VoteReply:
    grant = grant_vote(VOTERS[2], NETWORK, epoch=0, incarnation=0, term=term, candidate=ME, tip=tip)
    return VoteReply(term, OTHER, grant)


async def lead(house: House) -> None:
    """Have `house` elected by the vote of the third voter."""
    raft = house.consensus.raft
    with trio.fail_after(60):
        while raft.role.name != "PRE_CANDIDATE":
            await trio.sleep(limits.TICK_MS / 1000)
    house.deliver(PreVoteReply(Term(raft.term + 1), OTHER, granted=True), OTHER)
    await settle(house)
    request = house.sent(RequestVote)[-1]
    house.deliver(vote_of_other(request.term, request.tip_hash), OTHER)
    await settle(house)
    assert raft.role is Role.LEADER


def ordered(house: House) -> list[bytes]:
    heights = range(1, house.store.tip_height() + 1)
    return [raw for height in heights for raw in house.store.block(Height(height)).transactions]


class WatchedDisk(InlineDisk):
    """Starts a voter from what every single batch leaves behind, as a crash right after it would."""

    def __init__(self, house: House) -> None:
        super().__init__(house.rows)
        self._house = house
        self.batches = 0

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        await super().commit(batch, sync=sync)
        self.batches += 1
        store = self._house.store
        tail = tuple(store.blocks(Height(1), store.tip_height()))
        hard_state = store.hard_state()
        assert hard_state is not None
        Raft(
            key=VOTERS[1], network=NETWORK, configuration=store.configuration, hard_state=hard_state,
            log=Log(store, Height(0), Frontier(), tail), timeout_seed=bytes(32),
        )  # fmt: skip


async def test_06_28_a_crash_after_any_batch_leaves_a_voter_that_starts(nursery, autojump_clock) -> None:
    """Hard state and blocks share one batch: between two, a marker would stand without its block."""
    house = House()
    disk = house.consensus._disk = WatchedDisk(house)
    nursery.start_soon(house.run)
    await settle(house)
    house.deliver(OPENING)
    await settle(house)
    house.deliver(frame(CHAIN[2:], below=CHAIN[1]))
    await settle(house)
    assert [reply.ack.height for reply in house.sent(AppendReply)] == [1, 3]
    assert disk.batches >= 2


async def test_23_what_the_core_replaced_is_replaced_on_the_disk(nursery, autojump_clock) -> None:
    house = House()
    nursery.start_soon(house.run)
    await settle(house)
    house.deliver(OPENING)
    house.deliver(frame(CHAIN[2:], below=CHAIN[1]))
    await settle(house)
    assert house.store.tip_height() == 3
    election = chain.election(term=4, leader=0, tip=CHAIN[1].hash)
    opening = blocks.cut(
        (), opening=codec.encode(election), predecessor=CHAIN[1].header, predecessor_hash=CHAIN[1].hash,
        frontier=Frontier(), term=Term(4), key=VOTERS[0], now_ms=CHAIN[1].header.time_ms + 1,
    )  # fmt: skip
    house.deliver(frame((opening,), below=CHAIN[1], election=election, term=4))
    await settle(house)
    assert house.store.tip_height() == 2
    assert house.store.block(Height(2)) == opening


async def test_19_messages_are_stepped_in_the_order_they_came_however_long_each_is_checked(
    nursery, autojump_clock
) -> None:
    house = House()
    asked, gate = trio.Event(), trio.Event()

    class SlowWorkers(InlineWorkers):
        async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
            asked.set()
            await gate.wait()
            return await super().run(function, *args)

    nursery.start_soon(house.run)
    await settle(house)
    house.deliver(OPENING)
    await settle(house)
    house.verification._workers = SlowWorkers()
    large = chain.successor(CHAIN[1], Frontier(), body=vaults(INLINE_MAX + 1))
    house.deliver(frame((large,), below=CHAIN[1]))
    house.deliver(frame((), below=large))
    await asked.wait()
    await settle(house)
    gate.set()
    await settle(house)
    replies = house.sent(AppendReply)
    assert [reply.refusal for reply in replies] == [None] * len(replies)
    assert replies[-1].ack.height == large.height


async def test_32_heartbeats_leave_on_a_channel_of_their_own_and_what_carries_blocks_does_not(
    nursery, autojump_clock
) -> None:
    house = House()
    channels: set[tuple[str, type]] = set()
    send = house.transport.send

    def recorded(peer: NodeId, channel: str, body: bytes) -> None:
        channels.add((channel, type(codec.decode_union(body, Message))))
        send(peer, channel, body)

    house.transport.send = recorded  # type: ignore[method-assign] # the scripted one forgets the channel
    nursery.start_soon(house.run)
    await settle(house)
    await lead(house)
    assert {(CHANNEL, AppendEntries), (CHANNEL, RequestVote), (URGENT_CHANNEL, Heartbeat)} <= channels
    assert {kind for channel, kind in channels if channel == URGENT_CHANNEL} == {Heartbeat}


async def test_p2_a_leader_that_sent_an_invalid_body_is_given_up_at_once(nursery, autojump_clock) -> None:
    house = House()
    nursery.start_soon(house.run)
    await settle(house)
    house.deliver(OPENING)
    await settle(house)
    assert house.consensus.raft.leader == LEADER
    house.deliver(frame((BAD_BODY,), below=CHAIN[1]))
    await settle(house)
    assert house.consensus.raft.leader is None


async def test_34_few_blocks_are_cut_before_one_is_committed_and_the_rest_waits(
    nursery, autojump_clock, monkeypatch
) -> None:
    monkeypatch.setattr(consensus_driver, "_WORTH_A_SLOT", 1)
    house = House()
    nursery.start_soon(house.run)
    await settle(house)
    await lead(house)
    for raw in RAW[:6]:
        house.consensus.propose(entries_of(raw), (raw,))
        await settle(house)
    raft = house.consensus.raft
    assert raft.uncommitted_count == 4  # the opening, and three of six
    tip = raft.tip_height
    for height in (1, tip):
        ack = acknowledge(
            VOTERS[2], NETWORK, epoch=0, incarnation=0, term=raft.term, height=Height(height),
            tip=house.store.hash(Height(height)),
        )  # fmt: skip
        house.deliver(AppendReply(raft.term, OTHER, ack, Height(0), None, None, Height(0), None, None), OTHER)
        await settle(house)
    assert raft.tip_height > tip
    assert ordered(house) == list(RAW[:6])


async def test_34_a_few_transactions_wait_for_the_block_ahead_of_them(nursery, autojump_clock) -> None:
    house = House()
    nursery.start_soon(house.run)
    await settle(house)
    await lead(house)
    raft = house.consensus.raft
    for count, raw in enumerate(RAW[:2]):
        house.consensus.propose(entries_of(raw), (raw,))
        await settle(house)
        assert ordered(house) == list(RAW[:count])
        ack = acknowledge(
            VOTERS[2], NETWORK, epoch=0, incarnation=0, term=raft.term, height=raft.tip_height,
            tip=house.store.hash(raft.tip_height),
        )  # fmt: skip
        house.deliver(AppendReply(raft.term, OTHER, ack, Height(0), None, None, Height(0), None, None), OTHER)
        await settle(house)
        assert ordered(house) == list(RAW[: count + 1])


async def test_a_leader_promises_what_waits_and_nothing_else(nursery, autojump_clock) -> None:
    """E8: with the opening uncommitted one slot is taken, so that what is proposed waits; what is ordered is no promise."""
    house = House()
    nursery.start_soon(house.run)
    await settle(house)
    ((_, txid),) = entries_of(RAW[0])
    assert house.consensus.place_of(txid) is None
    await lead(house)
    raft = house.consensus.raft
    assert house.consensus.place_of(txid) is None
    house.consensus.propose(entries_of(RAW[0]), RAW[:1])
    await settle(house)
    place = house.consensus.place_of(txid)
    assert place is not None
    assert (place.term, place.since) == (raft.term, raft.tip_height)
    ack = acknowledge(
        VOTERS[2], NETWORK, epoch=0, incarnation=0, term=raft.term, height=raft.tip_height,
        tip=house.store.hash(raft.tip_height),
    )  # fmt: skip
    house.deliver(AppendReply(raft.term, OTHER, ack, Height(0), None, None, Height(0), None, None), OTHER)
    await settle(house)
    assert ordered(house) == [RAW[0]]
    assert place.since < raft.tip_height <= place.height
    assert house.consensus.place_of(txid) is None


async def test_the_proof_of_a_block_rides_on_the_frame_of_the_one_that_waited_for_it(
    nursery, autojump_clock
) -> None:
    house = House()
    nursery.start_soon(house.run)
    await settle(house)
    await lead(house)
    raft = house.consensus.raft
    opening = raft.tip_height
    house.consensus.propose(entries_of(RAW[0]), RAW[:1])
    await settle(house)
    before = len(house.sent(AppendEntries))
    ack = acknowledge(
        VOTERS[2],
        NETWORK,
        epoch=0,
        incarnation=0,
        term=raft.term,
        height=opening,
        tip=house.store.hash(opening),
    )
    house.deliver(AppendReply(raft.term, OTHER, ack, Height(0), None, None, Height(0), None, None), OTHER)
    await settle(house)
    frames = house.sent(AppendEntries)[before:]
    assert any(sent.blocks and sent.proof and sent.proof.header.height == opening for sent in frames)
    assert not any(sent.proof and not sent.blocks for sent in frames)


async def test_47_a_read_that_no_quorum_confirmed_is_an_error(nursery, autojump_clock) -> None:
    house = House()
    nursery.start_soon(house.run)
    await settle(house)
    await lead(house)
    raft = house.consensus.raft

    async def end() -> None:
        await settle(house)
        house.deliver(
            AppendReply(Term(raft.term + 1), OTHER, None, Height(0), None, None, Height(0), None, None), OTHER
        )

    nursery.start_soon(end)
    with trio.fail_after(60), pytest.raises(Unavailable):
        await house.consensus.read_index()


async def test_49_what_an_old_leadership_had_in_hand_can_be_submitted_again_to_the_new_one(
    nursery, autojump_clock, monkeypatch
) -> None:
    monkeypatch.setattr(consensus_driver, "_WORTH_A_SLOT", 1)
    house = House()
    nursery.start_soon(house.run)
    await settle(house)
    await lead(house)
    house.consensus.propose(entries_of(RAW[0]), RAW[:1])
    await settle(house)
    assert ordered(house) == [RAW[0]]
    house.deliver(OPENING)  # of a later term, upon genesis: what this node had cut is gone
    await settle(house)
    assert ordered(house) == []
    await lead(house)
    house.consensus.propose(entries_of(RAW[0]), RAW[:1])
    await settle(house)
    assert ordered(house) == [RAW[0]]


async def test_49_also_when_the_leadership_is_lost_and_regained_within_one_turn(
    nursery, autojump_clock, monkeypatch
) -> None:
    monkeypatch.setattr(consensus_driver, "_WORTH_A_SLOT", 1)
    house = House()
    nursery.start_soon(house.run)
    await settle(house)
    await lead(house)
    house.consensus.propose(entries_of(RAW[0]), RAW[:1])
    await settle(house)
    consensus, term = house.consensus, house.consensus.raft.term
    turn: list[ConsensusInput] = [FromPeer(LEADER, check_append(OPENING))]
    turn += [Tick(CHAIN[1].header.time_ms)] * (limits.ELECTION_TICKS_MAX + 1)
    turn += [
        FromPeer(OTHER, PreVoteReply(Term(4), OTHER, granted=True)),
        FromPeer(OTHER, vote_of_other(Term(4), CHAIN[1].hash)),
    ]
    for item in turn:
        consensus._send_input.send_nowait(item)
    await settle(house)
    assert term < 3
    assert (consensus.raft.role, consensus.raft.term) == (Role.LEADER, 4)
    assert ordered(house) == []
    consensus.propose(entries_of(RAW[0]), RAW[:1])
    await settle(house)
    assert ordered(house) == [RAW[0]]


@pytest.mark.parametrize("damaged", [keyspace.HARD_STATE, keyspace.BLOCK + (1).to_bytes(8, "big")], ids=str)
async def test_29_a_voter_does_not_start_on_a_hard_state_or_a_tail_whose_bytes_fail_their_check(
    nursery, autojump_clock, damaged
) -> None:
    house = House()
    disk = WatchedDisk(house)
    nursery.start_soon(house.run)
    await settle(house)
    house.deliver(OPENING)
    await settle(house)
    assert house.store.tip_height() == 1
    house.rows.damage([damaged])
    with pytest.raises(Corruption):
        await disk.commit(Batch(), sync=True)  # starts a voter from what is there


async def test_7_2_the_certificate_of_a_configuration_block_and_that_below_it_are_synchronised(
    nursery, autojump_clock
) -> None:
    """Whoever leaves by it may be gone when a crash of all who stay has cost them what was not."""
    following = replace(CONFIGURATION, number=1, members=CONFIGURATION.members[:2])
    change = blocks.cut(
        (), configuration=following, predecessor=CHAIN[1].header, predecessor_hash=CHAIN[1].hash,
        frontier=Frontier(), term=Term(3), key=VOTERS[0], now_ms=CHAIN[1].header.time_ms + 1,
    )  # fmt: skip
    below, certificate = chain.certificate_of(CHAIN[1], 0, 1), chain.certificate_of(change, 0, 1)
    house = House()
    house.consensus._expected = lambda: following.digest
    nursery.start_soon(house.run)
    await settle(house)
    house.deliver(OPENING)
    await settle(house)
    house.deliver(frame((change,), below=CHAIN[1], certificate=below))
    await settle(house)
    house.deliver(frame((), below=change, certificate=certificate))
    await settle(house)
    assert house.consensus.raft.certified_height == 2
    house.rows.crash(keep=0)
    assert [house.store.certificate(Height(height)) for height in (1, 2)] == [below, certificate]
    assert house.store.applied().height == 0
