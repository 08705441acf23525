"""The author's side of storing a record: chunks to their replicas, the envelope to every storing member.

    push the chunks ──► w storage receipts for each ──► offer the envelope ──► q_n envelope receipts

The author's own chunks are durable before anything is pushed. As soon as enough members gave their word, the rest is
left to the background (`node/repair.py`): one member that is away delays nobody.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from node.chunk_holder import ChunkHolder
from node.ports import Clock, PeerTransport, Workers
from protocol import chunk_exchange as exchange
from protocol import codec
from protocol.envelope import envelope_hash
from protocol.errors import CarechainError, Corruption, Invalid, RemoteFault, Unavailable
from protocol.identifiers import Cid, NetworkId, NodeId
from protocol.signing import verify
from protocol.transaction import EnvelopeReceipt, receipt_form
from storage.chunk_store import ChunkStore
from storage.ledger_store import LedgerStore

T = TypeVar("T")

_CALL_MS = 20_000
_MESSAGES_IN_FLIGHT = 2
_ROUNDS_MAX = 3
"""Push, confirm: a holder that still lacks chunks after this many rounds is broken or full."""
_BEHIND_RETRIES = 20
_BEHIND_MS = 100


class Tally:
    """How many messages of chunks the members have taken of one record: who waits for it sees whether it moves."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Replication:
    """Brings chunks and envelopes to the members that store them, and their receipts back."""

    def __init__(
        self,
        *,
        network: NetworkId,
        ledger: LedgerStore,
        chunks: ChunkStore,
        holder: ChunkHolder,
        transport: PeerTransport,
        workers: Workers,
        clock: Clock,
    ) -> None:
        self._network = network
        self._ledger = ledger
        self._chunks = chunks
        self._holder = holder
        self._transport = transport
        self._workers = workers
        self._clock = clock

    async def confirm(
        self, placed: exchange.PlacedChunks, *, fresh: bool, tally: Tally | None = None
    ) -> tuple[exchange.StorageReceipt, ...]:
        """Push a record's chunks and return w storage receipts for each of them, or more.

        `fresh` says that no member can have any of them yet, which saves asking. `tally` counts what the members take.

        Raises:
            Unavailable: too few of the replicas answered; try again later.
        """
        storing = self._ledger.configuration.storing
        shares = await self._workers.run(placed.holders, storing)

        async def one(node: NodeId) -> exchange.StorageReceipt:
            return await self.push(node, shares[node], fresh=fresh, tally=tally)

        def is_enough(receipts: dict[NodeId, exchange.StorageReceipt]) -> bool:
            return not exchange.unconfirmed(placed, frozenset(receipts), storing)

        receipts = await _gather(shares, one, is_enough)
        if not is_enough(receipts):
            raise Unavailable(
                f"only {len(receipts)} members store the chunks so far; the record waits for more"
            )
        return tuple(receipts.values())

    async def push(
        self, node: NodeId, cids: tuple[Cid, ...], *, fresh: bool = False, tally: Tally | None = None
    ) -> exchange.StorageReceipt:
        """Bring a member its share of a record and return its storage receipt.

        Raises:
            Unavailable: it is away, or took part of them only.
            RemoteFault: it broke the protocol.
            Corruption: a chunk is damaged here.
        """
        if node == self._transport.me:
            answer = await self._workers.run(self._holder.confirm, cids)
            if isinstance(answer, exchange.Lacking):
                raise Corruption(f"{len(answer.cids)} chunks of a record are missing here")
            return answer
        lacking = cids if fresh else ()
        for _ in range(_ROUNDS_MAX):
            if lacking:
                await self._put(node, lacking, tally or Tally())
            answer = await self._ask_confirmation(node, cids)
            if isinstance(answer, exchange.StorageReceipt):
                return answer
            lacking = answer.cids
        raise Unavailable(f"member {node.hex()[:16]} still lacks {len(lacking)} chunks")

    async def collect(self, offer: exchange.OfferEnvelope) -> tuple[EnvelopeReceipt, ...]:
        """Offer an envelope to every storing member; return at least q_n receipts, sorted by member.

        Raises:
            Unavailable: too few answered; try again later.
        """
        configuration = self._ledger.configuration
        form = receipt_form(self._network, offer.vid, offer.rid, envelope_hash(offer.envelope))
        body = codec.encode(offer)

        async def one(node: NodeId) -> EnvelopeReceipt:
            for _ in range(_BEHIND_RETRIES):
                try:
                    receipt = await self._offer(node, offer, body)
                except Unavailable:
                    # It may be a moment behind us in applying the vault; when it is away, the next try ends at once.
                    await self._clock.sleep_ms(_BEHIND_MS)
                    continue
                if receipt.node != node or not verify(node, form, receipt.signature):
                    raise Invalid("an envelope receipt does not verify")
                return receipt
            raise Unavailable(f"member {node.hex()[:16]} gives no receipt now")

        needed = configuration.receipt_quorum
        receipts = await _gather(configuration.storing, one, lambda given: len(given) >= needed)
        if len(receipts) < needed:
            raise Unavailable(
                f"{len(receipts)} of {needed} members store the envelope so far; the record waits for more"
            )
        return tuple(receipts[node] for node in sorted(receipts))

    async def _offer(self, node: NodeId, offer: exchange.OfferEnvelope, body: bytes) -> EnvelopeReceipt:
        if node == self._transport.me:
            return await self._holder.receive(node, offer)
        raw = await self._transport.call(node, exchange.ENVELOPES_CHANNEL, body, timeout_ms=_CALL_MS)
        answer: EnvelopeReceipt | exchange.NotYet = codec.decode(
            raw,
            EnvelopeReceipt | exchange.NotYet,  # type: ignore[arg-type]  # a union is no type for mypy
        )
        if isinstance(answer, exchange.NotYet):
            raise Unavailable("the member has not come to the vault yet")
        return answer

    async def _ask_confirmation(
        self, node: NodeId, cids: tuple[Cid, ...]
    ) -> exchange.StorageReceipt | exchange.Lacking:
        body = codec.encode(exchange.ConfirmChunks(cids))
        raw = await self._transport.call(node, exchange.CHUNKS_CHANNEL, body, timeout_ms=_CALL_MS)
        answer: exchange.StorageReceipt | exchange.Lacking = codec.decode(
            raw,
            exchange.StorageReceipt | exchange.Lacking,  # type: ignore[arg-type]  # a union is no type for mypy
        )
        if isinstance(answer, exchange.Lacking):
            if not set(answer.cids) <= set(cids):
                raise Invalid("a member lacks chunks it was not asked about")
        else:
            if answer.node != node:
                raise Invalid("a storage receipt is another member's")
            await self._workers.run(exchange.check_storage_receipt, answer, cids, self._network)
        return answer

    async def _put(self, node: NodeId, cids: tuple[Cid, ...], tally: Tally) -> None:
        """Send chunks, a few messages in flight; each is answered once it is on the other's stable storage."""
        groups = iter(
            [
                cids[i : i + exchange.CHUNKS_PER_MESSAGE_MAX]
                for i in range(0, len(cids), exchange.CHUNKS_PER_MESSAGE_MAX)
            ]
        )

        async def sender() -> None:
            for group in groups:
                body = await self._workers.run(self._message, group)
                raw = await self._transport.call(node, exchange.CHUNKS_CHANNEL, body, timeout_ms=_CALL_MS)
                codec.decode(raw, exchange.Stored)
                tally.count += 1

        await _both([sender] * _MESSAGES_IN_FLIGHT)

    def _message(self, cids: tuple[Cid, ...]) -> bytes:
        chunks = []
        for cid in cids:
            try:
                data = self._chunks.get(cid)
            except Corruption:
                self._chunks.quarantine(cid)  # so that `repair` brings it back before the next try
                raise
            if data is None:
                raise Corruption(f"chunk {cid.hex()[:16]} of a record is missing here")
            chunks.append(data)
        return codec.encode(exchange.PutChunks(tuple(chunks)))


async def _gather(
    nodes: Iterable[NodeId],
    one: Callable[[NodeId], Awaitable[T]],
    is_enough: Callable[[dict[NodeId, T]], bool],
) -> dict[NodeId, T]:
    """Run `one` for all members at once; return what came when it is enough, or when all have answered or failed.

    A member that fails is left out. Corruption of our own store is not a member's failure and is raised.
    """
    given: dict[NodeId, T] = {}
    damage: list[Corruption] = []

    async def attempt(node: NodeId) -> None:
        try:
            given[node] = await one(node)
        except (Unavailable, RemoteFault):
            return  # away or misbehaving: the others decide whether there are enough
        except Corruption as error:
            damage.append(error)
        if damage or is_enough(given):
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(attempt, node)
    if damage:
        raise damage[0]
    return given


async def _both(tasks: list[Callable[[], Awaitable[None]]]) -> None:
    """Run tasks at once; the first error cancels the others and is raised as itself, not in a group."""
    failure: list[CarechainError] = []

    async def guarded(task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except CarechainError as error:
            failure.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(guarded, task)
    if failure:
        raise failure[0]
