"""Puts right in the background what is missing: envelopes and chunks that should be here, replicas that are not there.

Two lists, both on disk so that a crash forgets nothing:

    lacking           records on the ledger whose envelope or share of chunks is not here      pulled, from anybody
    under-replicated  our own records, with the members that have not confirmed their share    pushed, to those members

A watcher of the applied height puts every new record of others on the first list; the queue puts its own on the second.
"""

from collections.abc import Callable
from itertools import islice

import trio

from node.applier import AppliedHeight
from node.chunk_holder import ChunkHolder
from node.idle_memory import release_free_memory
from node.ports import Clock, Disk, PeerTransport, Workers
from node.replication import Replication
from node.retrieval import GROUP, Retrieval
from protocol import chunk_exchange as exchange
from protocol import codec
from protocol.block import Block
from protocol.errors import Corruption, Invalid, RemoteFault, StorageFull, Unavailable
from protocol.identifiers import Cid, Height, NodeId, Rid
from protocol.transaction import RecordCommit, parse
from storage.chunk_store import ChunkStore
from storage.envelope_store import EnvelopeStore
from storage.key_value import Batch, KeyValue
from storage.keyspace import LACKING, UNDER_REPLICATED, WATCH_MARK, prefix_range
from storage.ledger_store import LedgerStore

_MARK = WATCH_MARK + b"repair"
_COMMIT = codec.pack("RecordCommit")[1:]
_TAG_WITHIN = 32
"""A signed transaction begins with two tags; the second one, its kind, ends before this byte."""
_PERIOD_MS = 5_000
"""How long after a look at the lists the next one is taken; what is new has then had the time to arrive by itself."""
_QUIET_LOOKS = 4
"""After 20 s without a new chunk the payloads' write buffer is given back: an idle daemon is small (storage.md 1)."""
ROWS_PER_LOOK_MAX = 256
_BLOCKS_PER_BATCH = 256


def put_under_replicated(batch: Batch, rid: Rid, missing: tuple[NodeId, ...]) -> None:
    """Stage which members still have to confirm their share of one of our records; none of them ends it."""
    if missing:
        batch.put(UNDER_REPLICATED + rid, codec.pack(*missing))
    else:
        batch.delete(UNDER_REPLICATED + rid)


def look_again(batch: Batch) -> None:
    """Stage that every record on the ledger is looked for again: payloads were lost."""
    batch.delete(_MARK)


class Repair:
    """The two background tasks (`run`), and the figures for `storage status`."""

    def __init__(
        self,
        *,
        ledger: LedgerStore,
        applied: AppliedHeight,
        rows: KeyValue,
        disk: Disk,
        chunks: ChunkStore,
        envelopes: EnvelopeStore,
        holder: ChunkHolder,
        replication: Replication,
        retrieval: Retrieval,
        transport: PeerTransport,
        workers: Workers,
        clock: Clock,
        check_room: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._applied = applied
        self._rows = rows
        self._disk = disk
        self._chunks = chunks
        self._envelopes = envelopes
        self._holder = holder
        self._replication = replication
        self._retrieval = retrieval
        self._transport = transport
        self._workers = workers
        self._clock = clock
        self._check_room = check_room
        self._next: dict[bytes, bytes] = {}
        self.trouble = ""

    def status(self) -> dict[str, int]:
        """Return the figures of `storage status`: chunks here, their bytes, and what is not as it should be."""
        statistics = self._chunks.statistics()
        under_replicated = 0
        for key, _ in self._rows.scan(*prefix_range(UNDER_REPLICATED)):
            placed = self._holder.placed(Rid(key[1:]))
            under_replicated += len(placed.cids) if placed is not None else 1
        return {
            "chunks": statistics.chunks,
            "bytes": statistics.bytes,
            "under_replicated": under_replicated,
            "corrupt": len(self._damaged()),
        }

    async def run(self) -> None:
        """Watch and repair until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            nursery.start_soon(self._work)

    async def _watch(self) -> None:
        """Note every record that becomes final and may not be here, in order, with a mark of our own."""
        me = self._transport.me
        if me not in self._ledger.configuration.storing:
            return
        row = self._disk.read(_MARK)
        mark = Height(codec.unpack(row)[0]) if row is not None else Height(0)
        while True:
            height = Height(min(await self._applied.wait_above(mark), mark + _BLOCKS_PER_BATCH))
            batch = Batch()
            for block in self._ledger.blocks(Height(mark + 1), height):
                for raw in block.transactions:
                    rid = self._new_record(raw, block)
                    if rid is not None:
                        batch.put(LACKING + rid, b"")
            batch.put(_MARK, codec.pack(height))
            # Not synchronised: mark and rows are in one batch, and a lost one is only made again.
            await self._disk.commit(batch, sync=False)
            mark = height

    def _new_record(self, raw: bytes, block: Block) -> Rid | None:
        """Return the record that a transaction put on the ledger, if it did and it may not be here."""
        if _COMMIT not in raw[:_TAG_WITHIN]:
            return (
                None  # most transactions are of another kind: parsing them all would cost as much as applying
            )
        signed, txid = parse(raw, block.header.net)
        commit, receipt = signed.transaction, self._ledger.receipt(txid)
        if not isinstance(commit, RecordCommit):
            return None
        if commit.author_pk == self._transport.me and self._is_whole(commit.rid):
            return None
        is_here = receipt is not None and receipt.is_accepted and receipt.height == block.height
        return commit.rid if is_here else None

    def _is_whole(self, rid: Rid) -> bool:
        """Whether one of our own records is here as we made it; it is not after `run --rebuild` of either database.

        A rebuild loses all chunks of a record or none: the manifest, its last, speaks for the others.
        """
        placed = self._holder.placed(rid)
        return placed is not None and self._chunks.has(placed.cids[-1])

    async def _work(self) -> None:
        seen, quiet_looks = 0, 0
        while True:
            await self._clock.sleep_ms(_PERIOD_MS)
            await self.look()
            stored = self._chunks.statistics().bytes
            quiet_looks = quiet_looks + 1 if stored == seen else 0
            seen = stored
            if quiet_looks == _QUIET_LOOKS:
                await self._flush()
            if quiet_looks and quiet_looks % _QUIET_LOOKS == 0:
                # Again and again: reading leaves free memory behind as well.
                await self._workers.run(release_free_memory)

    async def _flush(self) -> None:
        try:
            await self._workers.run(self._chunks.flush)
        except (StorageFull, Corruption) as damage:
            self.trouble = str(damage)  # the payloads take no more writes; what is stored is still read

    async def look(self) -> None:
        """Take one look at both lists and at what is in quarantine, and put right what can be put right now.

        Damage that stops it is left in `trouble`: the sentence names the database, and the node goes on without repair.
        """
        try:
            for rid in self._listed(LACKING):
                await self._complete(rid)
            for rid in self._listed(UNDER_REPLICATED):
                await self._fill(rid)
            await self._refetch()
        except StorageFull:
            return  # the disk's reserve is reached: reads go on, and the next look may find room
        except Corruption as damage:
            self.trouble = str(damage)
        else:
            self.trouble = ""

    def _listed(self, prefix: bytes) -> list[Rid]:
        """Return the next rows of a list, from the first again after its end: those that nobody can help now block no others."""
        start, stop = prefix_range(prefix)
        rows = self._rows.scan(self._next.pop(prefix, start), stop)
        found = [Rid(key[1:]) for key, _ in islice(rows, ROWS_PER_LOOK_MAX)]
        if len(found) == ROWS_PER_LOOK_MAX:
            self._next[prefix] = prefix + found[-1] + b"\0"
        return found

    async def _complete(self, rid: Rid) -> None:
        """Bring a record's envelope and our share of its chunks here; leave the row when somebody is away."""
        record = self._ledger.record(rid)
        if record is not None and self._ledger.erasure(rid) is None:
            try:
                await self._retrieval.envelope(record)
                if self._holder.placed(rid) is None:
                    # A rescue of a damaged database brought the envelope back, and not its list.
                    await self._retrieval.fetch_envelope(record)
                placed = self._holder.placed(rid)
                if placed is None:
                    return  # erased at this moment
                await self._pull(placed)
            except (Unavailable, Invalid):
                return  # somebody is away, or it was erased meanwhile: the next look takes it off the list
        batch = Batch()
        batch.delete(LACKING + rid)
        await self._disk.commit(batch, sync=False)

    async def _pull(self, placed: exchange.PlacedChunks) -> None:
        storing = self._ledger.configuration.storing
        share = await self._workers.run(placed.share_of, self._transport.me, storing)
        missing = tuple(cid for cid in share if not self._chunks.has(cid))
        for start in range(0, len(missing), GROUP):
            group = missing[start : start + GROUP]
            fetched = await self._retrieval.fetch(group, placed.author)
            await self._workers.run(self._store, list(fetched.items()))

    async def _fill(self, rid: Rid) -> None:
        """Push one of our records to the members that have not confirmed it."""
        placed = self._holder.placed(rid)
        row = self._rows.get(UNDER_REPLICATED + rid)
        if self._ledger.erasure(rid) is not None:
            batch = Batch()
            put_under_replicated(batch, rid, ())
            await self._disk.commit(batch, sync=False)
            return
        if placed is None or row is None:
            return
        storing = self._ledger.configuration.storing
        shares = await self._workers.run(placed.holders, storing)
        connected = {status.node for status in self._transport.peers() if status.connected}
        missing = [NodeId(node) for node in codec.unpack(row)]
        left: list[NodeId] = []
        for node in missing:
            if node not in shares:
                continue
            try:
                if node not in connected:
                    raise Unavailable("not connected")
                await self._replication.push(node, shares[node])
            except (Unavailable, RemoteFault, Corruption):
                left.append(node)  # away, misbehaving, or our own copy waits for repair: at the next look
        if left != missing:
            batch = Batch()
            put_under_replicated(batch, rid, tuple(left))
            await self._disk.commit(batch, sync=False)

    async def _refetch(self) -> None:
        """Bring back the chunks that are in quarantine."""
        for cid in self._damaged():
            try:
                fetched = await self._retrieval.fetch((cid,), self._transport.me)
            except Unavailable:
                continue  # on nobody who answers now
            await self._workers.run(self._store, list(fetched.items()))

    def _damaged(self) -> tuple[Cid, ...]:
        """Return the chunks in quarantine that nothing has replaced yet."""
        return tuple(
            dict.fromkeys(cid for _, cid in self._chunks.index.quarantined() if not self._chunks.has(cid))
        )

    def _store(self, chunks: list[tuple[Cid, bytes]]) -> None:
        self._check_room()
        self._chunks.put_many(chunks, trusted=True)
