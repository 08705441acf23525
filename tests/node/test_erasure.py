"""Erasing a record: the whole family, on every member, attested; and everything that stands in its way."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from trio.testing import MockClock

from node.erasure import NOTICE
from node.vaults import NOT_YOURS
from protocol import codec, limits
from protocol.destruction import Attestation, check_attestation
from protocol.errors import Erased, Forbidden, Invalid, NotFinal, Refused
from protocol.identifiers import Rid, Txid
from storage.key_value import Batch
from storage.keyspace import CHUNK_LIST
from tests.node.contract_house import bundle
from tests.node.erasing_house import ErasingFacility, erasing_houses
from tests.node.record_house import entries

DOCUMENT = b"%PDF-1.4 a letter"


async def admit(house: ErasingFacility) -> str:
    answer = await house.patients.register(
        None, identifiers=[("urn:example", "contract")], name="Cora Contract", birth_date="1980-01-01"
    )
    return str(answer["patient"])


async def family_of(house: ErasingFacility) -> tuple[str, list[str]]:
    """Add one file of several categories; return the patient and the records, the original first."""
    patient = await admit(house)
    added = entries(await house.add(bundle(), patient=patient))
    assert len(added) >= 3
    return patient, [entry["record"] for entry in added]


async def letter_of(house: ErasingFacility, patient: str, data: bytes = DOCUMENT) -> str:
    added = entries(await house.add(data, patient=patient, category="labs"))
    return str(added[0]["record"])


async def everywhere(houses: list[ErasingFacility], records: list[str]) -> None:
    """Wait until every member holds envelopes of the records."""
    for house in houses:

        def holds_all(house: ErasingFacility = house) -> bool:
            return all({"envelope", "list"} <= house.holds(record) for record in records)

        await house.until("the records to be everywhere", holds_all)


async def test_a_family_is_listed_and_nothing_happens(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital = houses[0]
        _, records = await family_of(hospital)

        listed = await hospital.erasures.erase(records[1][:12])

        assert {entry["record"] for entry in entries(listed)} == set(records)
        assert entries(listed)[0]["record"] == records[1]
        assert {entry["kind"] for entry in entries(listed)} == {"original", "view"}
        assert (listed["erased"], listed["notice"]) == (False, NOTICE)
        assert hospital.store.erasure(Rid(bytes.fromhex(records[0]))) is None


async def test_any_record_of_a_family_takes_all_of_it_from_every_member(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital = houses[0]
        patient, records = await family_of(hospital)
        other = await letter_of(hospital, patient)
        await everywhere(houses, [*records, other])

        answer = await hospital.erase(records[1])

        assert (answer["erased"], answer["pending"]) == (True, [])
        assert {entry["facility"] for entry in answer["attestations"]} == {"hospital", "clinic", "laboratory"}
        assert len(answer["attestations"]) == 3 * len(records)
        assert all(entry["chunks"] > 0 for entry in answer["attestations"])
        assert [house.holds(record) for house in houses for record in records] == [set()] * 3 * len(records)
        kept = {cid for house in houses for cid in house.chunks.cids()}
        placed = hospital.holder.placed(Rid(bytes.fromhex(other)))
        assert placed is not None
        assert kept == set(placed.cids)
        assert (await hospital.get(other))[1] == DOCUMENT


async def test_an_attestation_can_be_checked_by_whoever_has_the_ledger(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        record = await letter_of(houses[0], await admit(houses[0]))

        answer = await houses[0].erase(record)

        for entry, house in zip(answer["attestations"], sorted(houses, key=lambda one: one.me), strict=True):
            word = codec.decode(bytes.fromhex(entry["attestation"]), Attestation)
            erasure = houses[2].store.erasure(Rid(bytes.fromhex(record)))
            assert erasure is not None
            check_attestation(
                word, houses[0].ledger.network, node=house.me, rid=erasure.rid, txid=erasure.txid
            )


async def test_what_is_erased_says_when_and_the_log_says_so_too(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital = houses[0]
        patient = await admit(hospital)
        record = await letter_of(hospital, patient)
        await hospital.erase(record)

        with pytest.raises(Erased, match=r"erased on 2027-01-15; .* nothing else is left"):
            await hospital.get(record)

        log: Any = await hospital.audit.log(patient)
        last = log["entries"][-1]
        assert (last["action"], last["record"], last["actor"]) == ("erase", record, "hospital")
        assert entries(await hospital.query.status(record))[0]["state"] == "erased"
        assert [entry["state"] for entry in entries(await hospital.query.list(patient))] == ["erased"]
        assert [opened async for opened in hospital.query.export(patient)] == []
        result = [line async for line in hospital.audit.verify(full=True)][-1]["result"]
        assert result["ok"], result  # type: ignore[index]  # JSON


async def test_the_same_file_is_new_again(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital = houses[0]
        patient, records = await family_of(hospital)
        assert entries(await hospital.add(bundle(), patient=patient))[0]["duplicate"]
        await hospital.erase(records[0])

        again = entries(await hospital.add(bundle(), patient=patient))

        assert not any(entry["duplicate"] for entry in again)
        assert not {entry["record"] for entry in again} & set(records)
        assert (await hospital.get(again[0]["record"]))[1] == bundle()


async def test_a_view_alone_is_refused_and_a_document_alone_is_not(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital = houses[0]
        patient, records = await family_of(hospital)
        letter = await letter_of(hospital, patient)

        for record in records[:2]:
            with pytest.raises(Refused, match="hold the same as this one"):
                await hospital.erasures.erase(record, only=True)

        assert (await hospital.erase(letter, only=True))["erased"]
        assert [hospital.report.state(Rid(bytes.fromhex(one))) for one in records] == ["final"] * len(records)


async def test_a_family_that_is_not_the_listed_one_is_refused(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        _, records = await family_of(houses[0])

        with pytest.raises(Refused, match="no longer what was listed"):
            await houses[0].erasures.erase(records[0], listed=records[:2])

        assert houses[0].store.erasure(Rid(bytes.fromhex(records[0]))) is None


async def test_nobody_but_the_holder_of_the_keys_erases(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital, clinic, laboratory = houses
        patient = await admit(hospital)
        record = await letter_of(hospital, patient)
        await hospital.consent.grant(
            patient=patient, to="clinic", categories=("labs",), purposes=("TREAT",), expires_ms=86_400_000,
            write=True, wallet=None,
        )  # fmt: skip
        await clinic.until("the grant to be opened", lambda: bool(clinic.patients.all()))

        with pytest.raises(Forbidden, match="needs the patient's signature"):
            await clinic.erase(record)
        with pytest.raises(Forbidden, match=NOT_YOURS):
            await laboratory.erase(record)
        with pytest.raises(Forbidden, match=NOT_YOURS):
            await hospital.erase("f" * 64)
        assert (await hospital.get(record))[1] == DOCUMENT


@pytest.mark.parametrize("blocks", [0, 300])
async def test_a_member_that_is_away_is_pending_and_deletes_when_it_is_back(
    autojump_clock: MockClock, blocks: int
) -> None:
    async with erasing_houses() as houses:
        hospital, _, laboratory = houses
        record = await letter_of(hospital, await admit(hospital))
        await everywhere(houses, [record])
        laboratory.leaves()

        first = await hospital.erase(record)

        assert [(entry["facility"], entry["reason"]) for entry in first["pending"]] == [
            ("laboratory", "not connected: it deletes when it is back")
        ]
        assert {entry["facility"] for entry in first["attestations"]} == {"hospital", "clinic"}
        assert {"envelope", "list"} <= laboratory.holds(record)

        for _ in range(blocks):
            await hospital.ledger.order(())
        laboratory.comes_back()
        await laboratory.catch_up()
        await hospital.until("every word", lambda: complete(hospital, record))

        again = await hospital.erase(record)
        assert (len(again["attestations"]), again["pending"]) == (3, [])
        assert laboratory.holds(record) == set()
        assert not list(laboratory.chunks.cids())


def complete(house: ErasingFacility, record: str) -> bool:
    row = house.asked.get(Rid(bytes.fromhex(record)))
    return row is not None and len(row.attestations) == len(house.ledger.members)


async def test_without_a_quorum_an_erasure_is_queued_and_happens_later(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital = houses[0]
        _, records = await family_of(hospital)
        hospital.ledger.has_quorum = False

        with pytest.raises(NotFinal) as queued:
            await hospital.erase(records[0])

        assert set(queued.value.ids) == set(records)
        assert {entry["state"] for entry in entries(queued.value.details)} == {"received"}
        assert {hospital.report.state(Rid(bytes.fromhex(one))) for one in records} == {"final"}
        hospital.ledger.has_quorum = True
        await hospital.until("all erased", lambda: all(complete(hospital, one) for one in records))
        assert (await hospital.erase(records[2]))["erased"]


async def test_what_waits_for_longer_than_a_day_is_signed_again(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital = houses[0]
        record = await letter_of(hospital, await admit(hospital))
        hospital.ledger.has_quorum = False
        with pytest.raises(NotFinal):
            await hospital.erase(record)
        row = hospital.asked.get(Rid(bytes.fromhex(record)))
        assert row is not None

        hospital.ledger.clock.advance_ms(limits.VALID_UNTIL_MS_MAX + 60_000)
        hospital.ledger.has_quorum = True
        await hospital.until("the erasure", lambda: complete(hospital, record))

        erasure = hospital.store.erasure(Rid(bytes.fromhex(record)))
        assert erasure is not None
        assert erasure.txid != row.txid


async def test_a_record_in_the_queue_is_refused_in_one_sentence(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital = houses[0]
        patient = await admit(hospital)
        hospital.ledger.has_quorum = False
        with pytest.raises(NotFinal) as queued:
            await hospital.add(DOCUMENT, patient=patient, category="labs")
        (record,) = queued.value.ids

        with pytest.raises(Refused, match="it is in the queue, and can be erased once it is final"):
            await hospital.erase(record)

        hospital.ledger.has_quorum = True
        await hospital.until(
            "the record", lambda: hospital.queue.state(Rid(bytes.fromhex(record))) == "final"
        )
        assert (await hospital.erase(record))["erased"]


async def test_chunks_that_another_record_names_stay(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital, clinic, _ = houses
        patient = await admit(hospital)
        record, other = await letter_of(hospital, patient), await letter_of(hospital, patient, b"another")
        await everywhere(houses, [record, other])
        placed, theirs = (hospital.holder.placed(Rid(bytes.fromhex(one))) for one in (record, other))
        assert placed is not None
        assert theirs is not None
        stored = clinic.member.envelopes.envelope_of(Rid(bytes.fromhex(record)))
        assert stored is not None
        # A list that claims a chunk of somebody else's record: erasing the one must not take the other.
        await clinic.holder.keep_envelope(
            Rid(bytes.fromhex(record)), stored, replace(placed, cids=(theirs.cids[0], *placed.cids))
        )

        answer = await hospital.erase(record)

        word = next(entry for entry in answer["attestations"] if entry["facility"] == "clinic")
        assert (word["chunks"], word["shared"]) == (len(placed.cids), 1)
        assert clinic.chunks.has(theirs.cids[0])
        assert not any(clinic.chunks.has(cid) for cid in placed.cids)


async def test_a_member_that_has_chunks_but_never_got_their_list_deletes_them(
    autojump_clock: MockClock,
) -> None:
    async with erasing_houses() as houses:
        hospital, _, laboratory = houses
        record = await letter_of(hospital, await admit(hospital))
        await everywhere(houses, [record])
        laboratory.leaves()
        forget_list(laboratory, record)
        await hospital.erase(record)
        assert list(laboratory.chunks.cids())

        laboratory.comes_back()
        await laboratory.catch_up()
        await hospital.until("every word", lambda: complete(hospital, record))

        assert not list(laboratory.chunks.cids())


def forget_list(house: ErasingFacility, record: str) -> None:
    """Leave a member as if it had been sent chunks, and then no envelope."""
    batch, rid = Batch(), Rid(bytes.fromhex(record))
    house.member.envelopes.delete_envelope(batch, rid)
    batch.delete(CHUNK_LIST + rid)
    house.member.rows.write(batch, sync=True)


async def test_an_envelope_of_an_erased_record_is_taken_by_nobody(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital, clinic, _ = houses
        record = await letter_of(hospital, await admit(hospital))
        rid = Rid(bytes.fromhex(record))
        await everywhere(houses, [record])
        placed, envelope = clinic.holder.placed(rid), clinic.member.envelopes.envelope_of(rid)
        assert placed is not None
        assert envelope is not None
        await hospital.erase(record)

        with pytest.raises(Invalid, match="the record is erased"):
            await clinic.holder.keep_envelope(rid, envelope, placed)

        assert clinic.holds(record) == set()


@pytest.mark.parametrize("step", range(7))
async def test_a_crash_at_any_step_of_the_deletion_is_made_good(autojump_clock: MockClock, step: int) -> None:
    async with erasing_houses(last_destroys=False) as houses:
        hospital, _, laboratory = houses
        record = await letter_of(hospital, await admit(hospital))
        await everywhere(houses, [record])
        laboratory.leaves()
        await hospital.erase(record)
        crashing = ErasingFacility(
            laboratory.member, laboratory.ledger, payloads=laboratory.payloads, workers=Crashing(step)
        )
        await laboratory.catch_up()
        erasure = laboratory.store.erasure(Rid(bytes.fromhex(record)))
        assert erasure is not None
        await note(crashing, erasure.rid, erasure.txid)
        with pytest.raises(Crash):
            await crashing.destruction.look()

        again = ErasingFacility(laboratory.member, laboratory.ledger, payloads=laboratory.payloads)
        again.comes_back()
        await note(again, erasure.rid, erasure.txid)
        await again.destruction.look()

        assert again.holds(record) == set()
        assert not list(again.chunks.cids())
        assert isinstance(await again.destruction.ask(erasure.rid, ()), Attestation)


async def note(house: ErasingFacility, rid: Rid, txid: Txid) -> None:
    await house.destruction._note([(rid, txid)], house.store.applied().height)
    house.destruction._hurry(rid)


class Crash(Exception):
    """The process ends here."""


class Crashing:
    """Workers that end the process before their n-th piece of work."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._left == 0:
            raise Crash
        self._left -= 1
        return function(*args)
