"""CRC-32C (Castagnoli, reflected; RFC 3720, 12.1), rotated and shifted as LevelDB stores it (util/crc32c.h).

In Python, a few megabytes a second: for the tails of logs and for rescuing rows, never for the way of every read.
"""

_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
START = 0xFFFFFFFF
"""The state before the first byte."""


def _table() -> tuple[int, ...]:
    rows = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
        rows.append(crc)
    return tuple(rows)


TABLE = _table()
"""The next state is `TABLE[(state ^ byte) & 0xFF] ^ (state >> 8)`."""


def extended(state: int, data: bytes | memoryview) -> int:
    """Return the state after more bytes."""
    table = TABLE
    for byte in data:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state


def masked(state: int) -> int:
    """Return what is stored for a state."""
    crc = state ^ 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF
