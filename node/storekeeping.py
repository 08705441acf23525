"""What looks after stored chunks, wired: scrub, figures, repair and reclaim on demand. Names the classes, holds no behaviour."""

from collections.abc import Awaitable, Callable

from node.anti_entropy import AntiEntropy
from node.awaiting_disk import RoomAwaitingDisk
from node.challenges import Challenges
from node.core import Core
from node.mending import Mending
from node.placed_ranges import PlacedRanges
from node.reclaiming import Reclaiming
from node.record_index import RecordIndex
from node.record_queue import RecordQueue
from node.recordkeeping import Ciphertext
from node.scrub import Scrub
from node.status import Machine
from node.storage_care import StorageCare
from node.storage_figures import StorageFigures
from node.stores import Stores
from node.surplus import Surplus


class Storekeeping:
    """`care` is what the local socket offers; `tasks` run in the background."""

    def __init__(
        self,
        core: Core,
        stores: Stores,
        ciphertext: Ciphertext,
        queue: RecordQueue,
        index: RecordIndex,
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
        self._compare(core, stores, ciphertext)
        self.figures = StorageFigures(
            me=ports.transport.me,
            ledger=core.store,
            rows=stores.rows,
            index=index,
            disk=disk,
            chunks=stores.chunks,
            holder=ciphertext.holder,
            repair=ciphertext.repair,
            scrub=self.scrub,
            anti_entropy=self.anti_entropy,
            surplus=self.surplus,
            standings=ciphertext.standings,
            queued=lambda: queue.length,
            workers=ports.workers,
            clock=ports.clock,
            machine=machine,
        )
        mending = Mending(
            ledger=core.store,
            rows=stores.rows,
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
            compare=self.anti_entropy.hurry,
            ledger=core.store,
            transport=ports.transport,
        )

    def _compare(self, core: Core, stores: Stores, ciphertext: Ciphertext) -> None:
        ports = core.ports
        ranges = PlacedRanges(
            me=ports.transport.me, ledger=core.store, rows=stores.rows, chunks=stores.chunks
        )
        self.challenges = Challenges(
            ranges=ranges,
            chunks=stores.chunks,
            rows=stores.rows,
            repair=ciphertext.repair,
            standings=ciphertext.standings,
            transport=ports.transport,
            workers=ports.workers,
            clock=ports.clock,
            entropy=ports.entropy,
            log=ports.log,
        )
        self.surplus = Surplus(
            ranges=ranges,
            chunks=stores.chunks,
            challenges=self.challenges,
            transport=ports.transport,
            workers=ports.workers,
            log=ports.log,
        )
        self.anti_entropy = AntiEntropy(
            ranges=ranges,
            chunks=stores.chunks,
            repair=ciphertext.repair,
            surplus=self.surplus,
            transport=ports.transport,
            workers=ports.workers,
            clock=ports.clock,
            log=ports.log,
        )

    def serve(self) -> None:
        """Answer what other members ask about chunks that are here."""
        self.anti_entropy.serve()
        self.challenges.serve()

    @property
    def tasks(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """The tasks that run in the background."""
        return (self.scrub.run, self.figures.run, self.anti_entropy.run, self.challenges.run)
