"""What `storage status` shows: what lies here, in how many replicas, what is not as it should be, and how it grows.

Only what is known here is told. Of our own records we know which members have confirmed their share; how many replicas
the chunks of others have, only their authors know. Padding is known to its author alone: of others' records the most
that it can be is told.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import trio

from node.anti_entropy import AntiEntropy
from node.chunk_holder import ChunkHolder
from node.destruction import Destroying
from node.ports import Clock, Disk, Workers
from node.record_index import RecordIndex
from node.repair import Repair
from node.scrub import Scrub
from node.standings import Standings
from node.status import Machine
from node.surplus import Surplus
from protocol import chunk_exchange as exchange
from protocol import codec, limits
from protocol.identifiers import Cid, NodeId, Rid
from protocol.padding import BUCKET_BYTES_MIN
from protocol.possession import wanted_shares
from storage.chunk_store import ChunkStore
from storage.growth import DAY_MS, Sample, forget_old, growth, put_sample, samples, sequence_older_than
from storage.key_value import Batch, KeyValue
from storage.keyspace import CHUNK_LIST, DESTRUCTION, LACKING, prefix_range
from storage.ledger_store import LedgerStore
from storage.scrub_walk import ScrubWalk

Document = dict[str, Any]

_RECORDS_PER_TURN = 128
_LOOK_S = 3_600.0


class StorageFigures:
    """Puts the document together, and keeps a sample of each day (`run`)."""

    def __init__(
        self,
        *,
        me: NodeId,
        ledger: LedgerStore,
        rows: KeyValue,
        index: RecordIndex,
        disk: Disk,
        chunks: ChunkStore,
        holder: ChunkHolder,
        repair: Repair,
        scrub: Scrub,
        anti_entropy: AntiEntropy,
        surplus: Surplus,
        standings: Standings,
        queued: Callable[[], int],
        workers: Workers,
        clock: Clock,
        machine: Machine,
    ) -> None:
        self._me = me
        self._ledger = ledger
        self._rows = rows
        self._index = index
        self._disk = disk
        self._chunks = chunks
        self._holder = holder
        self._repair = repair
        self._scrub = scrub
        self._anti_entropy = anti_entropy
        self._surplus = surplus
        self._standings = standings
        self._queued = queued
        self._workers = workers
        self._clock = clock
        self._machine = machine

    async def document(self) -> Document:
        """Return the figures, read in portions on worker threads."""
        statistics, counts = self._chunks.statistics(), await self._count()
        file_bytes = await self._workers.run(self._machine.payload_file_bytes)
        return {
            **self._repair.status(),
            "under_replicated": counts["under_replicated"],
            "records": counts["records"],
            "own_records": counts["own_records"],
            "padding_bytes": counts["padding"],
            "padding_overhead": round(counts["padding"] / (counts["own_bytes"] or 1), 4),
            "padding_bytes_max": counts["padding"] + counts["padding_max"],
            "padding_overhead_max": round(
                (counts["padding"] + counts["padding_max"]) / (statistics.bytes or 1), 4
            ),
            "replicas": {
                str(count): counts[count] for count in sorted(key for key in counts if isinstance(key, int))
            },
            "quarantined": statistics.quarantined,
            "lacking": await self._workers.run(self._rows_under, LACKING),
            "pending": self._queued(),
            "erased_pending": await self._workers.run(self._erased_pending),
            "unreclaimed": statistics.unreclaimed,
            "surplus": self._surplus.count,
            "databases": await self._workers.run(self._databases),
            "file_bytes": file_bytes,
            "file_overhead": round(file_bytes / (statistics.bytes or 1) - 1, 4) if file_bytes else 0.0,
            "free_bytes": self._machine.free_bytes(),
            "free_share": round(self._machine.free_share(), 4),
            "reserve_share": limits.DISK_RESERVE,
            "growth": self._growth(),
            "scrub": self._scrubbing(),
            "compared_ms": self._anti_entropy.finished_ms or None,
            "challenges": self._challenges(),
            "problems": self._problems(),
        }

    def sequence_abandoned(self) -> int:
        """Return the sequence below which payloads are so old that no upload goes on with them; 0 when not known."""
        return sequence_older_than(samples(self._rows), self._clock.now_ms() - limits.ABANDONED_S * 1000)

    async def run(self) -> None:
        """Keep a sample at the start, and then each day, until cancelled."""
        while True:
            known = samples(self._rows)
            now = self._now()
            if not known or abs(now.time_ms - known[-1].time_ms) >= DAY_MS:
                batch = Batch()
                put_sample(batch, now)
                forget_old(batch, known, now.time_ms)
                await self._disk.commit(batch, sync=False)
            await trio.sleep(_LOOK_S)

    # --- figures --------------------------------------------------------------------------------------------------

    async def _count(self) -> Counter[str | int]:
        """Count over all records here: themselves, what their padding can be, and their chunks by replicas."""
        counts: Counter[str | int] = Counter()
        after: Rid | None = Rid(b"")
        while after is not None:
            portion, after = await self._workers.run(self._count_some, after)
            counts.update(portion)
        return counts

    def _count_some(self, after: Rid) -> tuple[Counter[str | int], Rid | None]:
        counts: Counter[str | int] = Counter()
        start, stop = prefix_range(CHUNK_LIST)
        storing = self._ledger.configuration.storing
        scanned = self._rows.scan(start + after + b"\0" if after else start, stop)
        for read, (key, row) in enumerate(scanned, start=1):
            rid = Rid(key[len(CHUNK_LIST) :])
            placed = codec.decode(row, exchange.PlacedChunks)
            counts["records"] += 1
            note = self._index.note(rid)
            if note is not None:
                counts["padding"] += note.padding_bytes
                counts["own_bytes"] += sum(self._bytes_of(cid) for cid in placed.cids)
            else:
                counts["padding_max"] += self._padding_max(placed)
            if placed.author == self._me:
                counts["own_records"] += 1
                counts.update(self._replicas(rid, placed, storing))
            if read == _RECORDS_PER_TURN:
                return counts, rid
        return counts, None

    def _replicas(
        self, rid: Rid, placed: exchange.PlacedChunks, storing: tuple[NodeId, ...]
    ) -> Counter[str | int]:
        """Count the chunks of one of our records by how many members are known to hold them, ourselves among them."""
        distrusted = self._standings.distrusted
        missing = self._repair.unconfirmed(rid) | distrusted
        held = {cid: int(self._chunks.has(cid)) for cid in placed.cids}
        for node, share in wanted_shares(placed, storing, distrusted).items():
            if node == self._me or node in missing:
                continue
            for cid in share:
                held[cid] += 1
        counts: Counter[str | int] = Counter(held.values())
        wanted = min(placed.replicas, len(storing))
        counts["under_replicated"] = sum(count < wanted for count in held.values())
        return counts

    def _padding_max(self, placed: exchange.PlacedChunks) -> int:
        """Return the most that padding can be of a record: its last chunk and its manifest (and pages) are padded.

        To a power of two, which is at most half of it; after other chunks the last one is as long as they are.
        """
        sizes = [self._bytes_of(cid) for cid in placed.cids[-2:]]
        most = sum(size if size <= BUCKET_BYTES_MIN else size // 2 for size in sizes)
        return most + limits.CHUNK_BYTES_MAX if len(placed.cids) > len(sizes) else most

    def _bytes_of(self, cid: Cid) -> int:
        location = self._chunks.index.locate(cid)
        return 0 if location is None else location.size

    def _databases(self) -> Document:
        """Return by database what lies in its levels, and whether compaction is behind in one of them."""
        return {
            name: {
                "compacting": any(level.is_behind for level in levels),
                "levels": [asdict(level) for level in levels],
            }
            for name, levels in self._machine.levels().items()
        }

    def _rows_under(self, prefix: bytes) -> int:
        return sum(1 for _ in self._rows.scan(*prefix_range(prefix)))

    def _erased_pending(self) -> int:
        """Count the erased records whose chunks are not gone from here yet."""
        rows = self._rows.scan(*prefix_range(DESTRUCTION))
        return sum(not codec.decode(row, Destroying).attestations for _, row in rows)

    def _growth(self) -> Document:
        found = growth(samples(self._rows), self._now())
        if found is None:
            return {"bytes_per_day": None, "over_days": None, "days_left": None}
        room = self._machine.free_bytes() * (1 - limits.DISK_RESERVE / max(self._machine.free_share(), 1e-9))
        days_left = int(max(room, 0) // found.bytes_per_day) if found.bytes_per_day > 0 else None
        return {
            "bytes_per_day": found.bytes_per_day,
            "over_days": round(found.span_ms / DAY_MS, 2),
            "days_left": days_left,
        }

    def _now(self) -> Sample:
        statistics = self._chunks.statistics()
        return Sample(self._clock.now_ms(), statistics.chunks, statistics.bytes, self._chunks.index.cursor())

    def _challenges(self) -> list[Document]:
        """Return how each member that was challenged has answered, and whether its replicas count."""
        rows = []
        for node, member in self._ledger.configuration.by_node.items():
            standing = self._standings.of(node)
            if standing.asked:
                rows.append(
                    {
                        "facility": member.name,
                        "asked": standing.asked,
                        "lacking": standing.lacking,
                        "silent": standing.silent,
                        "wrong": standing.wrong,
                        "failed_ms": standing.failed_ms or None,
                        "trusted": standing.is_trusted,
                    }
                )
        return sorted(rows, key=lambda row: str(row["facility"]))

    def _problems(self) -> list[str]:
        troubles = (self._repair.trouble, self._scrub.trouble, self._anti_entropy.trouble)
        name = self._ledger.configurations.name_ever
        return [*filter(None, troubles), *self._standings.problems(name)]

    def _scrubbing(self) -> Document:
        walk, last, now_ms = self._scrub.walk, self._scrub.last, self._clock.now_ms()
        return {
            "walk": walk_document(walk, self._scrub.rate_of(walk), now_ms) if walk is not None else None,
            "last": walk_document(last, 0) if last is not None else None,
            "next_due_ms": self._scrub.due_ms(),
        }


def walk_document(walk: ScrubWalk, rate: int, now_ms: int = 0) -> Document:
    """Return what is shown of a reading of all chunks; `rate` is its limit in bytes per second, 0 for none.

    With `now_ms` (Unix ms) also how many seconds it will go on, by how fast it has been.
    """
    left, took_ms = max(walk.bytes_total - walk.bytes, 0), now_ms - walk.started_ms
    is_known = not walk.ended_ms and walk.bytes and took_ms > 0
    return {
        "asked": walk.is_asked,
        "started_ms": walk.started_ms,
        "ended_ms": walk.ended_ms or None,
        "chunks": walk.chunks,
        "bytes": walk.bytes,
        "of_chunks": walk.chunks_total,
        "of_bytes": walk.bytes_total,
        "rate": rate,
        "seconds_left": left * took_ms // walk.bytes // 1000 if is_known else None,
        "bad": walk.bad,
        "repaired": walk.repaired,
    }
