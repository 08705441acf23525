"""`apply(rows, configuration, block)`: what certified transactions mean. Everything about ledger state is decided here.

State is a set of rows (key -> canonical bytes) that the caller can read; `apply` returns the rows to write, and the
outcome of every transaction: accepted, or "refused: reason". A refused transaction stays in the tree. Same rows, same
block ⇒ same writes on every node: nothing here reads a clock (time is the block's), draws randomness or does I/O.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain

from protocol import codec, cross_anchoring, limits, rejoining
from protocol.ballots import Governing
from protocol.block import Block
from protocol.configuration import Configuration
from protocol.convictions import Convicting
from protocol.cross_anchoring import ForeignCheckpoint
from protocol.errors import Refused
from protocol.identifiers import ZERO, NodeId, PublicKey, Rid, Txid, Vid
from protocol.ledger_rows import (
    ACCEPTED,
    GRANTS_PER_VAULT_MAX,
    Erasure,
    GrantState,
    Receipt,
    Record,
    Vault,
    erasure_key,
    event_key,
    grant_key,
    newer_version_key,
    nonce_key,
    older_version_key,
    origin_key,
    receipt_key,
    record_key,
    vault_key,
    vault_record_key,
)
from protocol.recovery_block import configuration_set_by
from protocol.rejoining import Rejoin
from protocol.transaction import (
    Accusation,
    Ballot,
    CustodyTransfer,
    EpochRotate,
    GovernanceTransaction,
    Grant,
    Propose,
    Read,
    RecordCommit,
    RecordErase,
    Revoke,
    SignedTransaction,
    Transaction,
    VaultOpen,
    VaultTransaction,
    Withdraw,
)

Rows = Callable[[bytes], bytes | None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One transaction of an applied block, with its receipt.

    `is_binding` is false where the receipt says nothing about the transaction's id: a copy of one that is in the ledger
    already, or one signed by keys that are not its own. Else whoever sees a transaction first could have it refused for
    good by submitting its body under a signature of his own.
    """

    transaction: Transaction
    signers: tuple[PublicKey, ...]
    receipt: Receipt
    is_binding: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """The effect of one block: rows to write (None deletes) and one outcome for each transaction, in order."""

    writes: dict[bytes, bytes | None]
    outcomes: tuple[Outcome, ...]


class _Refusal(Exception):
    """Why a transaction has no effect; its text goes into the receipt."""


class _NotSigned(_Refusal):
    """Refused for its signatures: says nothing about the same body signed by the right keys."""


def apply(rows: Rows, configuration: Configuration, block: Block) -> Applied:
    """Return what `block`, whose proof has been checked, does to the state."""
    state = _State(rows, configuration, block)
    if block.is_configuration:
        state.governing.switch(configuration_set_by(block))
        state.convicting.leave()
    outcomes: list[Outcome] = []
    for index, (signed, txid) in enumerate(block.entries()):
        signers = tuple([signature.key for signature in signed.signatures])
        if state.get(receipt_key(txid)) is not None:
            verdict, is_binding = "refused: already in the ledger", False
        else:
            verdict, is_binding = state.judge(signed, txid, signers)
        receipt = Receipt(txid, block.header.height, index, block.header.time_ms, verdict)
        if is_binding:
            state.put(receipt_key(txid), receipt)
        if verdict == ACCEPTED and isinstance(signed.transaction, VaultTransaction):
            state.writes[event_key(signed.transaction.vid, block.header.tree_size + index)] = txid
        outcomes.append(Outcome(signed.transaction, signers, receipt, is_binding))
    return Applied(state.writes, tuple(outcomes))


class _State:
    """The rows as seen inside one block: what was read, under what was written so far."""

    def __init__(self, rows: Rows, configuration: Configuration, block: Block) -> None:
        self._rows = rows
        self._configuration = configuration
        self._network = block.header.net
        self._time_ms = block.header.time_ms
        self._height = block.height
        self.writes: dict[bytes, bytes | None] = {}
        self.governing = Governing(
            self.get,
            self.writes,
            configuration,
            network=block.header.net,
            time_ms=self._time_ms,
            height=block.height,
        )
        self.convicting = Convicting(self.get, self.writes, configuration, block.header)

    def get(self, key: bytes) -> bytes | None:
        return self.writes[key] if key in self.writes else self._rows(key)

    def put(self, key: bytes, value: Vault | Record | GrantState | Receipt | Erasure) -> None:
        self.writes[key] = codec.encode(value)

    def judge(
        self, signed: SignedTransaction, txid: Txid, signers: tuple[PublicKey, ...]
    ) -> tuple[str, bool]:
        """Apply one transaction, or find why not; return the verdict, and whether it binds the transaction's id."""
        transaction = signed.transaction
        try:
            self._demand(transaction.valid_until_ms >= self._time_ms, "expired")
            self._demand(
                transaction.valid_until_ms
                <= self._time_ms + limits.VALID_UNTIL_MS_MAX + limits.CLOCK_AHEAD_MS_MAX,
                "valid for longer than a day",
            )
            match transaction:
                case VaultOpen():
                    self._open_vault(transaction, signers)
                case RecordCommit():
                    self._commit_record(transaction, txid, signers)
                case Grant():
                    self._grant(transaction, txid, signers)
                case Revoke():
                    self._revoke(transaction, signers)
                case EpochRotate():
                    self._rotate(transaction, signers)
                case CustodyTransfer():
                    self._transfer(transaction, signers)
                case Read():
                    self._read(transaction, signers)
                case RecordErase():
                    self._erase(transaction, txid, signers)
                case Propose() | Ballot() | Withdraw():
                    self._govern(transaction, txid, signers)
                case Accusation() | ForeignCheckpoint() | Rejoin():
                    self._take_from_member(transaction, txid, signers)
        except (_Refusal, Refused) as refusal:
            return f"refused: {refusal}", not isinstance(refusal, _NotSigned)
        return ACCEPTED, True

    def _govern(self, transaction: GovernanceTransaction, txid: Txid, signers: tuple[PublicKey, ...]) -> None:
        self._demand_signed(self.governing.is_signed(transaction, signers))
        match transaction:
            case Propose():
                self.governing.propose(transaction, txid)
            case Ballot():
                self.governing.vote(transaction)
            case Withdraw():
                self.governing.withdraw(transaction)

    def _take_from_member(
        self,
        transaction: Accusation | ForeignCheckpoint | Rejoin,
        txid: Txid,
        signers: tuple[PublicKey, ...],
    ) -> None:
        member = transaction.reporter if isinstance(transaction, Accusation) else transaction.member
        self._demand_signed(signers == (PublicKey(member),) and self._is_member(member))
        get, writes, time_ms = self.get, self.writes, self._time_ms
        match transaction:
            case Accusation():
                self.convicting.accuse(transaction.evidence, txid)
            case ForeignCheckpoint():
                cross_anchoring.record(get, writes, transaction, network=self._network, time_ms=time_ms)
            case Rejoin():
                rejoining.record(get, writes, transaction, height=self._height, time_ms=time_ms)

    @staticmethod
    def _demand(rule: bool, reason: str) -> None:
        if not rule:
            raise _Refusal(reason)

    @staticmethod
    def _demand_signed(rule: bool, reason: str = "signed by the wrong keys") -> None:
        if not rule:
            raise _NotSigned(reason)

    def _is_member(self, node: bytes) -> bool:
        return self._configuration.takes_part(NodeId(node))

    def _is_same(self, one: bytes, other: bytes) -> bool:
        """Return whether two node ids are of one facility, whose node key may have changed since."""
        return one == other or (self.get(origin_key(one)) or one) == (self.get(origin_key(other)) or other)

    def _vault(self, vid: Vid) -> Vault:
        row = self.get(vault_key(vid))
        if row is None:
            raise _Refusal("unknown vault")
        return codec.decode(row, Vault)

    def _live_grant(self, gid: Txid) -> GrantState | None:
        row = self.get(grant_key(gid))
        state = codec.decode(row, GrantState) if row is not None else None
        return state if state is not None and state.is_live(self._time_ms) else None

    def _is_over(self, gid: Txid) -> bool:
        row = self.get(grant_key(gid))
        return row is None or codec.decode(row, GrantState).is_over(self._time_ms)

    def _open_vault(self, opening: VaultOpen, signers: tuple[bytes, ...]) -> None:
        self._demand(self.get(vault_key(opening.vid)) is None, "vault exists")
        self._demand_signed(
            signers[0] == opening.auth_pk and self._is_member(signers[1]), "signed by the wrong keys"
        )
        self._demand_signed(opening.custodian in (ZERO, signers[1]), "the custodian did not sign")
        self.put(
            vault_key(opening.vid),
            Vault(
                opening.vid,
                opening.auth_pk,
                opening.rec_pk,
                opening.cat_pk,
                opening.audit_pk,
                opening.custodian,
                opening.writers,
                opening.replicas,
                0,
                self._time_ms,
                (),
            ),
        )

    def _commit_record(self, commit: RecordCommit, txid: Txid, signers: tuple[bytes, ...]) -> None:
        vault = self._vault(commit.vid)
        self._demand_signed(
            signers[0] == commit.author_pk and self._is_member(commit.author_pk), "signed by the wrong keys"
        )
        self._demand(self.get(record_key(commit.rid)) is None, "record exists")
        self._demand(self._may_write(vault, commit.author_pk), "the author may not write to this vault")
        in_grace = (
            commit.epoch == vault.epoch - 1 and self._time_ms - vault.epoch_since_ms <= limits.EPOCH_GRACE_MS
        )
        self._demand(commit.epoch == vault.epoch or in_grace, "epoch stale")
        holders = set(self._configuration.storing)
        self._demand(
            all(receipt.node in holders for receipt in commit.receipts)
            and len(commit.receipts) >= self._configuration.receipt_quorum,
            "receipts stale",
        )
        if commit.supersedes != ZERO:
            row = self.get(record_key(commit.supersedes))
            self._demand(
                row is not None and codec.decode(row, Record).vid == commit.vid,
                "supersedes an unknown record",
            )
            self.writes[newer_version_key(commit.supersedes, commit.rid)] = b""
            self.writes[older_version_key(commit.rid)] = commit.supersedes
        record = Record(
            commit.rid,
            commit.vid,
            commit.epoch,
            commit.author_pk,
            commit.env_hash,
            self._height,
            self._time_ms,
            txid,
        )
        self.put(record_key(commit.rid), record)
        self.writes[vault_record_key(commit.vid, commit.rid)] = b""

    def _may_write(self, vault: Vault, author: NodeId) -> bool:
        grants = (self._live_grant(gid) for gid in vault.grants)
        granted = (state.grant.facility for state in grants if state and "W" in state.grant.rights)
        return any(self._is_same(node, author) for node in chain(vault.writers, granted))

    def _grant(self, grant: Grant, txid: Txid, signers: tuple[bytes, ...]) -> None:
        vault = self._vault(grant.vid)
        self._demand_signed(signers[0] == vault.auth_pk)
        self._demand(self._is_member(grant.facility), "unknown facility")
        self._demand(grant.epoch == vault.epoch, "epoch stale")
        self._demand(grant.exp > self._time_ms, "expired")
        # What begins later stays: a second grant must not take a first one out, whose nbf the leader's clock lags behind.
        kept = tuple(gid for gid in vault.grants if not self._is_over(gid))
        self._demand(len(kept) < GRANTS_PER_VAULT_MAX, "too many grants")
        self.put(grant_key(txid), GrantState(grant, self._height, 0, 0))
        self.put(vault_key(grant.vid), replace(vault, grants=(*kept, txid)))

    def _revoke(self, revoke: Revoke, signers: tuple[bytes, ...]) -> None:
        vault = self._vault(revoke.vid)
        self._demand_signed(signers[0] in (vault.auth_pk, vault.rec_pk))
        row = self.get(grant_key(revoke.gid))
        state = codec.decode(row, GrantState) if row is not None else None
        if state is None or state.grant.vid != revoke.vid:
            raise _Refusal("unknown grant")
        self._demand(not state.revoked_ms, "already revoked")
        self.put(grant_key(revoke.gid), replace(state, revoked_ms=self._time_ms))
        self.put(
            vault_key(revoke.vid),
            replace(vault, grants=tuple(gid for gid in vault.grants if gid != revoke.gid)),
        )

    def _rotate(self, rotate: EpochRotate, signers: tuple[bytes, ...]) -> None:
        vault = self._vault(rotate.vid)
        self._demand_signed(signers[0] == vault.auth_pk)
        self._demand(rotate.epoch == vault.epoch + 1, "epoch stale")
        self.put(
            vault_key(rotate.vid),
            replace(vault, epoch=rotate.epoch, cat_pk=rotate.cat_pk, epoch_since_ms=self._time_ms),
        )

    def _transfer(self, transfer: CustodyTransfer, signers: tuple[bytes, ...]) -> None:
        vault = self._vault(transfer.vid)
        self._demand_signed(signers == (vault.auth_pk, transfer.new_auth_pk))
        self._demand(
            transfer.new_custodian == ZERO or self._is_member(transfer.new_custodian), "unknown facility"
        )
        self.put(
            vault_key(transfer.vid),
            replace(
                vault,
                custodian=transfer.new_custodian,
                auth_pk=transfer.new_auth_pk,
                rec_pk=transfer.new_rec_pk,
                audit_pk=transfer.new_audit_pk,
            ),
        )

    def _read(self, read: Read, signers: tuple[bytes, ...]) -> None:
        vault = self._vault(read.vid)
        actor, facility = signers
        self._demand_signed(actor == read.actor_pk and self._is_member(facility))
        self._demand(self.get(nonce_key(read.nonce)) is None, "nonce used")
        records = [self._record_of(rid, read.vid) for rid in read.rids]
        if read.gid == ZERO:
            in_custody = vault.custodian == ZERO or self._is_same(vault.custodian, facility)
            self._demand_signed(actor == vault.auth_pk and in_custody, "not the owner")
        else:
            self._read_by_grant(read, actor, facility, records)
        self.writes[nonce_key(read.nonce)] = b""

    def _read_by_grant(self, read: Read, actor: bytes, facility: bytes, records: list[Record]) -> None:
        state = self._live_grant(read.gid)
        if state is None or state.grant.vid != read.vid:
            raise _Refusal("no live grant")
        grant = state.grant
        self._demand_signed(
            self._is_same(grant.facility, facility) and grant.grantee_pk == actor,
            "the grant is for somebody else",
        )
        self._demand("R" in grant.rights and read.purpose in grant.purposes, "not for this purpose")
        self._demand(
            all(grant.rec_from <= record.time_ms <= grant.rec_to for record in records),
            "outside the period granted",
        )
        self._demand(not grant.max_reads or state.reads + len(records) <= grant.max_reads, "all reads used")
        self.put(grant_key(read.gid), replace(state, reads=state.reads + len(records)))

    def _record_of(self, rid: Rid, vid: Vid) -> Record:
        row = self.get(record_key(rid))
        record = codec.decode(row, Record) if row is not None else None
        if record is None or record.vid != vid:
            raise _Refusal("unknown record")
        self._demand(self.get(erasure_key(rid)) is None, "record erased")
        return record

    def _erase(self, erase: RecordErase, txid: Txid, signers: tuple[bytes, ...]) -> None:
        vault = self._vault(erase.vid)
        self._demand_signed(signers[0] == vault.auth_pk)
        self._record_of(erase.rid, erase.vid)
        # The record's own row stays: its id is used up for good, and history is read through it.
        self.put(erasure_key(erase.rid), Erasure(erase.rid, erase.vid, self._height, self._time_ms, txid))
