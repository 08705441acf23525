"""What looks after stored chunks, wired: scrub, figures, repair and reclaim on demand. Names the classes, holds no behaviour."""

from collections.abc import Awaitable, Callable

from node.awaiting_disk import RoomAwaitingDisk
from node.core import Core
from node.mending import Mending
from node.reclaiming import Reclaiming
from node.record_queue import RecordQueue
from node.recordkeeping import Ciphertext
from node.scrub import Scrub
from node.status import Machine
from node.storage_care import StorageCare
from node.storage_figures import StorageFigures
from node.stores import Stores


class Storekeeping:
    """`care` is what the local socket offers; `tasks` run in the background."""

    def __init__(
        self,
        core: Core,
        stores: Stores,
        ciphertext: Ciphertext,
        queue: RecordQueue,
        *,
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
            retrieval=ciphertext.retrieval,
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
            holder=ciphertext.holder,
            repair=ciphertext.repair,
            scrub=self.scrub,
            queued=lambda: queue.length,
            workers=ports.workers,
            clock=ports.clock,
            machine=machine,
        )
        mending = Mending(
            ledger=core.store,
            rows=stores.rows,
            disk=disk,
            chunks=stores.chunks,
            envelopes=ciphertext.envelopes,
            holder=ciphertext.holder,
            repair=ciphertext.repair,
            replication=ciphertext.replication,
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
            status=ciphertext.repair.status,
            ledger=core.store,
            transport=ports.transport,
        )

    @property
    def tasks(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """The tasks that run in the background."""
        return (self.scrub.run, self.figures.run)
