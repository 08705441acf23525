"""Brings queued records to the ledger: one large one, or a group of small ones, each with its own outcome.

    envelope under the vault's present key ──► chunks confirmed ──► envelope receipted ──► RecordCommit ──► applied here

Every step may be repeated: chunks and envelopes are stored once, the ledger takes a record id once, and "record exists"
with our envelope counts as final.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from node.ports import Clock, Disk, Entropy, Workers
from node.queued_record import QueuedRecord
from node.receipts import Submitter
from node.replication import Replication, Tally
from node.sealed_rows import SealedRows
from node.standing import Standing
from protocol import chunk_exchange as exchange
from protocol import codec, signing
from protocol.envelope import Label, envelope_hash, seal_envelope
from protocol.errors import Forbidden, NotFinal, Refused, RemoteFault, Unavailable
from protocol.identifiers import ZERO, NodeId, PublicKey, Rid, Vid
from protocol.ledger_rows import Vault
from protocol.transaction import EnvelopeReceipt, RecordCommit, SignedTransaction, encoded, sign
from storage.key_value import Batch
from storage.keyspace import RECORD_QUEUE
from storage.ledger_store import LedgerStore

_SUBMIT_MS = 20_000
_FOR_GOOD = (
    "the author may not write to this vault",
    "supersedes an unknown record",
    "signed by the wrong keys",
)
"""Refusals that trying again does not mend; all others mean that something was stale."""
TOO_FEW_CHUNKS = "too few members store its chunks so far"
TOO_FEW_ENVELOPES = "too few members store its envelope so far"


@dataclass(slots=True)
class Step:
    """How far one record has come. In the end it `is_final`, or has a `refusal` for good, or `waits` for a reason."""

    record: QueuedRecord
    vault: Vault | None = None
    receipts: tuple[EnvelopeReceipt, ...] = ()
    confirmed: frozenset[NodeId] = field(default_factory=frozenset)
    is_final: bool = False
    refusal: str = ""
    waits: str = ""

    @property
    def stands(self) -> bool:
        """Whether it goes on."""
        return not (self.is_final or self.refusal or self.waits)


class Committing:
    """Takes steps with records. `open_vault(vid)` makes sure that a vault we hold stands on the ledger.

    `ordered(rid)` is told when a record is on its way to be ordered.
    """

    def __init__(
        self,
        *,
        key: signing.SigningKey,
        ledger: LedgerStore,
        rows: SealedRows,
        disk: Disk,
        replication: Replication,
        submitter: Submitter,
        open_vault: Callable[[Vid], Awaitable[object]],
        workers: Workers,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._key = key
        self._me = NodeId(key.public)
        self._ledger = ledger
        self._rows = rows
        self._disk = disk
        self._replication = replication
        self._submitter = submitter
        self._open_vault = open_vault
        self._workers = workers
        self._clock = clock
        self._entropy = entropy

    @property
    def standing(self) -> Standing:
        """What is known of blocks that are ordered and not final."""
        return self._submitter.standing

    async def bring(
        self,
        records: Sequence[QueuedRecord],
        *,
        fresh: bool,
        tally: Tally,
        sent: Callable[[Rid, bytes], None],
    ) -> list[Step]:
        """Take records as far as they go now.

        Raises:
            Corruption: a chunk of one of them is damaged here.
            Unavailable: nothing can be written.
        """
        steps = [Step(record, is_final=self._ledger.record(record.rid) is not None) for record in records]
        await self._find_vaults(steps)
        await self._seal_envelopes(steps)
        await self._replicate(steps, fresh=fresh, tally=tally)
        await self._commit(steps, sent)
        return steps

    async def _find_vaults(self, steps: Sequence[Step]) -> None:
        found: dict[Vid, Vault | str] = {}
        for step in _standing(steps):
            vid = step.record.vid
            try:
                if vid not in found:
                    found[vid] = await self._vault(vid)
            except Unavailable as error:
                step.waits = str(error)
                continue
            except (Forbidden, Refused, RemoteFault) as error:
                # Handed over, or revoked, before we came to it; or its custodian published a key that is none.
                found[vid] = str(error)[:200]
            vault = found[vid]
            if isinstance(vault, Vault):
                step.vault = vault
            else:
                step.refusal = vault

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
        is_same = self._ledger.configurations.is_same
        return any(is_same(writer, self._me) for writer in vault.writers) or any(
            state is not None
            and is_same(state.grant.facility, self._me)
            and "W" in state.grant.rights
            and not state.revoked_ms
            and self._clock.now_ms() < state.grant.exp
            for state in grants
        )

    async def _seal_envelopes(self, steps: Sequence[Step]) -> None:
        """Give every record an envelope under its vault's present category key."""
        stale = [
            step
            for step in _standing(steps)
            if not step.record.envelope or step.record.epoch != _vault_of(step).epoch
        ]
        if not stale:
            return
        await self._workers.run(self._seal_all, stale)
        batch = Batch()
        for step in _standing(stale):
            self._rows.put(batch, RECORD_QUEUE + step.record.rid, codec.encode(step.record))
        # Before anybody sees them: after a crash the same envelope must be offered, or its receipts would not fit.
        await self._disk.commit(batch, sync=True)

    def _seal_all(self, steps: Sequence[Step]) -> None:
        for step in steps:
            record, vault = step.record, _vault_of(step)
            label = Label(self._submitter.ledger, record.vid, vault.epoch, record.rid, PublicKey(self._me))
            try:
                envelope = seal_envelope(
                    label,
                    vault.cat_pk,
                    dek=record.dek,
                    s1=self._entropy.bytes(32),
                    seed32=self._entropy.bytes(32),
                    manifest_cid=record.cids[-1],
                )
            except (Refused, RemoteFault) as error:
                step.refusal = str(error)[:200]
                continue
            step.record = replace(record, epoch=vault.epoch, envelope=envelope)

    async def _replicate(self, steps: Sequence[Step], *, fresh: bool, tally: Tally) -> None:
        """Bring chunks and envelopes to the members that store them."""
        going = _standing(steps)
        if not going:
            return
        placed = [
            exchange.PlacedChunks(step.record.cids, self._me, _vault_of(step).replicas) for step in going
        ]
        confirmations = await self._replication.confirm(placed, fresh=fresh, tally=tally)
        offered: list[tuple[Step, exchange.OfferEnvelope]] = []
        for step, receipts in zip(going, confirmations, strict=True):
            record = step.record
            step.confirmed = frozenset(receipt.node for receipt in receipts)
            if receipts:
                offer = exchange.OfferEnvelope(
                    record.vid, record.rid, record.epoch, self._me, record.envelope, record.cids, receipts
                )
                offered.append((step, offer))
            else:
                step.waits = TOO_FEW_CHUNKS
        if not offered:
            return
        given = await self._replication.collect([offer for _, offer in offered])
        for (step, _), envelope_receipts in zip(offered, given, strict=True):
            step.receipts = envelope_receipts
            step.waits = "" if envelope_receipts else TOO_FEW_ENVELOPES

    async def _commit(self, steps: Sequence[Step], sent: Callable[[Rid, bytes], None]) -> None:
        going = _standing(steps)
        if not going:
            return
        signed = await self._workers.run(self._sign_all, going, self._submitter.valid_until())
        for step, one in zip(going, signed, strict=True):
            sent(step.record.rid, encoded(one, self._submitter.ledger)[1])
        verdicts: tuple[str, ...] = ()
        try:
            receipts = await self._submitter.submit_all(signed, timeout_ms=_SUBMIT_MS)
            verdicts = tuple([receipt.verdict.removeprefix("refused: ") for receipt in receipts])
        except NotFinal:
            verdicts = ("not final in time",) * len(going)  # some of them may be: the ledger says which
        for step, reason in zip(going, verdicts, strict=True):
            stored = self._ledger.record(step.record.rid)
            # By this commit or by one sent before.
            step.is_final = stored is not None and stored.env_hash == envelope_hash(step.record.envelope)
            if not step.is_final:
                step.refusal = reason if reason in _FOR_GOOD else ""
                step.waits = "" if step.refusal else f"the ledger answered: {reason}"

    def _sign_all(self, steps: Sequence[Step], valid_until_ms: int) -> list[SignedTransaction]:
        return [self._signed(step, valid_until_ms) for step in steps]

    def _signed(self, step: Step, valid_until_ms: int) -> SignedTransaction:
        record = step.record
        commit = RecordCommit(
            record.vid,
            record.rid,
            record.epoch,
            self._me,
            envelope_hash(record.envelope),
            step.receipts,
            Rid(ZERO),
            valid_until_ms,
        )
        return sign(commit, self._submitter.ledger, self._key)


def _standing(steps: Sequence[Step]) -> list[Step]:
    return [step for step in steps if step.stands]


def _vault_of(step: Step) -> Vault:
    assert step.vault is not None, "records without one do not go on"
    return step.vault
