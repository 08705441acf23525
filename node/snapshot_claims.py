"""Asking the signers what they state of the state, and minding what a quorum of them says (ledger.md 7.3).

A member that installs takes the newest claim of a quorum. A signer that made a snapshot looks, a while later, whether a
quorum states the same: if it states something else, this program or this machine has computed a wrong state. That is no
evidence against anybody, and nothing that goes on by itself: it stops serving snapshots and tells its operator.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import trio

from node.event_log import EventLog
from node.ports import Clock, PeerTransport
from node.snapshots import STATEMENTS, SnapshotMaker, SnapshotSpace
from node.verification import Verification
from protocol import codec
from protocol.configuration import Configuration
from protocol.errors import Malformed, RemoteFault, Unavailable
from protocol.identifiers import NodeId
from protocol.snapshot import Claim, StateStatement, StateStatements, believed, supporters
from storage.key_value import Batch
from storage.ledger_store import LedgerStore
from storage.snapshot_store import SnapshotStore

_PATIENCE_S = 5.0
"""How long the signers may take to answer before it is decided without the rest."""
_ASK_AGAIN_MS = 250
_TIMEOUT_MS = 3_000
_COMPARE_AFTER_MS = 60_000
"""The others have made theirs by then, or are compared with the next one."""

_Answers = dict[NodeId, tuple[StateStatement, ...]]


@dataclass(frozen=True, slots=True)
class Believed:
    """A claim, and the statements of the quorum that makes it believed."""

    claim: Claim
    stated: tuple[StateStatement, ...]


class Claims:
    """Asks all signers."""

    def __init__(
        self,
        store: SnapshotStore,
        ledger: LedgerStore,
        *,
        transport: PeerTransport,
        verification: Verification,
        clock: Clock,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._network = ledger.network
        self._transport = transport
        self._verification = verification
        self._clock = clock

    @property
    def _configuration(self) -> Configuration:
        return self._ledger.configuration

    @property
    def _others(self) -> list[NodeId]:
        return [node for node in self._configuration.signers if node != self._transport.me]

    async def newest(self) -> Believed | None:
        """Return the highest claim that a quorum of signers states, as soon as it is known or cannot be."""
        stated = await self._ask(self._is_decided)
        claim = believed(stated, self._network, self._configuration)
        if claim is None:
            return None
        return Believed(claim, supporters(stated, claim, self._network, self._configuration))

    async def contradiction(self, own: StateStatement) -> Claim | None:
        """Return what a quorum states of the height of a statement of ours, when that is something else."""
        stated = await self._ask(lambda _: False)
        of_height = [one for one in stated if one.height == own.height]
        claim = believed(of_height, self._network, self._configuration)
        return claim if claim is not None and claim != own.claim else None

    def _is_decided(self, answers: _Answers) -> bool:
        """Whether no answer that is still out could make a higher claim believed than is."""
        stated, quorum = _together(answers), self._configuration.certificate_quorum
        left = len(self._others) + 1 - len(answers)
        known = believed(stated, self._network, self._configuration)
        lowest = known.height if known is not None else 0
        counts = Counter(one.claim for one in stated if one.height > lowest)
        return max(counts.values(), default=0) + left < quorum

    async def _ask(self, is_enough: Callable[[_Answers], bool]) -> list[StateStatement]:
        """Return what all signers state that answer in time, or before it is enough; this node's own among it."""
        answers: _Answers = {self._transport.me: self._store.statements()}

        async def ask(node: NodeId) -> None:
            answers[node] = await self._statements(node)
            if is_enough(answers):
                nursery.cancel_scope.cancel()

        with trio.move_on_after(_PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for node in self._others:
                    nursery.start_soon(ask, node)
        return _together(answers)

    async def _statements(self, node: NodeId) -> tuple[StateStatement, ...]:
        while True:
            try:
                answer = await self._transport.call(node, STATEMENTS, b"", timeout_ms=_TIMEOUT_MS)
            except Unavailable:
                await self._clock.sleep_ms(_ASK_AGAIN_MS)
                continue
            except RemoteFault:
                return ()
            try:
                return codec.decode(answer, StateStatements).statements
            except Malformed as fault:
                self._verification.reject(node, fault)
                return ()


def _together(answers: _Answers) -> list[StateStatement]:
    return list(dict.fromkeys(one for said in answers.values() for one in said))


class StateCheck:
    """Compares what this signer states with what the others do, a while after each snapshot; `trouble` says when it differs."""

    def __init__(
        self, space: SnapshotSpace, maker: SnapshotMaker, claims: Claims, *, clock: Clock, log: EventLog
    ) -> None:
        self._store = SnapshotStore(space.rows)
        self._disk = space.disk
        self._maker = maker
        self._claims = claims
        self._clock = clock
        self._log = log
        self.trouble = ""

    async def run(self) -> None:
        """Compare until cancelled, or until it differs: what this node computes from then on is not to be relied on."""
        while not self.trouble:
            own = await self._maker.wait_stated()
            await self._clock.sleep_ms(_COMPARE_AFTER_MS)
            if await self._claims.contradiction(own) is not None:
                await self._alarm(own)

    async def _alarm(self, own: StateStatement) -> None:
        self.trouble = (
            f"the state of this node after block {own.height} is not what a quorum of signers has: this program or this "
            "machine has made an error; run carechain audit verify, then carechain run --rebuild ledger"
        )
        self._log.error("the state of this node is not that of the other signers", height=own.height)
        self._maker.stop()
        batch = Batch()
        self._store.put_all_removed(batch)
        await self._disk.commit(batch, sync=False)
