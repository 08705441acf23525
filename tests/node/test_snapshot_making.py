import pytest
import trio
import trio.testing

from node.applier import Applier, Certified
from node.ledger_audit import LedgerAudit
from node.receipts import Receipts
from node.snapshots import ChunksFrom
from protocol import codec
from protocol.identifiers import Height, NodeId
from protocol.snapshot import SnapshotManifest, chunk_rows, inflated
from storage.key_value import Batch
from storage.ledger_store import LedgerStore
from tests.node.ledger_double import DirectTransport, InlineDisk, InlineWorkers
from tests.node.snapshot_house import BLOCKS_BUILT, NEWEST, Member, built, observer, states, voters
from tests.protocol.chain import CONFIGURATION, VOTERS, certificate_of

Network = dict[NodeId, DirectTransport]


@pytest.fixture
def network() -> Network:
    return {}


def manifest_of(member: Member) -> SnapshotManifest:
    manifest = member.snapshots.newest()
    assert manifest is not None
    return manifest


async def test_every_voter_makes_the_same_snapshot_and_states_it(network: Network, autojump_clock) -> None:
    members = await voters(network)
    first = manifest_of(members[0])
    assert first.height == NEWEST
    assert len(first.chunks) > 5
    for member in members:
        assert manifest_of(member).state_digest == first.state_digest
        newest = member.snapshots.statements()[0]
        assert (newest.height, newest.state_digest) == (NEWEST, first.state_digest)
        rows: dict[bytes, bytes] = {}
        for index, digest in enumerate(first.chunks):
            rows.update(chunk_rows(inflated(member.snapshots.chunk(NEWEST, index) or b"", digest)))
        assert rows == states()[NEWEST]


async def test_older_snapshots_are_removed_when_a_newer_one_is_whole(
    network: Network, autojump_clock
) -> None:
    member = (await voters(network))[0]
    whole = [height for height in range(NEWEST + 1) if member.snapshots.manifest(Height(height)) is not None]
    assert whole == [24, NEWEST]
    assert member.snapshots.chunk(Height(20), 0) is None
    assert [one.height for one in member.snapshots.statements()] == [28, 24, 20, 16, 14, 12, 10, 8]


async def test_an_observer_makes_a_snapshot_and_states_nothing(network: Network, autojump_clock) -> None:
    member = observer(network)
    await member.apply()
    assert manifest_of(member).height == NEWEST
    assert member.snapshots.statements() == ()


async def test_a_group_of_blocks_is_split_at_a_snapshot_height(network: Network, autojump_clock) -> None:
    member = Member(network, VOTERS[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member.maker.run)
        await member.applier.apply(Certified(built()[1:12], certificate_of(built()[11]), is_stored=False))
        await member.made(10)
        nursery.cancel_scope.cancel()
    assert (manifest_of(member).height, manifest_of(member).links) == (10, (built()[11].header,))
    assert manifest_of(member).certificate == certificate_of(built()[11])
    assert member.is_at(11)


async def test_the_view_is_that_of_its_height_although_blocks_are_applied_meanwhile(
    network: Network, autojump_clock
) -> None:
    member = Member(network, VOTERS[0])
    for block in built()[1:9]:
        await member.applier.apply(Certified((block,), certificate_of(block), is_stored=False))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member.maker.run)
        await trio.testing.wait_all_tasks_blocked()
        await member.applier.apply(Certified(built()[9:10], certificate_of(built()[9]), is_stored=False))
        await member.made(8)
        nursery.cancel_scope.cancel()
    assert manifest_of(member).height == 8
    other = (await voters({}, 8))[0]
    assert manifest_of(member).state_digest == manifest_of(other).state_digest


async def test_a_crash_while_one_is_made_leaves_none_of_that_height_and_its_rows_are_removed(
    network: Network, autojump_clock
) -> None:
    member = Member(network, VOTERS[0])
    await member.apply(24)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member.maker.run)
        for block in built()[25:29]:
            await member.applier.apply(Certified((block,), certificate_of(block), is_stored=False))
        with trio.fail_after(60):
            while member.snapshots.chunk(NEWEST, 1) is None:
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert manifest_of(member).height == 24
    again = Member({}, VOTERS[0], member.rows, member.kept)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.maker.run)
        await again.made(24)
        nursery.cancel_scope.cancel()
    assert manifest_of(again).height == 24
    assert again.snapshots.chunk(NEWEST, 0) is None


async def test_a_damaged_chunk_is_served_to_nobody(network: Network, autojump_clock) -> None:
    member = (await voters(network))[0]
    batch = Batch()
    member.snapshots.put_chunk(batch, NEWEST, 3, b"damaged")
    member.kept.write(batch, sync=True)
    body = codec.encode(ChunksFrom(NEWEST, 0, 99))
    frames = [
        frame async for frame in member.transport._streams["snapshot-chunks"](NodeId(VOTERS[1].public), body)
    ]
    assert len(frames) == 3


async def test_who_catches_up_by_blocks_makes_snapshots_on_the_way(network: Network, autojump_clock) -> None:
    members = await voters(network)
    for away in members[1:]:
        away.transport.is_up = False
    member = observer(network)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member.maker.run)
        nursery.start_soon(member.follower.run)
        await member.applier.height.wait_above(Height(BLOCKS_BUILT - 1))
        await member.made(NEWEST)
        nursery.cancel_scope.cancel()
    assert manifest_of(member).state_digest == manifest_of(members[0]).state_digest


class PowerCut(Exception):
    """Nothing is written any more."""


class CutDisk(InlineDisk):
    """Writes one batch."""

    writes = 1

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        if not self.writes:
            raise PowerCut
        self.writes -= 1
        await super().commit(batch, sync=sync)


async def test_a_crash_between_the_parts_of_a_group_leaves_its_certificate_with_all_its_blocks(
    network: Network, autojump_clock
) -> None:
    member = observer(network)
    store = LedgerStore(member.rows, CONFIGURATION)
    group = Certified(built()[1:20], certificate_of(built()[19]), is_stored=False)
    with pytest.raises(PowerCut):
        await Applier(store, CutDisk(member.rows), Receipts(), member.maker).apply(group)
    assert (store.applied().height, store.tip_height()) == (16, 19)
    assert store.certificate_at_or_above(Height(16)) == group.certificate

    audit = LedgerAudit(store, InlineWorkers())
    findings = audit.begin()
    assert [step async for step in audit.verify(findings)][-1] == (16, 16)
    assert findings.problems.sentences() == []

    batch = Batch()
    store.truncate(batch, Height(17))
    member.rows.write(batch, sync=True)
    findings = audit.begin()
    assert [step async for step in audit.verify(findings)][-1] == (16, 16)
    assert "block 19 is missing from the ledger" in str(findings.problems.sentences())

    await Applier(store, InlineDisk(member.rows), Receipts()).apply(group)
    assert store.applied().height == 19
