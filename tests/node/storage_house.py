"""Members of a `LedgerDouble` whose stored chunks are looked after, wired as the daemon wires them."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from node.anti_entropy import AntiEntropy
from node.challenges import Challenges
from node.erased_rows import COUNTED
from node.mending import Mending
from node.placed_ranges import PlacedRanges
from node.reclaiming import Reclaiming
from node.scrub import Scrub
from node.status import Machine
from node.storage_care import StorageCare
from node.storage_figures import StorageFigures
from node.surplus import Surplus
from protocol import codec
from protocol.ballots import CONFIGURATION_PREFIX
from protocol.identifiers import Cid, Rid
from storage.key_value import Batch
from storage.keyspace import sequence_key
from tests.node.ledger_double import SilentLog
from tests.node.record_house import Facility


class CaredFacility(Facility):
    """One member with scrub, repair and reclaim. `log` is the scrub's."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.log = SilentLog()
        self.free_bytes = 1000
        batch = Batch()
        batch.put(COUNTED, b"")
        self.member.rows.write(batch, sync=True)
        self.care_anew()

    def care_anew(self) -> None:
        """Make what looks after the chunks again, as a restart does."""
        member = self.member
        rows, transport, clock = member.rows, member.transport, member.clock
        self.scrub = Scrub(
            applied=member.applier.height, rows=rows, disk=self.disk, chunks=self.chunks, retrieval=self.retrieval,
            transport=transport, workers=self.workers, clock=clock, log=self.log, check_room=self.check_room,
        )  # fmt: skip
        ranges = PlacedRanges(me=self.me, ledger=self.store, rows=rows, chunks=self.chunks)
        self.challenges = Challenges(
            ranges=ranges, chunks=self.chunks, rows=rows, repair=self.repair, standings=self.standings,
            transport=transport, workers=self.workers, clock=clock, entropy=member.entropy, log=self.log,
        )  # fmt: skip
        self.surplus = Surplus(
            ranges=ranges, chunks=self.chunks, challenges=self.challenges, transport=transport,
            workers=self.workers, log=self.log,
        )  # fmt: skip
        self.anti_entropy = AntiEntropy(
            ranges=ranges, chunks=self.chunks, repair=self.repair, surplus=self.surplus, transport=transport,
            workers=self.workers, clock=clock, log=self.log,
        )  # fmt: skip
        self.anti_entropy.serve()
        self.challenges.serve()
        machine = Machine(
            lambda: False,
            lambda: 0.5,
            tuple,
            free_bytes=lambda: self.free_bytes,
            payload_file_bytes=lambda: 77,
        )
        self.figures = StorageFigures(
            me=self.me, ledger=self.store, rows=rows, index=self.index, disk=self.disk, chunks=self.chunks, holder=self.holder,
            repair=self.repair, scrub=self.scrub, anti_entropy=self.anti_entropy, surplus=self.surplus,
            standings=self.standings, queued=lambda: self.queue.length, workers=self.workers,
            clock=clock, machine=machine,
        )  # fmt: skip
        mending = Mending(
            ledger=self.store, rows=rows, chunks=self.chunks, envelopes=member.envelopes,
            holder=self.holder, repair=self.repair, replication=self.replication, transport=transport,
            workers=self.workers,
        )  # fmt: skip
        reclaiming = Reclaiming(
            rows=rows, chunks=self.chunks, workers=self.workers, file_bytes=machine.payload_file_bytes,
            sequence_abandoned=self.figures.sequence_abandoned,
        )  # fmt: skip
        self.care = StorageCare(
            figures=self.figures, scrub=self.scrub, mending=mending, reclaiming=reclaiming, status=self.repair.status, compare=self.anti_entropy.hurry,
            ledger=self.store, transport=transport,
        )  # fmt: skip

    def cids_of(self, rid: Rid) -> tuple[Cid, ...]:
        """The chunks of a record whose list is here."""
        placed = self.holder.placed(rid)
        assert placed is not None
        return placed.cids

    def damage(self, *cids: Cid) -> None:
        """Make stored chunks unreadable, as a failing disk does."""
        for cid in cids:
            location = self.chunks.index.locate(cid)
            assert location is not None
            batch = Batch()
            batch.put(sequence_key(location.sequence), cid + b"rotten")
            self.payloads.write(batch, sync=True)


async def result_of(documents: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """Follow a long call to its end."""
    last = [document async for document in documents][-1]
    result: dict[str, Any] = last["result"]
    return result


def let_store(facilities: list[CaredFacility], *voters: CaredFacility) -> None:
    """Have a configuration in force, at all members, in which only these are voters and the others observe."""
    storing = {one.me for one in voters}
    for one in facilities:
        before = one.store.configuration
        members = tuple(
            replace(member, role="voter" if member.node in storing else "observer")
            for member in before.members
        )
        after = replace(before, members=members, number=before.number + 1)
        height = one.store.applied().height + before.number
        batch = Batch()
        key = one.store.state_prefix + CONFIGURATION_PREFIX + sequence_key(height)
        batch.put(key, codec.encode(after))
        one.member.rows.write(batch, sync=True)
        one.store.refresh()
