"""A node's disk in tier A: what a crash leaves of it, without the cost of keys and bytes.

As the ledger database it is one log file: a synchronised write makes everything before it durable; of what was applied
since, a crash leaves an arbitrary prefix; the write under way when the power fails is there whole or not at all.
"""

from bisect import bisect_right, insort
from dataclasses import dataclass
from random import Random

from protocol.block import Block, Header
from protocol.finality import Certificate
from protocol.identifiers import Digest, Height
from protocol.merkle import Frontier
from protocol.raft.state import HardState, Ready


@dataclass(frozen=True, slots=True)
class _Applied:
    """One batch of the applier, and what it replaced."""

    height: Height
    frontier: Frontier
    certificate_height: Height | None
    replaced: dict[bytes, bytes | None]


class CoreDisk:
    """Hard state, blocks, certificates, rows and applied mark of one node; the `LogReader` of its Raft log."""

    def __init__(self, genesis: Block) -> None:
        self.hard_state: HardState | None = None
        self.blocks: list[Block] = [genesis]
        self.rows: dict[bytes, bytes] = {}
        self.applied = Height(0)
        self.lowest = Height(0)
        """Below it no block counts as held, but for genesis. In truth all are kept: history can come back at once."""
        self.frontier = Frontier()
        """The tree after the applied block."""
        self.certificates: dict[Height, Certificate] = {}
        self._certificate_heights: list[Height] = []
        self._unsynced: list[_Applied] = []  # each with the mark before it

    def copy_certified(self, source: "CoreDisk") -> None:
        """Begin as a joiner does: with the chain that another member has applied (ledger.md 7.3)."""
        self.blocks = source.blocks[: source.applied + 1]
        self.rows = dict(source.rows)
        self.applied, self.frontier = source.applied, source.frontier
        self.certificates = dict(source.certificates)
        self._certificate_heights = sorted(self.certificates)
        self._unsynced.clear()
        self.lowest = Height(0)

    def install(self, source: "CoreDisk") -> None:
        """Go on from what another member has applied, with the own blocks above if they follow it, and no history."""
        above, hash_here = self.blocks[source.applied + 1 :], self.hash_at(source.applied)
        kept = [one for at, one in self.certificates.items() if at > source.applied]
        self.copy_certified(source)
        if above and above[0].header.prev_hash == self.blocks[-1].hash:
            self.blocks += above
        else:
            kept = []
        if self.hard_state is not None and hash_here not in (None, self.blocks[source.applied].hash):
            self.hard_state = self.hard_state.leaving(source.applied)
        self.certificates = {self.applied: self.certificates[self.applied]}
        self._certificate_heights = [self.applied]
        for certificate in kept:
            self._put_certificate(certificate)
        self.lowest = self.applied

    def drop_history(self) -> None:
        """Hold nothing any more below what a crash leaves applied."""
        self.lowest = self._unsynced[0].height if self._unsynced else self.applied

    # --- LogReader ------------------------------------------------------------------------------------------------

    def first(self) -> Height:
        """Return the lowest height from which every block is held."""
        return self.lowest

    def header(self, height: Height) -> Header:
        """Return the header of the block at `height`."""
        return self.block(height).header

    def hash(self, height: Height) -> Digest:
        """Return the hash of the block at `height`."""
        return self.block(height).hash

    def block(self, height: Height) -> Block:
        """Return the block at `height`."""
        assert height >= self.lowest or height == 0, "a core asked for a block that is not held"
        return self.blocks[height]

    def certificate(self, height: Height) -> Certificate | None:
        """Return the stored certificate with the greatest height at or below `height`."""
        at = bisect_right(self._certificate_heights, height)
        return self.certificates[self._certificate_heights[at - 1]] if at else None

    def hash_at(self, height: Height) -> Digest | None:
        """Return the hash of the block at `height`, if it is here."""
        return self.blocks[height].hash if height < len(self.blocks) else None

    # --- writes ---------------------------------------------------------------------------------------------------

    def persist(self, ready: Ready) -> None:
        """Write what a Ready must have durable, in one synchronised batch."""
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.truncate_from is not None:
            assert ready.truncate_from > self.applied, "an applied block would be truncated"
            del self.blocks[ready.truncate_from :]
        for block in ready.append:
            assert block.height == len(self.blocks), "blocks are written without a gap"
            self.blocks.append(block)
        for certificate in ready.keep:
            self._put_certificate(certificate)
        self._unsynced.clear()

    def apply(
        self,
        height: Height,
        frontier: Frontier,
        writes: dict[bytes, bytes | None],
        certificate: Certificate | None,
    ) -> None:
        """Write rows, applied mark and the certificate of the last block in one batch that is not synchronised."""
        rows = self.rows
        is_new = certificate is not None and certificate.height not in self.certificates
        certificate_height = certificate.height if certificate is not None and is_new else None
        replaced = {key: rows.get(key) for key in writes}
        self._unsynced.append(_Applied(self.applied, self.frontier, certificate_height, replaced))
        _put(rows, writes)
        self.applied, self.frontier = height, frontier
        if certificate is not None:
            self._put_certificate(certificate)

    def _put_certificate(self, certificate: Certificate) -> None:
        if certificate.height not in self.certificates:
            insort(self._certificate_heights, certificate.height)
        self.certificates[certificate.height] = certificate

    def crash(self, writing: Ready | None, rng: Random) -> bool:
        """Decide what a loss of power left; return whether `writing`, which was being written, is there."""
        if writing is not None and rng.random() < 0.5:
            self.persist(writing)
            return True
        for _ in range(rng.randint(0, len(self._unsynced))):
            lost = self._unsynced.pop()
            _put(self.rows, lost.replaced)
            self.applied, self.frontier = lost.height, lost.frontier
            if lost.certificate_height is not None:
                del self.certificates[lost.certificate_height]
                self._certificate_heights.remove(lost.certificate_height)
        self._unsynced.clear()
        return False


def _put(rows: dict[bytes, bytes], writes: dict[bytes, bytes | None]) -> None:
    for key, value in writes.items():
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value
