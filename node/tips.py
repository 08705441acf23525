"""Tip statements: each signer says once a second how far it is, and so that only one process says it (ledger.md 7.3).

    say ─► every other participant: keeps the newest of each signer
                  │ an earlier session speaks after a later one: two processes with one key
                  └─► says so (`status`), and shows it the later one ─► checked there ─► Superseded: the process ends

A copied home would otherwise vote twice, by nobody's will, and its facility be convicted of lying. One that starts while
another still speaks ends before it has signed (`node.fence`), as far as others hear both: a copy started by mistake does no
harm then. So also who may not sign yet, or not now, says that it runs. Of two that have both come to sign the later session
stays: who restores a home on another machine means that one. Statements are hints: their signatures are checked only where
one would end a process.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import trio

from node.ports import Clock, Entropy, PeerTransport
from node.presences import Presences
from protocol import codec, limits
from protocol.errors import Malformed, Superseded
from protocol.identifiers import Height, NetworkId, NodeId
from protocol.signing import SigningKey
from protocol.tip_statement import Farewell, Presence, Session, TipStatement, state_tip, tip_valid

CHANNEL = "tips"
INTERVAL_MS = 1_000
_LOOK_MS = 250
"""How soon whoever connects is told: of two processes with one key, each has a connection for moments only."""
_TWINS_MS = 30_000
"""So long after two processes with one key were heard, `status` says so."""
_INBOX_MAX = 4 * limits.MEMBERS_MAX
_DEAD_AFTER_S = 5.0
"""A later session that others show, and that has said nothing new for so long, has ended: its number is passed over."""
_TWICE = (
    "another process with this member's key {}, and this one has ended: a home must never run twice; "
    "stop the other one, or remove this copy"
)


@dataclass(frozen=True, slots=True)
class Standpoint:
    """What a signer states: see `TipStatement`."""

    epoch: int
    certified_height: Height
    vote_height: Height
    vote_hash: bytes


@dataclass(frozen=True, slots=True)
class Heard:
    """The newest statement of a signer, and how long ago it came."""

    statement: TipStatement
    age_ms: int


_Said = TipStatement | Farewell | Presence


class Tips:
    """This node's statements and those it hears. `say` and `listen` run as long as the node."""

    def __init__(
        self,
        key: SigningKey,
        network: NetworkId,
        transport: PeerTransport,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._key = key
        self._me = NodeId(key.public)
        self._network = network
        self._transport = transport
        self._clock = clock
        self._started_ms = clock.now_ms()
        self.session = Session(0, 1, entropy.bytes(32))
        """Which process this is among all with its key."""
        self.is_alone = trio.Event()
        """Set when this process has made sure, as far as others can tell, that no other one with its key speaks."""
        self.presences = Presences()
        self._newest: dict[NodeId, tuple[TipStatement, float]] = {}
        self._twins: dict[NodeId, float] = {}
        self._later: tuple[TipStatement, float] | None = None
        self._superseded: Superseded | None = None
        self._has_ended = False

    # --- which process this is ------------------------------------------------------------------------------------

    def begin(self, incarnation: int) -> None:
        """Speak under an incarnation from now on."""
        if incarnation != self.session.incarnation:
            self.session = replace(self.session, incarnation=incarnation, number=1)

    def begin_after(self, seen: Iterable[TipStatement]) -> None:
        """Be a later session than those that others have heard of this member."""
        for statement in seen:
            if self._is_rivals(statement) and statement.incarnation == self.session.incarnation:
                self._pass_over(statement)

    def check(self) -> None:
        """End this process if another one with its key goes on.

        Raises:
            Superseded: it does.
        """
        if self._superseded is not None:
            raise self._superseded

    def take_own(self, statement: TipStatement, *, after: TipStatement | None) -> None:
        """Take what somebody has heard under this member's key, who had shown `after` before.

        Two different ones made since this process started come from a living process, whatever its session: others keep
        what the last life of this one said, but do not hear more of it.
        """
        goes_on = after is not None and after.of == statement.of and after.time_ms < statement.time_ms
        is_living = goes_on and statement.time_ms >= self._started_ms
        if is_living and self._is_rivals(statement):
            self._supersede(statement)

    def give_way(self) -> None:
        """End this process: more members than may lie have heard another one with its key that goes on beside it."""
        self._superseded = Superseded(_TWICE.format("runs"))

    def _hear_own(self, statement: TipStatement) -> None:
        """Take a statement under this member's key that a peer has shown because it is of a later session."""
        if statement.of <= self.session or not self._is_rivals(statement):
            return
        before, now = self._later, trio.current_time()
        if before is None or before[0].of < statement.of:
            self._later = statement, now
            return
        if statement.of == before[0].of and statement.time_ms > before[0].time_ms >= self._started_ms:
            self._supersede(statement)
        elif now - before[1] > _DEAD_AFTER_S and statement.incarnation == self.session.incarnation:
            self._pass_over(statement)

    def _pass_over(self, statement: TipStatement) -> None:
        self.session = replace(self.session, number=max(self.session.number, statement.session + 1))

    def _supersede(self, statement: TipStatement) -> None:
        which = f"signs as incarnation {statement.incarnation}, start {statement.session}"
        self._superseded = Superseded(_TWICE.format(which))

    def _is_rivals(self, statement: TipStatement) -> bool:
        is_other = statement.signer == self._me and statement.nonce != self.session.nonce
        return is_other and tip_valid(statement, self._network)

    # --- what others say ------------------------------------------------------------------------------------------

    def of(self, node: NodeId) -> Heard | None:
        """Return the newest statement of a signer that was heard here."""
        known = self._newest.get(node)
        return Heard(known[0], round((trio.current_time() - known[1]) * 1000)) if known is not None else None

    def twins(self) -> tuple[NodeId, ...]:
        """Return the members of which two processes were heard lately, sorted."""
        since = trio.current_time() - _TWINS_MS / 1000
        return tuple(sorted(node for node, at in self._twins.items() if at >= since))

    def hear_farewell(self, source: NodeId, farewell: Farewell) -> None:
        """Note that a session has ended: whoever comes after it need not wait whether it still speaks."""
        self.presences.forget(source, farewell.nonce)
        known = self._newest.get(source)
        if known is not None and known[0].nonce == farewell.nonce:
            self._newest[source] = known[0], trio.current_time() - _TWINS_MS / 1000

    def hear_presence(self, source: NodeId, nonce: bytes) -> None:
        """Note that a process of a member runs, by its own word."""
        if self.presences.note(source, nonce):
            self._twins[source] = trio.current_time()

    def hear(self, source: NodeId, statement: TipStatement) -> TipStatement | None:
        """Note a statement; return what its sender should be shown."""
        if statement.signer == self._me:
            self._hear_own(statement)
        if statement.signer != source or source == self._me:
            return None  # only at first hand
        self.hear_presence(source, statement.nonce)
        known, now = self._newest.get(source), trio.current_time()
        # A later session that has been silent for long is gone, and was of a home that nobody runs any more.
        if known is None or statement.of >= known[0].of or now - known[1] >= _TWINS_MS / 1000:
            self._newest[source] = statement, now
            return None
        self._twins[source] = now
        return known[0]

    async def listen(self) -> None:
        """Hear what others say, until cancelled.

        Raises:
            Superseded: another process with this member's key goes on, and is the later one.
        """
        inbox = self._transport.inbox(CHANNEL, _INBOX_MAX)
        async for source, body in inbox:
            try:
                said: _Said = codec.decode_union(body, _Said)
            except Malformed:
                continue  # of another version: a hint less
            if isinstance(said, Farewell):
                self.hear_farewell(source, said)
                continue
            if isinstance(said, Presence):
                self.hear_presence(source, said.nonce)
                continue
            later = self.hear(source, said)
            self.check()
            if later is not None:
                self._transport.send(source, CHANNEL, codec.encode(later))

    async def say(
        self, standpoint: Callable[[], Standpoint | None], audience: Callable[[], Iterable[NodeId]]
    ) -> None:
        """State this node's tip once a second, until cancelled or ended.

        While `standpoint` is None it must not sign, and says no more than that it runs.
        """
        told: set[NodeId] = set()
        since_ms, could_sign = INTERVAL_MS, False
        while not self._has_ended:
            at = standpoint()
            connected = {peer.node for peer in self._transport.peers() if peer.connected}
            everybody = since_ms >= INTERVAL_MS or could_sign != (at is not None)
            if everybody or connected - told:
                said = self._stated(at) if at is not None else codec.encode(Presence(self.session.nonce))
                self._send(said, [node for node in audience() if everybody or node not in told])
            told, could_sign = connected, at is not None
            since_ms = _LOOK_MS if everybody else since_ms + _LOOK_MS
            await self._clock.sleep_ms(_LOOK_MS)

    def _stated(self, at: Standpoint) -> bytes:
        return codec.encode(
            state_tip(
                self._key,
                self._network,
                self.session,
                epoch=at.epoch,
                certified_height=at.certified_height,
                vote_height=at.vote_height,
                vote_hash=at.vote_hash,
                time_ms=self._clock.now_ms(),
            )
        )

    def end(self, audience: Iterable[NodeId]) -> None:
        """Say that this process has ended in good order, and nothing more."""
        self._has_ended = True
        self._send(codec.encode(Farewell(self.session.nonce)), audience)

    def _send(self, body: bytes, audience: Iterable[NodeId]) -> None:
        for node in audience:
            if node != self._me:
                self._transport.send(node, CHANNEL, body)
