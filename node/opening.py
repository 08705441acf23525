"""A record opened: envelope, manifest, chunks, and the exact bytes as they were received, in a stream.

Never called before the Read is final (`node/query.py`). The next chunks are fetched while the present ones are opened;
what is inflated is bounded piece by piece, and by the length that the manifest states, before it is handed on. The last
piece is only handed out when the whole has the manifest's length and hash, so that a broken record never looks complete.
"""

import hashlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TypeVar

import trio
import zstandard

from node.ports import Workers
from node.retrieval import GROUP, Retrieval
from protocol import limits
from protocol.configuration import Configuration
from protocol.envelope import Label, OpenedEnvelope, open_envelope
from protocol.errors import CarechainError, Corruption, RemoteFault
from protocol.identifiers import Cid, Digest, NetworkId, NodeId, PublicKey
from protocol.ledger_rows import Record
from protocol.manifest import Meta
from protocol.sealing import RecordOpener

T = TypeVar("T")

_GROUPS_AT_ONCE = limits.CHUNKS_IN_FLIGHT_PER_PEER // GROUP
_INFLATED_BYTES = 4 * limits.MIB
_SOURCE_BYTES = _INFLATED_BYTES + limits.MIB
"""Inflating 4 MiB takes no more input than this (a stored zstd block costs 3 bytes in 128 KiB, plus what is read ahead)."""


class Opening:
    """Opens records with the category's secret."""

    def __init__(
        self, network: NetworkId, configuration: Configuration, retrieval: Retrieval, workers: Workers
    ) -> None:
        self._network = network
        self._suites = configuration.suites
        self._retrieval = retrieval
        self._workers = workers

    async def open(self, record: Record, category_secret: bytes) -> "OpenedRecord":
        """Return what the manifest says, and the way to the bytes.

        Raises:
            Unavailable: a part is on no member that answers.
            Corruption: what the author sealed does not open.
        """
        envelope = await self._retrieval.envelope(record)
        label = Label(self._network, record.vid, record.epoch, record.rid, PublicKey(record.author))
        try:
            opened = await self._workers.run(
                self._open_envelope, envelope, label, category_secret, Digest(record.env_hash)
            )
            (manifest,) = await self._retrieval.chunks((opened.manifest_cid,), record.author)
            opener = await self._workers.run(
                RecordOpener, opened.dek, record.rid, opened.manifest_cid, manifest
            )
            while opener.pages:
                (page,) = await self._retrieval.chunks(opener.pages[:1], record.author)
                await self._workers.run(opener.add_page, page)
        except RemoteFault:
            raise _rubbish(record) from None
        return OpenedRecord(record, opener, self._retrieval, self._workers)

    def _open_envelope(
        self, envelope: bytes, label: Label, secret: bytes, env_hash: Digest
    ) -> OpenedEnvelope:
        return open_envelope(envelope, label, secret, suites=self._suites, env_hash=env_hash)


class OpenedRecord:
    """One record whose manifest is open."""

    def __init__(self, record: Record, opener: RecordOpener, retrieval: Retrieval, workers: Workers) -> None:
        self._record = record
        self._opener = opener
        self._retrieval = retrieval
        self._workers = workers

    @property
    def meta(self) -> Meta:
        """What the record is: personal data."""
        return self._opener.meta

    async def stream(self, start: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield the exact bytes received, from `start` on.

        Of a record that is not compressed nothing before is fetched or opened; its digest is then the caller's to check,
        who has the beginning.

        Raises:
            Unavailable: a chunk is on no member that answers.
            Corruption: the bytes are not those that the manifest describes; the last piece was withheld.
        """
        meta, digest = self.meta, hashlib.sha256()
        is_plain = meta.compression != "zstd"
        first = min(start // limits.CHUNK_PLAIN_BYTES, len(self._opener.cids) - 1) if is_plain else 0
        total = first * limits.CHUNK_PLAIN_BYTES
        async with aclosing(self._sealed(first) if is_plain else self._inflated()) as blocks:
            block = await anext(blocks, b"")
            while block:
                before, total = total, total + len(block)
                if total > meta.plain_bytes:
                    raise _rubbish(self._record)
                # Hashed while the next ones are opened.
                hashed = partial(self._hash, digest, block)
                _, following = await _together([hashed, partial(_next, blocks)])
                if not following and (
                    total != meta.plain_bytes or (not first and digest.digest() != meta.sha256)
                ):
                    raise _rubbish(self._record)
                if total > start:
                    yield block[max(0, start - before) :]
                block = following
        if total != meta.plain_bytes:
            raise _rubbish(self._record)

    async def _hash(self, digest: "hashlib._Hash", block: bytes) -> bytes:
        await self._workers.run(digest.update, block)
        return b""

    async def _sealed(self, first: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield what was sealed from a chunk on, some chunks at a time; the next are fetched while these are opened."""
        step = GROUP * _GROUPS_AT_ONCE
        loaded = await self._load(first)
        for start in range(first, len(self._opener.cids), step):
            present, following = loaded, start + step
            opened = await _together(
                [partial(self._open_block, start, present), partial(self._load, following)]
            )
            plain, loaded = b"".join(opened[0]), opened[1]
            if plain:
                yield plain

    async def _inflated(self) -> AsyncGenerator[bytes, None]:
        source = _Source()
        reader = zstandard.ZstdDecompressor().stream_reader(source)  # type: ignore[arg-type]  # it needs `read` alone
        blocks = self._sealed()
        async with aclosing(blocks):
            is_ended = False
            while True:
                while not is_ended and source.buffered < _SOURCE_BYTES:
                    block = await anext(blocks, None)
                    is_ended = block is None
                    source.add(block or b"")
                try:
                    inflated = await self._workers.run(reader.read, _INFLATED_BYTES)
                except zstandard.ZstdError:
                    raise _rubbish(self._record) from None
                if not inflated:
                    return
                yield inflated

    async def _load(self, start: int) -> tuple[bytes, ...]:
        """Return the ciphertext of the next chunks, none past the end; several groups at once, from several members."""
        cids: tuple[Cid, ...] = self._opener.cids
        author: NodeId = self._record.author
        groups = [
            cids[at : at + GROUP]
            for at in range(start, min(start + GROUP * _GROUPS_AT_ONCE, len(cids)), GROUP)
        ]
        loaded = await _together([partial(self._retrieval.chunks, group, author) for group in groups])
        return tuple([chunk for group in loaded for chunk in group])

    async def _open_block(self, start: int, chunks: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return await self._workers.run(self._open, start, chunks)

    def _open(self, start: int, chunks: tuple[bytes, ...]) -> tuple[bytes, ...]:
        try:
            return tuple([self._opener.open_chunk(start + at, chunk) for at, chunk in enumerate(chunks)])
        except RemoteFault:
            raise _rubbish(self._record) from None

    def __repr__(self) -> str:
        return f"OpenedRecord({self._record.rid.hex()[:16]})"


async def _next(blocks: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(blocks, b"")


async def _together(tasks: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Run tasks at once and return their results in order; the first error cancels the others and is raised as itself."""
    results: dict[int, T] = {}
    failures: list[CarechainError] = []

    async def one(at: int, task: Callable[[], Awaitable[T]]) -> None:
        try:
            results[at] = await task()
        except CarechainError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for at, task in enumerate(tasks):
            nursery.start_soon(one, at, task)
    if failures:
        raise failures[0]
    return [results[at] for at in range(len(tasks))]


class _Source:
    """What the decompressor reads from: never dry before the end, because `buffered` is kept above its need."""

    def __init__(self) -> None:
        self._blocks: deque[memoryview] = deque()
        self.buffered = 0

    def add(self, block: bytes) -> None:
        if block:
            self._blocks.append(memoryview(block))
            self.buffered += len(block)

    def read(self, size: int) -> bytes:
        if not self._blocks:
            return b""
        first = self._blocks.popleft()
        if len(first) > size:
            self._blocks.appendleft(first[size:])
        taken = bytes(first[:size])
        self.buffered -= len(taken)
        return taken


def _rubbish(record: Record) -> Corruption:
    return Corruption(
        f"record {record.rid.hex()} is not what its author's manifest says; ask its author to add it again"
    )
