import dataclasses
import random
from pathlib import Path

import pytest
import trio
import trio.testing

from node.snapshots import MANIFESTS, STATEMENTS
from protocol import codec
from protocol.errors import Unavailable
from protocol.identifiers import Digest, Height, NodeId
from protocol.signing import sha256
from protocol.snapshot import SnapshotManifest, StateStatements, state
from storage.key_value import Batch, KeyValue
from storage.leveldb import LevelDb
from storage.memory import MemoryStore
from tests.node.ledger_double import DirectTransport, InlineDisk
from tests.node.snapshot_house import BLOCKS_BUILT, NEWEST, Member, built, observer, voters
from tests.protocol.chain import VOTERS, filled, key

Network = dict[NodeId, DirectTransport]


@pytest.fixture
def network() -> Network:
    return {}


def manifest_of(member: Member) -> SnapshotManifest:
    manifest = member.snapshots.newest()
    assert manifest is not None
    return manifest


# --- installing (scenario 39) -----------------------------------------------------------------------------------------


async def test_39_a_member_far_behind_installs_the_state_and_follows_from_there(
    network: Network, autojump_clock
) -> None:
    await voters(network)
    member = observer(network)
    assert await member.installer.attempt(Height(1))
    assert member.is_at(NEWEST)
    assert member.store.first() == NEWEST
    assert member.applier.height.value == NEWEST
    assert member.applier.history.value == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member.follower.run)
        nursery.start_soon(member.history.run)
        nursery.start_soon(member.installer.run)
        with trio.fail_after(60):
            await member.applier.height.wait_above(Height(BLOCKS_BUILT - 1))
            await member.applier.history.wait_above(Height(BLOCKS_BUILT - 1))
        nursery.cancel_scope.cancel()
    assert member.is_at(BLOCKS_BUILT)
    assert member.store.first() == 0
    assert tuple(member.store.blocks(Height(0), Height(BLOCKS_BUILT))) == built()
    assert member.events("warning") == []


async def test_39_a_stream_that_ends_at_any_chunk_is_resumed_there(network: Network, autojump_clock) -> None:
    members = await voters(network)
    chunks = len(manifest_of(members[0]).chunks)
    for cut in range(chunks):

        def ends(index: int, data: bytes, cut: int = cut) -> bytes | None:
            return None if index == cut else data

        asked = [one.spoil(ends) for one in members]
        member = observer(network)
        assert not await member.installer.attempt(Height(1))
        assert member.is_at(0)
        for one in members:
            del one.transport._streams["snapshot-chunks"]
            Member(network, VOTERS[members.index(one)], one.rows, one.kept)
        whole = Member(network, VOTERS[0], members[0].rows, members[0].kept)
        resumed = whole.spoil(lambda _index, data: data)
        again = observer(network, rows=member.rows, kept=member.kept)
        assert await again.installer.attempt(Height(1))
        assert again.is_at(NEWEST)
        assert min(first for first, _ in resumed.spans or [(cut, cut)]) >= cut
        assert any(one.spans for one in asked)
        members = tuple(
            Member(network, signer, one.rows, one.kept) for signer, one in zip(VOTERS, members, strict=True)
        )


async def test_39_a_corrupted_chunk_is_not_installed_and_comes_from_another_member(
    network: Network, autojump_clock
) -> None:
    members = await voters(network)
    for one in members[:2]:
        one.spoil(lambda index, data: data[:-1] + b"\0" if index == 2 else data)
    member = observer(network)
    assert await member.installer.attempt(Height(1))
    assert member.is_at(NEWEST)
    assert set(member.verification.faults) <= {NodeId(signer.public) for signer in VOTERS[:2]}
    assert member.verification.faults


async def test_39_when_a_sender_goes_away_another_one_goes_on(network: Network, autojump_clock) -> None:
    members = await voters(network)
    sent = 0

    def leaves(_index: int, data: bytes) -> bytes | None:
        nonlocal sent
        sent += 1
        if sent % 3 == 0:
            raise Unavailable("the connection broke")
        return data

    for one in members:
        one.spoil(leaves)
    member = observer(network)
    assert await member.installer.attempt(Height(1))
    assert member.is_at(NEWEST)
    assert member.verification.faults == {}


class Crash(Exception):
    """Power is gone."""


class CrashingDisk(InlineDisk):
    """Writes so many batches, then the power fails: the one in hand may or may not be there."""

    left = 10**9
    survives = False

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        if CrashingDisk.left == 0:
            if CrashingDisk.survives:
                await super().commit(batch, sync=sync)
            raise Crash
        CrashingDisk.left -= 1
        await super().commit(batch, sync=sync)


async def attempted(member: Member) -> bool:
    try:
        return await member.installer.attempt(Height(1))
    except Crash:
        return False


async def test_39_a_crash_at_every_batch_of_an_installation_leaves_the_old_or_the_new_state(
    network: Network, autojump_clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await voters(network)
    draw = random.Random(39)
    outcomes, crashed_at, is_done = set(), 0, False
    while not is_done:
        for survives in (False, True):
            rows, kept = MemoryStore(), MemoryStore()
            old = Member({}, key("observer"), rows, kept)
            await old.apply(5)
            monkeypatch.setattr(CrashingDisk, "left", crashed_at)
            monkeypatch.setattr(CrashingDisk, "survives", survives)
            member = Member(network, key("observer"), rows, kept, CrashingDisk)
            is_done = await attempted(member)
            for store in (rows, kept):
                store.crash(draw.randint(0, store.unsynced))
            after = Member({}, key("observer"), rows.reopened(), kept.reopened())
            assert after.is_at(5) or after.is_at(NEWEST), (crashed_at, survives)
            outcomes.add(after.store.applied().height)
            again = Member(network, key("observer"), after.rows, after.kept)
            await again.installer.attempt(Height(6))
            assert again.is_at(NEWEST)
            assert again.store.history is not None
            assert (again.store.history.height, again.store.history.until) == (5, NEWEST)
        crashed_at += 1
    assert outcomes == {5, NEWEST}
    assert crashed_at > 20


async def test_39_rows_that_an_earlier_installation_left_are_not_among_the_new_ones(
    network: Network, autojump_clock
) -> None:
    await voters(network)
    member = observer(network)
    batch = Batch()
    member.store.put_unused_state(batch, [(b"v" + bytes(32), b"left"), (b"z", b"left")])
    member.rows.write(batch, sync=True)
    assert await member.installer.attempt(Height(1))
    assert member.is_at(NEWEST)


async def test_39_staged_chunks_are_installed_after_a_crash_without_any_peer(
    network: Network, autojump_clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = await voters(network)
    rows, kept = MemoryStore(), MemoryStore()
    staged = 1 + len(manifest_of(members[0]).chunks)  # the target, and each chunk
    monkeypatch.setattr(CrashingDisk, "left", staged + 3)
    assert not await attempted(Member(network, key("observer"), rows, kept, CrashingDisk))
    kept.flush()
    alone = Member({}, key("observer"), rows.reopened(), kept.reopened())
    assert alone.is_at(0)
    assert await alone.installer.attempt(Height(1))
    assert alone.is_at(NEWEST)


async def test_the_same_on_a_real_database(network: Network, tmp_path: Path, autojump_clock) -> None:
    await voters(network)
    stores: list[KeyValue] = [
        LevelDb(tmp_path / name, create=True, rebuild=None) for name in ("ledger", "snapshots")
    ]
    member = observer(network, rows=stores[0], kept=stores[1])
    assert await member.installer.attempt(Height(1))
    assert member.is_at(NEWEST)
    for store in stores:
        store.close()
    ledger = LevelDb(tmp_path / "ledger", create=False, rebuild=None)
    again = observer({}, rows=ledger)
    assert again.is_at(NEWEST)
    ledger.close()


# --- whom to believe --------------------------------------------------------------------------------------------------


def lies(member: Member, signer: int, digest: Digest) -> None:
    """Let a voter state another state than it has, with a manifest that fits what it states as well as any can."""
    manifest = dataclasses.replace(manifest_of(member), chunks=(sha256(b"a lie"),))
    stated = StateStatements((state(VOTERS[signer], built()[NEWEST], digest),))

    async def statements(_peer: NodeId, _body: bytes) -> bytes:
        return codec.encode(stated)

    async def manifests(_peer: NodeId, _body: bytes) -> bytes:
        return codec.encode(manifest)

    member.transport._handlers[STATEMENTS] = statements
    member.transport._handlers[MANIFESTS] = manifests


@pytest.mark.parametrize("liar", [0, 1, 2])
async def test_a_liar_with_another_digest_is_never_believed(
    network: Network, autojump_clock, liar: int
) -> None:
    members = await voters(network)
    lies(members[liar], liar, Digest(filled("another state")))
    member = observer(network)
    assert await member.installer.attempt(Height(1))
    assert member.is_at(NEWEST)


async def test_two_different_words_are_no_quorum_and_blocks_are_taken(
    network: Network, autojump_clock
) -> None:
    members = await voters(network)
    for liar in (0, 1):
        lies(members[liar], liar, Digest(filled(f"state of {liar}")))
    member = observer(network)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member.follower.run)
        with trio.fail_after(60):
            await member.applier.height.wait_above(Height(BLOCKS_BUILT - 1))
        nursery.cancel_scope.cancel()
    assert member.is_at(BLOCKS_BUILT)
    assert member.store.history is None
    assert "installed a snapshot of the state" not in member.events("info")


async def test_with_too_few_voters_to_ask_blocks_are_taken(network: Network, autojump_clock) -> None:
    members = await voters(network)
    for away in members[1:]:
        away.transport.is_up = False
    member = observer(network)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member.follower.run)
        with trio.fail_after(60):
            await member.applier.height.wait_above(Height(BLOCKS_BUILT - 1))
        nursery.cancel_scope.cancel()
    assert member.is_at(BLOCKS_BUILT)
    assert member.store.history is None
    assert trio.current_time() - began < 10


async def test_who_has_installed_one_brings_the_words_of_those_it_believed(
    network: Network, autojump_clock
) -> None:
    members = await voters(network)
    first = Member(network, key("first observer"))
    assert await first.installer.attempt(Height(1))
    for away in members[1:]:
        away.transport.is_up = False
    members[0].transport._handlers[STATEMENTS] = first.transport._handlers[STATEMENTS]
    second = Member(network, key("second observer"))
    assert await second.installer.attempt(Height(1))
    assert second.is_at(NEWEST)


async def test_a_member_that_lags_a_little_takes_the_blocks(network: Network, autojump_clock) -> None:
    await voters(network)
    member = observer(network)
    await member.apply(22)
    assert not await member.installer.attempt(Height(22 + member.installer.lag))
    assert member.is_at(22)


async def test_a_snapshot_that_was_removed_meanwhile_gives_way_to_the_newer_one(
    network: Network, autojump_clock
) -> None:
    members = await voters(network, 21)
    for one in members:
        one.spoil(lambda index, data: None if index == 1 else data)
    member = observer(network)
    assert not await member.installer.attempt(Height(1))
    assert member.snapshots.target() is not None
    for signer, one in zip(VOTERS, members, strict=True):
        newer = Member(network, signer, one.rows, one.kept)
        await newer.apply()
    again = observer(network, rows=member.rows, kept=member.kept)
    assert await again.installer.attempt(Height(1))
    assert again.is_at(NEWEST)
    assert again.snapshots.target() is None
