"""How far a ledger has come: what is applied, and which blocks below an installed snapshot are missing."""

from dataclasses import dataclass
from typing import Annotated

from protocol.codec import Size, wire
from protocol.identifiers import Digest, Height
from protocol.merkle import Frontier


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


@wire("history-mark")
@dataclass(frozen=True, slots=True)
class HistoryMark:
    """Which blocks are here after a snapshot was installed: those up to `height`, and those from `until` on.

    `hash` and the tree are those of the block at `height`, from which the blocks between are filled in, upwards.
    """

    height: Height
    hash: Annotated[Digest, Size(32)]
    tree_size: int
    peaks: tuple[Annotated[Digest, Size(32)], ...]
    until: Height

    @property
    def frontier(self) -> Frontier:
        """The Merkle frontier after the block at `height`."""
        return Frontier(self.tree_size, self.peaks)
