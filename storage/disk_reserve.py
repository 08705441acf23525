"""The share of the disk that writes of records leave free, so that ledger and consensus always find room (storage.md 4).

Beside it the quota: how much of records an operator lets be stored at all.
"""

import shutil
from pathlib import Path

from protocol import limits
from protocol.errors import StorageFull


def free_share(path: Path) -> float:
    """Return the share of the disk below `path` that an ordinary user may still fill, 0 to 1."""
    usage = shutil.disk_usage(path)
    return usage.free / usage.total


def free_bytes(path: Path) -> int:
    """Return the bytes of the disk below `path` that an ordinary user may still fill."""
    return shutil.disk_usage(path).free


def check_reserve(path: Path, *, adding: int = 0, reserve: float = limits.DISK_RESERVE) -> None:
    """Check, before a record is written, that the disk's reserve stays untouched; `adding` is bytes to be written.

    Raises:
        StorageFull: it would not; nothing was written.
    """
    usage = shutil.disk_usage(path)
    # A payload is on disk twice until its log is dropped (storage.md 1).
    left = (usage.free - 2 * adding) / usage.total
    if left < reserve:
        raise StorageFull(
            f"the disk has {usage.free / usage.total:.1%} free and keeps {reserve:.1%} for the ledger: free space, then add again"
        )


def check_quota(stored: int, quota: int) -> None:
    """Check, before a record is written, that less than the quota is stored; both in bytes, quota 0 for none.

    Raises:
        StorageFull: the quota is used up; nothing was written.
    """
    if quota and stored >= quota:
        raise StorageFull(
            f"this facility's quota of {quota} bytes for stored records is used up: raise storage_quota_bytes in config.toml "
            "and start the daemon again, or erase records, then add again"
        )
