import os

import pytest
import trio

from node.attachments import CHANNEL, Attachments, AttachmentsPut
from protocol import chunk_exchange as exchange
from protocol import codec
from protocol.cid import cid_of
from protocol.errors import Invalid, RemoteFault, StorageFull
from protocol.identifiers import Digest, Rid
from storage.key_value import Batch
from storage.keyspace import CHUNK_LIST
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


async def test_an_envelope_that_a_receipt_was_given_for_survives_a_loss_of_power(autojump_clock):
    async with houses(3) as (hospital, clinic, _):
        await added(hospital)
        forgery = Forgery(hospital, clinic)

        receipt = await forgery.offer()
        # Of what was not synchronised when the receipt was given, nothing is left.
        clinic.member.rows.crash(keep=0)

        assert receipt.node == clinic.me
        assert clinic.member.envelopes.envelope_of(forgery.rid) is not None
        placed = clinic.holder.placed(forgery.rid)
        assert placed is not None
        assert placed.cids == (cid_of(forgery.chunk),)


async def test_an_envelope_that_the_disk_did_not_take_gets_no_receipt(
    autojump_clock, monkeypatch: pytest.MonkeyPatch
):
    async with houses(3) as (hospital, clinic, _):
        await added(hospital)
        forgery, synchronised = Forgery(hospital, clinic), list[bool]()
        commit = clinic.disk.commit

        async def full(batch: Batch, *, sync: bool) -> None:
            if CHUNK_LIST + forgery.rid in batch.writes:
                synchronised.append(sync)
                raise StorageFull("no room")
            await commit(batch, sync=sync)

        with monkeypatch.context() as at_the_last_moment:
            at_the_last_moment.setattr(clinic.disk, "commit", full)
            with pytest.raises(StorageFull):
                await forgery.offer()

        assert synchronised == [True]
        assert clinic.member.envelopes.envelope_of(forgery.rid) is None
        assert (await forgery.offer()).node == clinic.me


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
