from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import pytest
import trio
import trio.testing

from node.applier import AppliedHeight, Certified
from node.consensus import Consensus
from node.consensus_reception import CHANNEL, URGENT_CHANNEL
from node.verification import INLINE_MAX, Verification
from protocol import block as blocks
from protocol import codec, limits
from protocol.block import Block
from protocol.certificate import ElectionCertificate
from protocol.errors import NotLeader, StorageFull, Unavailable
from protocol.finality import Certificate
from protocol.identifiers import Digest, Height, NodeId, Term
from protocol.merkle import Frontier
from protocol.raft.leader_forms import append_form
from protocol.raft.log import Log
from protocol.raft.machine import Raft
from protocol.raft.messages import (
    AppendEntries,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    PreVote,
)
from protocol.raft.state import HardState
from protocol.signing import SigningKey
from protocol.transaction import SignedTransaction, txid_of
from storage.key_value import Batch
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore
from tests.node.ledger_double import DoubleClock, InlineDisk, InlineWorkers, SilentLog
from tests.node.scripted_transport import ScriptedTransport
from tests.node.test_verification import vaults
from tests.protocol import chain
from tests.protocol.chain import CONFIGURATION, NETWORK, NODES, VOTERS
from tests.protocol.ledgers import configuration, key

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

CHAIN = chain.build()
LEADER, ME = NODES[0], NODES[1]


class House:
    """One voter's driver on a memory disk, with scripted peers."""

    def __init__(self, signer: SigningKey = VOTERS[1], configured=CONFIGURATION) -> None:
        self.rows = MemoryStore()
        self.store = LedgerStore(self.rows, configured)
        self.disk = InlineDisk(self.rows)
        self.transport = ScriptedTransport(NodeId(signer.public))
        self.log = SilentLog()
        self.verification = Verification(NETWORK, InlineWorkers(), self.log)
        mark = self.store.applied()
        raft = Raft(
            key=signer, network=configured.digest, configuration=configured, hard_state=HardState.initial(),
            log=Log(self.store, mark.height, mark.frontier, ()), timeout_seed=bytes(32),
        )  # fmt: skip
        self.applied = AppliedHeight(Height(0))
        self.consensus = Consensus(
            raft=raft, store=self.store, disk=self.disk, transport=self.transport, verification=self.verification,
            clock=DoubleClock(), applied=self.applied,
        )  # fmt: skip
        self.send, self.certified = trio.open_memory_channel[Certified](64)

    async def run(self) -> None:
        await self.consensus.run(self.send)

    def deliver(self, message: Message, sender: NodeId = LEADER) -> None:
        self.transport.deliver(CHANNEL, sender, codec.encode(message))

    def sent(self, kind: type) -> list:
        messages = [codec.decode_union(body, Message) for _, body in self.transport.sent]
        return [message for message in messages if isinstance(message, kind)]


def frame(
    entries: tuple[Block, ...], *, below: Block, election: ElectionCertificate | None = None,
    certificate: Certificate | None = None, term: int = 3,
) -> AppendEntries:  # fmt: skip
    tip = entries[-1].hash if entries else below.hash
    form = append_form(NETWORK, epoch=0, term=Term(term), leader=LEADER, prev_hash=below.hash, tip_hash=tip)
    return AppendEntries(
        0, Term(term), LEADER, below.height, below.hash, tuple(entry.raw for entry in entries), tip, election, None,
        VOTERS[0].sign(form), certificate,
    )  # fmt: skip


ELECTION = chain.election(term=3, leader=0, tip=CHAIN[0].hash)
OPENING = frame(CHAIN[1:2], below=CHAIN[0], election=ELECTION)
CERTIFICATE = chain.certificate_of(CHAIN[3], 0, 2)


async def settle(house: House) -> None:
    """Let everything that was delivered be worked on."""
    await trio.testing.wait_all_tasks_blocked()


async def test_an_acknowledgement_leaves_only_when_block_and_marker_are_durable(
    nursery, autojump_clock
) -> None:
    house = House()
    promises: list[AppendReply] = []

    def durable(_peer: NodeId, body: bytes) -> None:
        message = codec.decode_union(body, Message)
        if isinstance(message, AppendReply) and message.ack is not None:
            assert house.rows.unsynced == 0
            state = house.store.hard_state()
            assert state is not None
            assert (state.ack_height, state.ack_hash) == (
                message.ack.height, message.ack.header_hash,
            )  # fmt: skip
            assert house.store.block(message.ack.height).hash == state.ack_hash
            promises.append(message)

    house.transport.on_send = durable
    nursery.start_soon(house.run)
    await settle(house)
    house.deliver(OPENING)
    await settle(house)
    house.deliver(frame(CHAIN[2:], below=CHAIN[1]))
    await settle(house)
    assert [reply.ack.height for reply in promises if reply.ack] == [1, 3]


async def test_nothing_is_promised_while_the_disk_has_not_answered(nursery, autojump_clock) -> None:
    house = House()
    gate = trio.Event()

    class SlowDisk(InlineDisk):
        async def commit(self, batch: Batch, *, sync: bool) -> None:
            assert sync
            await gate.wait()
            await super().commit(batch, sync=sync)

    house.consensus._disk = SlowDisk(house.rows)
    nursery.start_soon(house.run)
    await settle(house)
    house.deliver(OPENING)
    await settle(house)
    assert house.transport.sent == []
    gate.set()
    await settle(house)
    assert [reply.ack.height for reply in house.sent(AppendReply)] == [1]


async def test_a_disk_that_cannot_write_stops_the_voter_without_a_promise(autojump_clock) -> None:
    house = House()

    class FullDisk(InlineDisk):
        async def commit(self, batch: Batch, *, sync: bool) -> None:
            raise StorageFull("full")

    house.consensus._disk = FullDisk(house.rows)
    with (
        pytest.RaisesGroup(StorageFull, allow_unwrapped=True, flatten_subgroups=True),
        trio.fail_after(60),
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.run)
            await settle(house)
            house.deliver(OPENING)
    assert house.transport.sent == []


async def test_what_is_final_is_handed_on_with_its_certificate(nursery, autojump_clock) -> None:
    house = House()
    nursery.start_soon(house.run)
    await settle(house)
    house.deliver(OPENING)
    house.deliver(frame(CHAIN[2:], below=CHAIN[1]))
    house.deliver(frame((), below=CHAIN[3], certificate=CERTIFICATE))
    await settle(house)
    certified = house.certified.receive_nowait()
    assert (certified.blocks, certified.certificate, certified.is_stored) == (CHAIN[1:], CERTIFICATE, True)


FEW = chain.certificate_of(CHAIN[1], 0)
BAD_BODY = Block(CHAIN[2].header, CHAIN[2].signature, b"", CHAIN[2].transactions[::-1])


@pytest.mark.parametrize(
    ("sender", "body"),
    [
        (NODES[2], b""),
        (NODES[2], b"garbage"),
        (NODES[2], codec.encode(HardState.initial())),
        (NODES[2], codec.encode(OPENING)),
        (NodeId(bytes(32)), codec.encode(OPENING)),
        (LEADER, codec.encode(frame((BAD_BODY,), below=CHAIN[1]))),
        (LEADER, codec.encode(frame((CHAIN[3],), below=CHAIN[1]))),
        (LEADER, codec.encode(frame((), below=CHAIN[1], certificate=FEW))),
        (NODES[2], codec.encode(frame(CHAIN[1:2], below=CHAIN[0]))),
    ],
    ids=[
        "empty",
        "garbage",
        "other-kind",
        "impostor",
        "stranger",
        "wrong-body",
        "gap",
        "few-acks",
        "impersonation",
    ],
)
async def test_a_hostile_message_is_scored_and_the_voter_goes_on(
    nursery, autojump_clock, sender, body
) -> None:
    house = House()
    nursery.start_soon(house.run)
    await settle(house)
    house.deliver(OPENING)
    await settle(house)
    house.transport.deliver(CHANNEL, sender, body)
    await settle(house)
    assert house.verification.faults == {sender: 1}
    assert house.store.tip_height() == 1
    # It still answers the others: an election after this one is possible.
    await trio.sleep(5)
    assert house.sent(PreVote)


async def test_blocks_ahead_of_the_clock_are_held_and_their_leader_is_given_up(
    nursery, autojump_clock
) -> None:
    house = House()
    nursery.start_soon(house.run)
    await settle(house)
    house.deliver(OPENING)
    await settle(house)
    future = blocks.cut(
        (), predecessor=CHAIN[1].header, predecessor_hash=CHAIN[1].hash, frontier=Frontier(), term=Term(3),
        key=VOTERS[0], now_ms=DoubleClock().now_ms() + 3_600_000,
    )  # fmt: skip
    for _ in range(50):
        house.deliver(frame((future,), below=CHAIN[1]))
        await trio.sleep(0.1)
    assert house.store.tip_height() == 1
    assert house.verification.faults.get(LEADER)
    await trio.sleep(5)
    assert house.sent(PreVote)


async def test_a_leader_orders_what_is_proposed_once_and_a_follower_refuses(nursery, autojump_clock) -> None:
    alone = configuration("hospital")
    house = House(key("hospital"), alone)
    signed = codec.decode(chain.signed()[0], SignedTransaction)
    entry = (signed, txid_of(signed.transaction, NETWORK))
    with pytest.raises(NotLeader):
        house.consensus.propose((entry,), (chain.signed()[0],))
    nursery.start_soon(house.run)
    await trio.sleep(1)
    for _ in range(3):
        house.consensus.propose((entry,), (chain.signed()[0],))
        await settle(house)
    ordered = [
        raw
        for h in range(1, house.store.tip_height() + 1)
        for raw in house.store.block(Height(h)).transactions
    ]
    assert ordered == [chain.signed()[0]]


async def test_proposals_are_bounded_in_bytes_until_the_driver_takes_them(nursery, autojump_clock) -> None:
    house = House(key("hospital"), configuration("hospital"))
    nursery.start_soon(house.run)
    await trio.sleep(1)
    signed = codec.decode(chain.signed()[0], SignedTransaction)
    entry = (signed, txid_of(signed.transaction, NETWORK))
    many = 1 + limits.POOL_BYTES_MAX // (1000 * limits.TRANSACTION_BYTES_MAX)  # so many are one too many
    raw = (bytes(limits.TRANSACTION_BYTES_MAX),) * 1000
    for _ in range(many - 1):
        house.consensus.propose((entry,) * 1000, raw)
    with pytest.raises(Unavailable):
        house.consensus.propose((entry,) * 1000, raw)
    await settle(house)
    house.consensus.propose((entry,), raw[:1])
    assert house.consensus._queued_bytes == limits.TRANSACTION_BYTES_MAX


async def test_when_the_applier_is_behind_the_driver_waits_and_goes_on(nursery, autojump_clock) -> None:
    house = House()
    house.send, house.certified = trio.open_memory_channel[Certified](0)
    nursery.start_soon(house.run)
    await settle(house)
    house.deliver(OPENING)
    house.deliver(frame(CHAIN[2:], below=CHAIN[1]))
    house.deliver(frame((), below=CHAIN[3], certificate=CERTIFICATE))
    await trio.sleep(30)
    assert not house.sent(PreVote)
    with trio.fail_after(60):
        assert (await house.certified.receive()).blocks == CHAIN[1:]
    await trio.sleep(5)
    assert house.sent(PreVote)
    assert Digest(CHAIN[3].hash) == house.store.hash(Height(3))
    assert house.transport.me == ME


def heartbeat(context: int = 0) -> bytes:
    return codec.encode(Heartbeat(0, Term(3), LEADER, context, None))


async def test_32_a_voter_whose_disk_stalls_answers_heartbeats_and_promises_nothing(
    nursery, autojump_clock
) -> None:
    house = House()
    nursery.start_soon(house.run)
    await settle(house)
    house.deliver(OPENING)
    await settle(house)

    class StalledDisk(InlineDisk):
        async def commit(self, batch: Batch, *, sync: bool) -> None:
            await trio.sleep_forever()

    house.consensus._disk = StalledDisk(house.rows)
    house.deliver(frame(CHAIN[2:], below=CHAIN[1]))
    await settle(house)
    house.transport.deliver(URGENT_CHANNEL, LEADER, heartbeat())
    await settle(house)
    [answer] = house.sent(HeartbeatReply)
    assert (answer.term, answer.voter, answer.context) == (Term(3), ME, 0)
    assert [reply.ack.height for reply in house.sent(AppendReply)] == [1]


async def test_a_heartbeat_overtakes_blocks_that_are_being_verified(nursery, autojump_clock) -> None:
    house = House()
    nursery.start_soon(house.run)
    await settle(house)
    house.deliver(OPENING)
    await settle(house)

    asked = trio.Event()

    class BusyWorkers(InlineWorkers):
        async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
            asked.set()
            await trio.sleep_forever()
            raise AssertionError("woken up")

    house.verification._workers = BusyWorkers()
    large = chain.successor(CHAIN[1], Frontier(), body=vaults(INLINE_MAX + 1))
    house.deliver(frame((large,), below=CHAIN[1]))
    await asked.wait()
    house.transport.deliver(URGENT_CHANNEL, LEADER, heartbeat())
    await settle(house)
    assert len(house.sent(HeartbeatReply)) == 1
    assert [reply.ack.height for reply in house.sent(AppendReply)] == [1]


@pytest.mark.parametrize(
    ("sender", "body"),
    [(LEADER, b"garbage"), (LEADER, codec.encode(OPENING)), (NodeId(bytes(32)), heartbeat())],
    ids=["garbage", "not-urgent", "stranger"],
)
async def test_what_is_no_heartbeat_of_a_voter_is_dropped_from_the_urgent_channel(
    nursery, autojump_clock, sender, body
) -> None:
    house = House()
    nursery.start_soon(house.run)
    await settle(house)
    house.transport.deliver(URGENT_CHANNEL, sender, body)
    house.deliver(OPENING)
    await settle(house)
    assert house.sent(HeartbeatReply) == []
    assert [reply.ack.height for reply in house.sent(AppendReply)] == [1]


async def test_46_47_a_read_index_is_the_committed_height_or_an_error(nursery, autojump_clock) -> None:
    alone = House(key("hospital"), configuration("hospital"))
    nursery.start_soon(alone.run)
    leaderless = House()
    nursery.start_soon(leaderless.run)
    await trio.sleep(0.2)
    assert await alone.consensus.read_index() == alone.consensus.raft.commit_height == 1
    with trio.fail_after(60), pytest.raises(Unavailable):
        await leaderless.consensus.read_index()


async def test_44_only_a_leader_hands_over_and_a_target_that_does_not_vote_stops_nothing(
    nursery, autojump_clock
) -> None:
    house = House(key("hospital"), configuration("hospital"))
    with pytest.raises(NotLeader):
        await house.consensus.transfer_leadership(LEADER)
    nursery.start_soon(house.run)
    await trio.sleep(0.2)
    await house.consensus.transfer_leadership(LEADER)
    await settle(house)
    assert house.consensus.raft.may_propose
