"""`audit update`: what another network's light clients of us need to come from a height they know to our newest."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from protocol import codec
from protocol.change_proof import Change, without_unsigned
from protocol.checkpoint import SignedCheckpoint
from protocol.errors import Refused, Unavailable
from protocol.finality import Certificate
from protocol.identifiers import ZERO, Digest, Height
from protocol.light_client import Update
from protocol.merkle import Head
from storage.ledger_store import LedgerStore

_LOOK_BACK = 64
"""Certified blocks of which one has the tree of a checkpoint: more than are made in the second between two checkpoints."""


class UpdateProofs:
    """Makes updates from what the ledger store holds."""

    def __init__(
        self,
        store: LedgerStore,
        *,
        certificate_at_or_below: Callable[[Height], Certificate | None],
        changes: Callable[[Height, Height], tuple[Change, ...]],
        consistency_proof: Callable[[int, Head], tuple[Digest, ...]],
        notes: Callable[[], Iterable[SignedCheckpoint | None]],
    ) -> None:
        """`changes` are those above one height and below another; `notes` the checkpoints to choose from, the best first."""
        self._store = store
        self._certificate_at_or_below = certificate_at_or_below
        self._changes = changes
        self._consistency_proof = consistency_proof
        self._notes = notes

    def make(self, since: int) -> tuple[Height, bytes]:
        """Return the height of our newest certified header, and the update that leads there from the one at `since`.

        Raises:
            Refused: nothing is newer.
            Unavailable: a block or certificate that it needs is not here.
        """
        certificate, note = self._newest()
        header = certificate.header
        if header.height < since:
            raise Refused(
                f"block {header.height} is our newest certified one; there is nothing above {since} yet"
            )
        known = self._store.header(Height(since))
        head = Head(header.tree_size, header.tree_root)
        update = Update(
            self._changes(Height(since), header.height),
            without_unsigned(certificate),
            self._consistency_proof(known.tree_size, head),
            note,
        )
        return header.height, codec.encode(update)

    def _newest(self) -> tuple[Certificate, bytes]:
        """Return the newest certificate and a note of the tree in its header; of one a little older if that has a note.

        A policy may ask for cosignatures, which come a moment after a block. A header tells the tree before its own block.
        """
        newest = next(self._certified(), None)
        if newest is None:
            raise Unavailable("no block with a certificate is here yet; retry in a moment")
        for note in filter(None, self._notes()):
            for certificate in islice(self._certified(), _LOOK_BACK):
                header, told = certificate.header, note.checkpoint
                if (header.tree_size, header.tree_root) == (told.size, told.root):
                    return certificate, note.encode()
        return newest, b""

    def _certified(self) -> Iterator[Certificate]:
        """Yield certificates downwards, but of no configuration block: those come among the changes."""
        certificate = self._certificate_at_or_below(self._store.applied().height)
        while certificate is not None:
            if certificate.header.next_config_hash == ZERO:
                yield certificate
            certificate = self._certificate_at_or_below(Height(certificate.height - 1))
