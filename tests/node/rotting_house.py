"""A member with a whole, applied chain in a store that rots, and what its peers say when it asks for blocks."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar, TypeVarTuple

import trio
import trio.testing

from node.applier import Applier, Certified
from node.block_repair import BlockRepair
from node.block_server import BlockServer
from node.damage_notice import DamageNotice
from node.receipts import Receipts
from node.verification import Verification
from protocol import codec
from protocol.block import Block
from protocol.catchup import BlocksFrom, Segment
from protocol.errors import StorageFull
from protocol.finality import Certificate
from protocol.identifiers import Height, NodeId
from protocol.merkle import Frontier
from storage.key_value import Batch
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore
from storage.mend import lost_heights, put_lost
from tests.node.ledger_double import DoubleClock, InlineDisk, InlineWorkers, SilentLog
from tests.node.scripted_transport import ScriptedTransport, Stream
from tests.protocol import chain
from tests.protocol.chain import CONFIGURATION, NETWORK, NODES, certificate_of, successor

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
ME = NodeId(bytes(32))
LIAR, HONEST = NODES[1], NODES[2]
MIDDLE, TIP = 57, 120


def long_chain() -> tuple[Block, ...]:
    blocks = list(chain.build())
    after = Frontier().append(blocks[2].leaves())
    while len(blocks) <= TIP:
        blocks.append(successor(blocks[-1], after))
    return tuple(blocks)


CHAIN = long_chain()
CERTIFICATES = {number: certificate_of(CHAIN[number]) for number in (3, MIDDLE, TIP)}


def key(prefix: bytes, height: int) -> bytes:
    return prefix + height.to_bytes(8, "big")


class CountingWorkers(InlineWorkers):
    runs = 0

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        self.runs += 1
        return await super().run(function, *args)


class House:
    """A member with the whole chain, applied, and what its peers say."""

    def __init__(self, me: NodeId = ME) -> None:
        self.rows = MemoryStore()
        self.store = LedgerStore(self.rows, CONFIGURATION)
        self.log, self.damage = SilentLog(), DamageNotice(is_whole=False)
        self.disk = InlineDisk(self.rows)
        self.applier = Applier(self.store, self.disk, Receipts())
        self.transport = ScriptedTransport(me, (LIAR, HONEST))
        self.damaged_files: tuple[str, ...] = ()
        self.verification = Verification(NETWORK, InlineWorkers(), self.log)
        self.is_full = False
        self.workers = CountingWorkers()
        self.repair = BlockRepair(
            store=self.store, rows=self.rows, disk=self.disk, transport=self.transport,
            verification=self.verification, workers=self.workers, clock=DoubleClock(), log=self.log,
            damage=self.damage, check_room=self.check_room, damaged_files=lambda: self.damaged_files,
        )  # fmt: skip

    def check_room(self) -> None:
        if self.is_full:
            raise StorageFull("no room to make the ledger anew")

    async def fill(self) -> None:
        first = 1
        for last, certificate in CERTIFICATES.items():
            await self.applier.apply(Certified(CHAIN[first : last + 1], certificate, is_stored=False))
            first = last + 1

    def lose(self, prefix: bytes, height: int) -> None:
        """Leave out a row of a height, and note it as lost, as a database does that was made anew without it."""
        batch = Batch()
        batch.delete(key(prefix, height))
        put_lost(batch, Height(height))
        self.rows.write(batch, sync=True)

    def rot(self, *keys: bytes) -> None:
        self.rows.damage(keys)

    def asked(self) -> list[int]:
        return [codec.decode(body, BlocksFrom).height for _, _, body in self.transport.asked]

    def is_whole(self) -> bool:
        blocks = tuple(self.store.blocks(Height(0), Height(TIP)))
        return blocks == CHAIN and not self.rows.damaged and not lost_heights(self.rows)


async def served_by_another() -> Stream:
    other = House()
    await other.fill()
    server = BlockServer(other.store, other.log)

    async def stream(body: bytes) -> AsyncGenerator[bytes, None]:
        frames = server.serve(ME, body)
        assert isinstance(frames, AsyncGenerator)
        async with aclosing(frames):
            async for frame in frames:
                yield frame

    return stream


def sending(*blocks: Block, certificate: Certificate | None = None) -> Stream:
    async def stream(_body: bytes) -> AsyncGenerator[bytes, None]:
        await trio.lowlevel.checkpoint()
        yield codec.encode(Segment(tuple(block.raw for block in blocks), certificate))

    return stream


async def run_for(house: House, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await house.repair.run()
