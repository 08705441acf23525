"""The signatures gathered for one log's newest checkpoints, whoever brought them."""

from collections.abc import Collection, Iterable

from protocol.checkpoint import Checkpoint, KeyKind, NoteKey, Signature, SignedCheckpoint


class CheckpointBook:
    """What is known of each size; of how many, `trim` says."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._entries: dict[int, tuple[Checkpoint, dict[NoteKey, Signature]]] = {}

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of which something is known, ascending."""
        return tuple(sorted(self._entries))

    def add(self, checkpoint: Checkpoint, signatures: dict[NoteKey, Signature]) -> bool:
        """Take signatures that were verified; return whether there is something new among them.

        The first signature of a key stays, but of a witness the newest. `checkpoint` is the log's own: never two of one size.
        """
        known, held = self._entries.get(checkpoint.size, (checkpoint, {}))
        assert known == checkpoint, "checked against the ledger before"
        fresh = {
            key: signature
            for key, signature in signatures.items()
            if key not in held or (key.kind is KeyKind.COSIGNER and signature.time_s > held[key].time_s)
        }
        if fresh:
            self._entries[checkpoint.size] = checkpoint, held | fresh
        return bool(fresh)

    def holds(self, signature: Signature, checkpoint: Checkpoint) -> bool:
        """Return whether a signature is known already, and so need not be verified again."""
        known, held = self._entries.get(checkpoint.size, (None, {}))
        return known == checkpoint and signature in held.values()

    def checkpoint(self, size: int) -> Checkpoint | None:
        """Return the checkpoint of a size, as it was compared with the ledger when it was taken in."""
        return self._entries[size][0] if size in self._entries else None

    def note(self, size: int) -> SignedCheckpoint | None:
        """Return all that is known of a size, in one order whoever gathered it."""
        entry = self._entries.get(size)
        if entry is None:
            return None
        keys = sorted(entry[1], key=lambda key: (key.kind, key.name, key.public))
        return SignedCheckpoint(entry[0], tuple(entry[1][key] for key in keys))

    def signed(self, size: int) -> frozenset[NoteKey]:
        """Return who has signed a size."""
        return frozenset(self._entries[size][1]) if size in self._entries else frozenset()

    def newest(self, keys: Collection[NoteKey], count: int) -> int:
        """Return the largest size that at least `count` of `keys` have signed; 0 when there is none."""
        members = frozenset(keys)
        return max((size for size in self._entries if len(self.signed(size) & members) >= count), default=0)

    def trim(self, complete: Iterable[int], mine: NoteKey) -> tuple[int, ...]:
        """Forget all but the newest sizes, the newest that `mine` has signed, and those in `complete`; return the sizes forgotten.

        Whoever signs many sizes cannot push out those that the others are about to sign as well.
        """
        own = [size for size in self.sizes if mine in self._entries[size][1]]
        kept = {*self.sizes[-self._kept :], *own[-self._kept :], *complete}
        gone = tuple(size for size in self._entries if size not in kept)
        for size in gone:
            del self._entries[size]
        return gone
