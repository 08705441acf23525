import pytest
import trio
import trio.testing

from node.patients import LocalPatient
from node.sealed_wallet import SealedWallet
from node.vaults import NOT_YOURS
from protocol import codec, ledger_state
from protocol.errors import Forbidden, NotFinal, Refused
from protocol.hpke import x25519_public
from protocol.identifiers import ZERO, Digest, Txid
from protocol.ledger_rows import Record
from protocol.signing import SigningKey
from protocol.transaction import KIND_TEAM, EpochRotate, Grant, Revoke, Transaction, sign
from protocol.wallet import open_wallet
from tests.node.facility_double import FacilityDouble, facilities

Clock = trio.testing.MockClock
PASSPHRASE = b"correct horse"


async def prepare(facility: FacilityDouble, patient: LocalPatient) -> tuple[str, SealedWallet]:
    prepared = await facility.desk.prepare_handover(patient.handle, passphrase=PASSPHRASE)
    wallet = prepared["wallet"]
    assert isinstance(wallet, bytes)
    return str(prepared["handover"]), SealedWallet(wallet, PASSPHRASE)


async def hand_over(facility: FacilityDouble, patient: LocalPatient, *, grant: bool = True) -> SealedWallet:
    handover, wallet = await prepare(facility, patient)
    await facility.desk.complete_handover(handover, grant=grant)
    return wallet


async def opens(facility: FacilityDouble, record: Record) -> bool:
    try:
        key = await facility.vaults.key_for(record)
    except Forbidden as refusal:
        if str(refusal) != NOT_YOURS:
            raise
        return False
    return x25519_public(key.category_secret) == facility.epochs.row(record.vid, record.epoch).cat_pk


async def test_the_patient_holds_every_vault_afterwards(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        records = [await hospital.add_record(patient, category) for category in ("labs", "general")]
        before = [hospital.store.vault(record.vid) for record in records]

        sealed = await hand_over(hospital, patient)

        wallet = open_wallet(sealed.data, PASSPHRASE.decode())
        for record, former in zip(records, before, strict=True):
            vault = hospital.store.vault(record.vid)
            assert vault is not None
            assert former is not None
            assert vault.custodian == ZERO
            assert vault.auth_pk == SigningKey(wallet.keys.auth_seed(record.vid, 0)).public
            assert vault.cat_pk == x25519_public(wallet.keys.category_secret(record.vid, vault.epoch))
            assert not {vault.auth_pk, vault.rec_pk, vault.audit_pk, vault.cat_pk} & {
                former.auth_pk, former.rec_pk, former.audit_pk, former.cat_pk,
            }  # fmt: skip


async def test_the_facility_can_no_longer_sign_for_the_patient(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        patient = await hospital.register("1")
        record = await hospital.add_record(patient, "labs")
        answer = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
        gid = Txid(bytes.fromhex(answer["grants"][0]["grant"]))  # type: ignore[index]
        row = hospital.patients.row(patient.handle)
        assert row is not None
        assert row.keys is not None
        old = row.keys  # as a facility that cheats and keeps a copy would have them
        await hand_over(hospital, patient)

        vault = hospital.store.vault(record.vid)
        assert vault is not None
        until, now = hospital.submitter.valid_until(), hospital.clock.now_ms()
        some = Digest(record.env_hash)
        attempts: list[Transaction] = [
            Grant(record.vid, clinic.member.member.team, clinic.me, KIND_TEAM, "R", ("TREAT",), now, now + 1_000_000, 0,
                  now * 2, 0, vault.epoch, some, some, until),
            Revoke(record.vid, gid, until),
            EpochRotate(record.vid, vault.epoch + 1, vault.cat_pk, some, some, until),
        ]  # fmt: skip
        for key in (SigningKey(old.auth_seed(record.vid, 0)), SigningKey(old.recovery_seed(record.vid))):
            for transaction in attempts:
                raw = codec.encode(sign(transaction, hospital.ledger.network, key))
                block = await hospital.ledger.order((raw,))
                (outcome,) = ledger_state.apply(hospital.store.state, hospital.ledger.genesis, block).outcomes
                assert outcome.receipt.verdict.startswith("refused: signed by the wrong key")
        assert hospital.store.vault(record.vid) == vault
        with pytest.raises(Forbidden, match="patient's signature"):
            await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])


async def test_no_key_of_the_patient_is_left_at_the_facility(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        await hospital.add_record(patient, "labs")
        row = hospital.patients.row(patient.handle)
        assert row is not None
        sealed = await hand_over(hospital, patient)
        wallet = open_wallet(sealed.data, PASSPHRASE.decode())

        left = b"".join(hospital.keystore.get(name) or b"" for name in hospital.keystore.names())

        for secret in (row.root, row.recovery_root, wallet.root, wallet.recovery_root):
            assert secret not in left
        assert not list(hospital.keystore.names("handover/"))


async def test_the_grant_back_reads_old_and_new_records_and_lists_one_patient(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        before = await hospital.add_record(patient, "labs")

        await hand_over(hospital, patient)

        await hospital.until("held", lambda: len(list(hospital.held)) == 1)
        (listed,) = hospital.patients.all()
        assert (listed.handle, listed.custody, listed.categories) == (patient.handle, "patient", ("labs",))
        after = await hospital.add_record(listed, "labs")
        assert await opens(hospital, before)
        assert await opens(hospital, after)


async def test_without_a_grant_back_the_facility_reads_nothing_more(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        record = await hospital.add_record(patient, "labs")

        await hand_over(hospital, patient, grant=False)

        await trio.sleep(5)
        assert not list(hospital.held)
        assert not await opens(hospital, record)


async def test_other_grantees_go_on_reading(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        patient = await hospital.register("1")
        before = await hospital.add_record(patient, "labs")
        await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
        await clinic.until("held", lambda: bool(list(clinic.held)))
        (known,) = clinic.patients.all()

        await hand_over(hospital, patient)

        after = await hospital.add_record(hospital.patients.all()[0], "labs")
        await clinic.until("the new key came", lambda: next(iter(clinic.held)).epoch == 1)
        assert await opens(clinic, before)
        assert await opens(clinic, after)
        assert [listed.handle for listed in clinic.patients.all()] == [known.handle]


async def test_the_wallet_grants_and_revokes_at_any_facility(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, laboratory):
        patient = await hospital.register("1")
        record = await hospital.add_record(patient, "labs")
        wallet = await hand_over(hospital, patient)

        answer = await clinic.consent.grant("anything", to="laboratory", categories=["all"], wallet=wallet)
        await laboratory.until("held", lambda: bool(list(laboratory.held)))
        assert await opens(laboratory, record)
        await clinic.consent.revoke(str(answer["grant"]), wallet=wallet)

        await laboratory.until("forgotten", lambda: not list(laboratory.held))
        listed = await hospital.consent.list(patient.handle, wallet=wallet)
        states = {entry["facility"]: entry["state"] for entry in listed["grants"]}  # type: ignore[attr-defined]
        assert states == {"hospital": "live", "laboratory": "revoked"}


async def test_a_wrong_passphrase_and_another_patients_wallet_are_refused(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        one, other = await hospital.register("1"), await hospital.register("2")
        await hospital.add_record(one, "labs")
        await hospital.add_record(other, "labs")
        wallet = await hand_over(hospital, one)

        with pytest.raises(Refused, match="wrong passphrase"):
            await hospital.consent.list(one.handle, wallet=SealedWallet(wallet.data, b"wrong"))
        with pytest.raises(Refused, match="not that patient's"):
            await hospital.consent.list(other.handle, wallet=wallet)


async def test_before_completion_nothing_has_changed_and_the_same_wallet_comes_again(
    autojump_clock: Clock,
) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        record = await hospital.add_record(patient, "labs")
        height = hospital.store.applied().height

        first = await prepare(hospital, patient)
        again = FacilityDouble(hospital.member, hospital.ledger)
        second = await prepare(again, again.patients.resolve(patient.handle))

        assert second[0] == first[0]
        assert second[1].data == first[1].data
        assert hospital.store.applied().height == height
        assert await opens(hospital, record)


async def test_an_outdated_wallet_is_refused_before_anything_changes(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        await hospital.add_record(patient, "labs")
        handover, _ = await prepare(hospital, patient)
        record = await hospital.add_record(patient, "general")

        with pytest.raises(Refused, match="changed"):
            await hospital.desk.complete_handover(handover, grant=True)

        vault = hospital.store.vault(record.vid)
        assert vault is not None
        assert vault.custodian == hospital.me
        await hand_over(hospital, patient)


async def test_a_handover_without_a_quorum_is_completed_by_itself_even_after_a_crash(
    autojump_clock: Clock,
) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        record = await hospital.add_record(patient, "labs")
        handover, wallet = await prepare(hospital, patient)
        hospital.ledger.has_quorum = False
        with pytest.raises(NotFinal):
            await hospital.desk.complete_handover(handover, grant=True)

        again = FacilityDouble(hospital.member, hospital.ledger)
        assert (await prepare(again, again.patients.resolve(patient.handle)))[1].data == wallet.data
        hospital.ledger.has_quorum = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again.run)
            await again.until("handed over", lambda: again.patients.all()[0].custody == "patient")
            nursery.cancel_scope.cancel()

        vault = again.store.vault(record.vid)
        assert vault is not None
        assert vault.custodian == ZERO


async def test_completing_twice_is_one_handover(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        await hospital.add_record(patient, "labs")
        handover, _ = await prepare(hospital, patient)
        await hospital.desk.complete_handover(handover, grant=False)
        height = hospital.store.applied().height

        await hospital.desk.complete_handover(handover, grant=False)

        again = await hospital.desk.prepare_handover(patient.handle, passphrase=b"another")
        assert hospital.store.applied().height == height
        assert (again["handover"], again["wallet"]) == (handover, b"")
