import dataclasses
from collections.abc import AsyncGenerator, Callable

import pytest
import trio
import trio.testing

from node import block_server, catchup
from node.applier import Applier, Certified
from node.block_server import BlockServer
from node.catchup import Follower
from node.forks import Forks
from node.gossip import TOPIC
from node.hearing import Hearing
from node.receipts import Receipts
from node.signature_processes import SignatureProcesses
from node.verification import Verification
from protocol import codec, transaction
from protocol.block import Block
from protocol.catchup import Announce, BlocksFrom, Segment, StoryFrom
from protocol.errors import Invalid, RemoteFault, Unavailable
from protocol.evidence_blocks import shown_invalid
from protocol.finality import Certificate
from protocol.identifiers import Height, NodeId, Txid
from protocol.merkle import Frontier
from protocol.transaction import Revoke
from storage.keyspace import BLOCK
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore
from tests.node.ledger_double import DoubleClock, InlineDisk, InlineWorkers, SeededEntropy, SilentLog
from tests.node.scripted_transport import ScriptedTransport, Stream
from tests.protocol import chain
from tests.protocol.chain import CONFIGURATION, NETWORK, NODES, certificate_of

CHAIN = chain.build()
ME = NodeId(bytes(32))
LIAR, HONEST = NODES[1], NODES[2]


def segment(*blocks: Block, certificate: Certificate | None = None) -> bytes:
    return codec.encode(Segment(tuple(block.raw for block in blocks), certificate))


def sending(*frames: bytes, then: Callable[[], object] | None = None) -> Stream:
    async def stream(_body: bytes) -> AsyncGenerator[bytes, None]:
        for frame in frames:
            await trio.lowlevel.checkpoint()
            yield frame
        if then is not None:
            await then()  # type: ignore[misc]

    return stream


ALL = sending(segment(*CHAIN[1:], certificate=certificate_of(CHAIN[3])))


class House:
    """An observer and what its peers say."""

    def __init__(self) -> None:
        rows = self.rows = MemoryStore()
        self.store = LedgerStore(rows, CONFIGURATION)
        self.log = SilentLog()
        self.applier = Applier(self.store, InlineDisk(rows), Receipts())
        self.transport = ScriptedTransport(ME, (LIAR, HONEST))
        self.verification = Verification(NETWORK, InlineWorkers(), self.log)
        self.hearing = Hearing()
        self.forks = Forks(self.store, InlineDisk(rows), self.transport, self.log)
        self.follower = Follower(
            store=self.store, applier=self.applier, transport=self.transport, verification=self.verification,
            clock=DoubleClock(), entropy=SeededEntropy("observer"), log=self.log,
            forks=self.forks, hearing=self.hearing,
        )  # fmt: skip

    def announce(self, sender: NodeId, *blocks: Block, certificate: Certificate) -> None:
        body = codec.encode(Announce(certificate, tuple(block.raw for block in blocks)))
        self.transport.deliver(TOPIC, sender, body)


@pytest.fixture
def house() -> House:
    return House()


async def test_the_server_serves_proven_segments_and_nothing_above_the_applied_height(
    house: House, autojump_clock
) -> None:
    server = BlockServer(house.store, house.log)
    ask = codec.encode(BlocksFrom(Height(1)))
    assert [frame async for frame in server.serve(ME, ask)] == []
    await house.applier.apply(Certified(CHAIN[1:3], chain.linked_certificate(CHAIN), is_stored=False))
    await house.applier.apply(Certified(CHAIN[3:], certificate_of(CHAIN[3]), is_stored=False))
    segments = [codec.decode(frame, Segment) async for frame in server.serve(ME, ask)]
    # Both groups under the certificate of the second: who catches up checks one, and writes once.
    assert [len(one.blocks) for one in segments] == [3]
    assert [one.certificate.header.height for one in segments if one.certificate] == [3]
    ask = codec.encode(StoryFrom(Height(1)))
    (story,) = [codec.decode(frame, Segment) async for frame in server.serve(ME, ask)]
    assert (len(story.blocks), story.certificate) == (2, house.store.certificate_at_or_above(Height(1)))
    for height in (4, 2**64 - 1):
        assert [frame async for frame in server.serve(ME, codec.encode(BlocksFrom(Height(height))))] == []
    for bad in (b"", b"\xc1", codec.encode(BlocksFrom(Height(0)))):
        with pytest.raises(RemoteFault):
            await anext(server.serve(ME, bad))


async def test_the_server_gathers_no_more_than_its_bound_and_goes_beyond_it_only_to_the_next_certificate(
    house: House, autojump_clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.applier.apply(Certified(CHAIN[1:3], chain.linked_certificate(CHAIN), is_stored=False))
    await house.applier.apply(Certified(CHAIN[3:], certificate_of(CHAIN[3]), is_stored=False))
    monkeypatch.setattr(block_server, "_GATHERED_BYTES", 1)
    server = BlockServer(house.store, house.log)

    frames = [frame async for frame in server.serve(ME, codec.encode(BlocksFrom(Height(1))))]

    segments = [codec.decode(frame, Segment) for frame in frames]
    assert [len(one.blocks) for one in segments] == [2, 1]
    assert [one.certificate.header.height for one in segments if one.certificate] == [2, 3]


async def test_the_leader_is_asked_last(house: House, autojump_clock) -> None:
    asked: list[NodeId] = []

    def noting(peer: NodeId) -> Stream:
        async def stream(_body: bytes) -> AsyncGenerator[bytes, None]:
            asked.append(peer)
            await trio.lowlevel.checkpoint()
            for nothing in tuple[bytes, ...]():
                yield nothing

        return stream

    for leader, other in ((LIAR, HONEST), (HONEST, LIAR)):
        house.transport.streams = {peer: noting(peer) for peer in (LIAR, HONEST)}
        house.follower.last_leader = leader
        await house.follower.pull()
        assert asked[-2:] == [other, leader]


async def test_damaged_blocks_are_served_to_nobody_and_told_once(house: House, autojump_clock) -> None:
    other = House()
    await other.applier.apply(Certified(CHAIN[1:2], certificate_of(CHAIN[1]), is_stored=False))
    await other.applier.apply(Certified(CHAIN[2:], certificate_of(CHAIN[3]), is_stored=False))
    other.rows.damage([BLOCK + (2).to_bytes(8, "big")])
    server = BlockServer(other.store, other.log)
    for _ in range(2):
        ask = codec.encode(BlocksFrom(Height(1)))
        segments = [codec.decode(frame, Segment) async for frame in server.serve(ME, ask)]
        assert [len(one.blocks) for one in segments] == [1]
    assert [level for level, *_ in other.log.events] == ["error"]


async def test_what_the_server_sends_brings_a_follower_to_the_tip(house: House, autojump_clock) -> None:
    other = House()
    await other.applier.apply(Certified(CHAIN[1:], certificate_of(CHAIN[3]), is_stored=False))

    async def served(body: bytes) -> AsyncGenerator[bytes, None]:
        async for frame in BlockServer(other.store, other.log).serve(ME, body):
            yield frame

    house.transport.streams[HONEST] = served
    await house.follower.pull()
    assert house.applier.mark == other.applier.mark


WRONG_BODY = Block(CHAIN[2].header, CHAIN[2].signature, b"", CHAIN[2].transactions[::-1])
UNSIGNED = chain.successor(CHAIN[1], Frontier(), body=(b"garbage",))


@pytest.mark.parametrize(
    "frames",
    [
        (b"garbage",),
        (codec.encode(Segment((b"garbage",), None)),),
        (segment(CHAIN[2], CHAIN[3], certificate=certificate_of(CHAIN[3])),),
        (segment(CHAIN[1], CHAIN[3], certificate=certificate_of(CHAIN[3])),),
        (segment(CHAIN[2], CHAIN[1], certificate=certificate_of(CHAIN[1])),),
        (segment(*CHAIN[1:], certificate=certificate_of(CHAIN[2])),),
        (segment(*CHAIN[1:], certificate=certificate_of(CHAIN[3], 0)),),
        (segment(CHAIN[1], WRONG_BODY, CHAIN[3], certificate=certificate_of(CHAIN[3])),),
        (segment(CHAIN[1], UNSIGNED, certificate=certificate_of(UNSIGNED)),),
        (segment(CHAIN[1]), segment(CHAIN[1])),
    ],
    ids=[
        "garbage",
        "block",
        "gap",
        "hole",
        "backwards",
        "other-certificate",
        "few-acks",
        "wrong-body",
        "bad-transaction",
        "repeated",
    ],
)
async def test_a_lying_peer_is_scored_brings_nothing_and_the_next_one_is_asked(
    house: House, frames, autojump_clock
) -> None:
    house.transport.streams = {LIAR: sending(*frames)}
    await house.follower.pull()
    assert house.applier.height.value == 0
    assert house.store.tip_height() == 0
    assert house.verification.faults == {LIAR: 1}
    house.transport.streams[HONEST] = ALL
    await house.follower.pull()
    assert house.applier.height.value == 3


WRONG_TREE = chain.successor(CHAIN[1], Frontier().append(CHAIN[2].leaves()))


@pytest.mark.parametrize("invalid", [UNSIGNED, WRONG_TREE], ids=["bad-transaction", "wrong-tree"])
async def test_an_invalid_block_that_is_certified_is_shown_to_whoever_looks_for_lies(
    house: House, invalid: Block, autojump_clock
) -> None:
    blocks = CHAIN[1], invalid
    house.transport.streams = {LIAR: sending(segment(*blocks, certificate=certificate_of(invalid)))}
    await house.follower.pull()
    heard = house.hearing.heard.receive_nowait()
    assert heard.refused == blocks
    found = shown_invalid(invalid, CHAIN[1].header)
    assert found.check(NETWORK, {CONFIGURATION.digest: CONFIGURATION}) == NODES[0]


async def test_what_was_proven_before_the_lie_is_kept(house: House, autojump_clock) -> None:
    house.transport.streams[LIAR] = sending(
        segment(*CHAIN[1:3], certificate=chain.linked_certificate(CHAIN)), b"garbage"
    )
    await house.follower.pull()
    assert house.applier.height.value == 2
    assert house.verification.faults == {LIAR: 1}


def forged_above(tip: Block, frontier: Frontier) -> Block:
    """Return a block of which one transaction carries another's signature."""
    revokes = [Revoke(chain.VID, Txid(bytes([n]) * 32), chain.UNTIL_MS) for n in range(2)]
    right, other = [transaction.sign(revoke, NETWORK, chain.OWNER) for revoke in revokes]
    wrong = dataclasses.replace(right, signatures=other.signatures)
    return chain.successor(tip, frontier, body=(codec.encode(other), codec.encode(wrong)))


async def test_processes_verify_a_long_answer_end_with_it_and_forgery_is_found(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catchup, "_MUCH", 1)
    processes = house.verification.processes = SignatureProcesses(1)
    forged = forged_above(CHAIN[3], Frontier().append(CHAIN[2].leaves()))
    were_running: list[bool] = []

    async def note() -> None:
        were_running.append(processes.are_running)

    house.transport.streams[LIAR] = sending(
        segment(*CHAIN[1:], certificate=certificate_of(CHAIN[3])),
        segment(forged, certificate=certificate_of(forged)),
        then=note,
    )
    with trio.fail_after(60), pytest.raises(Invalid, match="does not verify"):
        await house.follower._pull_from(LIAR)
    assert were_running == [True]
    assert processes.pids == ()
    assert house.applier.height.value == 3
    assert house.hearing.heard.receive_nowait().refused == (forged,)


@pytest.mark.parametrize("has_processes", [True, False])
@pytest.mark.parametrize("signature", [CHAIN[3].signature, b""], ids=["another's", "none"])
async def test_a_certified_block_that_its_leader_has_not_signed_is_refused(
    house: House, monkeypatch: pytest.MonkeyPatch, signature: bytes, has_processes: bool
) -> None:
    """Its hash does not cover the signature: who takes another one in its place serves a block that nobody else takes."""
    monkeypatch.setattr(catchup, "_MUCH", 1)
    if has_processes:
        house.verification.processes = SignatureProcesses(1)
    above = chain.successor(CHAIN[3], Frontier().append(CHAIN[2].leaves()))
    wrong = Block(above.header, signature, b"", ())
    house.transport.streams[LIAR] = sending(
        segment(*CHAIN[1:], certificate=certificate_of(CHAIN[3])),
        segment(wrong, certificate=certificate_of(above)),
    )
    with trio.fail_after(60), pytest.raises(Invalid, match="leader's signature does not verify"):
        await house.follower._pull_from(LIAR)
    assert house.applier.height.value == 3


async def test_a_long_catch_up_says_how_far_it_has_come(house: House, autojump_clock) -> None:
    async def slow(_body: bytes) -> AsyncGenerator[bytes, None]:
        tip, frontier = CHAIN[3], Frontier().append(CHAIN[2].leaves())
        yield segment(*CHAIN[1:], certificate=certificate_of(CHAIN[3]))
        for _ in range(5):
            await trio.sleep(6)
            tip = chain.successor(tip, frontier)
            yield segment(tip, certificate=certificate_of(tip))

    house.transport.streams[HONEST] = slow
    await house.follower._pull_from(HONEST)
    told = [values for _, event, values in house.log.events if event == "catching up"]
    assert [values["height"] for values in told] == [5, 7]
    assert all(values["behind_ms"] > 0 for values in told)


async def test_what_comes_behind_blocks_that_do_not_hold_is_neither_fetched_nor_applied(
    house: House, autojump_clock
) -> None:
    frontier, tip = (
        Frontier().append(CHAIN[2].leaves()),
        forged_above(CHAIN[3], Frontier().append(CHAIN[2].leaves())),
    )
    sent: list[Block] = []

    async def endless(_body: bytes) -> AsyncGenerator[bytes, None]:
        nonlocal tip, frontier
        yield segment(*CHAIN[1:], certificate=certificate_of(CHAIN[3]))
        while True:
            await trio.lowlevel.checkpoint()
            yield segment(tip, certificate=certificate_of(tip))
            sent.append(tip)
            frontier = frontier.append(tip.leaves())
            tip = chain.successor(tip, frontier)

    house.transport.streams[LIAR] = endless
    with pytest.raises(Invalid, match="does not verify"):
        await house.follower._pull_from(LIAR)
    assert house.applier.height.value == 3
    assert len(sent) < 10


async def test_a_silent_peer_is_left_after_its_patience_and_another_is_asked(
    house: House, autojump_clock
) -> None:
    house.transport.streams = {LIAR: sending(then=trio.sleep_forever), HONEST: ALL}
    started = trio.current_time()
    for _ in range(4):  # whoever comes first by chance
        await house.follower.pull()
    assert house.applier.height.value == 3
    assert trio.current_time() - started < 60
    with pytest.raises(Unavailable):
        await house.follower._pull_from(LIAR)


async def test_a_peer_that_drips_genuine_blocks_without_certificate_runs_out_of_time(
    house: House, autojump_clock
) -> None:
    async def drip(_body: bytes) -> AsyncGenerator[bytes, None]:
        tip, frontier = CHAIN[1], Frontier()
        yield segment(CHAIN[1])
        while True:
            await trio.sleep(4)
            tip = chain.successor(tip, frontier)
            yield segment(tip)

    house.transport.streams[LIAR] = drip
    started = trio.current_time()
    with pytest.raises(Unavailable):
        await house.follower._pull_from(LIAR)
    assert trio.current_time() - started < 15


async def test_endless_unproven_data_ends_at_a_bound(house: House, monkeypatch, autojump_clock) -> None:
    monkeypatch.setattr("node.catchup._RUN_BYTES_MAX", 20_000)

    async def endless(_body: bytes) -> AsyncGenerator[bytes, None]:
        tip = CHAIN[1]
        yield segment(CHAIN[1])
        while True:
            await trio.lowlevel.checkpoint()
            tip = chain.successor(tip, Frontier())
            yield segment(tip)

    house.transport.streams[LIAR] = endless
    with pytest.raises(Invalid, match="without ever certifying"):
        await house.follower._pull_from(LIAR)
    assert house.applier.height.value == 0


async def test_an_announcement_with_its_blocks_is_applied_without_asking_anybody(
    house: House, nursery, autojump_clock
) -> None:
    nursery.start_soon(house.follower.run)
    await trio.testing.wait_all_tasks_blocked()
    house.transport.asked.clear()
    house.announce(HONEST, *CHAIN[1:], certificate=certificate_of(CHAIN[3]))
    await trio.testing.wait_all_tasks_blocked()
    assert (house.applier.height.value, house.follower.last_leader) == (3, NODES[0])
    assert house.transport.asked == []


async def test_an_announcement_without_blocks_makes_the_follower_pull(
    house: House, nursery, autojump_clock
) -> None:
    nursery.start_soon(house.follower.run)
    await trio.testing.wait_all_tasks_blocked()
    house.transport.streams[HONEST] = ALL
    house.announce(HONEST, certificate=certificate_of(CHAIN[3]))
    await trio.testing.wait_all_tasks_blocked()
    assert house.applier.height.value == 3


async def test_nobody_names_a_leader_without_a_certificate(house: House, nursery, autojump_clock) -> None:
    nursery.start_soon(house.follower.run)
    await trio.testing.wait_all_tasks_blocked()
    usurper = chain.successor(CHAIN[2], Frontier(), leader=1)
    house.announce(LIAR, certificate=certificate_of(usurper, 1))
    house.announce(LIAR, usurper, certificate=certificate_of(usurper, 1))
    house.transport.deliver(TOPIC, LIAR, b"garbage")
    await trio.testing.wait_all_tasks_blocked()
    assert house.follower.last_leader is None
    assert house.applier.height.value == 0
    assert house.verification.faults == {LIAR: 3}


async def test_old_announcements_without_end_do_not_keep_a_follower_from_polling(
    house: House, nursery, autojump_clock
) -> None:
    await house.applier.apply(Certified(CHAIN[1:2], certificate_of(CHAIN[1]), is_stored=False))
    nursery.start_soon(house.follower.run)
    await trio.testing.wait_all_tasks_blocked()
    house.transport.streams[HONEST] = sending(segment(*CHAIN[2:], certificate=certificate_of(CHAIN[3])))
    for _ in range(10):
        house.announce(LIAR, certificate=certificate_of(CHAIN[1]))
        await trio.sleep(0.5)
    assert house.applier.height.value == 3


async def test_a_follower_without_gossip_still_gets_there(house: House, nursery, autojump_clock) -> None:
    nursery.start_soon(house.follower.run)
    await trio.testing.wait_all_tasks_blocked()
    house.transport.streams[HONEST] = ALL
    with trio.fail_after(60):
        assert await house.applier.height.wait_above(Height(2)) == 3
