import pytest

from protocol.errors import Unavailable
from protocol.limits import ATTACHMENT_BYTES_MAX
from protocol.wraps import attachment_hash
from storage.key_value import Batch
from tests.node.facility_double import FacilityDouble
from tests.node.ledger_double import LedgerDouble


def network(voters: int = 3, observers: int = 0) -> list[FacilityDouble]:
    ledger = LedgerDouble(voters, observers=observers)
    return [FacilityDouble(member, ledger) for member in ledger.members]


def has(facility: FacilityDouble, data: bytes) -> bool:
    return facility.member.envelopes.attachment(attachment_hash(data)) == data


async def test_what_is_spread_is_at_every_member(autojump_clock: object) -> None:
    facilities = network()
    wraps = [bytes([number]) * 700 for number in range(100)]

    digests = await facilities[0].attachments.keep(wraps)
    await facilities[0].attachments.spread(digests)

    assert all(has(facility, wrap) for facility in facilities for wrap in wraps)


async def test_a_majority_is_enough_and_a_minority_is_not(autojump_clock: object) -> None:
    hospital, clinic, laboratory = network()
    digests = await hospital.attachments.keep([b"wrap"])
    laboratory.member.transport.is_up = False
    await hospital.attachments.spread(digests)
    assert has(clinic, b"wrap")

    clinic.member.transport.is_up = False

    with pytest.raises(Unavailable):
        await hospital.attachments.spread(digests)


async def test_an_observer_needs_a_majority_of_the_storing_members(autojump_clock: object) -> None:
    hospital, clinic, laboratory, observer = network(3, observers=1)
    digests = await observer.attachments.keep([b"note"])
    laboratory.member.transport.is_up = clinic.member.transport.is_up = False

    with pytest.raises(Unavailable):
        await observer.attachments.spread(digests)
    clinic.member.transport.is_up = True
    await observer.attachments.spread(digests)

    assert has(hospital, b"note")
    assert has(clinic, b"note")


async def test_who_lacks_one_fetches_it_and_keeps_it(autojump_clock: object) -> None:
    hospital, clinic, laboratory = network()
    (digest,) = await clinic.attachments.keep([b"wrap"])

    assert await laboratory.attachments.get(digest) == b"wrap"

    assert has(laboratory, b"wrap")
    assert not has(hospital, b"wrap")


async def test_what_nobody_has_is_unavailable(autojump_clock: object) -> None:
    hospital, _, _ = network()

    with pytest.raises(Unavailable):
        await hospital.attachments.get(attachment_hash(b"never made"))


async def test_a_damaged_attachment_is_not_served_and_mended_from_another(autojump_clock: object) -> None:
    hospital, clinic, laboratory = network()
    (digest,) = await hospital.attachments.keep([b"wrap"])
    await hospital.attachments.spread([digest])
    for facility in (hospital, clinic):
        facility.member.rows._values[b"a" + digest] = b"wrop"

    assert await hospital.attachments.get(digest) == b"wrap"

    assert has(hospital, b"wrap")
    assert has(laboratory, b"wrap")


async def test_an_oversized_attachment_is_refused_by_everybody(autojump_clock: object) -> None:
    hospital, clinic, _ = network()
    oversized = b"x" * (ATTACHMENT_BYTES_MAX + 1)
    batch = Batch()
    batch.put(b"a" + attachment_hash(oversized), oversized)
    hospital.member.rows.write(batch, sync=True)  # as a member that ignores the limit would

    with pytest.raises(Unavailable):
        await hospital.attachments.spread([attachment_hash(oversized)])

    assert not has(clinic, oversized)
