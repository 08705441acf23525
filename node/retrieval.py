"""Chunks and envelopes by id: from our own store, else from whoever has them, every byte checked against its hash.

A chunk that turns out damaged here is quarantined, fetched anew from another member and stored again: nothing wrong is
ever returned. Members are asked in the order of placement, several at once for the groups of one record.
"""

import hashlib
from contextlib import suppress

from node.chunk_holder import ChunkHolder
from node.ports import PeerTransport, Workers
from protocol import chunk_exchange as exchange
from protocol import codec, placement
from protocol.envelope import Label, check_envelope
from protocol.errors import Corruption, Invalid, RemoteFault, Unavailable
from protocol.identifiers import Cid, Digest, NetworkId, NodeId, PublicKey, Rid
from protocol.ledger_rows import Record
from storage.chunk_store import ChunkStore
from storage.envelope_store import EnvelopeStore
from storage.ledger_store import LedgerStore

GROUP = exchange.CHUNKS_PER_MESSAGE_MAX
"""Chunks fetched together."""
_CALL_MS = 15_000


class Retrieval:
    """Finds ciphertext."""

    def __init__(
        self,
        *,
        network: NetworkId,
        ledger: LedgerStore,
        chunks: ChunkStore,
        envelopes: EnvelopeStore,
        holder: ChunkHolder,
        transport: PeerTransport,
        workers: Workers,
    ) -> None:
        self._network = network
        self._ledger = ledger
        self._chunks = chunks
        self._envelopes = envelopes
        self._holder = holder
        self._transport = transport
        self._workers = workers

    async def chunks(self, cids: tuple[Cid, ...], author: NodeId) -> tuple[bytes, ...]:
        """Return up to `GROUP` chunks, in order.

        Raises:
            Unavailable: one is neither here nor with a member that answers.
        """
        found, damaged = await self._workers.run(self._load, cids)
        missing = tuple(cid for cid in cids if cid not in found)
        if missing:
            fetched = await self.fetch(missing, author)
            found.update(fetched)
            repaired = [(cid, fetched[cid]) for cid in missing if cid in damaged]
            if repaired:
                await self._workers.run(self._store, repaired)
        return tuple([found[cid] for cid in cids])

    async def fetch(self, cids: tuple[Cid, ...], author: NodeId) -> dict[Cid, bytes]:
        """Return up to `GROUP` chunks from other members.

        Raises:
            Unavailable: no member that answers has one of them.
        """
        found: dict[Cid, bytes] = {}
        for node in self._sources(cids[0], author):
            wanted = tuple(cid for cid in cids if cid not in found)
            if not wanted:
                break
            with suppress(Unavailable, RemoteFault):  # away, or sent something else: the next one is asked
                found.update(await self._ask(node, wanted))
        if len(found) < len(set(cids)):
            raise Unavailable("a part of the record is on no member that answers now; try again later")
        return found

    async def envelope(self, record: Record) -> bytes:
        """Return a committed record's envelope, checked against the ledger; keep a fetched one.

        Raises:
            Unavailable: it is neither here nor with a member that answers.
        """
        kept = self._kept_envelope(record)
        return kept if kept is not None else await self.fetch_envelope(record)

    def _kept_envelope(self, record: Record) -> bytes | None:
        """Return the envelope kept here, or None when there is none that is what the ledger names."""
        try:
            envelope = self._envelopes.envelope_of(record.rid)
        except Corruption:
            return None  # the copy that is fetched instead replaces it
        if envelope is None or hashlib.sha256(envelope).digest() != record.env_hash:
            return None
        return envelope

    async def fetch_envelope(self, record: Record) -> bytes:
        """Fetch a record's envelope and chunk list from another member, and keep them.

        Raises:
            Unavailable: no member that answers has it.
        """
        vault = self._ledger.vault(record.vid)
        assert vault is not None, "a record stands in a vault"
        label = Label(self._network, record.vid, record.epoch, record.rid, PublicKey(record.author))
        suites = self._ledger.configuration.suites
        for node in self._sources(Cid(record.rid), record.author):
            try:
                copy = await self._ask_envelope(node, record.rid)
                if copy is None:
                    continue
                envelope = check_envelope(
                    copy.envelope, label, suites=suites, env_hash=Digest(record.env_hash)
                )
                # The list beside it is nobody's signed word; at least it must end in the manifest that the envelope names.
                if envelope.manifest_cid != copy.cids[-1]:
                    continue
            except (Unavailable, RemoteFault, Corruption):
                continue  # away, or sent something else: the next one
            placed = exchange.PlacedChunks(copy.cids, record.author, vault.replicas)
            try:
                await self._holder.keep_envelope(record.rid, copy.envelope, placed)
            except Invalid:
                # Nobody's fault: a member that has not come to the erasure still hands it out.
                raise Unavailable("the record has just been erased") from None
            return copy.envelope
        raise Unavailable("the envelope of the record is on no member that answers now; try again later")

    def _sources(self, cid: Cid, author: NodeId) -> tuple[NodeId, ...]:
        """Return whom to ask, in order: replicas first, the author last among equals, so that load spreads."""
        storing = self._ledger.configuration.storing
        ordered = placement.by_weight(cid, storing)
        others = (author,) if author not in storing else ()
        return tuple(node for node in (*ordered, *others) if node != self._transport.me)

    async def _ask(self, node: NodeId, cids: tuple[Cid, ...]) -> dict[Cid, bytes]:
        body = codec.encode(exchange.GetChunks(cids))
        raw = await self._transport.call(node, exchange.CHUNKS_CHANNEL, body, timeout_ms=_CALL_MS)
        return await self._workers.run(_checked, raw, cids)

    async def _ask_envelope(self, node: NodeId, rid: Rid) -> exchange.EnvelopeCopy | None:
        body = codec.encode(exchange.GetEnvelope(rid))
        raw = await self._transport.call(node, exchange.ENVELOPES_CHANNEL, body, timeout_ms=_CALL_MS)
        answer: exchange.EnvelopeCopy | exchange.NoEnvelope = codec.decode(
            raw,
            exchange.EnvelopeCopy | exchange.NoEnvelope,  # type: ignore[arg-type]  # a union is no type for mypy
        )
        return answer if isinstance(answer, exchange.EnvelopeCopy) else None

    def _load(self, cids: tuple[Cid, ...]) -> tuple[dict[Cid, bytes], frozenset[Cid]]:
        """Read what is here; return it and the ids of what was damaged (now in quarantine)."""
        found: dict[Cid, bytes] = {}
        damaged: set[Cid] = set()
        for cid in cids:
            try:
                data = self._chunks.get(cid)
            except Corruption:
                self._chunks.quarantine(cid)
                damaged.add(cid)
                continue
            if data is not None:
                found[cid] = data
        return found, frozenset(damaged)

    def _store(self, chunks: list[tuple[Cid, bytes]]) -> None:
        self._chunks.put_many(chunks, trusted=True)


def _checked(raw: bytes, cids: tuple[Cid, ...]) -> dict[Cid, bytes]:
    """Return those of the chunks in an answer that are what their ids name."""
    answer = codec.decode(raw, exchange.Chunks)
    return {
        cid: data
        for cid, data in zip(cids, answer.chunks, strict=False)
        if data and hashlib.sha256(data).digest() == cid
    }
