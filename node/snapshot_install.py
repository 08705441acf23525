"""Installing a state snapshot: a member that lags far behind takes the state itself, and blocks only from there on.

    ask all voters ─► a claim that a quorum states ─► its manifest, from anybody ─► its chunks, from several members in turn
         │ none                                            staged under their hashes; fetching goes on after a restart
         ▼                                                                     │ all here, each checked
    back to blocks                                       rows under the prefix that is not in use ─► one synchronised batch
                                                         takes that prefix into use, with mark, block and certificate

Until that batch the old state is in use, whole; after it the new one. A crash in between leaves rows that nobody reads,
and the next start finds the chunks staged and installs them anew. What is not in use any more is removed in the background.
"""

import contextlib
from collections import deque

import trio

from node.applier import Applier
from node.event_log import EventLog
from node.ports import Clock, Disk, Entropy, PeerTransport, Workers
from node.snapshot_claims import Believed, Claims
from node.snapshots import (
    CHUNKS,
    MANIFESTS,
    ChunksFrom,
    SnapshotSpace,
    whole_chunk,
)
from node.verification import Verification
from protocol import codec
from protocol.block import Block
from protocol.errors import Corruption, Invalid, Malformed, RemoteFault, StorageFull, Unavailable
from protocol.identifiers import Height, NodeId
from protocol.snapshot import (
    Row,
    SnapshotManifest,
    check_manifest,
    chunk_rows,
    inflated,
)
from storage.key_value import Batch
from storage.ledger_store import LedgerStore
from storage.snapshot_store import SnapshotStore

LAG_UNITS = 4
"""A member that lags by fewer units takes the blocks: then no history has to be fetched afterwards."""
_MANIFEST_TIMEOUT_MS = 30_000
_STALL_S = 10.0
"""A sender that brings no chunk for so long is given up for now."""
_TRIES = 3
_CHUNKS_PER_SENDER = 32
"""Then the next member has its turn: 8 MiB of state."""
_ROWS_REMOVED = 4_096
_REMOVAL_PAUSE_MS = 20


class Installer:
    """Looks for a believed snapshot, fetches and installs it. While `attempt` runs, nothing else applies blocks."""

    def __init__(
        self,
        space: SnapshotSpace,
        ledger: LedgerStore,
        applier: Applier,
        claims: Claims,
        *,
        disk: Disk,
        changing_history: trio.Lock,
        transport: PeerTransport,
        verification: Verification,
        workers: Workers,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        self._store = SnapshotStore(space.rows)
        self._space = space
        self._ledger = ledger
        self._applier = applier
        self._disk = disk
        self._changing_history = changing_history
        self._transport = transport
        self._verification = verification
        self._workers = workers
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self._network = ledger.network
        self._claims = claims
        # What is not in use is either being removed or being written, never both.
        self._using_unused = trio.Lock()

    @property
    def lag(self) -> int:
        """From how many blocks behind a snapshot is preferred to them."""
        return LAG_UNITS * self._space.unit

    async def run(self) -> None:
        """Remove the state that is not in use, at the start and after each installation, until cancelled."""
        while True:
            installed = self._applier.installed
            async with self._using_unused:
                await self._remove_unused(pause_ms=_REMOVAL_PAUSE_MS)
            await installed.wait()

    async def attempt(self, least: Height) -> bool:
        """Install the newest believed snapshot at or above `least`; return whether there was one.

        What was fetched stays for the next attempt. Raises what the ledger's disk raises.
        """
        least = Height(max(least, self._applier.mark.height + 1))
        try:
            manifest = await self._fetched(least)
            if manifest is None:
                return False
            async with self._using_unused:
                await self._install(manifest)
        except (Corruption, StorageFull, Invalid, Malformed) as reason:
            # The staged chunks are at fault, or there is no room for them: blocks need neither.
            self._log.info("no snapshot was installed", reason=str(reason))
            await self._forget_target()
            return False
        return True

    # --- finding one ------------------------------------------------------------------------------------------

    async def _fetched(self, least: Height) -> SnapshotManifest | None:
        """Return the manifest of a believed snapshot all of whose chunks are here."""
        target = self._store.target()
        if target is not None and target.height < least:
            target = None
        missing = await self._missing(target) if target is not None else deque[int]()
        if target is not None and not missing:
            return target
        for _ in range(_TRIES):
            found = await self._claims.newest()
            known = target.state_digest if target is not None else None
            if found is not None and found.claim.height >= least and found.claim.state_digest != known:
                target = await self._manifest(found)
                missing = await self._missing(target) if target is not None else missing
            if target is None:
                return None
            self._log.info("fetching a snapshot of the state", height=target.height, chunks=len(missing))
            if await self._fetch(target, missing):
                return target
            # The members may have removed it meanwhile, because a newer one is whole.
        return None

    async def _manifest(self, found: Believed) -> SnapshotManifest | None:
        """Return the manifest of a claim from the first member that has it, and make it the one to be fetched."""
        claim = found.claim
        request = codec.encode(ChunksFrom(claim.height, 0, 0))
        for peer in self._connected():
            try:
                answer = await self._transport.call(peer, MANIFESTS, request, timeout_ms=_MANIFEST_TIMEOUT_MS)
            except (Unavailable, RemoteFault):
                continue  # it has none of that height
            try:
                manifest = codec.decode(answer, SnapshotManifest)
                check_manifest(manifest, claim, self._network, self._ledger.configuration)
            except RemoteFault as fault:
                self._verification.reject(peer, fault)
                continue
            batch = Batch()
            self._store.put_target(batch, manifest, found.stated)
            await self._space.disk.commit(batch, sync=True)
            return manifest
        return None

    def _connected(self) -> list[NodeId]:
        connected = [peer.node for peer in self._transport.peers() if peer.connected]
        start = self._entropy.bytes(1)[0] % len(connected) if connected else 0
        return connected[start:] + connected[:start]

    # --- fetching its chunks ------------------------------------------------------------------------------------

    async def _missing(self, manifest: SnapshotManifest) -> deque[int]:
        """Return which chunks are not here, or not whole, in order."""
        missing = deque[int]()
        for index in range(len(manifest.chunks)):
            if await self._workers.run(whole_chunk, self._store, manifest, index) is None:
                missing.append(index)
        return missing

    async def _fetch(self, manifest: SnapshotManifest, missing: deque[int]) -> bool:
        """Fetch the missing chunks from the members in turn; return whether all are here."""
        liars: set[NodeId] = set()
        while missing:
            before = len(missing)
            for peer in self._connected():
                if missing and peer not in liars:
                    try:
                        await self._fetch_from(peer, manifest, missing)
                    except Unavailable as reason:
                        self._log.debug("chunks from elsewhere", peer=peer.hex()[:16], reason=str(reason))
                    except Invalid as fault:
                        liars.add(peer)
                        self._verification.reject(peer, fault)
            if len(missing) == before:
                return False
        return True

    async def _fetch_from(self, peer: NodeId, manifest: SnapshotManifest, missing: deque[int]) -> None:
        """Take the next chunks from one member.

        Raises:
            Unavailable: it went away, or has them no more.
            Invalid: it sent something else.
        """
        first = last = missing[0]
        while last - first + 1 < _CHUNKS_PER_SENDER and last + 1 in missing:
            last += 1
        request = codec.encode(ChunksFrom(manifest.height, first, last))
        with trio.move_on_after(_STALL_S) as patience:
            async with self._transport.fetch(peer, CHUNKS, request) as frames:
                while missing and missing[0] <= last:
                    try:
                        data = await anext(frames, None)
                    except RemoteFault as refusal:
                        raise Unavailable(
                            str(refusal)
                        ) from None  # its handler's word, no fault of its chunks
                    if data is None:
                        return
                    index = missing[0]
                    await self._workers.run(inflated, data, manifest.chunks[index])
                    batch = Batch()
                    self._store.put_chunk(batch, manifest.height, index, data)
                    await self._space.disk.commit(batch, sync=False)
                    missing.popleft()
                    patience.deadline = trio.current_time() + _STALL_S
        if patience.cancelled_caught:
            raise Unavailable("it brought no chunk for too long")

    # --- installing ---------------------------------------------------------------------------------------------

    async def _install(self, manifest: SnapshotManifest) -> None:
        """Write the rows beside those in use, then take them into use.

        Raises:
            Invalid: a staged chunk is damaged.
            Malformed: a chunk holds no rows.
        """
        # What an earlier installation left half written must not be among the new rows.
        await self._remove_unused(pause_ms=0)
        for index in range(len(manifest.chunks)):
            rows = await self._workers.run(_rows_of, self._store, manifest, index)
            batch = Batch()
            self._ledger.put_unused_state(batch, rows)
            await self._disk.commit(batch, sync=False)
        block = Block.decode(manifest.block)  # checked when the manifest became the target
        async with self._changing_history:
            batch = Batch()
            self._ledger.put_installed(batch, block, manifest.certificate, manifest.frontier)
            # Everything written before it is durable with it, because one log holds them all.
            await self._disk.commit(batch, sync=True)
            self._applier.adopt()
        self._log.info("installed a snapshot of the state", height=manifest.height, count=manifest.rows)
        batch = Batch()
        self._store.put_whole(batch, manifest)
        self._store.clear_target(batch)
        await self._space.disk.commit(batch, sync=False)

    async def _remove_unused(self, *, pause_ms: int) -> None:
        start: bytes | None = b""
        while start is not None:
            batch = Batch()
            start = await self._workers.run(self._ledger.put_unused_removal, batch, start, _ROWS_REMOVED)
            if batch.writes:
                await self._disk.commit(batch, sync=False)
                await self._clock.sleep_ms(pause_ms)

    async def _forget_target(self) -> None:
        batch = Batch()
        self._store.clear_target(batch)
        with contextlib.suppress(
            Corruption, StorageFull
        ):  # then it is found wanting again at the next attempt
            await self._space.disk.commit(batch, sync=False)


def _rows_of(store: SnapshotStore, manifest: SnapshotManifest, index: int) -> list[Row]:
    data = store.chunk(manifest.height, index)
    if data is None:
        raise Invalid(f"chunk {index} of the snapshot is gone")
    return chunk_rows(inflated(data, manifest.chunks[index]))
