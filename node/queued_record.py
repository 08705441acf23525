"""The row of a record that is sealed and not final yet: enough to bring it to the ledger after any crash."""

from dataclasses import dataclass
from typing import Annotated

from protocol import chunk_exchange as exchange
from protocol import limits
from protocol.codec import Bytes32, Size, wire
from protocol.transaction import RidField, VidField

SMALL_CHUNKS_MAX = 4
"""Records of so few chunks go to the ledger in groups."""


@wire("queued-record")
@dataclass(frozen=True, slots=True, repr=False)
class QueuedRecord:
    """A sealed record. `cids` are all its chunks, the manifest last; `envelope` is empty until the vault is known."""

    rid: RidField
    vid: VidField
    epoch: int
    dek: Bytes32
    envelope: Annotated[bytes, Size(0, limits.ENVELOPE_BYTES_MAX)]
    cids: exchange.CidList

    @property
    def is_small(self) -> bool:
        """Whether it may share messages and writes with others."""
        return len(self.cids) <= SMALL_CHUNKS_MAX

    def __repr__(self) -> str:
        return f"QueuedRecord({self.rid.hex()[:16]}, {len(self.cids)} chunks)"
