"""The services around a patient's keys, wired for `assembly`: custody, granting, what others granted to us, handover."""

from collections.abc import Callable

from node.attachments import Attachments
from node.authority import Authorities
from node.consent import Consent
from node.core import Core
from node.epochs import Epochs
from node.grant_bundles import GrantBundles
from node.grant_watcher import GrantWatcher
from node.handover import Handover, PatientDesk
from node.held_grants import HeldGrants
from node.identity import Identity
from node.pacing import NoticedDisk
from node.patients import Patients
from node.queued_grants import QueuedGrants
from node.revocation import Revocation
from node.rotation import Rotation
from node.stores import Stores
from node.vaults import Vaults
from protocol.identifiers import NodeId
from storage.envelope_store import EnvelopeStore


class Custody:
    """Whose patients are ours, the keys of their vaults, and what those keys are kept and sent in."""

    def __init__(
        self, core: Core, stores: Stores, identity: Identity, check_room: Callable[[], None]
    ) -> None:
        ports = core.ports
        self.attachments = Attachments(
            EnvelopeStore(stores.rows),
            NoticedDisk(ports.disk, core.pace),
            ports.transport,
            lambda: core.store.configuration.storing,
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
            applied=core.applier.history,
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
            me=core.store.configurations.known_member(ports.transport.me),
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
        self.desk = PatientDesk(custody.patients, self.handover, core.store.configurations.name_ever)
