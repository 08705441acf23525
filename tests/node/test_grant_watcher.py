import pytest
import trio
import trio.testing

from node.applier import Certified
from node.patients import LocalPatient
from node.vaults import NOT_YOURS
from protocol.errors import Forbidden
from protocol.hpke import x25519_public
from protocol.identifiers import Digest, Height, Txid
from protocol.ledger_rows import Record
from tests.node.facility_double import FacilityDouble, facilities

Clock = trio.testing.MockClock


async def granted(
    hospital: FacilityDouble,
    grantee: FacilityDouble,
    patient: LocalPatient,
    *categories: str,
    expires_ms: int = 86_400_000,
) -> str:
    answer = await hospital.consent.grant(
        patient.handle, to=grantee.member.name, categories=categories, expires_ms=expires_ms
    )
    wanted = {Txid(bytes.fromhex(entry["grant"])) for entry in answer["grants"]}  # type: ignore[attr-defined]
    await grantee.until("held", lambda: wanted <= {Txid(grant.gid) for grant in grantee.held})
    return str(answer["grant"])


async def opens(facility: FacilityDouble, record: Record) -> bool:
    """Whether the facility has a key, and the key is the right one."""
    try:
        key = await facility.vaults.key_for(record)
    except Forbidden as refusal:
        if str(refusal) != NOT_YOURS:
            raise
        return False
    row = facility.epochs.row(record.vid, record.epoch)
    return x25519_public(key.category_secret) == row.cat_pk


async def test_a_grant_lists_the_patient_and_opens_records(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, laboratory):
        patient = await hospital.register("1")
        record = await hospital.add_record(patient, "labs")

        await granted(hospital, clinic, patient, "labs")

        (listed,) = clinic.patients.all()
        assert (listed.custody, listed.person.name, listed.categories) == ("granted", "Ada Sample", ("labs",))
        assert listed.granted_by == (hospital.me,)
        assert listed.handle != patient.handle
        assert await opens(clinic, record)
        assert not await opens(laboratory, record)


async def test_only_the_category_granted_is_opened(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        patient = await hospital.register("1")
        labs = await hospital.add_record(patient, "labs")
        others = [
            await hospital.add_record(patient, name) for name in ("mental-health", "mixed", "emergency")
        ]

        await granted(hospital, clinic, patient, "labs")

        assert await opens(clinic, labs)
        assert not any([await opens(clinic, other) for other in others])


async def test_vaults_of_one_patient_share_a_handle_and_patients_do_not(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        one, other = await hospital.register("1"), await hospital.register("2", "Bo Sample")

        await granted(hospital, clinic, one, "labs")
        await granted(hospital, clinic, one, "imaging")
        await granted(hospital, clinic, other, "labs")

        shown = {patient.person.name: patient.categories for patient in clinic.patients.all()}
        assert shown == {"Ada Sample": ("imaging", "labs"), "Bo Sample": ("labs",)}


async def test_two_facilities_get_different_handles(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, laboratory):
        patient = await hospital.register("1")

        await granted(hospital, clinic, patient, "labs")
        await granted(hospital, laboratory, patient, "labs")

        assert clinic.patients.all()[0].handle != laboratory.patients.all()[0].handle


async def test_a_revoked_grant_is_forgotten_with_its_key_and_its_wrap(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        patient = await hospital.register("1")
        record = await hospital.add_record(patient, "labs")
        bundle = await granted(hospital, clinic, patient, "labs")
        gid = Txid(next(iter(clinic.held)).gid)
        state = clinic.store.grant(gid)
        assert state is not None

        await hospital.consent.revoke(bundle)

        await clinic.until("forgotten", lambda: not list(clinic.held))
        assert not list(clinic.keystore.names("grant/"))
        assert clinic.patients.all() == ()
        assert not await opens(clinic, record)
        await clinic.until(
            "the wrap is gone everywhere",
            lambda: all(m.envelopes.attachment(state.grant.wrap_hash) is None for m in clinic.ledger.members),
        )


async def test_an_expired_grant_is_forgotten_and_the_epoch_changes(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        patient = await hospital.register("1")
        record = await hospital.add_record(patient, "labs")
        await granted(hospital, clinic, patient, "labs", expires_ms=60_000)

        hospital.clock.advance_ms(61_000)

        assert not await opens(clinic, record)
        await clinic.until("forgotten", lambda: not list(clinic.held))

        def has_new_epoch() -> bool:
            vault = hospital.store.vault(record.vid)
            return vault is not None and vault.epoch == 1

        await hospital.until("the custodian changed the key", has_new_epoch)


async def test_who_remains_reads_old_and_new_records_after_a_rotation(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, laboratory):
        patient = await hospital.register("1")
        before = await hospital.add_record(patient, "labs")
        await granted(hospital, clinic, patient, "labs")
        bundle = await granted(hospital, laboratory, patient, "labs")

        await hospital.consent.revoke(bundle)
        after = await hospital.add_record(patient, "labs")

        await clinic.until("the new key came", lambda: next(iter(clinic.held)).epoch == 1)
        assert (before.epoch, after.epoch) == (0, 1)
        assert await opens(clinic, before)
        assert await opens(clinic, after)
        assert await opens(hospital, before)
        assert await opens(hospital, after)
        assert not await opens(laboratory, after)


async def test_who_is_granted_later_reads_records_of_earlier_epochs(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, laboratory):
        patient = await hospital.register("1")
        first = await hospital.add_record(patient, "labs")
        for _ in range(3):
            await hospital.consent.revoke(await granted(hospital, laboratory, patient, "labs"))

        await granted(hospital, clinic, patient, "labs")

        vault = clinic.store.vault(first.vid)
        assert vault is not None
        assert (first.epoch, vault.epoch) == (0, 3)
        assert await opens(clinic, first)


async def test_a_daemon_that_was_away_opens_grants_and_forgets_revoked_ones(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        patient = await hospital.register("1")
        labs = await hospital.add_record(patient, "labs")
        general = await hospital.add_record(patient, "general")
        bundle = await granted(hospital, clinic, patient, "labs")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hospital.ledger.run)
        nursery.start_soon(hospital.submitter.run)
        nursery.start_soon(hospital.run)
        await hospital.consent.revoke(bundle)
        await hospital.consent.grant(patient.handle, to="clinic", categories=["general"])
        assert [grant.category for grant in clinic.held] == ["labs"]

        back = FacilityDouble(clinic.member, clinic.ledger)
        nursery.start_soon(back.run)
        await back.until("caught up", lambda: [grant.category for grant in back.held] == ["general"])
        assert await opens(back, general)
        assert not await opens(back, labs)
        nursery.cancel_scope.cancel()


async def test_an_epoch_that_begins_while_a_grant_is_opened_is_opened_too(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block of the rotation found no held grant, and the request that was being worked off did not know of it."""
    async with facilities() as (hospital, clinic, laboratory):
        patient = await hospital.register("1")
        await hospital.add_record(patient, "labs")
        bundle = await granted(hospital, laboratory, patient, "labs")
        fetch, begun, may_go_on = clinic.attachments.get, trio.Event(), trio.Event()

        async def slow(digest: Digest) -> bytes:
            begun.set()
            await may_go_on.wait()
            return await fetch(digest)

        monkeypatch.setattr(clinic.attachments, "get", slow)
        await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
        await begun.wait()
        await hospital.consent.revoke(bundle)
        height = hospital.store.applied().height
        await clinic.until("the rotation to be seen", lambda: clinic.watcher.seen.value >= height)
        assert not list(clinic.held)
        may_go_on.set()

        await clinic.until("the new key", lambda: [grant.epoch for grant in clinic.held] == [1])


async def test_a_wrap_that_nobody_has_yet_is_opened_once_it_comes(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, laboratory):
        patient = await hospital.register("1")
        clinic.member.transport.is_up = False
        answer = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
        height = clinic.store.applied().height
        hospital.member.transport.is_up = laboratory.member.transport.is_up = False
        clinic.member.transport.is_up = True
        for block in hospital.store.blocks(Height(height + 1), hospital.store.applied().height):
            certificate = hospital.store.certificate_at_or_above(block.height)
            assert certificate is not None
            await clinic.member.applier.apply(Certified((block,), certificate, is_stored=False))
        await trio.sleep(5)
        assert not list(clinic.held)

        hospital.member.transport.is_up = True

        await clinic.until("held", lambda: len(list(clinic.held)) == 1)
        assert answer["grants"]


@pytest.mark.parametrize("right", [False, True])
async def test_only_a_grant_with_write_lets_others_add(autojump_clock: Clock, right: bool) -> None:
    async with facilities() as (hospital, clinic, _):
        patient = await hospital.register("1")
        answer = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"], write=right)
        await clinic.until("held", lambda: bool(list(clinic.held)))
        (listed,) = clinic.patients.all()

        if right:
            record = await clinic.add_record(listed, "labs")
            assert record.author == clinic.me
            assert await opens(hospital, record)
        else:
            with pytest.raises(Forbidden):
                await clinic.vaults.writable(listed, "labs")
        assert answer["grants"]
