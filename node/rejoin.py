"""How a signer that has forgotten what it signed signs again (ledger.md 7.3).

**By a transaction** (`protocol.rejoining`), where the others can certify a block without it. It follows like an observer,
hands a Rejoin with a nonce to whoever leads, and takes part again when that is certified without its vote, in the newest
term that the certificate shows, with the vote of that term spent. Nothing that it has forgotten can count any more.

**By asking all**, where they cannot: two voters, or as many liars to withstand as would need every vote. Then a forgotten
acknowledgement still counts for the leader that holds it, together with those that other voters give after they have
answered here. So it asks *every* other voter for its newest block and term, not a quorum of them (only a leader surely knows
the block, only a candidate the term; either may be the one that was not asked), and takes part again when what it applied has
reached the highest answer, in the highest term, with the vote spent. What the ledger's text leaves to a recovery (7.4) then
needs none: without a liar nobody else can have been promised anything.
"""

import dataclasses

import trio

from node.applier import AppliedHeight
from node.event_log import EventLog
from node.ports import Clock, Entropy, PeerTransport
from node.receipts import CHANNEL as SUBMIT
from node.receipts import VALID_MS
from node.watermark import Questions
from protocol import codec
from protocol.errors import CarechainError
from protocol.finality import Certificate
from protocol.identifiers import ZERO, Height, NodeId, Term
from protocol.raft.state import HardState
from protocol.rejoining import Rejoin, can_rejoin, incarnation_of
from protocol.signing import SigningKey
from protocol.transaction import SignedTransaction, encoded, sign
from storage.ledger_store import LedgerStore

_AGAIN_MS = 1_500
"""Longer than a normal commit, shorter than an election: handing it in again then finds the new leader."""
_SUBMIT_MS = 1_000
_PATIENCE_MS = 60_000
"""So long an accepted Rejoin is awaited to be certified without help, or a submitted one to be accepted; then a new one is made."""


class Rejoining:
    """Runs beside a `Follower`, which brings the blocks."""

    def __init__(
        self,
        store: LedgerStore,
        key: SigningKey,
        *,
        transport: PeerTransport,
        clock: Clock,
        entropy: Entropy,
        applied: AppliedHeight,
        log: EventLog,
    ) -> None:
        self._store = store
        self._key = key
        self._me = NodeId(key.public)
        self._transport = transport
        self._clock = clock
        self._entropy = entropy
        self._applied = applied
        self._log = log

    async def wait(self) -> HardState:
        """Return the hard state to begin with, once it is safe to sign again."""
        if can_rejoin(self._store.configuration, self._me):
            return await self._by_transaction()
        return await self._by_asking_all()

    # --- by a transaction -------------------------------------------------------------------------------------------

    async def _by_transaction(self) -> HardState:
        while True:
            number = incarnation_of(self._store.state, self._me).number + 1
            height = await self._accepted(self._made(number))
            certificate = await self._unaided(height) if height is not None else None
            if certificate is not None:
                self._log.info("begun anew", incarnation=number, height=height)
                term = max(certificate.newest_term, self._store.header(self._store.applied().height).term)
                return self._anew(number, term)

    def _made(self, number: int) -> SignedTransaction:
        until_ms = self._clock.now_ms() + VALID_MS
        rejoin = Rejoin(self._me, number, self._entropy.bytes(32), until_ms)
        return sign(rejoin, self._store.network, self._key)

    def _anew(self, incarnation: int, term: Term) -> HardState:
        epoch = self._store.epochs.current
        begun = HardState.initial(epoch=epoch, incarnation=incarnation)
        # The vote is spent: whoever asks for this term's is refused.
        return dataclasses.replace(begun, term=term, vote=self._me)

    async def _accepted(self, signed: SignedTransaction) -> Height | None:
        """Hand a Rejoin in until it is final; return its height, or None when it was refused, or is not final for long."""
        txid, raw = encoded(signed, self._store.network)
        with trio.move_on_after(_PATIENCE_MS / 1000):
            while (receipt := self._store.receipt(txid)) is None:
                async with trio.open_nursery() as nursery:
                    for node in self._store.configuration.voters:
                        if node != self._me:
                            nursery.start_soon(self._hand_in, node, raw)
                with trio.move_on_after(_AGAIN_MS / 1000):
                    while self._store.receipt(txid) is None:
                        await self._applied.wait_above(self._applied.value)
            if receipt.is_accepted:
                return receipt.height
            self._log.info("its Rejoin came to nothing; making another", verdict=receipt.verdict)
            await self._clock.sleep_ms(_AGAIN_MS)
        return None

    async def _hand_in(self, node: NodeId, raw: bytes) -> None:
        # Whoever does not lead says so; which one does, a member that follows would learn from the next block only.
        try:
            await self._transport.call(node, SUBMIT, codec.pack(raw), timeout_ms=_SUBMIT_MS)
        except CarechainError as reason:
            self._log.debug("a Rejoin was not taken", peer=node.hex()[:16], reason=str(reason))

    async def _unaided(self, height: Height) -> Certificate | None:
        """Return a certificate at or above `height` that stands without this member's vote; None when none comes for long.

        Only another process with this key can vote meanwhile. It ends when it hears of the Rejoin; what is certified
        afterwards stands.
        """
        with trio.move_on_after(_PATIENCE_MS / 1000):
            while True:
                certificate = self._store.certificate_at_or_above(height)
                if certificate is None:
                    await self._applied.wait_above(self._applied.value)
                elif self._stands(certificate):
                    return certificate
                else:
                    height = Height(certificate.height + 1)
        return None

    def _stands(self, certificate: Certificate) -> bool:
        # That of a change needs the votes of two configurations: the next one is looked at instead.
        configuration = self._store.configuration_at(certificate.height)
        is_change = certificate.header.next_config_hash != ZERO
        return not is_change and certificate.stands_without(self._me, configuration)

    # --- by asking all ----------------------------------------------------------------------------------------------

    async def _by_asking_all(self) -> HardState:
        questions = Questions(self._store.configuration.voters, self._transport, self._clock)
        await questions.run()
        marks = questions.marks.values()
        goal = max((mark.tip_height for mark in marks), default=Height(0))
        if goal > 0:
            await self._applied.wait_above(Height(goal - 1))
        term = max((mark.term for mark in marks), default=Term(0))
        return self._anew(incarnation_of(self._store.state, self._me).number, term)
