"""Wires what a lost machine is got back with: the backup, and what a restored home has to find again. No behaviour."""

from node.backup import Backup, BackupSources
from node.core import Core
from node.lost_vaults import LostVaults
from node.opening import Opening
from node.patients import Patients
from protocol.identifiers import NodeId


class Safekeeping:
    """`backup` answers calls; `lost_vaults` is a task."""

    def __init__(self, core: Core, sources: BackupSources, patients: Patients, opening: Opening) -> None:
        ports = core.ports
        self.backup = Backup(
            sources,
            NodeId(ports.transport.me),
            workers=ports.workers,
            clock=ports.clock,
            entropy=ports.entropy,
            log=ports.log,
        )
        self.lost_vaults = LostVaults(
            me=NodeId(ports.transport.me),
            rows=sources.rows,
            disk=ports.disk,
            store=core.store,
            patients=patients,
            keystore=sources.keystore,
            opening=opening,
            workers=ports.workers,
            clock=ports.clock,
            log=ports.log,
        )
