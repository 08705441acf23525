"""The side of a member that stores for others: takes chunks and envelopes, gives its word for them, hands them out.

A word is given only for what is on stable storage. An envelope receipt is given only after seeing w storage receipts
for every chunk, and only when the label rebuilt from *our own* ledger state is the envelope's (cryptography.md 6).
"""

import hashlib
from collections.abc import Callable

import trio

from node.chunk_writer import ChunkWriter
from node.pacing import Pace
from node.ports import Clock, Disk, PeerTransport, Workers
from protocol import chunk_exchange as exchange
from protocol import codec, limits, signing
from protocol.envelope import Label, check_envelope, envelope_hash
from protocol.errors import Corruption, Invalid, Malformed, RemoteFault, Unavailable
from protocol.identifiers import Cid, NetworkId, NodeId, PublicKey, Rid
from protocol.ledger_rows import Vault
from protocol.transaction import EnvelopeReceipt, receipt_form
from storage.chunk_index import ChunkIndex
from storage.chunk_store import ChunkStore
from storage.envelope_store import EnvelopeStore
from storage.key_value import Batch
from storage.keyspace import CHUNK_LIST
from storage.ledger_store import LedgerStore


def put_chunk_list(batch: Batch, rid: Rid, placed: exchange.PlacedChunks) -> None:
    """Stage which chunks a record has; from then on they are its, and stay while it does."""
    batch.put(CHUNK_LIST + rid, codec.encode(placed))
    ChunkIndex.refer(batch, placed.cids, rid)


class ChunkHolder:
    """Answers the two channels of `protocol.chunk_exchange`. `check_room` raises StorageFull at the disk's reserve."""

    def __init__(
        self,
        *,
        key: signing.SigningKey,
        network: NetworkId,
        ledger: LedgerStore,
        chunks: ChunkStore,
        writer: ChunkWriter,
        envelopes: EnvelopeStore,
        disk: Disk,
        workers: Workers,
        clock: Clock,
        pace: Pace,
        check_room: Callable[[], None],
    ) -> None:
        self._key = key
        self._me = NodeId(key.public)
        self._network = network
        self._ledger = ledger
        self._chunks = chunks
        self._writer = writer
        self._envelopes = envelopes
        self._disk = disk
        self._workers = workers
        self._clock = clock
        self._pace = pace
        self._check_room = check_room

    def serve(self, transport: PeerTransport) -> None:
        """Start answering."""
        transport.serve(exchange.CHUNKS_CHANNEL, self._answer_chunks)
        transport.serve(exchange.ENVELOPES_CHANNEL, self._answer_envelopes)

    def confirm(self, cids: tuple[Cid, ...]) -> exchange.StorageReceipt | exchange.Lacking:
        """Return a storage receipt for chunks that are all here, else those that are not. Fit for a worker thread."""
        lacking = tuple(cid for cid in cids if not self._chunks.has(cid))
        return (
            exchange.Lacking(lacking) if lacking else exchange.storage_receipt(cids, self._key, self._network)
        )

    def placed(self, rid: Rid) -> exchange.PlacedChunks | None:
        """Return the chunks of a record whose envelope is here."""
        row = self._disk.read(CHUNK_LIST + rid)
        return codec.decode(row, exchange.PlacedChunks) if row is not None else None

    async def receive(self, sender: NodeId, offer: exchange.OfferEnvelope) -> EnvelopeReceipt:
        """Store an envelope and return our receipt for it.

        Raises:
            Invalid, Malformed: it may not become a record, or its chunks are not confirmed.
            Unavailable: our ledger does not know the vault or the epoch yet; offer it again.
        """
        vault = self._vault_of(sender, offer)
        label = Label(self._network, offer.vid, offer.epoch, offer.rid, PublicKey(offer.author))
        envelope = check_envelope(offer.envelope, label, suites=self._ledger.configuration.suites)
        if envelope.manifest_cid != offer.cids[-1]:
            raise Invalid("an envelope names a manifest that is not among its chunks")
        digest = envelope_hash(offer.envelope)
        record = self._ledger.record(offer.rid)
        if record is not None and record.env_hash != digest:
            raise Invalid("a record of this id is on the ledger already")
        if self._ledger.erasure(offer.rid) is not None:
            raise Invalid("the record is erased")
        known = self.placed(offer.rid)
        if known is not None and not self._ledger.configurations.is_same(known.author, sender):
            # We gave our word for that one. Whoever sees an envelope before it is final could put another in its place.
            raise Invalid("another member has offered a record of this id")
        self._check_room()
        placed = exchange.PlacedChunks(offer.cids, offer.author, vault.replicas)
        storing = self._ledger.configuration.storing
        await self._workers.run(exchange.check_confirmed, placed, offer.receipts, storing, self._network)
        await self.keep_envelope(offer.rid, offer.envelope, placed)
        # Only now, after the synchronised write: the receipt says that we store it.
        form = receipt_form(self._network, offer.vid, offer.rid, digest)
        return EnvelopeReceipt(self._me, self._key.sign(form))

    async def keep_envelope(self, rid: Rid, envelope: bytes, placed: exchange.PlacedChunks) -> None:
        """Store a checked envelope with its chunk list, durably on return.

        Raises:
            Invalid: the record was erased meanwhile; nothing was stored.
        """
        if self._ledger.erasure(rid) is not None:
            raise Invalid("the record is erased")
        batch = Batch()
        self._envelopes.put_envelope(batch, rid, envelope)
        put_chunk_list(batch, rid, placed)
        await self._disk.commit(batch, sync=True)

    def _vault_of(self, sender: NodeId, offer: exchange.OfferEnvelope) -> Vault:
        if self._me not in self._ledger.configuration.storing:
            raise Invalid("this member does not store records")
        if offer.author != sender:
            raise Invalid("an envelope is offered by its author only")
        vault = self._ledger.vault(offer.vid)
        if vault is None or offer.epoch > vault.epoch:
            raise Unavailable("the vault of a record is not known here yet")
        stale_ms = self._clock.now_ms() - vault.epoch_since_ms
        if offer.epoch != vault.epoch and not (
            offer.epoch == vault.epoch - 1 and stale_ms <= limits.EPOCH_GRACE_MS
        ):
            raise Invalid("an envelope is sealed under a category key of the past")
        if not self._may_write(vault, sender):
            raise Invalid("the author may not write to this vault")
        return vault

    def _may_write(self, vault: Vault, author: NodeId) -> bool:
        is_same = self._ledger.configurations.is_same
        if any(is_same(writer, author) for writer in vault.writers):
            return True
        now_ms = self._clock.now_ms()
        grants = (self._ledger.grant(gid) for gid in vault.grants)
        return any(
            state is not None
            and state.is_live(now_ms)
            and is_same(state.grant.facility, author)
            and "W" in state.grant.rights
            for state in grants
        )

    async def _answer_chunks(self, _sender: NodeId, body: bytes) -> bytes:
        request: exchange.ChunkRequest = codec.decode(
            body,
            exchange.ChunkRequest,  # type: ignore[arg-type]  # a union is no type for mypy
        )
        if isinstance(request, exchange.PutChunks):
            self._check_room()
            # A transaction may be seen here before the sender sees it.
            await self._pace.rest(0)
            # The ids are computed here, so there is nothing left to distrust.
            await self._writer.put(await self._workers.run(_named, request.chunks))
            return codec.encode(exchange.Stored())
        if isinstance(request, exchange.ConfirmChunks):
            return codec.encode(await self._workers.run(self._confirm_all, request.lists))
        assert isinstance(request, exchange.GetChunks)
        if len(request.cids) > 1:  # a single one may be what a person waits for
            await self._pace.rest(0)
        return codec.encode_large(exchange.Chunks(await self._workers.run(self._load, request.cids)))

    def _confirm_all(self, lists: tuple[tuple[Cid, ...], ...]) -> exchange.Confirmed:
        return exchange.Confirmed(tuple([self.confirm(cids) for cids in lists]))

    def _load(self, cids: tuple[Cid, ...]) -> tuple[bytes, ...]:
        loaded: list[bytes] = []
        for cid in cids:
            try:
                loaded.append(self._chunks.get(cid) or b"")
            except Corruption:
                # Never served; the row leaves the index, so that our own repair fetches it anew.
                self._chunks.quarantine(cid)
                loaded.append(b"")
        return tuple(loaded)

    async def _answer_envelopes(self, sender: NodeId, body: bytes) -> bytes:
        request: exchange.EnvelopeRequest = codec.decode(
            body,
            exchange.EnvelopeRequest,  # type: ignore[arg-type]  # a union is no type for mypy
        )
        if isinstance(request, exchange.OfferEnvelopes):
            return codec.encode(await self.receive_all(sender, request.offers))
        assert isinstance(request, exchange.GetEnvelope)
        return codec.encode(self._copy(request.rid))

    async def receive_all(
        self, sender: NodeId, offers: tuple[exchange.OfferEnvelope, ...]
    ) -> exchange.Answered:
        """Answer each offer by itself, all at once: their rows share the disk's next synchronised write."""
        answers: dict[int, EnvelopeReceipt | exchange.NotYet | exchange.Declined] = {}

        async def one(at: int, offer: exchange.OfferEnvelope) -> None:
            try:
                answers[at] = await self.receive(sender, offer)
            except Unavailable:
                answers[at] = exchange.NotYet()
            except RemoteFault as fault:
                answers[at] = exchange.Declined(str(fault)[:200] or type(fault).__name__)

        async with trio.open_nursery() as nursery:
            for at, offer in enumerate(offers):
                nursery.start_soon(one, at, offer)
        return exchange.Answered(tuple([answers[at] for at in range(len(offers))]))

    def _copy(self, rid: Rid) -> exchange.EnvelopeCopy | exchange.NoEnvelope:
        placed = self.placed(rid)
        try:
            envelope = self._envelopes.envelope_of(rid)
        except (Corruption, Malformed):
            return exchange.NoEnvelope()  # the asker tries another member; our own repair fetches it anew
        if envelope is None or placed is None:
            return exchange.NoEnvelope()
        return exchange.EnvelopeCopy(envelope, placed.cids)


def _named(chunks: tuple[bytes, ...]) -> list[tuple[Cid, bytes]]:
    return [(Cid(hashlib.sha256(chunk).digest()), chunk) for chunk in chunks]
