import pytest
import trio
import trio.testing

from node.rotation import EpochWraps
from protocol import codec
from protocol.errors import Forbidden, Unavailable
from protocol.identifiers import Digest, Txid
from protocol.ledger_rows import Vault
from protocol.patient_keys import open_epoch_link
from protocol.transaction import Revoke, sign
from tests.node.facility_double import FacilityDouble, facilities

Clock = trio.testing.MockClock


async def vault_of(facility: FacilityDouble) -> Vault:
    patient = await facility.register("1")
    handle = await facility.vaults.writable(patient, "labs")
    vault = facility.store.vault(handle.vid)
    assert vault is not None
    return vault


async def test_the_link_leads_from_the_new_key_to_the_old_one(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        vault = await vault_of(hospital)
        authority = hospital.authorities.of_vault(vault.vid)
        assert authority is not None
        wallet_vault = authority.vault(vault.vid)
        assert wallet_vault is not None

        receipt = await hospital.rotation.rotate(authority, wallet_vault, after_ms=vault.epoch_since_ms)

        assert receipt is not None
        await hospital.until("indexed", lambda: hospital.watcher.seen.value >= receipt.height)
        row = hospital.epochs.row(vault.vid, 1)
        link = await hospital.attachments.get(Digest(row.link_hash))
        newer = authority.keys.category_secret(vault.vid, 1)
        assert open_epoch_link(vault.vid, 0, link, newer=newer) == authority.keys.category_secret(
            vault.vid, 0
        )


async def test_wraps_are_made_for_the_remaining_grants_only(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        vault = await vault_of(hospital)
        patient = hospital.patients.all()[0].handle
        kept = await hospital.consent.grant(patient, to="clinic", categories=["labs"])
        ended = await hospital.consent.grant(patient, to="laboratory", categories=["labs"])

        await hospital.consent.revoke(str(ended["grant"]))

        await hospital.until(
            "indexed", lambda: hospital.watcher.seen.value >= hospital.store.applied().height
        )
        listing = await hospital.attachments.get(Digest(hospital.epochs.row(vault.vid, 1).wraps_hash))
        named = [wrap.gid.hex() for wrap in codec.decode(listing, EpochWraps).wraps]
        assert named == [entry["grant"] for entry in kept["grants"]]  # type: ignore[attr-defined]


async def test_two_that_want_the_same_rotation_get_one(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        vault = await vault_of(hospital)
        authority = hospital.authorities.of_vault(vault.vid)
        assert authority is not None
        wallet_vault = authority.vault(vault.vid)
        assert wallet_vault is not None

        async def rotate() -> None:
            await hospital.rotation.rotate(authority, wallet_vault, after_ms=vault.epoch_since_ms)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(rotate)

        after = hospital.store.vault(vault.vid)
        assert after is not None
        assert after.epoch == 1


async def test_a_revoke_by_transaction_alone_makes_the_custodian_rotate(autojump_clock: Clock) -> None:
    """As after a crash between Revoke and EpochRotate: the rotation follows from the ledger."""
    async with facilities() as (hospital, _, _):
        vault = await vault_of(hospital)
        patient = hospital.patients.all()[0].handle
        answer = await hospital.consent.grant(patient, to="clinic", categories=["labs"])
        authority = hospital.authorities.of_vault(vault.vid)
        assert authority is not None
        wallet_vault = authority.vault(vault.vid)
        assert wallet_vault is not None
        gid = Txid(bytes.fromhex(answer["grants"][0]["grant"]))  # type: ignore[index]

        revoke = Revoke(vault.vid, gid, hospital.submitter.valid_until())
        await hospital.submitter.submit(
            sign(revoke, hospital.ledger.network, authority.auth_key(wallet_vault))
        )

        def has_new_epoch() -> bool:
            latest = hospital.store.vault(vault.vid)
            return latest is not None and latest.epoch == 1

        await hospital.until("rotated", has_new_epoch)


async def test_without_members_to_store_the_wraps_nothing_is_submitted(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, laboratory):
        vault = await vault_of(hospital)
        authority = hospital.authorities.of_vault(vault.vid)
        assert authority is not None
        wallet_vault = authority.vault(vault.vid)
        assert wallet_vault is not None
        clinic.member.transport.is_up = laboratory.member.transport.is_up = False

        with pytest.raises(Unavailable):
            await hospital.rotation.rotate(authority, wallet_vault, after_ms=vault.epoch_since_ms)

        assert hospital.store.vault(vault.vid) == vault


async def test_keys_that_no_longer_sign_are_refused(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        vault = await vault_of(hospital)
        other = await hospital.register("2")
        authority = hospital.authorities.custody(other)
        mine = hospital.authorities.of_vault(vault.vid)
        assert mine is not None
        wallet_vault = mine.vault(vault.vid)
        assert wallet_vault is not None

        with pytest.raises(Forbidden):
            await hospital.rotation.rotate(authority, wallet_vault, after_ms=vault.epoch_since_ms)
