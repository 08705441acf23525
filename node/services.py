"""What the daemon offers on its local socket: one object per noun, wired by `daemon`, called by `web/`.

Answers are JSON documents exactly as the command line prints them with `--json`. Refusals are raised as
`protocol.errors.CarechainError`; `web.server` turns them into answers. Arguments named by a person (a patient, a
record, a facility, a grant) are passed as typed: an id, a name, or a unique prefix; the services resolve them.

Calls that the routes make, by field:

    status    report()
    members   members() · await propose(wish, expires_ms=, accept_risk=) · await leave(expires_ms=, accept_risk=)
              await vote(proposal, is_yes=, accept_risk=) · await withdraw(proposal)
              await rotate(keys, expires_ms=)
              ticket(facility, expires_ms=) -> {"facility", "ticket" (text)}
    patients  await register(source, identifiers=, name=, birth_date=) · await list()
              await prepare_handover(patient, passphrase=) -> {"handover", "wallet" (bytes)}
              await complete_handover(handover, grant=)
    ingest    await add(stream, patient=, category=, media_type=, file_suffix=, force=) · await add_many(files, patient=, category=, force=)
    query     await read(record, purpose=, user=, start=) -> (info, stream) · await list(patient) · await status(record)
              export(patient, purpose=, user=) -> async iterator of (info, stream)
    consent   await grant(patient=, to=, categories=, purposes=, expires_ms=, write=, wallet=)
              await list(patient, wallet=) · await revoke(grant, wallet=)
    audit     await log(patient, wallet=) · verify(full=) -> async iterator of {"progress": …}, the last {"result": …}
    backup    await begin(with_payloads=) -> a stream with `total` and `summary()` · pieces(stream) -> async iterator of bytes
              await set_recovery_key(public, passphrase)
    erasures  await erase(record, only=, listed=, wallet=)
    receipts  await make(transaction, told=) -> a receipt's bytes, what they prove, and the verdict
    recovery  await collect(files, freeze=) · propose(files, lost=, gone=, cards=, reason=) · sign(plan, instead_of=)
              await apply(plan, consents) · await cancel()
    updates   make(since) -> (height, bytes)
    foreign   networks() · await add(genesis, policy) · await update(data) · await confirm(network, hash)
    checkpoints  newest() -> a note or None · report(witnessed=)
    storage   await figures() · scrub(rate=) · repair() · reclaim() -> async iterator of {"progress": …}, the last {"result": …}
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Only names are needed here: the real modules reach consensus and storage, which the routes must not load.
    from node.audit import Audit
    from node.backup import Backup
    from node.checkpoint_desk import CheckpointDesk
    from node.consent import Consent
    from node.erasure import Erasures
    from node.foreign import ForeignNetworks
    from node.handover import PatientDesk
    from node.ingest import Ingest
    from node.membership import Membership
    from node.query import Query
    from node.receipt_proofs import ReceiptProofs
    from node.recovery_desk import RecoveryDesk
    from node.status import StatusReporter
    from node.storage_care import StorageCare
    from node.update_proofs import UpdateProofs


@dataclass(frozen=True, slots=True)
class Services:
    """The daemon's services, by noun."""

    status: "StatusReporter"
    members: "Membership"
    patients: "PatientDesk"
    ingest: "Ingest"
    query: "Query"
    consent: "Consent"
    audit: "Audit"
    backup: "Backup"
    erasures: "Erasures"
    storage: "StorageCare"
    checkpoints: "CheckpointDesk"
    foreign: "ForeignNetworks"
    receipts: "ReceiptProofs"
    updates: "UpdateProofs"
    recovery: "RecoveryDesk"
