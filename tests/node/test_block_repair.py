"""Blocks that rot are found, fetched from whoever has them, taken only when they are the chain's, and nobody is asked."""

import contextlib
from dataclasses import replace

import pytest
import trio
import trio.testing

from node.block_server import BlockServer
from node.ledger_audit import LedgerAudit
from protocol import codec
from protocol.block import Block
from protocol.catchup import BlocksFrom
from protocol.errors import Corruption, Unreadable
from protocol.identifiers import Height
from protocol.merkle import Frontier
from storage import keyspace
from storage.key_value import Batch
from storage.keyspace import BLOCK, CERTIFICATE, HARD_STATE, STATE
from storage.ledger_store import HistoryMark
from storage.mend import lost_heights, put_lost
from tests.node.ledger_double import InlineWorkers
from tests.node.rotting_house import (
    CERTIFICATES,
    CHAIN,
    HONEST,
    LIAR,
    MIDDLE,
    TIP,
    House,
    key,
    run_for,
    sending,
    served_by_another,
)
from tests.protocol.chain import NODES, successor


@pytest.fixture
async def house() -> House:
    made = House()
    await made.fill()
    made.transport.streams[HONEST] = await served_by_another()
    return made


async def run_until_made_anew(house: House) -> None:
    with pytest.raises(Corruption, match="made anew"), trio.fail_after(3_600):
        await house.repair.run()


@pytest.mark.parametrize("heights", [(5,), (1,), (TIP,), (7, 8, 9), (3, 12, 30), tuple(range(2, TIP + 1))])
async def test_29_damaged_blocks_are_found_and_fetched_by_hash_and_the_database_is_to_be_made_anew(
    house: House, heights: tuple[int, ...], autojump_clock: trio.testing.MockClock
) -> None:
    house.rot(*(key(BLOCK, height) for height in heights))

    await run_until_made_anew(house)

    assert house.is_whole()
    assert house.verification.faults == {}


@pytest.mark.parametrize("heights", [(3,), (MIDDLE,), (TIP,), (3, MIDDLE, TIP)])
async def test_29_damaged_certificates_cost_no_blocks(
    house: House, heights: tuple[int, ...], autojump_clock: trio.testing.MockClock
) -> None:
    house.rot(*(key(CERTIFICATE, height) for height in heights))

    await run_until_made_anew(house)

    assert house.asked() == []


async def test_the_certificate_of_the_newest_block_comes_back_with_it(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    house.lose(CERTIFICATE, TIP)

    await run_for(house, 1)

    assert house.store.certificate(Height(TIP)) == CERTIFICATES[TIP]
    assert house.is_whole()


async def test_a_certificate_that_nobody_has_keeps_no_voter_from_voting(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    house.transport.streams[HONEST] = sending(*CHAIN[TIP:])  # all have gone on, and prove a newer block
    house.lose(CERTIFICATE, TIP)

    house.rot(key(BLOCK, 10))

    await run_for(house, 3_600)

    assert house.damage.whole.is_set()
    assert 10 in lost_heights(house.rows)  # nor the walk from going on


async def test_a_block_that_is_being_fetched_is_served_to_nobody_without_another_word(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    house.lose(BLOCK, 5)
    server = BlockServer(house.store, house.log, damage=house.damage)

    assert [frame async for frame in server.serve(HONEST, codec.encode(BlocksFrom(Height(5))))] == []

    assert house.log.events == []


async def test_a_voter_waits_for_a_block_however_long_it_takes(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    honest = house.transport.streams.pop(HONEST)
    house.lose(BLOCK, 5)

    await run_for(house, 3_600)
    assert not house.damage.whole.is_set()

    house.transport.streams[HONEST] = honest
    await run_for(house, 60)
    assert house.damage.whole.is_set()
    assert house.is_whole()


def forged(height: int) -> dict[str, Block]:
    """Blocks that are not the one at a height, each nearly so."""
    right = CHAIN[height]
    return {
        "of another hash": successor(CHAIN[height - 1], Frontier(), term=9),
        "of another height": CHAIN[height + 1],
        "with a signature that does not verify": Block(right.header, bytes(64), right.special, right.transactions),
        "with another body": Block(
            right.header, right.signature, b"", right.transactions[::-1] or (b"x",)
        ),
        "with another header": Block(replace(right.header, time_ms=1), right.signature, b"", ()),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("height", "lie"), [*((5, lie) for lie in sorted(forged(5))), (2, "with another body")]
)
async def test_29_what_is_not_the_chains_block_is_not_taken(
    house: House, height: int, lie: str, autojump_clock: trio.testing.MockClock
) -> None:
    house.rot(key(BLOCK, height))
    house.transport.streams[LIAR] = sending(forged(height)[lie])
    honest = house.transport.streams.pop(HONEST)

    await run_for(house, 20)

    assert house.verification.faults[LIAR] > 0
    assert lost_heights(house.rows) == (height,)
    assert "being fetched" in house.repair.trouble
    house.transport.streams[HONEST] = honest
    await run_for(house, 20)
    assert house.is_whole()


async def test_damage_beyond_blocks_is_told_until_others_are_there_and_then_the_database_is_to_be_made_anew(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    batch = Batch()
    batch.put(HARD_STATE, b"a vote")
    house.rows.write(batch, sync=True)
    house.rot(HARD_STATE, key(BLOCK, 5))
    house.transport.away |= {LIAR, HONEST}

    await run_for(house, 3600)

    assert "damaged bytes" in house.repair.trouble
    assert house.asked() == []
    assert sum(level == "error" for level, _, _ in house.log.events) == 1

    house.transport.away.remove(HONEST)
    with pytest.raises(Unreadable), trio.fail_after(3600):
        await house.repair.run()
    assert house.asked() == []


async def test_damage_beyond_blocks_is_only_told_where_there_is_no_room(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    house.rot(next(house.rows.scan(*keyspace.prefix_range(STATE)))[0])
    house.is_full = True

    await run_for(house, 3600)

    assert house.repair.trouble == "no room to make the ledger anew"


@pytest.mark.parametrize(("away", "is_made_anew"), [([], True), ([1], False), ([2], False), ([1, 2], False)])
async def test_a_voter_gives_its_ledger_up_only_when_it_can_begin_anew_with_the_others(
    away: list[int], is_made_anew: bool, autojump_clock: trio.testing.MockClock
) -> None:
    house = House(me=NODES[0])
    await house.fill()
    house.rot(next(house.rows.scan(*keyspace.prefix_range(STATE)))[0])
    house.transport.away.update(NODES[index] for index in away)

    with pytest.raises(Unreadable) if is_made_anew else contextlib.nullcontext():
        await run_for(house, 3600)

    assert house.repair.trouble


async def test_bytes_that_lie_beside_all_rows_are_a_reason_to_make_the_database_anew(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    house.damaged_files = ("000005.ldb",)

    await run_until_made_anew(house)

    assert any(values.get("files") == ("000005.ldb",) for _, _, values in house.log.events)


async def test_who_goes_on_telling_of_damage_does_not_have_everything_read_again_and_again(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    house.rot(next(house.rows.scan(*keyspace.prefix_range(STATE)))[0])
    house.transport.away |= {LIAR, HONEST}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.repair.run)
        for _ in range(600):
            house.damage.tell()
            await trio.sleep(1)
        nursery.cancel_scope.cancel()

    assert house.workers.runs <= 3 * 600 / 60 + 3


async def test_a_damaged_genesis_is_asked_for_nowhere(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    house.rot(key(BLOCK, 0))

    await run_until_made_anew(house)

    assert (house.asked(), lost_heights(house.rows)) == ([], ())


async def test_without_room_to_make_the_database_anew_the_blocks_are_fetched_all_the_same(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    house.rot(key(BLOCK, 5))
    house.is_full = True

    await run_for(house, 3600)

    assert house.is_whole()
    assert house.repair.trouble == "no room to make the ledger anew"


@pytest.mark.parametrize(
    ("height", "row"),
    [
        (5, b"\xc1"),
        (5, CHAIN[6].raw),
        (5, forged(5)["with another header"].raw),
        (5, forged(5)["with a signature that does not verify"].raw),
        (5, forged(5)["with another body"].raw),
        (2, forged(2)["with another body"].raw),
    ],
)
async def test_a_row_that_is_no_block_of_the_chain_is_fetched_again_though_its_checksum_holds(
    house: House, height: int, row: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    batch = Batch()
    batch.put(key(BLOCK, height), row)
    house.rows.write(batch, sync=True)

    await run_for(house, 60)

    assert house.is_whole()
    assert house.repair.trouble == ""


async def test_what_is_told_while_the_first_walk_is_under_way_does_not_put_it_off(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    batch = Batch()
    batch.put(key(BLOCK, 5), CHAIN[6].raw)
    house.rows.write(batch, sync=True)
    house.damage.tell()  # an audit asked for at the start is faster than the walk

    await run_for(house, 10)

    assert house.is_whole()


def with_a_changed_vote(height: int) -> bytes:
    row = bytearray(codec.encode(CERTIFICATES[height]))
    row[-3] ^= 1
    return bytes(row)


@pytest.mark.parametrize("row", [with_a_changed_vote(MIDDLE), codec.encode(CERTIFICATES[3]), b"nonsense"])
@pytest.mark.parametrize("height", [MIDDLE, TIP])
@pytest.mark.parametrize("is_running", [False, True])
async def test_a_certificate_that_does_not_hold_is_fetched_again_though_its_checksum_holds(
    house: House, height: int, row: bytes, is_running: bool, autojump_clock: trio.testing.MockClock
) -> None:
    batch = Batch()
    batch.put(key(CERTIFICATE, height), row)
    if is_running:
        # Not found by a walk, which has ended, but by whoever read it, and told.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.repair.run)
            await trio.sleep(60)
            house.rows.write(batch, sync=True)
            house.damage.tell()
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
    else:
        house.rows.write(batch, sync=True)
        await run_for(house, 60)

    found = house.store.certificate_at_or_above(Height(height))
    # Any certificate above says as much; of the newest block there is no other.
    assert found == CERTIFICATES[TIP]
    assert not lost_heights(house.rows)
    assert house.is_whole()


async def test_a_whole_ledger_is_walked_in_silence(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    await run_for(house, 3 * 24 * 3600)

    assert (house.log.events, house.transport.asked, house.repair.trouble) == ([], [], "")
    assert house.rows.get(keyspace.LEDGER_WALK) is None


async def test_a_lost_block_under_one_that_has_rotted_since_waits_for_that_one(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    house.lose(BLOCK, 5)
    house.rot(key(BLOCK, 6), key(BLOCK, 7))

    await run_for(house, 60)

    assert house.is_whole()


async def test_a_block_that_comes_with_the_history_below_a_snapshot_is_not_fetched_twice(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    batch = Batch()
    gap = HistoryMark(Height(4), CHAIN[4].hash, 0, (), until=Height(10))
    house.store.put_history(batch, (), gap)
    for height in (3, 4, 7, 9):
        put_lost(batch, Height(height))
        batch.delete(key(BLOCK, height))
    house.rows.write(batch, sync=True)
    house.store.refresh()

    await run_for(house, 60)

    assert set(house.asked()) == {3}
    assert lost_heights(house.rows) == ()


async def test_what_is_not_applied_yet_is_no_business_of_the_walk(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    batch = Batch()
    batch.put(key(BLOCK, TIP + 1), successor(CHAIN[4], Frontier()).raw)
    house.rows.write(batch, sync=True)

    await run_for(house, 60)

    assert (house.log.events, lost_heights(house.rows)) == ([], ())


async def test_a_walk_goes_on_where_the_last_one_was_broken_off(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    batch = Batch()
    batch.put(keyspace.LEDGER_WALK, codec.pack(STATE))
    house.rows.write(batch, sync=True)
    house.rot(key(BLOCK, 5))

    await run_for(house, 3600)
    assert house.asked() == []

    await run_until_made_anew(house)
    assert house.is_whole()


async def test_who_is_asked_for_a_damaged_block_serves_nothing_and_has_it_looked_into(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    server = BlockServer(house.store, house.log, damage=house.damage)
    ended: list[Corruption] = []

    async def repair() -> None:
        try:
            await house.repair.run()
        except Corruption as error:
            ended.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(repair)
        await trio.sleep(60)
        house.rot(key(BLOCK, 5))
        assert [frame async for frame in server.serve(HONEST, codec.encode(BlocksFrom(Height(5))))] == []
        await trio.sleep(0.4)  # not only when a walk comes by
        nursery.cancel_scope.cancel()

    assert "made anew" in str(ended[0])
    assert house.is_whole()


@pytest.mark.parametrize("row", [key(BLOCK, 5), key(CERTIFICATE, MIDDLE)])
async def test_an_audit_that_meets_damage_has_it_looked_into(
    house: House, row: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    house.rot(row)
    audit = LedgerAudit(house.store, InlineWorkers(), house.damage)
    findings = audit.begin()

    async for _ in audit.verify(findings):
        pass

    assert findings.problems.any
    with trio.fail_after(60):
        await house.damage.wait()


async def test_who_reads_every_block_waits_until_all_are_there(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    honest = house.transport.streams.pop(HONEST)
    house.lose(BLOCK, 5)
    read: list[int] = []

    async def reader() -> None:
        await trio.lowlevel.checkpoint()
        read.extend(block.height for block in house.store.blocks(Height(1), Height(TIP)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.repair.run)
        nursery.start_soon(house.repair.after, reader)
        await trio.sleep(60)
        assert read == []
        house.transport.streams[HONEST] = honest
        await trio.sleep(60)
        nursery.cancel_scope.cancel()

    assert len(read) == TIP
