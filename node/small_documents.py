"""Many small files taken in together: one synchronised write for all chunks, one for all rows.

    read and seal (worker) ──► whose is each ──► seal the rest (worker) ──► chunks: one write ──► rows: one write ──► final

A laboratory result of 2 KiB costs half a millisecond of work; alone, it waits for the disk twice on top of that. Each
file has its own outcome: one that is refused keeps no other out, and nothing of it is ever stored.
"""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from node.ports import Entropy, Workers
from node.queued_record import QueuedRecord
from node.record_queue import RecordQueue
from node.settling import Settled, Settling
from node.small_files import SmallFile
from node.staging import Staging, dropped_on_failure
from node.upload import Owner, Upload
from protocol.errors import CarechainError, Forbidden, Refused, Unavailable
from protocol.health.categories import Category
from protocol.sealing import SealedChunk
from storage.key_value import Batch

_PER_CALL = 32
"""Files sealed in one call of a worker: some 20 ms, after which blocks get their turn to be verified."""


class _Document:
    """One file of a batch, and what becomes of it: in the end it is `settled`, or there is a `failure`."""

    __slots__ = ("chunks", "failure", "file", "owner", "settled", "upload")

    def __init__(self, file: SmallFile) -> None:
        self.file = file
        self.chunks: list[SealedChunk] = []
        self.upload: Upload | None = None
        self.owner: Owner | None = None
        self.settled: Settled | None = None
        self.failure: CarechainError | None = None

    @property
    def read(self) -> Upload:
        """The file once it has been read."""
        assert self.upload is not None, "only asked of files that were not refused"
        return self.upload

    @property
    def owned(self) -> Owner:
        """Whose it is, once that is known."""
        assert self.owner is not None, "only asked of files that were not refused"
        return self.owner

    @property
    def outcome(self) -> Settled | CarechainError:
        """What became of it."""
        outcome = self.failure or self.settled
        assert outcome is not None, "asked at the end"
        return outcome


class SmallDocuments:
    """Takes batches in, of a size that `small_files` bounds."""

    def __init__(self, settling: Settling, queue: RecordQueue, workers: Workers, entropy: Entropy) -> None:
        self._settling = settling
        self._queue = queue
        self._workers = workers
        self._entropy = entropy

    async def add(
        self,
        files: Sequence[SmallFile],
        staging: Staging,
        *,
        patient: str | None,
        category: str | None,
        force: bool,
    ) -> tuple[Settled | CarechainError, ...]:
        """Return for each file what it became, durable and queued, or why it was refused.

        Raises:
            Refused, Forbidden: of the options; nothing was kept.
            StorageFull: no room; nothing was kept.
        """
        documents = [_Document(file) for file in files]
        named, chosen = self._settling.options(patient, category)

        def find_owner(document: _Document) -> None:
            document.owner = self._settling.owner(document.read.findings, named, force=force)

        async with dropped_on_failure(staging), AsyncExitStack() as turns:
            await self._in_worker(lambda document: self._read(document, chosen), documents)
            _attempt_each(find_owner, documents)
            await self._in_worker(_seal, documents)
            standing = [document for document in documents if document.failure is None]
            # In one order, so that two batches never wait for each other.
            for fingerprint in sorted({self._settling.fingerprint(document.read) for document in standing}):
                await turns.enter_async_context(self._settling.alone(fingerprint))
            await self._store(standing, staging)
        return tuple([document.outcome for document in documents])

    async def _in_worker(self, step: Callable[[_Document], None], documents: Sequence[_Document]) -> None:
        for start in range(0, len(documents), _PER_CALL):
            await self._workers.run(_attempt_each, step, documents[start : start + _PER_CALL])

    def _read(self, document: _Document, chosen: Category | None) -> None:
        upload = Upload(
            document.file.data,
            media_type=document.file.media_type or None,
            file_suffix=document.file.file_suffix,
            chosen=chosen,
            entropy=self._entropy,
        )
        if document.file.data:
            document.chunks += upload.consume(document.file.data)
        upload.finish()
        document.upload = upload

    async def _store(self, documents: Sequence[_Document], staging: Staging) -> None:
        """Store and queue those that were not added before, nor stand in the batch twice."""
        batch, queued, new = Batch(), list[QueuedRecord](), list[_Document]()
        seen: dict[bytes, Settled] = {}

        def settle(document: _Document) -> None:
            upload, owner = document.read, document.owned
            fingerprint = self._settling.fingerprint(upload)
            twin = seen.get(fingerprint)
            document.settled = twin.again() if twin is not None else self._settling.known(upload, owner)
            if document.settled is None:
                document.settled, records = self._settling.stage(batch, upload, owner)
                seen[fingerprint] = document.settled
                queued.extend(records)
                new.append(document)

        _attempt_each(settle, documents)
        for document in new:
            await staging.put(document.chunks)
        await staging.finish()
        if queued:
            # One batch: the point from which the files are safe.
            await self._queue.add(queued, batch)
        staging.keep()


def _seal(document: _Document) -> None:
    upload, owner = document.read, document.owned
    document.chunks += upload.seal_main(owner)
    while chunks := upload.seal_views(owner):
        document.chunks += chunks
    kept = set(upload.cids)
    document.chunks = [chunk for chunk in document.chunks if chunk.cid in kept]


def _attempt_each(step: Callable[[_Document], None], documents: Sequence[_Document]) -> None:
    """Take a step with every document that still stands; who fails is left out of those that follow."""
    for document in documents:
        if document.failure is None:
            try:
                step(document)
            except (Refused, Forbidden, Unavailable) as error:
                document.failure = error
