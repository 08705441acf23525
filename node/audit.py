"""The audit log of a patient, and the service that the routes call `audit`.

The log is read from this facility's own verified ledger: every certified access and change of the patient's vaults,
and, from the "who read" notes that only the patient's audit key opens, the person behind each read.
"""

from collections.abc import AsyncIterator
from typing import Any

from node.attachments import Attachments
from node.authority import Authorities, Authority
from node.consent import iso_time
from node.ledger_audit import LedgerAudit
from node.sealed_wallet import SealedWallet
from node.store_audit import StoreAudit
from node.vault_events import VaultEvent, events_of
from protocol.errors import RemoteFault, Unavailable
from protocol.identifiers import ZERO, NodeId, Txid, Vid
from protocol.transaction import (
    CustodyTransfer,
    EpochRotate,
    Grant,
    Read,
    RecordCommit,
    RecordErase,
    Revoke,
    VaultOpen,
)
from protocol.wallet import WalletVault
from protocol.wraps import WhoNote, open_who
from storage.ledger_store import LedgerStore

_NO_NOTE = "unknown: the note of this reader is not available"
_BAD_NOTE = "unknown: the reader left a note that does not open"
_PATIENT = "the patient"

Entry = dict[str, Any]
"""One line of the log as JSON; Any because its values are texts and numbers."""


class Audit:
    """Answers `audit log` and `audit verify`."""

    def __init__(
        self,
        *,
        authorities: Authorities,
        attachments: Attachments,
        store: LedgerStore,
        ledger_audit: LedgerAudit,
        store_audit: StoreAudit,
    ) -> None:
        self._authorities = authorities
        self._attachments = attachments
        self._store = store
        self._ledger_audit = ledger_audit
        self._store_audit = store_audit

    async def log(self, patient: str, *, wallet: SealedWallet | None = None) -> dict[str, object]:
        """Return {"entries": […]} of all the patient's vaults, in ledger order.

        Raises:
            Refused: no such patient, or a wallet that is not theirs or does not open.
            Forbidden: this facility does not hold the patient's keys, and no wallet was given.
        """
        authority = await self._authorities.for_patient(patient, wallet)
        found: list[tuple[int, int, Entry]] = []
        for vault in authority.vaults:
            custodian = NodeId(ZERO)
            for event in events_of(self._store, Vid(vault.vid)):
                if isinstance(event.transaction, VaultOpen):
                    custodian = event.transaction.custodian
                place = event.receipt.height, event.receipt.index
                found += [
                    (*place, entry) for entry in await self._entries(event, vault, authority, custodian)
                ]
                if isinstance(event.transaction, CustodyTransfer):
                    custodian = event.transaction.new_custodian
        found.sort(key=lambda one: one[:2])
        return {"entries": [entry for _, _, entry in found]}

    async def verify(self, *, full: bool) -> AsyncIterator[dict[str, object]]:
        """Yield {"progress": {"part", "done", "total"}}, and at last {"result": {"ok", "height", "tree_root", "problems"}}.

        `full` also flushes and reads every stored chunk, envelope, key and row. What is damaged is named, not raised.
        """
        findings = self._ledger_audit.begin()
        async for done, total in self._ledger_audit.verify(findings):
            yield {"progress": {"part": "ledger", "done": done, "total": total}}
        if full:
            async for part, done in self._store_audit.verify(findings.problems):
                yield {"progress": {"part": part, "done": done, "total": None}}
        yield {
            "result": {
                "ok": not findings.problems.any,
                "height": findings.height,
                "tree_root": findings.frontier.root().hex(),
                "problems": findings.problems.sentences(),
            }
        }

    # --- entries ------------------------------------------------------------------------------------------------

    async def _entries(
        self, event: VaultEvent, vault: WalletVault, authority: Authority, custodian: NodeId
    ) -> list[Entry]:
        """Return the lines of one transaction: one, but one for each record of a Read."""
        holder = self._name(custodian)
        match event.transaction:
            case VaultOpen():
                return [self._entry(event, vault, "open", self._name(NodeId(event.signers[1])))]
            case RecordCommit() as commit:
                author = self._name(commit.author_pk)
                return [self._entry(event, vault, "add", author, record=commit.rid)]
            case Grant() as grant:
                facility = self._name(grant.facility)
                gid, purpose = event.receipt.txid, " ".join(grant.purposes)
                return [
                    self._entry(event, vault, "grant", facility, actor=holder, purpose=purpose, grant=gid)
                ]
            case Revoke() as revoke:
                state = self._store.grant(revoke.gid)
                facility = self._name(state.grant.facility) if state is not None else ""
                return [self._entry(event, vault, "revoke", facility, actor=holder, grant=revoke.gid)]
            case EpochRotate():
                return [self._entry(event, vault, "rotate", holder, actor=holder)]
            case CustodyTransfer() as transfer:
                return [
                    self._entry(event, vault, "handover", holder, actor=self._name(transfer.new_custodian))
                ]
            case RecordErase() as erase:
                return [self._entry(event, vault, "erase", holder, actor=holder, record=erase.rid)]
            case Read() as read:
                actor = await self._reader(read, vault, authority)
                facility = self._name(NodeId(event.signers[1]))
                gid = read.gid if read.gid != ZERO else Txid(b"")
                return [
                    self._entry(
                        event,
                        vault,
                        "read",
                        facility,
                        actor=actor,
                        purpose=read.purpose,
                        record=rid,
                        grant=gid,
                    )
                    for rid in read.rids
                ]

    @staticmethod
    def _entry(
        event: VaultEvent,
        vault: WalletVault,
        action: str,
        facility: str,
        *,
        actor: str = "",
        purpose: str = "",
        record: bytes = b"",
        grant: bytes = b"",
    ) -> Entry:
        return {
            "action": action,
            "facility": facility,
            "actor": actor,
            "purpose": purpose,
            "time": iso_time(event.receipt.time_ms),
            "record": record.hex(),
            "category": vault.category,
            "grant": grant.hex(),
            "transaction": event.receipt.txid.hex(),
            "height": event.receipt.height,
        }

    async def _reader(self, read: Read, vault: WalletVault, authority: Authority) -> str:
        try:
            sealed = await self._attachments.get(read.who_hash)
        except Unavailable:
            return _NO_NOTE
        for secret in authority.audit_secrets(vault):
            try:
                return _shown(open_who(sealed, read.vid, secret))
            except RemoteFault:
                continue  # sealed to the audit key of an earlier or later custodian
        return _BAD_NOTE

    def _name(self, node: NodeId) -> str:
        member = self._store.configurations.member_ever(node)
        if member is not None:
            return member.name
        return _PATIENT if node == ZERO else node.hex()[:16]


def _shown(note: WhoNote) -> str:
    details = ", ".join(part for part in (note.role, note.staff_id, note.organisation) if part)
    return f"{note.name} ({details})" if note.name and details else note.name or details
