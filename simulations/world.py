"""N real nodes on virtual ports: they start, crash at any await, and start again from what their disks kept.

Faults are methods of the world. All of them end with `heal`; most of them can be ended one by one.
"""

import traceback
from collections.abc import Awaitable, Callable

import trio

from node.core import Core, Ports
from protocol.errors import Corruption
from protocol.raft.state import Role
from protocol.signing import SigningKey
from simulations import determinism
from simulations.clock import VirtualEntropy, VirtualWorkers
from simulations.disk import DiskFaults, DiskSpeed, VirtualDisk
from simulations.machine import (
    CLOCK_DRIFT_MAX,
    CLOCK_OFFSET_MS_MAX,
    Crashed,
    Incarnation,
    Node,
    found_network,
    new_node,
    snapshot_space,
)
from simulations.network import GOOD, Network
from simulations.transport import VirtualTransport
from simulations.witness import Witness
from storage import keyspace
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore

__all__ = ["CLOCK_DRIFT_MAX", "CLOCK_OFFSET_MS_MAX", "Crashed", "Incarnation", "Node", "World"]

_STOP_AFTER_FAILURE_S = 1.0
"""A node whose disk has failed must have ended by then: what it would do later, nobody could rely on."""
_REBUILD_AFTER_S = 5.0
"""How long an operator takes to run `--rebuild ledger` where a node has ended on damaged bytes."""
_REJOIN_S = 30.0
_LOOK_EVERY_S = 0.1
_ROWS_PER_TABLE_BLOCK = 8
_ROTTEN = (keyspace.BLOCK, keyspace.STATE, keyspace.CERTIFICATE)


class World(Witness):
    """The nodes, the network between them, and the checkers that watch both."""

    def __init__(self, seed: int, *, voters: int, observers: int, witnesses: int = 0) -> None:
        members = voters + witnesses + observers
        keys = [SigningKey(determinism.stream(seed, f"key/{i}").randbytes(32)) for i in range(members)]
        super().__init__(found_network(seed, keys, voters, witnesses))
        self.seed = seed
        self.network = Network(determinism.stream(seed, "network"))
        self.nodes = tuple(new_node(seed, index, key) for index, key in enumerate(keys))
        self._rot = determinism.stream(seed, "rot")
        self._was_excused = False
        self._nursery: trio.Nursery | None = None

    # --- life and death -------------------------------------------------------------------------------------------

    async def run(self, story: Callable[[], Awaitable[None]]) -> None:
        """Run all nodes until the story has ended."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.network.run)
            for node in self.nodes:
                await self.start(node)
            try:
                await story()
            finally:
                for node in self.nodes:
                    self.resume(node)  # who stands still could not be ended
                nursery.cancel_scope.cancel()

    def up(self) -> tuple[Incarnation, ...]:
        """Return the running nodes, in order."""
        return tuple(node.life for node in self.nodes if node.life is not None and node.life.is_up)

    def leader(self) -> Node | None:
        """Return who leads in the highest term, if anybody does."""
        best: tuple[int, Node] | None = None
        for node in self.nodes:
            consensus = node.life.core.consensus if node.life is not None and node.life.is_up else None
            if consensus is None or consensus.raft.role is not Role.LEADER:
                continue
            if best is None or consensus.raft.term > best[0]:
                best = consensus.raft.term, node
        return best[1] if best else None

    async def start(self, node: Node) -> None:
        """Start a node that is down, or going down."""
        assert self._nursery is not None
        if node.life is not None and not node.life.is_up:
            await node.life.ended.wait()
        if node.life is None and not node.is_starting:
            node.is_starting = True
            self.history.record("start", node.index)
            booted = trio.Event()
            self._nursery.start_soon(self._live, node, booted)
            await booted.wait()

    async def crash(self, node: Node) -> None:
        """Take a node's power away, wherever its tasks are, and let its disk forget."""
        life = node.life
        if life is None or not life.is_up:
            return
        self.history.record("crash", node.index)
        self._stop(node, life)
        await life.ended.wait()

    def _stop(self, node: Node, life: Incarnation) -> None:
        life.is_up = False
        life.disk.power_off()
        life.snapshot_disk.power_off()
        self.network.detach(life.transport)
        life.nursery.cancel_scope.cancel()
        # Who was stopped ends like any other, now that nothing it does leaves it.
        self.resume(node)

    async def _live(self, node: Node, booted: trio.Event) -> None:
        life: Incarnation | None = None
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                life = node.life = self._boot(node, nursery)
                nursery.start_soon(life.disk.run)
                nursery.start_soon(life.snapshot_disk.run)
                nursery.start_soon(life.core.run)
                nursery.start_soon(self.watch, node, life.core)
                node.is_starting = False
                booted.set()
        except Exception as error:  # noqa: BLE001 - whatever ends a node is a finding, or expected of its disk
            failure = error
        if life is not None:
            self._stop(node, life)
            self._forget(node, life)
            life.ended.set()
        node.rows, node.snapshot_rows = node.rows.reopened(), node.snapshot_rows.reopened()
        node.life = None
        node.is_starting = False
        if failure is not None:
            self._failed(node, life, failure)
        booted.set()

    def _boot(self, node: Node, nursery: trio.Nursery) -> Incarnation:
        node.lives += 1
        name = f"{node.index}/{node.lives}"
        members = tuple(member.id for member in self.nodes)
        transport = VirtualTransport(
            node.id,
            members,
            self.network,
            nursery,
            broke=lambda text: self.report(f"node {node.index}: {text}"),
            sent=lambda channel, body: self.saw_sent(node, channel, body),
        )
        disk = VirtualDisk(
            node.rows,
            node.disk_speed,
            determinism.stream(self.seed, f"disk/{name}"),
            lambda batch, sync: self.saw_written(node, batch, sync=sync),
            faults=node.disk_faults,
            failed=lambda: self._disk_failed(node),
        )
        snapshot_rng = determinism.stream(self.seed, f"snapshots/{name}")
        snapshot_disk = VirtualDisk(node.snapshot_rows, node.disk_speed, snapshot_rng, lambda *_: None)
        ports = Ports(
            transport=node.wire(transport),
            disk=disk,
            workers=VirtualWorkers(determinism.stream(self.seed, f"workers/{name}"), 0.1),
            clock=node.clock,
            entropy=VirtualEntropy(determinism.stream(self.seed, f"entropy/{name}")),
            log=self.log_of(node),
            snapshots=snapshot_space(node, snapshot_disk),
        )
        store = LedgerStore(node.rows, self.configuration)
        self.saw_start(node, store.hard_state(), store.history_height())
        core = Core(ports, store, node.key)
        self.network.attach(transport)
        return Incarnation(core, transport, disk, snapshot_disk, nursery, trio.current_time())

    def _forget(self, node: Node, life: Incarnation) -> None:
        lost_since = life.disk.lose_unsynced()
        life.snapshot_disk.lose_unsynced()
        if any(other.was_lied_to and not self._votes(other) for other in self.nodes if other is not node):
            self.excuse()  # who might have told it what it had promised is gone
        if lost_since is None:
            return
        self.history.record("forgot", node.index)
        self.durable.forgot(node.id)
        node.is_forgetful = node.was_lied_to = True
        voters = [
            other for other in self.nodes if other.id in self.configuration.voters and other is not node
        ]
        if any(other.life is None or other.life.started_s > lost_since for other in voters):
            self.excuse()

    @staticmethod
    def _votes(node: Node) -> bool:
        """Whether a voter runs that has made sure that it may sign."""
        return node.life is not None and node.life.core.is_voting

    # --- what ends a node by itself -------------------------------------------------------------------------------

    def _failed(self, node: Node, life: Incarnation | None, error: BaseException) -> None:
        for line in "".join(traceback.format_exception(error)).splitlines():
            self.log.append(line)
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if life is not None and error is life.disk.failure:
            self.history.record("failed", node.index)
            self._after_life(node, node.down_after_failure_s, self.start)
        elif isinstance(error, Corruption) and node.rows.damaged:
            self.history.record("damaged", node.index)
            self._after_life(node, _REBUILD_AFTER_S, self.rebuild)
        else:
            self.report(f"node {node.index} failed: {type(error).__name__}: {error}")

    def _after_life(self, node: Node, after_s: float, action: Callable[[Node], Awaitable[None]]) -> None:
        """Do something with a node that is down, unless it lives again by then."""
        lives = node.lives

        def act() -> None:
            assert self._nursery is not None
            if node.life is None and node.lives == lives:
                self._nursery.start_soon(action, node)

        self.network.later(after_s, act)

    def _disk_failed(self, node: Node) -> None:
        life = node.life

        def look() -> None:
            if life is None or not life.is_up:
                return
            if node.is_paused:
                self.network.later(_STOP_AFTER_FAILURE_S, look)
            else:
                self.report(f"node {node.index} goes on although its disk has failed")

        self.network.later(_STOP_AFTER_FAILURE_S, look)

    async def rebuild(self, node: Node) -> None:
        """Replace a node's ledger by an empty one that says so, and start it: what an operator does with a damaged one."""
        await self.crash(node)
        self.history.record("rebuild", node.index)
        node.rows = MemoryStore()
        if determinism.stream(self.seed, f"rebuild/{node.index}/{node.lives}").random() < 0.5:
            node.snapshot_rows = MemoryStore()  # another disk; else snapshots made here help
        LedgerStore.mark_rebuilt(node.rows)
        self.durable.forgot(node.id)
        node.is_forgetful = True
        await self.start(node)

    # --- faults of disks ------------------------------------------------------------------------------------------

    def fail_disk(self, node: Node, down_s: float = 1.0) -> None:
        """Let the next synchronised write end in EIO. The node must stop; it is started again `down_s` later.

        What that write left is unknown, as after a power failure in the middle of it.
        """
        node.disk_faults.fails_next = True
        node.down_after_failure_s = down_s
        self.history.record("disk-error", node.index)

    def fill_disk(self, node: Node) -> None:
        """Leave no room: what holds values is refused before anything is written, until `free_disk`."""
        node.disk_faults.is_full = True
        self.history.record("disk-full", node.index)

    def free_disk(self, node: Node) -> None:
        """Make room again."""
        node.disk_faults.is_full = False
        self.history.record("disk-free", node.index)

    def rot_disk(self, node: Node) -> None:
        """Flip a bit in a few blocks, certificates or rows of state side by side that a node has stored, running or not.

        LevelDB has one checksum for some rows. Whoever reads one of them gets Corruption. A node that ends on it is rebuilt by its operator. Only one voter may be
        damaged or rebuilt at a time: when a second one loses its ledger before the first has it back, what both had
        promised is gone, and only governance helps (ledger.md 7.4). So a bit of a second one is spared.
        """
        unwell = [other for other in self.nodes if other is not node and other.is_unwell]
        family = self._rot.choice(_ROTTEN)
        if family == keyspace.STATE:
            family = node.rows.get(keyspace.STATE_IN_USE) or family
        keys = [key for key, _ in node.rows.undamaged().scan(*keyspace.prefix_range(family))]
        if unwell or not keys:
            self.history.record("bit-rot", node.index, "spared")
            return
        # Half of the time near the end, where it is met soon.
        first = self._rot.randrange(
            max(0, len(keys) - 2 * _ROWS_PER_TABLE_BLOCK) if self._rot.random() < 0.5 else 0, len(keys)
        )
        node.rows.damage(keys[first : first + _ROWS_PER_TABLE_BLOCK])
        self.history.record("bit-rot", node.index, family.decode())

    def lie_disk(self, node: Node) -> None:
        """Let a disk say of all writes from now on that they are synchronised, and lose the latest when power fails.

        At most one disk may lie. What is demanded: no more than that the node's own store is behind. Its promises are in
        the memory of those they were given to; it asks them after its crash (`node.recall`), and signs nothing that could
        contradict one. So nothing final is lost and no vote is cast twice as long as every other voter has run since the
        first write that was lost until the liar has asked them all. Otherwise two of three voters, the liar and one that
        was away, have failed at once; then the world is `is_excused`, and says so in its history.
        """
        assert not any(other.disk_faults.lies for other in self.nodes if other is not node), (
            "at most one lies"
        )
        node.disk_faults.lies = True
        self.history.record("disk-lies", node.index)

    # --- faults of processes, clocks and links --------------------------------------------------------------------

    def pause(self, node: Node) -> None:
        """Stop a node's tasks where they are (SIGSTOP): clock, time-outs and peers go on, messages queue up, bounded.

        It finds all that has happened when it is resumed. Crashing it ends the pause.
        """
        if node.life is not None and node.life.is_up and not node.is_paused:
            self.history.record("pause", node.index)
            node.is_paused = True
            self._hold()

    def resume(self, node: Node) -> None:
        """Let a node that stands still go on."""
        if node.is_paused:
            self.history.record("resume", node.index)
            node.is_paused = False
            self._hold()

    def _hold(self) -> None:
        held = {node.life.nursery for node in self.nodes if node.is_paused and node.life is not None}

        def is_held(task: trio.lowlevel.Task) -> bool:
            nursery = task.parent_nursery
            while nursery is not None and nursery not in held:
                nursery = nursery.parent_task.parent_nursery
            return nursery is not None

        determinism.hold_tasks(is_held if held else None)

    def set_clock(self, node: Node, *, offset_ms: int | None = None, drift: float | None = None) -> None:
        """Let a node's wall clock jump to `offset_ms` off the true time, and gain `drift` seconds per second; None: as before."""
        self.are_clocks_wrong = True
        node.clock.set(offset_ms=offset_ms, drift=drift)
        self.history.record("clock", node.index, str(offset_ms), str(drift))

    def clog(self, node: Node, peer: Node, seconds: float | None = None) -> None:
        """Hold what one node sends another, then deliver it all at once; None: until `heal`."""
        self.network.clog(node.id, peer.id, seconds)
        self.history.record("clog", node.index, peer.index)

    def flap(self, node: Node, peer: Node, every_s: float, seconds: float | None = None) -> None:
        """Cut and join a link, both ways, in turn every `every_s` seconds; None: until `heal`."""
        self.network.flap(node.id, peer.id, every_s, seconds)
        self.history.record("flap", node.index, peer.index)

    def bridge(self, node: Node, seconds: float | None = None) -> None:
        """Cut all links between two halves of the others, which only `node` still joins; None: until `heal`."""
        others = [other.id for other in self.nodes if other is not node]
        half = len(others) // 2
        pairs = [(one, other) for one in others[:half] for other in others[half:]]
        self.network.cut_for([*pairs, *((other, one) for one, other in pairs)], seconds)
        self.history.record("bridge", node.index)

    # --- healing --------------------------------------------------------------------------------------------------

    async def heal(self) -> None:
        """Make everything whole: links, clocks, disks, and nodes that are down, stand still or hold damaged rows.

        Where nothing came of more failures than the ledger withstands until the healing after them, all is demanded again.
        """
        if self.is_excused and self._was_excused and not self.history.counts["excused"]:
            self.is_excused = False
        self._was_excused = self.is_excused
        self.history.record("heal")
        self.network.heal()
        self.network.quality = GOOD
        for node in self.nodes:
            self.resume(node)
            node.disk_speed.sync_ms = DiskSpeed().sync_ms
            faults, whole = node.disk_faults, DiskFaults()
            faults.fails_next, faults.is_full, faults.lies = whole.fails_next, whole.is_full, whole.lies
            node.clock.set(offset_ms=node.skew[0], drift=node.skew[1])
            await self.start(node)
        for node in self.nodes:
            if node.rows.damaged:
                await self.rebuild(node)
                await self._rejoined(node)

    async def _rejoined(self, node: Node) -> None:
        """Wait until a node that was rebuilt has its ledger back: two voters that both wait for each other would do so for ever."""
        takes_part = node.id in self.configuration.participants
        with trio.move_on_after(_REJOIN_S):
            while takes_part and not self._votes(node):  # noqa: ASYNC110 - no task of a node may know that it is watched
                await trio.sleep(_LOOK_EVERY_S)
