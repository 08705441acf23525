"""The services of a node, wired on its core: records, patients, consent, audit. Names every class, holds no behaviour.

`daemon` hands in what is real (stores, keys, ports). The order of construction is the order of the data flow.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from node.attachments import Attachments
from node.audit import Audit
from node.authority import Authorities
from node.awaiting_disk import RoomAwaitingDisk
from node.chunk_holder import ChunkHolder
from node.clock_watch import ClockWatch
from node.consent import Consent
from node.core import Core
from node.epochs import Epochs
from node.grant_bundles import GrantBundles
from node.grant_watcher import GrantWatcher
from node.handover import Handover, PatientDesk
from node.held_grants import HeldGrants
from node.identity import Identity
from node.ingest import Ingest
from node.ledger_audit import LedgerAudit
from node.opening import Opening
from node.patients import Patients
from node.query import Query
from node.queued_grants import QueuedGrants
from node.record_index import RecordIndex
from node.record_queue import RecordQueue
from node.record_report import RecordReport
from node.repair import Repair
from node.replication import Replication
from node.retrieval import Retrieval
from node.revocation import Revocation
from node.rotation import Rotation
from node.sealed_rows import SealedRows
from node.services import Services
from node.status import Machine, StatusReporter
from node.store_audit import Database, StoreAudit
from node.vaults import Vaults
from protocol.identifiers import NodeId
from protocol.signing import SigningKey
from storage.chunk_store import ChunkStore
from storage.envelope_store import EnvelopeStore
from storage.key_value import KeyValue
from storage.keystore import Keystore


@dataclass(frozen=True, slots=True)
class Stores:
    """What the node remembers: the ledger database's rows, the chunks, the keys; `databases` are all of them, for audits."""

    rows: KeyValue
    chunks: ChunkStore
    keystore: Keystore
    databases: tuple[Database, ...]


class Custody:
    """Whose patients are ours, the keys of their vaults, and what those keys are kept and sent in."""

    def __init__(
        self, core: Core, stores: Stores, identity: Identity, check_room: Callable[[], None]
    ) -> None:
        ports = core.ports
        self.attachments = Attachments(
            EnvelopeStore(stores.rows),
            ports.disk,
            ports.transport,
            core.store.configuration.storing,
            check_room,
        )
        self.held = HeldGrants(stores.keystore)
        self.patients = Patients(stores.keystore, self.held, ports.entropy)
        self.epochs = Epochs(ports.disk, self.attachments)
        self.vaults = Vaults(
            identity=identity,
            patients=self.patients,
            held=self.held,
            epochs=self.epochs,
            store=core.store,
            submitter=core.submitter,
            clock=ports.clock,
            entropy=ports.entropy,
        )
        self.authorities = Authorities(
            me=NodeId(ports.transport.me), patients=self.patients, store=core.store, workers=ports.workers
        )


class Granting:
    """What changes who may read: granting, revoking, and the new key of a vault that a revocation asks for."""

    def __init__(self, core: Core, stores: Stores, custody: Custody) -> None:
        ports = core.ports
        bundles = GrantBundles(stores.keystore)
        queued = QueuedGrants(
            authorities=custody.authorities,
            bundles=bundles,
            attachments=custody.attachments,
            open_vault=custody.vaults.ensure_open,
            store=core.store,
            submitter=core.submitter,
            clock=ports.clock,
            entropy=ports.entropy,
            log=ports.log,
        )
        self.rotation = Rotation(
            store=core.store,
            submitter=core.submitter,
            attachments=custody.attachments,
            queued=queued,
            clock=ports.clock,
            entropy=ports.entropy,
        )
        self.revocation = Revocation(
            authorities=custody.authorities,
            bundles=bundles,
            rotation=self.rotation,
            keystore=stores.keystore,
            store=core.store,
            submitter=core.submitter,
            clock=ports.clock,
            log=ports.log,
        )
        self.consent = Consent(
            me=ports.transport.me,
            authorities=custody.authorities,
            patients=custody.patients,
            vaults=custody.vaults,
            bundles=bundles,
            attachments=custody.attachments,
            store=core.store,
            submitter=core.submitter,
            clock=ports.clock,
            entropy=ports.entropy,
            queued=queued,
            revocation=self.revocation,
        )


class Sharing:
    """Patients, their vaults, and who may read them: what others granted to us, and what leaves our custody."""

    def __init__(
        self, core: Core, stores: Stores, identity: Identity, check_room: Callable[[], None]
    ) -> None:
        ports = core.ports
        self.custody = custody = Custody(core, stores, identity, check_room)
        self.granting = granting = Granting(core, stores, custody)
        self.watcher = GrantWatcher(
            identity=identity,
            rows=stores.rows,
            disk=ports.disk,
            store=core.store,
            applied=core.applier.height,
            attachments=custody.attachments,
            epochs=custody.epochs,
            held=custody.held,
            patients=custody.patients,
            authorities=custody.authorities,
            rotation=granting.rotation,
            clock=ports.clock,
            log=ports.log,
        )
        self.handover = Handover(
            me=core.store.configuration.by_node[ports.transport.me],
            patients=custody.patients,
            vaults=custody.vaults,
            consent=granting.consent,
            rotation=granting.rotation,
            keystore=stores.keystore,
            store=core.store,
            submitter=core.submitter,
            workers=ports.workers,
            clock=ports.clock,
            entropy=ports.entropy,
            log=ports.log,
        )
        names = {member.node: member.name for member in core.store.configuration.members}
        self.desk = PatientDesk(custody.patients, self.handover, names)


class Ciphertext:
    """Chunks and envelopes: held here, spread to other members, fetched from them, and repaired."""

    def __init__(
        self, core: Core, stores: Stores, identity: Identity, check_room: Callable[[], None]
    ) -> None:
        ports = core.ports
        self.envelopes = EnvelopeStore(stores.rows)
        self.holder = ChunkHolder(
            key=SigningKey(identity.node),
            network=core.network,
            ledger=core.store,
            chunks=stores.chunks,
            envelopes=self.envelopes,
            disk=ports.disk,
            workers=ports.workers,
            clock=ports.clock,
            check_room=check_room,
        )
        self.replication = Replication(
            network=core.network,
            ledger=core.store,
            chunks=stores.chunks,
            holder=self.holder,
            transport=ports.transport,
            workers=ports.workers,
            clock=ports.clock,
        )
        self.retrieval = Retrieval(
            network=core.network,
            ledger=core.store,
            chunks=stores.chunks,
            envelopes=self.envelopes,
            holder=self.holder,
            transport=ports.transport,
            workers=ports.workers,
        )
        self.repair = self._repair(core, stores, check_room)

    def _repair(self, core: Core, stores: Stores, check_room: Callable[[], None]) -> Repair:
        ports = core.ports
        return Repair(
            ledger=core.store,
            applied=core.applier.height,
            rows=stores.rows,
            disk=RoomAwaitingDisk(ports.disk, ports.clock),
            chunks=stores.chunks,
            envelopes=self.envelopes,
            holder=self.holder,
            replication=self.replication,
            retrieval=self.retrieval,
            transport=ports.transport,
            workers=ports.workers,
            clock=ports.clock,
            check_room=check_room,
        )


class Records:
    """The record path: from bytes to a committed record on several facilities, and what we know of each."""

    def __init__(
        self, core: Core, stores: Stores, identity: Identity, vaults: Vaults, ciphertext: Ciphertext
    ) -> None:
        ports = core.ports
        self.sealed_rows = SealedRows(stores.rows, identity.fingerprint, ports.entropy)
        self.index = RecordIndex(self.sealed_rows)
        self.queue = RecordQueue(
            key=SigningKey(identity.node),
            ledger=core.store,
            rows=self.sealed_rows,
            index=self.index,
            disk=ports.disk,
            replication=ciphertext.replication,
            submitter=core.submitter,
            open_vault=vaults.ensure_open,
            clock=ports.clock,
            entropy=ports.entropy,
            log=ports.log,
        )
        self.report = RecordReport(core.store, self.index, self.queue)


class Assembly:
    """Everything above the ledger. Run `run` beside the core's."""

    def __init__(
        self, core: Core, stores: Stores, identity: Identity, check_room: Callable[[], None], machine: Machine
    ) -> None:
        ports = core.ports
        self.sharing = sharing = Sharing(core, stores, identity, check_room)
        custody = sharing.custody
        self.ciphertext = ciphertext = Ciphertext(core, stores, identity, check_room)
        self.records = records = Records(core, stores, identity, custody.vaults, ciphertext)
        self.ingest = Ingest(
            patients=custody.patients,
            vaults=custody.vaults,
            chunks=stores.chunks,
            queue=records.queue,
            index=records.index,
            rows=records.sealed_rows,
            report=records.report,
            workers=ports.workers,
            clock=ports.clock,
            entropy=ports.entropy,
            check_room=check_room,
        )
        self.query = Query(
            key=SigningKey(identity.node),
            ledger=core.store,
            rows=stores.rows,
            patients=custody.patients,
            vaults=custody.vaults,
            attachments=custody.attachments,
            retrieval=ciphertext.retrieval,
            opening=Opening(core.network, core.store.configuration, ciphertext.retrieval, ports.workers),
            submitter=core.submitter,
            index=records.index,
            report=records.report,
            entropy=ports.entropy,
        )
        self._clock_watch = ClockWatch(ports.transport, ports.clock)
        self.status = StatusReporter(
            core=core,
            queue=records.queue,
            repair=ciphertext.repair,
            clock_watch=self._clock_watch,
            machine=machine,
        )
        self._audit = Audit(
            authorities=custody.authorities,
            attachments=custody.attachments,
            store=core.store,
            ledger_audit=LedgerAudit(core.store, stores.rows, ports.workers),
            store_audit=StoreAudit(
                chunks=stores.chunks,
                envelopes=ciphertext.envelopes,
                keystore=stores.keystore,
                store=core.store,
                databases=stores.databases,
                workers=ports.workers,
            ),
        )
        self._transport = ports.transport

    @property
    def services(self) -> Services:
        """What the local socket offers."""
        return Services(
            status=self.status,
            patients=self.sharing.desk,
            ingest=self.ingest,
            query=self.query,
            consent=self.sharing.granting.consent,
            audit=self._audit,
        )

    def tasks(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """Return the tasks that run in the background."""
        sharing = self.sharing
        return (
            self.records.queue.run,
            self.ciphertext.repair.run,
            sharing.watcher.run,
            sharing.granting.consent.run,
            self._clock_watch.run,
            sharing.handover.run,
        )

    async def run(self) -> None:
        """Serve and watch until cancelled."""
        self.ciphertext.holder.serve(self._transport)
        async with trio.open_nursery() as nursery:
            for task in self.tasks():
                nursery.start_soon(task)
