"""The services of a node, wired on its core: records, patients, consent, audit. Names every class, holds no behaviour.

`daemon` hands in what is real (stores, keys, ports). The order of construction is the order of the data flow.
"""

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from node.audit import Audit
from node.awaiting_disk import RoomAwaitingDisk
from node.backup import BackupSources
from node.block_repair import BlockRepair
from node.chunk_holder import ChunkHolder
from node.clock_watch import ClockWatch
from node.core import Core
from node.erasing import Erasing, ErasingSources
from node.identity import Identity
from node.ingest import Ingest
from node.ledger_audit import LedgerAudit
from node.opening import Opening
from node.query import Query
from node.record_index import RecordIndex
from node.record_queue import RecordQueue
from node.record_report import RecordReport
from node.repair import Repair
from node.replication import Replication
from node.retrieval import Retrieval
from node.safekeeping import Safekeeping
from node.sealed_rows import SealedRows
from node.services import Services
from node.sharing import Sharing
from node.status import Machine, StatusReporter
from node.store_audit import StoreAudit
from node.storekeeping import Storekeeping
from node.stores import Stores
from node.vaults import Vaults
from protocol.signing import SigningKey
from storage.envelope_store import EnvelopeStore


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
            applied=core.applier.history,
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
        opening = Opening(core.network, core.store.configuration, ciphertext.retrieval, ports.workers)
        self.query = Query(
            key=SigningKey(identity.node),
            ledger=core.store,
            rows=stores.rows,
            patients=custody.patients,
            vaults=custody.vaults,
            attachments=custody.attachments,
            retrieval=ciphertext.retrieval,
            opening=opening,
            submitter=core.submitter,
            index=records.index,
            report=records.report,
            entropy=ports.entropy,
        )
        self.erasing = Erasing(
            core,
            SigningKey(identity.node),
            ErasingSources(
                rows=stores.rows,
                sealed_rows=records.sealed_rows,
                chunks=stores.chunks,
                envelopes=ciphertext.envelopes,
                index=records.index,
                report=records.report,
                holder=ciphertext.holder,
                retrieval=ciphertext.retrieval,
                opening=opening,
                vaults=custody.vaults,
                epochs=custody.epochs,
                authorities=custody.authorities,
                attachments=custody.attachments,
            ),
        )
        self._clock_watch = ClockWatch(ports.transport, ports.clock)
        self.block_repair = BlockRepair(
            store=core.store,
            rows=stores.rows,
            disk=RoomAwaitingDisk(ports.disk, ports.clock),
            transport=ports.transport,
            verification=core.verification,
            workers=ports.workers,
            clock=ports.clock,
            log=ports.log,
            damage=core.damage,
            check_room=machine.check_room_to_mend,
        )
        self.status = StatusReporter(
            core=core,
            queue=records.queue,
            repair=ciphertext.repair,
            block_repair=self.block_repair,
            destruction=self.erasing.destruction,
            clock_watch=self._clock_watch,
            machine=machine,
        )
        self._audit = Audit(
            authorities=custody.authorities,
            attachments=custody.attachments,
            store=core.store,
            ledger_audit=LedgerAudit(core.store, ports.workers, core.damage),
            store_audit=StoreAudit(
                chunks=stores.chunks,
                envelopes=ciphertext.envelopes,
                keystore=stores.keystore,
                store=core.store,
                databases=stores.databases,
                workers=ports.workers,
                damage=core.damage,
            ),
        )
        sources = BackupSources(
            files=stores.files,
            rows=stores.rows,
            own=records.sealed_rows,
            chunks=stores.chunks,
            holder=ciphertext.holder,
            keystore=stores.keystore,
            store=core.store,
        )
        self.safekeeping = Safekeeping(core, sources, custody.patients, opening)
        self.storekeeping = Storekeeping(
            core,
            stores,
            envelopes=ciphertext.envelopes,
            holder=ciphertext.holder,
            replication=ciphertext.replication,
            retrieval=ciphertext.retrieval,
            repair=ciphertext.repair,
            queued=lambda: records.queue.length,
            check_room=check_room,
            machine=machine,
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
            backup=self.safekeeping.backup,
            erasures=self.erasing.erasures,
            storage=self.storekeeping.care,
        )

    def tasks(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """Return the tasks that run in the background."""
        sharing = self.sharing
        return (
            self.records.queue.run,
            self.block_repair.run,
            partial(self.block_repair.after, self.ciphertext.repair.run),
            partial(self.block_repair.after, self.erasing.destruction.run),
            self.erasing.watcher.run,
            partial(self.block_repair.after, sharing.watcher.run),
            sharing.granting.consent.run,
            self._clock_watch.run,
            sharing.handover.run,
            self.safekeeping.lost_vaults.run,
            *self.storekeeping.tasks,
        )

    async def run(self) -> None:
        """Serve and watch until cancelled."""
        self.ciphertext.holder.serve(self._transport)
        self.erasing.serve()
        async with trio.open_nursery() as nursery:
            for task in self.tasks():
                nursery.start_soon(task)
