"""Reading everything back, in the background and at once."""

import os

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from node.scrub import pause_ms
from protocol import limits
from protocol.cid import cid_of
from protocol.identifiers import Rid
from storage.keyspace import CHUNK
from tests.node.record_house import houses
from tests.node.storage_house import CaredFacility, result_of

Clock = trio.testing.MockClock
GIB = 1 << 30


async def added(facility: CaredFacility, count: int = 1) -> tuple[Rid, ...]:
    """Records of a few chunks each, final and with every member."""
    patient = await facility.admit()
    answers = [await facility.add(os.urandom(2_500_000), patient=patient) for _ in range(count)]
    await trio.sleep(30)
    return tuple(Rid(bytes.fromhex(answer["records"][0]["record"])) for answer in answers)


@given(st.integers(1, 1 << 30), st.integers(0, 10_000), st.integers(0, 1 << 30), st.booleans())
def test_the_scrub_rests_at_least_as_long_as_it_worked_and_keeps_its_rate(
    size: int, took_ms: int, rate: int, is_busy: bool
) -> None:
    rest = pause_ms(size, took_ms, rate, is_busy=is_busy)

    assert rest >= took_ms * (3 if is_busy else 1)
    assert rest > 0
    assert not rate or size * 1000 <= rate * (rest + took_ms)


async def test_a_scrub_on_demand_finds_and_repairs_every_bad_chunk(autojump_clock: Clock) -> None:
    async with houses(3, facility=CaredFacility) as facilities, trio.open_nursery() as nursery:
        hospital = facilities[0]
        assert isinstance(hospital, CaredFacility)
        rids = await added(hospital, 3)
        bad = tuple(hospital.cids_of(rid)[0] for rid in rids)
        hospital.damage(*bad)
        nursery.start_soon(hospital.scrub.run)

        result = await result_of(hospital.care.scrub(rate=None))

        assert result["ok"]
        assert (result["bad"], result["repaired"], result["corrupt"]) == (3, 3, 0)
        assert result["under_replicated"] == 0
        assert result["chunks"] == hospital.chunks.statistics().chunks
        assert all(hospital.chunks.get(cid) for cid in bad)
        nursery.cancel_scope.cancel()


async def test_what_nobody_has_is_named_and_repaired_later(autojump_clock: Clock) -> None:
    async with houses(3, facility=CaredFacility) as facilities, trio.open_nursery() as nursery:
        hospital = facilities[0]
        assert isinstance(hospital, CaredFacility)
        (rid,) = await added(hospital)
        bad = hospital.cids_of(rid)[0]
        hospital.damage(bad)
        for other in facilities[1:]:
            other.member.transport.is_up = False
        nursery.start_soon(hospital.scrub.run)

        result = await result_of(hospital.care.scrub(rate=None))

        assert not result["ok"]
        assert (result["bad"], result["repaired"], result["corrupt"]) == (1, 0, 1)
        assert len(result["damaged"]) == 1
        assert len(result["away"]) == 2

        for other in facilities[1:]:
            other.member.transport.is_up = True
        await trio.sleep(30)
        assert hospital.chunks.get(bad) is not None
        nursery.cancel_scope.cancel()


async def test_every_chunk_is_read_once_in_a_period_and_bad_ones_are_repaired(autojump_clock: Clock) -> None:
    async with houses(3, facility=CaredFacility) as facilities, trio.open_nursery() as nursery:
        hospital = facilities[0]
        assert isinstance(hospital, CaredFacility)
        (rid,) = await added(hospital)
        nursery.start_soon(hospital.scrub.run)
        await trio.sleep(60)
        first = hospital.scrub.last
        assert first is not None
        bad = hospital.cids_of(rid)[0]
        hospital.damage(bad)

        hospital.clock.advance_ms(limits.SCRUB_PERIOD_S * 1000)
        await trio.sleep(3_700)

        last = hospital.scrub.last
        assert last is not None
        assert last.started_ms - first.started_ms >= limits.SCRUB_PERIOD_S * 1000
        assert (last.bad, last.repaired, last.is_asked) == (1, 1, False)
        assert hospital.chunks.get(bad) is not None
        assert hospital.chunks.index.scrubbed_ms(hospital.cids_of(rid)[1]) >= last.started_ms
        nursery.cancel_scope.cancel()


async def test_a_scrub_is_joined_while_it_goes_on_and_its_rate_is_changed(autojump_clock: Clock) -> None:
    async with houses(1, facility=CaredFacility) as (hospital,), trio.open_nursery() as nursery:
        assert isinstance(hospital, CaredFacility)
        chunks = [number.to_bytes(2, "big") * 500 for number in range(1_000)]
        hospital.chunks.put_many([(cid_of(chunk), chunk) for chunk in chunks])
        nursery.start_soon(hospital.scrub.run)
        await trio.sleep(600)
        hospital.scrub.begin(1_000)
        await trio.sleep(60)
        slow = hospital.scrub.walk
        assert slow is not None
        assert 0 < slow.chunks < 1_000

        result = await result_of(hospital.care.scrub(rate=GIB))

        assert result["started_ms"] == slow.started_ms
        assert result["chunks"] == 1_000
        assert hospital.scrub.walk is None
        nursery.cancel_scope.cancel()


async def test_a_scrub_goes_on_after_a_restart_and_when_nobody_watches(autojump_clock: Clock) -> None:
    async with houses(1, facility=CaredFacility) as (hospital,):
        assert isinstance(hospital, CaredFacility)
        chunks = [number.to_bytes(2, "big") * 500 for number in range(1_000)]
        hospital.chunks.put_many([(cid_of(chunk), chunk) for chunk in chunks])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hospital.scrub.run)
            await trio.sleep(600)
            with trio.move_on_after(600):
                async for _ in hospital.care.scrub(rate=1_000):
                    pass
            nursery.cancel_scope.cancel()
        hospital.care_anew()
        kept = hospital.scrub.walk
        assert kept is not None
        assert kept.chunks > 0

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hospital.scrub.run)
            await trio.sleep(1_200)
            nursery.cancel_scope.cancel()

        last = hospital.scrub.last
        assert last is not None
        assert (last.started_ms, last.chunks, last.is_asked) == (kept.started_ms, 1_000, True)


async def test_an_asked_scrub_reads_everything_even_when_the_background_has_read_most_of_it(
    autojump_clock: Clock,
) -> None:
    async with houses(1, facility=CaredFacility) as (hospital,), trio.open_nursery() as nursery:
        assert isinstance(hospital, CaredFacility)
        chunks = [number.to_bytes(2, "big") * 100_000 for number in range(100)]
        hospital.chunks.put_many([(cid_of(chunk), chunk) for chunk in chunks])
        nursery.start_soon(hospital.scrub.run)
        await trio.sleep(8)
        background = hospital.scrub.walk
        assert background is not None
        assert background.chunks > 0
        assert not background.is_asked

        result = await result_of(hospital.care.scrub(rate=None))

        assert (result["asked"], result["chunks"]) == (True, 100)
        nursery.cancel_scope.cancel()


async def test_a_full_disk_stops_the_scrub_with_a_sentence_and_it_goes_on_later(
    autojump_clock: Clock,
) -> None:
    async with houses(3, facility=CaredFacility) as facilities, trio.open_nursery() as nursery:
        hospital = facilities[0]
        assert isinstance(hospital, CaredFacility)
        (rid,) = await added(hospital)
        hospital.damage(hospital.cids_of(rid)[0])
        hospital.is_full = True
        nursery.start_soon(hospital.scrub.run)

        result = await result_of(hospital.care.scrub(rate=None))
        assert not result["ok"]
        assert result["problems"] == ["no room"]

        hospital.is_full = False
        assert (await result_of(hospital.care.scrub(rate=None)))["ok"]
        nursery.cancel_scope.cancel()


async def test_an_index_that_cannot_be_read_is_told(autojump_clock: Clock) -> None:
    async with houses(1, facility=CaredFacility) as (hospital,), trio.open_nursery() as nursery:
        assert isinstance(hospital, CaredFacility)
        hospital.chunks.put_many([(cid_of(b"chunk"), b"chunk")])
        hospital.member.rows.damage([CHUNK + cid_of(b"chunk")])
        nursery.start_soon(hospital.scrub.run)

        result = await result_of(hospital.care.scrub(rate=None))

        assert not result["ok"]
        assert result["problems"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("size", [0, 10 * GIB, 100_000 * GIB])
async def test_the_background_is_fast_enough_for_the_period_and_no_faster(size: int) -> None:
    async with houses(1, facility=CaredFacility) as (hospital,):
        assert isinstance(hospital, CaredFacility)
        hospital.scrub._begin(is_asked=False, rate=0)
        walk = hospital.scrub.walk
        assert walk is not None
        rate = hospital.scrub.rate_of(type(walk)(1, False, 0, b"", 1, size, 0, 0, 0, 0, 0))

        assert rate * limits.SCRUB_PERIOD_S >= size
        assert rate <= max(limits.MIB, size * 2 // limits.SCRUB_PERIOD_S)
