"""What goes wrong in tier A: carries out the events of a story (`simulations.story`) on a cluster of cores.

What lasts ends by itself or when everything is healed, whichever comes first. Kinds that need more of a node than its core
are refused before anything runs.
"""

from collections.abc import Callable, Iterable
from itertools import product
from random import Random
from typing import assert_never

from simulations import story
from simulations.core_changes import MemberChange
from simulations.core_cluster import Cluster
from simulations.core_node import GOOD_SYNC_MS, CoreNode
from simulations.network import GOOD, Quality
from simulations.story_text import StoryError, change_quality, format_event

_REFUSED: dict[str, str] = {
    story.DiskLies.kind: "a core trusts its disk; what keeps a voter on a lying disk honest is the node's: use tier b",
    story.BitRot.kind: "a core never reads damaged bytes; finding and repairing them is the node's: use tier b",
}
_IN_WRITE_S = 1.0

Directions = tuple[tuple[int, int], ...]


def check(events: Iterable[story.Event]) -> None:
    """Refuse a story that tier A cannot tell.

    Raises:
        StoryError: which event, and why.
    """
    for event in events:
        if event.kind in _REFUSED:
            raise StoryError(f"tier a cannot carry out {format_event(event)!r}: {_REFUSED[event.kind]}")


class CoreFaults:
    """Carries out events now; `heal` undoes all that still lasts."""

    def __init__(self, cluster: Cluster, quality: Quality, rng: Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self._age = 0  # counts the times everything was healed: what began before does not end after
        cluster.network.quality = quality

    def heal(self) -> None:
        """Make everything whole: links, disks, clocks, and nodes that stand still or are down."""
        cluster = self._cluster
        self._age += 1
        cluster.record("heal")
        cluster.network.heal()
        for node in cluster.nodes:
            node.sync_ms = GOOD_SYNC_MS
            node.is_full = node.fails_next = False
            node.on_write = None
            cluster.reset_clock(node)
            node.resume()
            node.start()
        for node in cluster.nodes:
            if node.id in (*cluster.commits.configuration.voters, *cluster.commits.configuration.learners):
                cluster.bring(node)

    def carry_out(self, event: story.Event) -> None:
        """Let an event happen. One that names a role nobody has does nothing."""
        match event:
            case story.Cut() | story.Bridge() | story.Flap() | story.Clog() | story.LinkQuality():
                self._on_links(event)
            case story.SetQuality():
                self._cluster.record("quality", *[f"{name}={value:g}" for name, value in event.changes])
                network = self._cluster.network
                network.quality = change_quality(network.quality, event.changes)
            case story.Blackout():
                self._blackout(event)
            case story.Heal():
                raise StoryError("healing is the runner's: it also demands progress")
            case _:
                node = self._node(event.node)
                if node is not None:
                    self._on_node(event, node)

    def _later(self, seconds: float | None, action: Callable[[], None]) -> None:
        """Call an action after a while, unless everything is healed before; None leaves it to healing."""
        if seconds is not None:
            self._cluster.agenda.after(seconds, self._if_young, self._age, action)

    def _if_young(self, age: int, action: Callable[[], None]) -> None:
        if age == self._age:
            action()

    def _node(self, target: story.Target) -> CoreNode | None:
        if isinstance(target, int):
            return self._cluster.nodes[target]
        leader = self._cluster.leader()
        if target == "leader":
            return leader
        voters = self._cluster.commits.configuration.voters
        others = [node for node in self._cluster.up() if node.id in voters and node is not leader]
        return others[0] if others else None

    # --- links ----------------------------------------------------------------------------------------------------

    def _on_links(
        self, event: story.Cut | story.Bridge | story.Flap | story.Clog | story.LinkQuality
    ) -> None:
        match event:
            case story.Cut():
                side = [node.index for node in map(self._node, event.side) if node is not None]
                self._cluster.record("cut", event.direction, *side)
                self._cut(event, self._from_side(side, event.direction))
            case story.Bridge():
                node = self._node(event.node)
                if node is not None:
                    self._cluster.record("bridge", node.index)
                    one, other = story.halves(range(len(self._cluster.nodes)), node.index)
                    self._cut(event, (*product(one, other), *product(other, one)))
            case story.Flap() | story.Clog() | story.LinkQuality():
                node, peer = self._node(event.node), self._node(event.peer)
                if node is not None and peer is not None and node is not peer:
                    self._on_link(event, node.index, peer.index)

    def _from_side(self, side: list[int], direction: story.Direction) -> Directions:
        others = [node.index for node in self._cluster.nodes if node.index not in side]
        out, into = tuple(product(side, others)), tuple(product(others, side))
        match direction:
            case "out":
                return out
            case "in":
                return into
            case "both":
                return out + into

    def _cut(self, event: story.Cut | story.Bridge, directions: Directions) -> None:
        network = self._cluster.network

        def join() -> None:
            network.join(directions)
            self._cluster.record("end", event.kind)

        network.cut(directions)
        self._later(event.for_s, join)

    def _on_link(self, event: story.Flap | story.Clog | story.LinkQuality, source: int, target: int) -> None:
        network = self._cluster.network
        self._cluster.record(event.kind, source, target)
        link = network.link(source, target)
        match event:
            case story.Flap():
                end = None if event.for_s is None else self._cluster.agenda.now + event.for_s
                self._flap(((source, target), (target, source)), event.every_s, end, is_cut=False)
            case story.Clog():
                network.clog(source, target)
            case story.LinkQuality():
                link.quality = change_quality(GOOD, event.changes)

        def end_it() -> None:
            self._cluster.record("end", event.kind, source, target)
            if isinstance(event, story.Clog):
                network.release(source, target)
            elif isinstance(event, story.LinkQuality):
                link.quality = None

        self._later(event.for_s, end_it)

    def _flap(self, directions: Directions, every_s: float, end: float | None, *, is_cut: bool) -> None:
        network = self._cluster.network
        if is_cut:
            network.join(directions)
        if end is not None and self._cluster.agenda.now >= end:
            return
        if not is_cut:
            network.cut(directions)
        self._later(every_s, lambda: self._flap(directions, every_s, end, is_cut=not is_cut))

    # --- nodes ----------------------------------------------------------------------------------------------------

    def _on_node(
        self,
        event: story.Crash
        | story.Pause
        | story.SetClock
        | story.Drift
        | story.SlowDisk
        | story.DiskError
        | story.DiskFull
        | story.DiskLies
        | story.BitRot
        | story.Transfer
        | story.AddVoter
        | story.RemoveVoter,
        node: CoreNode,
    ) -> None:
        match event:
            case story.Crash():
                self._crash(event, node)
            case story.Pause():
                node.pause()
                self._later(event.for_s, node.resume)
            case story.SetClock():
                self._cluster.record("clock", node.index, event.offset_ms)
                self._cluster.sets_clocks = True
                node.set_clock(offset_ms=event.offset_ms)
            case story.Drift():
                self._cluster.record("drift", node.index, repr(event.drift))
                self._cluster.sets_clocks = True
                node.set_clock(drift=event.drift)
            case story.SlowDisk() | story.DiskError() | story.DiskFull():
                self._on_disk(event, node)
            case story.DiskLies() | story.BitRot():
                check((event,))
            case story.Transfer():
                leader = self._cluster.leader()
                if leader is not None:
                    self._cluster.record("transfer", leader.index, node.index)
                    leader.ask(lambda raft: raft.transfer_leadership(node.id))
            case story.AddVoter() | story.RemoveVoter():
                self._cluster.changes_members = True
                change = MemberChange(self._cluster, node, votes=isinstance(event, story.AddVoter))
                self._propose(change)
            case _:
                assert_never(event)

    def _propose(self, change: MemberChange) -> None:
        wait_s = change.step()
        if wait_s is not None:
            self._later(wait_s, lambda: self._propose(change))

    def _crash(self, event: story.Crash, node: CoreNode) -> None:
        if node.life is None:
            return
        if not event.in_write:
            self._crash_now(node, event.for_s)
            return
        life = node.life

        def crash() -> None:
            if node.life is life:
                self._crash_now(node, event.for_s)

        node.on_write = lambda length_s: self._later(self._rng.uniform(0, length_s), crash)
        self._later(_IN_WRITE_S, crash)

    def _crash_now(self, node: CoreNode, for_s: float | None) -> None:
        node.crash()
        self._later(for_s, node.start)

    def _blackout(self, event: story.Blackout) -> None:
        self._cluster.record("blackout")
        for node in self._cluster.nodes:
            node.crash()
            self._later(event.for_s, node.start)

    def _on_disk(self, event: story.SlowDisk | story.DiskError | story.DiskFull, node: CoreNode) -> None:
        match event:
            case story.SlowDisk():
                self._cluster.record("slow", node.index, round(event.sync_ms))
                node.sync_ms = event.sync_ms
                self._later(event.for_s, lambda: self._fast(node))
            case story.DiskError():
                node.fails_next = True
                node.on_failure = lambda: self._later(event.for_s, node.start)
            case story.DiskFull():
                self._cluster.record("disk-full", node.index)
                node.is_full = True
                self._later(event.for_s, lambda: self._free(node))

    def _fast(self, node: CoreNode) -> None:
        self._cluster.record("end", "slow", node.index)
        node.sync_ms = GOOD_SYNC_MS

    def _free(self, node: CoreNode) -> None:
        self._cluster.record("end", "disk-full", node.index)
        node.is_full = False
