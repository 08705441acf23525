from collections.abc import Callable

import pytest
import trio.testing

from protocol import codec
from protocol.cid import cid_of, cid_text
from protocol.errors import Forbidden, Refused
from protocol.ledger_rows import Record, record_key, vault_key
from storage.keyspace import ATTACHMENT, BLOCK, CERTIFICATE, STATE, prefix_range
from tests.node.facility_double import FacilityDouble, facilities

Clock = trio.testing.MockClock


async def result_of(facility: FacilityDouble, *, full: bool = False) -> dict[str, object]:
    documents = [document async for document in facility.audit.verify(full=full)]
    result = documents[-1]["result"]
    assert isinstance(result, dict)
    assert all("progress" in document for document in documents[:-1])
    return result


async def story(hospital: FacilityDouble, clinic: FacilityDouble) -> tuple[str, Record]:
    patient = await hospital.register("1")
    record = await hospital.add_record(patient, "labs")
    granted = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
    await clinic.until("held", lambda: bool(list(clinic.held)))
    assert (await clinic.read(record)).is_accepted
    assert (await hospital.read(record, "Nurse Sample")).is_accepted
    await hospital.consent.revoke(str(granted["grant"]))
    return patient.handle, record


async def test_the_log_tells_who_did_what_in_order(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        patient, record = await story(hospital, clinic)

        entries = (await hospital.audit.log(patient))["entries"]

        assert isinstance(entries, list)
        assert [(entry["action"], entry["facility"], entry["actor"]) for entry in entries] == [
            ("open", "hospital", ""),
            ("add", "hospital", ""),
            ("grant", "clinic", "hospital"),
            ("read", "clinic", "Dr Sample (physician, clinic)"),
            ("read", "hospital", "Nurse Sample (physician, hospital)"),
            ("revoke", "clinic", "hospital"),
            ("rotate", "hospital", "hospital"),
        ]
        read = entries[3]
        assert read["record"] == record.rid.hex()
        assert read["grant"] == entries[2]["transaction"]
        assert (read["purpose"], read["category"]) == ("TREAT", "labs")
        assert read["height"] > entries[2]["height"]
        assert read["time"].endswith("Z")


async def test_only_the_custodian_reads_the_log(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        patient = await hospital.register("1")
        await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
        await clinic.until("held", lambda: bool(list(clinic.held)))

        with pytest.raises(Forbidden):
            await clinic.audit.log(clinic.patients.all()[0].handle)
        with pytest.raises(Refused):
            await clinic.audit.log(patient.handle)


async def test_a_note_that_is_lost_leaves_the_read_in_the_log(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        patient, _ = await story(hospital, clinic)
        for member in hospital.ledger.members:
            for key, _ in tuple(member.rows.scan(*prefix_range(ATTACHMENT))):
                member.rows._set(key, None)

        entries = (await hospital.audit.log(patient))["entries"]

        assert isinstance(entries, list)
        reads = [entry for entry in entries if entry["action"] == "read"]
        assert [entry["facility"] for entry in reads] == ["clinic", "hospital"]
        assert all("not available" in entry["actor"] for entry in reads)


@pytest.mark.parametrize("full", [False, True])
async def test_a_sound_ledger_verifies(autojump_clock: Clock, full: bool) -> None:
    async with facilities() as (hospital, clinic, laboratory):
        await story(hospital, clinic)
        hospital.chunks.put_many([(cid_of(b"chunk"), b"chunk")])

        for facility in (hospital, clinic, laboratory):
            result = await result_of(facility, full=full)

            mark = facility.store.applied()
            assert result == {
                "ok": True,
                "height": mark.height,
                "tree_root": mark.frontier.root().hex(),
                "problems": [],
            }


def flip(facility: FacilityDouble, key: bytes, change: Callable[[bytes], bytes]) -> None:
    value = facility.member.rows.get(key)
    assert value is not None
    facility.member.rows._values[key] = change(value)


def last_byte(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


async def test_a_changed_block_is_named(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        await story(hospital, clinic)
        flip(hospital, BLOCK + (3).to_bytes(8, "big"), last_byte)

        result = await result_of(hospital)

        assert result["ok"] is False
        assert "block 3" in str(result["problems"])
        assert (await result_of(clinic))["ok"] is True


async def test_a_missing_block_is_named_and_the_rest_is_verified(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        await story(hospital, clinic)
        hospital.member.rows._set(BLOCK + (2).to_bytes(8, "big"), None)

        result = await result_of(hospital)

        assert "block 2 is missing" in str(result["problems"])
        assert result["height"] == hospital.store.applied().height


async def test_a_certificate_for_something_else_is_named(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        await story(hospital, clinic)
        certificates = dict(hospital.member.rows.scan(*prefix_range(CERTIFICATE)))
        keys = sorted(certificates)
        flip(hospital, keys[2], lambda _: certificates[keys[1]])

        result = await result_of(hospital)

        assert result["ok"] is False
        assert "certificate" in str(result["problems"])


async def test_changed_state_is_named_by_record(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        _, record = await story(hospital, clinic)
        forged = codec.encode(
            Record(record.rid, record.vid, 5, record.author, record.env_hash, record.height, 1, record.txid)
        )
        flip(hospital, STATE + record_key(record.rid), lambda _: forged)

        result = await result_of(hospital)

        assert result["problems"] == [
            f"record {record.rid.hex()}: the stored state is not what the ledger says"
        ]


async def test_invented_and_lost_rows_are_named(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        _, record = await story(hospital, clinic)
        hospital.member.rows._set(STATE + vault_key(record.vid), None)
        hospital.member.rows._set(STATE + b"r" + b"\x07" * 32, b"invented")

        problems = str((await result_of(hospital))["problems"])

        assert f"vault {record.vid.hex()}" in problems
        assert f"record {'07' * 32}" in problems


async def test_a_damaged_chunk_attachment_and_key_are_named(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        patient, _ = await story(hospital, clinic)
        cid = cid_of(b"chunk")
        hospital.chunks.put_many([(cid, b"chunk")])
        (payload,) = [
            key for key, value in hospital.member.payloads._values.items() if value.endswith(b"chunk")
        ]
        hospital.member.payloads._values[payload] = last_byte(hospital.member.payloads._values[payload])
        attachment = next(key for key, _ in hospital.member.rows.scan(*prefix_range(ATTACHMENT)))
        flip(hospital, attachment, last_byte)
        row = b"kpatient/" + patient.encode()
        hospital.member.secrets._values[row] = last_byte(hospital.member.secrets._values[row])

        assert (await result_of(hospital))["ok"] is True  # none of this is the ledger's
        problems = str((await result_of(hospital, full=True))["problems"])

        assert cid_text(cid) in problems
        assert attachment[1:].hex() in problems
        assert f"patient/{patient}" in problems
