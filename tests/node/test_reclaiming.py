"""`storage reclaim` and the figures of `storage status`."""

import os

import trio
import trio.testing

from node.erased_rows import COUNTED
from protocol import limits
from protocol.cid import cid_of
from protocol.identifiers import Cid, Rid
from storage.growth import DAY_MS
from storage.key_value import Batch
from storage.keyspace import CHUNK_RECLAIM, LACKING
from tests.node.record_house import houses
from tests.node.storage_house import CaredFacility, result_of

Clock = trio.testing.MockClock


async def added(facility: CaredFacility) -> Rid:
    answer = await facility.add(os.urandom(2_500_000), patient=await facility.admit())
    await trio.sleep(30)
    return Rid(bytes.fromhex(answer["records"][0]["record"]))


def uploaded(facility: CaredFacility, data: bytes = b"abandoned") -> Cid:
    """A chunk that no record names."""
    facility.chunks.put_many([(cid_of(data), data)])
    return cid_of(data)


async def test_abandoned_chunks_go_after_a_day_and_those_of_records_stay(autojump_clock: Clock) -> None:
    async with houses(1, facility=CaredFacility) as (hospital,), trio.open_nursery() as nursery:
        assert isinstance(hospital, CaredFacility)
        rid, abandoned = await added(hospital), uploaded(hospital)
        nursery.start_soon(hospital.figures.run)
        await trio.sleep(1)
        assert (await result_of(hospital.care.reclaim()))["abandoned"] == 0

        hospital.clock.advance_ms(limits.ABANDONED_S * 1000)
        young = uploaded(hospital, b"just uploaded")
        result = await result_of(hospital.care.reclaim())

        assert result["ok"]
        assert result["abandoned"] == 1
        assert {"chunks", "bytes", "under_replicated", "corrupt"} <= set(result)
        assert not hospital.chunks.has(abandoned)
        assert hospital.chunks.has(young)
        assert all(map(hospital.chunks.has, hospital.cids_of(rid)))
        nursery.cancel_scope.cancel()


async def test_nothing_counts_as_abandoned_while_a_list_of_chunks_is_still_to_come(
    autojump_clock: Clock,
) -> None:
    async with houses(1, facility=CaredFacility) as (hospital,), trio.open_nursery() as nursery:
        assert isinstance(hospital, CaredFacility)
        chunk = uploaded(hospital)
        nursery.start_soon(hospital.figures.run)
        await trio.sleep(1)
        hospital.clock.advance_ms(limits.ABANDONED_S * 1000)
        rows = hospital.member.rows
        batch = Batch()
        batch.put(LACKING + bytes(32), b"")
        rows.write(batch, sync=True)
        assert (await result_of(hospital.care.reclaim()))["abandoned"] == 0

        batch = Batch()
        batch.delete(LACKING + bytes(32))
        batch.delete(COUNTED)
        rows.write(batch, sync=True)
        assert (await result_of(hospital.care.reclaim()))["abandoned"] == 0
        assert hospital.chunks.has(chunk)
        nursery.cancel_scope.cancel()


async def test_what_was_deleted_beside_damage_is_tried_again_and_told(autojump_clock: Clock) -> None:
    async with houses(1, facility=CaredFacility) as (hospital,):
        assert isinstance(hospital, CaredFacility)
        gone, kept = uploaded(hospital), uploaded(hospital, b"beside")
        location = hospital.chunks.index.locate(kept)
        assert location is not None
        key = location.sequence.to_bytes(8, "big")
        hospital.payloads.damage([key])  # type: ignore[attr-defined]  # a MemoryStore
        hospital.chunks.delete([gone])

        result = await result_of(hospital.care.reclaim())
        assert (result["ok"], result["unreclaimed"]) == (False, 1)

        batch = Batch()
        batch.put(key, kept + b"beside")
        hospital.payloads.write(batch, sync=True)
        assert (await result_of(hospital.care.reclaim()))["ok"]
        assert not list(hospital.member.rows.scan(CHUNK_RECLAIM, CHUNK_RECLAIM + b"\xff"))


async def test_the_figures_tell_replicas_padding_and_what_is_missing(autojump_clock: Clock) -> None:
    async with houses(3, facility=CaredFacility) as facilities:
        hospital, clinic, lab = facilities
        assert isinstance(hospital, CaredFacility)
        assert isinstance(clinic, CaredFacility)
        rid = await added(hospital)
        count = len(hospital.cids_of(rid))
        whole = await hospital.care.figures()
        assert {
            "records": 1,
            "own_records": 1,
            "chunks": count,
            "replicas": {"3": count},
        }.items() <= whole.items()
        assert {
            "under_replicated": 0,
            "corrupt": 0,
            "pending": 0,
            "lacking": 0,
            "erased_pending": 0,
        }.items() <= whole.items()
        assert 0 < whole["padding_overhead"] < 0.5
        # All records here are our own: what is known exactly is also the most that it can be.
        assert whole["padding_bytes"] == whole["padding_bytes_max"]
        theirs = await clinic.care.figures()
        assert (theirs["padding_bytes"], theirs["padding_bytes_max"] > whole["padding_bytes"]) == (0, True)
        assert (whole["file_bytes"], whole["free_bytes"], whole["problems"]) == (77, 1000, [])
        assert (await clinic.care.figures())["replicas"] == {}

        lab.member.transport.is_up = False
        second = await added(hospital)
        partly = await hospital.care.figures()
        assert partly["replicas"] == {"2": len(hospital.cids_of(second)), "3": count}
        assert partly["under_replicated"] == len(hospital.cids_of(second))


async def test_growth_is_told_from_the_samples_of_days(autojump_clock: Clock) -> None:
    async with houses(1, facility=CaredFacility) as (hospital,), trio.open_nursery() as nursery:
        assert isinstance(hospital, CaredFacility)
        nursery.start_soon(hospital.figures.run)
        await trio.sleep(1)
        assert (await hospital.care.figures())["growth"]["bytes_per_day"] is None

        hospital.clock.advance_ms(2 * DAY_MS)
        uploaded(hospital, bytes(200))
        growth = (await hospital.care.figures())["growth"]

        assert growth["bytes_per_day"] in range(95, 101)
        assert growth["over_days"] == 2
        assert growth["days_left"] == 9
        nursery.cancel_scope.cancel()


async def test_a_scrub_shows_in_the_figures(autojump_clock: Clock) -> None:
    async with houses(1, facility=CaredFacility) as (hospital,), trio.open_nursery() as nursery:
        assert isinstance(hospital, CaredFacility)
        uploaded(hospital, bytes(4000))
        assert (await hospital.care.figures())["scrub"] == {"walk": None, "last": None, "next_due_ms": 0}
        hospital.scrub.begin(1000)
        assert (await hospital.care.figures())["scrub"]["walk"]["of_bytes"] == 4000
        nursery.start_soon(hospital.scrub.run)
        await trio.sleep(60)

        scrubbing = (await hospital.care.figures())["scrub"]
        assert scrubbing["walk"] is None
        assert (scrubbing["last"]["chunks"], scrubbing["last"]["bad"]) == (1, 0)
        assert scrubbing["next_due_ms"] - scrubbing["last"]["started_ms"] == limits.SCRUB_PERIOD_S * 1000
        nursery.cancel_scope.cancel()
