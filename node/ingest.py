"""`record add`: the bytes of a file become sealed records of one patient, on disk and in the queue before it is reported.

    read ──► kind ──► seal and store while it streams ──► whose, which categories ──► vaults, envelopes ──► queue ──► final

The received bytes are kept exactly, as the first record. When they fall into one category that record is the document;
when they span several it is the original, in `mixed`, and every category gets a view. Refused at any point: the chunks
stored so far are deleted again, and nothing is kept.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing

import trio

from node.chunk_writer import ChunkWriter
from node.pacing import Pace
from node.ports import Clock, Entropy, Workers
from node.record_queue import RecordQueue
from node.settling import Settled, Settling
from node.small_documents import SmallDocuments
from node.small_files import SmallFile
from node.staging import BATCH_BYTES, Staging, dropped_on_failure
from node.upload import Owner, Upload
from protocol import limits
from protocol.errors import CarechainError, Refused
from storage.key_value import Batch

_BLOCK_BYTES = limits.MIB
"""Gathered before a worker is called, for two milliseconds: blocks of the ledger are verified in the same threads."""
_UPLOADS_MAX = 4


class Ingest:
    """Takes files in. `check_room` raises StorageFull at the disk's reserve, `check_quota` at the quota."""

    def __init__(
        self,
        *,
        settling: Settling,
        writer: ChunkWriter,
        queue: RecordQueue,
        workers: Workers,
        entropy: Entropy,
        check_room: Callable[[], None],
        check_quota: Callable[[], None],
        clock: Clock,
        pace: Pace,
    ) -> None:
        self._settling = settling
        self._clock = clock
        self._pace = pace
        self._writer = writer
        self._queue = queue
        self._workers = workers
        self._entropy = entropy
        self._check_room = check_room
        self._check_quota = check_quota
        self._small = SmallDocuments(settling, queue, workers, entropy)
        self._uploads = trio.CapacityLimiter(_UPLOADS_MAX)

    async def add(
        self,
        stream: AsyncIterator[bytes],
        *,
        patient: str | None = None,
        category: str | None = None,
        media_type: str | None = None,
        file_suffix: str = "",
        force: bool = False,
    ) -> dict[str, object]:
        """Return {"records": […]}, the original or only record first, once all of them are final.

        Raises:
            Refused, Forbidden: nothing was kept.
            StorageFull: no room; nothing was kept.
            NotFinal: sealed and queued, with the same document in `details`; it becomes final by itself.
        """
        named, chosen = self._settling.options(patient, category)
        async with self._uploads:
            staging = self._staging()
            async with aclosing(_gathered(stream)) as blocks, dropped_on_failure(staging):
                head = await anext(blocks, b"")
                upload = Upload(
                    head, media_type=media_type, file_suffix=file_suffix, chosen=chosen, entropy=self._entropy
                )
                await self._seal(upload, staging, head, blocks)
                findings = await self._workers.run(upload.finish)
                owner = self._settling.owner(findings, named, force=force)
                settled = await self._settle(upload, staging, owner)
        is_final = await self._settling.is_final((settled,))
        document = self._settling.entry(settled)
        if not is_final:
            raise self._settling.not_final((settled,), document)
        return document

    async def add_many(
        self,
        files: Sequence[SmallFile],
        *,
        patient: str | None = None,
        category: str | None = None,
        force: bool = False,
    ) -> dict[str, object]:
        """Return {"files": […]}, one for each small file in order: {"records": […]}, or {"error": …} of a refused one.

        Raises:
            Refused, Forbidden: of the options; nothing was kept.
            StorageFull: no room; nothing was kept.
            NotFinal: those not refused are sealed and queued, with the same document in `details`.
        """
        async with self._uploads:
            outcomes = await self._small.add(
                files, self._staging(), patient=patient, category=category, force=force
            )
        settled = [one for one in outcomes if isinstance(one, Settled)]
        is_final = await self._settling.is_final(settled)
        document: dict[str, object] = {"files": [self._told(one) for one in outcomes]}
        if not is_final:
            raise self._settling.not_final(settled, document)
        return document

    def _told(self, outcome: Settled | CarechainError) -> dict[str, object]:
        try:
            if isinstance(outcome, Settled):
                return self._settling.entry(outcome)
        except Refused as refused:
            outcome = refused
        return {"error": str(outcome)}

    def _staging(self) -> Staging:
        return Staging(
            self._writer,
            self._check_room,
            lambda: BATCH_BYTES if self._pace.is_quiet() else _BLOCK_BYTES,
            check_quota=self._check_quota,
        )

    async def _seal(
        self, upload: Upload, staging: Staging, head: bytes, blocks: AsyncIterator[bytes]
    ) -> None:
        block = head
        while block:
            began_ms = self._clock.now_ms()
            await staging.put(await self._workers.run(upload.consume, block))
            worked_ms = self._clock.now_ms() - began_ms
            block = await anext(blocks, b"")
            if block:
                await self._pace.rest(worked_ms)

    async def _settle(self, upload: Upload, staging: Staging, owner: Owner) -> Settled:
        """Turn the upload into queued records, or find those that it became before."""
        await staging.put(await self._workers.run(upload.seal_main, owner))
        async with self._settling.alone(self._settling.fingerprint(upload)):
            known = self._settling.known(upload, owner)
            if known is not None:
                await staging.drop()
                return known
            while chunks := await self._workers.run(upload.seal_views, owner):
                await staging.put(chunks)
            await staging.finish()
            await staging.drop(sorted(set(staging.stored) - set(upload.cids)))
            batch = Batch()
            settled, queued = self._settling.stage(batch, upload, owner)
            # One batch: the point from which the file is safe.
            await self._queue.add(queued, batch)
            staging.keep()
        return settled


async def _gathered(stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the stream in blocks of `_BLOCK_BYTES`, the last one shorter."""
    pieces: list[bytes] = []
    size = 0
    async for piece in stream:
        pieces.append(piece)
        size += len(piece)
        if size >= _BLOCK_BYTES:
            yield b"".join(pieces)
            pieces, size = [], 0
    if pieces:
        yield b"".join(pieces)
