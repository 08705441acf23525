import os
from functools import partial

import pytest
import trio
import trio.testing

from protocol import chunk_exchange as exchange
from protocol import codec, limits
from protocol.cid import cid_of
from protocol.envelope import Label, seal_envelope
from protocol.errors import Invalid, Malformed, NotFinal, RemoteFault, Unavailable
from protocol.identifiers import Cid, NodeId, PublicKey, Rid
from protocol.transaction import EnvelopeReceipt
from storage.key_value import Batch
from storage.keyspace import LACKING
from tests.node.ledger_double import LedgerDouble, running
from tests.node.record_house import Facility, houses


async def added(facility: Facility, data: bytes | None = None) -> Rid:
    patient = await facility.admit()
    answer = await facility.add(os.urandom(2_500_000) if data is None else data, patient=patient)
    return Rid(bytes.fromhex(answer["records"][0]["record"]))


async def everywhere(facilities: list[Facility], rid: Rid) -> None:
    """Let background repair come to an end: two looks at every member."""
    for _ in range(2):
        for facility in facilities:
            await facility.repair.look()
    assert all(facility.member.envelopes.envelope_of(rid) is not None for facility in facilities)


def lost_byte(facility: Facility, cid: Cid) -> None:
    """Change one byte of a stored chunk, as a failing disk does."""
    location = facility.chunks.index.locate(cid)
    assert location is not None
    for key, value in list(facility.payloads.scan(b"", b"\xff" * 9)):
        if int.from_bytes(key, "big") == location.sequence:
            batch = Batch()
            batch.put(key, value[:-1] + bytes([value[-1] ^ 1]))
            facility.payloads.write(batch, sync=True)


async def test_every_member_of_a_network_of_three_holds_every_chunk(autojump_clock):
    async with houses(3) as facilities:
        rid = await added(facilities[0])
        await trio.sleep(60)

        placed = facilities[0].holder.placed(rid)
        assert placed is not None
        assert all(facility.chunks.has(cid) for facility in facilities for cid in placed.cids)
        assert [facility.repair.status()["under_replicated"] for facility in facilities] == [0, 0, 0]


async def test_in_a_network_of_five_each_chunk_has_three_replicas_and_everybody_can_fetch_it(autojump_clock):
    async with houses(5) as facilities:
        rid = await added(facilities[0])
        await trio.sleep(60)
        placed = facilities[0].holder.placed(rid)
        assert placed is not None

        counts = [sum(facility.chunks.has(cid) for facility in facilities) for cid in placed.cids]
        assert counts == [3] * len(placed.cids)
        for facility in facilities:
            chunks = await facility.retrieval.chunks(placed.cids, placed.author)
            assert [len(chunk) for chunk in chunks]


async def test_a_member_that_was_away_is_filled_when_it_returns(autojump_clock):
    async with houses(3) as facilities:
        hospital, _, away = facilities
        away.member.transport.is_up = False
        rid = await added(hospital)
        await trio.sleep(30)
        placed = hospital.holder.placed(rid)
        assert placed is not None
        missing = hospital.repair.status()["under_replicated"]

        away.member.transport.is_up = True
        await trio.sleep(30)

        assert missing == len(placed.cids)
        assert hospital.repair.status()["under_replicated"] == 0
        assert all(away.chunks.has(cid) for cid in placed.cids)


async def test_alone_of_three_nothing_becomes_a_record_before_another_member_is_back(autojump_clock):
    async with houses(3) as facilities:
        hospital, clinic, laboratory = facilities
        await added(hospital)
        height = hospital.member.store.applied().height
        clinic.member.transport.is_up = laboratory.member.transport.is_up = False

        with pytest.raises(NotFinal):
            await added(hospital)
        alone = hospital.member.store.applied().height
        clinic.member.transport.is_up = True
        await trio.sleep(30)

        assert alone == height
        assert hospital.queue.length == 0
        assert hospital.member.store.applied().height == height + 1


async def test_a_damaged_chunk_is_never_served_and_comes_back_from_a_replica(autojump_clock):
    async with houses(3) as facilities:
        hospital, clinic, _ = facilities
        data = os.urandom(2_500_000)
        rid = await added(hospital, data)
        await trio.sleep(30)
        placed = hospital.holder.placed(rid)
        assert placed is not None
        for facility in (hospital, clinic):
            lost_byte(facility, placed.cids[1])

        served = await clinic.holder._answer_chunks(
            clinic.member.member.node, codec.encode(exchange.GetChunks(placed.cids[1:2]))
        )
        assert codec.decode(served, exchange.Chunks).chunks == (b"",)
        assert clinic.repair.status()["corrupt"] == 1
        _, received = await hospital.get(rid.hex())
        await clinic.repair.look()

        assert received == data
        assert [facility.repair.status()["corrupt"] for facility in (hospital, clinic)] == [0, 0]
        assert hospital.chunks.statistics().corruptions == 1


async def test_a_record_whose_last_copy_is_damaged_is_unavailable_not_wrong(autojump_clock):
    async with houses() as (hospital,):
        rid = await added(hospital)
        placed = hospital.holder.placed(rid)
        assert placed is not None
        lost_byte(hospital, placed.cids[0])

        with pytest.raises(Unavailable):
            await hospital.get(rid.hex())

        assert hospital.repair.status()["corrupt"] == 1


class Forgery:
    """A record that a member tries to get receipts for."""

    def __init__(self, facility: Facility, target: Facility) -> None:
        self.facility, self.target = facility, target
        patient = facility.patients.resolve(next(iter(dict(facility.patients.own()))))
        self.handle = facility.vaults.handle(patient, "mixed")
        self.rid = Rid(os.urandom(32))
        self.chunk = os.urandom(512)

    async def offer(self, **changes: object) -> EnvelopeReceipt:
        me = self.facility.member.member.node
        cids = (cid_of(self.chunk),)
        self.facility.chunks.put_many([(cids[0], self.chunk)])
        label = Label(
            self.facility.ledger.network, self.handle.vid, self.handle.epoch, self.rid, PublicKey(me)
        )
        envelope = seal_envelope(
            label,
            self.handle.category_public,
            dek=bytes(32),
            s1=bytes(32),
            seed32=bytes(32),
            manifest_cid=cids[0],
        )
        (receipts,) = await self.facility.replication.confirm(
            (exchange.PlacedChunks(cids, me, 3),), fresh=True
        )
        fields = {
            "vid": self.handle.vid,
            "rid": self.rid,
            "epoch": self.handle.epoch,
            "author": me,
            "envelope": envelope,
            "cids": cids,
            "receipts": receipts,
        }
        offer = exchange.OfferEnvelope(**{**fields, **changes})  # type: ignore[arg-type]  # whatever the forger likes
        return await self.target.holder.receive(me, offer)


async def test_a_receipt_is_given_only_for_what_the_ledger_and_the_chunks_bear_out(autojump_clock):
    async with houses(3) as (hospital, clinic, laboratory):
        await added(hospital)
        forgery = Forgery(hospital, clinic)

        assert (await forgery.offer()).node == clinic.member.member.node
        for changes in (
            {"rid": Rid(os.urandom(32))},
            {"receipts": ()},
            {"author": laboratory.member.member.node},
            {"cids": (Cid(bytes(32)),)},
            {"envelope": b"\x01" + b"x" * 100},
            {"envelope": b"\x00" + b"x" * 100},
        ):
            with pytest.raises((Invalid, Malformed)):
                await forgery.offer(**changes)
        with pytest.raises(Unavailable):
            await forgery.offer(epoch=7)


async def test_a_member_without_the_right_to_write_gets_no_receipt(autojump_clock):
    async with houses(3) as (hospital, clinic, laboratory):
        await added(hospital)
        forgery = Forgery(hospital, laboratory)
        offer = exchange.OfferEnvelope(
            forgery.handle.vid, forgery.rid, 0, clinic.member.member.node, b"x", (Cid(bytes(32)),), ()
        )

        with pytest.raises(Invalid, match="may not write"):
            await laboratory.holder.receive(clinic.member.member.node, offer)


async def test_garbage_on_the_channels_is_refused(autojump_clock):
    async with houses(2) as (hospital, clinic):
        for channel in (exchange.CHUNKS_CHANNEL, exchange.ENVELOPES_CHANNEL):
            for body in (b"", b"garbage", codec.encode(exchange.NotYet())):
                with pytest.raises(RemoteFault):
                    await hospital.member.transport.call(
                        clinic.member.member.node, channel, body, timeout_ms=100
                    )


async def test_a_member_that_missed_everything_pulls_envelope_and_chunks_when_it_learns_of_the_record(
    autojump_clock,
):
    async with houses(3) as (hospital, clinic, laboratory):
        rid = await added(hospital)
        await trio.sleep(30)
        placed = hospital.holder.placed(rid)
        assert placed is not None
        batch = Batch()
        laboratory.member.envelopes.delete_envelope(batch, rid)
        batch.put(LACKING + rid, b"")
        laboratory.member.rows.write(batch, sync=True)
        laboratory.chunks.delete(placed.cids)

        await laboratory.repair.look()

        assert laboratory.member.envelopes.envelope_of(rid) == clinic.member.envelopes.envelope_of(rid)
        assert all(laboratory.chunks.has(cid) for cid in placed.cids)
        assert laboratory.member.rows.get(LACKING + rid) is None


async def test_a_chunk_that_is_damaged_before_it_was_pushed_stops_nothing_else(autojump_clock):
    async with houses(3) as (hospital, clinic, laboratory):
        await added(hospital)
        clinic.member.transport.is_up = laboratory.member.transport.is_up = False
        with pytest.raises(NotFinal):
            await added(hospital)
        (waiting,) = [rid for rid in hospital.index.rids() if hospital.queue.state(rid) == "received"]
        lost_byte(hospital, max(hospital.chunks.index.locations(), key=lambda one: one[1].sequence)[0])
        clinic.member.transport.is_up = laboratory.member.transport.is_up = True

        patient = await hospital.admit()
        (entry,) = (await hospital.add(b"%PDF-1.4 another", patient=patient))["records"]
        await trio.sleep(30)

        assert entry["state"] == "final"
        assert hospital.queue.state(waiting) == "received"
        assert hospital.repair.status()["corrupt"] == 1


async def test_repair_leaves_the_reserve_of_the_disk_alone(autojump_clock):
    async with houses(3) as facilities:
        hospital, clinic, _ = facilities
        rid = await added(hospital)
        await trio.sleep(30)
        placed = hospital.holder.placed(rid)
        assert placed is not None
        clinic.chunks.quarantine(placed.cids[0])
        clinic.is_full = True

        await clinic.repair.look()
        assert clinic.repair.status()["corrupt"] == 1

        clinic.is_full = False
        await clinic.repair.look()
        assert clinic.repair.status()["corrupt"] == 0


async def test_an_interrupted_push_goes_on_without_sending_again_what_a_replica_holds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with houses(3) as (hospital, clinic, laboratory):
        await added(hospital)
        laboratory.member.transport.is_up = False
        sent: list[int] = []
        transport = hospital.member.transport
        call = transport.call

        async def breaking(peer: NodeId, channel: str, body: bytes, *, timeout_ms: int) -> bytes:
            if peer == clinic.me and codec.unpack(body)[0] == "put-chunks":
                sent.append(len(codec.decode(body, exchange.PutChunks).chunks))
                if len(sent) == 3:
                    raise Unavailable("the connection broke")
            return await call(peer, channel, body, timeout_ms=timeout_ms)

        transport.call = breaking  # type: ignore[method-assign]  # breaks once, else the same
        rid = await added(hospital, os.urandom(24 << 20))

        placed = hospital.holder.placed(rid)
        assert placed is not None
        assert all(clinic.chunks.has(cid) for cid in placed.cids)
        # Sent twice is what the broken message carried, and what was on its way beside it.
        assert len(placed.cids) < sum(sent) <= len(placed.cids) + limits.CHUNKS_IN_FLIGHT_PER_PEER


async def test_an_author_that_dies_in_a_large_add_sends_after_its_restart_what_replicas_lack(
    autojump_clock: trio.testing.MockClock,
) -> None:
    data, sent, died = os.urandom(24 << 20), list[int](), trio.Event()
    async with running(LedgerDouble(2)) as ledger, trio.open_nursery() as others:
        first, clinic = (Facility(member, ledger) for member in ledger.members)
        for task in (clinic.run, clinic.queue.run, clinic.repair.run):
            others.start_soon(task)
        transport = first.member.transport
        call = transport.call

        async def deadly(peer: NodeId, channel: str, body: bytes, *, timeout_ms: int) -> bytes:
            if codec.unpack(body)[0] == "put-chunks":
                sent.append(len(codec.decode(body, exchange.PutChunks).chunks))
                if len(sent) == 3:
                    died.set()
                    await trio.sleep_forever()
            return await call(peer, channel, body, timeout_ms=timeout_ms)

        transport.call = deadly  # type: ignore[method-assign]  # kills once, else the same
        patient = await first.admit()
        async with trio.open_nursery() as life:
            life.start_soon(first.run)
            life.start_soon(first.queue.run)
            life.start_soon(partial(first.add, data, patient=patient))
            await died.wait()
            life.cancel_scope.cancel()  # what is in memory is lost here

        second = Facility(ledger.members[0], ledger, payloads=first.payloads)
        others.start_soon(second.run)
        others.start_soon(second.queue.run)
        (entry,) = (await second.add(data, patient=patient))["records"]
        others.cancel_scope.cancel()

    placed = second.holder.placed(Rid(bytes.fromhex(entry["record"])))
    assert placed is not None
    assert (entry["duplicate"], entry["state"]) == (True, "final")
    assert all(clinic.chunks.has(cid) for cid in placed.cids)
    assert len(placed.cids) < sum(sent) <= len(placed.cids) + limits.CHUNKS_IN_FLIGHT_PER_PEER


async def test_beside_transactions_one_chunk_at_a_time_is_on_its_way_to_a_member(autojump_clock):
    async with houses(3) as (hospital, *_):
        await added(hospital, b"opens the vault")
        await trio.sleep(10)
        call, on_way = hospital.member.transport.call, [0]
        most = 0

        async def watched(peer, channel, body, *, timeout_ms):
            nonlocal most
            if channel != exchange.CHUNKS_CHANNEL or codec.unpack(body)[0] != "put-chunks":
                return await call(peer, channel, body, timeout_ms=timeout_ms)
            on_way[0] += 1
            most = max(most, on_way[0])
            answer = await call(peer, channel, body, timeout_ms=timeout_ms)
            on_way[0] -= 1
            return answer

        hospital.member.transport.call = watched  # type: ignore[method-assign]  # watched, else the same
        await added(hospital, os.urandom(12 * limits.MIB))
        assert most > 2

        async def transactions():
            while True:
                hospital.pace.notice()
                await trio.sleep(0.01)

        most = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transactions)
            await added(hospital, os.urandom(12 * limits.MIB))
            nursery.cancel_scope.cancel()
        assert most == 2  # of the two members, one each
