"""Sees erasures through: ordered on the ledger, then attested by every member, however long one of them is away.

asked ──signed, durable──► ordered ──applied here──► erased ──every member's word──► evidence
▲                           │ no quorum: again         │ away, or still deleting: asked again
└── valid for a day ────────┘                          └── all of it also after kill -9
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import trio

from node.authority import Authorities
from node.destruction import Destruction
from node.erasure_rows import AskedErasure, ErasureRows
from node.event_log import EventLog
from node.ports import Clock, Disk, PeerTransport
from node.receipts import Submitter
from protocol import codec, limits
from protocol.destruction import (
    DESTRUCTIONS_CHANNEL,
    AskDestruction,
    Attestation,
    NotDestroyed,
    check_attestation,
)
from protocol.errors import CarechainError, Invalid, Refused, RemoteFault, Unavailable
from protocol.identifiers import Cid, NodeId, Rid, Txid, Vid
from protocol.transaction import RecordErase, SignedTransaction, sign, txid_of
from storage.key_value import Batch
from storage.ledger_store import LedgerStore

_PERIOD_MS = 5_000
_POLL_MS_MIN, _POLL_MS_MAX = 100, 1_600
_CALL_MS = 10_000
_AWAY = "not connected: it deletes when it is back"
_BEHIND = "has not come to the erasure yet"
_BUSY = "is deleting"


@dataclass(frozen=True, slots=True)
class _Open:
    """What is known in memory of an erasure that is not complete: most members have said theirs, and rows are sealed."""

    is_ordered: bool
    attesters: frozenset[NodeId]

    @staticmethod
    def of(row: AskedErasure) -> "_Open":
        return _Open(not row.signed, row.attesters)


class ErasureWatcher:
    """Owns the rows of `keyspace.ERASURE`. `run` finishes what a command could not."""

    def __init__(
        self,
        *,
        ledger: LedgerStore,
        asked: ErasureRows,
        authorities: Authorities,
        destruction: Destruction,
        submitter: Submitter,
        transport: PeerTransport,
        disk: Disk,
        clock: Clock,
        log: EventLog,
    ) -> None:
        self._ledger = ledger
        self._asked = asked
        self._authorities = authorities
        self._destruction = destruction
        self._submitter = submitter
        self._transport = transport
        self._disk = disk
        self._clock = clock
        self._log = log
        self._open: dict[Rid, _Open] = {}
        self._is_loaded = False
        self._reasons: dict[tuple[Rid, NodeId], str] = {}
        self._changing = trio.Lock()

    async def add(self, erasures: Sequence[AskedErasure]) -> None:
        """Take over erasures, durably on return: from then on they happen, whatever becomes of the caller."""
        batch = Batch()
        for erasure in erasures:
            self._asked.put(batch, erasure)
        # Persist before sending: a patient's wish is not lost in a crash or without a quorum.
        await self._disk.commit(batch, sync=True)
        self._open.update({Rid(erasure.rid): _Open.of(erasure) for erasure in erasures})

    async def order(self, rids: Collection[Rid]) -> None:
        """Bring erasures to the ledger; nothing to do for those that are there.

        Raises:
            NotFinal: not now; it is tried again.
            Refused: the ledger refuses one of them for good.
        """
        waiting = self._waiting(rids)
        transactions = [
            codec.decode(row.signed, SignedTransaction)
            for rid, row in waiting.items()
            if self._ledger.erasure(rid) is None
        ]
        try:
            receipts = await self._submitter.submit_all(transactions) if transactions else ()
        finally:
            for rid in waiting:
                await self._note_erased(rid)
        refused = {receipt.txid: receipt.verdict for receipt in receipts if not receipt.is_accepted}
        reasons = [
            refused[Txid(row.txid)]
            for rid, row in waiting.items()
            if row.txid in refused and self._ledger.erasure(rid) is None and not await self._renew(rid)
        ]
        if reasons:
            raise Refused(f"the ledger refused the erasure ({reasons[0]}); repeat the command")

    async def collect(self, rids: Sequence[Rid]) -> None:
        """Ask every member once for its word on erased records, and keep what it gives.

        Raises:
            Corruption: a row of this facility is damaged.
        """
        failures: list[CarechainError] = []

        async def ask(node: NodeId) -> None:
            try:
                await self._ask_member(node, rids)
            except CarechainError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for member in self._ledger.configuration.members:
                nursery.start_soon(ask, member.node)
        if failures:
            raise failures[0]

    async def await_present(self, rids: Sequence[Rid], timeout_ms: int) -> None:
        """Collect until every member that is connected has given its word, for a while."""
        pause_ms = _POLL_MS_MIN
        with trio.move_on_after(timeout_ms / 1000):
            while True:
                await self.collect(rids)
                present = self._present()
                if all(present <= found.attesters for rid in rids if (found := self._known(rid)) is not None):
                    return
                await self._clock.sleep_ms(pause_ms)
                pause_ms = min(2 * pause_ms, _POLL_MS_MAX)

    def pending(self, rid: Rid) -> tuple[tuple[NodeId, str], ...]:
        """Return the members whose word on an erased record is missing, and why."""
        row, present = self._asked.get(rid), self._present()
        given = row.attesters if row is not None else frozenset()
        return tuple(
            (
                member.node,
                self._reasons.get((rid, member.node), _BEHIND) if member.node in present else _AWAY,
            )
            for member in self._ledger.configuration.members
            if member.node not in given
        )

    async def run(self) -> None:
        """See to what is open until cancelled."""
        await self._load()
        while True:
            rids = sorted(self._open)
            for step in (self._renew_expired, self.order, self.collect):
                try:
                    await step(rids)
                except Unavailable:
                    continue  # no quorum, or a full disk: at the next round
                except CarechainError as error:
                    self._log.error("an erasure cannot go on", reason=str(error))
            await self._clock.sleep_ms(_PERIOD_MS)

    async def _load(self) -> None:
        """Find the erasures that are not complete, without keeping everybody waiting: rows are kept for good."""
        for rid in tuple(self._asked.rids()):
            row = self._asked.get(rid)
            if row is not None and not self._is_complete(_Open.of(row)):
                self._open.setdefault(rid, _Open.of(row))
            await trio.lowlevel.checkpoint()
        self._is_loaded = True

    def _known(self, rid: Rid) -> _Open | None:
        """Return how far an erasure is, None for one that is complete, or none at all."""
        found = self._open.get(rid)
        row = None if found is not None or self._is_loaded else self._asked.get(rid)
        return _Open.of(row) if row is not None else found

    async def _renew_expired(self, rids: Sequence[Rid]) -> None:
        now_ms, given_up = self._clock.now_ms(), 0
        for rid, row in self._waiting(rids).items():
            former = codec.decode(row.signed, SignedTransaction).transaction
            is_late = self._ledger.erasure(rid) is None and former.valid_until_ms < now_ms
            if is_late and not await self._renew(rid):
                given_up += 1
        if given_up:
            raise Refused(
                f"{given_up} erasures were not ordered within a day, and a patient's wallet is needed to sign them anew"
            )

    async def _renew(self, rid: Rid) -> bool:
        """Sign an erasure again with the custody key; without one give it up, and return that it was."""
        row = self._asked.get(rid)
        authority = self._authorities.of_vault(Vid(row.vid)) if row is not None else None
        vault = authority.vault(Vid(row.vid)) if authority is not None and row is not None else None
        if row is None or authority is None or vault is None:
            await self._drop(rid)
            return False
        valid_until = self._submitter.valid_until(limits.VALID_UNTIL_MS_MAX)
        erase = RecordErase(Vid(row.vid), rid, valid_until)
        txid = txid_of(erase, self._submitter.ledger)
        signed = codec.encode(sign(erase, self._submitter.ledger, authority.auth_key(vault)))
        await self._change(rid, lambda asked: replace(asked, signed=signed, txid=txid))
        return True

    # --- members' words -----------------------------------------------------------------------------------------

    async def _ask_member(self, node: NodeId, rids: Sequence[Rid]) -> None:
        for rid in rids:
            found = self._known(rid)
            if found is None or not found.is_ordered or node in found.attesters:
                continue
            if node not in self._present():
                return
            row = self._asked.get(rid)
            if row is None:
                continue
            try:
                await self._take(row, node, await self._ask(node, row))
            except Unavailable:
                return  # it went away: at the next round
            except RemoteFault:
                self._reasons[rid, node] = _BEHIND

    def _present(self) -> set[NodeId]:
        return {self._transport.me} | {peer.node for peer in self._transport.peers() if peer.connected}

    async def _ask(self, node: NodeId, row: AskedErasure) -> Attestation | NotDestroyed:
        """Ask a member; one that had nothing is asked once more, by the chunks: it may have got them without their list."""
        answer = await self._ask_about(node, row, ())
        had_nothing = isinstance(answer, Attestation) and not answer.chunks + answer.shared
        return await self._ask_about(node, row, row.cids) if had_nothing and row.cids else answer

    async def _ask_about(
        self, node: NodeId, row: AskedErasure, cids: tuple[Cid, ...]
    ) -> Attestation | NotDestroyed:
        if node == self._transport.me:
            return await self._destruction.ask(Rid(row.rid), cids)
        body = codec.encode(AskDestruction(row.rid, cids))
        raw = await self._transport.call(node, DESTRUCTIONS_CHANNEL, body, timeout_ms=_CALL_MS)
        answer: Attestation | NotDestroyed = codec.decode(
            raw,
            Attestation | NotDestroyed,  # type: ignore[arg-type]  # a union is no type for mypy
        )
        return answer

    async def _take(self, row: AskedErasure, node: NodeId, answer: Attestation | NotDestroyed) -> None:
        rid = Rid(row.rid)
        if isinstance(answer, NotDestroyed):
            self._reasons[rid, node] = answer.reason or _BUSY
            return
        check_attestation(answer, self._submitter.ledger, node=node, rid=rid, txid=Txid(row.txid))

        def attested(asked: AskedErasure) -> AskedErasure:
            if node in asked.attesters:
                return asked
            words = (*asked.attestations, answer)
            return replace(asked, attestations=tuple(sorted(words, key=lambda word: word.node)))

        await self._change(rid, attested)
        self._reasons.pop((rid, node), None)

    # --- rows ---------------------------------------------------------------------------------------------------

    async def _note_erased(self, rid: Rid) -> None:
        erasure = self._ledger.erasure(rid)
        if erasure is not None:
            await self._change(rid, lambda asked: replace(asked, signed=b"", txid=erasure.txid))

    def _waiting(self, rids: Collection[Rid]) -> dict[Rid, AskedErasure]:
        """Return the rows of those that are not on the ledger yet, as far as is known."""
        unordered = [rid for rid in rids if (found := self._known(rid)) is not None and not found.is_ordered]
        rows = ((rid, self._asked.get(rid)) for rid in unordered)
        return {rid: row for rid, row in rows if row is not None and row.signed}

    async def _change(self, rid: Rid, change: Callable[[AskedErasure], AskedErasure]) -> None:
        """Change a row, one change at a time: two that read the same row would lose one of them."""
        async with self._changing:
            row = self._asked.get(rid)
            if row is None:
                raise Invalid("an erasure ended meanwhile")
            changed, batch = change(row), Batch()
            self._asked.put(batch, changed)
            await self._disk.commit(batch, sync=True)
            self._open[rid] = _Open.of(changed)
            if self._is_complete(self._open[rid]):
                del self._open[rid]
                self._log.info("every member has destroyed an erased record", record=rid.hex()[:16])

    async def _drop(self, rid: Rid) -> None:
        async with self._changing:
            batch = Batch()
            self._asked.drop(batch, rid)
            await self._disk.commit(batch, sync=True)
            self._open.pop(rid, None)

    def _is_complete(self, found: _Open) -> bool:
        members = {member.node for member in self._ledger.configuration.members}
        return found.is_ordered and members <= found.attesters
