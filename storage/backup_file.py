"""A backup as a stream of entries: written without ever looking back, read with every byte authenticated first.

An entry is `kind u8 ‖ key length u32be ‖ value length u32be ‖ key ‖ value`; entries run on over the segments of
`protocol.backup`. Their order is that of `Kind`: whoever restores writes each where it belongs as it comes. The last one
counts the others, so that a bug in writing is found as surely as damage.
"""

import enum
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, BinaryIO, TypeVar

from protocol import backup, limits
from protocol.backup import SEALED_SEGMENT_BYTES, SEGMENT_BYTES
from protocol.codec import Bytes32, Size, decode, encode, wire
from protocol.errors import Corruption, Malformed, Refused
from protocol.identifiers import PublicKey

T = TypeVar("T")

FORMAT = 1
_HEAD = struct.Struct(">BII")
_ENTRY_BYTES_MAX = 64 * limits.MIB
"""Far above the largest row (a block, a chunk): a longer one was written by something else."""


class Kind(enum.IntEnum):
    """What an entry holds. Key and value: nothing and a `Contents`; a name and a file's bytes; rows; a cid and a chunk."""

    CONTENTS = 1
    FILE = 2
    KEYS_ROW = 3
    LEDGER_ROW = 4
    CHUNK = 5
    END = 6


@dataclass(frozen=True, slots=True, repr=False)
class Entry:
    """One thing of a backup."""

    kind: Kind
    key: bytes
    value: bytes

    def __repr__(self) -> str:
        return f"Entry({self.kind.name}, {len(self.value)} bytes)"


@wire("backup-contents")
@dataclass(frozen=True, slots=True)
class Contents:
    """What a backup is of; `with_payloads` says whether every chunk that was here is in it."""

    format: int
    facility: Annotated[str, Size(1, 256)]
    network: Bytes32
    made_ms: int
    with_payloads: bool


@wire("backup-end")
@dataclass(frozen=True, slots=True)
class End:
    """How many entries of each kind precede the end."""

    files: int
    keys_rows: int
    ledger_rows: int
    chunks: int


class BackupWriter:
    """Turns entries into the bytes of a file, segment by segment. What it returns belongs one behind the other.

    Order of calls: `begin`, then `add`…, then `finish`.
    """

    def __init__(self, recovery_public: PublicKey, entropy: Callable[[int], bytes]) -> None:
        file_key = entropy(32)
        self._header = backup.make_header(recovery_public, file_key=file_key, seed32=entropy(32))
        self._keys = backup.SegmentKeys(file_key, self._header)
        self._pending = bytearray()
        self._number = 0
        self._counts = dict.fromkeys(Kind, 0)

    def begin(self, contents: Contents) -> bytes:
        """Return the beginning of the file."""
        head = backup.MAGIC + len(self._header).to_bytes(backup.LENGTH_BYTES, "big") + self._header
        return head + self.add(Kind.CONTENTS, b"", encode(contents))

    def add(self, kind: Kind, key: bytes, value: bytes) -> bytes:
        """Take an entry; return the segments that are full, often none."""
        assert len(value) < _ENTRY_BYTES_MAX, "an entry has a bound"
        self._counts[kind] += 1
        self._pending += _HEAD.pack(kind, len(key), len(value))
        self._pending += key
        self._pending += value
        # A full segment is sealed only when something follows it: else it might be the last.
        if len(self._pending) <= SEGMENT_BYTES:
            return b""
        return self._full_segments()

    def finish(self) -> bytes:
        """Return the end of the file."""
        count = self._counts
        end = End(count[Kind.FILE], count[Kind.KEYS_ROW], count[Kind.LEDGER_ROW], count[Kind.CHUNK])
        sealed = self.add(Kind.END, b"", encode(end))
        return sealed + self._keys.seal(self._number, self._pending, last=True)

    @property
    def chunks(self) -> int:
        """How many chunks have been taken."""
        return self._counts[Kind.CHUNK]

    def _full_segments(self) -> bytes:
        sealed = []
        start = 0
        with memoryview(self._pending) as pending:
            while len(pending) - start > SEGMENT_BYTES:
                segment = pending[start : start + SEGMENT_BYTES]
                sealed.append(self._keys.seal(self._number, segment, last=False))
                segment.release()
                self._number += 1
                start += SEGMENT_BYTES
        del self._pending[:start]
        return b"".join(sealed)


class BackupReader:
    """Reads a backup from the beginning of an open file. `position` is how many of its bytes have been read and believed."""

    def __init__(self, file: BinaryIO, recovery_secret: bytes) -> None:
        """Read the header.

        Raises:
            Refused: not a backup, of a newer version, or sealed to another recovery key.
            Corruption: damaged at its beginning.
        """
        self._file = file
        magic = file.read(len(backup.MAGIC))
        if magic != backup.MAGIC:
            if magic.startswith(b"carechain-backup-"):
                raise Refused("the backup was written by a newer version of carechain; install that one")
            raise Refused("the file is not a carechain backup, or damaged at its beginning; name another")
        length = int.from_bytes(file.read(backup.LENGTH_BYTES), "big")
        self._keys = backup.open_header(file.read(min(length, backup.HEADER_BYTES_MAX)), recovery_secret)
        self.position = len(backup.MAGIC) + backup.LENGTH_BYTES + length

    def entries(self) -> Iterator[Entry]:
        """Yield every entry but the end; when this returns, all of the file was there and as it was written.

        Raises:
            Corruption: damaged, cut or put together anew. What was yielded before was genuine, and must not be kept.
        """
        counts = dict.fromkeys(Kind, 0)
        pending = bytearray()
        entry: Entry | None = None
        for plaintext in self._segments():
            pending += plaintext
            start = 0
            while (parsed := _parse(pending, start)) is not None:
                if entry is not None and entry.kind == Kind.END:
                    raise _wrong_count()
                entry, start = parsed
                counts[entry.kind] += 1
                if entry.kind != Kind.END:
                    yield entry
            del pending[:start]
        if pending or entry is None or entry.kind != Kind.END:
            raise _wrong_count()
        told = _decoded(entry.value, End)
        if told != End(counts[Kind.FILE], counts[Kind.KEYS_ROW], counts[Kind.LEDGER_ROW], counts[Kind.CHUNK]):
            raise _wrong_count()

    def _segments(self) -> Iterator[bytes]:
        number, sealed = 0, self._file.read(SEALED_SEGMENT_BYTES)
        while True:
            following = self._file.read(SEALED_SEGMENT_BYTES)
            plaintext = self._keys.open(number, sealed, last=not following)
            self.position += len(sealed)
            yield plaintext
            if not following:
                return
            number, sealed = number + 1, following


def contents_of(entry: Entry) -> Contents:
    """Return what a backup is of, from its first entry.

    Raises:
        Refused: it was written by a newer version.
        Corruption: it is something else.
    """
    if entry.kind != Kind.CONTENTS:
        raise _wrong_count()
    contents = _decoded(entry.value, Contents)
    if contents.format > FORMAT:
        raise Refused(
            f"the backup has format {contents.format} and this version knows {FORMAT}: install the newer version"
        )
    return contents


def _parse(data: bytearray, start: int) -> tuple[Entry, int] | None:
    """Return the entry at `start` and where the next one begins; None when more of it has to come."""
    if len(data) < start + _HEAD.size:
        return None
    number, key_bytes, value_bytes = _HEAD.unpack_from(data, start)
    if key_bytes + value_bytes > _ENTRY_BYTES_MAX:
        raise _wrong_count()
    value_start = start + _HEAD.size + key_bytes
    end = value_start + value_bytes
    if len(data) < end:
        return None
    try:
        kind = Kind(number)
    except ValueError:
        raise _wrong_count() from None
    return Entry(kind, bytes(data[start + _HEAD.size : value_start]), bytes(data[value_start:end])), end


def _decoded(value: bytes, kind: type[T]) -> T:
    try:
        return decode(value, kind)
    except Malformed:
        raise _wrong_count() from None


def _wrong_count() -> Corruption:
    return Corruption("the backup contradicts itself; nothing was restored, use another copy")
