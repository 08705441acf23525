"""The online backup: everything of this facility that no other member can give back, as one sealed stream.

What is in it: settings, card and genesis; the key store with the custody wallets; the ledger database (blocks, state, envelopes,
this facility's own rows) from one snapshot; and those chunks that nobody else may have, or all of them if asked for.

What is not: the Raft hard state and blocks that were not final here, for a restored voter has to forget what it signed; where
chunks lie, for they will lie elsewhere; `shares/`, since deleting a share is what makes an erasure real; and the recovery key.

The snapshot of the ledger is taken before that of the keys. What a row refers to is always stored before the row, so whatever
the ledger's rows need is among the keys and the chunks; a key that no row uses yet does no harm.
"""

import contextlib
from collections.abc import AsyncGenerator, Generator, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from node.chunk_holder import ChunkHolder
from node.event_log import EventLog
from node.home import ADDRESS_BOOK, Home
from node.ports import Clock, Entropy, Workers
from node.queued_record import QueuedRecord
from node.sealed_rows import SealedRows
from protocol import codec
from protocol.errors import CarechainError, Corruption, Refused, Unavailable
from protocol.identifiers import Cid, NodeId, PublicKey, Rid
from storage import databases, keyspace
from storage.backup_file import FORMAT, BackupWriter, Contents, Kind
from storage.chunk_store import ChunkStore
from storage.key_value import KeyValue
from storage.keystore import Keystore
from storage.ledger_store import AppliedMark, LedgerStore

_LEFT_OUT = frozenset(
    (
        keyspace.HARD_STATE,
        keyspace.CHUNK,
        keyspace.CHUNK_CURSOR,
        keyspace.CHUNK_SCRUBBED,
        keyspace.CHUNK_QUARANTINE,
        keyspace.CHUNK_RECLAIM,
        keyspace.SCRUB_WALK,
        keyspace.GROWTH,
        keyspace.LOG_WITNESS,  # a witness that forgot what it cosigned must not go on under its old key
    )
)
_BUSY = "another backup of this facility is being made; wait until it is done"
_PORTION_BYTES = 256 * 1024
"""Read in one go on a worker thread: some milliseconds of Python, so that the event loop is not kept waiting."""


@dataclass(frozen=True, slots=True)
class HomeFiles:
    """The files of a home that belong into a backup, and the databases whose size tells how long it will be."""

    small: tuple[Path, ...] = ()
    databases: tuple[Path, ...] = ()

    @staticmethod
    def of(home: Home) -> "HomeFiles":
        """Return those of a home. Not its recovery key: a key inside what it opens helps nobody who lost it."""
        small = (
            home.config,
            home.card,
            home.genesis,
            home.ticket,
            home.key_file,
            home.path / ADDRESS_BOOK,
        )
        return HomeFiles(small, (home.keys, home.path / databases.LEDGER))

    def read(self) -> list[tuple[str, bytes]]:
        """Return (name, bytes) of those that exist."""
        return [(path.name, path.read_bytes()) for path in self.small if path.exists()]

    def database_bytes(self) -> int:
        """Return roughly how many bytes the databases hold."""
        total = 0
        for file in chain.from_iterable(path.iterdir() for path in self.databases if path.is_dir()):
            with contextlib.suppress(OSError):  # compaction has just removed it
                total += file.stat().st_size
        return total


NO_FILES = HomeFiles()
"""Of a node that has no home."""


@dataclass(frozen=True, slots=True)
class BackupSources:
    """Where a backup comes from: the files, the rows of the ledger database, the chunks, the keys, the ledger."""

    files: HomeFiles
    rows: KeyValue
    own: SealedRows
    chunks: ChunkStore
    holder: ChunkHolder
    keystore: Keystore
    store: LedgerStore


class Backup:
    """Makes backups, one at a time, and keeps the public recovery key they are sealed to."""

    def __init__(
        self,
        sources: BackupSources,
        me: NodeId,
        *,
        workers: Workers,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        self._sources = sources
        self._me = me
        self._workers = workers
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self._is_running = False

    async def set_recovery_key(self, public: bytes, passphrase: str | None) -> None:
        """Seal later backups, and the keys in them, to another recovery key.

        Raises:
            Refused: the passphrase of the keys is wrong or missing: whoever has the recovery key has the keys.
            Invalid: not a public key.
        """
        keystore = self._sources.keystore
        await self._workers.run(keystore.check_passphrase, passphrase)
        await self._workers.run(keystore.set_recovery_key, PublicKey(public))
        self._log.warning("the recovery key was changed; older backups open with the former one")

    async def begin(self, *, with_payloads: bool) -> "BackupStream":
        """Return a backup of what is here now.

        Raises:
            Refused: there is no recovery key yet.
            Unavailable: another backup is being made.
        """
        if self._is_running:
            raise Unavailable(_BUSY)
        recovery = self._sources.keystore.recovery_key()
        if recovery is None:
            raise Refused(
                "this facility has no recovery key yet; add --new-recovery-key FILE, on a medium that is kept elsewhere"
            )
        configuration = self._sources.store.configuration
        # With nobody else to hold a chunk, all of them are only here.
        with_payloads = with_payloads or len(configuration.storing) == 1
        contents = Contents(
            FORMAT,
            self._sources.store.configurations.name_ever(self._me),
            self._sources.store.network,
            self._clock.now_ms(),
            with_payloads,
        )
        stream = BackupStream(self._sources, BackupWriter(recovery, self._entropy.bytes), contents, self._me)
        await self._workers.run(stream.take_snapshots)
        return stream

    async def pieces(self, stream: "BackupStream") -> AsyncGenerator[bytes, None]:
        """Yield the file piece by piece; afterwards `stream.summary` says what is in it.

        Raises:
            Corruption: rows of the ledger or the key store are damaged: the backup would not be whole.
        """
        if self._is_running:
            raise Unavailable(_BUSY)
        self._is_running = True
        portions = stream.portions()
        try:
            while (sealed := await self._workers.run(next, portions, None)) is not None:
                if sealed:
                    yield sealed
        finally:
            self._is_running = False
            portions.close()
        summary = stream.summary()
        self._log.info("made a backup", height=summary["height"], chunks=summary["chunks"])
        if summary["left_out"]:
            self._log.warning("damaged chunks are not in the backup", count=summary["left_out"])


class BackupStream:
    """One backup being made. Its methods read and seal: they are for a worker thread, one call at a time."""

    def __init__(self, sources: BackupSources, writer: BackupWriter, contents: Contents, me: NodeId) -> None:
        self._sources = sources
        self._writer = writer
        self._contents = contents
        self._me = me
        self._height = 0
        self._left_out = 0
        self._ledger: Iterator[tuple[bytes, bytes]] = iter(())
        self._keys: Iterator[tuple[bytes, bytes]] = iter(())
        self.total = 0
        """How many bytes the file will have, roughly."""

    def take_snapshots(self) -> None:
        """Fix what the backup will hold."""
        self._ledger = _begun(self._sources.rows.scan(b"", keyspace.SEQUENCE_END))
        self._keys = _begun(self._sources.keystore.copy_rows())
        self.total = self._sources.files.database_bytes()
        if self._contents.with_payloads:
            self.total += self._sources.chunks.statistics().bytes

    def portions(self) -> Generator[bytes, None, None]:
        """Yield the file in pieces, each after a short time of work; many are empty."""
        writer, taken = self._writer, 0
        yield writer.begin(self._contents)
        for kind, key, value in self._entries():
            sealed = writer.add(kind, key, value)
            taken += len(key) + len(value)
            if sealed or taken >= _PORTION_BYTES:
                taken = 0
                yield sealed
        yield writer.finish()

    def summary(self) -> dict[str, object]:
        """Return the applied height in the backup, how many chunks are in it, and how many damaged ones are not."""
        return {"height": self._height, "chunks": self._writer.chunks, "left_out": self._left_out}

    def _entries(self) -> Iterator[tuple[Kind, bytes, bytes]]:
        for name, data in self._sources.files.read():
            yield Kind.FILE, name.encode(), data
        for key, value in self._keys:
            yield Kind.KEYS_ROW, key, value
        for key, value in self._ledger:
            if key[:1] in _LEFT_OUT:
                continue
            if key == keyspace.APPLIED:
                self._height = codec.decode(value, AppliedMark).height
            yield Kind.LEDGER_ROW, key, value
        for cid in self._chunks_to_copy():
            try:
                chunk = self._sources.chunks.get(cid)
            except Corruption:
                self._left_out += 1  # scrub and repair see to it; a backup that refused would protect nothing
                continue
            if chunk is not None:
                yield Kind.CHUNK, cid, chunk

    def _chunks_to_copy(self) -> Iterator[Cid]:
        if self._contents.with_payloads:
            yield from self._sources.chunks.cids()
            return
        for rid in self._sources.own.keys(keyspace.RECORD_QUEUE):
            yield from self._queued(rid)
        start, stop = keyspace.prefix_range(keyspace.UNDER_REPLICATED)
        for key, members in self._sources.rows.scan(start, stop):
            yield from self._only_here(Rid(key[1:]), frozenset(codec.unpack(members)))

    def _queued(self, rid: bytes) -> tuple[Cid, ...]:
        """Return the chunks of a record that is not final yet: nobody else need have them."""
        try:
            row = self._sources.own.get(keyspace.RECORD_QUEUE + rid)
        except CarechainError:
            return ()  # a damaged row: nobody will ever ask for its chunks
        return codec.decode(row, QueuedRecord).cids if row is not None else ()

    def _only_here(self, rid: Rid, missing: frozenset[bytes]) -> Iterator[Cid]:
        """Yield the chunks of a record that no other member has confirmed."""
        placed = self._sources.holder.placed(rid)
        if placed is None:
            return
        shares = placed.holders(self._sources.store.configuration.storing)
        elsewhere = {
            cid for node, cids in shares.items() if node != self._me and node not in missing for cid in cids
        }
        yield from (cid for cid in shares.get(self._me, ()) if cid not in elsewhere)


def _begun(rows: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Return the same rows with the first one read: a scan's snapshot is taken at its first step."""
    first = next(rows, None)
    return iter(()) if first is None else chain((first,), rows)
