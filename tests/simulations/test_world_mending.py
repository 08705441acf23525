"""Whole nodes whose stored blocks rot on every disk at once, each elsewhere: all are mended from each other, by nobody's hand.

Scenario 29 of ledger.md 3: a bit flip in the middle is detected, served to nobody, repaired from peers by hash.
"""

import random

import pytest
import trio

from node.awaiting_disk import RoomAwaitingDisk
from node.block_repair import BlockRepair
from protocol.block import genesis_block
from protocol.errors import Corruption
from protocol.identifiers import Height
from simulations.world import Incarnation, Node, World
from storage import keyspace
from storage.key_value import Batch
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore
from storage.mend import clear_lost, lost_heights, mend, put_lost
from tests.node.ledger_double import SilentLog
from tests.simulations.trials import elected, tell

pytestmark = pytest.mark.slow
_NEWEST = 12


class MendingWorld(World):
    """A world whose nodes mend damaged blocks, as `node.assembly` and `node.daemon` have it done.

    That they say so is no finding here; that they refuse what an honest member sent would be.
    """

    def _boot(self, node: Node, nursery: trio.Nursery) -> Incarnation:
        life = super()._boot(node, nursery)
        core, ports = life.core, life.core.ports
        repair = BlockRepair(
            store=core.store, rows=node.rows, disk=RoomAwaitingDisk(ports.disk, ports.clock),
            transport=ports.transport, verification=core.verification, workers=ports.workers, clock=ports.clock,
            log=SilentLog(), damage=core.damage, check_room=lambda: None,
        )  # fmt: skip
        nursery.start_soon(repair.run)
        return life

    def _failed(self, node: Node, life: Incarnation | None, error: BaseException) -> None:
        leaf = error
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        fresh = MemoryStore()
        try:
            if not isinstance(leaf, Corruption):
                raise Corruption("ended by something else")
            mend(node.rows, fresh, genesis_block(self.configuration))
        except Corruption:
            super()._failed(node, life, error)
            return
        self.history.record("mend", node.index)
        node.rows = fresh
        self._after_life(node, 0.5, self.start)


def rot(world: World, draw: random.Random) -> None:
    """Damage blocks and proofs on every disk, each node's at heights of its own: the others still have them."""
    for turn, node in enumerate(world.nodes):
        applied = LedgerStore(node.rows.undamaged(), world.configuration).applied().height
        stored = node.rows.undamaged()
        for number, prefix in enumerate((keyspace.BLOCK, keyspace.CERTIFICATE)):
            # Not the newest: a crash may take back that they are applied, and then they are for an operator.
            own = range(1 + (turn + number) % len(world.nodes), applied - _NEWEST, len(world.nodes))
            keys = [prefix + keyspace.sequence_key(height) for height in own]
            chosen = draw.sample(keys, min(len(keys), 3))
            node.rows.damage(key for key in chosen if stored.get(key) is not None)


@pytest.mark.parametrize("seed", range(3))
def test_29_blocks_that_rot_on_every_disk_are_mended_from_each_other_while_clients_go_on(seed: int) -> None:
    async def story(world: World) -> None:
        draw = random.Random(seed)
        await elected(world)
        for _ in range(3):
            await trio.sleep(4)
            rot(world, draw)
            # A walk begins with a start; who does not start meets the damage when somebody asks for it.
            node = draw.choice(world.nodes)
            await world.crash(node)
            await world.start(node)
        for node in world.nodes:
            await world.crash(node)
            await world.start(node)
            await trio.sleep(12)

    world = tell(seed, story, kind=MendingWorld)

    assert world.violations == []
    assert world.history.counts["mend"] > 0
    assert world.history.counts["rebuild"] == world.history.counts["damaged"] == 0
    for node in world.nodes:
        store = LedgerStore(node.rows, world.configuration)
        whole = tuple(store.blocks(store.first(), Height(store.applied().height)))
        assert whole[-1].hash == store.applied().hash
        assert not node.rows.damaged
        assert lost_heights(node.rows) == ()


def test_29_a_voter_signs_nothing_while_it_lacks_a_block() -> None:
    votes: list[bool] = []

    async def story(world: World) -> None:
        leader = await elected(world)
        await trio.sleep(2)
        node = next(node for node in world.nodes[:3] if node is not leader)
        await world.crash(node)
        batch = Batch()
        put_lost(batch, Height(3))
        node.rows.write(batch, sync=True)
        await world.start(node)
        for _ in range(2):
            await trio.sleep(10)
            assert node.life is not None
            votes.append(node.life.core.is_voting)
            clear_lost(batch, Height(3))
            node.rows.write(batch, sync=True)
            node.life.core.damage.whole.set()

    world = tell(29, story)

    assert world.violations == []
    assert votes == [False, True]
