"""Submitting transactions and waiting for their receipts: exactly once by transaction id, over leader changes.

A transaction is handed to the leader and watched for in our own applied blocks: the receipt is what *we* applied, not
what somebody told us. Whatever is not seen in time is handed over again; the ledger refuses a second copy.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from node.ports import Clock, PeerTransport
from protocol import codec, limits
from protocol.errors import NotFinal, RemoteFault, Unavailable
from protocol.identifiers import NetworkId, NodeId, Txid
from protocol.ledger_rows import Receipt
from protocol.transaction import SignedTransaction, txid_of
from storage.ledger_store import LedgerStore

CHANNEL = "submit"
AGAIN = b"again"
"""Answer of a member that does not lead, or has more to do than it can: nothing is wrong with what was sent."""
VALID_MS = 3_600_000
_RESUBMIT_MS = 1_500
"""Longer than a normal commit, shorter than an election: a retry then finds the new leader."""
_FORWARD_BATCH_MAX = 256
_LEADER_POLL_MS = 50


class _Waiter:
    """One task waiting for one receipt."""

    __slots__ = ("event", "receipt")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.receipt: Receipt | None = None


class Receipts:
    """One-shot values: who waits for which transaction's receipt. Bounded by the tasks that wait."""

    def __init__(self) -> None:
        self._waiting: dict[Txid, list[_Waiter]] = {}

    def resolve(self, receipts: Iterable[Receipt]) -> None:
        """Hand out receipts of applied transactions. Called by the applier alone."""
        for receipt in receipts:
            for waiter in self._waiting.pop(receipt.txid, ()):
                waiter.receipt = receipt
                waiter.event.set()

    async def wait(self, txid: Txid) -> Receipt:
        """Wait for a transaction to be applied here."""
        waiter = _Waiter()
        self._waiting.setdefault(txid, []).append(waiter)
        try:
            await waiter.event.wait()
        finally:
            others = [other for other in self._waiting.get(txid, ()) if other is not waiter]
            if others:
                self._waiting[txid] = others
            else:
                self._waiting.pop(txid, None)
        assert waiter.receipt is not None, "resolve sets it before the event"
        return waiter.receipt


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
    ) -> None:
        self.ledger = ledger
        self._store = store
        self._receipts = receipts
        self._transport = transport
        self._clock = clock
        self._leader = leader
        self._propose = propose
        self._outbox, self._forwarding = trio.open_memory_channel[bytes](limits.CONSENSUS_INPUTS_MAX)

    def valid_until(self, ms: int = VALID_MS) -> int:
        """Return a `valid_until_ms` for a transaction made now."""
        return self._clock.now_ms() + ms

    async def submit(self, signed: SignedTransaction, *, timeout_ms: int = 8_000) -> Receipt:
        """Return the receipt once the transaction is final: accepted, or refused with the reason.

        Raises:
            NotFinal: not final in time. It may still become so until its valid_until; submitting it again is harmless.
        """
        txid, raw = txid_of(signed.transaction, self.ledger), codec.encode(signed)
        receipt: Receipt | None = self._store.receipt(txid)
        with trio.move_on_after(timeout_ms / 1000):
            while receipt is None:
                await self._outbox.send(raw)
                with trio.move_on_after(_RESUBMIT_MS / 1000):
                    receipt = await self._receipts.wait(txid)
                # Between the look into the store and the wait, the applier may have passed it.
                receipt = receipt or self._store.receipt(txid)
        if receipt is None:
            raise NotFinal(
                "no quorum confirmed it in time; it is queued and becomes final by itself later",
                (txid.hex(),),
            )
        return receipt

    async def submit_all(
        self, signed: Sequence[SignedTransaction], *, timeout_ms: int = 8_000
    ) -> tuple[Receipt, ...]:
        """Submit several transactions at once; return their receipts in order. Raises NotFinal if any is not final."""
        receipts: dict[int, Receipt] = {}
        missing: list[str] = []

        async def one(index: int) -> None:
            try:
                receipts[index] = await self.submit(signed[index], timeout_ms=timeout_ms)
            except NotFinal as error:
                missing.extend(error.ids)

        async with trio.open_nursery() as nursery:
            for index in range(len(signed)):
                nursery.start_soon(one, index)
        if missing:
            raise NotFinal(
                f"{len(missing)} transactions are not final yet; they become final by themselves",
                tuple(sorted(missing)),
            )
        return tuple(receipts[index] for index in range(len(signed)))

    async def run(self) -> None:
        """Forward what was submitted to whoever leads, in batches, until cancelled."""
        async for raw in self._forwarding:
            batch = [raw]
            total = len(raw)
            while len(batch) < _FORWARD_BATCH_MAX and total < limits.BLOCK_BYTES_MAX:
                try:
                    batch.append(self._forwarding.receive_nowait())
                except trio.WouldBlock:
                    break
                total += len(batch[-1])
            await self._forward(tuple(batch))

    async def _forward(self, batch: tuple[bytes, ...]) -> None:
        with trio.move_on_after(_RESUBMIT_MS / 1000):
            while True:
                leader = self._leader()
                try:
                    if leader == self._transport.me:
                        await self._propose(batch)
                        return
                    if leader is not None:
                        answer = await self._transport.call(
                            leader, CHANNEL, codec.pack(*batch), timeout_ms=_RESUBMIT_MS
                        )
                        if answer != AGAIN:
                            return
                except Unavailable:
                    pass  # the leader changed or is away: look again until the submitter's own retry takes over
                except RemoteFault:
                    return  # bytes that do not hold were among it; whoever submitted them learns by time-out
                await self._clock.sleep_ms(_LEADER_POLL_MS)
