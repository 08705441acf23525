"""The record path, wired for `assembly`: ciphertext here and elsewhere, and records on their way to the ledger. No behaviour."""

from collections.abc import Callable

from node.awaiting_disk import RoomAwaitingDisk
from node.chunk_holder import ChunkHolder
from node.committing import Committing
from node.core import Core
from node.identity import Identity
from node.record_index import RecordIndex
from node.record_queue import RecordQueue
from node.record_report import RecordReport
from node.repair import Repair
from node.replication import Replication
from node.retrieval import Retrieval
from node.sealed_rows import SealedRows
from node.standings import Standings
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
            writer=stores.writer,
            envelopes=self.envelopes,
            disk=ports.disk,
            workers=ports.workers,
            clock=ports.clock,
            pace=core.pace,
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
            pace=core.pace,
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
        self.standings = Standings(stores.rows, RoomAwaitingDisk(ports.disk, ports.clock), ports.clock)
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
            standings=self.standings,
        )


class Records:
    """The record path: from bytes to a committed record on several facilities, and what we know of each."""

    def __init__(
        self, core: Core, stores: Stores, identity: Identity, vaults: Vaults, ciphertext: Ciphertext
    ) -> None:
        ports = core.ports
        self.sealed_rows = SealedRows(stores.rows, identity.fingerprint, ports.entropy)
        self.index = RecordIndex(self.sealed_rows)
        committing = Committing(
            key=SigningKey(identity.node),
            ledger=core.store,
            rows=self.sealed_rows,
            disk=ports.disk,
            replication=ciphertext.replication,
            submitter=core.submitter,
            open_vault=vaults.ensure_open,
            workers=ports.workers,
            clock=ports.clock,
            entropy=ports.entropy,
        )
        self.queue = RecordQueue(
            me=identity.node_id,
            ledger=core.store,
            rows=self.sealed_rows,
            index=self.index,
            disk=ports.disk,
            committing=committing,
            clock=ports.clock,
            log=ports.log,
        )
        self.report = RecordReport(core.store, self.index, self.queue)
