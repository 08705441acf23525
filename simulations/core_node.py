"""One member of tier A: drives a `Raft` core as `node.consensus` does, on an agenda instead of tasks.

Each life steps what arrives, lets the core work until it has nothing more to do, and keeps the driver's order: what must
be durable is written first (which takes a while, and during which messages go on arriving), what promises nothing leaves
at once. Everything that was asked of a life is gone with it.
"""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from protocol import codec, ledger_state, limits
from protocol.block import Block
from protocol.errors import NotLeader, Refused, RemoteFault, Unavailable
from protocol.finality import Certificate
from protocol.identifiers import Digest, Height, NodeId, Txid
from protocol.ledger_rows import Receipt, receipt_key
from protocol.raft.log import Log
from protocol.raft.machine import Raft
from protocol.raft.messages import CheckedAppend, is_urgent
from protocol.raft.state import HardState, Ready, Role
from protocol.signing import SigningKey
from simulations.clock import START_MS
from simulations.core_checkers import ordered_term
from simulations.core_disk import CoreDisk
from simulations.core_life import Life, Submission
from simulations.core_network import Frame

if TYPE_CHECKING:
    from simulations.core_cluster import Cluster

GOOD_SYNC_MS = 2.0
_BLOCKS_IN_FLIGHT = 4
_POOL_MAX = 1_000
_TICK_S = limits.TICK_MS / 1000
_RETRY_S = 0.2
"""How often a submission looks for a leader, and a write for space."""


class CoreNode:
    """One member: its disk and clock, and its present life."""

    def __init__(self, world: "Cluster", index: int, key: SigningKey, rng: Random) -> None:
        self.world = world
        self.index = index
        self.key = key
        self.id = NodeId(key.public)
        self.disk = CoreDisk(world.genesis)
        self.life: Life | None = None
        self.lives = 0
        self.sync_ms = GOOD_SYNC_MS
        self.offset_ms = 0.0
        self.drift = 0.0
        self._drift_since = 0.0
        self.is_paused = False
        self.is_full = False
        self.fails_next = False
        self.on_write: Callable[[float], None] | None = None
        """Called once, with its length in seconds, when the next write begins."""
        self.on_failure: Callable[[], None] | None = None
        """Called once, when a write has failed and the node has stopped."""
        self._rng = rng

    # --- life and death -------------------------------------------------------------------------------------------

    @property
    def takes_part(self) -> bool:
        """Whether the newest certified or stored configurations on this disk let the node run a core."""
        world, blocks = self.world, self.disk.blocks
        above = [
            blocks[self.disk.applied],
            *(b for b in blocks[self.disk.applied + 1 :] if b.is_configuration),
        ]
        known = [world.configurations.above(block) for block in above]
        return any(self.id in (*one.signers, *one.learners) for one in known)

    def start(self) -> None:
        """Start from what the disk holds; a member that has left stays down."""
        if self.life is not None or not self.takes_part:
            return
        self.lives += 1
        world, disk = self.world, self.disk
        world.record("start", self.index)
        world.durable.started(self.id, disk.hard_state)
        world.chain.started(self.id, disk.applied)
        world.commits.started(self.id, disk.applied)
        raft = world.make_core(
            key=self.key,
            network=world.network_id,
            configuration=world.configurations.above(disk.blocks[disk.applied]),
            hard_state=disk.hard_state or HardState.initial(),
            log=Log(disk, disk.applied, disk.frontier, disk.blocks[disk.applied + 1 :]),
            timeout_seed=self._rng.randbytes(32),
        )
        self.life = life = Life(raft, disk.applied)
        world.agenda.after(self._rng.random() * _TICK_S, self._tick, life)

    def crash(self) -> None:
        """Lose power: what was not synchronised may be gone."""
        life = self.life
        if life is None:
            return
        self.world.record("crash", self.index)
        self.life = None
        self.is_paused = False
        self.on_write = None
        self.world.reads.lost(self.id)
        writing = None if self.is_full else life.writing
        if self.disk.crash(writing, self._rng) and writing is not None:
            self.world.written(self, writing)

    def pause(self) -> None:
        """Stand still; what arrives waits, as much as a socket holds."""
        if self.life is not None and not self.is_paused:
            self.is_paused = True
            self.world.record("pause", self.index)

    def resume(self) -> None:
        """Go on, with everything that has waited at once."""
        life = self.life
        if life is None or not self.is_paused:
            return
        self.is_paused = False
        self.world.record("end", "pause", self.index)
        while life.held and self.life is life:
            life.held.popleft()()
        self._turn(life)

    def set_clock(self, *, offset_ms: float | None = None, drift: float | None = None) -> None:
        """Set the clock to the true time plus an offset, or change how much it gains per second."""
        now = self.world.agenda.now
        self.offset_ms += self.drift * (now - self._drift_since) * 1000
        self._drift_since = now
        if offset_ms is not None:
            self.offset_ms = offset_ms
        if drift is not None:
            self.drift = drift

    def now_ms(self) -> int:
        """Return what this node takes for Unix time, in milliseconds."""
        now = self.world.agenda.now
        return START_MS + int(now * 1000 + self.offset_ms + self.drift * (now - self._drift_since) * 1000)

    # --- inputs ---------------------------------------------------------------------------------------------------

    def receive(self, source: "CoreNode", load: object) -> None:
        """Take a frame or a submission from the network."""
        life = self.life
        if life is None:
            return
        if self.is_paused:
            if len(life.held) < limits.CONSENSUS_INPUTS_MAX:
                life.held.append(lambda: self._step(life, source, load))
            return
        self._step(life, source, load)
        self._turn(life)

    def submit(self, submission: Submission, answer: Callable[[Receipt], None]) -> bool:
        """Ask that a transaction becomes final; return False when the node is down. `answer` is called when it is."""
        life = self.life
        if life is None or self.is_paused:
            return False
        row = self.disk.rows.get(receipt_key(submission.txid))
        if row is not None:
            answer(codec.decode(row, Receipt))
            return True
        life.waiting[submission.txid] = answer
        self._forward(life, submission)
        return True

    def give_up(self, txid: Txid) -> None:
        """Nobody waits for a transaction any more."""
        if self.life is not None:
            self.life.waiting.pop(txid, None)

    def read(self, answer: Callable[[Height | None], None]) -> bool:
        """Begin a linearizable read; return False when no core takes it. `answer` hears the height, or None."""
        life = self.life
        if life is None or self.is_paused:
            return False
        try:
            request = life.raft.read_index()
        except Unavailable:
            return False
        self.world.reads.began(self.id, request)
        life.reads[request] = answer
        self._turn(life)
        return True

    def ask(self, question: Callable[[Raft], object]) -> bool:
        """Let a running core do something; return whether it did (it may not lead, or have to refuse)."""
        life = self.life
        if life is None or self.is_paused:
            return False
        try:
            question(life.raft)
        except (NotLeader, Refused, Unavailable):
            return False
        self._turn(life)
        return True

    def _tick(self, life: Life) -> None:
        if self.life is not life:
            return
        if self.is_paused:
            life.held.append(lambda: self._tick(life))
            return
        self.world.agenda.after(_TICK_S / (1 + self.drift), self._tick, life)
        life.raft.tick(self.now_ms(), waiting=bool(life.waiting))
        self._turn(life)

    def _step(self, life: Life, source: "CoreNode", load: object) -> None:
        if isinstance(load, Submission):
            # What is applied is not ordered again; what is only on its way may be, and then has one effect all the same.
            is_new = receipt_key(load.txid) not in self.disk.rows
            if is_new and life.raft.leader == self.id and len(life.pool) < _POOL_MAX:
                life.pool[load.txid] = load.raw
            return
        assert isinstance(load, Frame)
        try:
            message = load.input()
        except RemoteFault as fault:
            self.world.refused(self, source, load.message, fault)
            life.raft.distrust(source.id)
            return
        if isinstance(message, CheckedAppend):
            for block in message.blocks:
                if block.is_configuration:
                    # Here nobody votes: whatever an operator has proposed counts as pending everywhere.
                    life.raft.expect_configuration(Digest(block.header.next_config_hash))
        try:
            life.raft.step(source.id, message, self.now_ms())
        except RemoteFault as fault:
            self.world.refused(self, source, load.message, fault)

    def _forward(self, life: Life, submission: Submission) -> None:
        if self.life is not life or submission.txid not in life.waiting:
            return
        leader = life.raft.leader
        if leader == self.id:
            self._step(life, self, submission)
            self._turn(life)
        elif leader is not None:
            self.world.post(self.index, leader, submission, lane=0)
        self.world.agenda.after(_RETRY_S, self._forward, life, submission)

    # --- the driver's loop ----------------------------------------------------------------------------------------

    def _turn(self, life: Life) -> None:
        """Let the core work until it has nothing more to do, in the order that it demands (`protocol.raft`)."""
        if self.life is not life or self.is_paused:
            return
        raft = life.raft
        if life.pool or life.led_term != (raft.term if raft.role is Role.LEADER else None):
            self._lead(life)
        while (ready := raft.ready()) is not None:
            if ready.must_persist:
                self._write(life, ready)
            else:
                self._finish(life, ready)
            if life.pool:
                self._lead(life)
        commit = raft.commit_height
        if commit != life.commit:
            life.commit = commit
            self.world.commits.reached(self.id, commit)
        # A leader whose disk is full is ahead of it: the others have what it could not write.
        if life.writing is None and raft.tip_height == self.disk.blocks[-1].height:
            in_force = raft.configuration, self.disk.blocks[-1]
            if life.in_force != in_force:
                life.in_force = in_force
                self.world.configurations.in_force(self.id, *in_force)

    def _lead(self, life: Life) -> None:
        raft = life.raft
        led_term = raft.term if raft.role is Role.LEADER else None
        if led_term is None or led_term != life.led_term:
            life.pool.clear()
        life.led_term = led_term
        while (
            led_term is not None
            and life.pool
            and raft.may_propose
            and raft.uncommitted_count < _BLOCKS_IN_FLIGHT
        ):
            batch = list(life.pool)[: limits.BLOCK_TRANSACTIONS_MAX]
            raft.propose(tuple([life.pool.pop(txid) for txid in batch]), self.now_ms())

    def _write(self, life: Life, ready: Ready) -> None:
        assert life.writing is None, "one write at a time"
        life.writing = ready
        length = self.sync_ms * self._rng.uniform(0.5, 1.5) / 1000
        if self.on_write is not None:
            on_write, self.on_write = self.on_write, None
            on_write(length)
        self.world.agenda.after(length, self._written, life, ready)

    def _written(self, life: Life, ready: Ready) -> None:
        if self.life is not life:
            return
        if self.is_full:
            self.world.agenda.after(_RETRY_S, self._written, life, ready)
            return
        if self.fails_next:
            self.fails_next = False
            self._fail()
            return
        self.disk.persist(ready)
        life.writing = None
        self.world.written(self, ready)
        if self.is_paused:
            life.held.append(lambda: self._finish(life, ready))
            return
        self._finish(life, ready)
        self._turn(life)

    def _fail(self) -> None:
        """End the process: what depended on the write never leaves, and it is not tried again (ledger.md 3.1 no. 30)."""
        self.world.record("disk-error", self.index)
        self.crash()
        if self.on_failure is not None:
            on_failure, self.on_failure = self.on_failure, None
            on_failure()

    def _finish(self, life: Life, ready: Ready) -> None:
        world = self.world
        frames: dict[int, Frame] = {}
        for target, message in ready.messages:
            frame = frames.get(id(message))
            if frame is None:
                # What is durable is the same for whoever else gets it now.
                world.sends.sent(self.id, message, self.disk.hash_at)
                world.votes.sent(self.id, message)
                frame = frames[id(message)] = world.frames.frame(message)
            world.post(self.index, target, frame, lane=1 if is_urgent(message) else 0)
        for contradiction in ready.contradictions:
            world.report(f"node {self.index} found a lie where nobody lies: {contradiction.rule}")
        if ready.certified:
            assert ready.certificate is not None, "what is handed out is certified"
            world.commits.handed_out(self.id, ready.certified, ready.certificate, world.holders)
            life.to_apply.append((ready.certified, ready.certificate))
            if len(life.to_apply) == 1:
                world.agenda.after(world.apply_s * self._rng.random(), self._apply, life)
        for read in ready.reads:
            world.reads.answered(self.id, read.request, read.height)
            life.reads.pop(read.request)(read.height)
        if ready.behind is not None:
            world.compaction.told(self, ready.behind)
        life.raft.advance(ready)

    # --- what is certified ----------------------------------------------------------------------------------------

    def _apply(self, life: Life) -> None:
        if self.life is not life:
            return
        if self.is_paused:
            life.held.append(lambda: self._apply(life))
            return
        groups = list(life.to_apply)
        life.to_apply.clear()
        for blocks, certificate in groups:
            self._apply_group(life, blocks, certificate)

    def _apply_group(self, life: Life, blocks: tuple[Block, ...], certificate: Certificate) -> None:
        world, disk = self.world, self.disk
        writes: dict[bytes, bytes | None] = {}
        outcomes: list[ledger_state.Outcome] = []
        frontier = disk.frontier

        def rows(key: bytes) -> bytes | None:
            return writes[key] if key in writes else disk.rows.get(key)

        for block in blocks:
            assert block.height == disk.blocks[block.height].height, "what is applied is durable"
            applied = ledger_state.apply(rows, world.configuration, block)
            writes.update(applied.writes)
            outcomes.extend(applied.outcomes)
            frontier = frontier.append(block.leaves())
        disk.apply(blocks[-1].height, frontier, writes, certificate)
        for block in blocks:
            world.applied(self, block, ordered_term(certificate))
        for outcome in outcomes:
            if outcome.is_binding and outcome.receipt.txid in life.waiting:
                life.waiting.pop(outcome.receipt.txid)(outcome.receipt)
