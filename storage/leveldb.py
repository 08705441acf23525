"""LevelDB as a `KeyValue`: every checksum is verified, every error is one of ours.

What this adds to plyvel, each because something was lost or came back wrong without it:

- `paranoid_checks` and `verify_checksums` always (storage.md 1: otherwise flipped bits are returned as data).
- A changed length in the last block of a log is found before LevelDB takes it for a torn tail (`write_ahead_log`).
- A directory with tables but no CURRENT, or without the log that its manifest names, is damaged: LevelDB would quietly
  start an empty database in it, or go on without what was written last.
- Unsynchronised writes survive a power cut as a *prefix*: LevelDB changes log files without synchronising the old one,
  so a later write could survive an earlier one. A write after which it may do so is synchronised (`write_buffer`).
- After a failed write the log on disk ends in half a record that later writes would follow: so none are taken.
- `close` waits for calls in other threads (plyvel would free the database under them) and leaves an empty log.
"""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import plyvel

from protocol import limits
from protocol.errors import Corruption, LocalFault, Refused, StorageFull
from storage.callers import Callers
from storage.directories import sync_directory
from storage.engine_errors import EngineErrors
from storage.key_value import Batch
from storage.keyspace import FORMAT
from storage.levels import Level, parse_levels
from storage.page_cache import PageCache
from storage.write_ahead_log import damaged_logs, missing_log
from storage.write_buffer import WriteBuffer

Migration = Callable[["LevelDb"], None]
"""Brings a database from the format it stands under to the next one; idempotent, for a crash may repeat it."""

FORMAT_VERSION = 1
MIGRATIONS: Mapping[int, Migration] = {}
"""Format found -> how to reach the next. Empty while there is only one."""

_BLOOM_FILTER_BITS = 10
"""Per key: one lookup in a hundred of what is absent reads a table in vain."""


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


class LevelDb:
    """One database directory, owned by this object. Safe to call from several threads.

    `name` is the directory's name; `rebuild` the command that moves a damaged database aside and refills it, quoted in
    the error when the database does not open; None when nothing but a copy brings it back. `write_buffer` and `max_file_size` are bytes; the write buffer is held
    in memory up to twice. Of tables being written the newest `cached_tables` bytes stay in the page cache, None for all. With `create`, a directory that is missing or empty becomes a new database.

    Raises:
        Unreadable: the database does not open; the sentence names it and `rebuild`. Corruption: a file of it is missing.
        Refused: another process holds it, or it was written by a newer version.
        StorageFull: no space to open it.
        OSError: the device or the system failed.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool,
        rebuild: str | None,
        write_buffer: int = 4 * limits.MIB,
        max_file_size: int = 4 * limits.MIB,
        cached_tables: int | None = None,
        compression: Literal["snappy"] | None = None,
        format_version: int = FORMAT_VERSION,
        migrations: Mapping[int, Migration] = MIGRATIONS,
        free_bytes: Callable[[Path], int] = _free_bytes,
    ) -> None:
        self.path = path
        self.name = path.name
        self._errors = EngineErrors(path, rebuild)
        self._write_buffer = write_buffer
        self._free_bytes = free_bytes
        self._callers = Callers(self.name)
        self._write_lock = threading.Lock()
        self._unsynced = False
        self._dirty = True  # replaying a log at open fills the buffer
        self._holds_replaced = False
        self._failure: tuple[Callable[[str], Exception], str] | None = None
        self._db = self._opened(create=create, max_file_size=max_file_size, compression=compression)
        self._buffer = WriteBuffer(write_buffer, self._memory())
        self._pages = PageCache(path, cached_tables) if cached_tables is not None else None
        try:
            self._check_format(format_version, migrations)
        except Corruption as error:
            self._db.close()
            raise self._errors.refusal("its format cannot be read", type(error)) from error
        except BaseException:
            self._db.close()
            raise

    # --- reading ----------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None when the key is absent.

        Raises:
            Unreadable: the stored bytes fail their checksum.
        """
        self._callers.enter()
        try:
            value: bytes | None = self._db.get(key, verify_checksums=True)
        except plyvel.Error as error:
            raise self._errors.of_reading(error) from None
        finally:
            self._callers.leave()
        return value

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) with start <= key < stop, in order, from a snapshot taken at the first step.

        Raises:
            Unreadable: at the step that would pass unreadable bytes; nothing is skipped.
        """
        if start >= stop:
            return
        try:
            with self._callers.scanning():
                yield from self._scan(start, stop, reverse=reverse)
        finally:
            if self._holds_replaced:
                with suppress(LocalFault):  # closed: the engine removes what is replaced when it opens again
                    self._step(self._remove_replaced)

    def _scan(self, start: bytes, stop: bytes, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        rows = self._step(
            lambda: self._db.iterator(
                # Backwards, plyvel passes over a last key that is `start` itself: so we stop there, not it.
                start=None if reverse else start,
                stop=stop,
                include_stop=False,
                reverse=reverse,
                verify_checksums=True,
                fill_cache=False,
            )
        )
        try:
            while (row := self._step(lambda: next(rows, None))) is not None and row[0] >= start:
                if row[0] != FORMAT:
                    yield row
        finally:
            with suppress(LocalFault):  # the database was closed meanwhile, and its iterators with it
                self._step(rows.close)

    def _step(self, step: Callable[[], Any]) -> Any:  # Any: plyvel has no types
        self._callers.enter()
        try:
            return step()
        except plyvel.Error as error:
            raise self._errors.of_reading(error) from None
        finally:
            self._callers.leave()

    # --- writing ----------------------------------------------------------------------------------------------

    def write(self, batch: Batch, *, sync: bool) -> None:
        """Apply a batch atomically; with `sync`, return only once it is on stable storage.

        Raises:
            StorageFull: nothing was written. (When the device filled up in mid-write: until the next start.)
            Unreadable: the engine met damaged tables and takes no more writes.
            OSError: the device failed; what was written is unknown, and no more writes are taken.
        """
        if FORMAT in batch.writes:
            raise LocalFault("the format key belongs to the database itself")
        self._callers.enter()
        try:
            self._write(batch.writes, sync=sync)
        finally:
            self._callers.leave()

    def _write(self, writes: Mapping[bytes, bytes | None], *, sync: bool) -> None:
        with self._write_lock:
            if self._failure is not None:
                kind, text = self._failure
                raise kind(text)
            size = sum([len(key) + len(value or b"") for key, value in writes.items()])
            holds_values = any(value is not None for value in writes.values())
            # Refuse while nothing is half written; deleting stays possible, it is how space comes back.
            if holds_values and self._free_bytes(self.path) < 2 * size + self._write_buffer:
                raise StorageFull(f"the disk of database {self.name} is full: nothing was written")
            fills = self._buffer.add(size, len(writes), self._memory)
            try:
                with self._db.write_batch(sync=sync or fills) as pending:
                    for key, value in writes.items():
                        if value is None:
                            pending.delete(key)
                        else:
                            pending.put(key, value)
            except (plyvel.Error, OSError) as error:
                raise self._stopped(error) from None
            if self._pages is not None:
                self._pages.wrote(size)
            self._dirty = True
            self._unsynced = not (sync or fills)

    def _memory(self) -> int:
        return int(self._db.get_property(b"leveldb.approximate-memory-usage"))

    def _stopped(self, error: Exception) -> Exception:
        """Take no more writes after a failed one; return what to raise, now and for each that is tried."""
        self._failure = kind, text = self._errors.of_writing(error)
        return kind(text)

    # --- upkeep -----------------------------------------------------------------------------------------------

    def levels(self) -> tuple[Level, ...]:
        """Return the levels that hold files."""
        return parse_levels(self._step(lambda: self._db.get_property(b"leveldb.stats")))

    def flush(self) -> None:
        """Turn the write buffer into a table: frees its memory, and lets a scrub read every byte."""
        self._step(self._flush)

    def _flush(self) -> None:
        with self._write_lock:
            if self._dirty:
                self._flush_buffer()

    def _flush_buffer(self) -> bool:
        if self._failure is not None or self._free_bytes(self.path) < 2 * self._write_buffer:
            return False  # a flush that fails ends all writing; the log holds what is in the buffer
        try:
            if self._unsynced:
                with self._db.write_batch(sync=True):
                    pass  # the buffer is not full, so this is the log of all that is not synchronised
                self._unsynced = False
            # Any explicit range flushes first; this one holds no key, so nothing else is rewritten.
            # Should it fail, the next write says so, and the log still holds everything.
            self._db.compact_range(start=b"", stop=b"")
        except (plyvel.Error, OSError) as error:
            raise self._stopped(error) from None
        self._buffer.emptied()
        self._dirty = False
        return True

    def compact(self, start: bytes, stop: bytes) -> bool:
        """Give back the space of deleted keys in a range: afterwards no table holds their values; the caller keeps writers away.

        LevelDB does not rewrite a table that has nothing above it, so a value and its deletion written out together
        would stay for ever. Touching both ends of the range puts a table above all of it, and all is merged.
        Return False while a scan goes on: the replaced tables stay in the directory until the last one has ended.
        """
        self._callers.enter()
        try:
            begun_before, open_before = self._callers.scans_begun, self._callers.scans
            self._flush()
            ends = {key: self.get(key) for key in (start, stop)}
            self._write(ends, sync=True)
            self._flush()
            with self._write_lock:
                self._db.compact_range(start=start, stop=stop)
                self._buffer.emptied()
                # Compaction reports nothing; an empty write returns the error it left behind.
                with self._db.write_batch(sync=False):
                    pass
            if self._holds_replaced or open_before or self._callers.scans_begun != begun_before:
                self._holds_replaced = True
                self._remove_replaced()
        except plyvel.Error as error:
            raise self._stopped(error) from None
        finally:
            self._callers.leave()
        return not self._holds_replaced

    def _remove_replaced(self) -> None:
        """Remove the tables that compaction has replaced, unless a scan may still read them: flushing makes the engine look."""
        # Not waited for: a scan may end (be collected) within a write of its own thread. The next one tries again.
        if self._write_lock.acquire(blocking=False):
            try:
                if not self._callers.scans and self._flush_buffer():
                    self._holds_replaced = False
            finally:
                self._write_lock.release()

    def close(self) -> None:
        """Flush and release the database, after calls in other threads have returned; further calls raise LocalFault."""
        if not self._callers.close():
            return
        try:
            self._flush()
        finally:
            self._db.close()

    def __repr__(self) -> str:
        return f"LevelDb({self.name!r})"

    # --- opening ----------------------------------------------------------------------------------------------

    def _opened(self, *, create: bool, max_file_size: int, compression: str | None) -> Any:
        self._check_files(create=create)
        try:
            if create:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                sync_directory(self.path.parent)  # the engine syncs its files' names, not its directory's
            return plyvel.DB(
                str(self.path),
                create_if_missing=create,
                paranoid_checks=True,
                write_buffer_size=self._write_buffer,
                max_file_size=max_file_size,
                compression=compression,
                # Most reads of the ledger are for ids that are not there yet. A damaged filter is left aside: it hides nothing.
                bloom_filter_bits=_BLOOM_FILTER_BITS,
            )
        except plyvel.Error as error:
            raise self._errors.of_opening(error) from None

    def _check_files(self, *, create: bool) -> None:
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        if "CURRENT" in names:
            if damaged := damaged_logs(self.path):
                raise self._errors.refusal(f"{damaged[0]} was changed")
            if (missing := missing_log(self.path)) is not None:
                raise self._errors.refusal(f"{missing} is missing", Corruption)
        elif any(name.endswith((".ldb", ".log", ".sst")) for name in names):
            raise self._errors.refusal("CURRENT is missing", Corruption)
        elif not create:
            raise self._errors.refusal("it is missing", Corruption)

    def _check_format(self, known: int, migrations: Mapping[int, Migration]) -> None:
        stored = self.get(FORMAT)
        if stored is None:
            first = next(self.scan(b"", b"\xff" * 64), None)
            if first is not None:
                raise Corruption("the format key is missing")
            self._write_format(known)
            return
        found = int.from_bytes(stored, "big")
        if found > known:
            raise Refused(
                f"database {self.name} has format {found} and this version knows {known}: install the newer version again"
            )
        for version in range(found, known):
            migrations[version](self)
            self._write_format(version + 1)

    def _write_format(self, version: int) -> None:
        self._write({FORMAT: version.to_bytes(2, "big")}, sync=True)
        # In a table of its own: in one buffer with payloads it would stretch that table over all later ones.
        self._flush()
