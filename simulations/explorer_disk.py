"""The disk of a node of the explorer, and how an invariant is demanded."""

from protocol.block import Block, Header
from protocol.finality import Certificate
from protocol.identifiers import Digest, Height
from protocol.merkle import Frontier
from protocol.raft.log import Log
from protocol.raft.state import HardState, Ready


class Broken(Exception):
    """An invariant does not hold."""


def demand(holds: bool, sentence: str) -> None:
    """Check an invariant.

    Raises:
        Broken: it does not hold; `sentence` says what happened instead.
    """
    if not holds:
        raise Broken(sentence)


class Disk:
    """What a node has durably, and the reader of its log. A write is done at once or, in a crash, never began."""

    def __init__(self, genesis: Block) -> None:
        self.hard_state = HardState.initial()
        self.blocks: dict[int, Block] = {0: genesis}
        self.certificates: dict[int, Certificate] = {}
        self.applied = Height(0)
        self.applied_at_start = Height(0)

    def first(self) -> Height:
        """Return 0: here nobody is installed from a snapshot, all hold the whole chain."""
        return Height(0)

    def header(self, height: Height) -> Header:
        """Return the header of the block at `height`."""
        return self.blocks[height].header

    def hash(self, height: Height) -> Digest:
        """Return the header hash of the block at `height`."""
        return self.blocks[height].hash

    def block(self, height: Height) -> Block:
        """Return the block at `height`."""
        return self.blocks[height]

    def certificate(self, height: Height) -> Certificate | None:
        """Return the stored certificate with the greatest height at or below `height`."""
        below = [at for at in self.certificates if at <= height]
        return self.certificates[max(below)] if below else None

    @property
    def tip(self) -> Block:
        """The last durable block."""
        return self.blocks[max(self.blocks)]

    def log(self) -> Log:
        """Return the log that a node starts with."""
        frontier = Frontier()
        for height in range(1, self.applied + 1):
            frontier = frontier.append(self.blocks[height].leaves())
        tail = [self.blocks[height] for height in range(self.applied + 1, max(self.blocks) + 1)]
        return Log(self, self.applied, frontier, tail)

    def write(self, ready: Ready) -> None:
        """Make durable what a Ready asks for, in one batch."""
        if ready.hard_state is not None:
            before, after = self.hard_state, ready.hard_state
            demand(after.term >= before.term, "durable state: a term fell")
            same = after.term != before.term or before.vote in (bytes(32), after.vote)
            demand(same, "durable state: a vote was changed within its term")
            self.hard_state = after
        if ready.truncate_from is not None:
            demand(ready.truncate_from > self.applied, "durable state: an applied block was truncated")
            for height in [at for at in self.blocks if at >= ready.truncate_from]:
                del self.blocks[height]
        for block in ready.append:
            demand(block.header.prev_hash == self.tip.hash, "durable state: a gap or a fork was written")
            self.blocks[block.height] = block

    def apply(self, ready: Ready) -> None:
        """Take the certified blocks of a Ready."""
        for block in ready.certified:
            stored = self.blocks.get(block.height)
            demand(
                block.height == self.applied + 1 and stored == block,
                "a block was handed on out of order or before it was durable",
            )
            self.applied = block.height
        if ready.certificate is not None:
            self.certificates[ready.certificate.height] = ready.certificate

    def forget_applied(self) -> None:
        """Go back to what had been applied when this life began: the applier is always some blocks behind."""
        self.applied = self.applied_at_start
        self.certificates = {at: one for at, one in self.certificates.items() if at <= self.applied}
