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
from node.checkpointing import NO_WITNESSES, Checkpointing, CheckpointSettings
from node.clock_watch import ClockWatch
from node.core import Core
from node.erasing import Erasing
from node.evidence import EvidenceDesk
from node.foreign import ForeignNetworks
from node.identity import Identity
from node.ingest import Ingest
from node.key_rotation import KeyRotation
from node.ledger_audit import LedgerAudit
from node.membership import Membership
from node.membership_leader import ConfigurationProposer
from node.opening import Opening
from node.promises import Promises
from node.query import Query
from node.receipt_proofs import ReceiptProofs
from node.recordkeeping import Ciphertext, Records
from node.recovery_base import Freezer, Reach
from node.recovery_desk import RecoveryDesk
from node.recovery_plan import Custodian
from node.recovery_watch import RecoveryWatch
from node.safekeeping import Safekeeping
from node.services import Services
from node.settling import Settling
from node.sharing import Sharing
from node.status import Machine, StatusReporter
from node.store_audit import StoreAudit
from node.storekeeping import Storekeeping
from node.stores import Stores
from node.ticket_desk import TicketDesk
from node.update_proofs import UpdateProofs
from protocol.signing import SigningKey

_ALONE_S = 10.0
"""Where no quorum answers for so long there is nobody who could tell."""


class Assembly:
    """Everything above the ledger. Run `run` beside the core's."""

    def __init__(
        self,
        core: Core,
        stores: Stores,
        identity: Identity,
        check_room: Callable[[], None],
        machine: Machine,
        *,
        checkpoint_settings: CheckpointSettings = NO_WITNESSES,
    ) -> None:
        def check_records() -> None:
            check_room()
            machine.check_quota()

        ports = core.ports
        self._core, self._stores, self._key = core, stores, SigningKey(identity.node)
        self.sharing = Sharing(core, stores, identity, check_room)
        custody = self.sharing.custody
        self.ciphertext = ciphertext = Ciphertext(core, stores, identity, check_records)
        self.records = Records(core, stores, identity, custody.vaults, ciphertext)
        self.ingest = self._ingest(check_room, machine.check_quota)
        opening = Opening(core.network, core.store.configuration, ciphertext.retrieval, ports.workers)
        self.query = self._query(opening)
        self.erasing = Erasing(
            core,
            stores,
            key=self._key,
            custody=custody,
            records=self.records,
            ciphertext=ciphertext,
            opening=opening,
        )
        self._clock_watch = ClockWatch(ports.transport, ports.clock)
        self.block_repair = self._block_repair(machine)
        self.evidence = self._evidence()
        self._promises = self._promising()
        self.checkpointing = Checkpointing(core, stores, identity, self.evidence, checkpoint_settings)
        self.status = StatusReporter(
            core=core,
            queue=self.records.queue,
            repair=ciphertext.repair,
            standings=ciphertext.standings,
            block_repair=self.block_repair,
            destruction=self.erasing.destruction,
            clock_watch=self._clock_watch,
            machine=machine,
            checkpoints=self.checkpointing.desk,
        )
        self._audit = self._auditing()
        self.safekeeping = Safekeeping(core, self._backup_sources(), custody.patients, opening)
        self.storekeeping = Storekeeping(
            core,
            stores,
            ciphertext,
            self.records.queue,
            self.records.index,
            check_room=check_records,
            machine=machine,
        )
        self._tickets = TicketDesk(
            key=self._key,
            store=core.store,
            rows=stores.rows,
            disk=ports.disk,
            transport=ports.transport,
            clock=ports.clock,
            entropy=ports.entropy,
        )
        keys = KeyRotation(stores.keystore, identity, ports.entropy.bytes)
        self._recovery = self._recovering(keys)
        self._membership = Membership(
            me=ports.transport.me,
            keys=keys,
            store=core.store,
            submitter=core.submitter,
            tickets=self._tickets,
            now_ms=ports.clock.now_ms,
            catch_up=core.read_index,
        )
        self._proposer = ConfigurationProposer(
            core.store, core.applier.height, reconfigure=core.reconfigure, clock=ports.clock, log=ports.log
        )
        self._transport = ports.transport

    def _recovering(self, keys: KeyRotation) -> RecoveryDesk:
        core = self._core
        freezer = Freezer(core.store, core.standstill, self._key)
        reach = Reach(core.store, core.applier, core.ports.transport, core.verification)
        self._recovery_watch = RecoveryWatch(core, reach)
        custodian = Custodian(self._stores.keystore, keys.governance_key, core.ports.transport.me)
        return RecoveryDesk(core, custodian, freezer, reach)

    def _ingest(self, check_room: Callable[[], None], check_quota: Callable[[], None]) -> Ingest:
        ports, custody, records = self._core.ports, self.sharing.custody, self.records
        settling = Settling(
            patients=custody.patients,
            vaults=custody.vaults,
            queue=records.queue,
            index=records.index,
            rows=records.sealed_rows,
            report=records.report,
            clock=ports.clock,
            check_room=check_room,
        )
        return Ingest(
            settling=settling,
            writer=self._stores.writer,
            queue=records.queue,
            workers=ports.workers,
            entropy=ports.entropy,
            check_room=check_room,
            check_quota=check_quota,
            clock=ports.clock,
            pace=self._core.pace,
        )

    def _query(self, opening: Opening) -> Query:
        core, custody = self._core, self.sharing.custody
        return Query(
            key=self._key,
            ledger=core.store,
            rows=self._stores.rows,
            patients=custody.patients,
            vaults=custody.vaults,
            attachments=custody.attachments,
            retrieval=self.ciphertext.retrieval,
            opening=opening,
            submitter=core.submitter,
            index=self.records.index,
            report=self.records.report,
            entropy=core.ports.entropy,
        )

    def _block_repair(self, machine: Machine) -> BlockRepair:
        core, ports = self._core, self._core.ports
        return BlockRepair(
            store=core.store,
            rows=self._stores.rows,
            disk=RoomAwaitingDisk(ports.disk, ports.clock),
            transport=ports.transport,
            verification=core.verification,
            workers=ports.workers,
            clock=ports.clock,
            log=ports.log,
            damage=core.damage,
            check_room=machine.check_room_to_mend,
            damaged_files=machine.damaged_ledger_files,
        )

    def _evidence(self) -> EvidenceDesk:
        core, ports = self._core, self._core.ports
        return EvidenceDesk(
            key=self._key,
            hearing=core.hearing,
            store=core.store,
            rows=self._stores.rows,
            disk=RoomAwaitingDisk(ports.disk, ports.clock),
            submitter=core.submitter,
            transport=ports.transport,
            workers=ports.workers,
            clock=ports.clock,
            log=ports.log,
        )

    def _promising(self) -> Promises:
        core, ports = self._core, self._core.ports
        return Promises(
            key=self._key,
            store=core.store,
            receipts=core.receipts,
            applied=core.applier.height,
            transport=ports.transport,
            leader=core.leader,
            place_of=core.place_of,
            take=self.evidence.take,
            clock=ports.clock,
            log=ports.log,
        )

    def _auditing(self) -> Audit:
        core, stores, custody = self._core, self._stores, self.sharing.custody
        return Audit(
            authorities=custody.authorities,
            attachments=custody.attachments,
            store=core.store,
            ledger_audit=LedgerAudit(core.store, core.ports.workers, core.damage, self.checkpointing.tree),
            store_audit=StoreAudit(
                chunks=stores.chunks,
                envelopes=self.ciphertext.envelopes,
                keystore=stores.keystore,
                store=core.store,
                databases=stores.databases,
                workers=core.ports.workers,
                damage=core.damage,
            ),
        )

    def _backup_sources(self) -> BackupSources:
        stores = self._stores
        return BackupSources(
            files=stores.files,
            rows=stores.rows,
            own=self.records.sealed_rows,
            chunks=stores.chunks,
            holder=self.ciphertext.holder,
            keystore=stores.keystore,
            store=self._core.store,
        )

    @property
    def services(self) -> Services:
        """What the local socket offers."""
        store, workers = self._core.store, self._core.ports.workers
        receipts = ReceiptProofs(store, workers, store.certificate_at_or_above)
        return Services(
            status=self.status,
            members=self._membership,
            patients=self.sharing.desk,
            ingest=self.ingest,
            query=self.query,
            consent=self.sharing.granting.consent,
            audit=self._audit,
            backup=self.safekeeping.backup,
            erasures=self.erasing.erasures,
            storage=self.storekeeping.care,
            checkpoints=self.checkpointing.desk,
            foreign=self._foreign(),
            receipts=receipts,
            updates=self._updates(receipts),
            recovery=self._recovery,
        )

    def _updates(self, receipts: ReceiptProofs) -> UpdateProofs:
        store, checkpoints = self._core.store, self.checkpointing.checkpoints
        return UpdateProofs(
            store,
            certificate_at_or_below=store.certificate,
            changes=receipts.changes,
            consistency_proof=self.checkpointing.tree.consistency_proof,
            notes=lambda: (checkpoints.witnessed(), checkpoints.newest()),
        )

    def _foreign(self) -> ForeignNetworks:
        core, ports = self._core, self._core.ports
        return ForeignNetworks(
            key=self._key,
            store=core.store,
            rows=self._stores.rows,
            disk=ports.disk,
            workers=ports.workers,
            clock=ports.clock,
            submitter=core.submitter,
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
            self.evidence.run,
            self._promises.run,
            sharing.handover.run,
            self.safekeeping.lost_vaults.run,
            *self.storekeeping.tasks,
            self._proposer.run,
            self._recovery_watch.run,
            *self.checkpointing.tasks(),
        )

    async def run(self) -> None:
        """Serve and watch until cancelled."""
        self.erasing.serve()
        self._tickets.serve()
        self._promises.serve()
        self._recovery.serve()
        self._recovery_watch.serve()
        self.storekeeping.serve()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hold_chunks)
            for task in self.tasks():
                nursery.start_soon(task)

    async def _hold_chunks(self) -> None:
        """Serve chunks once this is known to be the only process with its key: a copy's receipts would stand for another's disk."""
        with trio.move_on_after(_ALONE_S):
            await self._core.tips.is_alone.wait()
        self.ciphertext.holder.serve(self._transport)
