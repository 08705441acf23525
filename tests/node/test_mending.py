"""`storage repair`: what is missing is found without being known to be missing."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing

from node.repair import ROWS_PER_LOOK_MAX
from protocol.chunk_exchange import CHUNKS_CHANNEL
from protocol.errors import Unavailable
from protocol.identifiers import NodeId, Rid
from storage.key_value import Batch
from storage.keyspace import CHUNK_LIST, ENVELOPE_OF_RECORD, LACKING
from tests.node.record_house import houses
from tests.node.storage_house import CaredFacility, result_of

Clock = trio.testing.MockClock


@asynccontextmanager
async def cared(voters: int) -> AsyncIterator[tuple[list[CaredFacility], Rid]]:
    """Members with one record of a few chunks, on all of them as it should be."""
    async with houses(voters, facility=CaredFacility) as running, trio.open_nursery() as nursery:
        facilities = [one for one in running if isinstance(one, CaredFacility)]
        patient = await facilities[0].admit()
        answer = await facilities[0].add(os.urandom(2_500_000), patient=patient)
        await trio.sleep(60)
        yield facilities, Rid(bytes.fromhex(answer["records"][0]["record"]))
        nursery.cancel_scope.cancel()


async def test_nothing_is_found_where_nothing_is_missing(autojump_clock: Clock) -> None:
    async with cared(3) as (facilities, _):
        result = await result_of(facilities[0].care.repair())

        assert result["ok"]
        assert (result["records"], result["fetched"], result["sent"], result["unhelpful"]) == (1, 0, 0, [])


async def test_chunks_that_were_lost_here_unnoticed_are_fetched(autojump_clock: Clock) -> None:
    async with cared(3) as (facilities, rid):
        clinic = facilities[1]
        cids = clinic.cids_of(rid)
        clinic.chunks.delete(cids[:2])

        result = await result_of(clinic.care.repair())

        assert result["ok"]
        assert result["fetched"] == 2
        assert all(map(clinic.chunks.has, cids))


async def test_an_envelope_that_was_lost_here_unnoticed_is_fetched(autojump_clock: Clock) -> None:
    async with cared(3) as (facilities, rid):
        clinic, batch = facilities[1], Batch()
        batch.delete(ENVELOPE_OF_RECORD + rid)
        batch.delete(CHUNK_LIST + rid)
        clinic.member.rows.write(batch, sync=True)

        assert (await result_of(clinic.care.repair()))["ok"]
        assert clinic.member.envelopes.envelope_of(rid) is not None
        assert clinic.holder.placed(rid) is not None


async def test_the_author_brings_a_member_what_it_lost_unnoticed(autojump_clock: Clock) -> None:
    async with cared(3) as (facilities, rid):
        hospital, clinic, _ = facilities
        cids = clinic.cids_of(rid)
        clinic.chunks.delete(cids)
        assert hospital.repair.status()["under_replicated"] == 0

        result = await result_of(hospital.care.repair())

        assert result["ok"]
        assert result["sent"] == 1
        assert all(map(clinic.chunks.has, cids))


async def test_who_is_away_or_refuses_is_named(autojump_clock: Clock) -> None:
    async with cared(3) as (facilities, rid):
        hospital, clinic, lab = facilities
        clinic.member.transport.is_up = False
        lab.chunks.delete(lab.cids_of(rid))
        lab.is_full = True

        result = await result_of(hospital.care.repair())

        assert not result["ok"]
        assert result["under_replicated"] == len(hospital.cids_of(rid))
        reasons = {member["facility"]: member["reason"] for member in result["unhelpful"]}
        assert len(reasons) == 2
        assert sorted(reason.split(":")[0] for reason in reasons.values()) == ["it refuses", "not connected"]


async def test_chunks_that_nobody_has_now_stay_lacking(autojump_clock: Clock) -> None:
    async with cared(3) as (facilities, rid):
        hospital, clinic, lab = facilities
        clinic.chunks.delete(clinic.cids_of(rid))
        for other in (hospital, lab):
            other.member.transport.is_up = False

        result = await result_of(clinic.care.repair())

        assert (result["ok"], result["lacking"]) == (False, 1)
        assert {member["reason"] for member in result["unhelpful"]} == {"not connected"}


async def test_a_chunk_that_nobody_has_does_not_keep_the_others_of_its_record_away(
    autojump_clock: Clock,
) -> None:
    async with cared(3) as (facilities, rid):
        clinic = facilities[1]
        cids = clinic.cids_of(rid)
        for one in facilities:
            one.chunks.delete(cids if one is clinic else cids[:1])

        result = await result_of(clinic.care.repair())

        assert (result["ok"], result["lacking"]) == (False, 1)
        assert [cid for cid in cids if not clinic.chunks.has(cid)] == [cids[0]]


async def test_a_long_list_is_worked_off_without_waiting(autojump_clock: Clock) -> None:
    async with cared(3) as (facilities, rid):
        clinic, batch = facilities[1], Batch()
        for number in range(4 * ROWS_PER_LOOK_MAX):
            batch.put(
                LACKING + bytes(30) + number.to_bytes(2, "big"), b""
            )  # of no record: gone when looked at
        batch.put(LACKING + rid, b"")
        clinic.chunks.delete(clinic.cids_of(rid))
        clinic.member.rows.write(batch, sync=True)

        await trio.sleep(6)

        assert all(map(clinic.chunks.has, clinic.cids_of(rid)))


async def test_a_full_disk_ends_a_look_before_anything_is_fetched(autojump_clock: Clock) -> None:
    async with cared(3) as (facilities, rid):
        clinic, asked = facilities[1], list[bytes]()

        async def counting(_sender: NodeId, body: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            asked.append(body)
            raise Unavailable("not now")

        for other in (facilities[0], facilities[2]):
            other.member.transport.serve(CHUNKS_CHANNEL, counting)
        clinic.chunks.delete(clinic.cids_of(rid))
        clinic.is_full = True

        await clinic.repair.note_lacking([rid])
        assert not await clinic.repair.look()

        assert asked == []


async def test_rows_that_nobody_can_help_now_do_not_block_those_behind_them(autojump_clock: Clock) -> None:
    async with cared(3) as (facilities, rid):
        clinic, batch = facilities[1], Batch()
        for number in range(ROWS_PER_LOOK_MAX):
            batch.put(LACKING + bytes(30) + number.to_bytes(2, "big"), b"")
        batch.put(LACKING + rid, b"")
        clinic.member.rows.write(batch, sync=True)

        looks = [clinic.repair._listed(LACKING) for _ in range(3)]

        assert rid not in looks[0]
        assert looks[1] == [rid]
        assert looks[2] == looks[0]
