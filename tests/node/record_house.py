"""The record path of each member of a `LedgerDouble`, wired as the daemon wires it."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import trio

from node.chunk_holder import ChunkHolder
from node.chunk_writer import ChunkWriter
from node.committing import Committing
from node.ingest import Ingest
from node.opening import Opening
from node.pacing import Pace, Traffic
from node.ports import Disk, Workers
from node.query import Query
from node.record_index import RecordIndex
from node.record_queue import RecordQueue
from node.record_report import RecordReport
from node.repair import Repair
from node.replication import Replication
from node.retrieval import Retrieval
from node.sealed_rows import SealedRows
from node.settling import Settling
from node.standings import Standings
from protocol.errors import StorageFull
from protocol.signing import SigningKey
from storage.chunk_store import ChunkStore
from storage.key_value import KeyValue
from storage.memory import MemoryStore
from tests.node.facility_double import FacilityDouble
from tests.node.ledger_double import LedgerDouble, MemberDouble, running


class Facility(FacilityDouble):
    """One member's services, with real chunks. Making it again on the same member is what a restart does."""

    def __init__(
        self,
        member: MemberDouble,
        ledger: LedgerDouble,
        *,
        payloads: KeyValue | None = None,
        workers: Workers | None = None,
        disk: Disk | None = None,
    ) -> None:
        super().__init__(member, ledger)
        self.workers, self.disk = workers or member.workers, disk or member.disk
        self.payloads = payloads or MemoryStore()
        self.chunks = ChunkStore(self.payloads, member.rows)
        self.writer = ChunkWriter(self.chunks, self.workers)
        self.room_checks = 0
        self.is_full = False
        self._wire_ciphertext()
        self._wire_records()

    def _wire_ciphertext(self) -> None:
        member, network = self.member, self.ledger.network
        key, workers, disk, store = SigningKey(member.identity.node), self.workers, self.disk, self.store
        rows, clock, transport, envelopes = member.rows, member.clock, member.transport, member.envelopes
        self.pace = Pace(clock, lambda: Traffic(store.applied().time_ms, 0, is_waited_for=False))
        self.holder = ChunkHolder(
            key=key,
            network=network,
            ledger=store,
            chunks=self.chunks,
            writer=self.writer,
            envelopes=envelopes,
            disk=disk,
            workers=workers,
            clock=clock,
            pace=self.pace,
            check_room=self.check_room,
        )
        self.holder.serve(transport)
        self.replication = Replication(
            network=network,
            ledger=store,
            chunks=self.chunks,
            holder=self.holder,
            transport=transport,
            workers=workers,
            clock=clock,
            pace=self.pace,
        )
        self.retrieval = Retrieval(
            network=network,
            ledger=store,
            chunks=self.chunks,
            envelopes=envelopes,
            holder=self.holder,
            transport=transport,
            workers=workers,
        )
        self.standings = Standings(rows, disk, clock)
        self.repair = Repair(
            ledger=store,
            applied=member.applier.height,
            rows=rows,
            disk=disk,
            chunks=self.chunks,
            envelopes=envelopes,
            holder=self.holder,
            replication=self.replication,
            retrieval=self.retrieval,
            transport=transport,
            workers=workers,
            clock=clock,
            check_room=self.check_room,
            standings=self.standings,
        )

    def _wire_records(self) -> None:
        member, ledger = self.member, self.ledger
        key, workers, store = SigningKey(member.identity.node), self.workers, self.store
        rows, clock, entropy = member.rows, member.clock, member.entropy
        self.sealed = SealedRows(rows, member.identity.fingerprint, entropy)
        self.index = RecordIndex(self.sealed)
        committing = Committing(
            key=key,
            ledger=store,
            rows=self.sealed,
            disk=self.disk,
            replication=self.replication,
            submitter=member.submitter,
            open_vault=self.vaults.ensure_open,
            workers=workers,
            clock=clock,
            entropy=entropy,
        )
        self.queue = RecordQueue(
            me=self.me,
            ledger=store,
            rows=self.sealed,
            index=self.index,
            disk=self.disk,
            committing=committing,
            clock=clock,
            log=member.log,
        )
        self.report = RecordReport(store, self.index, self.queue)
        settling = Settling(
            patients=self.patients,
            vaults=self.vaults,
            queue=self.queue,
            index=self.index,
            rows=self.sealed,
            report=self.report,
            clock=clock,
            check_room=self.check_room,
        )
        self.ingest = Ingest(
            settling=settling,
            writer=self.writer,
            queue=self.queue,
            workers=workers,
            entropy=entropy,
            check_room=self.check_room,
            check_quota=self.check_quota,
            clock=clock,
            pace=self.pace,
        )
        self.query = Query(
            key=key,
            ledger=store,
            rows=rows,
            patients=self.patients,
            vaults=self.vaults,
            attachments=self.attachments,
            retrieval=self.retrieval,
            opening=Opening(ledger.network, ledger.genesis, self.retrieval, workers),
            submitter=member.submitter,
            index=self.index,
            report=self.report,
            entropy=entropy,
        )

    def check_quota(self) -> None:
        """No quota; a test that wants one has a class of its own."""

    def check_room(self) -> None:
        self.room_checks += 1
        if self.is_full:
            raise StorageFull("no room")

    async def add(self, data: bytes, **arguments: Any) -> dict[str, Any]:
        async with aclosing(pieces(data)) as stream:
            return await self.ingest.add(stream, **arguments)

    async def get(self, record: str, **arguments: Any) -> tuple[dict[str, Any], bytes]:
        info, stream = await self.query.read(record, **arguments)
        return info, b"".join([piece async for piece in stream])

    async def admit(self, identifier: str = "1", name: str = "Ada", birth_date: str = "1980-02-03") -> str:
        answer = await self.patients.register(
            None, identifiers=[("urn:test", identifier)], name=name, birth_date=birth_date
        )
        return str(answer["patient"])


def entries(document: Any) -> Any:
    """The records of a JSON answer, in their order. Any: JSON."""
    return document["records"]


async def pieces(data: bytes, size: int = 1 << 20) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@asynccontextmanager
async def houses(
    voters: int = 1, *, seed: str = "records", facility: type[Facility] = Facility
) -> AsyncIterator[list[Facility]]:
    """Run the record path of every member."""
    async with running(LedgerDouble(voters, seed=seed)) as ledger, trio.open_nursery() as nursery:
        facilities = [facility(member, ledger) for member in ledger.members]
        for one in facilities:
            nursery.start_soon(one.run)
            nursery.start_soon(one.queue.run)
            nursery.start_soon(one.repair.run)
        yield facilities
        nursery.cancel_scope.cancel()
