"""Carries out the events of a story in a world of whole nodes (tier B).

Each event runs as a task of its own: it begins, waits, and undoes itself. `heal` undoes whatever is left, in any order, so
that an event may be cancelled anywhere. What happens is recorded with its nodes; `end KIND` when it is undone.
"""

from collections.abc import Iterable
from typing import Final

import trio

from protocol.errors import Unavailable
from protocol.identifiers import NodeId
from simulations import determinism
from simulations.network import GOOD
from simulations.story import (
    AddVoter,
    BitRot,
    Blackout,
    Bridge,
    Clog,
    Crash,
    Cut,
    DiskError,
    DiskFull,
    DiskLies,
    Drift,
    Event,
    Flap,
    Heal,
    LinkQuality,
    Pause,
    RemoveVoter,
    SetClock,
    SetQuality,
    SlowDisk,
    Target,
    Transfer,
    halves,
)
from simulations.story_text import StoryError, change_quality, format_event
from simulations.world import Node, World

_GOOD_SYNC_MS: Final = 2.0
_WRITE_WAIT_S: Final = 1.0
"""How long a crash waits for a write to fall into."""
_ERROR_DOWN_S: Final = 1.0
"""How long a node whose disk failed stays down when its story does not say."""


def check_events(events: Iterable[Event]) -> None:
    """Refuse what this engine cannot carry out.

    Raises:
        StoryError: an event is of such a kind.
    """
    for event in events:
        if isinstance(event, AddVoter | RemoveVoter):
            raise StoryError(
                f"tier b cannot carry out {format_event(event)!r}: whole nodes cannot change voters yet"
            )


_OfNode = (
    Crash
    | Pause
    | SetClock
    | Drift
    | SlowDisk
    | DiskError
    | DiskFull
    | DiskLies
    | BitRot
    | Transfer
    | AddVoter
    | RemoveVoter
)


class Executor:
    """Makes things happen in one world. `until_s` says when the next healing is, for what lasts until then."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._until_s = 0.0

    async def run(self, events: Iterable[Event], until_s: float) -> None:
        """Let each event happen at its time, or at once when that is over; then wait until cancelled, at `until_s`."""
        self._until_s = until_s
        async with trio.open_nursery() as nursery:
            for event in events:
                await trio.sleep_until(event.at_s)
                nursery.start_soon(self._happen, event)
            await trio.sleep_forever()

    async def heal(self) -> None:
        """Make everything whole: links, disks, and nodes that are down."""
        await self._world.heal()

    async def _happen(self, event: Event) -> None:
        match event:
            case Cut() | Bridge() | Flap() | Clog() | LinkQuality() | SetQuality():
                await self._link(event)
            case Blackout():
                await self._blackout(event)
            case Heal():
                raise StoryError("healing is the runner's: it also demands progress")
            case _:
                node = self._node(event.node)
                if node is not None:
                    await self._befall(event, node)

    async def _befall(self, event: _OfNode, node: Node) -> None:
        world = self._world
        match event:
            case Crash():
                await self._crash(event, node)
            case Pause():
                world.pause(node)
                if event.for_s is not None:
                    await trio.sleep(event.for_s)
                    world.resume(node)
            case SetClock():
                world.set_clock(node, offset_ms=event.offset_ms)
            case Drift():
                world.set_clock(node, drift=event.drift)
            case SlowDisk():
                await self._slow(event, node)
            case DiskError():
                world.fail_disk(node, _ERROR_DOWN_S if event.for_s is None else event.for_s)
            case DiskFull():
                world.fill_disk(node)
                if event.for_s is not None:
                    await trio.sleep(event.for_s)
                    world.free_disk(node)
            case DiskLies():
                world.lie_disk(node)
            case BitRot():
                world.rot_disk(node)
            case Transfer():
                await self._transfer(node)
            case AddVoter() | RemoveVoter():
                raise StoryError(f"tier b cannot carry out {format_event(event)!r}")

    # --- links ----------------------------------------------------------------------------------------------------

    async def _link(self, event: Cut | Bridge | Flap | Clog | LinkQuality | SetQuality) -> None:
        network, record = self._world.network, self._world.history.record
        match event:
            case SetQuality():
                network.quality = change_quality(network.quality, event.changes)
                record("quality", *[f"{name}={value:g}" for name, value in event.changes])
            case Cut():
                side = [node for target in event.side if (node := self._node(target)) is not None]
                record("cut", event.direction, *[node.index for node in side])
                await self._cut(self._links_of(side, event.direction), event)
                record("end", "cut", event.direction, *[node.index for node in side])
            case Bridge():
                node = self._node(event.node)
                if node is not None:
                    record("bridge", node.index)
                    await self._cut(self._links_beside(node), event)
                    record("end", "bridge", node.index)
            case _:
                node, peer = self._node(event.node), self._node(event.peer)
                if node is not None and peer is not None and node is not peer:
                    record(event.kind, node.index, peer.index)
                    await self._spoil(event, node, peer)
                    record("end", event.kind, node.index, peer.index)

    async def _spoil(self, event: Flap | Clog | LinkQuality, node: Node, peer: Node) -> None:
        network = self._world.network
        for_s = self._until_s - trio.current_time() if event.for_s is None else event.for_s
        match event:
            case Flap():
                network.flap(node.id, peer.id, event.every_s, for_s)
            case Clog():
                network.clog(node.id, peer.id, for_s)
            case LinkQuality():
                network.set_quality(node.id, peer.id, change_quality(GOOD, event.changes))
        await trio.sleep(for_s)
        if isinstance(event, LinkQuality):
            network.set_quality(node.id, peer.id, None)

    async def _cut(self, links: list[tuple[NodeId, NodeId]], event: Cut | Bridge) -> None:
        network = self._world.network
        for link in links:
            network.cut(*link)
        if event.for_s is None:
            await trio.sleep_forever()
        else:
            await trio.sleep(event.for_s)
        for link in links:
            network.join(*link)

    def _links_of(self, side: list[Node], direction: str) -> list[tuple[NodeId, NodeId]]:
        others = [node for node in self._world.nodes if node not in side]
        leaving = [(node.id, other.id) for node in side for other in others]
        reaching = [(other, node) for node, other in leaving]
        match direction:
            case "out":
                return leaving
            case "in":
                return reaching
            case _:
                return leaving + reaching

    def _links_beside(self, bridge: Node) -> list[tuple[NodeId, NodeId]]:
        nodes = self._world.nodes
        one, other = halves(range(len(nodes)), bridge.index)
        pairs = [(nodes[a].id, nodes[b].id) for a in one for b in other]
        return pairs + [(b, a) for a, b in pairs]

    # --- nodes ----------------------------------------------------------------------------------------------------

    async def _blackout(self, event: Blackout) -> None:
        self._world.history.record("blackout")
        for node in self._world.nodes:
            await self._world.crash(node)
        if event.for_s is not None:
            await trio.sleep(event.for_s)
            for node in self._world.nodes:
                await self._world.start(node)

    async def _crash(self, event: Crash, node: Node) -> None:
        if event.in_write:
            await self._reach_a_write(event, node)
        await self._world.crash(node)
        if event.for_s is not None:
            await trio.sleep(event.for_s)
            await self._world.start(node)

    async def _reach_a_write(self, event: Crash, node: Node) -> None:
        """Wait until a node is in the middle of a write, or for a second."""
        life = node.life
        if life is not None and life.is_up:
            with trio.move_on_after(_WRITE_WAIT_S):
                await life.disk.next_write()
            # By its own words, so that leaving out other events of a story does not move it.
            rng = determinism.stream(self._world.seed, format_event(event))
            await trio.sleep(rng.uniform(0, node.disk_speed.sync_ms) / 1000)

    async def _slow(self, event: SlowDisk, node: Node) -> None:
        node.disk_speed.sync_ms = event.sync_ms
        self._world.history.record("slow", node.index, round(event.sync_ms))
        if event.for_s is not None:
            await trio.sleep(event.for_s)
            node.disk_speed.sync_ms = _GOOD_SYNC_MS
            self._world.history.record("end", "slow", node.index)

    async def _transfer(self, target: Node) -> None:
        leader = self._world.leader()
        if leader is None or leader.life is None:
            return
        self._world.history.record("transfer", leader.index, target.index)
        consensus = leader.life.core.consensus
        assert consensus is not None, "a leader votes"
        try:
            await leader.life.ask(lambda _: consensus.transfer_leadership(target.id))
        except Unavailable:
            self._world.history.record("end", "transfer")  # it led no more, or has crashed

    def _node(self, target: Target) -> Node | None:
        """Return who is meant now; None when there is nobody of that role."""
        leader = self._world.leader()
        match target:
            case "leader":
                return leader
            case "follower":
                voters = self._world.configuration.voters
                running = [node for node in self._world.nodes if node.life is not None and node.life.is_up]
                return next((node for node in running if node.id in voters and node is not leader), None)
            case index:
                return self._world.nodes[index]


def rounds_of(events: Iterable[Event], end_s: float) -> list[tuple[tuple[Event, ...], float]]:
    """Return what happens before each healing, and when that is; the last is at the end."""
    rounds: list[tuple[tuple[Event, ...], float]] = []
    now: list[Event] = []
    for event in events:
        if isinstance(event, Heal):
            rounds.append((tuple(now), event.at_s))
            now = []
        else:
            now.append(event)
    rounds.append((tuple(now), end_s))
    return rounds
