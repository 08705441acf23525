"""The author's side of storing records: chunks to their replicas, envelopes to every storing member.

    push the chunks ──► w storage receipts for each ──► offer the envelopes ──► q_n envelope receipts

The author's own chunks are durable before anything is pushed. Small records go in groups: their chunks share messages,
and the other's synchronised write. As soon as enough members gave their word the others have a moment to follow; what
is still missing then is left to the background (`node/repair.py`), so that one member that is away delays nobody.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import trio

from node.chunk_holder import ChunkHolder
from node.pacing import Pace
from node.ports import Clock, PeerTransport, Workers
from node.send_window import SendWindow
from protocol import chunk_exchange as exchange
from protocol import codec, limits, placement
from protocol.envelope import envelope_hash
from protocol.errors import CarechainError, Corruption, Invalid, RemoteFault, Unavailable
from protocol.identifiers import Cid, NetworkId, NodeId
from protocol.signing import verify
from protocol.transaction import EnvelopeReceipt, receipt_form
from storage.chunk_store import ChunkStore
from storage.ledger_store import LedgerStore

T = TypeVar("T")

_CALL_MS = 20_000
_ROUNDS_MAX = 3
"""Push, confirm: a holder that still lacks chunks after this many rounds is broken or full."""
_BEHIND_RETRIES = 20
_BEHIND_MS = 100
_GRACE_S_MIN, _GRACE_S_MAX = 0.05, 1.0
"""Once enough members have answered, the others may take as long again, within these bounds."""

Confirmation = exchange.StorageReceipt | exchange.Lacking


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
        pace: Pace,
    ) -> None:
        self._network = network
        self._ledger = ledger
        self._chunks = chunks
        self._holder = holder
        self._transport = transport
        self._workers = workers
        self._clock = clock
        self._pace = pace
        self._windows: dict[NodeId, SendWindow] = {}  # one for each member that ever stored

    async def confirm(
        self, records: Sequence[exchange.PlacedChunks], *, fresh: bool, tally: Tally | None = None
    ) -> tuple[tuple[exchange.StorageReceipt, ...], ...]:
        """Push records' chunks; return for each record w storage receipts for each of its chunks or more, else none.

        `fresh` says that no member can have any of them yet, which saves asking. `tally` counts what the members take.

        Raises:
            Corruption: a chunk is damaged here.
        """
        storing = self._ledger.configuration.storing
        shares = await self._workers.run(_shares, records, storing)

        async def one(node: NodeId) -> dict[int, exchange.StorageReceipt]:
            lists = shares[node]
            answers = await self._push(node, tuple(lists.values()), fresh=fresh, tally=tally or Tally())
            return {
                at: answer
                for at, answer in zip(lists, answers, strict=True)
                if isinstance(answer, exchange.StorageReceipt)
            }

        # Told apart by sets of replicas, not chunk by chunk: asked after every answer, of ten thousand chunks perhaps.
        sets = await self._workers.run(_replica_sets, records, storing)
        needed = [placement.confirmations_needed(storing, placed.replicas) for placed in records]

        def confirmed(given: dict[NodeId, dict[int, exchange.StorageReceipt]], at: int) -> bool:
            nodes = frozenset(node for node, receipts in given.items() if at in receipts)
            return all(len(nodes & replicas) >= needed[at] for replicas in sets[at])

        given = await _gather(
            shares, one, lambda so_far: all(confirmed(so_far, at) for at in range(len(records)))
        )
        return tuple(
            [
                tuple([receipts[at] for receipts in given.values() if at in receipts])
                if confirmed(given, at)
                else ()
                for at in range(len(records))
            ]
        )

    async def push(
        self, node: NodeId, cids: tuple[Cid, ...], *, tally: Tally | None = None
    ) -> exchange.StorageReceipt:
        """Bring a member what it lacks of its share of a record, and return its storage receipt.

        Raises:
            Unavailable: it is away, or took part of them only.
            RemoteFault: it broke the protocol.
            Corruption: a chunk is damaged here.
        """
        (answer,) = await self._push(node, (cids,), fresh=False, tally=tally or Tally())
        if isinstance(answer, exchange.Lacking):
            raise Unavailable(f"member {node.hex()[:16]} still lacks {len(answer.cids)} chunks")
        return answer

    async def _push(
        self, node: NodeId, lists: tuple[tuple[Cid, ...], ...], *, fresh: bool, tally: Tally
    ) -> tuple[Confirmation, ...]:
        if node == self._transport.me:
            answers = await self._workers.run(self._confirm_here, lists)
            damaged = [
                cid for answer in answers if isinstance(answer, exchange.Lacking) for cid in answer.cids
            ]
            if damaged:
                raise Corruption(f"{len(damaged)} chunks of a record are missing here")
            return answers
        lacking = tuple([cid for cids in lists for cid in cids]) if fresh else ()
        for number in range(_ROUNDS_MAX):
            if lacking:
                # It hashes what it takes. What it still lacks after the first time may be damaged here: then we look.
                await self._put(node, lacking, tally, is_hashed=number > 0)
            answers = await self._ask_confirmation(node, lists)
            lacking = tuple(
                [cid for answer in answers if isinstance(answer, exchange.Lacking) for cid in answer.cids]
            )
            if not lacking:
                break
        return answers

    def _confirm_here(self, lists: tuple[tuple[Cid, ...], ...]) -> tuple[Confirmation, ...]:
        return tuple([self._holder.confirm(cids) for cids in lists])

    async def collect(
        self, offers: Sequence[exchange.OfferEnvelope]
    ) -> tuple[tuple[EnvelopeReceipt, ...], ...]:
        """Offer envelopes to every storing member; return for each at least q_n receipts, sorted by member, else none."""
        configuration = self._ledger.configuration
        forms = [
            receipt_form(self._network, offer.vid, offer.rid, envelope_hash(offer.envelope))
            for offer in offers
        ]

        async def one(node: NodeId) -> dict[int, EnvelopeReceipt]:
            receipts: dict[int, EnvelopeReceipt] = {}
            open_ = list(range(len(offers)))
            for _ in range(_BEHIND_RETRIES):
                answers = await self._offer(node, tuple([offers[at] for at in open_]))
                fresh = {
                    at: answer
                    for at, answer in zip(open_, answers, strict=True)
                    if isinstance(answer, EnvelopeReceipt)
                }
                await self._workers.run(_check_receipts, node, fresh, forms)
                receipts |= fresh
                # It may be a moment behind us in applying the vault; what it declines is not offered again.
                open_ = [
                    at
                    for at, answer in zip(open_, answers, strict=True)
                    if isinstance(answer, exchange.NotYet)
                ]
                if not open_:
                    break
                await self._clock.sleep_ms(_BEHIND_MS)
            return receipts

        needed = configuration.receipt_quorum

        def enough(given: dict[NodeId, dict[int, EnvelopeReceipt]], at: int) -> bool:
            return sum(at in receipts for receipts in given.values()) >= needed

        given = await _gather(
            configuration.storing, one, lambda so_far: all(enough(so_far, at) for at in range(len(offers)))
        )
        return tuple(
            [
                tuple([given[node][at] for node in sorted(given) if at in given[node]])
                if enough(given, at)
                else ()
                for at in range(len(offers))
            ]
        )

    async def _offer(
        self, node: NodeId, offers: tuple[exchange.OfferEnvelope, ...]
    ) -> tuple[EnvelopeReceipt | exchange.NotYet | exchange.Declined, ...]:
        if node == self._transport.me:
            return (await self._holder.receive_all(node, offers)).answers
        body = codec.encode(exchange.OfferEnvelopes(offers))
        raw = await self._transport.call(node, exchange.ENVELOPES_CHANNEL, body, timeout_ms=_CALL_MS)
        answers = codec.decode(raw, exchange.Answered).answers
        if len(answers) != len(offers):
            raise Invalid("a member answers other offers than were made")
        return answers

    async def _ask_confirmation(
        self, node: NodeId, lists: tuple[tuple[Cid, ...], ...]
    ) -> tuple[Confirmation, ...]:
        body = codec.encode(exchange.ConfirmChunks(lists))
        raw = await self._transport.call(node, exchange.CHUNKS_CHANNEL, body, timeout_ms=_CALL_MS)
        answers = codec.decode(raw, exchange.Confirmed).answers
        await self._workers.run(_check_confirmations, node, answers, lists, self._network)
        return answers

    async def _put(self, node: NodeId, cids: tuple[Cid, ...], tally: Tally, *, is_hashed: bool) -> None:
        """Send chunks, a few messages in flight; each is answered once it is on the other's stable storage.

        Where transactions come it is one at a time: what has left cannot give way any more.
        """
        window = self._windows.setdefault(node, SendWindow(limits.CHUNKS_IN_FLIGHT_PER_PEER))
        waiting = deque(cids)
        answered = trio.Event()

        async def sender(number: int) -> None:
            nonlocal answered
            while waiting:
                if number >= (window.size if self._pace.is_quiet() else 1):
                    await answered.wait()  # the first sender is at work as long as anything waits
                    continue
                began_ms = self._clock.now_ms()
                if body := await self._workers.run(self._message, waiting, is_hashed):
                    await self._send(node, body, window)
                    tally.count += 1
                if waiting:
                    await self._pace.rest(self._clock.now_ms() - began_ms)
                answered.set()
                answered = trio.Event()

        await _both([partial(sender, number) for number in range(limits.CHUNKS_IN_FLIGHT_PER_PEER)])

    async def _send(self, node: NodeId, body: bytes, window: SendWindow) -> None:
        began_ms, alone = self._clock.now_ms(), window.sent()
        try:
            raw = await self._transport.call(node, exchange.CHUNKS_CHANNEL, body, timeout_ms=_CALL_MS)
            codec.decode(raw, exchange.Stored)
        except BaseException:
            window.lost()
            raise
        window.answered(self._clock.now_ms() - began_ms, alone=alone)

    def _message(self, waiting: deque[Cid], is_hashed: bool) -> bytes:
        """Take a large chunk, or small ones of as many bytes, and return the message of them; empty when none wait."""
        chunks: list[bytes] = []
        size = 0
        # The last one may be as large as any.
        room = exchange.PUT_BYTES_MAX - limits.CHUNK_BYTES_MAX
        while size < room and len(chunks) < exchange.SMALL_CHUNKS_PER_MESSAGE_MAX:
            try:
                cid = waiting.popleft()  # of a list that two senders share, each in a thread of its own
            except IndexError:
                break
            chunks.append(self._chunk(cid, is_hashed=is_hashed))
            size += len(chunks[-1])
        return codec.encode_large(exchange.PutChunks(tuple(chunks))) if chunks else b""

    def _chunk(self, cid: Cid, *, is_hashed: bool) -> bytes:
        try:
            data = self._chunks.get(cid, is_hashed=is_hashed)
        except Corruption:
            self._chunks.quarantine(cid)  # so that `repair` brings it back before the next try
            raise
        if data is None:
            raise Corruption(f"chunk {cid.hex()[:16]} of a record is missing here")
        return data


def _shares(
    records: Sequence[exchange.PlacedChunks], storing: tuple[NodeId, ...]
) -> dict[NodeId, dict[int, tuple[Cid, ...]]]:
    """Return what each member is to store of each record, by the record's place; nothing of a record left out."""
    shares: dict[NodeId, dict[int, tuple[Cid, ...]]] = {}
    for at, placed in enumerate(records):
        for node, cids in placed.holders(storing).items():
            shares.setdefault(node, {})[at] = cids
    return shares


def _replica_sets(
    records: Sequence[exchange.PlacedChunks], storing: tuple[NodeId, ...]
) -> list[frozenset[frozenset[NodeId]]]:
    return [placed.replica_sets(storing) for placed in records]


def _check_confirmations(
    node: NodeId,
    answers: Sequence[Confirmation],
    lists: Sequence[tuple[Cid, ...]],
    network: NetworkId,
) -> None:
    if len(answers) != len(lists):
        raise Invalid("a member answers about other lists than it was asked")
    for answer, cids in zip(answers, lists, strict=True):
        if isinstance(answer, exchange.Lacking):
            if not set(answer.cids) <= set(cids):
                raise Invalid("a member lacks chunks it was not asked about")
        elif answer.node != node:
            raise Invalid("a storage receipt is another member's")
        else:
            exchange.check_storage_receipt(answer, cids, network)


def _check_receipts(node: NodeId, receipts: dict[int, EnvelopeReceipt], forms: Sequence[bytes]) -> None:
    for at, receipt in receipts.items():
        if receipt.node != node or not verify(node, forms[at], receipt.signature):
            raise Invalid("an envelope receipt does not verify")


async def _gather(
    nodes: Iterable[NodeId],
    one: Callable[[NodeId], Awaitable[T]],
    is_enough: Callable[[dict[NodeId, T]], bool],
) -> dict[NodeId, T]:
    """Run `one` for all members at once; return what came soon after it was enough, or when all have answered or failed.

    A member that fails is left out. Corruption of our own store is not a member's failure and is raised.
    """
    given: dict[NodeId, T] = {}
    damage: list[Corruption] = []
    began = trio.current_time()

    async def attempt(node: NodeId) -> None:
        try:
            given[node] = await one(node)
        except (Unavailable, RemoteFault):
            return  # away or misbehaving: the others decide whether there are enough
        except Corruption as error:
            damage.append(error)
            nursery.cancel_scope.cancel()
        now = trio.current_time()
        if is_enough(given):
            nursery.cancel_scope.deadline = min(
                nursery.cancel_scope.deadline, now + min(max(now - began, _GRACE_S_MIN), _GRACE_S_MAX)
            )

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
