"""A key store of the day of the backup meets the ledger of today: found vaults, and custody that stays given up."""

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
import trio
import trio.testing

from node.lost_vaults import LostVaults, mark_restored
from node.opening import Opening
from protocol.hpke import x25519_public
from protocol.identifiers import ZERO, Digest, NodeId, Txid, Vid
from protocol.patient_keys import PatientKeys
from protocol.signing import SigningKey
from protocol.transaction import CustodyTransfer, EpochRotate, Revoke, Transaction, VaultOpen, sign
from storage.key_value import Batch
from storage.keyspace import REBUILT, RESTORED, ROTATION_DUE, SEQUENCE_END
from storage.keystore import Keystore
from storage.memory import MemoryStore
from tests.node.ledger_double import LedgerDouble, running
from tests.node.record_house import Facility, entries, houses

Clock = trio.testing.MockClock
Rows = Mapping[bytes, bytes]
PDF = b"%PDF-1.4 " + random.Random(1).randbytes(3_000)


@asynccontextmanager
async def network() -> AsyncIterator[tuple[Facility, Facility]]:
    async with houses(3) as (hospital, clinic, _):
        yield hospital, clinic


def keys_of(facility: Facility) -> Rows:
    """Return the key store as a backup would copy it now."""
    return dict(facility.member.secrets.scan(b"", SEQUENCE_END))


def restored(facility: Facility, backup: Rows, *, is_behind: bool = False) -> Facility:
    """Return the facility as it is after a restore: old keys, and (caught up already) the ledger of today."""
    member, batch = facility.member, Batch()
    member.secrets = MemoryStore()
    for key, value in backup.items():
        batch.put(key, value)
    member.secrets.write(batch, sync=True)
    member.keystore = Keystore.unlock(member.secrets, "x", member.entropy.bytes)
    batch = Batch()
    mark_restored(batch, facility.clock.now_ms() + 3_600_000)
    if is_behind:
        batch.put(REBUILT, b"")
    member.rows.write(batch, sync=True)
    return Facility(member, facility.ledger, payloads=facility.payloads)


def search(facility: Facility) -> LostVaults:
    member = facility.member
    opening = Opening(facility.ledger.network, facility.ledger.genesis, facility.retrieval, member.workers)
    return LostVaults(
        me=facility.me, rows=member.rows, disk=member.disk, store=facility.store, patients=facility.patients,
        keystore=member.keystore, opening=opening, workers=member.workers, clock=facility.clock, log=member.log,
    )  # fmt: skip


def roots_of(facility: Facility, patient: str) -> PatientKeys | None:
    row = facility.patients.row(patient)
    assert row is not None
    return row.keys


def vaults_of(facility: Facility, patient: str) -> dict[str, Vid]:
    row = facility.patients.row(patient)
    assert row is not None
    return {vault.category: Vid(vault.vid) for vault in row.vaults}


async def test_a_vault_that_was_opened_after_the_backup_is_found_and_read(autojump_clock: Clock) -> None:
    async with network() as (hospital, _):
        patient = await hospital.admit()
        await hospital.add(PDF, patient=patient, category="labs")
        backup = keys_of(hospital)
        (entry,) = entries(await hospital.add(PDF + b"1", patient=patient, category="imaging"))
        before = vaults_of(hospital, patient)

        after = restored(hospital, backup)
        assert set(vaults_of(after, patient)) == {"labs"}
        await search(after).run()

        assert vaults_of(after, patient) == before
        assert (await after.get(entry["record"]))[1] == PDF + b"1"
        assert after.member.rows.get(RESTORED) is None


async def test_what_was_found_is_durable(autojump_clock: Clock) -> None:
    async with network() as (hospital, _):
        patient = await hospital.admit()
        backup = keys_of(hospital)
        await hospital.add(PDF, patient=patient, category="imaging")
        before = vaults_of(hospital, patient)
        after = restored(hospital, backup)
        await search(after).run()

        again = Facility(after.member, after.ledger, payloads=after.payloads)

        assert vaults_of(again, patient) == before


async def test_a_patient_registered_after_the_backup_is_told_about(autojump_clock: Clock) -> None:
    async with network() as (hospital, _):
        known = await hospital.admit("1")
        await hospital.add(PDF, patient=known, category="labs")
        backup = keys_of(hospital)
        late = await hospital.admit("2", name="Bea")
        await hospital.add(PDF + b"1", patient=late, category="labs")

        after = restored(hospital, backup)
        await search(after).run()

        told = [values["count"] for kind, _, values in after.member.log.events if kind == "error"]
        assert told == [1]
        assert set(vaults_of(after, known)) == {"labs"}


async def test_it_waits_until_the_voter_has_caught_up_and_for_records_that_are_away(
    autojump_clock: Clock,
) -> None:
    async with network() as (hospital, clinic):
        patient = await hospital.admit()
        backup = keys_of(hospital)
        await hospital.add(PDF, patient=patient, category="labs")
        hospital.payloads = MemoryStore()  # chunks are with other members only
        after = restored(hospital, backup, is_behind=True)
        for transport in after.ledger.transports.values():
            transport.is_up = transport.me == after.me

        async with trio.open_nursery() as nursery:
            nursery.start_soon(search(after).run)
            await trio.sleep(30)
            found = [vaults_of(after, patient)]
            batch = Batch()
            batch.delete(REBUILT)
            after.member.rows.write(batch, sync=True)
            await trio.sleep(30)
            found.append(vaults_of(after, patient))
            for transport in after.ledger.transports.values():
                transport.is_up = True
            await trio.sleep(30)

        assert found == [{}, {}]
        assert set(vaults_of(after, patient)) == {"labs"}
        assert clinic.chunks.statistics().chunks > 0


async def test_custody_that_was_handed_over_is_given_up_again(autojump_clock: Clock) -> None:
    async with network() as (hospital, _):
        patient = await hospital.admit()
        await hospital.add(PDF, patient=patient, category="labs")
        prepared = await hospital.desk.prepare_handover(patient, passphrase=b"wallet")
        backup = keys_of(hospital)  # holds the patient's new roots as well
        await hospital.desk.complete_handover(str(prepared["handover"]), grant=False)

        after = restored(hospital, backup)
        assert roots_of(after, patient) is not None
        await search(after).run()

        handed_over = hospital.patients.row(patient)
        assert handed_over is not None
        assert roots_of(after, patient) is None
        assert after.patients.row(patient) == replace(handed_over, handover="restored")
        assert after.patients.resolve(patient).custody == "patient"
        assert list(after.member.keystore.names("handover/")) == []


async def test_roots_stay_while_one_vault_still_needs_them(autojump_clock: Clock) -> None:
    async with network() as (hospital, _):
        patient = await hospital.admit()
        for category in ("labs", "imaging"):
            await hospital.add(PDF + category.encode(), patient=patient, category=category)
        backup = keys_of(hospital)
        keys, vid = roots_of(hospital, patient), vaults_of(hospital, patient)["labs"]
        assert keys is not None
        new = SigningKey(bytes(range(32)))
        transfer = CustodyTransfer(
            vid,
            NodeId(ZERO),
            new.public,
            new.public,
            x25519_public(bytes(32)),
            hospital.submitter.valid_until(),
        )
        signed = sign(transfer, hospital.ledger.network, SigningKey(keys.auth_seed(vid, 0)), new)
        assert (await hospital.submitter.submit(signed)).is_accepted

        after = restored(hospital, backup)
        await search(after).run()

        assert roots_of(after, patient) == keys


async def test_roots_stay_when_somebody_else_took_the_id_of_a_vault(autojump_clock: Clock) -> None:
    async with network() as (hospital, clinic):
        patient = await hospital.admit()
        vid = hospital.vaults.handle(hospital.patients.resolve(patient), "labs").vid
        backup = keys_of(hospital)
        auth, node = SigningKey(bytes(range(32))), SigningKey(clinic.member.identity.node)
        taken = VaultOpen(
            vid, auth.public, auth.public, x25519_public(bytes(32)), x25519_public(bytes(32)), 0, clinic.me,
            (clinic.me,), 3, hospital.submitter.valid_until(),
        )  # fmt: skip
        signed = sign(taken, hospital.ledger.network, auth, node)
        assert (await clinic.submitter.submit(signed)).is_accepted
        keys = roots_of(hospital, patient)

        after = restored(hospital, backup)
        await search(after).run()

        assert roots_of(after, patient) == keys is not None


@pytest.mark.parametrize("is_rotated", [False, True])
async def test_a_grant_that_ended_in_a_found_vault_asks_for_a_new_epoch_unless_there_is_one(
    autojump_clock: Clock, is_rotated: bool
) -> None:
    # Nobody watches for ended grants here, as if the machine had been lost right after the revocation.
    async with running(LedgerDouble(3)) as ledger, trio.open_nursery() as nursery:
        hospital, *_ = [Facility(member, ledger) for member in ledger.members]
        nursery.start_soon(hospital.queue.run)
        patient = await hospital.admit()
        backup = keys_of(hospital)
        await hospital.add(PDF, patient=patient, category="labs")
        keys, vid = roots_of(hospital, patient), vaults_of(hospital, patient)["labs"]
        assert keys is not None
        auth, until = SigningKey(keys.auth_seed(vid, 0)), hospital.submitter.valid_until()
        granted = await hospital.consent.grant(patient, to="clinic", categories=["labs"])
        (gid,) = [Txid(bytes.fromhex(entry["grant"])) for entry in cast("Any", granted["grants"])]
        changes: list[Transaction] = [Revoke(vid, gid, until)]
        if is_rotated:
            category = x25519_public(keys.category_secret(vid, 1))
            changes.append(EpochRotate(vid, 1, category, Digest(ZERO), Digest(ZERO), until))
        for change in changes:
            await trio.sleep(1)  # a block of its own, with a later time
            assert (await hospital.submitter.submit(sign(change, ledger.network, auth))).is_accepted

        after = restored(hospital, backup)
        await search(after).run()
        nursery.cancel_scope.cancel()

    assert set(vaults_of(after, patient)) == {"labs"}
    assert (after.member.rows.get(ROTATION_DUE + vid) is None) == is_rotated


async def test_a_vault_without_a_record_is_given_up(autojump_clock: Clock) -> None:
    async with network() as (hospital, _):
        patient = await hospital.admit()
        backup = keys_of(hospital)
        await hospital.vaults.writable(hospital.patients.resolve(patient), "labs")

        after = restored(hospital, backup)
        await search(after).run()
        (entry,) = entries(await after_queue(after, patient))

        assert set(vaults_of(after, patient)) == {"labs"}
        assert (await after.get(entry["record"]))[1] == PDF


async def after_queue(facility: Facility, patient: str) -> dict[str, object]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(facility.queue.run)
        answer = await facility.add(PDF, patient=patient, category="labs")
        nursery.cancel_scope.cancel()
    return answer


async def test_a_home_that_was_not_restored_looks_for_nothing(autojump_clock: Clock) -> None:
    async with network() as (hospital, _):
        patient = await hospital.admit()
        await hospital.add(PDF, patient=patient, category="labs")
        before = keys_of(hospital)

        await search(hospital).run()

        assert keys_of(hospital) == before
