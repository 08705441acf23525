"""Directory entries made durable, and damaged databases moved aside (`carechain run --rebuild`)."""

import contextlib
import os
import shutil
from pathlib import Path

_ASIDE = ".damaged-"


def sync_directory(path: Path) -> None:
    """Make the creation and renaming of entries in a directory durable: syncing a file does not sync its name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_aside(path: Path) -> Path | None:
    """Rename a closed, damaged database to `<name>.damaged-<n>`, durably; return its new path, None when there is none.

    Nothing is deleted: an operator may still want to look at it, or to rescue from it. The caller holds the lock of
    the home, so that no daemon has the database open.
    """
    if not path.exists():
        return None
    number = 1
    while (aside := path.with_name(f"{path.name}{_ASIDE}{number}")).exists():
        number += 1
    path.rename(aside)
    sync_directory(path.parent)
    return aside


def newest_aside(path: Path) -> Path | None:
    """Return the database that was moved aside last under this name, or None."""
    numbers = [int(found.suffix[len(_ASIDE) :]) for found in asides(path)]
    return path.with_name(f"{path.name}{_ASIDE}{max(numbers)}") if numbers else None


def asides(path: Path) -> tuple[Path, ...]:
    """Return all databases that were moved aside under this name and not deleted since, in no order."""
    return tuple(path.parent.glob(f"{path.name}{_ASIDE}*"))


def remove_asides(*paths: Path) -> int:
    """Delete all databases that were moved aside under these names, durably; return how many there were."""
    found = [aside for path in paths for aside in asides(path)]
    for aside in found:
        shutil.rmtree(aside)
    for folder in {aside.parent for aside in found}:
        sync_directory(folder)
    return len(found)


def directory_bytes(path: Path) -> int:
    """Return the bytes of the files in a directory; one that is removed meanwhile, by an engine that merges, counts nothing."""
    total = 0
    for file in path.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total
