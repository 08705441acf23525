"""Members of a `LedgerDouble` with the record path and with erasure, wired as the daemon wires it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from node.announcing import Announcer
from node.applier import Certified
from node.destruction import Destruction
from node.erased_rows import ErasedRows
from node.erasure import Erasures
from node.erasure_rows import ErasureRows
from node.erasure_watcher import ErasureWatcher
from node.opening import Opening
from node.record_family import Families
from protocol.identifiers import Height, Rid
from protocol.signing import SigningKey
from storage.directories import remove_asides
from storage.key_value import KeyValue
from tests.node.ledger_double import LedgerDouble, MemberDouble, running
from tests.node.record_house import Facility


class ErasingFacility(Facility):
    """One member. Making it again on the same member and payloads is what a restart does."""

    def __init__(self, member: MemberDouble, ledger: LedgerDouble, **stores: Any) -> None:
        super().__init__(member, ledger, **stores)
        self.databases: tuple[Path, ...] = ()
        """Where databases are that may have been moved aside."""
        key, asked = SigningKey(member.identity.node), ErasureRows(self.sealed)
        self.asked = asked
        self.erased_rows = ErasedRows(
            me=self.me, ledger=self.store, rows=member.rows, chunks=self.chunks, envelopes=member.envelopes, index=self.index
        )  # fmt: skip
        self.destruction = Destruction(
            key=key, network=ledger.network, ledger=self.store, applied=member.applier.height, rows=member.rows,
            disk=self.disk, chunks=self.chunks, holder=self.holder, erased=self.erased_rows, workers=self.workers,
            remove_asides=lambda: remove_asides(*self.databases),
            clock=self.clock, log=member.log,
        )  # fmt: skip
        self.destruction.serve(member.transport)
        self.erasure_watcher = ErasureWatcher(
            ledger=self.store, asked=asked, authorities=self.authorities, destruction=self.destruction,
            submitter=self.submitter, transport=member.transport, disk=self.disk, clock=self.clock, log=member.log,
        )  # fmt: skip
        announcer = Announcer(
            key=key, ledger=self.store, attachments=self.attachments, submitter=self.submitter, entropy=member.entropy
        )  # fmt: skip
        self.families = Families(
            ledger=self.store, rows=member.rows, index=self.index, epochs=self.epochs, announcer=announcer,
            opening=Opening(ledger.network, ledger.genesis, self.retrieval, self.workers),
        )  # fmt: skip
        self.erasures = Erasures(
            ledger=self.store, rows=member.rows, asked=asked, watcher=self.erasure_watcher, destruction=self.destruction,
            authorities=self.authorities, vaults=self.vaults, families=self.families, index=self.index,
            report=self.report, holder=self.holder, retrieval=self.retrieval, submitter=self.submitter,
        )  # fmt: skip

    async def run_all(self, *, destroys: bool = True) -> None:
        """Run the tasks that the daemon runs; not the one that deletes, where the test has its own."""
        async with trio.open_nursery() as nursery:
            for task in (self.run, self.queue.run, self.repair.run, self.erasure_watcher.run):
                nursery.start_soon(task)
            if destroys:
                nursery.start_soon(self.destruction.run)

    async def erase(self, record: str, **arguments: Any) -> dict[str, Any]:
        """List, and erase what was listed."""
        listed: dict[str, Any] = await self.erasures.erase(record, **arguments)
        if "attestations" in listed:
            return listed
        rids = [entry["record"] for entry in listed["records"]]
        return await self.erasures.erase(record, listed=rids, **arguments)

    def holds(self, record: str) -> set[str]:
        """Say what there is of a record here: chunks, envelope, note, file."""
        rid = Rid(bytes.fromhex(record))
        found = {"envelope"} if self.member.envelopes.envelope_of(rid) is not None else set[str]()
        if self.holder.placed(rid) is not None:
            found.add("list")
        if self.index.note(rid) is not None:
            found.add("note")
        if self.index.file_of(rid) is not None:
            found.add("file")
        assert bool(found) == self.erased_rows.is_back(rid)
        return found

    def comes_back(self) -> None:
        """Connect again after `leaves`."""
        self.member.transport.is_up = True

    def leaves(self) -> None:
        """Miss every call and every block from now on."""
        self.member.transport.is_up = False

    async def catch_up(self) -> None:
        """Apply the blocks that were missed."""
        source = self.ledger.members[0].store
        for height in range(self.store.applied().height + 1, source.applied().height + 1):
            certificate = source.certificate(Height(height))
            assert certificate is not None
            await self.member.applier.apply(
                Certified((source.block(Height(height)),), certificate, is_stored=False)
            )


@asynccontextmanager
async def erasing_houses(
    voters: int = 3, *, seed: str = "erasing", payloads: KeyValue | None = None, last_destroys: bool = True
) -> AsyncIterator[list[ErasingFacility]]:
    """Run the record path and the erasure of every member; `payloads` are the last one's."""
    async with running(LedgerDouble(voters, seed=seed)) as ledger, trio.open_nursery() as nursery:
        facilities = [ErasingFacility(member, ledger) for member in ledger.members[:-1]]
        facilities.append(ErasingFacility(ledger.members[-1], ledger, payloads=payloads))
        for one in facilities:
            nursery.start_soon(partial(one.run_all, destroys=last_destroys or one is not facilities[-1]))
        yield facilities
        nursery.cancel_scope.cancel()
