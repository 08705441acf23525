"""Tells a torn log tail from a damaged one, which LevelDB cannot.

A LevelDB log (`*.log`, `MANIFEST-*`) is a sequence of 32 KiB blocks of records
`crc32c[4] ‖ length[2] ‖ type[1] ‖ data[length]`, little-endian (LevelDB doc/log_format.md). The checksum covers type
and data, not the length. In the last, incomplete block a record that claims to reach beyond the end of the file is
taken for the torn write of a crash: it and everything after it is dropped without a word, even with
`paranoid_checks`. One changed byte of a length field there loses acknowledged writes silently.

A torn record never matches its checksum at a shorter length (chance 2^-32 for each try); an intact record whose
length was changed does, at its true length. So when the last block ends in such a record, every length that differs
in one byte is tried. The manifest needs the same care: a lost last edit hides whole tables.

Nor does LevelDB miss a log that is gone. The last edit in the manifest names the one that was begun before it was written and
is removed only after a later edit, so that one is always there; where it is not, it was deleted, or an edit was.
"""

from collections.abc import Iterator
from pathlib import Path

from storage import crc32c
from storage.table_file import varint

BLOCK_BYTES = 32 * 1024
HEADER_BYTES = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_COMPARATOR, _LOG_NUMBER = 1, 2
"""Tags of what a manifest's edit begins with (LevelDB version_edit.cc), the second always in the place behind the first."""


def damaged_logs(directory: Path) -> tuple[str, ...]:
    """Return the names of the logs in a closed database whose tail was changed, not torn; sorted."""
    logs = sorted([*directory.glob("*.log"), *directory.glob("MANIFEST-*")])
    return tuple(path.name for path in logs if has_changed_length(_last_block(path)))


def missing_log(directory: Path) -> str | None:
    """Return the name of the log that a closed database needs and has not; None where it is there, or the manifest tells nothing."""
    try:
        manifest = directory / (directory / "CURRENT").read_text("ascii").strip()
        block = _last_block(manifest)
    except (OSError, ValueError):
        return None  # the engine says what is wrong with these
    if not is_whole_log(block):
        return None  # and with a damaged edit, without which an earlier one seems to be the last
    number = 0
    for kind, edit in _fragments(block):
        if kind == _FULL:
            number = _log_number(edit) or number
    name = f"{number:06}.log"
    return None if number == 0 or (directory / name).exists() else name


def _log_number(edit: bytes) -> int:
    """Return the log that an edit names; 0 when it names none, as the first edit of a manifest."""
    try:
        tag, position = varint(edit, 0)
        if tag == _COMPARATOR:
            length, position = varint(edit, position)
            tag, position = varint(edit, position + length)
        return varint(edit, position)[0] if tag == _LOG_NUMBER else 0
    except ValueError:
        return 0


def has_changed_length(block: bytes) -> bool:
    """Whether the last, incomplete block of a log ends in an intact record whose length field was changed."""
    position = 0
    while position + HEADER_BYTES <= len(block):
        length = int.from_bytes(block[position + 4 : position + 6], "little")
        end = position + HEADER_BYTES + length
        if end > len(block):
            return _is_intact_at_another_length(block[position:], length)
        position = end
    return False


def _is_intact_at_another_length(record: bytes, claimed: int) -> bool:
    stored = int.from_bytes(record[:4], "little")
    room = len(record) - HEADER_BYTES
    low, high = claimed & 0xFF, claimed & 0xFF00
    candidates = {high | byte for byte in range(256)} | {(byte << 8) | low for byte in range(256)}
    crc = crc32c.extended(crc32c.START, record[6:HEADER_BYTES])  # the type byte is the first one covered
    for length in range(room + 1):
        if length in candidates and crc32c.masked(crc) == stored:
            return True
        if length < room:
            crc = crc32c.TABLE[(crc ^ record[HEADER_BYTES + length]) & 0xFF] ^ (crc >> 8)
    return False


def is_whole_log(log: bytes) -> bool:
    """Whether every record of a log holds, but for one at its end that a crash has torn, or that is being written."""
    for start in range(0, len(log), BLOCK_BYTES):
        block, position = log[start : start + BLOCK_BYTES], 0
        is_last = len(block) < BLOCK_BYTES
        for kind, _ in _fragments(block):
            end = position + HEADER_BYTES + int.from_bytes(block[position + 4 : position + 6], "little")
            if kind == 0 and not (is_last and end > len(block)):
                return False
            position = end
        # A block's last bytes, too few for a header, are zero.
        if has_changed_length(block) if is_last else any(block[position:]):
            return False
    return True


def intact_records(log: bytes) -> Iterator[bytes]:
    """Yield every record of a log whose checksums hold, in order; pass damaged ones.

    After a damaged fragment the next one is looked for where its length says, and if that is nonsense in the next
    block: a wrong guess fails its own checksum.
    """
    parts: list[bytes] | None = None
    for start in range(0, len(log), BLOCK_BYTES):
        for kind, data in _fragments(log[start : start + BLOCK_BYTES]):
            if kind == _FULL:
                yield data
            if kind == _FIRST:
                parts = [data]
            elif kind in {_MIDDLE, _LAST} and parts is not None:
                parts.append(data)
                if kind == _LAST:
                    yield b"".join(parts)
                    parts = None
            else:
                parts = None


def _fragments(block: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, data) of a block's fragments; type 0 stands for a damaged one."""
    position = 0
    while position + HEADER_BYTES <= len(block):
        end = position + HEADER_BYTES + int.from_bytes(block[position + 4 : position + 6], "little")
        covered = block[position + 6 : end]
        stored = int.from_bytes(block[position : position + 4], "little")
        if end > len(block) or crc32c.masked(crc32c.extended(crc32c.START, covered)) != stored:
            yield 0, b""
        else:
            yield covered[0], covered[1:]
        position = end


def _last_block(path: Path) -> bytes:
    size = path.stat().st_size
    # A file that ends on a block's boundary has no incomplete block: LevelDB then reports a bad length itself.
    with path.open("rb") as log:
        log.seek(size - size % BLOCK_BYTES)
        return log.read(BLOCK_BYTES)
