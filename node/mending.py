"""`storage repair`: everything that should be here or with others is looked for now, and what is missing is brought there.

    the records of the ledger ──► envelope and our share here?            no: onto the list of what is lacking
    our own records           ──► every holder asked for its word         no: what it lacks is pushed at once
    the two lists, quarantine ──► looks (`node/repair.py`), until they are empty or help no more

The background does the same with what it knows to be missing. This does not trust what it knows: chunks that were lost
unnoticed, here or there, are found as well. Whoever could not help is named, with the reason.
"""

from collections.abc import AsyncIterator
from itertools import islice
from typing import Any

from node.chunk_holder import ChunkHolder
from node.ports import PeerTransport, Workers
from node.repair import ROWS_PER_LOOK_MAX, Repair
from node.replication import Replication, Tally
from protocol import ledger_rows
from protocol.errors import Corruption, RemoteFault, Unavailable
from protocol.identifiers import Cid, NodeId, Rid
from storage.chunk_store import ChunkStore
from storage.envelope_store import EnvelopeStore
from storage.key_value import KeyValue
from storage.keyspace import LACKING, UNDER_REPLICATED, prefix_range
from storage.ledger_store import LedgerStore

Document = dict[str, Any]

_RECORDS_PER_TURN = 64
_AWAY = "not connected"
_REASON_MAX = 200


class Mending:
    """Looks for everything once. Several at a time do no harm, only work."""

    def __init__(
        self,
        *,
        ledger: LedgerStore,
        rows: KeyValue,
        chunks: ChunkStore,
        envelopes: EnvelopeStore,
        holder: ChunkHolder,
        repair: Repair,
        replication: Replication,
        transport: PeerTransport,
        workers: Workers,
    ) -> None:
        self._ledger = ledger
        self._rows = rows
        self._chunks = chunks
        self._envelopes = envelopes
        self._holder = holder
        self._repair = repair
        self._replication = replication
        self._transport = transport
        self._workers = workers

    async def mend(self) -> AsyncIterator[Document]:
        """Yield `{"progress": …}` now and then, at last `{"result": …}`."""
        round_ = _Round(self._chunks.statistics().chunks)
        for peer in self._transport.peers():
            if not peer.connected:
                round_.unhelpful[peer.node] = _AWAY
        total = await self._workers.run(self._rows_under, self._records)
        after: bytes | None = b""
        while after is not None:
            rids, after = await self._workers.run(self._some_records, after)
            await self._note_lacking(rids)
            for rid in rids:
                await self._ask_holders(rid, round_)
                round_.records += 1
            yield {"progress": {"part": "records", "done": min(round_.records, total), "total": total}}
        left = most = await self._left()
        fruitless = 0
        # A look takes a part of a long list: it is all of them that must have been of no help.
        while left and fruitless <= most // ROWS_PER_LOOK_MAX:
            yield {"progress": {"part": "missing", "done": max(most - left, 0), "total": most}}
            await self._repair.look()
            before, left = left, await self._left()
            fruitless = fruitless + 1 if left >= before else 0
        yield {"result": await self._result(round_)}

    # --- looking --------------------------------------------------------------------------------------------------

    @property
    def _records(self) -> bytes:
        """The prefix of the rows of the records on the ledger."""
        return self._ledger.state_prefix + ledger_rows.record_key(Rid(b""))

    def _some_records(self, after: bytes) -> tuple[tuple[Rid, ...], bytes | None]:
        """Return the next records on the ledger, and where to go on, None at the end."""
        start, stop = prefix_range(self._records)
        rows = self._rows.scan(start + after + b"\0" if after else start, stop)
        rids = tuple(Rid(key[len(start) :]) for key, _ in islice(rows, _RECORDS_PER_TURN))
        return rids, rids[-1] if len(rids) == _RECORDS_PER_TURN else None

    async def _note_lacking(self, rids: tuple[Rid, ...]) -> None:
        if self._transport.me not in self._ledger.configuration.storing:
            return
        lacking = await self._workers.run(self._lacking, rids)
        if lacking:
            await self._repair.note_lacking(lacking)

    def _lacking(self, rids: tuple[Rid, ...]) -> tuple[Rid, ...]:
        """Return those records whose envelope or share of chunks is not here as it should be."""
        storing = self._ledger.configuration.storing
        return tuple(rid for rid in rids if not self._is_whole(rid, storing))

    def _is_whole(self, rid: Rid, storing: tuple[NodeId, ...]) -> bool:
        if self._ledger.erasure(rid) is not None:
            return True
        record, placed = self._ledger.record(rid), self._holder.placed(rid)
        try:
            envelope = self._envelopes.envelope_of(rid)
        except Corruption:
            return False
        if record is None or placed is None or envelope is None:
            return record is None
        return all(map(self._chunks.has, placed.share_of(self._transport.me, storing)))

    async def _ask_holders(self, rid: Rid, round_: "_Round") -> None:
        """Ask every holder of one of our records for its word, and push what it lacks; note those that do not give it."""
        placed = self._holder.placed(rid)
        if placed is None or placed.author != self._transport.me or self._ledger.erasure(rid) is not None:
            return
        shares = await self._workers.run(placed.holders, self._ledger.configuration.storing)
        failed: list[NodeId] = []
        for node, share in shares.items():
            if node == self._transport.me or round_.unhelpful.get(node) == _AWAY:
                continue
            if not await self._push(node, share, round_):
                failed.append(node)
        if failed:
            await self._repair.note_unconfirmed({rid: failed})

    async def _push(self, node: NodeId, share: tuple[Cid, ...], round_: "_Round") -> bool:
        tally = Tally()
        try:
            await self._replication.push(node, share, tally=tally)
        except Unavailable as reason:
            round_.unhelpful[node] = str(reason)
        except RemoteFault as fault:
            round_.unhelpful[node] = f"it refuses: {fault}"[:_REASON_MAX]
        except Corruption:
            return False  # our own copy is damaged: first it is fetched from somebody else
        else:
            round_.sent += bool(tally.count)
            return True
        return False

    # --- what is left ---------------------------------------------------------------------------------------------

    async def _left(self) -> int:
        """Return how many rows the lists have, and how many chunks are in quarantine."""
        counts = [await self._workers.run(self._rows_under, prefix) for prefix in (LACKING, UNDER_REPLICATED)]
        return sum(counts) + self._repair.status()["corrupt"]

    def _rows_under(self, prefix: bytes) -> int:
        return sum(1 for _ in self._rows.scan(*prefix_range(prefix)))

    async def _result(self, round_: "_Round") -> Document:
        figures = self._repair.status()
        names = self._ledger.configuration.by_node
        lacking = await self._workers.run(self._rows_under, LACKING)
        return {
            **figures,
            "ok": not (lacking or figures["under_replicated"] or figures["corrupt"] or self._repair.trouble),
            "records": round_.records,
            "fetched": max(self._chunks.statistics().chunks - round_.chunks, 0),
            "sent": round_.sent,
            "lacking": lacking,
            "unhelpful": [
                {"facility": names[node].name, "reason": reason}
                for node, reason in sorted(round_.unhelpful.items())
                if node in names
            ],
            "problems": [self._repair.trouble] if self._repair.trouble else [],
        }


class _Round:
    """What one search has come to: `sent` counts records of which a member took what it lacked."""

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks
        self.records = 0
        self.sent = 0
        self.unhelpful: dict[NodeId, str] = {}
