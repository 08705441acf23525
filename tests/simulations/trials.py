"""A world with clients in which a test makes things happen; then it must heal and agree."""

from collections.abc import Awaitable, Callable

import trio

from simulations import checkers, determinism
from simulations.workload import Workload
from simulations.world import Node, World
from storage import keyspace
from storage.ledger_store import LedgerStore

SETTLE_S = 40.0
Story = Callable[[World], Awaitable[None]]


def tell(
    seed: int,
    story: Story,
    *,
    voters: int = 3,
    observers: int = 1,
    mean_s: float = 0.4,
    kind: type[World] = World,
) -> World:
    """Return a world after a story, healing and a new transaction through every node: look at its `violations`."""

    async def main() -> World:
        world = kind(seed, voters=voters, observers=observers)
        await world.run(lambda: _whole(world, story, mean_s))
        return world

    with determinism.fake_signatures():
        return determinism.run(seed, main)


async def _whole(world: World, story: Story, mean_s: float) -> None:
    workload = Workload(world, clients=3, mean_s=mean_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(workload.run)
        await story(world)
        nursery.cancel_scope.cancel()
    if world.violations:
        return
    await world.heal()
    with trio.move_on_after(SETTLE_S) as settling:
        async with trio.open_nursery() as probes:
            for node in world.nodes:
                probes.start_soon(_probe, world, workload, node)
        while len({node.rows.undamaged().get(keyspace.APPLIED) for node in world.nodes}) != 1:
            await trio.sleep(0.1)
    if settling.cancelled_caught:
        world.report("no progress on all nodes")
        return
    states = {}
    for node in world.nodes:
        store = LedgerStore(node.rows, world.configuration)
        mark = store.applied()
        rows = dict(store.state_rows())
        states[node.id] = mark.height, mark.frontier.root(), rows
        world.promises.kept(node.id, store.receipt)
    checkers.agreed(world.report, world.chain, states)


async def _probe(world: World, workload: Workload, node: Node) -> None:
    while not world.violations:
        if node.life is not None and await workload.probe(node.life, 10_000):
            return
        await trio.sleep(0.1)


async def elected(world: World) -> Node:
    """Return the leader, once there is one."""
    while (leader := world.leader()) is None:
        await trio.sleep(0.05)
    return leader
