"""Challenges: now and then a member has to prove that it has a chunk it should have (`protocol.possession`).

    a member, in turn ──► a chunk at random that is here and should be there ──► proof asked for, checked with our own bytes
        proved    noted
        silent    as lacking, where it is connected
        lacking   its replica is brought there anew, if it is of our own record: of others' we do not know whether it has confirmed it
        wrong     it is distrusted: its replicas of our records are placed elsewhere as well, until it has proved enough

One chunk a minute: next to nothing for a member that has what it says, and within some days certain to be seen for one that has half.
"""

from itertools import chain, islice

import trio

from node.event_log import EventLog
from node.placed_ranges import PlacedRanges
from node.ports import Clock, Entropy, PeerTransport, Workers
from node.repair import Repair
from node.standings import Standings
from protocol import codec, limits, possession
from protocol.chunk_exchange import PlacedChunks
from protocol.errors import Corruption, Invalid, RemoteFault, StorageFull, Unavailable
from protocol.identifiers import Cid, NodeId, Rid
from protocol.possession import Outcome
from storage.chunk_store import ChunkStore
from storage.key_value import KeyValue
from storage.keyspace import CHUNK_LIST, prefix_range

_CALL_MS = 20_000
_LOOKED_AT = 256
"""Chunks behind a random place, of which one is to be found that the member should have."""
_SETTLED_MS = 60_000
"""What is on the ledger for less may still be on its way by itself."""
_RECORDS_PER_TURN = 256
_PLACE_AGAIN_MS = 3600 * 1000


class Challenges:
    """The task (`run`), the answers to other members (`serve`), and the question itself (`ask`) for who needs certainty."""

    def __init__(
        self,
        *,
        ranges: PlacedRanges,
        chunks: ChunkStore,
        rows: KeyValue,
        repair: Repair,
        standings: Standings,
        transport: PeerTransport,
        workers: Workers,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        self._ranges = ranges
        self._chunks = chunks
        self._rows = rows
        self._repair = repair
        self._standings = standings
        self._transport = transport
        self._workers = workers
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self._turn = 0
        self._placed_ms = 0
        self._answering = trio.CapacityLimiter(1)  # who asks waits in line: the threads are for records

    def serve(self) -> None:
        """Start answering."""
        self._transport.serve(possession.POSSESSION_CHANNEL, self._answer)

    async def run(self) -> None:
        """Challenge one member after the other until cancelled."""
        while True:
            await self._clock.sleep_ms(limits.CHALLENGE_PERIOD_S * 1000)
            try:
                await self._challenge_next()
                await self._place_elsewhere()
            except (Corruption, StorageFull) as reason:
                # Damaged rows or no room for the note; both are told elsewhere, and this goes on with another chunk.
                self._log.debug("a challenge was left out", reason=str(reason))

    async def ask(self, node: NodeId, cids: tuple[Cid, ...], *, is_promised: bool) -> tuple[Outcome, ...]:
        """Have a member prove that it has chunks that are here, at most `PROOFS_PER_MESSAGE_MAX`.

        What it proves, and what it makes up, is noted; that it lacks a chunk only where it has given us its word for it.

        Raises:
            Unavailable: it is away or does not answer in time.
            RemoteFault: it does not know the question, or answers something else; this is not noted.
            Corruption: our own copy is damaged.
        """
        nonce = self._entropy.bytes(32)
        expected = await self._workers.run(self._expected, nonce, node, cids)
        body = codec.encode(possession.Prove(nonce, cids))
        raw = await self._transport.call(node, possession.POSSESSION_CHANNEL, body, timeout_ms=_CALL_MS)
        given = codec.decode(raw, possession.Proofs).digests
        if len(given) != len(cids):
            raise Invalid("a member gives another number of proofs than it was asked for")
        outcomes = tuple(map(possession.outcome_of, expected, given))
        for cid, outcome in zip(cids, outcomes, strict=True):
            if is_promised or outcome is not Outcome.LACKING:
                await self._note(node, cid, outcome)
        return outcomes

    # --- asking ---------------------------------------------------------------------------------------------------

    async def _challenge_next(self) -> None:
        storing = self._ranges.storing
        peers = [peer.node for peer in self._transport.peers() if peer.connected and peer.node in storing]
        if not peers:
            return
        node = peers[self._turn % len(peers)]
        self._turn += 1
        found = await self._workers.run(self._candidate, node, self._entropy.bytes(32), storing)
        if found is None:
            return
        cid, is_own = found
        try:
            await self.ask(node, (cid,), is_promised=is_own)
        except (Unavailable, RemoteFault) as reason:
            self._log.debug("a challenge was not answered", peer=node.hex()[:16], reason=str(reason)[:200])
            is_away = not any(peer.node == node and peer.connected for peer in self._transport.peers())
            if not is_away and is_own and self._chunks.has(cid):
                # Being away is no lie. Who is here and answers nothing may have nothing.
                await self._note(node, cid, Outcome.SILENT)

    def _candidate(self, node: NodeId, place: bytes, storing: tuple[NodeId, ...]) -> tuple[Cid, bool] | None:
        """Return a chunk that is here and should be with a member, the next after a random place, and whether it is our own."""
        index = self._chunks.index
        following = chain(index.locations(place), index.locations())
        for cid, _ in islice(following, _LOOKED_AT):
            for rid in index.references(cid):
                rule = self._ranges.rule(rid)
                if rule is None or node not in self._ranges.replicas(cid, rule, storing):
                    continue
                is_settled = self._ranges.is_settled(rid, self._clock.now_ms() - _SETTLED_MS)
                if is_settled and node not in self._repair.unconfirmed(rid):
                    return cid, rule.author == self._transport.me
        return None

    def _expected(self, nonce: bytes, node: NodeId, cids: tuple[Cid, ...]) -> tuple[bytes, ...]:
        expected = []
        for cid in cids:
            chunk = self._chunks.get(cid)
            if chunk is None:
                raise Unavailable("a chunk that was to be proved has just been deleted here")
            expected.append(possession.proof(nonce, node, cid, chunk))
        return tuple(expected)

    async def _note(self, node: NodeId, cid: Cid, outcome: Outcome) -> None:
        is_newly_distrusted = await self._standings.note(node, outcome)
        if outcome is Outcome.PROVED:
            return
        own = await self._workers.run(self._own_records_of, cid)
        await self._repair.note_unconfirmed(dict.fromkeys(own, (node,)))
        self._log.warning(
            "a member cannot prove that it has a chunk it should have",
            peer=node.hex()[:16], outcome=outcome.value, distrusted=is_newly_distrusted,
        )  # fmt: skip
        if is_newly_distrusted:
            self._placed_ms = 0

    def _own_records_of(self, cid: Cid) -> tuple[Rid, ...]:
        now_ms = self._clock.now_ms()
        return tuple(rid for rid in self._chunks.index.references(cid) if self._ranges.is_own(rid, now_ms))

    # --- in the place of who is distrusted ------------------------------------------------------------------------

    async def _place_elsewhere(self) -> None:
        """Now, and again after a while, have others store what distrusted members should: records come all the time."""
        now_ms = self._clock.now_ms()
        if not self._standings.distrusted or (self._placed_ms and now_ms - self._placed_ms < _PLACE_AGAIN_MS):
            return
        self._placed_ms = now_ms
        after: Rid | None = Rid(b"")
        while after is not None:
            standing_in, after = await self._workers.run(self._stand_ins, after)
            await self._repair.note_unconfirmed(standing_in)

    def _stand_ins(self, after: Rid) -> tuple[dict[Rid, tuple[NodeId, ...]], Rid | None]:
        """Return who else is to store which of the next of our own records, and where to go on, None at the end."""
        storing, distrusted = self._ranges.storing, self._standings.distrusted
        start, stop = prefix_range(CHUNK_LIST)
        found: dict[Rid, tuple[NodeId, ...]] = {}
        portion = list(
            islice(self._rows.scan(start + after + b"\0" if after else start, stop), _RECORDS_PER_TURN)
        )
        for key, row in portion:
            rid, placed = Rid(key[len(CHUNK_LIST) :]), codec.decode(row, PlacedChunks)
            if placed.author != self._transport.me:
                continue
            wanted = possession.wanted_shares(placed, storing, distrusted)
            more = tuple(node for node, share in wanted.items() if share != placed.holders(storing).get(node))
            if more:
                found[rid] = more
        return found, Rid(portion[-1][0][len(CHUNK_LIST) :]) if len(portion) == _RECORDS_PER_TURN else None

    # --- answering ------------------------------------------------------------------------------------------------

    async def _answer(self, _sender: NodeId, body: bytes) -> bytes:
        asked = codec.decode(body, possession.Prove)
        async with self._answering:
            digests = await self._workers.run(self._proofs, asked)
        return codec.encode(possession.Proofs(digests))

    def _proofs(self, asked: possession.Prove) -> tuple[bytes, ...]:
        digests = []
        for cid in asked.cids:
            try:
                chunk = self._chunks.get(cid)
            except Corruption:
                self._chunks.quarantine(cid)  # as with any reading: the repair fetches it anew
                chunk = None
            digests.append(possession.proof(asked.nonce, self._transport.me, cid, chunk) if chunk else b"")
        return tuple(digests)
