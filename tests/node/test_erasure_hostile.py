"""Members that lie about an erasure or misuse it, and rows that were left behind."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from protocol import codec
from protocol.block import Block
from protocol.cid import cid_of
from protocol.destruction import DESTRUCTIONS_CHANNEL, AskDestruction, Attestation, NotDestroyed, attest
from protocol.errors import RemoteFault, Unavailable
from protocol.identifiers import Cid, Digest, Height, NodeId, Rid
from protocol.signing import SigningKey
from storage.key_value import Batch
from storage.keyspace import CHUNK_LIST, LACKING, UNDER_REPLICATED
from storage.ledger_store import HistoryMark, LedgerStore
from tests.node.erasing_house import ErasingFacility, erasing_houses
from tests.node.test_erasure import admit, complete, everywhere, letter_of


def rid_of(record: str) -> Rid:
    return Rid(bytes.fromhex(record))


async def asked(
    house: ErasingFacility, of: ErasingFacility, record: Rid, *cids: Cid
) -> Attestation | NotDestroyed:
    raw = await house.member.transport.call(
        of.me, DESTRUCTIONS_CHANNEL, codec.encode(AskDestruction(record, cids)), timeout_ms=1_000
    )
    answer: Attestation | NotDestroyed = codec.decode(raw, Attestation | NotDestroyed)  # type: ignore[arg-type]  # a union
    return answer


async def test_a_member_that_had_the_list_deletes_nothing_else_on_request(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital, clinic, laboratory = houses
        record = await letter_of(hospital, await admit(hospital))
        await everywhere(houses, [record])
        await hospital.erase(record)
        upload = b"a chunk of somebody's upload, named by no record yet"
        cid = cid_of(upload)
        clinic.chunks.put_many([(cid, upload)])

        answer = await asked(laboratory, clinic, rid_of(record), cid)
        await clinic.destruction.look()

        assert isinstance(answer, Attestation)
        assert clinic.chunks.has(cid)


async def test_nobody_has_anything_deleted_that_is_not_erased(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital, clinic, laboratory = houses
        record = await letter_of(hospital, await admit(hospital))
        await everywhere(houses, [record])

        with pytest.raises(RemoteFault, match="not erased here"):
            await asked(laboratory, clinic, rid_of(record))
        with pytest.raises(RemoteFault):
            await asked(laboratory, clinic, Rid(bytes(32)))

        assert {"envelope", "list"} <= clinic.holds(record)


@pytest.mark.parametrize(
    "lie", ["of another member", "of another record", "of a time in no calendar", "unsigned", "no message"]
)
async def test_a_false_word_does_not_count_and_hides_no_other(autojump_clock: MockClock, lie: str) -> None:
    async with erasing_houses() as houses:
        hospital, _, laboratory = houses
        record = await letter_of(hospital, await admit(hospital))
        key, network = SigningKey(laboratory.member.identity.node), hospital.ledger.network

        async def answer(_sender: NodeId, _body: bytes) -> bytes:
            erasure = hospital.store.erasure(rid_of(record))
            assert erasure is not None
            word = attest(key, network, erasure.rid, erasure.txid, chunks=9, shared=0, time_ms=1)
            lies = {
                "of another member": replace(word, node=hospital.me),
                "of another record": attest(
                    key, network, Rid(bytes(32)), erasure.txid, chunks=9, shared=0, time_ms=1
                ),
                "of a time in no calendar": attest(
                    key, network, erasure.rid, erasure.txid, chunks=9, shared=0, time_ms=2**62
                ),
                "unsigned": replace(word, signature=bytes(64)),
            }
            return codec.encode(lies[lie]) if lie in lies else b"\x00"

        laboratory.member.transport.serve(DESTRUCTIONS_CHANNEL, answer)

        document = await hospital.erase(record)

        assert {entry["facility"] for entry in document["attestations"]} == {"hospital", "clinic"}
        assert [entry["facility"] for entry in document["pending"]] == ["laboratory"]
        assert not complete(hospital, record)


async def test_rows_that_ask_for_an_erased_record_are_worked_off(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital = houses[0]
        record = await letter_of(hospital, await admit(hospital))
        await everywhere(houses, [record])
        await hospital.erase(record)
        batch, rid = Batch(), rid_of(record)
        batch.put(LACKING + rid, b"")
        batch.put(UNDER_REPLICATED + rid, codec.pack(houses[1].me))
        hospital.member.rows.write(batch, sync=True)

        await hospital.repair.look()

        assert hospital.member.rows.get(LACKING + rid) is None
        assert hospital.member.rows.get(UNDER_REPLICATED + rid) is None
        assert hospital.holds(record) == set()


class AfterSnapshot(LedgerStore):
    """A ledger whose state came with a snapshot: blocks below it are not here."""

    @property
    def history(self) -> HistoryMark | None:
        return HistoryMark(Height(0), Digest(bytes(32)), 0, (), self.applied().height)

    def blocks(self, first: Height, last: Height) -> Iterator[Block]:
        raise Unavailable(f"blocks {first} to {last} are being fetched")


async def test_a_member_whose_state_came_with_a_snapshot_deletes_what_its_tombstones_name(
    autojump_clock: MockClock,
) -> None:
    async with erasing_houses(last_destroys=False) as houses:
        hospital, _, laboratory = houses
        record = await letter_of(hospital, await admit(hospital))
        await everywhere(houses, [record])
        laboratory.leaves()
        await hospital.erase(record)
        again = ErasingFacility(laboratory.member, laboratory.ledger, payloads=laboratory.payloads)
        again.destruction._ledger = AfterSnapshot(laboratory.member.rows, laboratory.ledger.genesis)
        again.comes_back()

        await again.catch_up()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again.destruction.run)
            await hospital.until("every word", lambda: complete(hospital, record))
            nursery.cancel_scope.cancel()

        assert again.holds(record) == set()
        assert not list(again.chunks.cids())


async def test_an_envelope_that_is_still_handed_out_by_one_who_is_behind_is_not_kept_again(
    autojump_clock: MockClock,
) -> None:
    async with erasing_houses(last_destroys=False) as houses:
        hospital, _, laboratory = houses
        record = await letter_of(hospital, await admit(hospital))
        await everywhere(houses, [record])
        await hospital.erase(record)
        row = hospital.store.record(rid_of(record))
        assert row is not None
        assert "envelope" in laboratory.holds(record)

        with pytest.raises(Unavailable, match="just been erased"):
            await hospital.retrieval.fetch_envelope(row)

        assert hospital.holds(record) == set()


async def test_a_list_of_chunks_that_a_rescue_did_not_bring_back_is_fetched(
    autojump_clock: MockClock,
) -> None:
    async with erasing_houses() as houses:
        hospital, _, laboratory = houses
        record = await letter_of(hospital, await admit(hospital))
        await everywhere(houses, [record])
        batch, rid = Batch(), rid_of(record)
        batch.delete(CHUNK_LIST + rid)
        batch.put(LACKING + rid, b"")
        laboratory.member.rows.write(batch, sync=True)
        assert laboratory.holds(record) == {"envelope"}

        await laboratory.repair.look()

        assert laboratory.holds(record) == {"envelope", "list"}
        assert laboratory.member.rows.get(LACKING + rid) is None
