"""Tier A: the pure Raft cores of all members on one heap of events; no tasks, no node code, two hundred times real time.

`simulate_core` runs one seed: faults and clients for a while, then everything is healed and convergence and progress are
demanded, as in tier B, with the same checkers and the same story language. What tier A adds is speed, changes of members
and small limits drawn per seed (`core_limits`); what it leaves to tier B is everything around the core.

    core_agenda  what happens when         core_cluster  members, network and checkers together
    core_node    drives one core           core_checkers invariants beside `checkers`
    core_disk    what a crash leaves       core_faults   the story's events; core_changes those of members
    core_network links                     core_clients  transactions and reads
    core_limits  small limits              core_compaction  history that is dropped, and snapshots
"""

import contextlib
import traceback
from collections.abc import Callable, Iterable
from time import perf_counter

from protocol import codec
from protocol.identifiers import Digest, Height, NodeId, Txid
from protocol.ledger_rows import Receipt, receipt_key
from simulations import checkers, core_checkers, core_faults, core_limits, determinism
from simulations.core_clients import Attempt, CoreClients
from simulations.core_cluster import Cluster
from simulations.core_faults import CoreFaults
from simulations.core_node import CoreNode
from simulations.network import GOOD, Quality
from simulations.runner import Options, Verdict
from simulations.story import Event, Heal, Load, SetClock

SETTLE_S = 30.0
_LOOK_EVERY_S = 0.1
_COMPARE_EVERY_S = 10.0
_VOTERS_BESIDE_A_JUMP = 3


def simulate_core(
    options: Options,
    events: tuple[Event, ...],
    *,
    quality: Quality = GOOD,
    load: Load | None = None,
    settle_s: float = SETTLE_S,
    watch: Callable[[Cluster], object] = lambda _: None,
) -> Verdict:
    """Run one seed in tier A to its end or to its first violation; what it is made of is `core_world`'s docstring.

    `watch` is given the members before any of them starts.

    Raises:
        StoryError: tier A cannot carry out one of the events.
    """
    core_faults.check(events)
    started = perf_counter()
    limits = core_limits.draw(determinism.stream(options.seed, "limits"))
    with contextlib.ExitStack() as stack:
        if not options.real_signatures:
            stack.enter_context(determinism.fake_signatures())
        stack.enter_context(core_limits.in_force(limits))
        stack.enter_context(determinism.no_collector())
        told = _Telling(options, events, quality, load or Load(), settle_s)
        watch(told.cluster)
        told.run()
    cluster = told.cluster
    counts = cluster.history.counts
    return Verdict(
        options=options,
        history_sha256=cluster.history.sha256,
        virtual_seconds=round(cluster.agenda.now, 6),
        real_seconds=round(perf_counter() - started, 2),
        commits=cluster.chain.height,
        leader_changes=counts["leader"],
        acked=counts["ack"] + counts["refused"],
        events=dict(sorted(counts.items())),
        violations=tuple(cluster.violations),
        tail=tuple(cluster.history.tail),
        log=(f"limits {core_limits.describe(limits)}", *told.log),
        happenings=tuple(cluster.history.kept or ()),
    )


class _Telling:
    """One run: the events at their times, and after each healing the demand that all agree and go on."""

    def __init__(
        self, options: Options, events: Iterable[Event], quality: Quality, load: Load, settle_s: float
    ) -> None:
        seed = options.seed
        self.cluster = Cluster(seed, voters=options.voters, learners=options.observers)
        if options.keeps_history:
            self.cluster.history.kept = []
        self.log: list[str] = []
        self._virtual_s = options.virtual_s
        self._settle_s = settle_s
        self._events = sorted(events, key=lambda event: event.at_s)
        if any(isinstance(event, SetClock) for event in self._events):
            self.cluster.voters_min = _VOTERS_BESIDE_A_JUMP
        self._faults = CoreFaults(self.cluster, quality, determinism.stream(seed, "faults"))
        self._clients = CoreClients(self.cluster, determinism.stream(seed, "clients"), load)
        self._look_at_s = _COMPARE_EVERY_S

    @property
    def _is_over(self) -> bool:
        return bool(self.cluster.violations)

    def run(self) -> None:
        """Tell it to the end or to the first violation; an error of a core is one."""
        try:
            self._tell()
        except Exception as error:  # noqa: BLE001 - whatever ends a core is a finding
            self.log.extend("".join(traceback.format_exception(error)).splitlines())
            self.cluster.report(f"a core failed: {type(error).__name__}: {error}")
        agenda, network = self.cluster.agenda, self.cluster.network
        # Two runs that differ in anything will differ in how much happened.
        self.cluster.record("end", agenda.done, network.sent)

    def _tell(self) -> None:
        for node in self.cluster.nodes:
            node.start()
        for event in self._events:
            self._run_until(event.at_s)
            if self._is_over:
                return
            if isinstance(event, Heal):
                self._settle()
            else:
                self._faults.carry_out(event)
        self._run_until(self._virtual_s)
        self._settle()

    def _run_until(self, when: float) -> None:
        agenda = self.cluster.agenda
        while self._look_at_s < when and not self._is_over:
            agenda.run_until(self._look_at_s)
            self._look_at_s += _COMPARE_EVERY_S
            self._compare()
        agenda.run_until(when)

    # --- healing --------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Heal everything; demand a transaction through every member, and one ledger on all of them, in time."""
        cluster = self.cluster
        if self._is_over:
            return
        self._faults.heal()
        self._clients.stop()
        deadline = cluster.agenda.now + self._settle_s
        probes = [(node, self._clients.probe(node)) for node in cluster.members()]
        while not (self._are_final(probes) and self._is_one_ledger()):
            if self._is_over:
                return
            if cluster.agenda.now >= deadline:
                cluster.report(f"progress: {self._settle_s:g} s after everything was healed: {self._state()}")
                return
            cluster.agenda.run_until(min(deadline, cluster.agenda.now + _LOOK_EVERY_S))
        self._check_agreement()
        self._clients.go_on()

    def _are_final(self, probes: list[tuple[CoreNode, Attempt]]) -> bool:
        # A removal that was under way when all was healed may have been certified since: who has left learns nothing more.
        members = self.cluster.members()
        return all(probe.is_final or node not in members for node, probe in probes)

    def _is_one_ledger(self) -> bool:
        members = self.cluster.members()
        height = self.cluster.commits.height
        return all(node.life is not None and node.disk.applied == height for node in members)

    def _state(self) -> str:
        words = []
        for node in self.cluster.nodes:
            if node.life is None:
                words.append(f"{node.index} down")
            else:
                raft = node.life.raft
                words.append(
                    f"{node.index} {raft.role.value} of term {raft.term}, {raft.certified_height} certified and "
                    f"{raft.commit_height} ordered of "
                    f"{raft.tip_height}, {node.disk.applied} applied"
                )
        return "; ".join(words)

    # --- comparing ------------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        """Compare the state of those that have applied the newest block with the model's, and all trees."""
        cluster = self.cluster
        for node in cluster.nodes:
            self._check_tree(node)
            if node.disk.applied == cluster.chain.height and node.disk.rows != cluster.chain.rows:
                cluster.report(f"applied: the state of node {node.index} is not what its blocks mean")

    def _check_tree(self, node: CoreNode) -> None:
        disk = node.disk
        if self.cluster.trees.after(disk.blocks[disk.applied].hash) != disk.frontier:
            self.cluster.report(f"tree root: node {node.index} has another tree than its blocks make")

    def _check_agreement(self) -> None:
        cluster = self.cluster
        self._compare()
        states: dict[NodeId, tuple[Height, Digest, dict[bytes, bytes]]] = {}
        members = cluster.members()
        for node in members:
            states[node.id] = node.disk.applied, node.disk.frontier.root(), node.disk.rows
            cluster.promises.kept(node.id, _receipts(node))
        checkers.agreed(cluster.report, cluster.chain, states)
        # From nothing, once: that the others hold the same was just seen.
        disk = members[0].disk
        rows, frontier = core_checkers.replay(disk.blocks[1 : disk.applied + 1], cluster.configuration)
        if rows != disk.rows or frontier != disk.frontier:
            cluster.report(f"applied: node {members[0].index} does not hold what replaying its log gives")
        cluster.record("agreed", cluster.chain.height, disk.frontier.root())


def _receipts(node: CoreNode) -> Callable[[Txid], Receipt | None]:
    rows = node.disk.rows

    def receipt_of(txid: Txid) -> Receipt | None:
        row = rows.get(receipt_key(txid))
        return codec.decode(row, Receipt) if row is not None else None

    return receipt_of
