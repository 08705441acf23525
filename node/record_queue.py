"""What is sealed but not final: kept on disk from the moment `record add` reports it, until the ledger has it.

    received ──chunks confirmed, envelope receipted, submitted──► ordered ──applied here──► final (leaves the queue)
        ▲                                                            │
        └────────────── no quorum, stale receipts ───────────────────┘   retried for ever, also after kill -9

The steps are `node/committing.py`'s; small records take them in groups. The DEK stays in the row (sealed) only until then: when the vault's category key has
been rotated meanwhile, the envelope is sealed anew under the present one.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import trio

from node.chunk_holder import put_chunk_list
from node.committing import TOO_FEW_CHUNKS, TOO_FEW_ENVELOPES, Committing, Step
from node.event_log import EventLog
from node.ports import Clock, Disk
from node.queued_record import QueuedRecord
from node.record_index import RecordIndex
from node.repair import put_under_replicated
from node.replication import Tally
from node.sealed_rows import SealedRows
from protocol import chunk_exchange as exchange
from protocol import codec, limits
from protocol.errors import Corruption, LocalFault, StorageFull, Unavailable
from protocol.identifiers import NodeId, Rid
from storage.chunk_index import ChunkIndex
from storage.key_value import Batch
from storage.keyspace import RECORD_QUEUE
from storage.ledger_store import LedgerStore

_CONCURRENT = 12
"""Records on their way at once: enough to fill blocks, few enough to bound memory and calls."""
_CONCURRENT_GROUPS = 4
"""Groups of small records beside them: while one waits for the disks of others, the next one is sealed."""
_RETRY_MS_MIN = 250
_RETRY_MS_MAX = 5_000
_SENT_MAX = 4
"""Commits of one record that are looked for in ordered blocks: an earlier one may still become final."""


class _Progress:
    """What the task knows of one record beside its row."""

    __slots__ = ("done", "fresh", "is_small", "retry_ms", "sent", "tally", "waits")

    def __init__(self, *, fresh: bool, is_small: bool) -> None:
        self.sent = deque[bytes](maxlen=_SENT_MAX)
        self.fresh = fresh
        self.is_small = is_small
        self.retry_ms = _RETRY_MS_MIN
        self.done = trio.Event()
        self.tally = Tally()
        self.waits = ""
        """Why the last try got no further."""


class RecordQueue:
    """Owns the rows of `keyspace.RECORD_QUEUE`."""

    def __init__(
        self,
        *,
        me: NodeId,
        ledger: LedgerStore,
        rows: SealedRows,
        index: RecordIndex,
        disk: Disk,
        committing: Committing,
        clock: Clock,
        log: EventLog,
    ) -> None:
        self._me = me
        self._ledger = ledger
        self._rows = rows
        self._index = index
        self._disk = disk
        self._committing = committing
        self._clock = clock
        self._log = log
        self._progress: dict[Rid, _Progress] = {
            Rid(rid): _Progress(fresh=False, is_small=codec.decode(row, QueuedRecord).is_small)
            for rid, row in rows.scan(RECORD_QUEUE)
        }
        # Small ones and large ones apart: those go in groups, and no group waits for 10 GiB.
        self._send_large, self._large = trio.open_memory_channel[Rid](limits.QUEUE_RECORDS_MAX)
        self._send_small, self._small = trio.open_memory_channel[Rid](limits.QUEUE_RECORDS_MAX)

    @property
    def length(self) -> int:
        """How many records are not final."""
        return len(self._progress)

    def check_room(self, count: int = 1) -> None:
        """Check that the queue takes more records.

        Raises:
            StorageFull: it is full; nothing of what was to be added may be kept.
        """
        if len(self._progress) + count > limits.QUEUE_RECORDS_MAX:
            raise StorageFull(
                f"{len(self._progress)} records wait to become final: add again when a quorum is back"
            )

    def state(self, rid: Rid) -> str:
        """Return received, ordered or final; unknown when the record is neither queued nor on the ledger."""
        progress = self._progress.get(rid)
        if progress is not None:
            standing = self._committing.standing
            is_ordered = any(standing.height_of(raw) is not None for raw in progress.sent)
            return "ordered" if is_ordered else "received"
        return "final" if self._ledger.record(rid) is not None else "unknown"

    def waits_for(self, rids: Sequence[Rid]) -> str:
        """Return a sentence that says how far records have come that are not final."""
        waiting = [progress for rid in rids if (progress := self._progress.get(rid)) is not None]
        standing = self._committing.standing
        ordered = [
            next((raw for raw in progress.sent if standing.height_of(raw) is not None), b"")
            for progress in waiting
        ]
        known = standing.sentence(ordered)
        if known is not None:
            return f"the record {known}; it becomes final by itself"
        few = [
            progress.waits for progress in waiting if progress.waits in (TOO_FEW_CHUNKS, TOO_FEW_ENVELOPES)
        ]
        reason = few[0] if few else "no quorum ordered the record yet"
        return f"{reason}; it is sealed and received, and becomes final by itself"

    async def add(self, records: Sequence[QueuedRecord], batch: Batch) -> None:
        """Queue records together with the rows staged in `batch`: durable, all or nothing, on return.

        Raises:
            StorageFull: the queue or the disk is full; nothing was kept.
        """
        self.check_room(len(records))
        for record in records:
            self._progress[record.rid] = _Progress(fresh=True, is_small=record.is_small)
            self._rows.put(batch, RECORD_QUEUE + record.rid, codec.encode(record))
            ChunkIndex.refer(batch, record.cids, record.rid)
        try:
            await self._disk.commit(batch, sync=True)
        except BaseException:
            for record in records:
                del self._progress[record.rid]
            raise
        # From here on the records survive a crash; whatever follows may be repeated.
        for record in records:
            self._enter(record.rid)

    def _enter(self, rid: Rid) -> None:
        progress = self._progress.get(rid)
        if progress is not None:
            (self._send_small if progress.is_small else self._send_large).send_nowait(rid)

    async def wait(self, rids: Sequence[Rid], timeout_ms: int) -> bool:
        """Wait until none of the records is queued any more; return whether that happened.

        Gives up when nothing has moved for `timeout_ms`: a large record takes as long as its chunks need to travel.
        """
        moved: tuple[int, int] | None = None
        while (present := self._moved(rids)) != moved:
            moved = present
            with trio.move_on_after(timeout_ms / 1000):
                for rid in rids:
                    progress = self._progress.get(rid)
                    if progress is not None:
                        await progress.done.wait()
                return True
        return False

    def _moved(self, rids: Sequence[Rid]) -> tuple[int, int]:
        """Return what changes while chunks of these records travel, or one of them leaves the queue."""
        waiting = [progress for rid in rids if (progress := self._progress.get(rid)) is not None]
        return len(waiting), sum(progress.tally.count for progress in waiting)

    async def run(self) -> None:
        """Bring queued records to the ledger until cancelled; those of before the start first."""
        for rid in tuple(self._progress):
            if not self._progress[rid].fresh:
                self._enter(rid)
        async with trio.open_nursery() as nursery:
            large, small = trio.Lock(), trio.Lock()
            for _ in range(_CONCURRENT):
                nursery.start_soon(self._serve, nursery, self._large, large, 1)
            for _ in range(_CONCURRENT_GROUPS):
                nursery.start_soon(self._serve, nursery, self._small, small, exchange.RECORDS_PER_MESSAGE_MAX)

    async def _serve(
        self, nursery: trio.Nursery, waiting: trio.MemoryReceiveChannel[Rid], turn: trio.Lock, most: int
    ) -> None:
        while True:
            # One at a time takes from the channel: to several it would hand one record each.
            async with turn:
                rids = [await waiting.receive()]
                while len(rids) < most:
                    try:
                        rids.append(waiting.receive_nowait())
                    except trio.WouldBlock:
                        break
            records = [self._queued(rid) for rid in dict.fromkeys(rids) if rid in self._progress]
            if records:
                await self._advance(nursery, records)

    def _queued(self, rid: Rid) -> QueuedRecord:
        row = self._rows.get(RECORD_QUEUE + rid)
        if row is None:
            raise LocalFault("a queued record has no row")
        return codec.decode(row, QueuedRecord)

    async def _advance(self, nursery: trio.Nursery, records: Sequence[QueuedRecord]) -> None:
        """Take records as far as they go now, and enter again, later, those that wait for something."""
        progresses = [self._progress[record.rid] for record in records]
        tally = progresses[0].tally
        for progress in progresses:
            progress.tally = tally
        try:
            steps = await self._committing.bring(
                records,
                fresh=all(progress.fresh for progress in progresses),
                tally=tally,
                sent=self._note_sent,
            )
            await self._leave_done(steps)
        except Corruption:
            if len(records) > 1:
                # Of one of them: it must not keep the others.
                for record in records:
                    await self._advance(nursery, (record,))
                return
            steps = [Step(record, waits="Corruption") for record in records]
        except Unavailable as error:
            steps = [Step(record, waits=str(error)) for record in records if record.rid in self._progress]
        for step in steps:
            if step.waits:
                self._log.info("a record waits", record=step.record.rid.hex()[:16], reason=step.waits)
                progress = self._progress[step.record.rid]
                progress.fresh = False
                progress.waits = step.waits
                nursery.start_soon(self._again, step.record.rid, progress.retry_ms)
                progress.retry_ms = min(2 * progress.retry_ms, _RETRY_MS_MAX)

    def _note_sent(self, rid: Rid, raw: bytes) -> None:
        self._progress[rid].sent.append(raw)

    async def _again(self, rid: Rid, delay_ms: int) -> None:
        await self._clock.sleep_ms(delay_ms)
        self._enter(rid)

    async def _leave_done(self, steps: Sequence[Step]) -> None:
        """Take those out of the queue that are final or refused for good."""
        final, refused = Batch(), Batch()
        for step in steps:
            if step.is_final:
                self._stage_final(final, step)
            elif step.refusal:
                self._stage_refusal(refused, step)
        if final.writes:
            # Not synchronised: after a crash the records are found on the ledger, and this is done again.
            await self._disk.commit(final, sync=False)
        if refused.writes:
            await self._disk.commit(refused, sync=True)
        for step in steps:
            if step.refusal:
                self._log.error("the ledger refused a record", record=step.record.rid.hex()[:16])
            if step.is_final or step.refusal:
                self._progress.pop(step.record.rid).done.set()

    def _stage_final(self, batch: Batch, step: Step) -> None:
        """Stage that a final record leaves the queue; its key goes with it."""
        record = step.record
        vault = self._ledger.vault(record.vid)
        assert vault is not None, "a record stands in a vault"
        placed = exchange.PlacedChunks(record.cids, self._me, vault.replicas)
        storing = self._ledger.configuration.storing
        batch.delete(RECORD_QUEUE + record.rid)
        if self._ledger.erasure(record.rid) is not None:
            pass  # by another facility, in the meantime: there is nothing to bring anywhere
        elif self._me in storing:
            # An author that does not store keeps no list to push from; there, the members pull what they lack.
            missing = frozenset(placed.holders(storing)) - step.confirmed - {self._me}
            put_under_replicated(batch, record.rid, tuple(sorted(missing)))
        else:
            # It keeps the chunks all the same: without the list nobody could find them when the record is erased.
            put_chunk_list(batch, record.rid, placed)

    def _stage_refusal(self, batch: Batch, step: Step) -> None:
        """Stage that a record leaves the queue that the ledger will never accept, and why."""
        record = step.record
        batch.delete(RECORD_QUEUE + record.rid)
        put_chunk_list(batch, record.rid, exchange.PlacedChunks(record.cids, self._me, 1))
        note = self._index.note(record.rid)
        if note is not None:
            self._index.put_note(batch, replace(note, refusal=step.refusal))
