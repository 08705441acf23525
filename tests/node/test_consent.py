import pytest
import trio
import trio.testing

from node.consent import Consent
from protocol.errors import Forbidden, NotFinal, Refused
from protocol.health.categories import Category
from protocol.identifiers import Txid
from protocol.ledger_rows import GrantState
from tests.node.facility_double import FacilityDouble, facilities

DAY_MS = 86_400_000
Clock = trio.testing.MockClock


def state_of(facility: FacilityDouble, gid: object) -> GrantState:
    state = facility.store.grant(Txid(bytes.fromhex(str(gid))))
    assert state is not None
    return state


def entries(answer: dict[str, object]) -> list[dict[str, object]]:
    grants = answer["grants"]
    assert isinstance(grants, list)
    return grants


async def test_a_grant_is_one_per_category_under_one_id(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        patient = await hospital.register("1")

        answer = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs", "imaging"])

        assert [entry["category"] for entry in entries(answer)] == ["labs", "imaging"]
        for entry in entries(answer):
            grant = state_of(hospital, entry["grant"]).grant
            assert entry["transaction"] == entry["grant"]
            assert (grant.facility, grant.rights, grant.purposes) == (clinic.me, "R", ("TREAT",))
            assert 364 * DAY_MS < grant.exp - hospital.clock.now_ms() <= 365 * DAY_MS


async def test_all_means_every_category(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")

        answer = await hospital.consent.grant(patient.handle, to="clinic", categories=["all"])

        assert [entry["category"] for entry in entries(answer)] == [category.value for category in Category]


async def test_repeating_a_grant_reports_the_same_ids(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        first = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
        height = hospital.store.applied().height

        second = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
        wider = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"], write=True)

        assert second == first
        assert wider["grant"] != first["grant"]
        assert hospital.store.applied().height == height + 1


async def test_the_same_command_twice_at_once_is_one_grant(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        answers: list[dict[str, object]] = []

        async def grant() -> None:
            answers.append(await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"]))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(grant)

        assert answers[0] == answers[1] == answers[2]


async def test_after_a_revocation_the_same_command_grants_anew(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        first = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
        await hospital.consent.revoke(str(first["grant"]))

        second = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])

        assert second["grant"] != first["grant"]


async def test_without_a_quorum_a_grant_is_queued_and_becomes_final_by_itself(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        hospital.ledger.has_quorum = False

        started = trio.current_time()
        with pytest.raises(NotFinal) as queued:
            await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
        assert trio.current_time() - started < 10
        with pytest.raises(NotFinal) as repeated:
            await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
        assert repeated.value.ids == queued.value.ids

        hospital.ledger.has_quorum = True
        gid = Txid(bytes.fromhex(queued.value.ids[1]))
        await hospital.until("the grant is final", lambda: hospital.store.grant(gid) is not None)


async def test_a_queued_grant_survives_a_restart(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        await hospital.vaults.writable(patient, "labs")
        hospital.ledger.has_quorum = False
        with pytest.raises(NotFinal) as queued:
            await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
        again = FacilityDouble(hospital.member, hospital.ledger)
        hospital.ledger.has_quorum = True

        answer = await again.consent.grant(patient.handle, to="clinic", categories=["labs"])

        assert (answer["grant"], entries(answer)[0]["grant"]) == queued.value.ids


@pytest.mark.parametrize(
    ("to", "category", "purpose", "days"),
    [
        ("nobody", "labs", "TREAT", 1),
        ("hospital", "labs", "TREAT", 1),
        ("clinic", "astrology", "TREAT", 1),
        ("clinic", "labs", "FUN", 1),
        ("clinic", "labs", "TREAT", 0),
        ("clinic", "labs", "TREAT", 5 * 366 + 1),
    ],
)
async def test_what_cannot_be_granted_is_refused_and_changes_nothing(
    autojump_clock: Clock, to: str, category: str, purpose: str, days: int
) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        height = hospital.store.applied().height

        with pytest.raises(Refused):
            await hospital.consent.grant(
                patient.handle, to=to, categories=[category], purposes=[purpose], expires_ms=days * DAY_MS
            )

        assert hospital.store.applied().height == height
        assert not list(hospital.bundles)


async def test_an_unknown_patient_is_refused(autojump_clock: Clock) -> None:
    async with facilities(1) as (hospital,):
        with pytest.raises(Refused):
            await hospital.consent.grant("ffff", to="hospital", categories=["labs"])
        with pytest.raises(Refused):
            await hospital.consent.list("ffff")


async def test_who_was_granted_access_cannot_grant_it_on(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        patient = await hospital.register("1")
        await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"], write=True)
        await clinic.until("the clinic lists the patient", lambda: bool(clinic.patients.all()))

        with pytest.raises(Forbidden, match="patient's signature"):
            await clinic.consent.grant(clinic.patients.all()[0].handle, to="laboratory", categories=["labs"])


async def test_revoking_ends_the_grant_and_changes_the_key(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        granted = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])

        answer = await hospital.consent.revoke(str(granted["grant"])[:8])

        gid = entries(granted)[0]["grant"]
        state = state_of(hospital, gid)
        vault = hospital.store.vault(state.grant.vid)
        assert vault is not None
        assert state.revoked_ms
        assert vault.epoch == 1
        assert answer["rotated"] is True
        assert "modified daemon" in str(answer["notice"])


async def test_revoking_twice_gives_the_same_answer_and_one_effect(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        granted = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs", "general"])
        first = await hospital.consent.revoke(str(granted["grant"]))
        height = hospital.store.applied().height

        second = await hospital.consent.revoke(str(granted["grant"]))

        assert second == first
        assert hospital.store.applied().height == height


async def test_without_a_quorum_a_revocation_is_queued_and_becomes_final_by_itself(
    autojump_clock: Clock,
) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        granted = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
        gid = entries(granted)[0]["grant"]
        hospital.ledger.has_quorum = False
        with pytest.raises(NotFinal):
            await hospital.consent.revoke(str(granted["grant"]))

        hospital.ledger.has_quorum = True

        await hospital.until("revoked", lambda: bool(state_of(hospital, gid).revoked_ms))
        vid = state_of(hospital, gid).grant.vid

        def has_new_epoch() -> bool:
            vault = hospital.store.vault(vid)
            return vault is not None and vault.epoch == 1

        await hospital.until("the key was changed", has_new_epoch)


@pytest.mark.parametrize("text", ["", "zz", "00" * 32])
async def test_an_unknown_grant_is_refused(autojump_clock: Clock, text: str) -> None:
    async with facilities(1) as (hospital,):
        with pytest.raises(Refused, match="no grant"):
            await hospital.consent.revoke(text)


async def test_somebody_elses_grant_is_refused_like_an_unknown_one(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, clinic, _):
        patient = await hospital.register("1")
        granted = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])

        with pytest.raises(Refused, match="no grant"):
            await clinic.consent.revoke(str(entries(granted)[0]["grant"]))


async def test_the_list_shows_what_became_of_each_grant(autojump_clock: Clock) -> None:
    async with facilities() as (hospital, _, _):
        patient = await hospital.register("1")
        revoked = await hospital.consent.grant(patient.handle, to="clinic", categories=["labs"])
        await hospital.consent.grant(patient.handle, to="laboratory", categories=["labs"])
        await hospital.consent.grant(patient.handle, to="clinic", categories=["general"], expires_ms=1_000)
        await hospital.consent.revoke(str(revoked["grant"]))
        hospital.clock.advance_ms(5_000)

        listed = entries(await hospital.consent.list(patient.handle))

        shown = {(entry["facility"], entry["category"]): entry["state"] for entry in listed}
        assert shown == {
            ("clinic", "labs"): "revoked",
            ("laboratory", "labs"): "live",
            ("clinic", "general"): "expired",
        }


def test_consent_is_the_service_that_the_routes_call() -> None:
    assert all(callable(getattr(Consent, name)) for name in ("grant", "list", "revoke"))
