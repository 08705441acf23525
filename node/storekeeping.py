"""What looks after stored chunks, wired: scrub, figures, repair and reclaim on demand. Names the classes, holds no behaviour."""

from collections.abc import Awaitable, Callable

from node.awaiting_disk import RoomAwaitingDisk
from node.chunk_holder import ChunkHolder
from node.core import Core
from node.mending import Mending
from node.reclaiming import Reclaiming
from node.repair import Repair
from node.replication import Replication
from node.retrieval import Retrieval
from node.scrub import Scrub
from node.status import Machine
from node.storage_care import StorageCare
from node.storage_figures import StorageFigures
from node.stores import Stores
from storage.envelope_store import EnvelopeStore


class Storekeeping:
    """`care` is what the local socket offers; `tasks` run in the background."""

    def __init__(
        self,
        core: Core,
        stores: Stores,
        *,
        envelopes: EnvelopeStore,
        holder: ChunkHolder,
        replication: Replication,
        retrieval: Retrieval,
        repair: Repair,
        queued: Callable[[], int],
        check_room: Callable[[], None],
        machine: Machine,
    ) -> None:
        ports = core.ports
        disk = RoomAwaitingDisk(ports.disk, ports.clock)
        self.scrub = Scrub(
            applied=core.applier.height,
            rows=stores.rows,
            disk=disk,
            chunks=stores.chunks,
            retrieval=retrieval,
            transport=ports.transport,
            workers=ports.workers,
            clock=ports.clock,
            log=ports.log,
            check_room=check_room,
        )
        self.figures = StorageFigures(
            me=ports.transport.me,
            ledger=core.store,
            rows=stores.rows,
            disk=disk,
            chunks=stores.chunks,
            holder=holder,
            repair=repair,
            scrub=self.scrub,
            queued=queued,
            workers=ports.workers,
            clock=ports.clock,
            machine=machine,
        )
        mending = Mending(
            ledger=core.store,
            rows=stores.rows,
            disk=disk,
            chunks=stores.chunks,
            envelopes=envelopes,
            holder=holder,
            repair=repair,
            replication=replication,
            transport=ports.transport,
            workers=ports.workers,
        )
        reclaiming = Reclaiming(
            rows=stores.rows,
            chunks=stores.chunks,
            workers=ports.workers,
            file_bytes=machine.payload_file_bytes,
            sequence_abandoned=self.figures.sequence_abandoned,
        )
        self.care = StorageCare(
            figures=self.figures,
            scrub=self.scrub,
            mending=mending,
            reclaiming=reclaiming,
            status=repair.status,
            ledger=core.store,
            transport=ports.transport,
        )

    @property
    def tasks(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """The tasks that run in the background."""
        return (self.scrub.run, self.figures.run)
