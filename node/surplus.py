"""Chunks whose place is elsewhere since other members store: deleted here once every member whose place it is has proved to have them.

A receipt would not do: who lies about having stored would have the last good replica deleted. The proof is of
now, over the whole chunk, and checked with the bytes that are about to go.
"""

from collections.abc import Sequence

from node.challenges import Challenges
from node.event_log import EventLog
from node.placed_ranges import PlacedRanges
from node.ports import PeerTransport, Workers
from protocol.errors import Corruption, RemoteFault, Unavailable
from protocol.identifiers import Cid, NodeId
from protocol.possession import PROOFS_PER_MESSAGE_MAX, Outcome
from storage.chunk_store import ChunkStore

_DELETED_AT_ONCE = 256
SURPLUS_MAX = 4_096
"""Taken from one walk; the next one goes on behind them, so that those which cannot go now block no others."""


class Surplus:
    """Gathers during a walk (`begin`, `note`), and then gives back what may go (`reclaim`). `count` is what the last walk found."""

    def __init__(
        self,
        *,
        ranges: PlacedRanges,
        chunks: ChunkStore,
        challenges: Challenges,
        transport: PeerTransport,
        workers: Workers,
        log: EventLog,
    ) -> None:
        self._ranges = ranges
        self._chunks = chunks
        self._challenges = challenges
        self._transport = transport
        self._workers = workers
        self._log = log
        self._found: dict[Cid, None] = {}
        self._after = Cid(b"")
        self.count = 0

    def begin(self) -> None:
        """Forget what an earlier walk found, and where it had to stop."""
        self._after = max(self._found) if len(self._found) == SURPLUS_MAX else Cid(b"")
        self._found = {}

    def note(self, found: Sequence[Cid]) -> None:
        """Take what the next reading of a walk found."""
        for cid in found:
            if cid > self._after and len(self._found) < SURPLUS_MAX:
                self._found[cid] = None

    async def reclaim(self, storing: tuple[NodeId, ...]) -> int:
        """Delete what is proved to lie elsewhere; return how many chunks that were.

        Raises:
            StorageFull, Corruption: the database takes no writes.
        """
        groups: dict[tuple[NodeId, ...], list[Cid]] = {}
        for cid in self._found:
            holders = await self._workers.run(self._holders, cid, storing)
            if holders:
                groups.setdefault(holders, []).append(cid)
        self.count = sum(map(len, groups.values()))
        proved: list[Cid] = []
        for holders, cids in groups.items():
            for start in range(0, len(cids), PROOFS_PER_MESSAGE_MAX):
                proved += await self._proved(holders, tuple(cids[start : start + PROOFS_PER_MESSAGE_MAX]))
        deleted = 0
        for start in range(0, len(proved), _DELETED_AT_ONCE):
            if self._ranges.storing != storing:
                break  # placed anew meanwhile: the next walk tells what is to stay
            deleted += await self._workers.run(self._chunks.delete, proved[start : start + _DELETED_AT_ONCE])
        if deleted:
            self._log.info("deleted chunks whose place is elsewhere", chunks=deleted)
        self.count -= deleted
        return deleted

    def _holders(self, cid: Cid, storing: tuple[NodeId, ...]) -> tuple[NodeId, ...]:
        """Return whose place a chunk is, none when it is to stay: ours as well, or of a record that is not on the ledger."""
        holders: set[NodeId] = set()
        for rid in self._chunks.index.references(cid):
            rule = self._ranges.rule(rid)
            if rule is None or rule.author == self._transport.me:
                return ()
            holders.update(self._ranges.replicas(cid, rule, storing))
        return () if self._transport.me in holders else tuple(sorted(holders))

    async def _proved(self, holders: tuple[NodeId, ...], cids: tuple[Cid, ...]) -> list[Cid]:
        """Return those of some chunks that all their holders have proved to have."""
        left = cids
        for node in holders:
            if not left:
                break
            try:
                outcomes = await self._challenges.ask(node, left, is_promised=False)
            except (Unavailable, RemoteFault, Corruption):
                return []  # away, of another version, or our own copy is bad: what is here stays
            left = tuple(
                cid for cid, outcome in zip(left, outcomes, strict=True) if outcome is Outcome.PROVED
            )
        return list(left)
