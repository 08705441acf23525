"""Grants that wait while the key of their vault changes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from node import queued_grants
from node.grant_bundles import Bundle
from node.patients import LocalPatient
from node.rotation import EpochWraps
from protocol import codec
from protocol.errors import Forbidden, NotFinal, Refused
from protocol.identifiers import Digest, Txid, Vid
from protocol.ledger_rows import Receipt, Vault
from protocol.transaction import encoded
from tests.node.facility_double import FacilityDouble, facilities
from tests.node.ledger_double import LedgerDouble, running

Clock = trio.testing.MockClock


@dataclass
class Story:
    """A hospital whose patient's `labs` are granted to the clinic. Nothing is worked off unless a test does it.

    `blind` is the hospital without knowledge of what is queued later: its rotations wait for no grant.
    """

    hospital: FacilityDouble
    clinic: FacilityDouble
    laboratory: FacilityDouble
    blind: FacilityDouble
    patient: LocalPatient
    granted: str
    vid: Vid

    @property
    def vault(self) -> Vault:
        vault = self.hospital.store.vault(self.vid)
        assert vault is not None
        return vault

    async def queue(self, *, expires_ms: int = 365 * 86_400_000) -> Bundle:
        """Grant to the laboratory without a quorum; the quorum is back afterwards."""
        self.hospital.ledger.has_quorum = False
        with pytest.raises(NotFinal) as queued:
            await self.hospital.consent.grant(
                self.patient.handle, to="laboratory", categories=["labs"], expires_ms=expires_ms
            )
        self.hospital.ledger.has_quorum = True
        bundle = self.hospital.bundles.get(queued.value.ids[0])
        assert bundle is not None
        assert queued.value.ids == (bundle.id, gid_of(bundle).hex())
        return bundle

    async def change_key(self, facility: FacilityDouble) -> Receipt | None:
        authority = self.hospital.authorities.of_vault(self.vid)
        assert authority is not None
        vault = authority.vault(self.vid)
        assert vault is not None
        return await facility.rotation.rotate(authority, vault, after_ms=self.vault.epoch_since_ms)

    async def lose_wrap(self, bundle: Bundle) -> None:
        """Delete the wrap of a queued grant everywhere."""
        for facility in (self.hospital, self.clinic, self.laboratory):
            await facility.attachments.forget([bundle.items[0].grant.wrap_hash])

    def live(self, facility: FacilityDouble) -> list[Txid]:
        """Return the live grants of the vault to a facility."""
        grants = [(gid, self.hospital.store.grant(gid)) for gid in self.vault.grants]
        return [gid for gid, state in grants if state and state.grant.facility == facility.me]


def gid_of(bundle: Bundle) -> Txid:
    (item,) = bundle.items
    return Txid(item.gid)


@asynccontextmanager
async def story() -> AsyncIterator[Story]:
    ledger = LedgerDouble(3, seed="queued")
    async with running(ledger), trio.open_nursery() as nursery:
        hospital, clinic, laboratory = (FacilityDouble(member, ledger) for member in ledger.members)
        for facility in (hospital, clinic, laboratory):
            nursery.start_soon(facility.watcher.run)
        patient = await hospital.register("1")
        granted = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
        vid = hospital.bundles.with_terms(next(iter(hospital.bundles)).terms)[0].items[0].vid
        blind = FacilityDouble(hospital.member, ledger)
        yield Story(hospital, clinic, laboratory, blind, patient, str(granted["grant"]), vid)
        nursery.cancel_scope.cancel()


# --- before a rotation ------------------------------------------------------------------------------------------


async def test_a_rotation_lets_a_queued_grant_through_first(autojump_clock: Clock) -> None:
    async with story() as told:
        hospital = told.hospital
        queued = await told.queue()
        hospital.ledger.has_quorum = False
        with pytest.raises(NotFinal):
            await hospital.consent.revoke(told.granted)
        hospital.ledger.has_quorum = True

        # The revocation alone is worked off: the watcher changes the key, and nobody else sends the grant.
        await hospital.revocation.finish()
        await hospital.until("the key was changed", lambda: told.vault.epoch == 1)

        assert told.live(told.laboratory) == [gid_of(queued)]
        assert told.live(told.clinic) == []
        await told.laboratory.until(
            "the new key came", lambda: [g.epoch for g in told.laboratory.held] == [1]
        )
        listing = await hospital.attachments.get(Digest(hospital.epochs.row(told.vid, 1).wraps_hash))
        assert [wrap.gid for wrap in codec.decode(listing, EpochWraps).wraps] == [gid_of(queued)]


async def test_a_grant_that_cannot_leave_holds_a_rotation_for_a_bounded_time(autojump_clock: Clock) -> None:
    async with story() as told:
        queued = await told.queue()
        await told.lose_wrap(queued)
        started = trio.current_time()

        receipt = await told.change_key(told.hospital)

        assert receipt is not None
        assert receipt.is_accepted
        assert queued_grants.CHANCE_S <= trio.current_time() - started < queued_grants.CHANCE_S + 1
        assert told.live(told.laboratory) == []


async def test_a_rotation_with_nothing_queued_waits_for_nothing(autojump_clock: Clock) -> None:
    async with story() as told:
        started = trio.current_time()

        await told.change_key(told.hospital)

        assert told.vault.epoch == 1
        assert trio.current_time() - started < 0.5


# --- after a rotation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_refused", [False, True])
async def test_a_grant_that_was_overtaken_is_remade_in_its_bundle(
    autojump_clock: Clock, is_refused: bool
) -> None:
    async with story() as told:
        queued = await told.queue()
        await told.change_key(told.blind)
        if is_refused:
            receipt = await told.hospital.submitter.submit(queued.items[0].signed)
            assert receipt.verdict == queued_grants.STALE

        await told.hospital.queued.finish()

        remade = told.hospital.bundles.get(queued.id)
        assert remade is not None
        assert told.live(told.laboratory) == [gid_of(remade)]
        assert gid_of(remade) != gid_of(queued)
        before, after = queued.items[0].grant, remade.items[0].grant
        assert (after.epoch, after.exp, after.valid_until_ms) == (1, before.exp, before.valid_until_ms)
        await told.laboratory.until("it opens", lambda: [g.epoch for g in told.laboratory.held] == [1])
        late = await told.hospital.submitter.submit(queued.items[0].signed)
        assert late.verdict == queued_grants.STALE


async def test_a_grant_whose_wrap_was_lost_becomes_final_after_the_rotation(autojump_clock: Clock) -> None:
    async with story() as told:
        queued = await told.queue()
        await told.lose_wrap(queued)
        await told.change_key(told.hospital)

        await told.hospital.queued.finish()

        assert len(told.live(told.laboratory)) == 1


async def test_a_crash_between_remaking_and_sending_loses_and_doubles_nothing(autojump_clock: Clock) -> None:
    async with story() as told:
        queued = await told.queue()
        await told.change_key(told.blind)
        told.hospital.ledger.has_quorum = False
        await told.hospital.queued.finish()
        remade = told.hospital.bundles.get(queued.id)
        assert remade is not None
        assert gid_of(remade) != gid_of(queued)
        assert told.live(told.laboratory) == []

        back = FacilityDouble(told.hospital.member, told.hospital.ledger)
        told.hospital.ledger.has_quorum = True
        await back.queued.finish()
        await told.hospital.queued.finish()

        assert told.live(told.laboratory) == [gid_of(remade)]
        assert back.bundles.get(queued.id) == remade


async def test_a_crash_before_remaking_leaves_it_to_the_next_start(autojump_clock: Clock) -> None:
    async with story() as told:
        queued = await told.queue()
        await told.change_key(told.blind)
        await told.hospital.submitter.submit(queued.items[0].signed)

        back = FacilityDouble(told.hospital.member, told.hospital.ledger)
        await back.queued.finish()

        remade = back.bundles.get(queued.id)
        assert remade is not None
        assert told.live(told.laboratory) == [gid_of(remade)]


async def test_several_that_find_it_overtaken_at_once_make_one_grant(autojump_clock: Clock) -> None:
    async with story() as told:
        queued = await told.queue()
        await told.change_key(told.blind)
        brought: list[Bundle] = []

        async def bring() -> None:
            brought.append(await told.hospital.queued.bring(queued.id))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(bring)

        assert len(told.live(told.laboratory)) == 1
        assert brought == [told.hospital.bundles.get(queued.id)] * 3


async def test_the_same_command_again_remakes_and_reports_the_same_bundle(autojump_clock: Clock) -> None:
    async with story() as told:
        queued = await told.queue()
        await told.change_key(told.blind)
        await told.hospital.submitter.submit(queued.items[0].signed)

        answer = await told.hospital.consent.grant(told.patient.handle, to="laboratory", categories=["labs"])

        assert answer["grant"] == queued.id
        (gid,) = told.live(told.laboratory)
        assert [entry["grant"] for entry in answer["grants"]] == [gid.hex()]  # type: ignore[attr-defined]


async def test_overtaken_twice_is_remade_twice(autojump_clock: Clock) -> None:
    async with story() as told:
        queued = await told.queue()
        for _ in range(2):
            await told.change_key(told.blind)
            told.hospital.ledger.has_quorum = False
            await told.hospital.queued.finish()
            told.hospital.ledger.has_quorum = True

        await told.hospital.queued.finish()

        (gid,) = told.live(told.laboratory)
        state = told.hospital.store.grant(gid)
        assert state is not None
        assert state.grant.epoch == told.vault.epoch == 2
        assert len(list(told.hospital.bundles.former())) == 2
        assert {latest for _, latest in told.hospital.bundles.former()} == {gid}
        assert gid_of(queued) in {former for former, _ in told.hospital.bundles.former()}


async def test_a_grant_that_slips_in_while_a_rotation_is_on_its_way_is_served_by_another(
    autojump_clock: Clock,
) -> None:
    async with story() as told, trio.open_nursery() as nursery:
        hospital, ledger = told.hospital, told.hospital.ledger
        queued = await told.queue()
        ledger.has_quorum = False
        nursery.start_soon(told.change_key, told.blind)
        await trio.sleep(0.1)  # the EpochRotate is signed, and is sent again when there is a quorum
        ledger.has_quorum = True
        _, raw = encoded(queued.items[0].signed, ledger.network)
        await ledger.order((raw,))
        assert (told.vault.epoch, told.live(told.laboratory)) == (0, [gid_of(queued)])

        await hospital.until("both were changed", lambda: told.vault.epoch == 2)

        await told.laboratory.until("the key came", lambda: [g.epoch for g in told.laboratory.held] == [2])
        await trio.sleep(10)
        assert told.vault.epoch == 2


# --- what is not remade -----------------------------------------------------------------------------------------


async def test_a_grant_whose_time_is_over_is_not_remade(autojump_clock: Clock) -> None:
    async with story() as told:
        queued = await told.queue(expires_ms=60_000)
        await told.change_key(told.blind)
        told.hospital.clock.advance_ms(61_000)

        with pytest.raises(Refused, match="time was over"):
            await told.hospital.queued.bring(queued.id)

        assert told.live(told.laboratory) == []
        assert told.hospital.bundles.get(queued.id) == queued


async def test_keys_that_left_custody_remake_nothing(autojump_clock: Clock) -> None:
    async with story() as told:
        queued = await told.queue()
        prepared = await told.blind.desk.prepare_handover(told.patient.handle, passphrase=b"correct horse")
        await told.blind.desk.complete_handover(str(prepared["handover"]), grant=False)
        back = FacilityDouble(told.hospital.member, told.hospital.ledger)

        with pytest.raises(Forbidden):
            await back.queued.bring(queued.id)
        await back.queued.finish()

        assert told.live(told.laboratory) == []
        assert ("warning", "a queued grant was given up", {"reason": "Forbidden"}) in back.member.log.events


async def test_the_id_that_a_command_reported_still_ends_the_grant(autojump_clock: Clock) -> None:
    async with story() as told:
        queued = await told.queue()
        await told.change_key(told.blind)
        await told.hospital.queued.finish()
        back = FacilityDouble(told.hospital.member, told.hospital.ledger)

        await back.consent.revoke(gid_of(queued).hex()[:16])

        assert told.live(told.laboratory) == []
        assert list(back.bundles.former())


# --- both by themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["grant", "revoke"])
@pytest.mark.parametrize("away_s", [0, 1, 20])
async def test_a_grant_and_a_revocation_of_one_vault_both_become_final(
    autojump_clock: Clock, first: str, away_s: int
) -> None:
    async with facilities() as (hospital, clinic, laboratory):
        patient = await hospital.register("1")
        ended = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
        hospital.ledger.has_quorum = False

        async def grant() -> None:
            with pytest.raises(NotFinal):
                await hospital.consent.grant(patient.handle, to="laboratory", categories=["labs"])

        async def revoke() -> None:
            with pytest.raises(NotFinal):
                await hospital.consent.revoke(str(ended["grant"]))

        for command in (grant, revoke) if first == "grant" else (revoke, grant):
            await command()
        await trio.sleep(away_s)
        hospital.ledger.has_quorum = True

        vid = next(iter(hospital.bundles)).items[0].vid

        def final() -> dict[tuple[str, bool], int]:
            found: dict[tuple[str, bool], int] = {}
            for gid in hospital.store.events_of(vid):
                state = hospital.store.grant(gid)
                if state is not None:
                    name = "clinic" if state.grant.facility == clinic.me else "laboratory"
                    found[name, bool(state.revoked_ms)] = found.get((name, bool(state.revoked_ms)), 0) + 1
            return found

        await hospital.until(
            "both are final", lambda: final() == {("clinic", True): 1, ("laboratory", False): 1}
        )
        await laboratory.until("the new key", lambda: [held.epoch for held in laboratory.held] == [1])
        assert not list(clinic.held)
