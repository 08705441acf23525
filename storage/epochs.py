"""What an epoch begins with, and the promise to sign no more in one (ledger.md 7.4). An epoch begins when its first block is applied."""

from collections.abc import Callable
from dataclasses import replace

from protocol import codec
from protocol.block import Header, header_hash
from protocol.identifiers import Digest, Height
from protocol.raft.state import HardState
from storage import keyspace
from storage.key_value import Batch, KeyValue
from storage.marks import AppliedMark


class Epochs:
    """Reads and writes what depends on the epoch of the last applied block."""

    def __init__(
        self, rows: KeyValue, applied: Callable[[], AppliedMark], header: Callable[[Height], Header]
    ) -> None:
        """`applied` returns what was applied last, `header` the header of a stored block."""
        self._rows = rows
        self._mark = applied
        self._header = header
        self._newest: tuple[Digest, Header] | None = None

    @property
    def current(self) -> int:
        """How often the network has gone on after the loss of a majority."""
        return self._applied().epoch

    def is_frozen(self) -> bool:
        """Return whether this member has promised to sign nothing more in the present epoch."""
        row = self._rows.get(keyspace.FROZEN)
        return row is not None and codec.unpack(row)[0] == self.current

    def may_have_left(self) -> bool:
        """Return whether somebody may hold this member's freeze statement of the present epoch."""
        row = self._rows.get(keyspace.FROZEN)
        return row is not None and codec.unpack(row) == (self.current, 1)

    def put_frozen(self, batch: Batch, *, has_left: bool) -> None:
        """Add the promise to a batch. `has_left`: the freeze statement is about to be shown to somebody."""
        batch.put(keyspace.FROZEN, codec.pack(self.current, int(has_left)))

    def put_thawed(self, batch: Batch) -> None:
        """Add to a batch that the promise is taken back."""
        batch.delete(keyspace.FROZEN)

    def _applied(self) -> Header:
        """Return the header of the last applied block: asked for several times a second, and a block may be large."""
        mark = self._mark()
        if self._newest is None or self._newest[0] != mark.hash:
            self._newest = mark.hash, self._header(mark.height)
        return self._newest[1]

    def hard_state(self, stored: HardState | None) -> HardState | None:
        """Return the hard state that counts in the present epoch: of an older one no term, vote or marker does.

        It follows from the applied block alone, so that the batch which applies a recovery switches everything at once.
        """
        header = self._applied()
        if header.epoch == 0 or (stored is not None and stored.epoch >= header.epoch):
            return stored
        incarnation = stored.incarnation if stored is not None else 0
        begun = HardState.initial(epoch=header.epoch, incarnation=incarnation)
        return replace(
            begun,
            term=header.term,
            certificate_height=header.height,
            certificate_hash=header_hash(header),
        )
