"""An observer to which two certified stories are told."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import pytest
import trio
import trio.testing

from node.applier import Applier, Certified
from node.block_server import BlockServer
from node.comparison import Comparison
from node.forks import Forks
from node.tips import Heard
from protocol import block, codec
from protocol.block import Block
from protocol.catchup import BlocksFrom, StoryFrom
from protocol.errors import Invalid
from protocol.fork import CertifiedFork, Story, check_fork
from protocol.identifiers import Height
from protocol.merkle import Frontier
from protocol.tip_statement import TipStatement
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore
from tests.node.ledger_double import DoubleClock, InlineDisk, SilentLog
from tests.node.scripted_transport import Stream
from tests.node.test_catchup import CHAIN, HONEST, LIAR, ME, House, segment, sending
from tests.protocol import chain
from tests.protocol.chain import CONFIGURATION, NETWORK, certificate_of


def other_chain() -> tuple[Block, ...]:
    """The same ledger up to block 1, and then another one, which its leader signed as well."""
    block = chain.successor(CHAIN[1], Frontier(), body=chain.signed()[:1])
    frontier = Frontier().append(block.leaves())
    tail = [block]
    for _ in range(2):
        tail.append(chain.successor(tail[-1], frontier))
    return (*CHAIN[:2], *tail)


OTHER = other_chain()


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
async def filled(house: House) -> House:
    await house.applier.apply(Certified(CHAIN[1:3], certificate_of(CHAIN[2]), is_stored=False))
    await house.applier.apply(Certified(CHAIN[3:], certificate_of(CHAIN[3]), is_stored=False))
    return house


async def served_other_chain() -> Stream:
    """What a member serves that has applied the other chain."""
    rows = MemoryStore()
    store = LedgerStore(rows, CONFIGURATION)
    applier = Applier(store, InlineDisk(rows), House().applier._receipts)
    await applier.apply(Certified(OTHER[1:], certificate_of(OTHER[4], 1, 2), is_stored=False))
    server = BlockServer(store, SilentLog())

    async def stream(body: bytes) -> AsyncGenerator[bytes, None]:
        frames = server.serve(ME, body)
        assert isinstance(frames, AsyncGenerator)
        async with aclosing(frames):
            async for frame in frames:
                yield frame

    return stream


def told(house: House) -> int:
    return sum(
        event == "two blocks of one height are certified: members have lied"
        for _, event, _ in house.log.events
    )


async def test_blocks_that_continue_another_certified_chain_show_where_it_parts(
    filled: House, nursery, autojump_clock
) -> None:
    filled.transport.streams[LIAR] = await served_other_chain()
    nursery.start_soon(filled.follower.run)
    await trio.sleep(30)
    (fork,) = filled.store.forks()
    assert fork.own == Story((CHAIN[2].header,), certificate_of(CHAIN[2]))
    assert fork.other == Story(tuple(one.header for one in OTHER[2:]), certificate_of(OTHER[4], 1, 2))
    check_fork(fork, NETWORK, CONFIGURATION)
    own, other = ({vote.signer for vote in story.certificate.votes} for story in (fork.own, fork.other))
    assert fork.liars == tuple(own & other)
    assert len(fork.liars) == 1
    assert filled.forks.shunned == {LIAR}
    assert filled.store.applied().hash == CHAIN[3].hash


async def test_an_announcement_of_another_certified_block_is_enough(
    filled: House, nursery, autojump_clock
) -> None:
    nursery.start_soon(filled.follower.run)
    await trio.testing.wait_all_tasks_blocked()
    filled.announce(LIAR, certificate=certificate_of(OTHER[3], 1, 2))
    await trio.sleep(30)
    (fork,) = filled.store.forks()
    assert (fork.height, fork.other.certificate) == (3, certificate_of(OTHER[3], 1, 2))
    assert fork.liars == (), "they have parted below, and an honest vote may stand in both"
    assert LIAR in filled.forks.shunned


def tip(vote: Block, certified_height: int) -> Heard:
    height = Height(certified_height)
    return Heard(
        TipStatement(LIAR, 0, 0, 1, bytes(32), height, vote.height, vote.hash, 1_000, bytes(64)), age_ms=0
    )


async def test_who_voted_for_another_final_block_is_looked_into_and_nobody_else(
    filled: House, nursery, autojump_clock
) -> None:
    """Neither follows by gossip, and their leader, who lies, tells each that all is well."""
    filled.transport.streams[LIAR] = await served_other_chain()
    said = {LIAR: tip(CHAIN[2], 2)}
    nursery.start_soon(Comparison(filled.store, said.get, filled.forks, DoubleClock()).run)
    await trio.sleep(5)
    assert filled.store.forks() == ()
    said[LIAR] = tip(OTHER[3], 2)  # it voted, and knows no certificate: it may give that up yet
    await trio.sleep(5)
    assert filled.store.forks() == ()
    said[LIAR] = tip(OTHER[2], 2)  # of no other height, were the peer not as far as this node
    await trio.sleep(60)
    (fork,) = filled.store.forks()
    assert (fork.height, filled.forks.shunned) == (2, {LIAR})


def switching_block() -> Block:
    """A configuration block upon block 2, where the ledger here has an empty one."""
    members = CONFIGURATION.members
    following = replace(CONFIGURATION, members=(*members[:2], replace(members[2], role="witness")), number=1)
    frontier = Frontier().append(CHAIN[2].leaves())
    return block.cut(
        (), configuration=following, predecessor=CHAIN[2].header, predecessor_hash=CHAIN[2].hash, frontier=frontier,
        term=CHAIN[2].header.term, key=chain.VOTERS[0], now_ms=CHAIN[2].header.time_ms + 1,
    )  # fmt: skip


@pytest.mark.parametrize("is_served", [True, False])
async def test_another_certified_configuration_block_is_a_fork_as_soon_as_it_says_who_signs(
    filled: House, nursery, autojump_clock, is_served: bool
) -> None:
    other = switching_block()

    async def served(body: bytes) -> AsyncGenerator[bytes, None]:
        asked: BlocksFrom | StoryFrom = codec.decode_union(body, BlocksFrom | StoryFrom)
        height = asked.height
        if height < other.height:
            yield segment(*CHAIN[height : other.height], certificate=certificate_of(CHAIN[2]))
        yield segment(other, certificate=certificate_of(other))
        await trio.lowlevel.checkpoint()

    if is_served:
        filled.transport.streams[LIAR] = served
    nursery.start_soon(filled.follower.run)
    await trio.testing.wait_all_tasks_blocked()
    filled.announce(LIAR, certificate=certificate_of(other))
    await trio.sleep(30)
    assert [fork.other.hash for fork in filled.store.forks()] == ([other.hash] if is_served else [])
    assert is_served or filled.verification.faults == {}


async def test_who_told_another_story_is_not_followed_any_more(
    filled: House, nursery, autojump_clock
) -> None:
    filled.forks.shunned.add(LIAR)
    following = chain.successor(CHAIN[3], Frontier().append(CHAIN[2].leaves()))
    filled.transport.streams[LIAR] = sending(segment(following, certificate=certificate_of(following)))
    nursery.start_soon(filled.follower.run)
    await trio.testing.wait_all_tasks_blocked()
    filled.announce(LIAR, following, certificate=certificate_of(following))
    await trio.sleep(10)
    assert filled.applier.mark.height == 3
    filled.transport.streams[HONEST] = filled.transport.streams[LIAR]
    await trio.sleep(10)
    assert filled.applier.mark.height == 4


@pytest.mark.parametrize("signers", [(1,), (2,)])
async def test_an_uncertified_story_is_no_fork(
    filled: House, nursery, autojump_clock, signers: tuple[int, ...]
) -> None:
    nursery.start_soon(filled.follower.run)
    filled.transport.streams[LIAR] = sending(
        segment(*OTHER[4:], certificate=certificate_of(OTHER[4], *signers))
    )
    await trio.testing.wait_all_tasks_blocked()
    filled.announce(LIAR, certificate=certificate_of(OTHER[3], *signers))
    await trio.sleep(30)
    assert filled.store.forks() == ()
    assert filled.forks.shunned == set()


async def test_a_fork_is_kept_once(filled: House, autojump_clock) -> None:
    fork = CertifiedFork(
        Story((CHAIN[3].header,), certificate_of(CHAIN[3])),
        Story((OTHER[3].header,), certificate_of(OTHER[3])),
    )
    again = CertifiedFork(fork.own, Story((OTHER[3].header,), certificate_of(OTHER[3], 1, 2)))
    await filled.forks.keep(fork)
    await filled.forks.keep(again)
    assert filled.store.forks() == (fork,)
    assert told(filled) == 1
    assert codec.decode(codec.encode(fork), CertifiedFork) == fork


def test_only_two_certified_blocks_of_one_height_are_a_fork() -> None:
    own = Story((CHAIN[3].header,), certificate_of(CHAIN[3]))
    for other in (
        own,
        Story((OTHER[2].header,), certificate_of(OTHER[2])),
        Story((OTHER[3].header,), certificate_of(OTHER[3], 1)),
        Story((OTHER[3].header, CHAIN[3].header), certificate_of(CHAIN[3])),
        Story((OTHER[3].header, OTHER[4].header), certificate_of(OTHER[3])),
    ):
        with pytest.raises(Invalid):
            check_fork(CertifiedFork(own, other), NETWORK, CONFIGURATION)


def test_forks_of_an_empty_ledger_are_none(house: House) -> None:
    assert Forks(house.store, InlineDisk(house.rows), house.transport, house.log).shunned == set()
    assert house.store.forks() == ()
    assert house.store.certificate_at_or_above(Height(0)) is None


async def test_who_only_pretends_to_differ_is_looked_into_once_a_minute(
    filled: House, nursery, autojump_clock
) -> None:
    asked: list[float] = []

    async def nothing(_body: bytes) -> AsyncGenerator[bytes, None]:
        asked.append(trio.current_time())
        await trio.sleep_forever()
        yield b""

    filled.transport.streams[LIAR] = nothing
    start = trio.current_time()
    assert await filled.forks.look_into(LIAR) is False
    waited = trio.current_time() - start
    assert await filled.forks.look_into(LIAR) is False
    assert (len(asked), trio.current_time() - start) == (1, waited)
    await trio.sleep(60)
    assert await filled.forks.look_into(LIAR) is False
    assert len(asked) == 2
