"""The parts of erasure, wired for `assembly`: what deletes here, what sees an erasure through, what people ask for."""

from node.announcing import Announcer
from node.awaiting_disk import RoomAwaitingDisk
from node.core import Core
from node.destruction import Destruction
from node.erased_rows import ErasedRows
from node.erasure import Erasures
from node.erasure_rows import ErasureRows
from node.erasure_watcher import ErasureWatcher
from node.opening import Opening
from node.record_family import Families
from node.recordkeeping import Ciphertext, Records
from node.sharing import Custody
from node.stores import Stores
from protocol.identifiers import NodeId
from protocol.signing import SigningKey


class Erasing:
    """Run `destruction.run` and `watcher.run` beside the core's tasks; `serve` before them."""

    def __init__(
        self,
        core: Core,
        stores: Stores,
        *,
        key: SigningKey,
        custody: Custody,
        records: Records,
        ciphertext: Ciphertext,
        opening: Opening,
    ) -> None:
        ports, self._transport = core.ports, core.ports.transport
        asked = ErasureRows(records.sealed_rows)
        self.destruction = Destruction(
            key=key,
            network=core.network,
            ledger=core.store,
            applied=core.applier.history,
            rows=stores.rows,
            disk=RoomAwaitingDisk(ports.disk, ports.clock),
            chunks=stores.chunks,
            holder=ciphertext.holder,
            remove_asides=stores.remove_asides,
            erased=ErasedRows(
                me=NodeId(key.public),
                ledger=core.store,
                rows=stores.rows,
                chunks=stores.chunks,
                envelopes=ciphertext.envelopes,
                index=records.index,
            ),
            workers=ports.workers,
            clock=ports.clock,
            log=ports.log,
        )
        self.watcher = ErasureWatcher(
            ledger=core.store,
            asked=asked,
            authorities=custody.authorities,
            destruction=self.destruction,
            submitter=core.submitter,
            transport=ports.transport,
            disk=ports.disk,
            clock=ports.clock,
            log=ports.log,
        )
        self.erasures = Erasures(
            ledger=core.store,
            rows=stores.rows,
            asked=asked,
            watcher=self.watcher,
            destruction=self.destruction,
            authorities=custody.authorities,
            vaults=custody.vaults,
            families=_families(core, stores, key=key, custody=custody, records=records, opening=opening),
            index=records.index,
            report=records.report,
            holder=ciphertext.holder,
            retrieval=ciphertext.retrieval,
            submitter=core.submitter,
        )

    def serve(self) -> None:
        """Start answering other members."""
        self.destruction.serve(self._transport)


def _families(
    core: Core, stores: Stores, *, key: SigningKey, custody: Custody, records: Records, opening: Opening
) -> Families:
    return Families(
        ledger=core.store,
        rows=stores.rows,
        index=records.index,
        epochs=custody.epochs,
        opening=opening,
        announcer=Announcer(
            key=key,
            ledger=core.store,
            attachments=custody.attachments,
            submitter=core.submitter,
            entropy=core.ports.entropy,
        ),
    )
