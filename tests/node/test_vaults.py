import pytest
import trio
import trio.testing

from node.vaults import NOT_YOURS
from protocol.errors import Forbidden, NotFinal
from protocol.hpke import x25519_public
from protocol.identifiers import ZERO
from protocol.ledger_rows import Record
from tests.node.facility_double import FacilityDouble, facilities


async def test_a_vault_is_opened_at_first_use_and_used_again(autojump_clock: trio.testing.MockClock) -> None:
    async with facilities(1) as (hospital,):
        patient = await hospital.register("1")

        first = await hospital.vaults.writable(patient, "labs")
        second = await hospital.vaults.writable(patient, "labs")
        other = await hospital.vaults.writable(patient, "general")

        assert first == second
        assert other.vid != first.vid
        vault = hospital.store.vault(first.vid)
        assert vault is not None
        assert (vault.custodian, vault.writers, vault.epoch) == (hospital.me, (hospital.me,), 0)


async def test_without_a_quorum_the_vault_waits_with_the_keys_it_will_have(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with facilities(1) as (hospital,):
        patient = await hospital.register("1")
        hospital.ledger.has_quorum = False

        handle = hospital.vaults.handle(patient, "labs")
        with pytest.raises(NotFinal):
            await hospital.vaults.writable(patient, "labs")
        hospital.ledger.has_quorum = True
        opened = await hospital.vaults.writable(patient, "labs")

        assert not handle.is_open
        assert (opened.vid, opened.category_public) == (handle.vid, handle.category_public)


async def test_a_restart_between_keys_and_ledger_opens_the_same_vault(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with facilities(1) as (hospital,):
        patient = await hospital.register("1")
        before = hospital.vaults.handle(patient, "labs")

        again = FacilityDouble(hospital.member, hospital.ledger)
        after = await again.vaults.writable(again.patients.resolve(patient.handle), "labs")

        assert after.vid == before.vid


async def test_opening_at_once_from_two_tasks_opens_once(autojump_clock: trio.testing.MockClock) -> None:
    async with facilities(1) as (hospital,):
        patient = await hospital.register("1")
        vid = hospital.vaults.handle(patient, "labs").vid

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(hospital.vaults.ensure_open, vid)

        assert len(hospital.store.events_of(vid)) == 1


async def test_the_custodian_reads_with_the_owners_key(autojump_clock: trio.testing.MockClock) -> None:
    async with facilities(1) as (hospital,):
        patient = await hospital.register("1")
        record = await hospital.add_record(patient, "labs")

        key = await hospital.vaults.key_for(record)

        vault = hospital.store.vault(record.vid)
        assert vault is not None
        assert key.gid == ZERO
        assert key.actor.public == vault.auth_pk
        assert x25519_public(key.category_secret) == vault.cat_pk


async def test_somebody_else_is_refused_in_the_same_words_whether_it_exists_or_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with facilities(3) as (hospital, clinic, _):
        patient = await hospital.register("1")
        record = await hospital.add_record(patient, "labs")
        no_such = Record(
            record.rid,
            type(record.vid)(bytes(32)),
            0,
            record.author,
            record.env_hash,
            record.height,
            1,
            record.txid,
        )

        for asked in (record, no_such):
            with pytest.raises(Forbidden) as refusal:
                await clinic.vaults.key_for(asked)
            assert str(refusal.value) == NOT_YOURS
