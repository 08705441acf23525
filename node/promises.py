"""A leader's word that a transaction will stand in one of its next blocks: asked for, given, and held against it (E8).

    waits for long here ──► ask the leader ──► its pool holds it: a signed promise ──► kept: forgotten
                                          └──► it does not: no promise              └─► broken: evidence

That a leader has received a transaction is no promise, and most transactions are ordered long before anybody would ask. A leader
that wants to leave one out has to say nothing, which is only complained of, or to lie under its signature. Promises are held in
memory: whoever forgets one in a crash cannot hold the leader to it, and submits the transaction again all the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from node.applier import AppliedHeight
from node.event_log import EventLog
from node.pool import Place
from node.ports import Clock, PeerTransport
from node.receipts import Receipts
from protocol import codec, limits, transaction
from protocol.block import Block
from protocol.codec import Size, wire
from protocol.errors import CarechainError, Corruption, Invalid, Unavailable
from protocol.evidence import Evidence
from protocol.evidence_blocks import BrokenPromise, Promise, promise, promise_valid
from protocol.evidence_lines import SignedHeader
from protocol.identifiers import Height, NodeId, Txid
from protocol.signing import SigningKey
from storage.ledger_store import LedgerStore

CHANNEL = "promise"
ASK_EVERY_MS = 2_000
"""What was waited for at two such moments in a row is asked about: longer than a normal commit, and than an election."""
ASKED_MAX = 64
"""Transactions in one question; others are asked about when these have come."""
HELD_MAX = 1_024
"""Promises in memory; beyond these no more are asked for."""
_TIMEOUT_MS = 1_500
TxidField = Annotated[Txid, Size(32)]


@wire("promise-request")
@dataclass(frozen=True, slots=True)
class PromiseRequest:
    """Ask a leader which of these it will include, and until when."""

    txids: Annotated[tuple[TxidField, ...], Size(1, ASKED_MAX)]


@wire("promises")
@dataclass(frozen=True, slots=True)
class PromisesGiven:
    """Promises for those that wait there; none for the others."""

    promises: Annotated[tuple[Promise, ...], Size(0, ASKED_MAX)]


class Promises:
    """Both sides at one node. `run` asks and compares; `serve` makes it answer."""

    def __init__(
        self,
        *,
        key: SigningKey,
        store: LedgerStore,
        receipts: Receipts,
        applied: AppliedHeight,
        transport: PeerTransport,
        leader: Callable[[], NodeId | None],
        place_of: Callable[[Txid], Place | None],
        take: Callable[[Evidence], None],
        clock: Clock,
        log: EventLog,
    ) -> None:
        """`place_of` says what this node can promise as leader; `take` is told of broken promises."""
        self._key = key
        self._store = store
        self._receipts = receipts
        self._applied = applied
        self._transport = transport
        self._leader = leader
        self._place_of = place_of
        self._take = take
        self._clock = clock
        self._log = log
        self._held: dict[Txid, Promise] = {}
        self._waited: frozenset[Txid] = frozenset()

    @property
    def held(self) -> tuple[Promise, ...]:
        """Promises that are neither kept nor broken yet."""
        return tuple(self._held.values())

    def serve(self) -> None:
        """Answer whoever asks."""
        self._transport.serve(CHANNEL, self._answer)

    async def _answer(self, _peer: NodeId, body: bytes) -> bytes:
        request = codec.decode(body, PromiseRequest)
        given = [
            promise(
                self._key, self._store.network, epoch=self._store.epochs.current, term=place.term, txid=txid,
                since=place.since, height=place.height,
            )
            for txid in request.txids
            if (place := self._place_of(txid)) is not None
        ]  # fmt: skip
        return codec.encode(PromisesGiven(tuple(given)))

    async def run(self) -> None:
        """Ask about what is waited for, and hold leaders to their word, until cancelled."""
        while True:
            await self._clock.sleep_ms(ASK_EVERY_MS)
            self._look()
            await self._ask()

    def _look(self) -> None:
        """Let go of promises that are kept, and compare those that are due."""
        for txid, given in tuple(self._held.items()):
            is_kept = self._store.receipt(txid) is not None
            if is_kept or self._applied.value >= given.height:
                del self._held[txid]
            if not is_kept and self._applied.value >= given.height:
                self._compare(given)

    async def _ask(self) -> None:
        waited = frozenset(self._receipts.waited_for())
        late, self._waited = sorted((waited & self._waited) - self._held.keys()), waited
        leader = self._leader()
        if not late or leader in (None, self._transport.me) or len(self._held) >= HELD_MAX:
            return
        assert leader is not None
        question = PromiseRequest(tuple(late[:ASKED_MAX]))
        try:
            raw = await self._transport.call(leader, CHANNEL, codec.encode(question), timeout_ms=_TIMEOUT_MS)
            given = codec.decode(raw, PromisesGiven).promises
            for one in given:
                self._check(one, leader, question)
        except CarechainError as reason:
            self._log.debug("no promise to be had", peer=leader.hex()[:16], reason=str(reason))
            return
        self._held.update({one.txid: one for one in given})
        missing = len(question.txids) - len(given)
        if missing:
            self._log.info(
                "transactions that wait are not promised by the leader", peer=leader.hex()[:16], count=missing
            )

    def _check(self, given: Promise, leader: NodeId, question: PromiseRequest) -> None:
        if given.leader != leader or given.txid not in question.txids:
            raise Invalid("a promise of somebody else, or for something else")
        if not 0 < given.height - given.since <= limits.EVIDENCE_HEADERS_MAX:
            raise Invalid("a promise that reaches too far to be held against anybody")
        if given.epoch != self._store.epochs.current or not promise_valid(given, self._store.network):
            raise Invalid("a promise of another epoch, or whose signature does not verify")

    def _compare(self, given: Promise) -> None:
        """Look whether a promise was broken, now that all its blocks are applied; a leader that fell before has broken nothing."""
        try:
            blocks = list(self._store.blocks(Height(given.since + 1), given.height))
        except (Corruption, Unavailable):
            return  # what is damaged or gone here shows nothing; others may have been promised the same
        if all(_is_by(block, given) for block in blocks) and not any(_holds(one, given) for one in blocks):
            *_, last = blocks
            line = tuple([block.header for block in blocks[:-1]])
            bodies = tuple([block.transactions for block in blocks])
            self._log.warning(
                "a leader has broken its promise", peer=given.leader.hex()[:16], height=given.height
            )
            self._take(BrokenPromise(given, SignedHeader(last.header, last.signature), line, bodies))


def _is_by(block: Block, given: Promise) -> bool:
    header = block.header
    return (header.leader, header.epoch, header.term) == (given.leader, given.epoch, given.term)


def _holds(block: Block, given: Promise) -> bool:
    return any(transaction.parse(raw, block.header.net)[1] == given.txid for raw in block.transactions)
