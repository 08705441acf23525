"""restic and borg on the same set in the same run, where they are installed: figures to stand beside, not to be measured by.

Both deduplicate, encrypt and write to one folder on the same disk, as `carechain` does on one node. Their caches, keys and
repositories lie in the folder of the run and go with it.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from node.bench import sample_set
from node.bench.ingredients import Row, row
from protocol import limits

_LIMIT_S = 600.0


def measure(folder: Path, set_bytes: int, show: Callable[[str], None]) -> list[Row]:
    """Return what storing and restoring the set takes with each of the programs that are here."""
    known: dict[str, Callable[[Path, Path], list[Row]]] = {"restic": _restic, "borg": _borg}
    found = {name: run for name, run in known.items() if shutil.which(name)}
    if not found:
        show("neither restic nor borg is installed: nothing to stand beside")
        return []
    files = folder / "set"
    files.mkdir()
    for number, blocks in enumerate(sample_set.files(set_bytes)):
        with (files / str(number)).open("wb") as file:
            file.writelines(blocks)
    rows: list[Row] = []
    for name, run in found.items():
        show(f"{name} on the same set …")
        (folder / name).mkdir()
        rows += run(folder / name, files)
        shutil.rmtree(folder / name)
    return rows


def _restic(folder: Path, files: Path) -> list[Row]:
    names = {
        "RESTIC_PASSWORD": "bench",
        "RESTIC_REPOSITORY": str(folder / "store"),
        "RESTIC_CACHE_DIR": str(folder / "cache"),
    }
    _timed(["restic", "init", "-q"], names, folder)
    return _rows(
        "restic",
        files,
        _timed(["restic", "backup", "-q", str(files)], names, folder),
        _timed(["restic", "restore", "latest", "-q", "--target", str(folder / "out")], names, folder),
    )


def _borg(folder: Path, files: Path) -> list[Row]:
    names = {"BORG_PASSPHRASE": "bench", "BORG_BASE_DIR": str(folder), "BORG_REPO": str(folder / "store")}
    (folder / "out").mkdir()
    _timed(["borg", "init", "--encryption=repokey"], names, folder)
    return _rows(
        "borg",
        files,
        _timed(["borg", "create", "::one", str(files)], names, folder),
        _timed(["borg", "extract", "::one"], names, folder / "out"),
    )


def _timed(command: Sequence[str], names: dict[str, str], folder: Path) -> float | None:
    """Return how long a command took; None when it failed."""
    began = time.perf_counter()
    done = subprocess.run(  # noqa: S603  (found by shutil.which, no shell)
        command, cwd=folder, env=os.environ | names, capture_output=True, check=False, timeout=_LIMIT_S
    )
    return None if done.returncode else time.perf_counter() - began


def _rows(name: str, files: Path, store_s: float | None, restore_s: float | None) -> list[Row]:
    size = sum(file.stat().st_size for file in files.iterdir()) / limits.MIB
    return [
        row(f"{name}_{what}", size / seconds, "MiB/s, the same set")
        for what, seconds in (("store", store_s), ("restore", restore_s))
        if seconds is not None
    ]
