"""Submitting transactions and waiting for their receipts: exactly once by transaction id, over leader changes.

A transaction is handed to the leader and watched for in our own applied blocks: the receipt is what *we* applied, not
what somebody told us. Whatever is not seen in time is handed over again; the ledger refuses a second copy.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Self

import trio

from node.ports import Clock, PeerTransport
from node.queueing import queue
from node.standing import Standing
from protocol import codec, limits
from protocol.errors import NotFinal, RemoteFault, Unavailable
from protocol.identifiers import NetworkId, NodeId, Txid
from protocol.ledger_rows import Receipt
from protocol.transaction import SignedTransaction, encoded
from storage.ledger_store import LedgerStore

CHANNEL = "submit"
AGAIN = b"again"
"""Answer of a member that does not lead, or has more to do than it can: nothing is wrong with what was sent."""
VALID_MS = 3_600_000
_RESUBMIT_MS = 1_500
"""Longer than a normal commit, shorter than an election: a retry then finds the new leader."""
_FORWARD_BATCH_MAX = 256
"""Transactions of one hand-over; what is gathered into one call to the leader is less than twice that."""
_LEADER_POLL_MS = 50


class Waiter:
    """The receipts that one task waits for: those still missing, in the order they were asked for, and those here.

    It is told of those that are applied while it is entered.
    """

    __slots__ = ("_asked", "_waiting", "done", "missing", "receipts")

    def __init__(self, txids: Iterable[Txid], waiting: "dict[Txid, list[Waiter]]") -> None:
        self.missing = dict.fromkeys(txids)
        self.receipts: dict[Txid, Receipt] = {}
        self.done = trio.Event()
        self._asked = tuple(self.missing)
        self._waiting = waiting

    def __enter__(self) -> Self:
        for txid in self._asked:
            self._waiting.setdefault(txid, []).append(self)
        return self

    def __exit__(self, *_exception: object) -> None:
        for txid in self._asked:
            others = [other for other in self._waiting.pop(txid, ()) if other is not self]
            if others:
                self._waiting[txid] = others

    def take(self, receipt: Receipt) -> None:
        """Take a receipt; the last one ends the waiting."""
        if receipt.txid in self.missing:
            del self.missing[receipt.txid]
            self.receipts[receipt.txid] = receipt
        if not self.missing:
            self.done.set()


class Receipts:
    """One-shot values: who waits for which transaction's receipt. Bounded by the tasks that wait."""

    def __init__(self) -> None:
        self._waiting: dict[Txid, list[Waiter]] = {}

    @property
    def is_waited_for(self) -> bool:
        """Whether anybody waits for a transaction to become final."""
        return bool(self._waiting)

    def waited_for(self) -> tuple[Txid, ...]:
        """Return the transactions that somebody waits for."""
        return tuple(self._waiting)

    def resolve(self, receipts: Iterable[Receipt]) -> None:
        """Hand out receipts of applied transactions. Called by the applier alone."""
        for receipt in receipts:
            for waiter in self._waiting.pop(receipt.txid, ()):
                waiter.take(receipt)

    def expect(self, txids: Iterable[Txid]) -> Waiter:
        """Return what collects, while it is entered, the receipts of transactions that are applied here."""
        return Waiter(txids, self._waiting)


class Submitter:
    """Brings signed transactions to the leader and waits until they are final here."""

    def __init__(
        self,
        *,
        ledger: NetworkId,
        store: LedgerStore,
        receipts: Receipts,
        transport: PeerTransport,
        clock: Clock,
        leader: Callable[[], NodeId | None],
        propose: Callable[[tuple[bytes, ...]], Awaitable[None]],
        standing: Standing,
    ) -> None:
        self.ledger = ledger
        self.standing = standing
        self._store = store
        self._receipts = receipts
        self._transport = transport
        self._clock = clock
        self._leader = leader
        self._propose = propose
        self._outbox, self._forwarding = trio.open_memory_channel[tuple[bytes, ...]](
            limits.CONSENSUS_INPUTS_MAX
        )

    def valid_until(self, ms: int = VALID_MS) -> int:
        """Return a `valid_until_ms` for a transaction made now."""
        return self._clock.now_ms() + ms

    async def submit(self, signed: SignedTransaction, *, timeout_ms: int = 8_000) -> Receipt:
        """Return the receipt once the transaction is final: accepted, or refused with the reason.

        Raises:
            NotFinal: not final in time. It may still become so until its valid_until; submitting it again is harmless.
        """
        return (await self.submit_all((signed,), timeout_ms=timeout_ms))[0]

    async def submit_all(
        self, signed: Sequence[SignedTransaction], *, timeout_ms: int = 8_000
    ) -> tuple[Receipt, ...]:
        """Submit several transactions at once; return their receipts in order. Raises NotFinal if any is not final."""
        forms = [encoded(one, self.ledger) for one in signed]
        raw = dict(forms)
        with self._receipts.expect(raw) as waiter:
            # Waiting began before this look into the store: the applier cannot pass between the two.
            for txid in raw:
                receipt = self._store.receipt(txid)
                if receipt is not None:
                    waiter.take(receipt)
            deadline = trio.current_time() + timeout_ms / 1000
            while waiter.missing and (now := trio.current_time()) < deadline:
                left = [raw[txid] for txid in waiter.missing]
                with trio.CancelScope(deadline=min(deadline, now + _RESUBMIT_MS / 1000)) as patience:
                    if not self._is_handed_over(left):
                        patience.deadline = deadline
                        await self._hand_over(left)
                        patience.deadline = min(deadline, trio.current_time() + _RESUBMIT_MS / 1000)
                    await waiter.done.wait()
        if waiter.missing:
            raise NotFinal(
                self._not_final([raw[txid] for txid in waiter.missing]),
                tuple(sorted(txid.hex() for txid in waiter.missing)),
            )
        return tuple([waiter.receipts[txid] for txid, _ in forms])

    def _not_final(self, missing: list[bytes]) -> str:
        known = self.standing.sentence(missing)
        if len(missing) > 1:
            ordered = "all of them are ordered" if known is not None else "not all of them are ordered"
            return (
                f"{len(missing)} transactions are not final yet, {ordered}; they become final by themselves"
            )
        if known is not None:
            return f"it {known}; it becomes final by itself"
        return "no quorum ordered it in time; it is received and becomes final by itself later"

    def waits_for(self, what: str, signed: Iterable[SignedTransaction]) -> str:
        """Return a sentence that says how far transactions have come that are queued; `what` is what they are: "the grant"."""
        forms = [encoded(one, self.ledger) for one in signed]
        known = self.standing.sentence([raw for txid, raw in forms if self._store.receipt(txid) is None])
        if known is not None:
            return f"{what} {known}; it becomes final by itself"
        return f"{what} is not final yet: it is queued and becomes final by itself when enough facilities are reachable"

    def is_ordered(self, signed: SignedTransaction) -> bool:
        """Return whether a transaction that is not final is in an ordered block, as far as is known here."""
        return self.standing.height_of(encoded(signed, self.ledger)[1]) is not None

    def _is_handed_over(self, raw: list[bytes]) -> bool:
        """Hand over what needs no waiting, and return whether that was done: nearly always it is."""
        if len(raw) > _FORWARD_BATCH_MAX:
            return False
        try:
            self._outbox.send_nowait(tuple(raw))
        except trio.WouldBlock:
            return False
        return True

    async def _hand_over(self, raw: list[bytes]) -> None:
        for start in range(0, len(raw), _FORWARD_BATCH_MAX):
            await queue(self._outbox, tuple(raw[start : start + _FORWARD_BATCH_MAX]))

    async def run(self) -> None:
        """Forward what was submitted to whoever leads, in batches, until cancelled."""
        async for first in self._forwarding:
            batch = list(first)
            total = sum(map(len, first))
            while len(batch) < _FORWARD_BATCH_MAX and total < limits.BLOCK_BYTES_MAX:
                try:
                    more = self._forwarding.receive_nowait()
                except trio.WouldBlock:
                    break
                batch += more
                total += sum(map(len, more))
            await self._forward(tuple(batch))

    async def _forward(self, batch: tuple[bytes, ...]) -> None:
        until = trio.current_time() + _RESUBMIT_MS / 1000
        is_taken = await self._is_taken(batch)
        if is_taken:
            return
        # A leader that changes or is away is looked for again until the submitter's own retry takes over.
        with trio.move_on_at(until):
            while not is_taken:
                await self._clock.sleep_ms(_LEADER_POLL_MS)
                is_taken = await self._is_taken(batch)

    async def _is_taken(self, batch: tuple[bytes, ...]) -> bool:
        """Offer a batch to whoever leads; return whether offering the same bytes again would be of no use."""
        leader = self._leader()
        if leader is None:
            return False
        try:
            if leader == self._transport.me:
                await self._propose(batch)
                return True
            answer = await self._transport.call(leader, CHANNEL, codec.pack(*batch), timeout_ms=_RESUBMIT_MS)
        except Unavailable:
            return False
        except RemoteFault:
            return True  # bytes that do not hold were among it; whoever submitted them learns by time-out
        return answer != AGAIN
