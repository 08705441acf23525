"""A member's part in consensus, from its start to its end: what it does before it signs, and whenever it cannot.

┌─ forgotten what it signed ─► rejoin ─┐
start ┴─ recall ─────────────────────────────┴─► take part ──┬─ the leader holds no more blocks for this log ─► follow past ─┐
follow until the configuration says so ◄─ let go ──┤                                                               │
▲        └─ no leader, and somebody shows what is final ─► follow past ──┤
└────────────────────────────── let go meanwhile ────────────────────────┘
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from node.applier import Applier, Certified
from node.catchup import Follower
from node.consensus import Consensus
from node.damage_notice import DamageNotice
from node.event_log import EventLog
from node.gossip import Announcer
from node.hearing import Hearing
from node.membership_leader import ExpectedConfiguration
from node.ports import Clock, Disk, Entropy, PeerTransport
from node.recall import Recall
from node.rejoin import Rejoining
from node.snapshot_install import Installer
from node.tips import Standpoint, Tips
from node.verification import Verification
from protocol import limits
from protocol.block import Block
from protocol.errors import Superseded
from protocol.identifiers import Height, NodeId
from protocol.raft.log import Log
from protocol.raft.machine import Raft
from protocol.raft.state import Contradiction, HardState, Role
from protocol.rejoining import incarnation_of
from protocol.signing import SigningKey
from storage.key_value import Batch
from storage.ledger_store import LedgerStore

_CERTIFIED_MAX = 64
"""Groups of certified blocks waiting for the applier; when full, consensus waits: the ledger never outruns its state."""
_LEADERLESS_MS = 10_000
"""Without a leader for so long, this member looks whether others have gone on without it."""
_STALLED_MS = 5_000
"""So does one that has a leader, when what waits here has not become final for so long."""


@dataclass(frozen=True, slots=True)
class Outside:
    """The ports that a participant needs. `disk` is that of the ledger database."""

    transport: PeerTransport
    disk: Disk
    clock: Clock
    entropy: Entropy
    log: EventLog


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """Blocks up to `height` come otherwise than by Raft; `more` there may be, of which nobody here will tell."""

    height: Height
    more: bool
    shown: tuple[Block, ...] = ()
    """The first of them, where somebody has shown them."""


class Participation:
    """Runs `consensus` while this member takes part and may sign, and the follower while not."""

    def __init__(
        self,
        outside: Outside,
        store: LedgerStore,
        key: SigningKey,
        *,
        applier: Applier,
        verification: Verification,
        follower: Follower,
        installer: Installer | None,
        damage: DamageNotice,
        is_waiting: Callable[[], bool],
        hearing: Hearing,
        tips: Tips,
    ) -> None:
        """`is_waiting` and `hearing` are those of `Consensus`."""
        self._outside = outside
        self._log = outside.log
        self._store = store
        self._key = key
        self._me = NodeId(key.public)
        self._applier = applier
        self._verification = verification
        self._follower = follower
        self._installer = installer
        self._damage = damage
        self._is_waiting = is_waiting
        self._hearing = hearing
        self._tips = tips
        self.is_voting = False
        """Whether this member has made sure that it remembers what it signed, and signs."""
        self.consensus: Consensus | None = None
        if self._takes_part and not store.is_rebuilt():
            self.consensus = self._participant()

    @property
    def _takes_part(self) -> bool:
        """Whether this node takes part in consensus: as voter, learner or witness."""
        return self._me in self._store.configuration.participants

    @property
    def _hard_state(self) -> HardState:
        return self._store.hard_state() or HardState.initial()

    def _participant(self) -> Consensus:
        mark, outside = self._applier.mark, self._outside
        tail = tuple(self._store.blocks(Height(mark.height + 1), self._store.tip_height()))
        raft = Raft(
            key=self._key,
            network=self._store.network,
            configuration=self._store.configuration,
            hard_state=self._hard_state,
            log=Log(self._store, mark.height, mark.frontier, tail),
            timeout_seed=outside.entropy.bytes(32),
        )
        return Consensus(
            raft=raft,
            store=self._store,
            disk=outside.disk,
            transport=outside.transport,
            verification=self._verification,
            clock=outside.clock,
            applied=self._applier.height,
            is_waiting=self._is_waiting,
            hearing=self._hearing,
            expected=ExpectedConfiguration(self._store, self._applier.height).digest,
        )

    def standpoint(self) -> Standpoint | None:
        """Return what this signer says of itself once a second; None while it signs nothing."""
        if not self.is_voting or self.consensus is None or self._me not in self._store.configuration.signers:
            return None
        hard_state = self._hard_state
        height, digest = hard_state.last_vote_height, hard_state.last_vote_hash
        return Standpoint(hard_state.epoch, self._applier.mark.height, height, digest)

    def stop(self) -> None:
        """Forget what was run: `run` was cancelled, and begins anew with what is stored, or never runs in this epoch."""
        self.consensus, self.is_voting = None, False

    async def run(self) -> None:
        """Take part, or follow, until cancelled."""
        if self.consensus is None and self._takes_part and not self._store.is_rebuilt():
            self.consensus = self._participant()
        await self._damage.whole.wait()  # who takes part signs for nothing that it does not hold
        if self.consensus is not None:
            self.consensus = await self._recall(await self._begun(self.consensus))
        if self.consensus is None and self._takes_part:
            self.consensus = await self._rejoin()
        self._tips.is_alone.set()  # who takes no part asks nobody
        while True:
            if self.consensus is None:
                await self._follow_until_taking_part()
                self.consensus = self._participant()
            elsewhere = await self._take_part(self.consensus)
            self.consensus = None
            if elsewhere is not None:
                await self._follow_past(elsewhere)
                if self._takes_part:
                    self._log.info("caught up; voting again", height=self._applier.mark.height)
                    self.consensus = self._participant()

    async def _begun(self, consensus: Consensus) -> Consensus:
        """Return what to run: who has never taken part begins with a snapshot where the network is far ahead."""
        if self._installer is None or self._store.hard_state() is not None:
            return consensus
        is_installed = await self._installer.attempt(Height(self._installer.lag))
        return self._participant() if is_installed else consensus

    async def _recall(self, consensus: Consensus) -> Consensus | None:
        """Make sure that this member knows what it has signed; None when it does not and has to rejoin."""
        hard_state, outside = self._hard_state, self._outside
        self._tips.begin(hard_state.incarnation)
        recall = self._questions()
        known = await recall.wait(hard_state)
        if not recall.is_sure:
            self._log.info("voting again without the word of every other voter")
        if known == hard_state:
            return consensus
        batch = Batch()
        if known is None:
            self._log.warning(
                "this ledger lacks what this voter had acknowledged: its disk has lost it, or it is an older copy"
            )
            self._store.put_forgotten(batch)
        else:
            self._store.put_hard_state(batch, known)
        await outside.disk.commit(batch, sync=True)
        return self._participant() if known is not None else None

    def _questions(self) -> Recall:
        outside = self._outside
        return Recall(self._store.configuration, outside.transport, outside.clock, self._store, self._tips)

    async def _rejoin(self) -> Consensus:
        """Follow until it is safe to sign again, then return what to run."""
        self._log.warning(
            "the ledger was rebuilt, or lacks its end: this voter signs nothing until it has caught up and begun anew"
        )
        outside = self._outside
        if not self._tips.is_alone.is_set():
            await self._questions().make_sure_of_being_alone()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follower.run)
            rejoining = Rejoining(
                self._store,
                self._key,
                transport=outside.transport,
                clock=outside.clock,
                entropy=outside.entropy,
                applied=self._applier.height,
                log=self._log,
            )
            hard_state = await rejoining.wait()
            nursery.cancel_scope.cancel()
        self._tips.begin(hard_state.incarnation)
        batch = Batch()
        self._store.put_hard_state(batch, hard_state)
        self._store.clear_rebuilt(batch)
        await outside.disk.commit(batch, sync=True)
        self._log.info("caught up; voting again", height=self._applier.mark.height)
        return self._participant()

    async def _follow_until_taking_part(self) -> None:
        """Follow the blocks of others until the configuration in force makes this node learner, voter or witness."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follower.run)
            while not self._takes_part:
                await self._applier.height.wait_above(self._applier.height.value)
            nursery.cancel_scope.cancel()
        self._log.info("taking part in consensus", height=self._applier.height.value)

    async def _take_part(self, consensus: Consensus) -> _Elsewhere | None:
        """Take part until blocks have to come otherwise, or this node takes part no longer: None."""
        announcer = Announcer(self._outside.transport, consensus.raft, self._log)
        elsewhere: _Elsewhere | None = None

        async def announce(certified: Certified) -> None:
            # Who takes part has the blocks from the leader: without others a gossip message for each block is for nobody.
            configuration = self._store.configuration
            if len(configuration.participants) < len(configuration.members):
                await announcer.announce(certified)

        async def until_let_go() -> None:
            while self._takes_part:
                await self._applier.height.wait_above(self._applier.height.value)
            nursery.cancel_scope.cancel()

        async def until_superseded() -> None:
            own = self._hard_state.incarnation
            while (newest := incarnation_of(self._store.state, self._me)).number <= own:
                await self._applier.height.wait_above(self._applier.height.value)
            raise Superseded(
                f"block {newest.height} says that this member has begun anew elsewhere: another process has its key, and "
                "this one has ended; a home must never run twice: stop the other one, or remove this copy"
            )

        async def until_without_leader() -> None:
            nonlocal elsewhere
            shown = await self._left_behind(consensus.raft)
            elsewhere = _Elsewhere(shown[-1].height, more=True, shown=shown)
            nursery.cancel_scope.cancel()

        send, receive = trio.open_memory_channel[Certified](_CERTIFIED_MAX)
        self.is_voting = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announcer.run)
            nursery.start_soon(self._applier.run, receive, announce)
            nursery.start_soon(until_let_go)
            nursery.start_soon(until_superseded)
            nursery.start_soon(until_without_leader)
            nursery.start_soon(consensus.run, send)
            elsewhere = _Elsewhere(await consensus.wait_behind(), more=False)
            nursery.cancel_scope.cancel()
        self.is_voting = False
        return elsewhere

    async def _left_behind(self, raft: Raft) -> tuple[Block, ...]:
        """Wait until there is no leader, or nothing final from it, for long, and somebody shows what is final; return that.

        Who was let go while it was away hears of no leader: those who remember that it left may have restarted since. And
        whom a leader tells another story than the others hears from it for ever, of blocks that nobody makes final (P6).
        """
        clock, silent_ms = self._outside.clock, 0
        while True:
            await clock.sleep_ms(_LEADERLESS_MS // 10)
            silent_ms = silent_ms + _LEADERLESS_MS // 10 if raft.leader is None else 0
            if silent_ms < _LEADERLESS_MS and not _is_stalled(raft):
                continue
            silent_ms = 0
            shown = await self._follower.shown_final()
            is_left_behind = raft.leader is None or _is_stalled(raft)
            if shown and is_left_behind and shown[-1].height > self._applier.mark.height:
                return shown

    async def _follow_past(self, elsewhere: _Elsewhere) -> None:
        """Follow, by a snapshot or by blocks of any member, until past a height; what was promised before is kept."""
        height = elsewhere.height
        self._log.info("the next blocks come from no leader; following other members", height=height)
        await self._leave_tail(elsewhere.shown)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(self._follower.run, is_behind=not elsewhere.more))
            await self._applier.height.wait_above(Height(height - 1))
            nursery.cancel_scope.cancel()
        if elsewhere.more:
            await self._follower.pull()

    async def _leave_tail(self, shown: tuple[Block, ...]) -> None:
        """Note that the own tail makes way for certified blocks, if it does (P5): that takes a liar, who may be convicted by it."""
        parting = self._parting(shown)
        if parting is None:
            return
        batch = Batch()
        # Before the blocks go: after a crash in between, a promise without its block would be damage, or an old copy.
        self._store.put_hard_state(batch, self._hard_state.leaving(shown[-1].height))
        await self._outside.disk.commit(batch, sync=True)
        self._log.warning(
            "members have made final what this member was told otherwise", height=parting[0].height
        )
        self._hearing.contradiction(Contradiction("E1", *parting))

    def _parting(self, shown: tuple[Block, ...]) -> tuple[Block, Block] | None:
        """Return the lowest block stored here that another one is certified in the place of, and that one."""
        tip = self._store.tip_height()
        for block in shown:
            if self._applier.mark.height < block.height <= tip:
                own = self._store.block(block.height)
                if own.hash != block.hash:
                    return own, block
        return None


def _is_stalled(raft: Raft) -> bool:
    """Return whether what waits here has not become final for long; a leader is told by the votes it gets."""
    return raft.role is not Role.LEADER and raft.stalled_ticks * limits.TICK_MS >= _STALLED_MS
