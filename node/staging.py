"""A file on its way in: compressed, sealed and stored while it still arrives, and forgotten again if it is refused.

    bytes ──► StagedRecord (a worker: hash, compress, seal) ──► Staging (`ChunkWriter`: durable writes of 8 MiB)

While one batch is being stored the next one is sealed. Small records share a batch. Nothing plain ever touches the disk, and no more than a few MiB
of it are in memory.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio
import zstandard

from node.chunk_writer import ChunkWriter
from protocol import limits
from protocol.errors import CarechainError
from protocol.identifiers import Cid, Rid
from protocol.manifest import Meta
from protocol.sealing import RecordSealer, SealedChunk

BATCH_BYTES = 8 * limits.MIB
"""Of chunks in one durable write: fsync costs little beside 8 MiB, and three batches in hand are little memory."""
_SAMPLE_BYTES = 64 * limits.KIB
_SAVING_MIN = 0.10
_WRITE_BYTES = 256 * limits.KIB
"""Small pieces (the resources of a view) are gathered up to here before they are compressed and sealed."""
_ZSTD_LEVEL = 1


class StagedRecord:
    """One record being sealed. Used by one worker at a time; `dek` is 32 fresh random bytes."""

    def __init__(self, rid: Rid, dek: bytes) -> None:
        self.rid = rid
        self.dek = dek
        self.plain_bytes = 0
        self.cids: tuple[Cid, ...] = ()
        self.padding_bytes = 0
        self._sealer = RecordSealer(dek, rid)
        self._sha256 = hashlib.sha256()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._compressor: zstandard.ZstdCompressionObj | None = None
        self._compression = ""

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the exact bytes so far."""
        return self._sha256.digest()

    def write(self, piece: bytes) -> list[SealedChunk]:
        """Take the next bytes; return the chunks they complete.

        Raises:
            Refused: the record passes 64 GiB.
        """
        self._pending.append(piece)
        self._pending_bytes += len(piece)
        return self._flush() if self._pending_bytes >= _WRITE_BYTES else []

    def finish(
        self, *, media_type: str, kind: str, category: str, part_of: Rid | None, identity_override: bool
    ) -> list[SealedChunk]:
        """Seal the rest and the manifest; afterwards `cids` are all chunks of the record, the manifest last.

        Raises:
            Refused: the media type is too long.
        """
        chunks = self._flush()
        if self._compressor is not None:
            chunks += self._sealer.write(self._compressor.flush())
        meta = Meta(
            media_type,
            "",
            "",
            kind,
            category,
            part_of or b"",
            self._compression,
            self.plain_bytes,
            self.sha256,
            identity_override,
        )
        sealed = self._sealer.finish(meta)
        self.cids, self.padding_bytes = sealed.cids, sealed.padding_bytes
        return [*chunks, *sealed.last_chunks]

    def _flush(self) -> list[SealedChunk]:
        data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
        self._pending, self._pending_bytes = [], 0
        if not self._compression:
            self._choose_compression(data)
        self.plain_bytes += len(data)
        self._sha256.update(data)
        return self._sealer.write(data if self._compressor is None else self._compressor.compress(data))

    def _choose_compression(self, head: bytes) -> None:
        """Compress when it saves a tenth of the first 64 KiB (storage.md 3)."""
        sample = head[:_SAMPLE_BYTES]
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        if len(compressor.compress(sample)) <= len(sample) * (1 - _SAVING_MIN):
            self._compression, self._compressor = "zstd", compressor.compressobj()
        else:
            self._compression = "none"

    def __repr__(self) -> str:
        return f"StagedRecord({self.rid.hex()[:16]}, {self.plain_bytes} bytes)"


class Staging:
    """Stores the chunks of one upload as they come. `run` beside the task that seals; then `finish`, or `drop`."""

    def __init__(
        self,
        writer: ChunkWriter,
        check_room: Callable[[], None],
        batch_bytes: Callable[[], int] = lambda: BATCH_BYTES,
        *,
        check_quota: Callable[[], None] = lambda: None,
    ) -> None:
        """`batch_bytes` says how much to gather for one durable write now: others wait for the disk meanwhile.

        `check_room` is called before each write, `check_quota` before the first: an upload that was begun is not refused for
        what it stores itself.
        """
        self._writer = writer
        self._check_room = check_room
        self._check_quota = check_quota
        self._batch_bytes = batch_bytes
        self._pending: list[SealedChunk] = []
        self._pending_bytes = 0
        self._stored: list[Cid] = []
        self._failure: CarechainError | None = None
        # No buffer: one batch is being stored and one waits here, while the next is sealed.
        self._send, self._receive = trio.open_memory_channel[tuple[SealedChunk, ...]](0)
        self._ended = trio.Event()

    @property
    def stored(self) -> tuple[Cid, ...]:
        """The chunks of this upload that are, or may be, in the store."""
        return tuple(self._stored)

    def keep(self) -> None:
        """Hand the chunks over to the queue: nothing drops them any more."""
        self._stored = []

    async def run(self) -> None:
        """Store batches until `finish` or `drop`."""
        try:
            async for batch in self._receive:
                if self._failure is None:
                    try:
                        await self._store(batch)
                    except CarechainError as error:
                        self._failure = error
        finally:
            self._ended.set()

    async def put(self, chunks: Sequence[SealedChunk]) -> None:
        """Take chunks; waits while two batches are ahead.

        Raises:
            StorageFull: an earlier batch could not be stored.
        """
        for chunk in chunks:
            self._pending.append(chunk)
            self._pending_bytes += len(chunk.data)
            if self._pending_bytes >= self._batch_bytes():
                await self._send.send(self._taken())
                self._raise_failure()

    async def finish(self) -> None:
        """Store the rest; everything is durable on return.

        Raises:
            StorageFull: something could not be stored.
        """
        if self._pending and self._failure is None:
            await self._send.send(self._taken())
        await self._end()
        self._raise_failure()

    async def drop(self, cids: Sequence[Cid] | None = None) -> None:
        """Delete stored chunks of this upload again: those given, or all of them after ending it."""
        if cids is None:
            self._taken()
            await self._end()
            cids = self._stored
        if cids:
            await self._writer.delete(cids)

    def _taken(self) -> tuple[SealedChunk, ...]:
        batch, self._pending, self._pending_bytes = tuple(self._pending), [], 0
        return batch

    async def _end(self) -> None:
        self._send.close()
        await self._ended.wait()

    async def _store(self, batch: tuple[SealedChunk, ...]) -> None:
        self._check_room()
        if not self._stored:
            self._check_quota()
        # Noted first: what a cancelled write may have stored is dropped with the rest.
        self._stored += [chunk.cid for chunk in batch]
        await self._writer.put([(chunk.cid, chunk.data) for chunk in batch])

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


@asynccontextmanager
async def dropped_on_failure(staging: Staging) -> AsyncIterator[None]:
    """Run a staging beside the body; when the body fails, delete what was stored and raise the body's own error."""
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(staging.run)
        try:
            yield
        except BaseException as error:  # noqa: BLE001  (raised again below, outside the nursery, so that it stays itself)
            failure = error
            with trio.CancelScope(shield=True):
                await staging.drop()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
