"""A member of a `LedgerDouble` with the services around a patient's keys, wired as the daemon wires them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from node.attachments import Attachments
from node.audit import Audit
from node.authority import Authorities
from node.consent import Consent
from node.epochs import Epochs
from node.grant_bundles import GrantBundles
from node.grant_watcher import GrantWatcher
from node.handover import Handover, PatientDesk
from node.held_grants import HeldGrants
from node.ledger_audit import LedgerAudit
from node.patients import LocalPatient, Patients
from node.queued_grants import QueuedGrants
from node.revocation import Revocation
from node.rotation import Rotation
from node.store_audit import Database, StoreAudit
from node.vaults import Vaults
from protocol.identifiers import Digest, PublicKey, Rid, Vid
from protocol.ledger_rows import Receipt, Record
from protocol.signing import SigningKey, sha256
from protocol.transaction import EnvelopeReceipt, Read, RecordCommit, receipt_form, sign
from protocol.wraps import WhoNote, seal_who
from storage.chunk_store import ChunkStore
from tests.node.ledger_double import LedgerDouble, MemberDouble, running

SYSTEM = "urn:example:mrn"


class FacilityDouble:
    """One facility. Making another one over the same member is a restart."""

    def __init__(self, member: MemberDouble, ledger: LedgerDouble) -> None:
        self.member, self.ledger = member, ledger
        self.me, self.store, self.clock = member.member.node, member.store, member.clock
        self.submitter, self.keystore = member.submitter, member.keystore
        self.attachments = Attachments(
            member.envelopes, member.disk, member.transport, lambda: ledger.genesis.storing
        )
        self.held = HeldGrants(member.keystore)
        self.patients = Patients(member.keystore, self.held, member.entropy)
        self.epochs = Epochs(member.disk, self.attachments)
        self.vaults = Vaults(
            identity=member.identity, patients=self.patients, held=self.held, epochs=self.epochs,
            store=self.store, submitter=self.submitter, clock=self.clock, entropy=member.entropy,
        )  # fmt: skip
        self.authorities = Authorities(
            me=self.me, patients=self.patients, store=self.store, workers=member.workers,
        )  # fmt: skip
        self.bundles = GrantBundles(member.keystore)
        self.queued = QueuedGrants(
            authorities=self.authorities, bundles=self.bundles, attachments=self.attachments,
            open_vault=self.vaults.ensure_open, store=self.store, submitter=self.submitter, clock=self.clock, entropy=member.entropy, log=member.log,
        )  # fmt: skip
        self.rotation = Rotation(
            store=self.store, submitter=self.submitter, attachments=self.attachments, queued=self.queued,
            clock=self.clock, entropy=member.entropy,
        )  # fmt: skip
        self.revocation = Revocation(
            authorities=self.authorities, bundles=self.bundles, rotation=self.rotation, keystore=member.keystore,
            store=self.store, submitter=self.submitter, clock=self.clock, log=member.log,
        )  # fmt: skip
        self.consent = Consent(
            me=self.me, authorities=self.authorities, patients=self.patients, vaults=self.vaults,
            bundles=self.bundles, attachments=self.attachments, store=self.store, submitter=self.submitter,
            clock=self.clock, entropy=member.entropy, queued=self.queued, revocation=self.revocation,
        )  # fmt: skip
        self.handover = Handover(
            me=member.member, patients=self.patients, vaults=self.vaults, consent=self.consent,
            rotation=self.rotation, keystore=member.keystore, store=self.store, submitter=self.submitter,
            workers=member.workers, clock=self.clock, entropy=member.entropy, log=member.log,
        )  # fmt: skip
        self.desk = PatientDesk(self.patients, self.handover, self.store.configurations.name_ever)
        self.chunks = ChunkStore(member.payloads, member.rows)
        self.audit = self._auditing()
        self.watcher = GrantWatcher(
            identity=member.identity, rows=member.rows, disk=member.disk, store=self.store,
            applied=member.applier.height, attachments=self.attachments, epochs=self.epochs, held=self.held,
            patients=self.patients, authorities=self.authorities, rotation=self.rotation, clock=self.clock,
            log=member.log,
        )  # fmt: skip

    def _auditing(self) -> Audit:
        member = self.member
        databases = (
            Database("ledger", member.rows, "carechain run --rebuild ledger"),
            Database("payloads", member.payloads, "carechain run --rebuild payloads"),
            Database("keys", member.secrets, "restore the key store from a backup"),
        )
        return Audit(
            authorities=self.authorities, attachments=self.attachments, store=self.store,
            ledger_audit=LedgerAudit(self.store, member.workers),
            store_audit=StoreAudit(
                chunks=self.chunks, envelopes=member.envelopes, keystore=member.keystore, store=self.store,
                databases=databases, workers=member.workers,
            ),
        )  # fmt: skip

    async def run(self) -> None:
        """Run the tasks that the daemon runs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watcher.run)
            nursery.start_soon(self.consent.run)
            nursery.start_soon(self.handover.run)

    async def register(self, value: str, name: str = "Ada Sample") -> LocalPatient:
        """Register a patient."""
        answer = await self.patients.register(
            None, identifiers=[(SYSTEM, value)], name=name, birth_date="1980-02-03"
        )
        return self.patients.resolve(str(answer["patient"]))

    async def add_record(self, patient: LocalPatient, category: str) -> Record:
        """Put a record with an arbitrary envelope hash on the ledger."""
        handle = await self.vaults.writable(patient, category)
        rid = Rid(self.member.entropy.bytes(32))
        receipt = await self.commit_record(handle.vid, rid, handle.epoch)
        assert receipt.is_accepted, receipt.verdict
        record = self.store.record(rid)
        assert record is not None
        return record

    async def commit_record(self, vid: Vid, rid: Rid, epoch: int) -> Receipt:
        """Submit a RecordCommit with receipts of all storing members."""
        env_hash = sha256(rid)
        form = receipt_form(self.ledger.network, vid, rid, env_hash)
        storing = [m for m in self.ledger.members if m.member.node in self.ledger.genesis.storing]
        nodes = sorted(storing, key=lambda member: member.member.node)
        receipts = tuple(
            EnvelopeReceipt(m.member.node, SigningKey(m.identity.node).sign(form)) for m in nodes
        )
        commit = RecordCommit(
            vid, rid, epoch, self.me, env_hash, receipts, Rid(bytes(32)), self.submitter.valid_until()
        )
        return await self.submitter.submit(
            sign(commit, self.ledger.network, SigningKey(self.member.identity.node))
        )

    async def read(self, record: Record, user: str = "Dr Sample") -> Receipt:
        """Announce the opening of a record, as queries do."""
        key = await self.vaults.key_for(record)
        note = WhoNote(user, "physician", "", self.member.name)
        sealed = seal_who(note, record.vid, key.audit_public, seed32=self.member.entropy.bytes(32))
        (who_hash,) = await self.attachments.keep((sealed,))
        await self.attachments.spread((who_hash,))
        nonce = self.member.entropy.bytes(32)
        read = Read(
            record.vid, (record.rid,), key.gid, "TREAT", key.actor.public, Digest(bytes(32)), PublicKey(bytes(32)), nonce,
            who_hash, self.submitter.valid_until(),
        )  # fmt: skip
        signed = sign(read, self.ledger.network, key.actor, SigningKey(self.member.identity.node))
        return await self.submitter.submit(signed)

    async def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Wait until a condition holds, at most a minute of virtual time."""
        with trio.move_on_after(60):
            while not holds():
                await trio.sleep(0.05)
        assert holds(), what


@asynccontextmanager
async def facilities(count: int = 3, *, seed: str = "facilities") -> AsyncIterator[list[FacilityDouble]]:
    """Run a network with its services for as long as the block lasts."""
    ledger = LedgerDouble(count, seed=seed)
    async with running(ledger), trio.open_nursery() as nursery:
        doubles = [FacilityDouble(member, ledger) for member in ledger.members]
        for double in doubles:
            nursery.start_soon(double.run)
        yield doubles
        nursery.cancel_scope.cancel()
