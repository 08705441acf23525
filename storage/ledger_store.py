"""Blocks, proofs, Raft hard state and ledger state in one database (storage.md 2).

Blocks are stored once, for ever; the Raft log is an index over them. This module builds batches and reads rows; writing
is the business of the one writer behind the `Disk` port, so that hard state and entries share one synchronised batch,
and the applied mark shares one with the rows it explains.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, TypeVar

from protocol import codec, ledger_rows
from protocol.block import Block, Header, genesis_block
from protocol.certificate import CommitProof
from protocol.codec import Size, wire
from protocol.configuration import Configuration
from protocol.errors import Corruption, Malformed
from protocol.identifiers import Digest, Height, Rid, Txid, Vid
from protocol.ledger_rows import GrantState, Receipt, Record, Vault
from protocol.merkle import Frontier
from protocol.raft.state import HardState
from storage import keyspace
from storage.key_value import Batch, KeyValue

T = TypeVar("T")


@wire("applied")
@dataclass(frozen=True, slots=True)
class AppliedMark:
    """How far the state has come: the last applied block, and the tree after it."""

    height: Height
    hash: Annotated[Digest, Size(32)]
    time_ms: int
    tree_size: int
    peaks: tuple[Annotated[Digest, Size(32)], ...]

    @property
    def frontier(self) -> Frontier:
        """The Merkle frontier after the applied block."""
        return Frontier(self.tree_size, self.peaks)


_ABOVE = b"\xff" * 33
"""Above every 32-byte suffix: ends a scan over a prefix that itself may end in 0xff."""


def _decoded(row: bytes, kind: type[T]) -> T:
    try:
        return codec.decode(row, kind)
    except Malformed as error:
        # What does not decode came from our own disk: damage, not a peer's fault.
        raise Corruption(f"a {codec.tag_of(kind)} row of the ledger does not decode: {error}") from None


def _height_key(prefix: bytes, height: int) -> bytes:
    return prefix + height.to_bytes(8, "big")


class LedgerStore:
    """Reads the ledger database and builds the batches that change it. Reads may run beside the writer."""

    def __init__(self, rows: KeyValue, genesis: Configuration) -> None:
        self._rows = rows
        self.configuration = genesis
        first = genesis_block(genesis)
        if self._rows.get(keyspace.APPLIED) is None:
            batch = Batch()
            batch.put(_height_key(keyspace.BLOCK, 0), first.raw)
            mark = AppliedMark(Height(0), first.hash, 0, 0, ())
            batch.put(keyspace.APPLIED, codec.encode(mark))
            self._rows.write(batch, sync=True)
        elif self.block(Height(0)).hash != first.hash:
            raise Corruption(
                "the ledger in this home belongs to another network; start with the genesis file it was joined with"
            )

    # --- reads ------------------------------------------------------------------------------------------------

    def is_rebuilt(self) -> bool:
        """Return whether this ledger was rebuilt and its voter has not caught up yet (`node.rejoin`)."""
        return self._rows.get(keyspace.REBUILT) is not None

    def hard_state(self) -> HardState | None:
        """Return the Raft hard state, or None before the first."""
        row = self._rows.get(keyspace.HARD_STATE)
        return _decoded(row, HardState) if row is not None else None

    def applied(self) -> AppliedMark:
        """Return the applied mark."""
        row = self._rows.get(keyspace.APPLIED)
        assert row is not None, "written when the store was made"
        return _decoded(row, AppliedMark)

    def tip_height(self) -> Height:
        """Return the height of the last stored block, applied or not."""
        for key, _ in self._rows.scan(*keyspace.prefix_range(keyspace.BLOCK), reverse=True):
            return Height(int.from_bytes(key[len(keyspace.BLOCK) :], "big"))
        raise Corruption("the ledger holds no block at all; run carechain run --rebuild ledger")

    def block(self, height: Height) -> Block:
        """Return a stored block.

        Raises:
            Corruption: it is missing or does not decode.
        """
        row = self._rows.get(_height_key(keyspace.BLOCK, height))
        if row is None:
            raise Corruption(f"block {height} is missing from the ledger")
        try:
            block = Block.decode(row)
        except Malformed as error:
            raise Corruption(f"block {height} does not decode: {error}") from None
        if block.height != height:
            raise Corruption(f"block {height} is stored as {block.height}")
        return block

    def header(self, height: Height) -> Header:
        """Return a stored block's header."""
        return self.block(height).header

    def hash(self, height: Height) -> Digest:
        """Return a stored block's hash."""
        return self.block(height).hash

    def blocks(self, first: Height, last: Height) -> Iterator[Block]:
        """Yield stored blocks first..last, both included."""
        for height in range(first, last + 1):
            yield self.block(Height(height))

    def proof_at_or_above(self, height: Height) -> CommitProof | None:
        """Return the commit proof of the lowest proven block at or above `height`."""
        for _, row in self._rows.scan(
            _height_key(keyspace.PROOF, height), keyspace.prefix_range(keyspace.PROOF)[1]
        ):
            return _decoded(row, CommitProof)
        return None

    def proof(self, height: Height) -> CommitProof | None:
        """Return the commit proof of the highest proven block at or below `height`."""
        stop = _height_key(keyspace.PROOF, height + 1)
        for _, row in self._rows.scan(keyspace.PROOF, stop, reverse=True):
            return _decoded(row, CommitProof)
        return None

    def state(self, key: bytes) -> bytes | None:
        """Return a row of ledger state (what `ledger_state.apply` reads)."""
        return self._rows.get(keyspace.STATE + key)

    def vault(self, vid: Vid) -> Vault | None:
        """Return a vault's state."""
        row = self.state(ledger_rows.vault_key(vid))
        return _decoded(row, Vault) if row is not None else None

    def record(self, rid: Rid) -> Record | None:
        """Return a record's state."""
        row = self.state(ledger_rows.record_key(rid))
        return _decoded(row, Record) if row is not None else None

    def grant(self, gid: Txid) -> GrantState | None:
        """Return a grant's state."""
        row = self.state(ledger_rows.grant_key(gid))
        return _decoded(row, GrantState) if row is not None else None

    def receipt(self, txid: Txid) -> Receipt | None:
        """Return what became of a transaction."""
        row = self.state(ledger_rows.receipt_key(txid))
        return _decoded(row, Receipt) if row is not None else None

    def records_of(self, vid: Vid) -> tuple[Rid, ...]:
        """Return the records of a vault, sorted by id."""
        prefix = keyspace.STATE + ledger_rows.vault_record_key(vid, Rid(b""))
        return tuple(Rid(key[len(prefix) :]) for key, _ in self._rows.scan(prefix, prefix + _ABOVE))

    def events_of(self, vid: Vid) -> tuple[Txid, ...]:
        """Return the accepted transactions of a vault, in ledger order."""
        prefix = keyspace.STATE + ledger_rows.event_key(vid, 0)[:-8]
        return tuple(Txid(txid) for _, txid in self._rows.scan(prefix, prefix + _ABOVE))

    # --- batches ----------------------------------------------------------------------------------------------

    @staticmethod
    def mark_rebuilt(rows: KeyValue) -> None:
        """Note in a new, empty ledger database that it replaces a damaged one."""
        batch = Batch()
        batch.put(keyspace.REBUILT, b"")
        rows.write(batch, sync=True)

    def put_forgotten(self, batch: Batch) -> None:
        """Add to a batch that this voter has lost what it had promised: as after a rebuild, it begins with what is applied."""
        self.truncate(batch, Height(self.applied().height + 1))
        batch.put(keyspace.REBUILT, b"")

    @staticmethod
    def clear_rebuilt(batch: Batch) -> None:
        """Add the end of a rebuild to a batch, which also holds the hard state to begin with."""
        batch.delete(keyspace.REBUILT)

    @staticmethod
    def put_hard_state(batch: Batch, hard_state: HardState) -> None:
        """Add the one-record hard state to a batch (ledger.md decision 6)."""
        batch.put(keyspace.HARD_STATE, codec.encode(hard_state))

    @staticmethod
    def put_blocks(batch: Batch, blocks: Iterable[Block]) -> None:
        """Add blocks to a batch."""
        for block in blocks:
            batch.put(_height_key(keyspace.BLOCK, block.height), block.raw)

    def truncate(self, batch: Batch, first: Height) -> None:
        """Add the removal of the blocks from `first` up; never at or below the applied height."""
        assert first > self.applied().height, "an applied block is never truncated"
        for key, _ in self._rows.scan(
            _height_key(keyspace.BLOCK, first), keyspace.prefix_range(keyspace.BLOCK)[1]
        ):
            batch.delete(key)

    @staticmethod
    def put_applied(
        batch: Batch, writes: dict[bytes, bytes | None], mark: AppliedMark, proof: CommitProof
    ) -> None:
        """Add rows, the mark that explains them and the proof that allows them: they become visible together."""
        for key, value in writes.items():
            if value is None:
                batch.delete(keyspace.STATE + key)
            else:
                batch.put(keyspace.STATE + key, value)
        batch.put(keyspace.APPLIED, codec.encode(mark))
        batch.put(_height_key(keyspace.PROOF, proof.header.height), codec.encode(proof))
