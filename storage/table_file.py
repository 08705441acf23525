"""Reads one LevelDB table without the engine: every entry whose block still has its checksum, and nothing else.

    table   = data blocks ‖ filter and meta blocks ‖ index block ‖ footer[48]
    footer  = meta index handle ‖ index handle (varints: offset, size), padded to 40 ‖ magic[8]
    block   = entries ‖ restart points (u32le each) ‖ their number u32le, then type[1] ‖ crc32c[4]
    entry   = shared ‖ not shared ‖ value length (varints) ‖ rest of the key ‖ value
    key     = the user's key ‖ u64le of sequence « 8 | kind (1 a value, 0 a deletion)

(LevelDB doc/table_format.md; blocks here are never compressed.) The engine refuses a table as a whole when its index or
footer is damaged; the data blocks lie one behind the other, so that their ends can be found by their checksums.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from os import SEEK_END
from typing import BinaryIO

from storage import crc32c

_FOOTER_BYTES = 48
_TRAILER_BYTES = 5
_MAGIC = 0xDB4775248B80FB57
_MARK_BYTES = 8
VALUE = 1

Wanted = Callable[[bytes, bytes], bool]
"""Whether any key in (first, last] is wanted; `first` may be empty."""


@dataclass(frozen=True, slots=True, repr=False)
class Change:
    """One entry: a key, the sequence of its write, and its value, None for a deletion."""

    key: bytes
    sequence: int
    value: bytes | None


def intact_changes(table: bytes, wanted: Wanted, *, checked: bool = True) -> Iterator[Change]:
    """Yield the entries of a table that can still be read; blocks without wanted keys are passed unread.

    Without `checked`, for values that bring their own hash, damaged ones among them.
    """
    for block in _data_blocks(table, wanted, checked=checked):
        try:
            yield from [_change(key, value) for key, value in _entries(block)]
        except ValueError:
            continue  # its checksum holds and it is no block: not one of ours


def has_whole_end(table: BinaryIO) -> bool:
    """Whether everything behind the data blocks of a table is as it was written: filters, meta index, index, footer."""
    size = table.seek(0, SEEK_END)
    if not size:
        return True  # one that a crash cut short before its first byte: nobody reads it
    table.seek(max(0, size - _FOOTER_BYTES))
    footer = table.read()
    try:
        *meta, position = _handle(footer)
        *index, position = _handle(footer, position)
        _block_in(table, *index)
        for _, filters in _entries(_block_in(table, *meta)):
            _block_in(table, *_handle(filters)[:2])
    except ValueError:
        return False
    return not any(footer[position:-8]) and int.from_bytes(footer[-8:], "little") == _MAGIC


def _block_in(table: BinaryIO, offset: int, size: int) -> bytes:
    if offset + size > table.seek(0, SEEK_END):
        raise ValueError("not a block")
    table.seek(offset)
    return _block(table.read(size + _TRAILER_BYTES), 0, size)


def change_of(key: bytes, sequence: int, kind: int, value: bytes) -> Change:
    """Return an entry from its parts; anything but a value is a deletion."""
    return Change(key, sequence, value if kind == VALUE else None)


def _change(internal_key: bytes, value: bytes) -> Change:
    if len(internal_key) < _MARK_BYTES:
        raise ValueError("not a block")
    mark = int.from_bytes(internal_key[-_MARK_BYTES:], "little")
    return change_of(internal_key[:-_MARK_BYTES], mark >> 8, mark & 0xFF, value)


def _data_blocks(table: bytes, wanted: Wanted, *, checked: bool) -> Iterator[bytes]:
    try:
        index = [(key[:-_MARK_BYTES], *_handle(value)[:2]) for key, value in _entries(_index_block(table))]
    except ValueError:
        yield from _consecutive_blocks(table)
        return
    before = b""
    for last, offset, size in index:
        if wanted(before, last):
            with suppress(ValueError):  # the damage that we are here for
                yield _block(table, offset, size) if checked else table[offset : offset + size]
        before = last


def _index_block(table: bytes) -> bytes:
    footer = table[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or int.from_bytes(footer[-8:], "little") != _MAGIC:
        raise ValueError("not a block")
    _, _, position = _handle(footer)
    offset, size, _ = _handle(footer, position)
    return _block(table, offset, size)


def _block(table: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    if end + _TRAILER_BYTES > len(table) or table[end] != 0:
        raise ValueError("not a block")
    stored = int.from_bytes(table[end + 1 : end + _TRAILER_BYTES], "little")
    if crc32c.masked(crc32c.extended(crc32c.START, memoryview(table)[offset : end + 1])) != stored:
        raise ValueError("not a block")
    return table[offset:end]


def _consecutive_blocks(table: bytes) -> Iterator[bytes]:
    """Yield the data blocks from the beginning on, as far as one ends where its checksum says it does."""
    found: dict[tuple[int, int], bytes] = {}
    start, state = 0, crc32c.START
    for position in range(len(table) - _TRAILER_BYTES + 1):
        if position < start:
            continue  # inside the trailer of the block before
        byte = table[position]
        state = crc32c.TABLE[(state ^ byte) & 0xFF] ^ (state >> 8)
        stored = int.from_bytes(table[position + 1 : position + _TRAILER_BYTES], "little")
        if byte == 0 and position > start and crc32c.masked(state) == stored:
            found[start, position - start] = table[start:position]
            start, state = position + _TRAILER_BYTES, crc32c.START
    for block in found.values():
        if not _is_index(block, found.keys()):
            yield block


def _is_index(block: bytes, blocks: Collection[tuple[int, int]]) -> bool:
    """Whether a block tells where others are, or is none: its values are not the rows of anybody."""
    try:
        values = [value for _, value in _entries(block)]
        return all(_handle(value) in {(*place, len(value)) for place in blocks} for value in values)
    except ValueError:
        # A row too short for a handle: data. Nothing to worry about when it is no block at all: it has no entries.
        return False


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    if end < 0:
        raise ValueError("not a block")
    position, key = 0, b""
    while position < end:
        shared, position = varint(block, position)
        rest, position = varint(block, position)
        length, position = varint(block, position)
        if shared > len(key) or position + rest + length > end:
            raise ValueError("not a block")
        key = key[:shared] + block[position : position + rest]
        position += rest
        yield key, block[position : position + length]
        position += length


def _handle(data: bytes, position: int = 0) -> tuple[int, int, int]:
    offset, position = varint(data, position)
    size, position = varint(data, position)
    return offset, size, position


def varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number (7 bits a byte, the lowest first) and the position behind it; ValueError when there is none."""
    number = 0
    for shift in range(0, 64, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise ValueError("not a block")
