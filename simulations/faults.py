"""What goes wrong in a round: a plan drawn from the seed, and the tasks that carry it out.

Swarm testing: a plan of the scenario `mixed` leaves most faults out and draws how strong the others are, so that some
seeds are hard in one way only; all faults at once mostly prevent everything and find little.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

import trio

from simulations.network import GOOD, Quality
from simulations.world import Node, World

SCENARIOS = ("mixed", "partition", "leader-crash", "slow-disk")
_GOOD_SYNC_MS = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The faults of one round. `…_every_s` is the mean time between two faults of a kind; 0 leaves the kind out."""

    quality: Quality = GOOD
    partition_every_s: float = 0.0
    crash_every_s: float = 0.0
    leader_crash_every_s: float = 0.0
    slow_disk_every_s: float = 0.0
    blackout_every_s: float = 0.0

    def describe(self) -> str:
        """Return the faults in one line."""
        words = [
            f"{name}={value:g}"
            for name, value in (
                ("delay_ms", self.quality.delay_ms),
                ("jitter_ms", self.quality.jitter_ms),
                ("loss", self.quality.loss),
                ("duplicate", self.quality.duplicate),
                ("reorder", self.quality.reorder),
                ("partition_every_s", self.partition_every_s),
                ("crash_every_s", self.crash_every_s),
                ("leader_crash_every_s", self.leader_crash_every_s),
                ("slow_disk_every_s", self.slow_disk_every_s),
                ("blackout_every_s", self.blackout_every_s),
            )
            if value
        ]
        return " ".join(words)


def draw(scenario: str, rng: Random) -> Plan:
    """Return a plan of a scenario."""
    match scenario:
        case "partition":
            return Plan(partition_every_s=rng.uniform(3, 10))
        case "leader-crash":
            return Plan(leader_crash_every_s=rng.uniform(4, 12))
        case "slow-disk":
            return Plan(slow_disk_every_s=rng.uniform(2, 8))
        case "mixed":
            return _mixed(rng)
        case _:
            raise ValueError(f"no scenario {scenario}; there are {', '.join(SCENARIOS)}")


def _mixed(rng: Random) -> Plan:
    def some(low: float, high: float) -> float:
        return rng.uniform(low, high) if rng.random() < 0.4 else 0.0

    quality = Quality(
        delay_ms=GOOD.delay_ms + some(0, 60),
        jitter_ms=GOOD.jitter_ms + some(0, 120),
        loss=some(0, 0.2),
        duplicate=some(0, 0.2),
        reorder=some(0, 0.3),
    )
    return Plan(quality, some(3, 20), some(3, 20), some(5, 30), some(3, 20), some(10, 60))


class Faults:
    """Carries out one plan; `heal` undoes everything."""

    def __init__(self, world: World, plan: Plan, rng: Random) -> None:
        self._world = world
        self._plan = plan
        self._rng = rng
        self._voters = [node for node in world.nodes if node.id in world.configuration.voters]

    async def run(self) -> None:
        """Make faults until cancelled."""
        self._world.network.quality = self._plan.quality
        plan = self._plan
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._each, plan.partition_every_s, self._partition)
            nursery.start_soon(self._each, plan.crash_every_s, self._crash)
            nursery.start_soon(self._each, plan.leader_crash_every_s, self._crash_leader)
            nursery.start_soon(self._each, plan.slow_disk_every_s, self._slow_disk)
            nursery.start_soon(self._each, plan.blackout_every_s, self._blackout)

    async def heal(self) -> None:
        """Make everything whole: links, disks, and nodes that are down."""
        world = self._world
        world.history.record("heal")
        world.network.heal()
        world.network.quality = GOOD
        for node in world.nodes:
            node.disk_speed.sync_ms = _GOOD_SYNC_MS
            await world.start(node)

    async def _each(self, every_s: float, make: Callable[[], Awaitable[None]]) -> None:
        while every_s:
            await trio.sleep(self._rng.expovariate(1) * every_s)
            await make()

    async def _partition(self) -> None:
        world, rng = self._world, self._rng
        everyone = list(world.nodes)
        leader = world.leader()
        if leader is not None and rng.random() < 0.5:
            one_side = [leader]
        else:
            one_side = rng.sample(everyone, rng.randint(1, len(everyone) - 1))
        kind = rng.choice(("both", "both", "out", "in"))
        world.history.record("cut", kind, *[node.index for node in one_side])
        for node in one_side:
            for other in everyone:
                if other in one_side:
                    continue
                if kind != "in":
                    world.network.cut(node.id, other.id)
                if kind != "out":
                    world.network.cut(other.id, node.id)
        await trio.sleep(0.3 + rng.expovariate(1) * 4)
        world.history.record("join")
        world.network.heal()

    async def _crash(self) -> None:
        await self._restart(self._rng.choice(self._world.nodes))

    async def _crash_leader(self) -> None:
        leader = self._world.leader()
        if leader is not None:
            await self._restart(leader)

    async def _restart(self, node: Node) -> None:
        if self._rng.random() < 0.5:
            await self._reach_a_write(node)
        await self._world.crash(node)
        await trio.sleep(self._rng.expovariate(1) * 2)
        await self._world.start(node)

    async def _reach_a_write(self, node: Node) -> None:
        """Wait until a node is in the middle of a write, or for a second."""
        life = node.life
        if life is not None and life.is_up:
            with trio.move_on_after(1):
                await life.disk.next_write()
            await trio.sleep(self._rng.uniform(0, node.disk_speed.sync_ms) / 1000)

    async def _blackout(self) -> None:
        """All nodes lose power within a few milliseconds, and come back one by one."""
        nodes = list(self._world.nodes)
        self._rng.shuffle(nodes)
        await self._reach_a_write(nodes[0])
        for node in nodes:
            await self._world.crash(node)
            await trio.sleep(self._rng.uniform(0, 0.005))
        for node in nodes:
            await trio.sleep(self._rng.expovariate(1))
            await self._world.start(node)

    async def _slow_disk(self) -> None:
        node = self._rng.choice(self._voters)
        node.disk_speed.sync_ms = self._rng.choice((20, 100, 500, 2_000))
        self._world.history.record("slow", node.index, int(node.disk_speed.sync_ms))
        await trio.sleep(0.5 + self._rng.expovariate(1) * 4)
        node.disk_speed.sync_ms = _GOOD_SYNC_MS
        self._world.history.record("fast", node.index)
