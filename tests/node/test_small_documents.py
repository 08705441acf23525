import json
import os

import pytest
import trio
import trio.testing

from node.small_files import SmallFile
from protocol import chunk_exchange as exchange
from protocol import codec
from protocol.errors import NotFinal, Refused, StorageFull
from protocol.identifiers import Rid
from storage.key_value import Batch
from tests.node.ledger_double import InlineDisk
from tests.node.record_house import Facility, entries, houses
from tests.node.test_ingest import DEPRESSION, bundle, kept, observation, patient_resource


def opaque(count: int, size: int = 700) -> list[SmallFile]:
    return [SmallFile(os.urandom(size), "", "") for _ in range(count)]


def rid_of(outcome: dict[str, list[dict[str, str]]]) -> Rid:
    return Rid(bytes.fromhex(outcome["records"][0]["record"]))


async def add(facility: Facility, files: list[SmallFile], **options: str | None) -> list[dict[str, object]]:
    answer = await facility.ingest.add_many(files, **options)  # type: ignore[arg-type]  # flags are not asked here
    outcomes = answer["files"]
    assert isinstance(outcomes, list)
    return outcomes


async def test_many_files_become_records_in_their_order_and_come_back() -> None:
    async with houses() as (hospital,):
        patient, files = await hospital.admit(), opaque(70)

        outcomes = await add(hospital, files, patient=patient)

        assert [entries(outcome)[0]["state"] for outcome in outcomes] == ["final"] * 70
        for file, outcome in list(zip(files, outcomes, strict=True))[::23]:
            assert (await hospital.get(entries(outcome)[0]["record"]))[1] == file.data


async def test_a_refused_file_leaves_nothing_and_keeps_no_other_out() -> None:
    async with houses() as (hospital,):
        await hospital.admit()
        files = [
            SmallFile(bundle(patient_resource(), json.loads(observation())), "", ".json"),
            SmallFile(b'{"resourceType": ', "", ".json"),
            SmallFile(bundle(patient_resource("2"), DEPRESSION), "", ".json"),
            SmallFile(bundle(patient_resource(), DEPRESSION, json.loads(observation("1-8"))), "", ".json"),
        ]

        outcomes = await add(hospital, files)

        assert ["error" in outcome for outcome in outcomes] == [False, True, True, False]
        assert "not valid JSON" in str(outcomes[1]["error"])
        assert "nobody registered here" in str(outcomes[2]["error"])
        assert {one["kind"] for one in entries(outcomes[3])} == {"original", "view"}
        used = sum(one["chunks"] for outcome in (outcomes[0], outcomes[3]) for one in entries(outcome))
        assert hospital.chunks.statistics().chunks == used


async def test_the_same_file_twice_in_a_batch_and_in_the_next_one_is_one_record() -> None:
    async with houses() as (hospital,):
        patient, (file, other) = await hospital.admit(), opaque(2)

        first = await add(hospital, [file, other, file], patient=patient)
        second = await add(hospital, [other, file], patient=patient)

        ids = [entries(outcome)[0]["record"] for outcome in first + second]
        assert ids == [ids[0], ids[1], ids[0], ids[1], ids[0]]
        duplicates = [entries(outcome)[0]["duplicate"] for outcome in first + second]
        assert duplicates == [False, False, True, True, True]
        assert len(hospital.index.rids()) == 2


async def test_batches_of_the_same_files_in_another_order_do_not_wait_for_each_other_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with houses() as (hospital,):
        patient, files = await hospital.admit(), opaque(8)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(lambda: add(hospital, files, patient=patient))
                    nursery.start_soon(lambda: add(hospital, files[::-1], patient=patient))

        assert len(hospital.index.rids()) == 8


async def test_a_batch_that_the_disk_has_no_room_for_leaves_nothing() -> None:
    async with houses() as (hospital,):
        patient = await hospital.admit()
        before = kept(hospital)
        hospital.is_full = True

        with pytest.raises(StorageFull):
            await add(hospital, opaque(5), patient=patient)

        assert kept(hospital) == before


async def test_an_option_that_is_wrong_is_told_once() -> None:
    async with houses() as (hospital,):
        patient = await hospital.admit()
        with pytest.raises(Refused, match="no category"):
            await add(hospital, opaque(2), patient=patient, category="nonsense")
        assert hospital.queue.length == 0


class CountingDisk(InlineDisk):
    """Counts synchronised writes."""

    synced = 0

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        self.synced += sync
        await super().commit(batch, sync=sync)


async def test_a_batch_is_made_safe_by_one_write_of_chunks_and_one_of_rows() -> None:
    async with houses() as (hospital,):
        patient = await hospital.admit()
        await add(hospital, opaque(1), patient=patient)  # the vault is made with the first
        hospital.ledger.has_quorum = False
        disk = CountingDisk(hospital.member.rows)
        hospital.queue._disk = disk
        written: list[int] = []
        put_many = hospital.chunks.put_many

        def counted(chunks: list[tuple[bytes, bytes]], *, trusted: bool = False) -> int:
            written.append(len(chunks))
            return put_many(chunks, trusted=trusted)  # type: ignore[arg-type]  # ids are bytes here

        hospital.chunks.put_many = counted  # type: ignore[method-assign,assignment]  # counted, else the same
        with trio.move_on_after(0.5):
            await add(hospital, opaque(64), patient=patient)

        assert written == [128]  # each has a manifest
        assert disk.synced == 1
        assert hospital.queue.length == 64


async def test_small_records_travel_to_the_other_members_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with houses(3) as (hospital, clinic, laboratory):
        patient = await hospital.admit()
        await add(hospital, opaque(1), patient=patient)
        asked: list[tuple[str, str]] = []
        transport = hospital.member.transport
        call = transport.call

        async def counted(peer: bytes, channel: str, body: bytes, *, timeout_ms: int) -> bytes:
            asked.append((channel, codec.unpack(body)[0]))
            return await call(peer, channel, body, timeout_ms=timeout_ms)  # type: ignore[arg-type]  # ids are bytes here

        transport.call = counted  # type: ignore[method-assign]  # counted, else the same
        outcomes = await add(hospital, opaque(64), patient=patient)
        await trio.sleep(30)

        # To each of two members: their chunks, the question for receipts, the envelopes.
        assert sorted(asked) == 2 * [("chunks", "confirm-lists")] + 2 * [("chunks", "put-chunks")] + 2 * [
            ("envelopes", "offer-envelopes")
        ]
        for outcome in outcomes:
            placed = hospital.holder.placed(rid_of(outcome))  # type: ignore[arg-type]  # the record's entry
            assert placed is not None
            assert all(member.chunks.has(cid) for member in (clinic, laboratory) for cid in placed.cids)
        assert hospital.repair.status()["under_replicated"] == 0


async def test_a_damaged_chunk_of_one_small_record_keeps_no_other_from_the_ledger(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with houses(3) as (hospital, *others):
        patient = await hospital.admit()
        await add(hospital, opaque(1), patient=patient)
        for other in others:
            other.member.transport.is_up = False
        with pytest.raises(NotFinal) as queued:
            await add(hospital, opaque(5), patient=patient)
        rids = [Rid(bytes.fromhex(rid)) for rid in queued.value.ids]
        broken = hospital.queue._queued(rids[2])
        hospital.chunks.quarantine(broken.cids[0])
        for other in others:
            other.member.transport.is_up = True
        await trio.sleep(60)

        states = [hospital.queue.state(rid) for rid in rids]
        assert states == ["final", "final", "received", "final", "final"]


async def test_what_a_member_declines_of_a_group_is_not_asked_again_and_the_rest_is_receipted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with houses(3) as (hospital, clinic, _):
        patient = await hospital.admit()
        outcomes = await add(hospital, opaque(2), patient=patient)
        good = rid_of(outcomes[0])  # type: ignore[arg-type]  # the record's entry
        placed, record = hospital.holder.placed(good), hospital.store.record(good)
        assert placed is not None
        assert record is not None
        envelope = hospital.member.envelopes.envelope_of(good)
        assert envelope is not None
        (receipts,) = await hospital.replication.confirm((placed,), fresh=False)
        offers = tuple(
            exchange.OfferEnvelope(record.vid, rid, 0, hospital.me, envelope, placed.cids, receipts)
            for rid in (good, Rid(os.urandom(32)))
        )

        answers = (await clinic.holder.receive_all(hospital.me, offers)).answers
        collected = await hospital.replication.collect(offers)

        assert [type(answer).__name__ for answer in answers] == ["EnvelopeReceipt", "Declined"]
        assert [len(given) >= 2 for given in collected] == [True, False]
