"""Blocks that are fetched and checked together: from the highest down, because a block is known by the hash that the next one holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from protocol import block as blocks
from protocol import signing
from protocol.block import Block
from protocol.errors import Invalid
from protocol.identifiers import Digest, Height
from protocol.recovery_block import check_block_consents, earlier_consents_of
from storage.ledger_store import LedgerStore

_WINDOW_BLOCKS = 16


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive heights, and the hash of the block at the last."""

    first: Height
    last: Height
    hash: Digest


def windows(heights: Sequence[Height]) -> list[list[Height]]:
    """Return ascending heights as runs without gaps, each of a bounded length, the highest first."""
    runs: list[list[Height]] = []
    for height in reversed(heights):
        if runs and runs[-1][0] == height + 1 and len(runs[-1]) < _WINDOW_BLOCKS:
            runs[-1].insert(0, height)
        else:
            runs.append([height])
    return runs


def check_window(fetched: Sequence[Block], window: Window, store: LedgerStore) -> None:
    """Check that as many blocks as a window has are those of it, down from its hash. A header hash covers neither signature nor consents.

    Raises:
        RemoteFault: one is not.
    """
    known, height = window.hash, window.last
    for block in reversed(fetched):
        header = block.header
        if (block.height, block.hash) != (height, known):
            raise Invalid(f"the block sent for height {height} is not the chain's")
        if block.is_recovery:
            earlier = store.configurations.before_that_at(height) if earlier_consents_of(block) else None
            check_block_consents(block, store.configuration_at(height), earlier)
        elif not signing.verify(header.leader, blocks.header_form(header), block.signature):
            raise Invalid(f"the leader's signature of block {height} does not verify")
        blocks.check_body(block)
        known, height = Digest(header.prev_hash), Height(height - 1)
