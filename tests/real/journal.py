"""What clients asked real daemons and were told, by the machine's monotonic clock, and what one copy would have told.

Two models judge it with the checker of the simulation.

    AccessModel   a patient's vault and one facility that may hold grants in it: whatever it opens, it opens under a
                  grant that lives. A revocation that was reported done is obeyed by everybody from then on.
    OrderModel    the ledger: what was reported final before something else was asked for stands before it.
"""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from simulations.linearizability import UNKNOWN_RETURN, Operation

DONE = "done"
"""The answer to everything that succeeded; what did not succeed has no effect, or is of unknown outcome."""


@dataclass(frozen=True, slots=True)
class GiveGrant:
    """Grant access; `grant` is the client's own name for it."""

    place: str
    grant: int


@dataclass(frozen=True, slots=True)
class EndGrant:
    """Revoke it."""

    place: str
    grant: int


@dataclass(frozen=True, slots=True)
class OpenRecord:
    """Open a record at the facility that was granted access."""

    place: str


@dataclass(frozen=True, slots=True)
class AddRecord:
    """Add a record to a patient of one's own; `number` is the client's own name for it."""

    place: str
    number: int


Wish = GiveGrant | EndGrant | OpenRecord | AddRecord


class AccessModel:
    """Which grants live at one place. Its state is a frozenset of the clients' names of grants."""

    def initial(self) -> frozenset[int]:
        """Return that there are none."""
        return frozenset()

    def part_of(self, asked: Wish) -> str:
        """Return the place: places do not touch each other."""
        return asked.place

    def step(self, state: frozenset[int], asked: Wish, output: str | None) -> frozenset[int] | None:
        """Return the grants after something was done, or None where it could not be done."""
        assert output in (None, DONE), "what failed is no part of the history"
        match asked:
            case GiveGrant():
                return state | {asked.grant}
            case EndGrant():
                return state - {asked.grant} if asked.grant in state else None
            case OpenRecord():
                return state or None
            case AddRecord():
                return state


Position = tuple[int, int]
"""Where a transaction stands on the ledger: block height, and place in the block."""


class OrderModel:
    """The ledger as a row of positions that only grows. Its state is the last position."""

    def initial(self) -> Position:
        """Return the position before every other."""
        return (0, 0)

    def part_of(self, asked: str) -> str:
        """Return the one ledger, whatever transaction is asked about."""
        del asked
        return "ledger"

    def step(self, state: Position, asked: str, output: Position | None) -> Position | None:
        """Return the position of a transaction, which stands after what was reported before."""
        del asked
        return state if output is None else output if output > state else None


@dataclass(eq=False, slots=True)
class Entry:
    """One operation. Left alone, its outcome stays unknown."""

    client: str
    wish: Wish
    call: float
    ret: float = UNKNOWN_RETURN
    transactions: tuple[str, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether the client was told that it succeeded."""
        return self.ret != UNKNOWN_RETURN


@dataclass(slots=True)
class Journal:
    """The operations of all clients, each of which writes from a thread of its own."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """How often each kind of answer came."""
    surprises: list[str] = field(default_factory=list)
    """Answers that no fault explains."""
    _entries: list[Entry] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, client: str, wish: Wish) -> Entry:
        """Note that a client is about to ask for something."""
        with self._lock:
            entry = Entry(client, wish, time.monotonic())
            self._entries.append(entry)
            return entry

    def returned(self, entry: Entry, transactions: tuple[str, ...]) -> None:
        """Note that it succeeded, now, by these transactions."""
        with self._lock:
            entry.transactions = transactions
            entry.ret = time.monotonic()
            self.outcomes[f"{type(entry.wish).__name__}: done"] += 1

    def withdraw(self, entry: Entry, outcome: str) -> None:
        """Take an operation out that certainly changed nothing."""
        with self._lock:
            self._entries.remove(entry)
            self.outcomes[f"{type(entry.wish).__name__}: {outcome}"] += 1

    def count(self, entry: Entry, outcome: str) -> None:
        """Count an answer that leaves an operation open."""
        with self._lock:
            self.outcomes[f"{type(entry.wish).__name__}: {outcome}"] += 1

    def surprise(self, entry: Entry, sentence: str) -> None:
        """Note an answer that no fault explains."""
        with self._lock:
            self.surprises.append(f"{entry.client}: {entry.wish}: {sentence}")

    def entries(self) -> tuple[Entry, ...]:
        """Return everything so far, by call."""
        with self._lock:
            return tuple(self._entries)

    def access(self) -> tuple[Operation[Wish, str], ...]:
        """Return what concerns access, for `AccessModel`."""
        return tuple(
            Operation(entry.client, entry.call, entry.ret, entry.wish, DONE if entry.is_done else None)
            for entry in self.entries()
            if not isinstance(entry.wish, AddRecord)
        )

    def order(self, positions: dict[str, Position]) -> tuple[Operation[str, Position], ...]:
        """Return what was reported final, for `OrderModel`; `positions` are the ledger's, by transaction."""
        return tuple(
            Operation(entry.client, entry.call, entry.ret, transaction, positions[transaction])
            for entry in self.entries()
            if entry.is_done
            for transaction in entry.transactions
            if transaction in positions
        )
