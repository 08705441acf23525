"""`carechain bench storage`: one node seals and stores a set of files durably, then reads them back and verifies them.

The set is that of the design's storage page: three quarters incompressible (images), one quarter NDJSON, 512 MiB in all,
made from a fixed seed. It takes the product's own way: `StagedRecord` and `Staging` going in (hash, compress, seal,
store, synchronise), `OpenedRecord` coming out (every chunk against its id, the whole against its SHA-256). Not in it:
the socket, the sorting of FHIR into categories, replication, the ledger. What is read was written moments before and
comes from the machine's memory: a cold disk gives what it can.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from node.bench import ingredients
from node.bench.ingredients import Row, figure, percentile, row
from node.opening import OpenedRecord
from node.ports import Workers
from node.retrieval import Retrieval
from node.staging import StagedRecord, Staging
from node.system import SystemEntropy, ThreadWorkers
from protocol import limits
from protocol.errors import Unavailable
from protocol.identifiers import ZERO, Cid, Digest, Height, NodeId, Rid, Txid, Vid
from protocol.ledger_rows import Record
from protocol.sealing import RecordOpener
from storage.chunk_store import ChunkStore
from storage.databases import open_ledger, open_payloads
from storage.disk_reserve import check_reserve

ADD_TARGET, READ_TARGET = 200.0, 300.0
_SET_BYTES = 512 * limits.MIB
_INCOMPRESSIBLE = 3 / 4
_FILE_BYTES = 64 * limits.MIB
_BLOCK_BYTES = 4 * limits.MIB
"""What `ingest` gathers before it hands on."""
_NDJSON_BYTES = 8 * limits.MIB
_SEED = bytes(range(32))
_ROUNDS = 3
_WORKER_THREADS = 2


@dataclass(frozen=True, slots=True, repr=False)
class StoredFile:
    """A file in the store and what opens it again."""

    rid: Rid
    dek: bytes
    cids: tuple[Cid, ...]
    plain_bytes: int


@dataclass(frozen=True, slots=True)
class _Round:
    add_s: float
    read_s: float
    plain_bytes: int
    stored_bytes: int
    chunks: int


def measure(
    *,
    minutes: float | None = None,
    fill_bytes: int | None = None,
    compare: bool = False,
    show: Callable[[str], None] = print,
) -> dict[str, list[Row]]:
    """Measure and return `figures`, `ingredients` and, with `compare`, `ratios`.

    `fill_bytes` is the size of the set; it is stored three times, each time into a new store, or as often as `minutes`
    allow, and the median counts.

    Raises:
        StorageFull: the temporary folder's disk has no room for the set.
    """
    set_bytes = fill_bytes or _SET_BYTES
    with tempfile.TemporaryDirectory(prefix="carechain-bench-") as folder:
        show("measuring what the machine can do …")
        parts = ingredients.of_storage(Path(folder))
    rounds: list[_Round] = []
    began = time.monotonic()
    while len(rounds) < _ROUNDS if minutes is None else not rounds or time.monotonic() - began < minutes * 60:
        show(f"storing and reading {set_bytes / limits.MIB:.0f} MiB …")
        with tempfile.TemporaryDirectory(prefix="carechain-bench-") as folder:
            rounds.append(trio.run(_round, Path(folder), set_bytes))
    add = percentile([_mib(one.plain_bytes) / one.add_s for one in rounds], 0.5)
    read = percentile([_mib(one.plain_bytes) / one.read_s for one in rounds], 0.5)
    parts += [
        row("rounds", len(rounds), ""),
        row("set", _mib(rounds[0].plain_bytes), "MiB"),
        row("stored", _mib(rounds[0].stored_bytes), "MiB of ciphertext"),
        row("chunks", rounds[0].chunks, ""),
    ]
    figures = [
        figure("add", add, "MiB/s", ADD_TARGET, least=True),
        figure("read", read, "MiB/s", READ_TARGET, least=True),
    ]
    return {
        "figures": figures,
        "ingredients": parts,
        "ratios": _ratios(add or 0.0, read or 0.0, parts) if compare else [],
    }


def _ratios(add: float, read: float, parts: list[Row]) -> list[Row]:
    # Both ways every plain byte is hashed twice (itself and as ciphertext) and ciphered once.
    per_mib = 2 / ingredients.value_of(parts, "sha256") + 1 / ingredients.value_of(parts, "aes_256_gcm")
    most = ingredients.cores() / per_mib
    return [
        {
            "name": name,
            "of": "cores / (2 SHA-256 + AES-256-GCM)",
            "machine": ingredients.rounded(most),
            "share": ingredients.rounded(value / most),
        }
        for name, value in (("add", add), ("read", read))
    ]


async def _round(folder: Path, set_bytes: int) -> _Round:
    """Store the set into new databases and read it back."""
    payloads, ledger = open_payloads(folder, create=True), open_ledger(folder, create=True)
    workers = ThreadWorkers(_WORKER_THREADS)
    try:
        chunks = ChunkStore(payloads, ledger)
        sources = tuple(_files(set_bytes))
        began = time.perf_counter()
        stored = [
            await add_file(source, chunks, workers, partial(check_reserve, folder)) for source in sources
        ]
        added = time.perf_counter()
        read_bytes = 0
        for file in stored:
            read_bytes += await read_file(file, chunks, workers)
        read = time.perf_counter()
        held = chunks.statistics()
    finally:
        payloads.close()
        ledger.close()
    assert read_bytes == sum(file.plain_bytes for file in stored), "what went in came out"
    return _Round(added - began, read - added, read_bytes, held.bytes, held.chunks)


async def add_file(
    source: Iterator[bytes], chunks: ChunkStore, workers: Workers, check_room: Callable[[], None]
) -> StoredFile:
    """Seal and store one file, durably on return, as `ingest` does for a document of one category.

    Raises:
        StorageFull: it could not be stored.
    """
    entropy = SystemEntropy()
    record = StagedRecord(Rid(entropy.bytes(32)), entropy.bytes(32))
    staging = Staging(chunks, workers, check_room)
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


def _files(set_bytes: int) -> Iterator[Iterator[bytes]]:
    """Yield the files of the set, each as blocks.

    The bytes repeat after some MiB, which no step can use: it is beyond zstd's window, and equal plaintext never gives
    equal chunks. So making them costs nothing while the clock runs.
    """
    incompressible = _incompressible(min(_FILE_BYTES, set_bytes) // 2)
    images = int(set_bytes * _INCOMPRESSIBLE)
    for start in range(0, images, _FILE_BYTES):
        yield _blocks(incompressible, min(_FILE_BYTES, images - start))
    yield _blocks(_ndjson(min(_NDJSON_BYTES, set_bytes)), set_bytes - images)


def _blocks(pattern: bytes, size: int) -> Iterator[bytes]:
    view, start = memoryview(pattern * 2), 0
    while start < size:
        offset = start % len(pattern)
        block = bytes(view[offset : offset + min(_BLOCK_BYTES, size - start, len(pattern))])
        yield block
        start += len(block)


def _incompressible(size: int) -> bytes:
    encryptor = Cipher(algorithms.AES(_SEED), modes.CTR(bytes(16))).encryptor()
    return encryptor.update(bytes(size))


def _ndjson(size: int) -> bytes:
    """Return lines of laboratory results that differ as real ones do: ids, times and values."""
    lines: list[bytes] = []
    total = 0
    digits = _incompressible(size // 8).hex()
    for number in range(size):
        part = digits[number * 48 % (len(digits) - 48) :][:48]
        line = (
            f'{{"resourceType":"Observation","id":"{part[:32]}","status":"final","category":[{{"coding":[{{"system":'
            f'"http://terminology.hl7.org/CodeSystem/observation-category","code":"laboratory"}}]}}],"code":{{"coding":'
            f'[{{"system":"http://loinc.org","code":"{2000 + number % 7000}-{number % 10}"}}]}},"subject":{{"reference":'
            f'"Patient/{number % 1000}"}},"effectiveDateTime":"2024-{number % 12 + 1:02}-{number % 28 + 1:02}T08:'
            f'{number % 60:02}:00Z","valueQuantity":{{"value":{int(part[32:38], 16) / 1000},"unit":"mg/dL"}}}}\n'
        ).encode()
        lines.append(line)
        total += len(line)
        if total >= size:
            break
    return b"".join(lines)[:size]


def _mib(count: int) -> float:
    return count / limits.MIB
