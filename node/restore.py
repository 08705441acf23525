"""Onto an empty machine: a backup becomes a home again, whole or not at all.

    HOME/restoring/     everything, while the file is read; a file that turns out damaged at its end leaves nothing
    HOME/               databases and files are moved into place, config.toml last: a home without it is none

A restore that was killed is simply repeated: `restoring/` tells it apart from a home, and whatever stands beside it is made
anew. The ledger is marked as a rebuilt one: its voter may have signed more than this copy knows, so it follows until the
others have certified that it begins anew, and only then signs again (`node.rejoin`). Chunks come back from the other members.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from node.backup import HomeFiles
from node.home import Home, sync_directory, write_atomically
from node.lost_vaults import mark_restored
from node.repair import look_again
from protocol import codec, limits
from protocol.errors import Corruption, Refused, StorageFull
from protocol.identifiers import Cid, Height
from storage import databases, keyspace
from storage.backup_file import BackupReader, Contents, Entry, Kind, contents_of
from storage.chunk_store import ChunkStore
from storage.key_value import Batch
from storage.keystore import Keystore
from storage.ledger_store import AppliedMark, LedgerStore
from storage.leveldb import LevelDb

_BEING_MADE = "restoring"
_LOCK = "lock"
_DATABASES = (databases.KEYS, databases.LEDGER, databases.PAYLOADS)
_BATCH_BYTES = 4 * limits.MIB
_CHUNKS_PER_WRITE = 8
_SPACE_FACTOR = 1.2
"""Tables are a little longer than the rows in them, and the log of the last ones is there as well."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored: of whom, when the backup was made, up to which height, how many chunks and bytes of the file."""

    contents: Contents
    height: Height
    chunks: int
    bytes: int


def restore(
    home: Home,
    file: Path,
    recovery_secret: bytes,
    *,
    passphrase: str | None,
    entropy: Callable[[int], bytes],
    now_ms: int,
    started: Callable[[int], contextlib.AbstractContextManager[Callable[[int], None]]],
) -> Restored:
    """Make the home of a backup. `passphrase`, if given, seals its keys from now on; else what sealed them still does.

    `now_ms` is Unix time; `started` takes the bytes of the file and returns a context with a function that takes those done so far.

    Raises:
        Refused: the home exists, the file is no backup, or the recovery key is another one.
        Corruption: the file is damaged or incomplete.
        StorageFull: there is no room for it.
        In every case nothing is left of it.
    """
    with _opened(file) as opened, _workshop(home) as workshop:
        reader = BackupReader(opened, recovery_secret)
        size = os.fstat(opened.fileno()).st_size
        _check_room(home.path, size)
        with started(size) as show:
            restored = _build(workshop, reader, now_ms, show)
        if passphrase is not None:
            _seal_anew(workshop, home, recovery_secret, passphrase, entropy)
        _put_in_place(home, workshop)
    return restored


# --- building -----------------------------------------------------------------------------------------------------


def _build(workshop: Path, reader: BackupReader, now_ms: int, show: Callable[[int], None]) -> Restored:
    """Read the whole file into databases and files of their own."""
    with contextlib.ExitStack() as stack:
        keys = stack.enter_context(contextlib.closing(databases.open_keys(workshop, create=True)))
        ledger = stack.enter_context(contextlib.closing(databases.open_ledger(workshop, create=True)))
        payloads = stack.enter_context(contextlib.closing(databases.open_payloads(workshop, create=True)))
        entries = reader.entries()
        first = next(entries, None)
        if first is None:
            raise _is_no_home()
        contents = contents_of(first)
        rows = _Rows({Kind.KEYS_ROW: keys, Kind.LEDGER_ROW: ledger})
        chunks = _Chunks(payloads, ledger)
        for entry in entries:
            match entry.kind:
                case Kind.FILE:
                    _write_file(workshop, entry)
                case Kind.KEYS_ROW | Kind.LEDGER_ROW:
                    rows.add(entry)
                case Kind.CHUNK:
                    rows.flush()
                    chunks.add(entry)
                case Kind.CONTENTS | Kind.END:
                    raise _is_no_home()
            show(reader.position)
        rows.flush()
        chunks.flush()
        height = _mark_as_copy(ledger, now_ms)
        if keys.get(keyspace.MASTER_KEY) is None:
            raise _is_no_home()
        return Restored(contents, height, chunks.count, reader.position)


class _Rows:
    """Writes rows in the order they come, a few megabytes at a time."""

    def __init__(self, targets: dict[Kind, LevelDb]) -> None:
        self._targets = targets
        self._kind = Kind.KEYS_ROW
        self._batch = Batch()

    def add(self, entry: Entry) -> None:
        if entry.kind != self._kind:
            self.flush()
            self._kind = entry.kind
        elif self._batch.bytes > _BATCH_BYTES:
            self._write(sync=False)
        self._batch.put(entry.key, entry.value)

    def flush(self) -> None:
        """Make all rows so far durable; until then a crash begins anew, so that the many before need not be."""
        self._write(sync=True)

    def _write(self, *, sync: bool) -> None:
        if self._batch.writes:
            self._targets[self._kind].write(self._batch, sync=sync)
            self._batch = Batch()


class _Chunks:
    """Stores chunks under new sequence numbers, each checked against its id."""

    def __init__(self, payloads: LevelDb, ledger: LevelDb) -> None:
        self._databases = payloads, ledger
        self._store: ChunkStore | None = None
        self._portion: list[tuple[Cid, bytes]] = []
        self.count = 0

    def add(self, entry: Entry) -> None:
        self._portion.append((Cid(entry.key), entry.value))
        if len(self._portion) == _CHUNKS_PER_WRITE:
            self.flush()

    def flush(self) -> None:
        if not self._portion:
            return
        # Made only now, when the rows of the ledger are there: it reads them.
        self._store = self._store or ChunkStore(*self._databases)
        self.count += self._store.put_many(self._portion)
        self._portion = []


def _write_file(workshop: Path, entry: Entry) -> None:
    name = entry.key.decode(errors="replace")
    if name not in {path.name for path in HomeFiles.of(Home(workshop)).small}:
        raise _is_no_home()
    mode = 0o644 if name == Home(workshop).card.name else 0o600
    write_atomically(workshop / name, entry.value, mode=mode)


def _mark_as_copy(ledger: LevelDb, now_ms: int) -> Height:
    """Make the copy one that may be voted with only after it has caught up; return its applied height."""
    row = ledger.get(keyspace.APPLIED)
    if row is None:
        raise _is_no_home()
    height = codec.decode(row, AppliedMark).height
    batch = Batch()
    start = keyspace.BLOCK + keyspace.sequence_key(height + 1)
    for key, _ in ledger.scan(start, keyspace.prefix_range(keyspace.BLOCK)[1]):
        batch.delete(key)  # not final when the copy was made: others may have gone on without it
    look_again(batch)
    mark_restored(batch, now_ms)
    ledger.write(batch, sync=True)
    LedgerStore.mark_rebuilt(ledger)
    return height


def _seal_anew(
    workshop: Path, home: Home, recovery_secret: bytes, passphrase: str, entropy: Callable[[int], bytes]
) -> None:
    """Seal the restored keys under a new passphrase: the old one may be lost with whoever knew it."""
    with contextlib.closing(databases.open_keys(workshop, create=False)) as keys:
        Keystore.recover(keys, recovery_secret, entropy).change_passphrase(passphrase)
    (workshop / home.key_file.name).unlink(missing_ok=True)


# --- the place of it ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    try:
        opened = file.open("rb")
    except OSError as error:
        raise Refused(f"the backup {file} cannot be read ({error.strerror}); name another") from None
    with opened:
        yield opened


@contextlib.contextmanager
def _workshop(home: Home) -> Iterator[Path]:
    """Yield the directory in which the home is made; when the block fails, everything is as it was before."""
    is_new = not home.path.exists()
    _check_empty(home)
    with home.lock():
        _clear(home)
        workshop = home.path / _BEING_MADE
        try:
            workshop.mkdir(mode=0o700)
            yield workshop
        except BaseException:
            _clear(home)
            (home.path / _LOCK).unlink(missing_ok=True)
            if is_new:
                with contextlib.suppress(OSError):  # somebody has put something there; it stays
                    home.path.rmdir()
            raise


def _check_empty(home: Home) -> None:
    try:
        home.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = {path.name for path in home.path.iterdir()} - {_LOCK}
    except OSError as error:
        raise Refused(
            f"the home {home.path} cannot be made ({error.strerror}); choose another --home"
        ) from None
    is_half = _BEING_MADE in found and not home.config.exists()
    if found and not is_half:
        raise Refused(
            f"the home {home.path} is not empty and restore overwrites nothing; choose another --home or move it away first"
        )
    _make_private(home.path)


def _make_private(path: Path) -> None:
    """Close a directory that will hold keys. Only one that is empty: whatever else it is, it keeps its mode."""
    try:
        path.chmod(0o700)
    except OSError as error:
        raise Refused(f"the home {path} cannot be made ({error.strerror}); choose another --home") from None


def _clear(home: Home) -> None:
    """Remove what a restore makes, as long as it is not a home."""
    if home.config.exists():
        return
    for name in (*_DATABASES, _BEING_MADE):
        shutil.rmtree(home.path / name, ignore_errors=True)
    for path in HomeFiles.of(home).small:
        path.unlink(missing_ok=True)


def _check_room(path: Path, size: int) -> None:
    if shutil.disk_usage(path).free < size * _SPACE_FACTOR:
        raise StorageFull(
            f"the disk has no room for a backup of {size} bytes; free some space and repeat, nothing was restored"
        )


def _put_in_place(home: Home, workshop: Path) -> None:
    for name in _DATABASES:
        sync_directory(workshop / name)
        (workshop / name).rename(home.path / name)
    *others, config = sorted(
        (path for path in workshop.iterdir() if path.is_file()),
        key=lambda path: path.name == home.config.name,
    )
    if config.name != home.config.name:
        raise _is_no_home()
    for path in others:
        path.rename(home.path / path.name)
    sync_directory(home.path)
    # The settings come last: a crash before this line leaves no home, and the restore is repeated.
    config.rename(home.config)
    sync_directory(home.path)
    shutil.rmtree(workshop, ignore_errors=True)


def _is_no_home() -> Corruption:
    return Corruption("the backup does not hold a whole home; nothing was restored, use another copy")
