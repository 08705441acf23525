"""Finds what is missing, here and with others, without being told: a walk over what should be here, then comparisons.

    due, or other members store now ──► walk: ranges read, what is not whole here goes onto Repair's list
                                    ──► compare with each connected member: digests, further down only where they differ
                                    ──► what it lacks of our own records goes onto Repair's other list
                                    ──► surplus: what lies elsewhere by now, and was proved there, is deleted here

A member answers from its own last walk, so that what is lost unnoticed is found within two of them. Other members'
records that a member lacks are left to its own walk and to their authors. A walk rests after every turn as long as the
turn took, and the next one is due after fifty times what it took.
"""

from collections.abc import Sequence

import trio

from node.event_log import EventLog
from node.placed_ranges import PlacedRanges, Reading, Summary, prefixes, turns
from node.ports import Clock, PeerTransport, Workers
from node.repair import Repair
from node.surplus import Surplus
from protocol import codec
from protocol import range_digest as ranges
from protocol.errors import Corruption, RemoteFault, Unavailable
from protocol.identifiers import Cid, NodeId, Rid
from storage.chunk_store import ChunkStore

_FIRST_MS = 10_000
"""After the start: by then the members have found each other, and what a crash left is put right."""
_LOOK_MS = 5_000
_PERIOD_MS_MIN = 120_000
_PERIOD_SHARE = 50
_RETRY_MS, _RETRY_SHARE = 60_000, 20
_CALL_MS = 15_000
_REQUESTS_MAX = 1_024
"""To one member in one walk; what is beyond is found by the next walk, which begins elsewhere."""
_SETTLED_MS = 60_000
"""What is on the ledger for less may still be on its way by itself."""


class AntiEntropy:
    """The task (`run`) and the answers to other members (`serve`). `finished_ms` is 0 before the first walk has ended."""

    def __init__(
        self,
        *,
        ranges: PlacedRanges,
        chunks: ChunkStore,
        repair: Repair,
        surplus: Surplus,
        transport: PeerTransport,
        workers: Workers,
        clock: Clock,
        log: EventLog,
    ) -> None:
        self._ranges = ranges
        self._chunks = chunks
        self._repair = repair
        self._surplus = surplus
        self._transport = transport
        self._workers = workers
        self._clock = clock
        self._log = log
        self._summary: Summary | None = None
        self._rule = b""
        self._due_ms = 0
        self._answering = trio.CapacityLimiter(1)  # who compares waits in line: the threads are for records
        self._walks = 0
        self.finished_ms = 0
        self.trouble = ""

    def serve(self) -> None:
        """Start answering."""
        self._transport.serve(ranges.RANGES_CHANNEL, self._answer)

    def hurry(self) -> None:
        """Have the next walk begin within some seconds."""
        self._due_ms = 0

    async def run(self) -> None:
        """Walk whenever it is due, until cancelled."""
        self._due_ms = self._clock.now_ms() + _FIRST_MS
        while True:
            await self._until_due()
            started_ms = self._clock.now_ms()
            try:
                storing = self._ranges.storing
                if await self._walk(storing):
                    await self._compare_all(storing)
                    await self._surplus.reclaim(storing)
            except (Corruption, Unavailable) as reason:
                # A full disk, or rows that cannot be read: what is there is served, and this is tried again.
                self.trouble = str(reason)
                self._due_ms = self._clock.now_ms() + _RETRY_MS
                continue
            self.trouble, self.finished_ms = "", self._clock.now_ms()
            took_ms = max(self.finished_ms - started_ms, 0)
            # What could not be proved elsewhere yet is on its way there: then it is looked at again soon.
            least, share = (
                (_RETRY_MS, _RETRY_SHARE) if self._surplus.count else (_PERIOD_MS_MIN, _PERIOD_SHARE)
            )
            self._due_ms = self.finished_ms + max(least, share * took_ms)

    async def _until_due(self) -> None:
        """Wait until the time has come, or other members store than at the last walk."""
        while self._clock.now_ms() < self._due_ms:
            if self._rule and self._rule != ranges.rule_of(self._ranges.storing):
                return
            await self._clock.sleep_ms(_LOOK_MS)

    # --- what is here ---------------------------------------------------------------------------------------------

    async def _walk(self, storing: tuple[NodeId, ...]) -> bool:
        """Read everything once; return False when other members store by the end of it."""
        rule, summary = ranges.rule_of(storing), Summary()
        self._surplus.begin()
        for first, stop in turns(self._chunks.statistics().chunks):
            if self._ranges.storing != storing:
                self._due_ms = 0
                return False
            started_ms = self._clock.now_ms()
            reading = await self._read(prefixes(first, stop), storing)
            summary.take(first, stop, reading.held)
            self._surplus.note(reading.surplus)
            if reading.lacking:
                await self._repair.note_lacking(reading.lacking)
            await self._clock.sleep_ms(max(self._clock.now_ms() - started_ms, 0))
        self._summary, self._rule = summary, rule
        self._walks += 1
        return True

    async def _read(self, prefixes: Sequence[bytes], storing: tuple[NodeId, ...]) -> Reading:
        return await self._workers.run(self._ranges.read, prefixes, storing)

    # --- what others have -----------------------------------------------------------------------------------------

    async def _compare_all(self, storing: tuple[NodeId, ...]) -> None:
        if self._transport.me not in storing:
            return
        for peer in self._transport.peers():
            if not peer.connected or peer.node not in storing:
                continue
            try:
                lacking = await self._compare(peer.node, storing)
            except (Unavailable, RemoteFault):
                continue  # away, or of another version: at the next walk
            await self._note(peer.node, lacking)

    async def _compare(self, node: NodeId, storing: tuple[NodeId, ...]) -> list[Cid]:
        """Return the chunks that we have, and a member should have and says not to have."""
        assert self._summary is not None, "a walk has ended"
        answer = await self._ask(node, storing, b"", self._summary.digest(node))
        lacking: list[Cid] = []
        if isinstance(answer, ranges.HeldCids):
            for first, stop in turns(self._chunks.statistics().chunks):
                mine = await self._held(prefixes(first, stop), node, storing)
                lacking += _without(mine, answer.cids)
        if not isinstance(answer, ranges.RangeParts):
            return lacking
        due = list(ranges.differing(self._summary.parts(node), answer.digests, b""))
        first = self._walks % len(due) if due else 0
        due = due[first:] + due[:first]  # so that no part is always the one that is left over
        for _ in range(_REQUESTS_MAX):
            if not due:
                break
            prefix = due.pop()
            mine = await self._held([prefix], node, storing)
            answer = await self._ask(node, storing, prefix, ranges.digest_of(mine))
            if isinstance(answer, ranges.HeldCids):
                lacking += _without(mine, answer.cids)
            elif isinstance(answer, ranges.RangeParts) and len(prefix) < ranges.DEPTH_MAX:
                due += ranges.differing(ranges.parts_of(mine, len(prefix)), answer.digests, prefix)
        return lacking

    async def _held(self, prefixes: Sequence[bytes], node: NodeId, storing: tuple[NodeId, ...]) -> list[Cid]:
        return (await self._read(prefixes, storing)).held.get(node, [])

    async def _ask(
        self, node: NodeId, storing: tuple[NodeId, ...], prefix: bytes, digest: bytes
    ) -> ranges.RangeAnswer:
        body = codec.encode(ranges.CompareRange(ranges.rule_of(storing), prefix, digest))
        raw = await self._transport.call(node, ranges.RANGES_CHANNEL, body, timeout_ms=_CALL_MS)
        answer: ranges.RangeAnswer = codec.decode_union(raw, ranges.RangeAnswer)
        return answer

    async def _note(self, node: NodeId, lacking: list[Cid]) -> None:
        """Put our own records of which a member lacks chunks onto the list of those to be pushed."""
        own = await self._workers.run(self._own_records, lacking)
        if lacking:
            self._log.info("a member lacks chunks", peer=node.hex()[:16], chunks=len(lacking), own=len(own))
        await self._repair.note_unconfirmed(dict.fromkeys(own, (node,)))

    def _own_records(self, cids: list[Cid]) -> set[Rid]:
        settled_ms = self._clock.now_ms() - _SETTLED_MS
        return {
            rid
            for cid in cids
            for rid in self._chunks.index.references(cid)
            if self._ranges.is_own(rid, settled_ms)
        }

    async def _answer(self, sender: NodeId, body: bytes) -> bytes:
        asked = codec.decode(body, ranges.CompareRange)
        async with self._answering:
            return codec.encode(await self._comparison(sender, asked))

    async def _comparison(self, sender: NodeId, asked: ranges.CompareRange) -> ranges.RangeAnswer:
        storing, summary = self._ranges.storing, self._summary
        rule = ranges.rule_of(storing)
        if summary is None or not rule == self._rule == asked.rule:
            return ranges.NotNow()
        if asked.prefix:
            mine = await self._held([asked.prefix], sender, storing)
            return ranges.answer_to(asked.digest, asked.prefix, mine)
        if summary.digest(sender) == asked.digest:
            return ranges.Alike()
        if summary.is_short(sender):
            mine = await self._held(prefixes(0, ranges.PARTS), sender, storing)
            if len(mine) <= ranges.LISTED_MAX:
                return ranges.HeldCids(tuple(mine))
        return ranges.RangeParts(tuple(summary.parts(sender)))


def _without(mine: Sequence[Cid], theirs: Sequence[Cid]) -> list[Cid]:
    held = frozenset(theirs)
    return [cid for cid in mine if cid not in held]
