"""The databases of a node's home: their names, their engine options, and the command that mends each."""

import shutil
from contextlib import suppress
from pathlib import Path

from protocol import limits
from protocol.errors import Corruption
from storage.leveldb import LevelDb

PAYLOADS = "payloads"
LEDGER = "ledger"
KEYS = "keys"
SNAPSHOTS = "snapshots"

REBUILD: dict[str, str | None] = {
    PAYLOADS: "carechain run --rebuild payloads",
    LEDGER: "carechain run --rebuild ledger",
    KEYS: None,
}
"""Database -> the command that refills a damaged one from peers; keys come back from a copy only."""


_PAYLOAD_BUFFER_MIN, _PAYLOAD_BUFFER_MAX = 16 * limits.MIB, 64 * limits.MIB
_PAYLOAD_TABLES = 8_192
_PAYLOAD_PAGES = 1024 * limits.MIB


def open_payloads(home: Path, *, create: bool) -> LevelDb:
    """Open the payload database of a home: large tables under increasing keys (storage.md 1).

    The engine synchronises a full buffer as a table: with 32 MiB, everybody else's small synchronised write waited up to 150 ms
    for that now and then, with 16 MiB 15 to 25, with 8 MiB 10 to 25. All write 2.00 bytes for each stored. But what the engine
    does for each table grows with their number: with 8 MiB the last quarter of 20 GiB was a fifth slower than the first, and a
    large store gets larger ones.

    Raises:
        Corruption, Refused, StorageFull, OSError: as `LevelDb`.
    """
    return LevelDb(
        home / PAYLOADS,
        create=create,
        rebuild=REBUILD[PAYLOADS],
        write_buffer=_payload_buffer(home / PAYLOADS),
        max_file_size=_PAYLOAD_BUFFER_MAX,
        cached_tables=_PAYLOAD_PAGES,
    )


def _payload_buffer(payloads: Path) -> int:
    """Return such a size, 16 to 64 MiB, that not many more than 8,192 tables hold what is stored, in MiB without a fraction."""
    stored = 0
    for file in payloads.glob("*.ldb"):
        with suppress(FileNotFoundError):  # another process has it open: opening says so
            stored += file.stat().st_size
    wanted = -(-stored // _PAYLOAD_TABLES // limits.MIB) * limits.MIB
    return min(max(wanted, _PAYLOAD_BUFFER_MIN), _PAYLOAD_BUFFER_MAX)


def open_ledger(home: Path, *, create: bool) -> LevelDb:
    """Open the ledger database of a home: blocks of up to 1 MiB and many small rows.

    With a buffer of 8 MiB instead of 24, compaction cost 15 % of what a saturated voter does.

    Raises:
        Corruption, Refused, StorageFull, OSError: as `LevelDb`.
    """
    return LevelDb(
        home / LEDGER,
        create=create,
        rebuild=REBUILD[LEDGER],
        write_buffer=24 * limits.MIB,
        max_file_size=8 * limits.MIB,
    )


def open_snapshots(home: Path) -> LevelDb:
    """Open the database of state snapshots of a home; one that does not open is replaced by an empty one.

    Nothing is lost with it: snapshots are made or fetched again.

    Raises:
        Refused, StorageFull, OSError: as `LevelDb`.
    """
    try:
        return LevelDb(home / SNAPSHOTS, create=True, rebuild=None)
    except Corruption:
        shutil.rmtree(home / SNAPSHOTS)
        return LevelDb(home / SNAPSHOTS, create=True, rebuild=None)


def open_keys(home: Path, *, create: bool) -> LevelDb:
    """Open the database under a home's `Keystore`: small, and rarely written.

    Raises:
        Corruption, Refused, StorageFull, OSError: as `LevelDb`.
    """
    return LevelDb(home / KEYS, create=create, rebuild=REBUILD[KEYS], write_buffer=limits.MIB // 4)
