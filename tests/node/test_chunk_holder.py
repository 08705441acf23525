import os

import pytest
import trio

from node.attachments import CHANNEL, Attachments, AttachmentsPut
from protocol import chunk_exchange as exchange
from protocol import codec
from protocol.errors import Invalid, RemoteFault, StorageFull
from protocol.identifiers import Digest, Rid
from tests.node.ledger_double import LedgerDouble, running
from tests.node.record_house import houses
from tests.node.test_replication import Forgery, added


async def test_an_envelope_that_was_taken_is_not_replaced_by_another_members(autojump_clock):
    """Whoever is offered an envelope knows the record's id before it is final; our receipt says that we keep what we took."""
    async with houses(3) as (hospital, clinic, laboratory):
        await added(hospital)
        await laboratory.admit("9", "Mal", "1999-09-09")
        await laboratory.add(b"%PDF-1.4 own", patient=laboratory.patients.all()[0].handle)
        honest, thief = Forgery(hospital, clinic), Forgery(laboratory, clinic)
        await honest.offer()
        before = clinic.member.envelopes.envelope_of(honest.rid)
        thief.rid = honest.rid

        with pytest.raises(Invalid, match="another member"):
            await thief.offer()

        assert before is not None
        assert clinic.member.envelopes.envelope_of(honest.rid) == before
        assert (await honest.offer()).node == clinic.me


async def test_no_envelope_is_taken_at_the_reserve_of_the_disk(autojump_clock):
    async with houses(3) as (hospital, clinic, _):
        await added(hospital)
        forgery = Forgery(hospital, clinic)
        await forgery.offer()
        clinic.is_full = True
        forgery.rid = Rid(os.urandom(32))

        with pytest.raises(StorageFull):
            await forgery.offer()


async def test_no_attachment_of_others_is_taken_at_the_reserve_of_the_disk(autojump_clock):
    def full() -> None:
        raise StorageFull("no room")

    async with running(LedgerDouble(2)) as ledger:
        hospital, clinic = ledger.members
        Attachments(clinic.envelopes, clinic.disk, clinic.transport, lambda: ledger.genesis.storing, full)

        with pytest.raises(RemoteFault, match="no room"):
            await hospital.transport.call(
                clinic.member.node, CHANNEL, codec.encode(AttachmentsPut((b"junk",))), timeout_ms=100
            )

        assert list(clinic.envelopes.attachments()) == list[Digest]()


async def test_chunks_of_others_are_stored_when_no_transaction_is_under_way(autojump_clock):
    async with houses(2) as (hospital, clinic):

        async def took_ms() -> float:
            began, chunk = trio.current_time(), exchange.PutChunks((os.urandom(1_000),))
            await hospital.member.transport.call(
                clinic.me, exchange.CHUNKS_CHANNEL, codec.encode(chunk), timeout_ms=1_000
            )
            return (trio.current_time() - began) * 1e3

        await trio.sleep(10)
        plainly = await took_ms()
        clinic.pace.notice()

        assert 20 <= await took_ms() - plainly <= 30
