"""What one life of a member of tier A holds besides its disk: gone with a crash, as in a process."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.block import Block
from protocol.configuration import Configuration
from protocol.finality import Certificate
from protocol.identifiers import Height, Term, Txid
from protocol.ledger_rows import Receipt
from protocol.raft.machine import Raft
from protocol.raft.state import Ready


@dataclass(frozen=True, slots=True)
class Submission:
    """A transaction on its way to whoever leads."""

    txid: Txid
    raw: bytes


@dataclass(slots=True)
class Life:
    """What one incarnation knows, besides its core."""

    raft: Raft
    commit: Height
    led_term: Term | None = None
    in_force: tuple[Configuration, Block] | None = None
    """What was last checked: the configuration that counts, and the last block stored."""
    writing: Ready | None = None
    pool: dict[Txid, bytes] = field(default_factory=dict)
    to_apply: deque[tuple[tuple[Block, ...], Certificate]] = field(default_factory=deque)
    waiting: dict[Txid, Callable[[Receipt], None]] = field(default_factory=dict)
    reads: dict[int, Callable[[Height | None], None]] = field(default_factory=dict)
    held: deque[Callable[[], None]] = field(default_factory=deque)
    """What happened while the node was paused, in order."""
