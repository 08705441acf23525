import dataclasses
from collections.abc import AsyncIterator

import pytest
import trio

from node.block_server import CHANNEL as BLOCKS
from node.ledger_audit import LedgerAudit
from protocol import codec
from protocol.block import Block
from protocol.catchup import BlocksFrom, Segment
from protocol.errors import Unavailable
from protocol.identifiers import Height, NodeId
from storage.ledger_store import LedgerStore
from tests.node.ledger_double import DirectTransport, InlineWorkers
from tests.node.snapshot_house import (
    BLOCKS_BUILT,
    NEWEST,
    Member,
    built,
    observer,
    voters,
)
from tests.protocol.chain import CONFIGURATION, VOTERS, certificate_of, key

Network = dict[NodeId, DirectTransport]


@pytest.fixture
def network() -> Network:
    return {}


async def installed(network: Network) -> Member:
    """An observer that has installed the newest snapshot and lacks every block below it."""
    member = observer(network)
    assert await member.installer.attempt(Height(1))
    return member


async def filled_in(member: Member, height: int = NEWEST) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member.history.run)
        with trio.fail_after(60):
            await member.applier.history.wait_above(Height(height - 1))
        nursery.cancel_scope.cancel()


def serving(member: Member, *segments: Segment) -> None:
    """Let a member answer for blocks with these segments, whatever is asked."""

    async def stream(_peer: NodeId, _body: bytes) -> AsyncIterator[bytes]:
        for segment in segments:
            yield codec.encode(segment)

    member.transport._streams[BLOCKS] = stream


def segment(first: int, last: int) -> Segment:
    return Segment(tuple(block.raw for block in built()[first : last + 1]), certificate_of(built()[last]))


async def test_blocks_below_a_snapshot_are_refused_with_how_far_they_have_come(
    network: Network, autojump_clock
) -> None:
    await voters(network)
    member = await installed(network)
    with pytest.raises(Unavailable, match=f"block 0 of {NEWEST} is here"):
        member.store.block(Height(1))
    assert member.store.block(Height(0)) == built()[0]
    assert member.store.block(NEWEST) == built()[NEWEST]
    assert member.store.tip_height() == NEWEST


async def test_a_restart_goes_on_where_the_blocks_ended(network: Network, autojump_clock) -> None:
    members = await voters(network)
    member = await installed(network)
    for one in members:
        serving(one, segment(1, 9))
    await filled_in(member, 9)
    again = observer(network, rows=member.rows, kept=member.kept)
    assert again.applier.history.value == 9
    with pytest.raises(Unavailable, match=f"block 9 of {NEWEST} is here"):
        again.store.block(Height(10))
    for one in members:
        serving(one, segment(10, NEWEST))
    await filled_in(again)
    assert again.store.history is None
    assert again.verification.faults == {}


async def test_blocks_that_are_not_the_ledgers_are_refused_and_come_from_another_member(
    network: Network, autojump_clock
) -> None:
    members = await voters(network)
    member = await installed(network)
    swapped = segment(1, 9)
    blocks = (*swapped.blocks[:4], swapped.blocks[3], *swapped.blocks[5:])
    serving(members[0], dataclasses.replace(swapped, blocks=blocks))
    serving(members[1], dataclasses.replace(swapped, certificate=certificate_of(built()[8])))
    await filled_in(member)
    assert tuple(member.store.blocks(Height(0), NEWEST)) == built()[: NEWEST + 1]
    assert set(member.verification.faults) <= {NodeId(signer.public) for signer in VOTERS[:2]}


async def test_a_portion_that_goes_beyond_the_snapshot_ends_at_it(network: Network, autojump_clock) -> None:
    members = await voters(network)
    member = await installed(network)
    for one in members:
        serving(one, segment(1, BLOCKS_BUILT))
    await filled_in(member)
    assert member.store.history is None
    assert member.store.tip_height() == NEWEST
    assert tuple(member.store.blocks(Height(0), NEWEST)) == built()[: NEWEST + 1]


async def test_a_member_with_a_gap_serves_what_it_has_and_nothing_of_the_gap(
    network: Network, autojump_clock
) -> None:
    members = await voters(network)
    member = await installed(network)
    for one in members:
        serving(one, segment(1, 9))
    await filled_in(member, 9)

    async def served(height: int) -> list[int]:
        stream = member.transport._streams[BLOCKS](
            NodeId(VOTERS[0].public), codec.encode(BlocksFrom(Height(height)))
        )
        frames = [codec.decode(frame, Segment) async for frame in stream]
        return [block.header.height for frame in frames for block in map(Block.decode, frame.blocks)]

    assert await served(3) == list(range(3, 10))
    assert await served(10) == []
    assert await served(NEWEST) == [NEWEST]
    assert member.events("error") == []


async def test_an_installation_on_top_of_a_gap_keeps_what_is_below(network: Network, autojump_clock) -> None:
    members = await voters(network, 20)
    member = await installed_at(network, 20)
    for one in members:
        serving(one, segment(1, 9))
    await filled_in(member, 9)
    for signer, one in zip(VOTERS, members, strict=True):
        newer = Member(network, signer, one.rows, one.kept)
        await newer.apply()
    assert await member.installer.attempt(Height(21))
    history = member.store.history
    assert history is not None
    assert (history.height, history.until) == (9, NEWEST)
    await filled_in(member)
    assert tuple(member.store.blocks(Height(0), NEWEST)) == built()[: NEWEST + 1]
    assert LedgerStore(member.rows, CONFIGURATION).first() == 0


async def installed_at(network: Network, height: int) -> Member:
    member = Member(network, key("observer"))
    assert await member.installer.attempt(Height(1))
    assert member.is_at(height)
    return member


async def test_an_audit_waits_for_the_history(network: Network, autojump_clock) -> None:
    await voters(network)
    member = await installed(network)
    audit = LedgerAudit(member.store, InlineWorkers())
    with pytest.raises(Unavailable, match=f"block 0 of {NEWEST} is here"):
        await anext(audit.verify(audit.begin()))
    await filled_in(member)
    findings = audit.begin()
    assert [done async for done, _ in audit.verify(findings)] == [NEWEST]
    assert findings.problems.sentences() == []
