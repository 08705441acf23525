"""What lies here of what should, read in ranges of content ids: the local side of anti-entropy.

Every storing member has the list of chunks of every record, so each can compute alone what it and any other should hold:

    references (cid, rid) ──► placement by the configuration in force ──► held    with whom both should hold it
                                                                     ──► lacking  it should be here and is not
                                                                     ──► surplus  it is here and its place is elsewhere

Reading is for worker threads and changes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from protocol import ledger_rows, placement
from protocol.identifiers import Cid, NodeId, Rid
from protocol.range_digest import LISTED_MAX, PARTS, digest_of_parts, parts_of
from storage.chunk_store import ChunkStore
from storage.key_value import KeyValue
from storage.keyspace import CHUNK_LIST, prefix_range
from storage.ledger_store import LedgerStore


@dataclass(frozen=True, slots=True)
class Placement:
    """By what rule a record's chunks are placed: its author, and how many replicas they have."""

    author: NodeId
    replicas: int


@dataclass(slots=True)
class Reading:
    """Some ranges as they were read.

    `held` are the chunks held together with each other member, sorted; `lacking` records that are not whole here;
    `surplus` chunks whose place is elsewhere, sorted.
    """

    held: dict[NodeId, list[Cid]] = field(default_factory=dict)
    lacking: set[Rid] = field(default_factory=set)
    surplus: list[Cid] = field(default_factory=list)


class Summary:
    """The digests of the 256 parts of the whole range, for each other member, and how many ids they are of."""

    def __init__(self) -> None:
        self._digests: dict[NodeId, list[bytes]] = {}
        self._counts: dict[NodeId, int] = {}

    def take(self, first: int, stop: int, held: dict[NodeId, list[Cid]]) -> None:
        """Note a reading of the parts from `first` to before `stop`."""
        for node, cids in held.items():
            self._digests.setdefault(node, list(parts_of((), 0)))[first:stop] = parts_of(cids, 0)[first:stop]
            self._counts[node] = self._counts.get(node, 0) + len(cids)

    def parts(self, node: NodeId) -> Sequence[bytes]:
        """Return the digests of the parts held together with a member."""
        return self._digests.get(node, parts_of((), 0))

    def digest(self, node: NodeId) -> bytes:
        """Return the digest of everything held together with a member."""
        return digest_of_parts(self.parts(node))

    def is_short(self, node: NodeId) -> bool:
        """Whether everything held together with a member may be listed at once."""
        return self._counts.get(node, 0) <= LISTED_MAX


class PlacedRanges:
    """Reads ranges. Holds nothing but what it looked up of records during one reading."""

    def __init__(self, *, me: NodeId, ledger: LedgerStore, rows: KeyValue, chunks: ChunkStore) -> None:
        self._me = me
        self._ledger = ledger
        self._rows = rows
        self._chunks = chunks

    @property
    def storing(self) -> tuple[NodeId, ...]:
        """Who stores, by the configuration in force."""
        return self._ledger.configuration.storing

    def read(self, prefixes: Sequence[bytes], storing: tuple[NodeId, ...]) -> Reading:
        """Read the ranges under some prefixes, in order.

        Raises:
            Corruption: rows of the ledger database cannot be read.
        """
        reading, rules = Reading(), dict[Rid, Placement | None]()
        for prefix in prefixes:
            for cid, rid in self._chunks.index.named(prefix):
                if rid not in rules:
                    rules[rid] = self.rule(rid)
                rule = rules[rid]
                if rule is not None:
                    self._sort(reading, cid, rid, rule, storing)
            if self._me in storing:
                reading.lacking.update(self._unlisted(prefix))
        return reading

    def rule(self, rid: Rid) -> Placement | None:
        """Return how a record's chunks are placed; None for one that is not on the ledger, or erased."""
        record = self._ledger.record(rid)
        if record is None or self._ledger.erasure(rid) is not None:
            return None
        vault = self._ledger.vault(record.vid)
        assert vault is not None, "a record stands in a vault"
        return Placement(record.author, vault.replicas)

    def is_settled(self, rid: Rid, settled_ms: int) -> bool:
        """Whether a record was on the ledger by a time (Unix ms)."""
        record = self._ledger.record(rid)
        return record is not None and record.time_ms <= settled_ms

    def is_own(self, rid: Rid, settled_ms: int) -> bool:
        """Whether a record is our own, not erased, and was on the ledger by a time."""
        rule = self.rule(rid)
        return rule is not None and rule.author == self._me and self.is_settled(rid, settled_ms)

    def replicas(self, cid: Cid, rule: Placement, storing: tuple[NodeId, ...]) -> tuple[NodeId, ...]:
        """Return who stores a chunk."""
        if rule.replicas >= len(storing):
            return storing  # everybody has everything: nothing to hash
        return placement.replicas(cid, storing, rule.replicas, rule.author)

    def _sort(
        self, reading: Reading, cid: Cid, rid: Rid, rule: Placement, storing: tuple[NodeId, ...]
    ) -> None:
        replicas = self.replicas(cid, rule, storing)
        is_here, is_placed_here = self._chunks.has(cid), self._me in replicas
        if is_placed_here and not is_here:
            reading.lacking.add(rid)
        elif is_placed_here:
            for node in replicas:
                # A chunk that several records name comes once for each of them, one after the other.
                if node != self._me and reading.held.setdefault(node, [])[-1:] != [cid]:
                    reading.held[node].append(cid)
        elif is_here and rule.author != self._me:
            # An author keeps what it made, also where it stores for nobody.
            reading.surplus.append(cid)

    def _unlisted(self, prefix: bytes) -> Iterator[Rid]:
        """Yield the records on the ledger whose ids begin with a prefix, and whose list of chunks is not here."""
        start, stop = prefix_range(self._ledger.state_prefix + ledger_rows.record_key(Rid(prefix)))
        ids_at = len(start) - len(prefix)
        for key, _ in self._rows.scan(start, stop):
            rid = Rid(key[ids_at:])
            if self._rows.get(CHUNK_LIST + rid) is None and self._ledger.erasure(rid) is None:
                yield rid


def turns(chunks: int) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of the parts that are read in one turn of a worker thread, some hundred chunks each: consensus waits for no turn."""
    step = max(1, PARTS * _CHUNKS_PER_TURN // max(chunks, 1))
    for first in range(0, PARTS, step):
        yield first, min(first + step, PARTS)


def prefixes(first: int, stop: int) -> tuple[bytes, ...]:
    """Return what the ids in the parts from `first` to before `stop` begin with: nothing in particular when it is all parts."""
    return (b"",) if (first, stop) == (0, PARTS) else tuple(bytes([part]) for part in range(first, stop))


_CHUNKS_PER_TURN = 512
