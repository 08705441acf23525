"""Members that make, serve and install snapshots of one chain that three voters have certified, without consensus."""

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass

import trio

from node.applier import Applier, Certified
from node.block_server import CHANNEL as BLOCKS
from node.block_server import BlockServer
from node.catchup import Follower
from node.forks import Forks
from node.history import History
from node.receipts import Receipts
from node.snapshot_claims import Claims, StateCheck
from node.snapshot_install import Installer
from node.snapshots import CHUNKS, ChunksFrom, SnapshotMaker, SnapshotServer, SnapshotSpace
from node.verification import Verification
from protocol import codec, ledger_state
from protocol.block import Block
from protocol.identifiers import Height, NodeId, Vid
from protocol.merkle import Frontier
from protocol.signing import SigningKey
from protocol.snapshot import is_snapshot_height
from protocol.transaction import VaultOpen, sign
from storage.key_value import Batch, KeyValue
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore
from storage.snapshot_store import SnapshotStore
from tests.node.ledger_double import (
    DirectTransport,
    DoubleClock,
    InlineDisk,
    InlineWorkers,
    SeededEntropy,
    SilentLog,
)
from tests.protocol import chain
from tests.protocol.chain import (
    CONFIGURATION,
    FACILITY,
    NETWORK,
    NODES,
    VOTERS,
    certificate_of,
    filled,
    key,
)

UNIT = 2
CHUNK_BYTES = 1_024
BLOCKS_BUILT = 30
NEWEST = Height(28)
"""The highest snapshot height of the chain."""


@functools.cache
def built() -> tuple[Block, ...]:
    """Genesis, the opening of a term, and blocks that each open a vault."""
    blocks = list(chain.build()[:2])
    frontier = Frontier()
    for number in range(2, BLOCKS_BUILT + 1):
        owner = key(f"owner {number}")
        public = owner.public
        opening = VaultOpen(
            Vid(filled(f"vault {number}")), public, public, public, public, 0, NODES[0], (NODES[0],), 3,
            chain.UNTIL_MS,
        )  # fmt: skip
        raw = codec.encode(sign(opening, NETWORK, owner, FACILITY))
        block = chain.successor(blocks[-1], frontier, body=(raw,))
        frontier = frontier.append(block.leaves())
        blocks.append(block)
    return tuple(blocks)


@functools.cache
def states() -> tuple[dict[bytes, bytes], ...]:
    """What the state is after each block."""
    rows: dict[bytes, bytes] = {}
    found = [dict(rows)]
    for block in built()[1:]:
        for name, value in ledger_state.apply(rows.get, CONFIGURATION, block).writes.items():
            assert value is not None, "nothing is deleted here"
            rows[name] = value
        found.append(dict(rows))
    return tuple(found)


class ClosingTransport(DirectTransport):
    """Ends a stream that its reader leaves half way, as the real one does."""

    def fetch(
        self, peer: NodeId, channel: str, body: bytes
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[AsyncIterator[bytes]]:
            pieces = self._reach(peer)._streams[channel](self.me, body)
            assert isinstance(pieces, AsyncGenerator)
            async with aclosing(pieces):
                yield pieces

        return opened()


class Member:
    """One member. `rows` and `kept` (its snapshots) may be those of an earlier life."""

    def __init__(
        self,
        network: dict[NodeId, DirectTransport],
        signer: SigningKey,
        rows: KeyValue | None = None,
        kept: KeyValue | None = None,
        disk: Callable[[KeyValue], InlineDisk] = InlineDisk,
    ) -> None:
        self.rows = rows if rows is not None else MemoryStore()
        self.kept = kept if kept is not None else MemoryStore()
        self.log = SilentLog()
        self.clock = DoubleClock()
        self.transport = ClosingTransport(NodeId(signer.public), network)
        self.store = LedgerStore(self.rows, CONFIGURATION)
        self.snapshots = SnapshotStore(self.kept)
        self.space = SnapshotSpace(self.kept, disk(self.kept), UNIT, CHUNK_BYTES)
        self.disk = disk(self.rows)
        workers, entropy = InlineWorkers(), SeededEntropy(signer.public.hex())
        self.maker = SnapshotMaker(
            self.space, self.store, key=signer, workers=workers, clock=self.clock, log=self.log
        )  # fmt: skip
        self.applier = Applier(self.store, self.disk, Receipts(), self.maker)
        self.verification = Verification(NETWORK, workers, self.log)
        changing = trio.Lock()
        self.claims = Claims(
            self.snapshots, self.store, transport=self.transport, verification=self.verification, clock=self.clock
        )  # fmt: skip
        self.state_check = StateCheck(self.space, self.maker, self.claims, clock=self.clock, log=self.log)
        self.installer = Installer(
            self.space, self.store, self.applier, self.claims, disk=self.disk, changing_history=changing, transport=self.transport,
            verification=self.verification, workers=workers, clock=self.clock, entropy=entropy, log=self.log,
        )  # fmt: skip
        self.history = History(
            self.store, self.applier, disk=self.disk, changing=changing, transport=self.transport,
            verification=self.verification, clock=self.clock, log=self.log,
        )  # fmt: skip
        self.follower = Follower(
            store=self.store, applier=self.applier, transport=self.transport, verification=self.verification,
            clock=self.clock, entropy=entropy, log=self.log, installer=self.installer,
            forks=Forks(self.store, self.disk, self.transport, self.log),
        )  # fmt: skip
        SnapshotServer(self.space, workers).serve(self.transport)
        self.transport.serve_stream(BLOCKS, BlockServer(self.store, self.log, UNIT).serve)

    async def apply(self, last: int = BLOCKS_BUILT) -> None:
        """Apply the chain up to a height; make every snapshot on the way."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.maker.run)
            for block in built()[self.applier.mark.height + 1 : last + 1]:
                await self.applier.apply(Certified((block,), certificate_of(block), is_stored=False))
                if is_snapshot_height(block.height, UNIT):
                    await self.made(block.height)
            nursery.cancel_scope.cancel()

    async def made(self, height: int) -> None:
        """Wait until the snapshot of a height is whole here, and those before it are gone."""
        with trio.fail_after(60):
            while self.snapshots.manifest(Height(height)) is None or self.snapshots.put_removal(Batch()):
                await trio.sleep(0.01)

    def state(self) -> dict[bytes, bytes]:
        return dict(self.store.state_rows())

    def is_at(self, height: int) -> bool:
        """Whether state, mark and block are those of a height: of no other, and no mix."""
        mark = self.store.applied()
        return (
            mark.height == height
            and mark.hash == built()[height].hash
            and self.store.block(mark.height) == built()[height]
            and self.state() == states()[height]
        )

    def events(self, level: str) -> list[str]:
        return [event for noted, event, _ in self.log.events if noted == level]

    def spoil(self, change: Callable[[int, bytes], bytes | None]) -> "Asked":
        """Change what this member sends as chunks: by index and data; None ends the stream there. Return what is asked of it."""
        return Asked.of(self, change)


@dataclass(slots=True)
class Asked:
    """The chunks that a member was asked for, as (first, last)."""

    spans: list[tuple[int, int]]

    @staticmethod
    def of(member: Member, change: Callable[[int, bytes], bytes | None]) -> "Asked":
        asked = Asked([])
        serve = member.transport._streams[CHUNKS]

        async def changed(peer: NodeId, body: bytes) -> AsyncIterator[bytes]:
            request = codec.decode(body, ChunksFrom)
            asked.spans.append((request.first, request.last))
            index = request.first
            whole = serve(peer, body)
            assert isinstance(whole, AsyncGenerator)
            async with aclosing(whole):
                async for data in whole:
                    sent = change(index, data)
                    if sent is None:
                        return
                    yield sent
                    index += 1

        member.transport._streams[CHUNKS] = changed
        return asked


async def voters(network: dict[NodeId, DirectTransport], last: int = BLOCKS_BUILT) -> tuple[Member, ...]:
    """Return three voters that have applied the chain and made its newest snapshot."""
    members = tuple(Member(network, signer) for signer in VOTERS)
    for member in members:
        await member.apply(last)
    return members


def observer(
    network: dict[NodeId, DirectTransport], *, rows: KeyValue | None = None, kept: KeyValue | None = None
) -> Member:
    return Member(network, key("observer"), rows, kept)
