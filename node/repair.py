"""Puts right in the background what is missing: envelopes and chunks that should be here, replicas that are not there.

Two lists, both on disk so that a crash forgets nothing:

    lacking           records on the ledger whose envelope or share of chunks is not here      pulled, from anybody
    under-replicated  our own records, with the members that have not confirmed their share    pushed, to those members

A watcher of the applied height puts every new record of others on the first list; the queue puts its own on the second.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from itertools import islice

import trio

from node.applier import AppliedHeight
from node.chunk_holder import ChunkHolder
from node.idle_memory import release_free_memory
from node.ports import Clock, Disk, PeerTransport, Workers
from node.replication import Replication
from node.retrieval import GROUP, Retrieval
from node.standings import Standings
from protocol import chunk_exchange as exchange
from protocol import codec
from protocol.block import Block
from protocol.errors import Corruption, Invalid, RemoteFault, StorageFull, Unavailable
from protocol.identifiers import Cid, Height, NodeId, Rid
from protocol.possession import wanted_shares
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
_AT_ONCE = 4
"""Records that are brought here at the same time: small ones are a matter of round trips."""
_HELPED_MS = 50
"""How soon after a look that helped the next one is taken: a long list is worked off without waiting."""
_FRUITLESS_MAX = 8
"""Groups of chunks in a row that nobody gave: then the rest of the record is left for the next look."""


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
        standings: Standings,
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
        self._standings = standings
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

    def unconfirmed(self, rid: Rid) -> frozenset[NodeId]:
        """Return the members that have not confirmed their share of one of our records."""
        row = self._rows.get(UNDER_REPLICATED + rid)
        return frozenset(map(NodeId, codec.unpack(row))) if row is not None else frozenset()

    async def note_lacking(self, rids: Iterable[Rid]) -> None:
        """Have records brought here whose envelope or chunks are not."""
        batch = Batch()
        for rid in rids:
            batch.put(LACKING + rid, b"")
        # Not synchronised, as all notes of what is to be done: what a crash forgets is found again.
        await self._disk.commit(batch, sync=False)

    async def note_unconfirmed(self, missing: Mapping[Rid, Collection[NodeId]]) -> None:
        """Have shares of our own records brought to members that have not confirmed them, or were found to lack them."""
        batch = Batch()
        for rid, nodes in missing.items():
            known = self.unconfirmed(rid)
            if not known.issuperset(nodes):
                put_under_replicated(batch, rid, tuple(sorted(known.union(nodes))))
        if batch.writes:
            await self._disk.commit(batch, sync=False)

    async def run(self) -> None:
        """Watch and repair until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            nursery.start_soon(self._work)

    async def _watch(self) -> None:
        """Note every record that becomes final and may not be here, in order, with a mark of our own."""
        row = self._disk.read(_MARK)
        mark = Height(codec.unpack(row)[0]) if row is not None else Height(0)
        while True:
            if self._transport.me not in self._ledger.configuration.storing:
                # A learner becomes a voter: then it begins where it left off, or at the first block.
                await self._clock.sleep_ms(_PERIOD_MS)
                continue
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
        seen, quiet_looks, pause_ms = 0, 0, _PERIOD_MS
        while True:
            await self._clock.sleep_ms(pause_ms)
            has_helped = await self.look()
            # What is new gets the time to arrive by itself; a look that helped is likely to help again.
            pause_ms = _HELPED_MS if has_helped else _PERIOD_MS
            stored = self._chunks.statistics().bytes
            quiet_looks = quiet_looks + 1 if stored == seen and not has_helped else 0
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

    async def look(self) -> bool:
        """Take one look at both lists and at what is in quarantine; put right what can be, and return whether anything was.

        Damage that stops it is left in `trouble`: the sentence names the database, and the node goes on without repair.
        """
        helped = 0
        try:
            helped += await _each(self._listed(LACKING), self._complete)
            for rid in self._listed(UNDER_REPLICATED):
                helped += await self._fill(rid)
            await self._refetch()
        except StorageFull:
            return False  # the disk's reserve is reached: reads go on, and the next look may find room
        except Corruption as damage:
            self.trouble = str(damage)
            return False
        self.trouble = ""
        return bool(helped)

    def _listed(self, prefix: bytes) -> list[Rid]:
        """Return the next rows of a list, from the first again after its end: those that nobody can help now block no others."""
        start, stop = prefix_range(prefix)
        rows = self._rows.scan(self._next.pop(prefix, start), stop)
        found = [Rid(key[1:]) for key, _ in islice(rows, ROWS_PER_LOOK_MAX)]
        if len(found) == ROWS_PER_LOOK_MAX:
            self._next[prefix] = prefix + found[-1] + b"\0"
        return found

    async def _complete(self, rid: Rid) -> bool:
        """Bring a record's envelope and our share of its chunks here; leave the row, and return False, when somebody is away."""
        record = self._ledger.record(rid)
        if record is not None and self._ledger.erasure(rid) is None:
            try:
                await self._retrieval.envelope(record)
                if self._holder.placed(rid) is None:
                    # A rescue of a damaged database brought the envelope back, and not its list.
                    await self._retrieval.fetch_envelope(record)
                placed = self._holder.placed(rid)
                if placed is None:
                    return False  # erased at this moment
                await self._pull(placed)
            except StorageFull:
                raise
            except (Unavailable, Invalid):
                # Somebody is away, or it was erased meanwhile: the next look takes it off the list.
                return False
        batch = Batch()
        batch.delete(LACKING + rid)
        await self._disk.commit(batch, sync=False)
        return True

    async def _pull(self, placed: exchange.PlacedChunks) -> None:
        storing = self._ledger.configuration.storing
        share = await self._workers.run(placed.share_of, self._transport.me, storing)
        # From the end: its author may be bringing it here at the same time, from the beginning, and they meet.
        missing = tuple(cid for cid in reversed(share) if not self._chunks.has(cid))
        failed, in_a_row = 0, 0
        for start in range(0, len(missing), GROUP):
            group = tuple(cid for cid in missing[start : start + GROUP] if not self._chunks.has(cid))
            if not group:
                continue
            self._check_room()  # before it is fetched in vain
            fetched = await self._fetch_some(group, placed.author)
            await self._workers.run(self._store, list(fetched.items()))
            failed += len(group) - len(fetched)
            in_a_row = 0 if fetched else in_a_row + 1
            if in_a_row == _FRUITLESS_MAX:
                break
        if failed:
            raise Unavailable(f"{failed} chunks or more of a record are on no member that answers now")

    async def _fetch_some(self, cids: tuple[Cid, ...], author: NodeId) -> dict[Cid, bytes]:
        """Return those of some chunks that other members have: one that nobody has does not keep the others away."""
        try:
            return await self._retrieval.fetch(cids, author)
        except Unavailable:
            if len(cids) == 1:
                return {}
        found: dict[Cid, bytes] = {}
        for cid in cids:
            found.update(await self._fetch_some((cid,), author))
        return found

    async def _fill(self, rid: Rid) -> bool:
        """Push one of our records to the members that have not confirmed it; return whether one did now."""
        placed, missing = self._holder.placed(rid), self.unconfirmed(rid)
        if self._ledger.erasure(rid) is not None:
            batch = Batch()
            put_under_replicated(batch, rid, ())
            await self._disk.commit(batch, sync=False)
            return True
        if placed is None or not missing:
            return False
        storing, distrusted = self._ledger.configuration.storing, self._standings.distrusted
        shares = await self._workers.run(wanted_shares, placed, storing, distrusted)
        connected = {status.node for status in self._transport.peers() if status.connected}
        left: set[NodeId] = set()
        for node in sorted(missing):
            if node not in shares:
                continue
            try:
                if node not in connected:
                    raise Unavailable("not connected")
                await self._replication.push(node, shares[node])
            except (Unavailable, RemoteFault, Corruption):
                left.add(node)  # away, misbehaving, or our own copy waits for repair: at the next look
        left |= self.unconfirmed(rid) - missing  # noted meanwhile
        if left != missing:
            batch = Batch()
            put_under_replicated(batch, rid, tuple(sorted(left)))
            await self._disk.commit(batch, sync=False)
        return left < missing

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


async def _each(rids: list[Rid], work: Callable[[Rid], Awaitable[bool]]) -> int:
    """Run `work` for all records, a few at a time; return for how many it helped.

    The first full disk or damage ends it, and is raised as itself.
    """
    following, failures, helped = iter(rids), list[StorageFull | Corruption](), 0

    async def one_after_the_other() -> None:
        nonlocal helped
        for rid in following:
            try:
                helped += await work(rid)
            except (StorageFull, Corruption) as failure:
                failures.append(failure)
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(_AT_ONCE):
            nursery.start_soon(one_after_the_other)
    if failures:
        raise failures[0]
    return helped
