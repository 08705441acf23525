"""The erasures that were asked for at this facility: what is still to be ordered, and who has given its word. Never sent.

Kept for good, sealed: they are the evidence, and they say which records were of one family, which the ledger does not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from node.sealed_rows import SealedRows
from protocol import chunk_exchange as exchange
from protocol import codec, limits
from protocol.codec import Size, wire
from protocol.destruction import Attestation
from protocol.identifiers import NodeId, Rid
from protocol.transaction import RidField, TxidField, VidField
from storage.key_value import Batch
from storage.keyspace import ERASURE

FAMILY_MAX = 1_024
"""Records erased by one command: every version of a file, and the views of each."""


@wire("erasure-asked")
@dataclass(frozen=True, slots=True, repr=False)
class AskedErasure:
    """One record that was, or is to be, erased.

    `signed` is the transaction while it waits for the ledger, else empty; `family` the records erased with it, itself
    included; `cids` its chunks as far as they were known here.
    """

    rid: RidField
    vid: VidField
    txid: TxidField
    patient: Annotated[str, Size(0, 64)]
    category: Annotated[str, Size(1, 32)]
    kind: Annotated[str, Size(0, 16)]
    part_of: RidField
    family: Annotated[tuple[RidField, ...], Size(1, FAMILY_MAX)]
    signed: Annotated[bytes, Size(0, limits.TRANSACTION_BYTES_MAX)]
    cids: Annotated[tuple[exchange.CidField, ...], Size(0, exchange.RECORD_CIDS_MAX)]
    attestations: Annotated[tuple[Attestation, ...], Size(0, limits.MEMBERS_MAX)]

    @property
    def attesters(self) -> frozenset[NodeId]:
        """The members that have given their word."""
        return frozenset(attestation.node for attestation in self.attestations)

    def __repr__(self) -> str:
        return f"AskedErasure({self.rid.hex()[:16]}, {len(self.attestations)} attestations)"


class ErasureRows:
    """Reads and stages the rows of `keyspace.ERASURE`."""

    def __init__(self, rows: SealedRows) -> None:
        self._rows = rows

    def get(self, rid: Rid) -> AskedErasure | None:
        """Return the row of a record, or None when nobody asked here for its end."""
        row = self._rows.get(ERASURE + rid)
        return codec.decode(row, AskedErasure) if row is not None else None

    def put(self, batch: Batch, asked: AskedErasure) -> None:
        """Stage a row."""
        self._rows.put(batch, ERASURE + asked.rid, codec.encode(asked))

    def drop(self, batch: Batch, rid: Rid) -> None:
        """Stage that the erasure of a record was not to be."""
        batch.delete(ERASURE + rid)

    def rids(self) -> Iterator[Rid]:
        """Yield the records whose end was asked for here, sorted."""
        for key in self._rows.keys(ERASURE):
            yield Rid(key)
