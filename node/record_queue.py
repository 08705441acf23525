"""What is sealed but not final: kept on disk from the moment `record add` reports it, until the ledger has it.

    received ──chunks confirmed, envelope receipted──► ordered ──applied here──► final (leaves the queue)
        ▲                                                 │
        └──────────── no quorum, stale receipts ──────────┘   retried for ever, also after kill -9

Every step may be repeated: chunks and envelopes are stored once, the ledger takes a record id once, and "record exists"
with our envelope counts as final. The DEK stays in the row (sealed) only until then: when the vault's category key has
been rotated meanwhile, the envelope is sealed anew under the present one.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import trio

from node.chunk_holder import put_chunk_list
from node.event_log import EventLog
from node.ports import Clock, Disk, Entropy
from node.receipts import Submitter
from node.record_index import RecordIndex
from node.repair import put_under_replicated
from node.replication import Replication, Tally
from node.sealed_rows import SealedRows
from protocol import chunk_exchange as exchange
from protocol import codec, limits, signing
from protocol.codec import Bytes32, Size, wire
from protocol.envelope import Label, envelope_hash, seal_envelope
from protocol.errors import (
    Corruption,
    Forbidden,
    LocalFault,
    NotFinal,
    Refused,
    RemoteFault,
    StorageFull,
    Unavailable,
)
from protocol.identifiers import ZERO, NodeId, PublicKey, Rid, Vid
from protocol.ledger_rows import Receipt, Vault
from protocol.transaction import EnvelopeReceipt, RecordCommit, RidField, VidField, sign
from storage.chunk_index import ChunkIndex
from storage.key_value import Batch
from storage.keyspace import RECORD_QUEUE
from storage.ledger_store import LedgerStore

_CONCURRENT = 16
"""Records on their way at once: enough to fill blocks, few enough to bound memory and calls."""
_RETRY_MS_MIN = 250
_RETRY_MS_MAX = 5_000
_SUBMIT_MS = 20_000
_FOR_GOOD = (
    "the author may not write to this vault",
    "supersedes an unknown record",
    "signed by the wrong keys",
)
"""Refusals that trying again does not mend; all others mean that something was stale."""


@wire("queued-record")
@dataclass(frozen=True, slots=True, repr=False)
class QueuedRecord:
    """A sealed record. `cids` are all its chunks, the manifest last; `envelope` is empty until the vault is known."""

    rid: RidField
    vid: VidField
    epoch: int
    dek: Bytes32
    envelope: Annotated[bytes, Size(0, limits.ENVELOPE_BYTES_MAX)]
    cids: exchange.CidList

    def __repr__(self) -> str:
        return f"QueuedRecord({self.rid.hex()[:16]}, {len(self.cids)} chunks)"


class _Progress:
    """What the task knows of one record beside its row."""

    __slots__ = ("done", "fresh", "retry_ms", "state", "tally")

    def __init__(self, *, fresh: bool) -> None:
        self.state = "received"
        self.fresh = fresh
        self.retry_ms = _RETRY_MS_MIN
        self.done = trio.Event()
        self.tally = Tally()


class RecordQueue:
    """Owns the rows of `keyspace.RECORD_QUEUE`.

    `open_vault(vid)` makes sure that a vault we hold stands on the ledger (Unavailable while it cannot).
    """

    def __init__(
        self,
        *,
        key: signing.SigningKey,
        ledger: LedgerStore,
        rows: SealedRows,
        index: RecordIndex,
        disk: Disk,
        replication: Replication,
        submitter: Submitter,
        open_vault: Callable[[Vid], Awaitable[object]],
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        self._key = key
        self._me = NodeId(key.public)
        self._ledger = ledger
        self._rows = rows
        self._index = index
        self._disk = disk
        self._replication = replication
        self._submitter = submitter
        self._open_vault = open_vault
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self._progress: dict[Rid, _Progress] = {
            Rid(rid): _Progress(fresh=False) for rid in rows.keys(RECORD_QUEUE)
        }
        self._send, self._waiting = trio.open_memory_channel[Rid](limits.QUEUE_RECORDS_MAX)

    @property
    def length(self) -> int:
        """How many records are not final."""
        return len(self._progress)

    def check_room(self, count: int = 1) -> None:
        """Check that the queue takes more records.

        Raises:
            StorageFull: it is full; nothing of what was to be added may be kept.
        """
        if len(self._progress) + count > limits.QUEUE_RECORDS_MAX:
            raise StorageFull(
                f"{len(self._progress)} records wait to become final: add again when a quorum is back"
            )

    def state(self, rid: Rid) -> str:
        """Return received, ordered or final; unknown when the record is neither queued nor on the ledger."""
        progress = self._progress.get(rid)
        if progress is not None:
            return progress.state
        return "final" if self._ledger.record(rid) is not None else "unknown"

    async def add(self, records: Sequence[QueuedRecord], batch: Batch) -> None:
        """Queue records together with the rows staged in `batch`: durable, all or nothing, on return.

        Raises:
            StorageFull: the queue or the disk is full; nothing was kept.
        """
        self.check_room(len(records))
        for record in records:
            self._progress[record.rid] = _Progress(fresh=True)
            self._rows.put(batch, RECORD_QUEUE + record.rid, codec.encode(record))
            ChunkIndex.refer(batch, record.cids, record.rid)
        try:
            await self._disk.commit(batch, sync=True)
        except BaseException:
            for record in records:
                del self._progress[record.rid]
            raise
        # From here on the records survive a crash; whatever follows may be repeated.
        for record in records:
            self._send.send_nowait(record.rid)

    async def wait(self, rids: Sequence[Rid], timeout_ms: int) -> bool:
        """Wait until none of the records is queued any more; return whether that happened.

        Gives up when nothing has moved for `timeout_ms`: a large record takes as long as its chunks need to travel.
        """
        moved = -1
        while (present := self._moved(rids)) != moved:
            moved = present
            with trio.move_on_after(timeout_ms / 1000):
                for rid in rids:
                    progress = self._progress.get(rid)
                    if progress is not None:
                        await progress.done.wait()
                return True
        return False

    def _moved(self, rids: Sequence[Rid]) -> int:
        """Return a number that grows while chunks of these records travel."""
        return sum(progress.tally.count for rid in rids if (progress := self._progress.get(rid)) is not None)

    async def run(self) -> None:
        """Bring queued records to the ledger until cancelled; those of before the start first."""
        for rid in tuple(self._progress):
            if not self._progress[rid].fresh:
                self._send.send_nowait(rid)
        async with trio.open_nursery() as nursery:
            for _ in range(_CONCURRENT):
                nursery.start_soon(self._serve, nursery)

    async def _serve(self, nursery: trio.Nursery) -> None:
        async for rid in self._waiting:
            progress = self._progress.get(rid)
            if progress is None:
                continue
            try:
                await self._advance(rid, progress)
            except (Unavailable, Corruption) as error:
                self._log.info("a record waits", record=rid.hex()[:16], reason=type(error).__name__)
                progress.state, progress.fresh = "received", False
                nursery.start_soon(self._again, rid, progress.retry_ms)
                progress.retry_ms = min(2 * progress.retry_ms, _RETRY_MS_MAX)

    async def _again(self, rid: Rid, delay_ms: int) -> None:
        await self._clock.sleep_ms(delay_ms)
        self._send.send_nowait(rid)

    async def _advance(self, rid: Rid, progress: _Progress) -> None:
        """Take one record as far as it goes now."""
        row = self._rows.get(RECORD_QUEUE + rid)
        if row is None:
            raise LocalFault("a queued record has no row")
        record = codec.decode(row, QueuedRecord)
        if self._ledger.record(rid) is not None:
            await self._finish(record, frozenset())
            return
        try:
            vault = await self._vault(record.vid)
            record = await self._with_envelope(record, vault)
        except (Forbidden, Refused, RemoteFault) as error:
            # Handed over, or revoked, before we came to it; or its custodian published a key that is none.
            await self._refuse(record, str(error)[:200])
            return
        placed = exchange.PlacedChunks(record.cids, self._me, vault.replicas)
        confirmations = await self._replication.confirm(placed, fresh=progress.fresh, tally=progress.tally)
        offer = exchange.OfferEnvelope(
            record.vid, rid, record.epoch, self._me, record.envelope, record.cids, confirmations
        )
        receipts = await self._replication.collect(offer)
        progress.state = "ordered"
        outcome = await self._commit(record, receipts)
        reason = outcome.verdict.removeprefix("refused: ")
        if self._is_ours(record):
            await self._finish(record, frozenset(receipt.node for receipt in confirmations))
        elif reason in _FOR_GOOD:
            await self._refuse(record, reason)
        else:
            raise Unavailable(f"the ledger answered: {reason}")

    async def _vault(self, vid: Vid) -> Vault:
        # Also when one stands there: it may be somebody else's, and sealing to its key would be sealing to theirs.
        await self._open_vault(vid)
        vault = self._ledger.vault(vid)
        if vault is None:
            raise NotFinal("the vault of a record is not on the ledger yet")
        if not self._may_write(vault):
            raise Forbidden(_FOR_GOOD[0])
        return vault

    def _may_write(self, vault: Vault) -> bool:
        """Whether the ledger may ever take a record of ours: a grant that is about to begin counts, an ended one does not."""
        grants = (self._ledger.grant(gid) for gid in vault.grants)
        return self._me in vault.writers or any(
            state is not None
            and state.grant.facility == self._me
            and "W" in state.grant.rights
            and not state.revoked_ms
            and self._clock.now_ms() < state.grant.exp
            for state in grants
        )

    async def _with_envelope(self, record: QueuedRecord, vault: Vault) -> QueuedRecord:
        """Return the record with an envelope under the vault's present category key."""
        if record.envelope and record.epoch == vault.epoch:
            return record
        ledger = self._submitter.ledger
        label = Label(ledger, record.vid, vault.epoch, record.rid, PublicKey(self._me))
        envelope = seal_envelope(
            label,
            vault.cat_pk,
            dek=record.dek,
            s1=self._entropy.bytes(32),
            seed32=self._entropy.bytes(32),
            manifest_cid=record.cids[-1],
        )
        record = replace(record, epoch=vault.epoch, envelope=envelope)
        batch = Batch()
        self._rows.put(batch, RECORD_QUEUE + record.rid, codec.encode(record))
        # Before anybody sees it: after a crash the same envelope must be offered, or its receipts would not fit.
        await self._disk.commit(batch, sync=True)
        return record

    async def _commit(self, record: QueuedRecord, receipts: tuple[EnvelopeReceipt, ...]) -> Receipt:
        commit = RecordCommit(
            record.vid,
            record.rid,
            record.epoch,
            self._me,
            envelope_hash(record.envelope),
            receipts,
            Rid(ZERO),
            self._submitter.valid_until(),
        )
        return await self._submitter.submit(
            sign(commit, self._submitter.ledger, self._key), timeout_ms=_SUBMIT_MS
        )

    def _is_ours(self, record: QueuedRecord) -> bool:
        """Whether the ledger holds the record, by this commit or by one sent before."""
        stored = self._ledger.record(record.rid)
        return stored is not None and stored.env_hash == envelope_hash(record.envelope)

    async def _finish(self, record: QueuedRecord, confirmed: frozenset[NodeId]) -> None:
        """Take a final record out of the queue; its key goes with it."""
        vault = self._ledger.vault(record.vid)
        assert vault is not None, "a record stands in a vault"
        placed = exchange.PlacedChunks(record.cids, self._me, vault.replicas)
        storing = self._ledger.configuration.storing
        batch = Batch()
        batch.delete(RECORD_QUEUE + record.rid)
        if self._ledger.erasure(record.rid) is not None:
            pass  # by another facility, in the meantime: there is nothing to bring anywhere
        elif self._me in storing:
            # An author that does not store keeps no list to push from; there, the members pull what they lack.
            missing = frozenset(placed.holders(storing)) - confirmed - {self._me}
            put_under_replicated(batch, record.rid, tuple(sorted(missing)))
        else:
            # It keeps the chunks all the same: without the list nobody could find them when the record is erased.
            put_chunk_list(batch, record.rid, placed)
        # Not synchronised: after a crash the record is found on the ledger, and this is done again.
        await self._disk.commit(batch, sync=False)
        self._leave(record.rid)

    async def _refuse(self, record: QueuedRecord, reason: str) -> None:
        """Take a record out of the queue that the ledger will never accept, and remember why."""
        batch = Batch()
        batch.delete(RECORD_QUEUE + record.rid)
        put_chunk_list(batch, record.rid, exchange.PlacedChunks(record.cids, self._me, 1))
        note = self._index.note(record.rid)
        if note is not None:
            self._index.put_note(batch, replace(note, refusal=reason))
        await self._disk.commit(batch, sync=True)
        self._log.error("the ledger refused a record", record=record.rid.hex()[:16])
        self._leave(record.rid)

    def _leave(self, rid: Rid) -> None:
        self._progress.pop(rid).done.set()
