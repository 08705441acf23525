import hashlib
import os

import pytest
import zstandard

from node.staging import StagedRecord
from node.vaults import NOT_YOURS
from protocol import limits
from protocol.errors import Corruption, Forbidden, Refused, Unavailable
from protocol.identifiers import Rid, Vid
from protocol.transaction import Read, parse
from protocol.wraps import open_who
from tests.node.record_house import Facility, entries, houses

DOCUMENT = b"%PDF-1.4 a letter"


def record_of(answer: object) -> str:
    return str(entries(answer)[0]["record"])


def reads(facility: Facility, vid: Vid) -> list[Read]:
    """Every accepted Read of a vault, in ledger order."""
    found = []
    for txid in facility.store.events_of(vid):
        receipt = facility.store.receipt(txid)
        assert receipt is not None
        raw = facility.store.block(receipt.height).transactions[receipt.index]
        transaction = parse(raw, facility.ledger.network)[0].transaction
        if isinstance(transaction, Read):
            found.append(transaction)
    return found


def vault_of(facility: Facility, record: str) -> Vid:
    found = facility.store.record(Rid(bytes.fromhex(record)))
    assert found is not None
    return found.vid


async def grant(
    owner: Facility, patient: str, to: str, *categories: str, purposes: tuple[str, ...] = ("TREAT",)
) -> str:
    answer = await owner.consent.grant(
        patient=patient,
        to=to,
        categories=categories,
        purposes=purposes,
        expires_ms=86_400_000,
        write=False,
        wallet=None,
    )
    return str(answer["grant"])


async def until_granted(facility: Facility) -> str:
    await facility.until("the grant is opened", lambda: bool(facility.patients.all()))
    return facility.patients.all()[0].handle


async def test_a_read_stands_on_the_ledger_and_tells_the_patient_who_it_was(autojump_clock):
    async with houses() as (hospital,):
        record = record_of(await hospital.add(DOCUMENT, patient=(handle := await hospital.admit())))

        info, received = await hospital.get(record, user="Dr Grace Example")

        (read,) = reads(hospital, vault_of(hospital, record))
        row = hospital.patients.row(handle)
        assert row is not None
        assert row.keys is not None
        note = open_who(
            await hospital.attachments.get(read.who_hash), read.vid, row.keys.audit_secret(read.vid)
        )
        assert received == DOCUMENT
        assert (note.name, note.organisation) == ("Dr Grace Example", "hospital")
        assert info["height"] > 0
        assert "Grace" not in repr(note)


async def test_who_may_not_read_hears_one_sentence_whether_or_not_the_record_exists(autojump_clock):
    async with houses(2) as (hospital, clinic):
        record = record_of(await hospital.add(DOCUMENT, patient=await hospital.admit()))
        height = clinic.store.applied().height

        for text in (record, record[:10], os.urandom(32).hex(), "nonsense", "", "zz" * 32):
            with pytest.raises(Forbidden) as refusal:
                await clinic.query.read(text)
            assert str(refusal.value) == NOT_YOURS
            with pytest.raises(Forbidden) as refusal:
                await clinic.query.status(text)
            assert str(refusal.value) == NOT_YOURS

        assert clinic.store.applied().height == height


async def test_a_grant_opens_its_category_alone_until_it_is_revoked(autojump_clock):
    async with houses(3) as (hospital, clinic, _):
        patient = await hospital.admit()
        labs = record_of(await hospital.add(b"labs", patient=patient, category="labs"))
        social = record_of(await hospital.add(b"social", patient=patient, category="social"))
        granted = await grant(hospital, patient, "clinic", "labs")
        handle = await until_granted(clinic)

        assert (await clinic.get(labs))[1] == b"labs"
        assert [entry["record"] for entry in entries(await clinic.query.list(handle))] == [labs]
        with pytest.raises(Forbidden, match=NOT_YOURS):
            await clinic.get(social)
        await hospital.consent.revoke(granted, wallet=None)
        with pytest.raises(Forbidden, match=NOT_YOURS):
            await clinic.get(labs)


async def test_a_purpose_is_a_known_code_and_one_that_the_grant_names(autojump_clock):
    async with houses(2) as (hospital, clinic):
        patient = await hospital.admit()
        record = record_of(await hospital.add(DOCUMENT, patient=patient))
        await grant(hospital, patient, "clinic", "mixed")
        await until_granted(clinic)

        with pytest.raises(Refused, match="no purpose"):
            await clinic.query.read(record, purpose="CURIOSITY")
        with pytest.raises(Forbidden, match="purpose HRESCH"):
            await clinic.query.read(record, purpose="HRESCH")

        assert reads(hospital, vault_of(hospital, record)) == []


async def test_without_a_quorum_nothing_is_opened(autojump_clock):
    async with houses() as (hospital,):
        record = record_of(await hospital.add(DOCUMENT, patient=await hospital.admit()))
        hospital.ledger.has_quorum = False

        with pytest.raises(Unavailable, match="nothing was opened"):
            await hospital.query.read(record)

        assert reads(hospital, vault_of(hospital, record)) == []


async def test_any_unambiguous_prefix_names_a_record(autojump_clock):
    async with houses() as (hospital,):
        patient = await hospital.admit()
        records = [record_of(await hospital.add(DOCUMENT + bytes([n]), patient=patient)) for n in range(3)]

        assert [(await hospital.get(record[:9]))[0]["record"] for record in records] == records
        assert [record_of(await hospital.query.status(record[:9])) for record in records] == records


async def test_listing_and_status_write_nothing(autojump_clock):
    async with houses() as (hospital,):
        patient = await hospital.admit()
        record = record_of(await hospital.add(DOCUMENT, patient=patient, category="social"))
        height = hospital.store.applied().height

        (listed,) = entries(await hospital.query.list(patient[:6]))
        (status,) = entries(await hospital.query.status(record))

        assert listed == status
        assert (listed["category"], listed["state"], len(listed["day"])) == ("social", "final", 10)
        assert hospital.store.applied().height == height
        with pytest.raises(Refused, match="no patient"):
            await hospital.query.list("0123456789abcdef")


async def test_an_export_reads_everything_once_and_announces_it_by_vault(autojump_clock):
    async with houses() as (hospital,):
        patient = await hospital.admit()
        files = {os.urandom(500 + n): ("labs", "social")[n % 2] for n in range(5)}
        for data, category in files.items():
            await hospital.add(data, patient=patient, category=category)

        exported = [
            (info["category"], b"".join([piece async for piece in stream]))
            async for info, stream in hospital.query.export(patient)
        ]

        assert sorted(exported) == sorted((category, data) for data, category in files.items())
        vaults = {found.vid for rid in hospital.index.rids() if (found := hospital.store.record(rid))}
        assert [len(reads(hospital, vid)) for vid in vaults] == [1, 1]


@pytest.mark.parametrize("size", [1, 512 - 16, 70_000, 1_048_560, 1_048_561, 9_000_000])
@pytest.mark.parametrize("is_compressible", [True, False])
async def test_every_size_comes_back_compressed_or_not(autojump_clock, size, is_compressible):
    data = (b"abcdefgh" * (size // 8 + 1))[:size] if is_compressible else os.urandom(size)
    async with houses() as (hospital,):
        answer = await hospital.add(
            data, patient=await hospital.admit(), media_type="application/octet-stream"
        )

        info, received = await hospital.get(record_of(answer))

        assert received == data
        assert info["sha256"] == hashlib.sha256(data).hexdigest()
        assert (answer["records"][0]["chunks"] < 3) == (is_compressible or size <= 1_048_560)


@pytest.mark.parametrize("lie", ["longer", "shorter", "garbage"])
async def test_a_manifest_that_lies_about_its_bytes_is_found_out_before_the_end(
    autojump_clock, monkeypatch, lie
):
    class Liar(StagedRecord):
        def finish(self, **fields):
            if lie == "garbage":
                self._compressor = zstandard.ZstdCompressor().compressobj()
                self._compression = "zstd"
            else:
                self._flush()
                self._compression = "zstd"
                self.plain_bytes += 1 if lie == "longer" else -1
            return super().finish(**fields)

    monkeypatch.setattr("node.upload.StagedRecord", Liar)
    async with houses() as (hospital,):
        data = os.urandom(300_000) if lie == "garbage" else bytes(3_000_000)
        record = record_of(await hospital.add(data, patient=await hospital.admit()))
        received: list[bytes] = []

        with pytest.raises(Corruption, match="manifest"):
            await receive(hospital, record, received)

        assert sum(map(len, received)) < len(data)


async def receive(facility: Facility, record: str, received: list[bytes]) -> None:
    _, stream = await facility.query.read(record)
    async for piece in stream:
        received.append(piece)  # noqa: PERF401  (what came before a refusal is kept)


@pytest.mark.parametrize("compresses", [True, False])
async def test_a_record_is_read_from_anywhere_on(compresses: bool) -> None:
    chunk = limits.CHUNK_PLAIN_BYTES
    data = os.urandom(3 * chunk + 77)
    data = data[:1000] * (len(data) // 1000) if compresses else data
    async with houses() as (hospital,):
        patient = await hospital.admit()
        (entry,) = (await hospital.add(data, patient=patient, category="imaging"))["records"]
        for start in (0, 1, chunk - 1, chunk, 2 * chunk + 5, len(data) - 1, len(data), len(data) + 9):
            info, stream = await hospital.query.read(entry["record"], start=start)

            expected = start if start < len(data) else 0
            assert info["start"] == expected
            assert b"".join([piece async for piece in stream]) == data[expected:]


async def test_what_lies_before_the_start_is_not_asked_for() -> None:
    async with houses() as (hospital,):
        patient = await hospital.admit()
        data = os.urandom(4 * limits.CHUNK_PLAIN_BYTES)
        (entry,) = (await hospital.add(data, patient=patient, category="imaging"))["records"]
        placed = hospital.holder.placed(Rid(bytes.fromhex(entry["record"])))
        assert placed is not None
        hospital.chunks.delete(placed.cids[:2])  # nobody else has them

        _, stream = await hospital.query.read(entry["record"], start=2 * limits.CHUNK_PLAIN_BYTES)

        assert b"".join([piece async for piece in stream]) == data[2 * limits.CHUNK_PLAIN_BYTES :]
