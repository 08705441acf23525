import json
import os

import pytest
import trio

from node import documents
from node.sample_records import synthesise
from protocol import limits
from protocol.errors import NotFinal, Refused, StorageFull
from protocol.health.categories import Category
from protocol.identifiers import Rid
from storage.disk_reserve import check_quota
from tests.node.record_house import Facility, entries, houses, pieces
from tests.samples import sample_files


def patient_resource(value: str = "1", birth_date: str = "1980-02-03") -> dict[str, object]:
    return {
        "resourceType": "Patient",
        "id": f"p{value}",
        "identifier": [{"system": "urn:test", "value": value}],
        "birthDate": birth_date,
    }


def observation(code: str = "718-7", value: str = "13.50") -> bytes:
    coding = {"system": "http://loinc.org", "code": code}
    category = {
        "coding": [
            {"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "laboratory"}
        ]
    }
    resource = {
        "resourceType": "Observation",
        "status": "final",
        "category": [category],
        "code": {"coding": [coding]},
    }
    return (json.dumps(resource)[:-1] + f', "valueQuantity": {{"value": {value}}}}}').encode()


def bundle(*resources: object) -> bytes:
    entries = [{"resource": resource} for resource in resources]
    return json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}).encode()


DEPRESSION = {
    "resourceType": "Condition",
    "code": {
        "coding": [
            {"system": "http://snomed.info/sct", "code": "370143000", "display": "Major depressive disorder"}
        ]
    },
}


def kept(facility: Facility) -> tuple[int, int, int]:
    """Everything that a refused file might have left behind."""
    return facility.chunks.statistics().chunks, len(facility.index.rids()), facility.queue.length


async def test_a_file_comes_back_byte_for_byte():
    async with houses() as (hospital,):
        patient = await hospital.admit()
        data = os.urandom(3_000_000)

        (record,) = (await hospital.add(data, patient=patient, category="imaging"))["records"]
        info, received = await hospital.get(record["record"])

        assert received == data
        assert (record["state"], record["category"], record["kind"]) == ("final", "imaging", "document")
        assert record["height"] > 0
        assert info["bytes"] == record["bytes"] == len(data)


async def test_a_bundle_that_spans_categories_becomes_an_original_and_views():
    async with houses(3) as (hospital, *_):
        sample = synthesise(7)
        await hospital.patients.register(sample.fhir_bundle)

        records = (await hospital.add(sample.fhir_bundle))["records"]

        assert (records[0]["kind"], records[0]["category"]) == ("original", "mixed")
        assert {"labs", "mental-health", "social", "medication", "emergency"} <= {
            r["category"] for r in records[1:]
        }
        assert all(r["part_of"] == records[0]["record"] and r["state"] == "final" for r in records[1:])
        assert (await hospital.get(records[0]["record"]))[1] == sample.fhir_bundle
        labs = next(r for r in records if r["category"] == "labs")
        assert b"72.50" in (await hospital.get(labs["record"]))[1] or b"72.50" not in sample.fhir_bundle


async def test_a_bundle_of_one_category_is_stored_once_there():
    async with houses() as (hospital,):
        await hospital.admit()
        data = bundle(patient_resource(), json.loads(observation()))

        records = (await hospital.add(data, file_suffix=".json"))["records"]

        assert [(r["category"], r["kind"]) for r in records] == [("labs", "document")]


async def test_a_chosen_category_takes_the_whole_file_unsorted():
    async with houses() as (hospital,):
        await hospital.admit()

        records = (await hospital.add(bundle(patient_resource(), DEPRESSION), category="general"))["records"]

        assert [(r["category"], r["kind"]) for r in records] == [("general", "document")]


@pytest.mark.parametrize("several", [True, False])
async def test_ndjson_is_sorted_line_by_line(several):
    lines = [json.dumps(patient_resource()).encode(), observation(value="72.50")]
    lines += [json.dumps(DEPRESSION).encode()] if several else []
    data = b"\r\n".join(lines * 1)
    async with houses() as (hospital,):
        await hospital.admit()

        records = entries(await hospital.ingest.add(pieces(data, 100), file_suffix=".ndjson"))

        expected = {"mixed", "labs", "mental-health"} if several else {"labs"}
        assert expected <= {r["category"] for r in records}
        assert {r["category"] for r in records} <= expected | {"emergency"}
        assert (await hospital.get(records[0]["record"]))[1] == data
        labs = next(r for r in records if r["category"] == "labs")
        assert b"72.50" in (await hospital.get(labs["record"]))[1]
        used = sum(r["chunks"] for r in records)
        assert hospital.chunks.statistics().chunks == used


async def test_the_same_file_again_reports_the_same_records_and_no_transaction():
    async with houses() as (hospital,):
        patient = await hospital.admit()
        data = bundle(patient_resource(), DEPRESSION, json.loads(observation()))
        first = (await hospital.add(data))["records"]
        height, before = hospital.member.store.applied().height, kept(hospital)

        second = (await hospital.add(data, patient=patient))["records"]

        assert [r["record"] for r in second] == [r["record"] for r in first]
        assert all(r["duplicate"] for r in second)
        assert not any(r["duplicate"] for r in first)
        assert hospital.member.store.applied().height == height
        assert kept(hospital) == before


async def test_the_same_file_for_another_patient_is_refused():
    async with houses() as (hospital,):
        one, other = await hospital.admit(), await hospital.admit("2", "Bob", "1970-01-01")
        await hospital.add(b"%PDF-1.4 scanned", patient=one)
        before = kept(hospital)

        with pytest.raises(Refused, match="another patient"):
            await hospital.add(b"%PDF-1.4 scanned", patient=other)

        assert kept(hospital) == before


@pytest.mark.parametrize(
    ("data", "arguments", "reason"),
    [
        (b"", {}, "empty"),
        (b"{broken", {"file_suffix": ".json"}, "JSON"),
        (b"no PDF at all", {"file_suffix": ".pdf"}, "PDF"),
        (bundle(patient_resource("1"), patient_resource("2")), {}, "two patients"),
        (bundle(patient_resource("9")), {}, "nobody registered"),
        (bundle(DEPRESSION), {}, "whose it is"),
        (b"%PDF-1.4", {"category": "secrets"}, "no category"),
        (b"%PDF-1.4", {"patient": "ffffffff"}, "no patient"),
        (b"%PDF-1.4", {}, "whose it is"),
        (os.urandom(3 << 20), {}, "whose it is"),
    ],
)
async def test_what_cannot_be_taken_is_refused_in_one_sentence_and_nothing_is_kept(data, arguments, reason):
    async with houses() as (hospital,):
        await hospital.admit()

        with pytest.raises(Refused, match=reason) as refusal:
            await hospital.add(data, **arguments)

        assert "\n" not in str(refusal.value)
        assert kept(hospital) == (0, 0, 0)


async def test_a_document_that_names_somebody_else_needs_force_and_says_so():
    async with houses() as (hospital,):
        patient = await hospital.admit()
        data = bundle(patient_resource("2", "1970-01-01"))

        with pytest.raises(Refused, match="somebody else"):
            await hospital.add(data, patient=patient)
        (record,) = (await hospital.add(data, patient=patient, force=True))["records"]

        found = hospital.member.store.record(Rid(bytes.fromhex(record["record"])))
        assert found is not None
        key = await hospital.vaults.key_for(found)
        opened = await hospital.query._opening.open(found, key.category_secret)
        assert opened.meta.identity_override


async def test_without_a_quorum_the_record_is_queued_and_becomes_final_by_itself(autojump_clock):
    async with houses() as (hospital,):
        patient = await hospital.admit()
        hospital.ledger.has_quorum = False

        with pytest.raises(NotFinal) as answer:
            await hospital.add(b"%PDF-1.4", patient=patient)
        with pytest.raises(NotFinal) as again:
            await hospital.add(b"%PDF-1.4", patient=patient)
        hospital.ledger.has_quorum = True
        (record,) = (await hospital.add(b"%PDF-1.4", patient=patient))["records"]

        assert answer.value.ids == again.value.ids == (record["record"],)
        assert [r["state"] for r in entries(answer.value.details)] == ["received"]
        assert record["state"] == "final"


async def test_a_full_disk_refuses_the_file_and_keeps_nothing():
    class Full(Facility):
        def check_room(self) -> None:
            super().check_room()
            if self.room_checks > 2:
                raise StorageFull("the disk is full")

    async with houses(facility=Full) as (hospital,):
        patient = await hospital.admit()

        with pytest.raises(StorageFull):
            await hospital.add(os.urandom(40 << 20), patient=patient)

        assert kept(hospital) == (0, 0, 0)


async def test_a_record_that_was_begun_below_the_quota_is_taken_and_the_next_refused():
    class Bounded(Facility):
        def check_quota(self) -> None:
            check_quota(self.chunks.statistics().bytes, 2 * limits.MIB)

    async with houses(facility=Bounded) as (hospital,):
        patient = await hospital.admit()
        await hospital.add(os.urandom(20 * limits.MIB), patient=patient)

        with pytest.raises(StorageFull, match="storage_quota_bytes"):
            await hospital.add(os.urandom(20 * limits.MIB), patient=patient)

        assert kept(hospital)[1:] == (1, 0)


async def test_a_large_document_is_kept_unsorted_with_a_notice(monkeypatch):
    monkeypatch.setattr(limits, "SORTED_BYTES_MAX", 10_000)
    data = bundle(patient_resource(), DEPRESSION, *[json.loads(observation())] * 100)
    async with houses() as (hospital,):
        patient = await hospital.admit()

        with pytest.raises(Refused, match="--patient"):
            await hospital.add(data)
        answer = await hospital.add(data, patient=patient)

        assert [(r["category"], r["kind"]) for r in answer["records"]] == [("mixed", "document")]
        assert "64 MiB" in answer["notice"]


async def test_a_line_that_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr(documents, "LINE_BYTES_MAX", 10_000)
    async with houses() as (hospital,):
        await hospital.admit()
        data = json.dumps(patient_resource()).encode() + b"\n{" + b" " * 20_000

        with pytest.raises(Refused, match="line 2"):
            await hospital.add(data, file_suffix=".ndjson")

        assert kept(hospital) == (0, 0, 0)


async def test_synthetic_patients_go_in_and_come_out_byte_for_byte():
    paths = sample_files("synthea_r4")
    async with houses() as (hospital,):
        for path in sorted(paths, key=lambda path: path.stat().st_size)[:4]:
            data = path.read_bytes()
            patient = await hospital.admit() if path.name.startswith("practitioner") else None
            if patient is None:
                await hospital.patients.register(data)

            records = (await hospital.add(data, patient=patient, file_suffix=".json"))["records"]

            assert (await hospital.get(records[0]["record"]))[1] == data
            assert {r["category"] for r in records} <= set(Category)


async def test_beside_transactions_little_is_written_at_once(autojump_clock):
    async with houses() as (hospital,):
        patient = await hospital.admit()
        await hospital.add(b"opens the vault", patient=patient)
        put, written = hospital.writer.put, []

        async def counted(chunks):
            written.append(sum(len(data) for _, data in chunks) // limits.MIB)
            await put(chunks)

        hospital.writer.put = counted  # type: ignore[method-assign]  # counted, else the same
        await trio.sleep(10)
        await hospital.add(os.urandom(10 * limits.MIB), patient=patient)
        assert max(written) == 8
        written.clear()

        async def transactions():
            while True:
                hospital.pace.notice()
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(transactions)
            await hospital.add(os.urandom(10 * limits.MIB), patient=patient)
            nursery.cancel_scope.cancel()
        assert max(written) <= 2
        assert sum(written) >= 9
