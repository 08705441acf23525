"""What is missing is found without being known to be missing, here and with others, and when other members store."""

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from protocol import codec
from protocol import range_digest as ranges
from protocol.identifiers import Cid, NodeId, Rid
from storage.key_value import Batch
from storage.keyspace import CHUNK_LIST, ENVELOPE_OF_RECORD, LACKING
from tests.node.record_house import houses
from tests.node.storage_house import CaredFacility, let_store

Clock = trio.testing.MockClock
WALK_S = 30
"""After the start, or after another configuration, a walk has ended by then."""


@asynccontextmanager
async def compared(
    voters: int, *, records: int = 1, storing: int | None = None
) -> AsyncIterator[tuple[list[CaredFacility], list[Rid]]]:
    """Members with some records of a few chunks, placed as they should be, who compare what they have.

    Only the first `storing` of them store.
    """
    async with houses(voters, facility=CaredFacility) as running, trio.open_nursery() as nursery:
        facilities = [one for one in running if isinstance(one, CaredFacility)]
        let_store(facilities, *facilities[:storing])
        patient = await facilities[0].admit()
        rids = []
        for _ in range(records):
            answer = await facilities[0].add(os.urandom(2_500_000), patient=patient)
            rids.append(Rid(bytes.fromhex(answer["records"][0]["record"])))
        await trio.sleep(90)
        for one in facilities:
            nursery.start_soon(one.anti_entropy.run)
        await trio.sleep(WALK_S)
        yield facilities, rids
        nursery.cancel_scope.cancel()


def share(facility: CaredFacility, rid: Rid) -> tuple[Cid, ...]:
    placed = facility.holder.placed(rid)
    assert placed is not None
    return placed.share_of(facility.me, facility.store.configuration.storing)


def here(facility: CaredFacility, rid: Rid) -> tuple[Cid, ...]:
    return tuple(filter(facility.chunks.has, facility.cids_of(rid)))


async def compare_now(*facilities: CaredFacility) -> None:
    for one in facilities:
        one.anti_entropy.hurry()
    await trio.sleep(WALK_S)


async def test_where_all_is_well_members_find_each_other_alike(autojump_clock: Clock) -> None:
    async with compared(4) as (facilities, (rid,)):
        asked = []
        for one in facilities:
            assert one.anti_entropy.finished_ms
            assert here(one, rid) == share(one, rid)
            asked.append(await comparison(one, facilities[0]))

        assert all(isinstance(answer, ranges.Alike) for answer in asked[1:])
        assert [one.repair.status()["under_replicated"] for one in facilities] == [0] * 4


async def comparison(one: CaredFacility, other: CaredFacility) -> ranges.RangeAnswer | None:
    """What `one` hears when it compares all it has with another."""
    if one is other:
        return None
    summary = one.anti_entropy._summary
    assert summary is not None
    return await one.anti_entropy._ask(
        other.me, one.store.configuration.storing, b"", summary.digest(other.me)
    )


async def test_chunks_that_were_lost_here_unnoticed_come_back(autojump_clock: Clock) -> None:
    async with compared(4, records=2) as (facilities, rids):
        clinic = facilities[1]
        for rid in rids:
            clinic.chunks.delete(share(clinic, rid))

        await compare_now(clinic)

        assert all(here(clinic, rid) == share(clinic, rid) for rid in rids)


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_one_member_still_has_comes_back_to_all(autojump_clock: Clock, seed: int) -> None:
    draw = random.Random(seed)
    async with compared(5, records=2) as (facilities, rids):
        for cid in sorted(cid for rid in rids for cid in facilities[0].cids_of(rid)):
            holders = [one for one in facilities if one.chunks.has(cid)]
            for one in draw.sample(holders, draw.randrange(len(holders))):
                one.chunks.delete([cid])

        await compare_now(*facilities)

        assert all(here(one, rid) == share(one, rid) for one in facilities for rid in rids)
        assert [one.repair.status()["under_replicated"] for one in facilities] == [0] * 5


async def test_a_record_whose_list_was_lost_here_comes_back(autojump_clock: Clock) -> None:
    async with compared(3) as (facilities, (rid,)):
        clinic, batch = facilities[1], Batch()
        batch.delete(ENVELOPE_OF_RECORD + rid)
        batch.delete(CHUNK_LIST + rid)
        clinic.member.rows.write(batch, sync=True)

        await compare_now(clinic)

        assert clinic.holder.placed(rid) is not None


async def test_the_author_finds_what_another_lacks_and_brings_it_there(autojump_clock: Clock) -> None:
    async with compared(4, records=2) as (facilities, rids):
        hospital, clinic = facilities[:2]
        clinic.member.transport.is_up = False  # so that its own walk cannot help it
        rid = next(rid for rid in rids if share(clinic, rid))  # one of 64 records has no chunk there
        lost = share(clinic, rid)[:1]
        clinic.chunks.delete(lost)
        await compare_now(clinic)
        batch = Batch()
        batch.delete(LACKING + rid)  # a note that a crash forgets
        clinic.member.rows.write(batch, sync=True)
        clinic.member.transport.is_up = True

        await compare_now(hospital)

        assert clinic.chunks.has(lost[0])
        assert hospital.repair.status()["under_replicated"] == 0


async def test_a_member_that_stores_no_longer_keeps_its_chunks_until_the_others_have_proved_to_have_them(
    autojump_clock: Clock,
) -> None:
    async with compared(5, records=3) as (facilities, rids):
        hospital, *others = facilities
        leaver = max(others, key=lambda one: sum(len(share(one, rid)) for rid in rids))
        staying = [one for one in facilities if one is not leaver]
        away = next(one for one in others if one is not leaver)
        away.member.transport.is_up = False
        held = {cid for rid in rids for cid in here(leaver, rid)}

        let_store(facilities, *staying)
        await trio.sleep(WALK_S)
        unproved = held.intersection(cid for rid in rids for cid in share(away, rid))
        assert all(map(leaver.chunks.has, unproved))
        away.member.transport.is_up = True
        for one in facilities:
            await one.repair.look()
        await compare_now(*facilities)
        await compare_now(*facilities)

        assert all(here(one, rid) == share(one, rid) for one in staying for rid in rids)
        assert not any(here(leaver, rid) for rid in rids)
        # Who had no time yet to fetch its new share has broken no word.
        assert [leaver.standings.of(one.me).lacking for one in staying] == [0] * 4
        figures = await hospital.care.figures()
        assert figures["under_replicated"] == 0
        assert set(figures["replicas"]) == {"3"}


async def test_a_member_that_stores_again_is_given_its_share_and_no_more(autojump_clock: Clock) -> None:
    async with compared(5, records=2) as (facilities, rids):
        let_store(facilities, *facilities[:4])
        await trio.sleep(WALK_S)
        await compare_now(*facilities)
        let_store(facilities, *facilities)
        await trio.sleep(WALK_S)
        await compare_now(*facilities)

        assert all(here(one, rid) == share(one, rid) for one in facilities for rid in rids)


async def test_a_member_that_begins_to_store_is_given_its_share_of_old_records(autojump_clock: Clock) -> None:
    async with compared(5, records=2, storing=4) as (facilities, rids):
        novice = facilities[4]
        assert novice.chunks.statistics().chunks == 0
        assert all(novice.holder.placed(rid) is None for rid in rids)

        let_store(facilities, *facilities)
        await trio.sleep(WALK_S)
        await compare_now(*facilities)

        assert all(here(one, rid) == share(one, rid) for one in facilities for rid in rids)


async def test_under_another_configuration_nothing_is_compared(autojump_clock: Clock) -> None:
    async with compared(3) as (facilities, _):
        hospital, clinic, _ = facilities
        strange = ranges.CompareRange(bytes(32), b"", bytes(ranges.DIGEST_BYTES))

        raw = await hospital.member.transport.call(
            NodeId(clinic.me), ranges.RANGES_CHANNEL, codec.encode(strange), timeout_ms=1_000
        )

        assert codec.decode(raw, ranges.NotNow) == ranges.NotNow()
