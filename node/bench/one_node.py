"""One node's store under `carechain bench storage`: the product's own way in and out, and nothing else.

Going in `Upload` or `StagedRecord`, `Staging` and `ChunkWriter` (hash, compress, seal, store, synchronise), coming out
`OpenedRecord` (every chunk against its id, the whole against its SHA-256). Not in it: the socket, replication, the ledger.
What is read was written moments before and comes from the machine's memory: a cold disk gives what it can.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from node.bench import sample_set
from node.chunk_writer import ChunkWriter
from node.opening import OpenedRecord
from node.patients import LocalPatient
from node.ports import Workers
from node.queued_record import QueuedRecord
from node.record_index import RecordIndex, RecordNote
from node.retrieval import Retrieval
from node.sealed_rows import SealedRows
from node.staging import StagedRecord, Staging
from node.system import SystemEntropy, ThreadWorkers
from node.upload import Owner, Upload
from protocol import codec, limits
from protocol.errors import Unavailable
from protocol.identifiers import ZERO, Cid, Digest, Height, NodeId, Rid, Txid, Vid
from protocol.ledger_rows import Record
from protocol.person import Person
from protocol.sealing import RecordOpener, SealedChunk
from storage.chunk_index import ChunkIndex
from storage.chunk_store import ChunkStore
from storage.databases import open_ledger, open_payloads
from storage.disk_reserve import check_reserve
from storage.key_value import Batch, KeyValue
from storage.keyspace import RECORD_QUEUE

_WORKER_THREADS = 2
_SMALL_PER_BATCH = 256
_SMALL_PER_CALL = 32
"""As `node/small_documents.py` takes them."""
_QUARTERS = 4


@dataclass(frozen=True, slots=True, repr=False)
class StoredFile:
    """A file in the store and what opens it again."""

    rid: Rid
    dek: bytes
    cids: tuple[Cid, ...]
    plain_bytes: int


@dataclass(frozen=True, slots=True)
class Round:
    """What storing a set and reading it back took."""

    add_s: float
    read_s: float
    plain_bytes: int
    stored_bytes: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Filling:
    """What filling a store took, quarter by quarter; `written_bytes` is what the kernel sent to the disk for it."""

    quarters_s: tuple[float, ...]
    stored_bytes: int
    written_bytes: int


@dataclass(frozen=True, slots=True)
class _Store:
    chunks: ChunkStore
    writer: ChunkWriter
    workers: Workers
    ledger: KeyValue
    folder: Path

    def staging(self) -> Staging:
        return Staging(self.writer, partial(check_reserve, self.folder))


@asynccontextmanager
async def _store(folder: Path) -> AsyncIterator[_Store]:
    payloads, ledger = open_payloads(folder, create=True), open_ledger(folder, create=True)
    try:
        chunks = ChunkStore(payloads, ledger)
        yield _Store(
            chunks, ChunkWriter(chunks, ThreadWorkers(1)), ThreadWorkers(_WORKER_THREADS), ledger, folder
        )
    finally:
        payloads.close()
        ledger.close()


async def store_and_read(folder: Path, set_bytes: int) -> Round:
    """Store the set into new databases and read it back.

    Raises:
        StorageFull: there is no room for it.
    """
    async with _store(folder) as store:
        sources = tuple(sample_set.files(set_bytes))
        began = time.perf_counter()
        stored = [await add_file(source, store.staging(), store.workers) for source in sources]
        added = time.perf_counter()
        read_bytes = 0
        for file in stored:
            read_bytes += await read_file(file, store.chunks, store.workers)
        read = time.perf_counter()
        held = store.chunks.statistics()
    assert read_bytes == sum(file.plain_bytes for file in stored), "what went in came out"
    return Round(added - began, read - added, read_bytes, held.bytes, held.chunks)


async def fill(folder: Path, size: int, show: Callable[[str], None]) -> Filling:
    """Store incompressible files into one store, quarter by quarter.

    Raises:
        StorageFull: there is no room for it.
    """
    noise = sample_set.incompressible(32 * limits.MIB)
    quarters: list[float] = []
    written = written_bytes()
    async with _store(folder) as store:
        for quarter in range(_QUARTERS):
            began = time.perf_counter()
            await add_file(sample_set.blocks(noise, size // _QUARTERS), store.staging(), store.workers)
            quarters.append(time.perf_counter() - began)
            show(
                f"quarter {quarter + 1} of {_QUARTERS}: {size / _QUARTERS / limits.MIB / quarters[-1]:.0f} MiB/s"
            )
        held = store.chunks.statistics()
    return Filling(tuple(quarters), held.bytes, written_bytes() - written)


def written_bytes(process: int | str = "self") -> int:
    """Return how many bytes a process has had sent to a disk so far."""
    for line in Path(f"/proc/{process}/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    return 0


async def add_file(source: Iterator[bytes], staging: Staging, workers: Workers) -> StoredFile:
    """Seal and store one file, durably on return, as `ingest` does for a document of one category.

    Raises:
        StorageFull: it could not be stored.
    """
    entropy = SystemEntropy()
    record = StagedRecord(Rid(entropy.bytes(32)), entropy.bytes(32))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(staging.run)
        for block in source:
            await staging.put(await workers.run(record.write, block))
        finish = partial(
            record.finish,
            media_type="application/octet-stream",
            kind="document",
            category="imaging",
            part_of=None,
            identity_override=False,
        )
        await staging.put(await workers.run(finish))
        await staging.finish()
    return StoredFile(record.rid, record.dek, record.cids, record.plain_bytes)


async def read_file(file: StoredFile, chunks: ChunkStore, workers: Workers) -> int:
    """Read one file back and return its bytes' number.

    Raises:
        Corruption: it is not what was stored.
        Unavailable: a chunk is missing.
    """
    retrieval = _OwnStore(chunks, workers)
    record = Record(
        file.rid, Vid(ZERO), 0, NodeId(ZERO), Digest(ZERO), Height(0), 0, Txid(ZERO)
    )  # only its id is looked at: nothing is fetched and there is no envelope
    manifest = file.cids[-1]
    (sealed,) = await retrieval.chunks((manifest,), record.author)
    opener = await workers.run(RecordOpener, file.dek, file.rid, manifest, sealed)
    return sum([len(block) async for block in OpenedRecord(record, opener, retrieval, workers).stream()])


async def add_small(folder: Path, results: Sequence[bytes]) -> float:
    """Take in small documents in batches, each durable before the next begins; return how many per second.

    With all their rows, as `record add` would keep them; but nobody is asked whose they are.
    """
    async with _store(folder) as store:
        rows = SealedRows(store.ledger, bytes(32), SystemEntropy())
        began = time.perf_counter()
        for start in range(0, len(results), _SMALL_PER_BATCH):
            await _add_batch(store, rows, results[start : start + _SMALL_PER_BATCH])
        return len(results) / (time.perf_counter() - began)


async def _add_batch(store: _Store, rows: SealedRows, results: Sequence[bytes]) -> None:
    batch, index, staging = Batch(), RecordIndex(rows), store.staging()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(staging.run)
        for start in range(0, len(results), _SMALL_PER_CALL):
            for upload, chunks in await store.workers.run(
                _sealed_all, results[start : start + _SMALL_PER_CALL]
            ):
                await staging.put(chunks)
                staged = upload.main
                note = RecordNote(
                    staged.rid,
                    Vid(ZERO),
                    "bench",
                    "labs",
                    "document",
                    Rid(ZERO),
                    staged.plain_bytes,
                    len(staged.cids),
                    staged.padding_bytes,
                    0,
                )
                fingerprint = rows.fingerprint(staged.sha256, staged.plain_bytes)
                assert index.family(fingerprint) is None, "every result is another one"
                index.put_note(batch, note)
                index.put_family(batch, fingerprint, "bench", (staged.rid,))
                record = QueuedRecord(staged.rid, Vid(ZERO), 0, staged.dek, b"", staged.cids)
                rows.put(batch, RECORD_QUEUE + staged.rid, codec.encode(record))
                ChunkIndex.refer(batch, staged.cids, staged.rid)
        await staging.finish()
    await store.workers.run(partial(store.ledger.write, batch, sync=True))


def _sealed_all(results: Sequence[bytes]) -> list[tuple[Upload, list[SealedChunk]]]:
    nobody = Owner(LocalPatient("bench", "facility", Person("", "", ()), (), ()), override=False)
    sealed: list[tuple[Upload, list[SealedChunk]]] = []
    for result in results:
        upload = Upload(result, media_type=None, file_suffix="", chosen=None, entropy=SystemEntropy())
        chunks = upload.consume(result)
        upload.finish()
        chunks += upload.seal_main(nobody)
        assert not upload.seal_views(nobody), "a result has one category"
        sealed.append((upload, chunks))
    return sealed


class _OwnStore(Retrieval):
    """Retrieval from the own store alone: there is nobody to ask for what is missing."""

    def __init__(
        self, chunks: ChunkStore, workers: Workers
    ) -> None:  # the base class's other parts are for fetching
        self._chunks = chunks
        self._workers = workers

    async def fetch(self, cids: tuple[Cid, ...], _author: NodeId) -> dict[Cid, bytes]:
        """Refuse.

        Raises:
            Unavailable: always.
        """
        raise Unavailable(f"{len(cids)} chunks are missing")
