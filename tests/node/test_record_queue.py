import os

import pytest
import trio

from node.queued_record import QueuedRecord
from node.standing import Standing
from protocol import limits
from protocol.errors import NotFinal, StorageFull
from protocol.hpke import x25519_public
from protocol.identifiers import ZERO, Digest, Height, Rid, Vid
from protocol.signing import SigningKey
from protocol.transaction import EpochRotate, VaultOpen, sign
from storage.key_value import Batch
from tests.node.ledger_double import LedgerDouble, running
from tests.node.record_house import Facility, houses


async def queue_without_quorum(facility: Facility, data: bytes, patient: str) -> str:
    facility.ledger.has_quorum = False
    with pytest.raises(NotFinal) as answer:
        await facility.add(data, patient=patient)
    facility.ledger.has_quorum = True
    return answer.value.ids[0]


async def rotate(facility: Facility, vid: Vid, handle: str) -> None:
    row = facility.patients.row(handle)
    assert row is not None
    assert row.keys is not None
    public = x25519_public(row.keys.category_secret(vid, 1))
    rotation = EpochRotate(
        vid, 1, public, Digest(ZERO), Digest(ZERO), facility.member.submitter.valid_until()
    )
    auth = SigningKey(row.keys.auth_seed(vid, 0))
    assert (await facility.member.submitter.submit(sign(rotation, facility.ledger.network, auth))).is_accepted


async def test_a_record_queued_before_a_crash_becomes_final_after_it(autojump_clock):
    async with running(LedgerDouble(1)) as ledger:
        first = Facility(ledger.members[0], ledger)
        patient = await first.admit()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.queue.run)
            rid = Rid(bytes.fromhex(await queue_without_quorum(first, b"%PDF-1.4", patient)))
            nursery.cancel_scope.cancel()  # what is in memory is lost here

        second = Facility(ledger.members[0], ledger, payloads=first.payloads)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.queue.run)
            became_final = await second.queue.wait([rid], 30_000)
            nursery.cancel_scope.cancel()

        assert became_final
        assert second.queue.state(rid) == "final"
        assert (await second.get(rid.hex()))[1] == b"%PDF-1.4"


async def test_a_crash_between_commit_and_forgetting_adds_nothing_twice(autojump_clock):
    async with houses() as (hospital,):
        patient = await hospital.admit()
        (entry,) = (await hospital.add(b"%PDF-1.4", patient=patient))["records"]
        height = hospital.member.store.applied().height
        rid = Rid(bytes.fromhex(entry["record"]))
        placed = hospital.holder.placed(rid)
        assert placed is not None
        note = hospital.index.note(rid)
        assert note is not None

        # The row is there again, as if the crash had come before it was deleted.
        await hospital.queue.add([QueuedRecord(rid, note.vid, 0, bytes(32), b"", placed.cids)], Batch())
        await hospital.queue.wait([rid], 10_000)

        assert hospital.queue.length == 0
        assert hospital.member.store.applied().height == height


async def test_a_record_that_waited_over_a_rotation_is_sealed_to_the_present_epoch(autojump_clock):
    async with running(LedgerDouble(1)) as ledger:
        first = Facility(ledger.members[0], ledger)
        patient = await first.admit()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.queue.run)
            await first.add(b"%PDF-1.4 one", patient=patient)
            rid = Rid(bytes.fromhex(await queue_without_quorum(first, b"%PDF-1.4 two", patient)))
            nursery.cancel_scope.cancel()
        vid = first.vaults.handle(first.patients.resolve(patient), "mixed").vid
        await rotate(first, vid, patient)

        second = Facility(ledger.members[0], ledger, payloads=first.payloads)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.queue.run)
            await second.queue.wait([rid], 60_000)
            nursery.cancel_scope.cancel()

        record = ledger.members[0].store.record(rid)
        assert record is not None
        assert record.epoch == 1
        assert (await second.get(rid.hex()))[1] == b"%PDF-1.4 two"


async def test_a_full_queue_refuses_before_anything_is_kept(monkeypatch, autojump_clock):
    async with houses() as (hospital,):
        patient = await hospital.admit()
        monkeypatch.setattr(limits, "QUEUE_RECORDS_MAX", 0)

        with pytest.raises(StorageFull, match="wait to become final"):
            await hospital.add(os.urandom(100), patient=patient)

        assert hospital.chunks.statistics().chunks == 0


async def test_a_record_for_a_vault_that_is_closed_to_us_is_given_up_and_says_why(autojump_clock):
    async with houses(2) as (hospital, clinic):
        patient = await hospital.admit()
        await hospital.add(b"%PDF-1.4", patient=patient)
        foreign = hospital.vaults.handle(hospital.patients.resolve(patient), "mixed").vid
        (entry,) = (await clinic.add(b"%PDF-1.4 two", patient=await clinic.admit("2", "Bob", "1970-01-01")))[
            "records"
        ]
        placed = clinic.holder.placed(Rid(bytes.fromhex(entry["record"])))
        assert placed is not None

        rid = Rid(os.urandom(32))
        await clinic.queue.add([QueuedRecord(rid, foreign, 0, bytes(32), b"", placed.cids)], Batch())

        assert await clinic.queue.wait([rid], 10_000)
        assert clinic.queue.state(rid) == "unknown"
        assert clinic.member.store.record(rid) is None


async def taken(hospital: Facility, vid: Vid) -> None:
    """Open a vault under somebody's id with keys of our own, as whoever orders transactions could, naming the victim a writer."""
    thief, node = SigningKey(os.urandom(32)), SigningKey(hospital.member.identity.node)
    opening = VaultOpen(
        vid, thief.public, thief.public, x25519_public(os.urandom(32)), thief.public, 0, hospital.me, (hospital.me,), 3,
        hospital.member.submitter.valid_until(),
    )  # fmt: skip
    await hospital.member.submitter.submit(sign(opening, hospital.ledger.network, thief, node))


async def test_nothing_is_sealed_to_a_vault_that_somebody_else_opened_under_our_id(autojump_clock):
    async with houses() as (hospital,):
        patient = await hospital.admit()
        stolen = hospital.vaults.handle(hospital.patients.resolve(patient), "mixed").vid
        await taken(hospital, stolen)

        (entry,) = (await hospital.add(b"%PDF-1.4", patient=patient))["records"]

        record = hospital.member.store.record(Rid(bytes.fromhex(entry["record"])))
        assert record is not None
        assert record.vid != stolen
        assert not hospital.member.store.records_of(stolen)
        assert (await hospital.get(entry["record"]))[1] == b"%PDF-1.4"


async def test_a_record_whose_vault_is_taken_while_it_is_queued_is_refused(autojump_clock):
    async with houses() as (hospital,):
        patient = await hospital.admit()
        (entry,) = (await hospital.add(b"%PDF-1.4", patient=patient))["records"]
        placed = hospital.holder.placed(Rid(bytes.fromhex(entry["record"])))
        assert placed is not None
        stolen = hospital.vaults.handle(hospital.patients.resolve(patient), "labs").vid
        await taken(hospital, stolen)
        rid = Rid(os.urandom(32))

        await hospital.queue.add([QueuedRecord(rid, stolen, 0, bytes(32), b"", placed.cids)], Batch())

        assert await hospital.queue.wait([rid], 10_000)
        assert hospital.queue.state(rid) == "unknown"
        assert not hospital.member.store.records_of(stolen)


class OrderedAtOnce(Standing):
    """What a voter knows while too few signers are there: whatever was submitted is ordered."""

    def height_of(self, raw: bytes) -> Height | None:
        return Height(9) if raw else None

    def votes_missing(self, height: Height) -> int:
        return 1


async def test_a_record_is_ordered_when_its_commit_is_and_the_answer_says_what_it_waits_for(autojump_clock):
    async with houses() as (hospital,):
        patient, member = await hospital.admit(), hospital.member
        await hospital.add(b"%PDF-1.3", patient=patient)  # the vault stands on the ledger
        hospital.ledger.has_quorum = False
        with pytest.raises(NotFinal, match="sealed and received") as answer:
            await hospital.add(b"%PDF-1.4", patient=patient)
        rid = Rid(bytes.fromhex(answer.value.ids[0]))
        assert hospital.queue.state(rid) == "received"
        node, store = member.member.node, member.store
        member.submitter.standing = OrderedAtOnce(
            node, store, lambda: member.applier.mark.height, lambda: None
        )
        assert hospital.queue.state(rid) == "ordered"
        with pytest.raises(NotFinal, match="the record is ordered and waits for 1 of 1 signers") as answer:
            await hospital.add(b"%PDF-1.5", patient=patient)
        assert "'state': 'ordered'" in str(answer.value.details)
        hospital.ledger.has_quorum = True
        assert await hospital.queue.wait([rid], 60_000)
        assert hospital.queue.state(rid) == "final"


async def test_a_record_that_too_few_members_store_says_so_and_not_that_a_quorum_is_missing(autojump_clock):
    async with houses(3) as (hospital, clinic, laboratory):
        patient = await hospital.admit()
        await hospital.add(b"%PDF-1.3", patient=patient)
        clinic.member.transport.is_up = laboratory.member.transport.is_up = False
        with pytest.raises(
            NotFinal, match="too few members store its chunks so far; it is sealed and received"
        ):
            await hospital.add(b"%PDF-1.4", patient=patient)
