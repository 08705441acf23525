"""Damage in the files of a LevelDB database that reading every row does not show.

The engine reads `CURRENT` and the manifest only when it opens a database: a byte that changes under a running one is met
at the next start, when neither can be had any more. It checks the filters of a table and what leads to them, and leaves
damaged ones aside without a word; it never looks at the padding of a footer. None of it makes a row wrong. But the disk
has changed a byte, and who looks for that wants to hear of it.

Not here: data blocks, which whoever reads rows checks, and logs, which the engine and `write_ahead_log` check when it
opens them.
"""

from contextlib import suppress
from pathlib import Path

from storage.table_file import has_whole_end
from storage.write_ahead_log import is_whole_log


def damaged_files(directory: Path) -> tuple[str, ...]:
    """Return the names of the damaged files of a database, open or not, sorted. Reads the ends of all tables: for a thread."""
    damaged = [] if _is_whole_list(directory) else ["CURRENT"]
    damaged += [path.name for path in directory.glob("MANIFEST-*") if not _is_whole_manifest(path)]
    damaged += [path.name for path in directory.glob("*.ldb") if not _is_whole_table(path)]
    return tuple(sorted(damaged))


def _is_whole_list(directory: Path) -> bool:
    try:
        named = (directory / "CURRENT").read_bytes()
        return named.endswith(b"\n") and (directory / named[:-1].decode("ascii")).is_file()
    except (OSError, ValueError):
        return False


def _is_whole_manifest(path: Path) -> bool:
    with suppress(FileNotFoundError):  # the database was opened meanwhile, and began another
        return is_whole_log(path.read_bytes())
    return True


def _is_whole_table(path: Path) -> bool:
    try:
        with path.open("rb") as table:
            return has_whole_end(table)
    except FileNotFoundError:
        return True  # merged away meanwhile
    except OSError:
        return False
