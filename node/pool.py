"""The leader's pool: checked transactions that wait for a block, each once.

A transaction leaves the pool when a block is cut; it is remembered as *in flight* until that block is applied, and for a
while after, so that a client's late retry does not put it into a second block, where the ledger would only refuse it. Who submitted it retries until it is final:
nothing here needs to survive a crash or a change of leader.
"""

from collections import OrderedDict
from dataclasses import dataclass

from protocol import limits
from protocol.block import Entries
from protocol.errors import Unavailable
from protocol.identifiers import Height, Term, Txid
from protocol.signing import sha256
from protocol.transaction import SignedTransaction


@dataclass(frozen=True, slots=True)
class Place:
    """Where a transaction that waits stands at the latest: in a block of `term` above `since`, and no higher than `height`."""

    term: Term
    since: Height
    height: Height


class Pool:
    """Transactions by id, first come first served, bounded in number and bytes."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Txid, tuple[bytes, SignedTransaction]] = OrderedDict()
        self._bytes = 0
        self._in_flight: dict[Height, tuple[tuple[Txid, bytes], ...]] = {}
        self._in_flight_ids: set[Txid] = set()
        # By their bytes, not by id: the same body under a stranger's signature must not keep the real one out.
        self._recent: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, txid: Txid, raw: bytes, signed: SignedTransaction) -> None:
        """Add a checked transaction as bytes and as parsed; one that was here already changes nothing.

        Raises:
            Unavailable: the pool is full (back-pressure: the client retries).
        """
        if txid in self._waiting or txid in self._in_flight_ids or sha256(raw) in self._recent:
            return
        if (
            len(self._waiting) >= limits.POOL_TRANSACTIONS_MAX
            or self._bytes + len(raw) > limits.POOL_BYTES_MAX
        ):
            raise Unavailable("the pool of transactions is full; retry in a moment")
        self._waiting[txid] = raw, signed
        self._bytes += len(raw)

    def blocks_until(self, txid: Txid, at_most: int) -> int | None:
        """Return the number of the block, 1 for the next, that a waiting transaction goes into; None beyond `at_most`."""
        if txid not in self._waiting:
            return None
        number, count, total = 1, 0, 0
        for waiting, (raw, _) in self._waiting.items():
            if count and (
                count == limits.BLOCK_TRANSACTIONS_MAX or total + len(raw) > limits.BLOCK_BYTES_MAX
            ):
                number, count, total = number + 1, 0, 0
            if waiting == txid or number > at_most:
                break
            count, total = count + 1, total + len(raw)
        return number if number <= at_most else None

    def take(self) -> tuple[Entries, tuple[bytes, ...]]:
        """Remove and return the transactions of the next block (BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX), parsed and as bytes."""
        entries: list[tuple[SignedTransaction, Txid]] = []
        transactions: list[bytes] = []
        total = 0
        while self._waiting and len(entries) < limits.BLOCK_TRANSACTIONS_MAX:
            txid, (raw, signed) = next(iter(self._waiting.items()))
            if entries and total + len(raw) > limits.BLOCK_BYTES_MAX:
                break
            del self._waiting[txid]
            self._bytes -= len(raw)
            total += len(raw)
            entries.append((signed, txid))
            transactions.append(raw)
        return tuple(entries), tuple(transactions)

    def ordered(self, height: Height, entries: Entries, transactions: tuple[bytes, ...]) -> None:
        """Remember that a block at `height` carries these."""
        txids = [txid for _, txid in entries]
        self._in_flight[height] = tuple(zip(txids, transactions, strict=True))
        self._in_flight_ids.update(txids)

    def applied(self, height: Height) -> None:
        """Let go of what blocks up to `height` carried: the ledger itself now refuses a second copy."""
        if not self._in_flight:
            return  # nearly always, where nobody leads, and this is asked at every turn
        for done in [known for known in self._in_flight if known <= height]:
            carried = self._in_flight.pop(done)
            self._in_flight_ids.difference_update([txid for txid, _ in carried])
            self._recent.update(dict.fromkeys([sha256(raw) for _, raw in carried]))
        while len(self._recent) > limits.POOL_TRANSACTIONS_MAX:
            self._recent.popitem(last=False)

    def clear(self) -> None:
        """Forget everything: leadership was lost, and the members that received the transactions submit them again."""
        self._waiting.clear()
        self._in_flight.clear()
        self._in_flight_ids.clear()
        self._recent.clear()
        self._bytes = 0
