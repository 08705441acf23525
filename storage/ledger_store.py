"""Blocks, certificates, Raft hard state and ledger state in one database (storage.md 2).

Blocks are stored once, for ever; the Raft log is an index over them. This module builds batches and reads rows; writing
is the business of the one writer behind the `Disk` port, so that hard state and entries share one synchronised batch,
and the applied mark shares one with the rows it explains.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from protocol import ballots, codec, ledger_rows
from protocol.block import Block, Header, genesis_block, header_hash
from protocol.configuration import Configuration, network_id
from protocol.errors import Corruption, Malformed, Unavailable
from protocol.finality import Certificate
from protocol.fork import CertifiedFork
from protocol.identifiers import Digest, Height, Rid, Txid, Vid
from protocol.ledger_rows import Erasure, GrantState, Receipt, Record, Vault
from protocol.merkle import Frontier
from protocol.raft.state import HardState
from storage import keyspace, tree_store
from storage.configuration_history import ConfigurationHistory
from storage.epochs import Epochs
from storage.key_value import Batch, KeyValue
from storage.marks import AppliedMark, HistoryMark

__all__ = ["AppliedMark", "HistoryMark", "LedgerStore"]

T = TypeVar("T")


_ABOVE = b"\xff" * 33
"""Above every 32-byte suffix: ends a scan over a prefix that itself may end in 0xff."""


def _decoded(row: bytes, kind: type[T]) -> T:
    try:
        return codec.decode(row, kind)
    except Malformed as error:
        # What does not decode came from our own disk: damage, not a peer's fault.
        raise Corruption(f"a {codec.tag_of(kind)} row of the ledger does not decode: {error}") from None


def _decoded_block(row: bytes) -> Block | None:
    try:
        return Block.decode(row)
    except Malformed:
        return None  # of no use to whoever asks whether it continues another


def _height_key(prefix: bytes, height: int) -> bytes:
    return prefix + height.to_bytes(8, "big")


class LedgerStore:
    """Reads the ledger database and builds the batches that change it. Reads may run beside the writer."""

    def __init__(self, rows: KeyValue, genesis: Configuration) -> None:
        self._rows = rows
        self.genesis = genesis
        self.network = network_id(genesis)
        self.configurations = ConfigurationHistory(genesis)
        """All configurations since genesis."""
        self.epochs = Epochs(rows, self.applied, self.header)
        self._state = keyspace.STATE
        self._history: HistoryMark | None = None
        first = genesis_block(genesis)
        if self._rows.get(keyspace.APPLIED) is None:
            batch = Batch()
            batch.put(_height_key(keyspace.BLOCK, 0), first.raw)
            mark = AppliedMark(Height(0), first.hash, 0, 0, ())
            batch.put(keyspace.APPLIED, codec.encode(mark))
            tree_store.put_whole(batch)
            self._rows.write(batch, sync=True)
        elif self.block(Height(0)).hash != first.hash:
            raise Corruption(
                "the ledger in this home belongs to another network; start with the genesis file it was joined with"
            )
        self.refresh()

    def refresh(self) -> None:
        """Read again which state is in use and what is known of the history: after a batch that changed either."""
        self._state = self._rows.get(keyspace.STATE_IN_USE) or keyspace.STATE
        row = self._rows.get(keyspace.HISTORY)
        self._history = _decoded(row, HistoryMark) if row is not None else None
        self.configurations.load(self.state_rows(ballots.CONFIGURATION_PREFIX))

    # --- reads ------------------------------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration:
        """The configuration in force above the applied height. Ask again after every block, it changes."""
        return self.configurations.newest

    def configuration_at(self, height: Height) -> Configuration:
        """Return the configuration in force at an applied height or the one above."""
        return self.configurations.at(height)

    def has_lost_blocks(self) -> bool:
        """Return whether applied blocks were damaged here and are not fetched again yet (`mend`)."""
        return next(self._rows.scan(*keyspace.prefix_range(keyspace.LOST)), None) is not None

    def is_rebuilt(self) -> bool:
        """Return whether this ledger was rebuilt and its signer has not caught up yet (`node.rejoin`)."""
        return self._rows.get(keyspace.REBUILT) is not None

    def hard_state(self) -> HardState | None:
        """Return the Raft hard state of the present epoch, or None before the first."""
        row = self._rows.get(keyspace.HARD_STATE)
        return self.epochs.hard_state(_decoded(row, HardState) if row is not None else None)

    def applied(self) -> AppliedMark:
        """Return the applied mark."""
        row = self._rows.get(keyspace.APPLIED)
        assert row is not None, "written when the store was made"
        return _decoded(row, AppliedMark)

    def first(self) -> Height:
        """Return the lowest height from which every block up to the tip is held; 0 with the whole history."""
        return self._history.until if self._history is not None else Height(0)

    @property
    def history(self) -> HistoryMark | None:
        """What is missing below an installed snapshot; None when every block is here."""
        return self._history

    def history_height(self) -> Height:
        """Return the height up to which every applied block is here."""
        return self._history.height if self._history is not None else self.applied().height

    def check_history(self, height: Height) -> None:
        """Check that the block at `height` need not be fetched first.

        Raises:
            Unavailable: it lies below an installed snapshot, and is on its way.
        """
        history = self._history
        if history is not None and history.height < height < history.until:
            raise Unavailable(
                f"the history of the ledger is still being fetched from other members: block {history.height} of "
                f"{history.until} is here; retry later, see carechain status"
            )

    def tip_height(self) -> Height:
        """Return the height of the last stored block, applied or not."""
        for key, _ in self._rows.scan(*keyspace.prefix_range(keyspace.BLOCK), reverse=True):
            return Height(int.from_bytes(key[len(keyspace.BLOCK) :], "big"))
        raise Corruption("the ledger holds no block at all; run carechain run --rebuild ledger")

    def block(self, height: Height) -> Block:
        """Return a stored block.

        Raises:
            Corruption: it is missing or does not decode.
            Unavailable: it lies below an installed snapshot and is still being fetched.
        """
        self.check_history(height)
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
        """Return a stored block's header, where the block is damaged that of its own certificate."""
        try:
            return self.block(height).header
        except Corruption:
            certificate = self.certificate(height)
            if certificate is None or certificate.header.height != height:
                raise
            return certificate.header

    def hash(self, height: Height) -> Digest:
        """Return a stored block's hash, where the block is damaged that of its own certificate's header."""
        try:
            return self.block(height).hash
        except Corruption:
            return header_hash(self.header(height))

    def blocks(self, first: Height, last: Height) -> Iterator[Block]:
        """Yield stored blocks first..last, both included."""
        for height in range(first, last + 1):
            yield self.block(Height(height))

    def certificate_at_or_above(self, height: Height) -> Certificate | None:
        """Return the certificate of the lowest certified block at or above `height`."""
        for _, row in self._rows.scan(
            _height_key(keyspace.CERTIFICATE, height), keyspace.prefix_range(keyspace.CERTIFICATE)[1]
        ):
            return _decoded(row, Certificate)
        return None

    def certificate(self, height: Height) -> Certificate | None:
        """Return the certificate of the highest certified block at or below `height`."""
        stop = _height_key(keyspace.CERTIFICATE, height + 1)
        for _, row in self._rows.scan(keyspace.CERTIFICATE, stop, reverse=True):
            return _decoded(row, Certificate)
        return None

    def forks(self) -> tuple[CertifiedFork, ...]:
        """Return the forks that were met, the lowest first."""
        rows = self._rows.scan(*keyspace.prefix_range(keyspace.FORK))
        return tuple(_decoded(row, CertifiedFork) for _, row in rows)

    def state(self, key: bytes) -> bytes | None:
        """Return a row of ledger state (what `ledger_state.apply` reads)."""
        return self._rows.get(self._state + key)

    @property
    def state_prefix(self) -> bytes:
        """What the keys of all rows of the state in use begin with."""
        return self._state

    def state_rows(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows of ledger state that begin with a prefix, in key order, from a view taken at the first step."""
        for key, value in self._rows.scan(*keyspace.prefix_range(self._state + prefix)):
            yield key[len(self._state) :], value

    def vault(self, vid: Vid) -> Vault | None:
        """Return a vault's state."""
        row = self.state(ledger_rows.vault_key(vid))
        return _decoded(row, Vault) if row is not None else None

    def record(self, rid: Rid) -> Record | None:
        """Return a record's state."""
        row = self.state(ledger_rows.record_key(rid))
        return _decoded(row, Record) if row is not None else None

    def erasure(self, rid: Rid) -> Erasure | None:
        """Return the tombstone of a record, or None while it stands."""
        row = self.state(ledger_rows.erasure_key(rid))
        return _decoded(row, Erasure) if row is not None else None

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
        prefix = self._state + ledger_rows.vault_record_key(vid, Rid(b""))
        return tuple(Rid(key[len(prefix) :]) for key, _ in self._rows.scan(prefix, prefix + _ABOVE))

    def events_of(self, vid: Vid) -> tuple[Txid, ...]:
        """Return the accepted transactions of a vault, in ledger order."""
        prefix = self._state + ledger_rows.event_key(vid, 0)[:-8]
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

    def put_unused_state(self, batch: Batch, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Add rows of a state that is not in use yet."""
        for key, value in rows:
            batch.put(self._unused + key, value)

    def put_unused_removal(self, batch: Batch, start: bytes, count: int) -> bytes | None:
        """Add the removal of up to `count` rows of the state that is not in use, from `start` (b"": the first) on.

        Returns where to go on, None at the end: a scan from the first would pass all that was removed before, each time.
        """
        rows = self._rows.scan(start or self._unused, keyspace.prefix_range(self._unused)[1])
        last = None
        for last, _ in islice(rows, count):
            batch.delete(last)
        return last + b"\0" if last is not None else None

    def put_installed(self, batch: Batch, block: Block, certificate: Certificate, frontier: Frontier) -> None:
        """Add that the state put aside is that after `block`, and in use from now on; afterwards `refresh`.

        Of the blocks that were stored and not applied, those that continue `block` stay. The certificate may be for a
        descendant, to which the snapshot's headers lead.
        """
        mark, tip = self.applied(), self.tip_height()
        assert block.height > mark.height, "a snapshot only brings a member further"
        gap = self._history or HistoryMark(mark.height, mark.hash, mark.tree_size, mark.peaks, block.height)
        gap = replace(gap, until=block.height)
        self._put_left(batch, block)
        kept = self._linked(block, tip)
        for height in range(mark.height + 1, tip + 1):
            if not block.height <= height <= kept:
                batch.delete(_height_key(keyspace.BLOCK, height))
        self.put_blocks(batch, (block,))
        batch.put(keyspace.STATE_IN_USE, self._unused)
        batch.put(keyspace.HISTORY, codec.encode(gap))
        installed = AppliedMark(block.height, block.hash, block.header.time_ms, frontier.size, frontier.peaks)
        self._put_mark(batch, installed, certificate)

    def put_history(self, batch: Batch, blocks: Iterable[Block], mark: HistoryMark | None) -> None:
        """Add blocks below an installed snapshot and the new mark, None when that is all; afterwards `refresh`."""
        self.put_blocks(batch, blocks)
        if mark is None:
            batch.delete(keyspace.HISTORY)
        else:
            batch.put(keyspace.HISTORY, codec.encode(mark))

    def put_unlinked_removal(self, batch: Batch, block: Block) -> None:
        """Add the removal of stored blocks above `block` that do not continue it."""
        tip = self.tip_height()
        self._put_left(batch, block)
        for height in range(self._linked(block, tip) + 1, tip + 1):
            batch.delete(_height_key(keyspace.BLOCK, height))

    def _put_left(self, batch: Batch, block: Block) -> None:
        """Add that a stored tail makes way for a certified block on another branch: no promise about it was lost by damage."""
        if block.height > self.tip_height() or self.hash(block.height) == block.hash:
            return
        hard_state = self.hard_state()
        if hard_state is not None:
            self.put_hard_state(batch, hard_state.leaving(block.height))

    def _linked(self, block: Block, tip: Height) -> Height:
        """Return the height up to which the blocks stored above `block` continue it, one by one."""
        while block.height < tip:
            row = self._rows.get(_height_key(keyspace.BLOCK, block.height + 1))
            above = _decoded_block(row) if row is not None else None
            if above is None or above.header.prev_hash != block.hash:
                break
            block = above
        return block.height

    @property
    def _unused(self) -> bytes:
        return keyspace.STATE_OTHER if self._state == keyspace.STATE else keyspace.STATE

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

    def put_applied(
        self, batch: Batch, writes: dict[bytes, bytes | None], mark: AppliedMark, proof: Certificate | None
    ) -> None:
        """Add rows, the mark that explains them and the certificate, which only a block that begins an epoch lacks."""
        for key, value in writes.items():
            if value is None:
                batch.delete(self._state + key)
            else:
                batch.put(self._state + key, value)
        self._put_mark(batch, mark, proof)

    @staticmethod
    def put_certificate(batch: Batch, certificate: Certificate) -> None:
        """Add the certificate of a block that is stored."""
        batch.put(_height_key(keyspace.CERTIFICATE, certificate.header.height), codec.encode(certificate))

    @staticmethod
    def put_fork(batch: Batch, fork: CertifiedFork) -> None:
        """Add two certified stories, which the caller has checked."""
        batch.put(_height_key(keyspace.FORK, fork.height), codec.encode(fork))

    def _put_mark(self, batch: Batch, mark: AppliedMark, certificate: Certificate | None) -> None:
        batch.put(keyspace.APPLIED, codec.encode(mark))
        if certificate is not None:
            self.put_certificate(batch, certificate)
