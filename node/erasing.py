"""The parts of erasure, wired for `assembly`: what deletes here, what sees an erasure through, what people ask for."""

from dataclasses import dataclass

from node.announcing import Announcer
from node.attachments import Attachments
from node.authority import Authorities
from node.awaiting_disk import RoomAwaitingDisk
from node.chunk_holder import ChunkHolder
from node.core import Core
from node.destruction import Destruction
from node.epochs import Epochs
from node.erased_rows import ErasedRows
from node.erasure import Erasures
from node.erasure_rows import ErasureRows
from node.erasure_watcher import ErasureWatcher
from node.opening import Opening
from node.record_family import Families
from node.record_index import RecordIndex
from node.record_report import RecordReport
from node.retrieval import Retrieval
from node.sealed_rows import SealedRows
from node.vaults import Vaults
from protocol.identifiers import NodeId
from protocol.signing import SigningKey
from storage.chunk_store import ChunkStore
from storage.envelope_store import EnvelopeStore
from storage.key_value import KeyValue


@dataclass(frozen=True, slots=True)
class ErasingSources:
    """What erasure works on."""

    rows: KeyValue
    sealed_rows: SealedRows
    chunks: ChunkStore
    envelopes: EnvelopeStore
    index: RecordIndex
    report: RecordReport
    holder: ChunkHolder
    retrieval: Retrieval
    opening: Opening
    vaults: Vaults
    epochs: Epochs
    authorities: Authorities
    attachments: Attachments


class Erasing:
    """Run `destruction.run` and `watcher.run` beside the core's tasks; `serve` before them."""

    def __init__(self, core: Core, key: SigningKey, sources: ErasingSources) -> None:
        ports, self._transport = core.ports, core.ports.transport
        asked = ErasureRows(sources.sealed_rows)
        self.destruction = Destruction(
            key=key,
            network=core.network,
            ledger=core.store,
            applied=core.applier.history,
            rows=sources.rows,
            disk=RoomAwaitingDisk(ports.disk, ports.clock),
            chunks=sources.chunks,
            holder=sources.holder,
            erased=ErasedRows(
                me=NodeId(key.public),
                ledger=core.store,
                rows=sources.rows,
                chunks=sources.chunks,
                envelopes=sources.envelopes,
                index=sources.index,
            ),
            workers=ports.workers,
            clock=ports.clock,
            log=ports.log,
        )
        self.watcher = ErasureWatcher(
            ledger=core.store,
            asked=asked,
            authorities=sources.authorities,
            destruction=self.destruction,
            submitter=core.submitter,
            transport=ports.transport,
            disk=ports.disk,
            clock=ports.clock,
            log=ports.log,
        )
        self.erasures = Erasures(
            ledger=core.store,
            rows=sources.rows,
            asked=asked,
            watcher=self.watcher,
            destruction=self.destruction,
            authorities=sources.authorities,
            vaults=sources.vaults,
            families=self._families(core, key, sources),
            index=sources.index,
            report=sources.report,
            holder=sources.holder,
            retrieval=sources.retrieval,
            submitter=core.submitter,
        )

    @staticmethod
    def _families(core: Core, key: SigningKey, sources: ErasingSources) -> Families:
        return Families(
            ledger=core.store,
            rows=sources.rows,
            index=sources.index,
            epochs=sources.epochs,
            opening=sources.opening,
            announcer=Announcer(
                key=key,
                ledger=core.store,
                attachments=sources.attachments,
                submitter=core.submitter,
                entropy=core.ports.entropy,
            ),
        )

    def serve(self) -> None:
        """Start answering other members."""
        self.destruction.serve(self._transport)
