"""Making and serving state snapshots (`protocol.snapshot` says at which heights, and what they are).

The applier hands over a consistent view of the state right after it has applied a snapshot height. A task of its own reads
that view chunk by chunk beside the event loop, with a pause after each, and signs at the end what it has found. Nothing
waits for it: when views come faster than they are read, or the node stops, there is no snapshot of that height here.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import trio

from node.event_log import EventLog
from node.ports import Clock, Disk, PeerTransport, Workers
from protocol import codec, limits
from protocol.block import Block, Header
from protocol.codec import wire
from protocol.errors import Corruption, Invalid, StorageFull, Unavailable
from protocol.finality import Certificate
from protocol.identifiers import Digest, Height, NodeId
from protocol.merkle import Frontier
from protocol.signing import SigningKey, sha256
from protocol.snapshot import (
    Row,
    SnapshotManifest,
    StateStatement,
    StateStatements,
    compressed,
    inflated,
    newest_snapshot_height,
    significance,
    state,
    take_chunk,
)
from storage.key_value import Batch, KeyValue
from storage.ledger_store import LedgerStore
from storage.snapshot_store import SnapshotStore

STATEMENTS = "snapshot"
MANIFESTS = "snapshot-manifest"
CHUNKS = "snapshot-chunks"
_PAUSE_MS = 10
"""After each chunk: reading and compressing one takes some 5 ms, so that a snapshot costs a fraction of one processor."""


@dataclass(frozen=True, slots=True)
class SnapshotSpace:
    """Where a node keeps snapshots; the grid of their heights in blocks and the size of chunks, the same for the whole network."""

    rows: KeyValue
    disk: Disk
    unit: int = limits.SNAPSHOT_UNIT_BLOCKS
    chunk_bytes: int = limits.SNAPSHOT_CHUNK_BYTES


@wire("snapshot-chunks-from")
@dataclass(frozen=True, slots=True)
class ChunksFrom:
    """Ask for chunks first..last, both included, of the snapshot at a height."""

    height: Height
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class StateView:
    """The state after one block, to be read once and in order."""

    block: Block
    links: tuple[Header, ...]
    certificate: Certificate
    frontier: Frontier
    rows: Iterator[Row]


class SnapshotMaker:
    """Cuts the state into chunks at snapshot heights. Who is a signer by then states what it found, with `key`."""

    def __init__(
        self,
        space: SnapshotSpace,
        ledger: LedgerStore,
        *,
        key: SigningKey,
        workers: Workers,
        clock: Clock,
        log: EventLog,
    ) -> None:
        self._unit = space.unit
        self._chunk_bytes = space.chunk_bytes
        self._disk = space.disk
        self._store = SnapshotStore(space.rows)
        self._ledger = ledger
        self._key = key
        self._workers = workers
        self._clock = clock
        self._log = log
        # One waits at most: each holds an old view of the whole state.
        self._waiting: StateView | None = None
        self._work = trio.Event()
        self._is_stopped = False
        self._stated = trio.Event()

    def height_in(self, first: Height, last: Height) -> Height | None:
        """Return the highest height of first..last after which a snapshot is due."""
        return newest_snapshot_height(first, last, self._unit)

    def offer(
        self, block: Block, links: tuple[Header, ...], certificate: Certificate, frontier: Frontier
    ) -> None:
        """Begin a view of the state, which is that after `block`; `links` lead from it to the certificate's block. Called by the applier alone, before it goes on."""
        if self._is_stopped:
            return
        waiting = self._waiting
        # Where the ledger grows faster than it is read, the members still meet at the coarse heights.
        if waiting is not None and significance(block.height) > significance(waiting.block.height):
            return
        rows = self._ledger.state_rows()
        try:
            first = next(rows, None)  # the view is that of this very moment from now on
        except Corruption as damage:
            self._log.info("no snapshot of this height", height=block.height, reason=str(damage))
            return
        self._waiting = StateView(block, links, certificate, frontier, _chained(first, rows))
        self._work.set()

    def stop(self) -> None:
        """Make no more: what this node computes is not what the others do."""
        self._is_stopped = True

    async def wait_stated(self) -> StateStatement:
        """Wait until this voter has made another statement, and return it."""
        await self._stated.wait()
        self._stated = trio.Event()
        return self._store.statements()[0]

    async def run(self) -> None:
        """Make snapshots until cancelled."""
        await self._remove_old()
        while True:
            await self._work.wait()
            self._work = trio.Event()
            view, self._waiting = self._waiting, None
            assert view is not None, "work is a view"
            try:
                await self._make(view)
            except (Corruption, StorageFull) as reason:
                # The one before stays; what is damaged is found and told by whoever needs it.
                self._log.info("no snapshot of this height", height=view.block.height, reason=str(reason))
            await self._remove_old()

    async def _make(self, view: StateView) -> None:
        height, index, rows = view.block.height, 0, 0
        hashes: list[Digest] = []
        while (piece := await self._workers.run(_next_piece, view.rows, self._chunk_bytes)) is not None:
            batch = Batch()
            self._store.put_chunk(batch, height, index, piece.data)
            await self._disk.commit(batch, sync=False)
            hashes.append(piece.digest)
            index, rows = index + 1, rows + piece.rows
            if index > limits.SNAPSHOT_CHUNKS_MAX:
                self._log.warning("the state is too large for a snapshot", height=height, chunks=index)
                return
            await self._clock.sleep_ms(_PAUSE_MS)
        frontier = view.frontier
        manifest = SnapshotManifest(
            block=view.block.raw,
            height=height,
            links=view.links,
            certificate=view.certificate,
            tree_size=frontier.size,
            peaks=frontier.peaks,
            rows=rows,
            chunks=tuple(hashes),
        )
        is_signer = NodeId(self._key.public) in self._ledger.configuration.signers
        statement = state(self._key, view.block, manifest.state_digest) if is_signer else None
        batch = Batch()
        self._store.put_whole(batch, manifest, statement)
        await self._disk.commit(batch, sync=True)
        if statement is not None:
            self._stated.set()
        self._log.info("made a snapshot of the state", height=height, chunks=index, count=rows)

    async def _remove_old(self) -> None:
        """Give back the space of older snapshots, and of one that a crash left half made."""
        try:
            is_removed = False
            while await self._workers.run(self._store.put_removal, batch := Batch()):
                await self._disk.commit(batch, sync=False)
                await self._clock.sleep_ms(_PAUSE_MS)
                is_removed = True
            if is_removed:
                await self._workers.run(self._store.give_back)
        except (Corruption, StorageFull) as reason:
            self._log.info("old snapshots could not be removed", reason=str(reason))


@dataclass(frozen=True, slots=True)
class _Piece:
    data: bytes
    digest: Digest
    rows: int


def _next_piece(rows: Iterator[Row], chunk_bytes: int) -> _Piece | None:
    taken = take_chunk(rows, chunk_bytes)
    if taken is None:
        return None
    chunk, count = taken
    return _Piece(compressed(chunk), sha256(chunk), count)


def _chained(first: Row | None, rest: Iterator[Row]) -> Iterator[Row]:
    if first is not None:
        yield first
        yield from rest


class SnapshotServer:
    """Answers who asks for statements, a manifest or chunks. What is damaged is served to nobody."""

    def __init__(self, space: SnapshotSpace, workers: Workers) -> None:
        self._store = SnapshotStore(space.rows)
        self._workers = workers

    def serve(self, transport: PeerTransport) -> None:
        """Serve from now on."""
        transport.serve(STATEMENTS, self._statements)
        transport.serve(MANIFESTS, self._manifest)
        transport.serve_stream(CHUNKS, self._chunks)

    async def _statements(self, _peer: NodeId, _body: bytes) -> bytes:
        return codec.encode(StateStatements(self._store.statements()))

    async def _manifest(self, _peer: NodeId, body: bytes) -> bytes:
        manifest = self._store.manifest(codec.decode(body, ChunksFrom).height)
        if manifest is None:
            raise Unavailable("there is no snapshot of that height here")
        return codec.encode(manifest)

    async def _chunks(self, _peer: NodeId, body: bytes) -> AsyncIterator[bytes]:
        """Yield the chunks asked for, as far as they are whole here."""
        asked = codec.decode(body, ChunksFrom)
        manifest = self._store.manifest(asked.height)
        if manifest is None:
            raise Unavailable("there is no snapshot of that height here")
        for index in range(asked.first, min(asked.last + 1, len(manifest.chunks))):
            data = await self._workers.run(whole_chunk, self._store, manifest, index)
            if data is None:
                return
            yield data


def whole_chunk(store: SnapshotStore, manifest: SnapshotManifest, index: int) -> bytes | None:
    """Return a compressed chunk of a snapshot; None when it is not here, or not the one that its hash names."""
    try:
        data = store.chunk(manifest.height, index)
        if data is not None:
            inflated(data, manifest.chunks[index])
    except (Corruption, Invalid):
        return None
    return data
