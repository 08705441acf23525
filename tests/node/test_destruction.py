"""The holder's side alone: bytes that are in no file any more, chunks that come back, stores of older versions."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import trio
from trio.testing import MockClock

from node.destruction import Destroying
from node.erased_rows import ErasedRows
from protocol import codec
from protocol.destruction import Attestation
from protocol.envelope import envelope_hash
from protocol.identifiers import Cid, Rid
from storage.chunk_index import ChunkIndex
from storage.chunk_store import ChunkStore
from storage.databases import open_ledger, open_payloads
from storage.envelope_store import EnvelopeStore
from storage.key_value import Batch, KeyValue
from storage.keyspace import (
    CHUNK_LIST,
    DESTRUCTION,
    ENVELOPE,
    ENVELOPE_OF_RECORD,
    FINGERPRINT,
    RECORD_FILE,
    WATCH_MARK,
    prefix_range,
)
from tests.node.erasing_house import ErasingFacility, erasing_houses
from tests.node.test_erasure import DOCUMENT, admit, complete, everywhere, letter_of


def rid_of(record: str) -> Rid:
    return Rid(bytes.fromhex(record))


def files_of(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


async def test_an_envelopes_bytes_are_in_no_file_of_the_ledger_database(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with erasing_houses(voters=1) as (hospital,):
        record = rid_of(await letter_of(hospital, await admit(hospital)))
        envelope = hospital.member.envelopes.envelope_of(record)
        placed = hospital.holder.placed(record)
        assert envelope is not None
        assert placed is not None
        rows = open_ledger(tmp_path, create=True)
        filler, batch = os.urandom(40_000), Batch()
        for number in range(100):
            EnvelopeStore(rows).put_envelope(
                batch, Rid(number.to_bytes(32, "big")), filler[number : number + 700]
            )
        EnvelopeStore(rows).put_envelope(batch, record, envelope)
        batch.put(CHUNK_LIST + record, codec.encode(placed))
        rows.write(batch, sync=True)
        rows.flush()
        assert envelope in files_of(tmp_path)
        erased = ErasedRows(
            me=hospital.me, ledger=hospital.store, rows=rows, chunks=hospital.chunks, envelopes=EnvelopeStore(rows), index=hospital.index
        )  # fmt: skip

        batch = Batch()
        keys = erased.stage(batch, record, placed.cids)
        rows.write(batch, sync=True)
        erased.compact(keys)

        assert envelope not in files_of(tmp_path)
        assert envelope[60:160] not in files_of(tmp_path)
        assert EnvelopeStore(rows).envelope_of(Rid(bytes(32))) is not None
        rows.close()


async def test_a_records_ciphertext_is_in_no_file_of_the_payloads(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    payloads = open_payloads(tmp_path, create=True)
    async with erasing_houses(payloads=payloads) as (hospital, _, holder):
        patient = await admit(hospital)
        records = [await letter_of(hospital, patient, os.urandom(300_000)) for _ in range(3)]
        await everywhere([holder], records)
        placed = [holder.holder.placed(rid_of(record)) for record in records]
        parts = [(holder.chunks.get(one.cids[0]) or b"")[1_000:2_000] for one in placed if one is not None]
        payloads.flush()
        assert all(part in files_of(tmp_path) for part in parts)

        answer = await hospital.erase(records[1])

        assert answer["pending"] == []
        assert [part in files_of(tmp_path) for part in parts] == [True, False, True]
    payloads.close()


async def test_chunks_that_are_pushed_after_the_erasure_are_deleted_again(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital, clinic, _ = houses
        record = await letter_of(hospital, await admit(hospital))
        await everywhere(houses, [record])
        placed = clinic.holder.placed(rid_of(record))
        assert placed is not None
        late = [(cid, clinic.chunks.get(cid) or b"") for cid in placed.cids]
        await hospital.erase(record)
        assert not list(clinic.chunks.cids())

        clinic.chunks.put_many(late)
        await clinic.until("them to be deleted again", lambda: not list(clinic.chunks.cids()))

        row = clinic.member.rows.get(DESTRUCTION + rid_of(record))
        assert row is not None
        assert bytes(late[0][0]) in row  # known for a day
        clinic.ledger.clock.advance_ms(25 * 3_600_000)
        await clinic.until(
            "their ids to be forgotten", lambda: bytes(late[0][0]) not in (clinic.member.rows.get(DESTRUCTION + rid_of(record)) or b"")
        )  # fmt: skip


async def test_a_store_of_an_older_version_is_counted_once(autojump_clock: MockClock) -> None:
    async with erasing_houses(voters=1) as (hospital,):
        patient = await admit(hospital)
        record, other = await letter_of(hospital, patient), await letter_of(hospital, patient, b"another")
        batch = Batch()
        for key, _ in hospital.member.rows.scan(*prefix_range(b"n")):
            batch.delete(key)
        for key, _ in hospital.member.rows.scan(*prefix_range(RECORD_FILE)):
            batch.delete(key)
        batch.delete(WATCH_MARK + b"references")
        hospital.member.rows.write(batch, sync=True)

        hospital.erased_rows.count_references()

        index = ChunkIndex(hospital.member.rows)
        for one in (record, other):
            placed = hospital.holder.placed(rid_of(one))
            assert placed is not None
            assert [tuple(index.references(cid)) for cid in placed.cids] == [(rid_of(one),)] * len(
                placed.cids
            )
        await hospital.erase(record)
        assert len(list(hospital.member.rows.scan(*prefix_range(FINGERPRINT)))) == 1
        assert (await hospital.get(other))[1] == b"another"
        assert [entry["duplicate"] for entry in (await hospital.add(DOCUMENT, patient=patient, category="labs"))["records"]] == [False]  # fmt: skip


async def test_damage_beside_the_chunks_withholds_the_word_and_says_why(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital, clinic, _ = houses
        record = await letter_of(hospital, await admit(hospital))
        await everywhere(houses, [record])
        placed = clinic.holder.placed(rid_of(record))
        assert placed is not None
        clinic.chunks.quarantine(placed.cids[0])

        answer = await hospital.erase(record)

        assert [entry["facility"] for entry in answer["pending"]] == ["clinic"]
        assert "run --rebuild payloads" in answer["pending"][0]["reason"]
        assert "run --rebuild payloads" in clinic.destruction.trouble
        assert not complete(hospital, record)


async def test_no_damaged_copy_of_a_database_outlives_the_word(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with erasing_houses() as houses:
        hospital, clinic, _ = houses
        record = await letter_of(hospital, await admit(hospital))
        await everywhere(houses, [record])
        for name in ("payloads", "payloads.damaged-1", "payloads.damaged-2", "ledger", "ledger.damaged-1"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "000005.ldb").write_bytes(b"ciphertext")
        clinic.databases = tmp_path / "payloads", tmp_path / "ledger"

        answer = await hospital.erase(record)

        assert answer["pending"] == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger", "payloads"]


async def test_what_a_rescue_brings_back_is_deleted_again(autojump_clock: MockClock) -> None:
    async with erasing_houses() as houses:
        hospital, clinic, _ = houses
        record = await letter_of(hospital, await admit(hospital))
        rid = rid_of(record)
        await everywhere(houses, [record])
        placed, envelope = clinic.holder.placed(rid), clinic.member.envelopes.envelope_of(rid)
        assert placed is not None
        assert envelope is not None
        chunks = [(cid, clinic.chunks.get(cid) or b"") for cid in placed.cids]
        await hospital.erase(record)
        batch = Batch()
        clinic.member.envelopes.put_envelope(batch, rid, envelope)
        batch.put(CHUNK_LIST + rid, codec.encode(placed))
        batch.delete(ENVELOPE_OF_RECORD + rid)  # the row that names the envelope was among the damaged ones
        batch.delete(WATCH_MARK + b"destruction")
        clinic.member.rows.write(batch, sync=True)
        clinic.chunks.put_many(chunks)

        again = ErasingFacility(clinic.member, clinic.ledger, payloads=clinic.payloads)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again.destruction.run)
            await again.until(
                "it to be gone again", lambda: not again.holds(record) and not list(again.chunks.cids())
            )
            nursery.cancel_scope.cancel()

        assert isinstance(await again.destruction.ask(rid, ()), Attestation)
        assert clinic.member.rows.get(ENVELOPE + envelope_hash(envelope)) is None


class PushedWhileDeleting(ChunkStore):
    """A chunk comes again from a member that has not come to the erasure, right after it was deleted."""

    pushed: tuple[Cid, bytes] | None = None

    def delete(self, cids: Sequence[Cid]) -> int:
        again, self.pushed = self.pushed, None
        deleted = super().delete(cids)
        if again is not None:
            self.put_many([again])
        return deleted


async def test_no_word_is_given_over_a_chunk_that_came_back_meanwhile(autojump_clock: MockClock) -> None:
    async with erasing_houses(last_destroys=False) as houses:
        hospital, _, laboratory = houses
        record = await letter_of(hospital, await admit(hospital))
        await everywhere(houses, [record])
        placed = laboratory.holder.placed(rid_of(record))
        assert placed is not None
        await hospital.erase(record)
        chunks = PushedWhileDeleting(laboratory.payloads, laboratory.member.rows)
        chunks.pushed = placed.cids[0], chunks.get(placed.cids[0]) or b""
        laboratory.destruction._chunks = chunks
        held: list[bool] = []

        async with trio.open_nursery() as nursery:
            nursery.start_soon(laboratory.destruction.run)

            def is_attested() -> bool:
                row = laboratory.member.rows.get(DESTRUCTION + rid_of(record))
                if row is None or not codec.decode(row, Destroying).attestations:
                    return False
                held.append(chunks.has(placed.cids[0]))
                return True

            await laboratory.until("its word", is_attested)
            nursery.cancel_scope.cancel()

        assert chunks.pushed is None
        assert held
        assert not any(held)


async def test_no_word_is_given_while_a_backup_keeps_the_bytes_in_the_files(
    autojump_clock: MockClock,
) -> None:
    async with erasing_houses(last_destroys=False) as houses:
        hospital, _, laboratory = houses
        record = await letter_of(hospital, await admit(hospital))
        await everywhere(houses, [record])
        await hospital.erase(record)
        rows = BeingRead(laboratory.member.rows)
        laboratory.erased_rows._rows = rows

        async with trio.open_nursery() as nursery:
            nursery.start_soon(laboratory.destruction.run)
            await laboratory.until("it to be in the way", lambda: "backup" in laboratory.destruction.trouble)
            answer = await hospital.erase(record)
            assert [(entry["facility"], entry["reason"]) for entry in answer["pending"]] == [
                ("laboratory", laboratory.destruction.trouble)
            ]
            rows.is_read = False
            await hospital.until("every word", lambda: complete(hospital, record))
            nursery.cancel_scope.cancel()

        assert laboratory.destruction.trouble == ""
        assert laboratory.holds(record) == set()


class BeingRead:
    """Rows that somebody scans."""

    def __init__(self, rows: KeyValue) -> None:
        self._inner = rows
        self.is_read = True

    def get(self, key: bytes) -> bytes | None:
        return self._inner.get(key)

    def write(self, batch: Batch, *, sync: bool) -> None:
        self._inner.write(batch, sync=sync)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return self._inner.scan(start, stop, reverse=reverse)

    def flush(self) -> None:
        self._inner.flush()

    def compact(self, start: bytes, stop: bytes) -> bool:
        return self._inner.compact(start, stop) and not self.is_read

    def close(self) -> None:
        self._inner.close()
