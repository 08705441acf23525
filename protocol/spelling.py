"""Spells and checks messages that carry large byte strings, copying each of them once at most.

`codec` packs a value anew to see whether its bytes were the canonical ones, which for a chunk of 1 MiB means to copy it
three times. Here the large byte strings of a message and of the arrays directly inside it are told by their heads alone:
what a parser took from behind a head is equal to what is there. All else is packed and compared as ever.

    array head ‖ packed small value ‖ … ‖ binary head ‖ large byte string ‖ …
"""

from collections.abc import Callable
from typing import Any

LARGE_BYTES = 16 * 1024
"""Below, packing a value again costs less than looking at it in Python."""
_ELEMENTS_MAX = 64
"""Longer arrays are not searched: they hold many small values, which the packer is quicker at."""

Pack = Callable[[Any], bytes]
# Any: MessagePack values are untyped until a reader has checked them.


def has_large(value: Any) -> bool:
    """Return whether an array holds a large byte string, itself or in an array directly inside it."""
    # Every message that is encoded passes here: loops, since a generator costs more than what it looks at.
    if len(value) > _ELEMENTS_MAX:
        return False
    for item in value:
        kind = type(item)
        if kind is bytes:
            if len(item) >= LARGE_BYTES:
                return True
        elif kind is tuple and len(item) <= _ELEMENTS_MAX:
            for inner in item:
                if type(inner) is bytes and len(inner) >= LARGE_BYTES:
                    return True
    return False


def spell(value: Any, pack: Pack) -> bytes:
    """Return the canonical bytes of an array; `pack` spells what is small."""
    pieces: list[bytes] = []
    _append(value, pack, pieces)
    return b"".join(pieces)


def is_spelled(value: Any, data: bytes, pack: Pack) -> bool:
    """Return whether `data`, from which a parser took the array `value`, is its canonical spelling."""
    return _end(value, data, 0, pack) == len(data)


def _append(value: Any, pack: Pack, pieces: list[bytes]) -> None:
    if type(value) is bytes and len(value) >= LARGE_BYTES:
        pieces += (_binary_head(len(value)), value)
    elif type(value) is tuple and has_large(value):
        pieces.append(_array_head(len(value)))
        for item in value:
            _append(item, pack, pieces)
    else:
        pieces.append(pack(value))


def _end(value: Any, data: bytes, start: int, pack: Pack) -> int:
    """Return where the canonical spelling of a value that begins at `start` ends, or -1 when another is there."""
    if type(value) is bytes and len(value) >= LARGE_BYTES:
        head = _binary_head(len(value))
        end = start + len(head)
        return end + len(value) if data[start:end] == head else -1
    if type(value) is tuple and has_large(value):
        head = _array_head(len(value))
        end = start + len(head)
        if data[start:end] != head:
            return -1
        for item in value:
            end = _end(item, data, end, pack)
            if end < 0:
                break
        return end
    spelled = pack(value)
    end = start + len(spelled)
    return end if data[start:end] == spelled else -1


def _binary_head(size: int) -> bytes:
    """`size` is at least `LARGE_BYTES`: bin 16 or bin 32 (MessagePack specification, "bin format family")."""
    return b"\xc5" + size.to_bytes(2, "big") if size < 1 << 16 else b"\xc6" + size.to_bytes(4, "big")


def _array_head(count: int) -> bytes:
    """`count` is at most `_ELEMENTS_MAX`: fixarray or array 16."""
    return bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
