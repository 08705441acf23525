"""The side of a member that holds erased records: it deletes what it has of them, and then gives its word for it.

    RecordErase applied ──► due ──► rows gone, chunks known ──► bytes gone from the files ──► attested
                            │          one synchronised batch        flush, compact              │
                            └── kill -9 anywhere: the row says what is left to do                └── for a day: looked at again

A watcher with a mark of its own reads the blocks, so that a member that was away deletes when it comes back. A chunk
that another record names is left to that record. Chunks may still be pushed here by a member that has not come to the
erasure: for a day they are looked for and deleted again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import trio

from node.applier import AppliedHeight
from node.chunk_holder import ChunkHolder
from node.erased_rows import ErasedRows
from node.event_log import EventLog
from node.ports import Clock, Disk, PeerTransport, Workers
from protocol import chunk_exchange as exchange
from protocol import codec, signing
from protocol.block import Block
from protocol.codec import Size, wire
from protocol.destruction import (
    DESTRUCTIONS_CHANNEL,
    AskDestruction,
    Attestation,
    NotDestroyed,
    attest,
)
from protocol.errors import Corruption, LocalFault, StorageFull, Unavailable
from protocol.identifiers import Cid, Height, NetworkId, NodeId, Rid, Txid
from protocol.transaction import RecordErase, RidField, TxidField, parse
from storage.chunk_store import ChunkStore
from storage.key_value import Batch, KeyValue
from storage.keyspace import DESTRUCTION, WATCH_MARK, prefix_range
from storage.ledger_store import LedgerStore
from storage.tombstones import Tombstones

_MARK = WATCH_MARK + b"destruction"
_KIND = codec.pack("RecordErase")[1:]
_KIND_WITHIN = 32
_BLOCKS_MAX = 256
"""Read one by one; of more, the tombstones in the state tell sooner what was erased."""
_WATCH_RETRY_MS = 1_000
_RETRY_S = 5.0
_RETRY_DAMAGED_S = 600.0
"""Looking for what lies beside damage reads the tables around it: 160 MiB."""
_AT_ONCE = 64
"""Records: more than a family has, and what their lists of chunks cost in memory is bounded."""
_LOOK_AGAIN_MS = 60_000
_LOOKED_AT_FOR_MS = 24 * 3600 * 1000
"""As long as an abandoned upload may lie: by then no member is still pushing what it had not seen erased."""
_LEFT = (
    "{count} of its chunks lie beside damaged payloads here; carechain run --rebuild payloads removes them"
)


_BEING_READ = "its bytes leave the files when the backup, or what else is reading the database now, has ended"


@wire("destroying")
@dataclass(frozen=True, slots=True, repr=False)
class Destroying:
    """How far one erased record is destroyed here.

    `cids` are the chunks to delete, empty before the record's rows are gone; `chunks` of them were here. `is_listed` once
    our own list told them. `attestations` is empty until the bytes are gone.
    """

    rid: RidField
    txid: TxidField
    is_listed: bool
    cids: Annotated[tuple[exchange.CidField, ...], Size(0, exchange.RECORD_CIDS_MAX)]
    chunks: int
    shared: int
    attestations: Annotated[tuple[Attestation, ...], Size(0, 1)]


class Destruction:
    """Owns the rows of `keyspace.DESTRUCTION`; `trouble` is empty, or why something cannot be deleted now."""

    def __init__(
        self,
        *,
        key: signing.SigningKey,
        network: NetworkId,
        ledger: LedgerStore,
        applied: AppliedHeight,
        rows: KeyValue,
        disk: Disk,
        chunks: ChunkStore,
        holder: ChunkHolder,
        remove_asides: Callable[[], int],
        erased: ErasedRows,
        workers: Workers,
        clock: Clock,
        log: EventLog,
    ) -> None:
        self._key = key
        self._network = network
        self._ledger = ledger
        self._applied = applied
        self._rows = rows
        self._disk = disk
        self._chunks = chunks
        self._holder = holder
        self._remove_asides = remove_asides
        self._erased = erased
        self._workers = workers
        self._clock = clock
        self._log = log
        self._due: set[Rid] = set()
        self._recent: set[Rid] = set()
        self._left: dict[Rid, str] = {}
        self._work = trio.Event()
        self.trouble = ""

    def serve(self, transport: PeerTransport) -> None:
        """Start answering."""
        transport.serve(DESTRUCTIONS_CHANNEL, self._answer)

    async def ask(self, rid: Rid, cids: Sequence[Cid]) -> Attestation | NotDestroyed:
        """Return our word for an erased record, or that it is not destroyed.

        `cids` are chunks that the asker knows the record to have had: a member that never got the list has them deleted
        by it, unless another record names them. A member that had the list goes by that alone.
        """
        job = self._job(rid)
        if job is None:
            return NotDestroyed("")
        cids = () if job.is_listed else cids
        if not job.attestations:
            more = tuple(dict.fromkeys((*job.cids, *cids)))
            if job.cids != more and rid not in self._left:
                await self._put(replace(job, cids=more[: exchange.RECORD_CIDS_MAX]), sync=True)
                self._hurry(rid)
            return NotDestroyed(self._left.get(rid, self.trouble)[:300])
        if await self._workers.run(self._erased.only_here, tuple(cids), rid):
            await self._put(replace(job, cids=tuple(cids), attestations=()), sync=True)
            self._hurry(rid)
            return NotDestroyed("")
        return job.attestations[0]

    async def forget(self, rid: Rid) -> None:
        """Delete a record that the ledger refused for good, and that is nowhere but here."""
        placed = self._holder.placed(rid)
        cids = placed.cids if placed is not None else ()
        batch = Batch()
        rewritten = await self._workers.run(self._erased.stage, batch, rid, cids)
        await self._disk.commit(batch, sync=True)
        await self._workers.run(self._erased.compact, rewritten)
        await self._workers.run(
            self._chunks.delete, await self._workers.run(self._erased.only_here, cids, rid)
        )

    async def run(self) -> None:
        """Watch and delete until cancelled."""
        await self._workers.run(self._erased.count_references)
        await self._remember()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            nursery.start_soon(self._delete_what_is_due)
            nursery.start_soon(self._look_again)

    async def _remember(self) -> None:
        """Take up what is unfinished. Without a mark, which a rescue of a damaged database leaves behind, look at all again."""
        is_rescued = self._disk.read(_MARK) is None
        for _, row in self._rows.scan(*prefix_range(DESTRUCTION)):
            job = codec.decode(row, Destroying)
            if job.attestations and is_rescued and self._erased.is_back(Rid(job.rid)):
                # It may bring back what was deleted: what said so was damaged as well.
                job = replace(job, attestations=())
                await self._put(job, sync=True)
            if not job.attestations:
                self._due.add(Rid(job.rid))
            elif job.cids:
                self._recent.add(Rid(job.rid))
            await trio.lowlevel.checkpoint()

    # --- reading blocks -----------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Note every record that is erased, in order, with a mark of our own."""
        row = self._disk.read(_MARK)
        mark = Height(codec.unpack(row)[0]) if row is not None else Height(0)
        while True:
            reached = await self._applied.wait_above(mark)
            try:
                mark = await self._read_up_to(mark, reached)
            except Unavailable:
                # A snapshot was installed in between: its tombstones are read instead.
                await self._clock.sleep_ms(_WATCH_RETRY_MS)

    async def _read_up_to(self, mark: Height, reached: Height) -> Height:
        """Note what the blocks above the mark erased, or what the state says where they are many or missing."""
        found: list[tuple[Rid, Txid]] = []
        if self._ledger.history is not None or reached - mark > _BLOCKS_MAX:
            found += await self._workers.run(self._unmet)
        else:
            for block in self._ledger.blocks(Height(mark + 1), reached):
                found += self._erased_in(block)
                await trio.lowlevel.checkpoint()
        await self._note(found, reached)
        return reached

    def _unmet(self) -> list[tuple[Rid, Txid]]:
        """Return the erased records that nothing here is known of. Reads all tombstones: for a worker thread."""
        tombs = Tombstones(self._rows, self._ledger)
        return [(tomb.rid, tomb.txid) for tomb in tombs if self._disk.read(DESTRUCTION + tomb.rid) is None]

    def _erased_in(self, block: Block) -> list[tuple[Rid, Txid]]:
        found: list[tuple[Rid, Txid]] = []
        for raw in block.transactions:
            if _KIND not in raw[:_KIND_WITHIN]:
                continue  # told apart by their tag, without parsing them
            signed, txid = parse(raw, block.header.net)
            erase, receipt = signed.transaction, self._ledger.receipt(txid)
            is_here = receipt is not None and receipt.is_accepted and receipt.height == block.height
            if isinstance(erase, RecordErase) and is_here:
                found.append((erase.rid, txid))
        return found

    async def _note(self, found: Sequence[tuple[Rid, Txid]], mark: Height) -> None:
        batch = Batch()
        new = [(rid, txid) for rid, txid in found if self._disk.read(DESTRUCTION + rid) is None]
        for rid, txid in new:
            batch.put(DESTRUCTION + rid, codec.encode(Destroying(rid, txid, False, (), 0, 0, ())))
        batch.put(_MARK, codec.pack(mark))
        # Synchronised when something is due: whatever was being stored of the record is on disk, and is seen, after it.
        await self._disk.commit(batch, sync=bool(new))
        for rid, _ in new:
            self._hurry(rid)

    # --- deleting -----------------------------------------------------------------------------------------------

    def _hurry(self, rid: Rid) -> None:
        self._due.add(rid)
        self._recent.discard(rid)
        self._work.set()

    async def _delete_what_is_due(self) -> None:
        while True:
            self._work = trio.Event()
            await self.look()
            pause_s = _RETRY_S if self._due - self._left.keys() else _RETRY_DAMAGED_S
            with trio.move_on_after(pause_s if self._due else math.inf):
                await self._work.wait()

    async def look(self) -> None:
        """Destroy what is due, as far as it goes now; damage that stops it is left in `trouble`."""
        due = sorted(self._due)
        try:
            for start in range(0, len(due), _AT_ONCE):
                await self._destroy(due[start : start + _AT_ONCE])
        except (Unavailable, Corruption) as trouble:
            self.trouble = str(trouble)
        else:
            self.trouble = next(iter(self._left.values()), "")

    async def _destroy(self, rids: Sequence[Rid]) -> None:
        """Destroy records together: tables are rewritten once for all of them, not once for each."""
        jobs, rewritten = list[Destroying](), list[bytes]()
        for rid in rids:
            job, keys = await self._strip(rid)
            jobs.append(job)
            rewritten += keys
        is_gone = await self._workers.run(self._erased.compact, tuple(rewritten))
        await self._remove_copies()
        own: list[Cid] = []
        for job in jobs:
            own += await self._workers.run(self._erased.only_here, job.cids, Rid(job.rid))
        await self._workers.run(self._chunks.delete, own)
        for job in jobs:
            left = await self._workers.run(self._chunks.lingering, job.cids)
            if left:
                self._left[Rid(job.rid)] = _LEFT.format(count=len(left))
            elif is_gone and not await self._workers.run(self._erased.only_here, job.cids, Rid(job.rid)):
                # What was pushed meanwhile keeps it due: the word is given for what is gone now.
                await self._attest(job, shared=await self._workers.run(self._here, job.cids))
        if not is_gone:
            raise Unavailable(_BEING_READ)

    async def _strip(self, rid: Rid) -> tuple[Destroying, tuple[bytes, ...]]:
        """Delete the rows of a record; return its job, which knows the chunks, and the keys to compact."""
        job = self._job(rid)
        if job is None:
            raise LocalFault("an erased record has no row")
        placed = self._holder.placed(rid)
        cids = job.cids if placed is None else tuple(dict.fromkeys(placed.cids))
        here = await self._workers.run(self._here, cids)
        is_listed = job.is_listed or placed is not None
        job = replace(job, is_listed=is_listed, cids=cids, chunks=max(job.chunks, here))
        batch = Batch()
        rewritten = await self._workers.run(self._erased.stage, batch, rid, cids)
        batch.put(DESTRUCTION + rid, codec.encode(job))
        # Persist what is left to delete together with the end of the list that told it.
        await self._disk.commit(batch, sync=True)
        return job, rewritten

    async def _remove_copies(self) -> None:
        """Delete the damaged databases that were kept: they hold what is to be destroyed, and what is whole was carried over.

        Raises:
            Unavailable: the disk refuses.
        """
        try:
            removed = await self._workers.run(self._remove_asides)
        except OSError as refused:
            raise Unavailable(
                f"a damaged database that was kept cannot be deleted: {refused.strerror}"
            ) from refused
        if removed:
            self._log.info(
                "deleted the damaged databases that were kept: a record was erased", databases=removed
            )

    async def _attest(self, job: Destroying, *, shared: int) -> None:
        rid = Rid(job.rid)
        word = attest(
            self._key,
            self._network,
            rid,
            Txid(job.txid),
            chunks=max(job.chunks - shared, 0),
            shared=shared,
            time_ms=self._clock.now_ms(),
        )
        await self._put(replace(job, shared=shared, attestations=(word,)), sync=True)
        self._left.pop(rid, None)
        self._due.discard(rid)
        self._recent.add(rid)
        self._log.info("destroyed an erased record", record=rid.hex()[:16], chunks=word.chunks)

    async def _look_again(self) -> None:
        """Delete chunks that somebody pushed after we had deleted them; after a day forget their ids."""
        while True:
            await self._clock.sleep_ms(_LOOK_AGAIN_MS)
            for rid in sorted(self._recent):
                await self._look_again_at(rid)

    async def _look_again_at(self, rid: Rid) -> None:
        job = self._job(rid)
        if job is None or not job.attestations:
            return
        returned = await self._workers.run(self._erased.only_here, job.cids, rid)
        try:
            if returned:
                await self._workers.run(self._chunks.delete, returned)
            if self._clock.now_ms() - job.attestations[0].time_ms > _LOOKED_AT_FOR_MS:
                await self._put(replace(job, cids=()), sync=False)
                self._recent.discard(rid)
        except (StorageFull, Corruption) as damage:
            self.trouble = str(damage)

    # --- rows ---------------------------------------------------------------------------------------------------

    def _here(self, cids: tuple[Cid, ...]) -> int:
        return sum(self._chunks.has(cid) for cid in cids)

    def _job(self, rid: Rid) -> Destroying | None:
        row = self._disk.read(DESTRUCTION + rid)
        return codec.decode(row, Destroying) if row is not None else None

    async def _put(self, job: Destroying, *, sync: bool) -> None:
        batch = Batch()
        batch.put(DESTRUCTION + job.rid, codec.encode(job))
        await self._disk.commit(batch, sync=sync)

    async def _answer(self, _sender: NodeId, body: bytes) -> bytes:
        request = codec.decode(body, AskDestruction)
        if self._ledger.erasure(Rid(request.rid)) is None:
            raise Unavailable("that record is not erased here")
        return codec.encode(await self.ask(Rid(request.rid), request.cids))
