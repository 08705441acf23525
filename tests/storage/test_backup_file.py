"""A backup's bytes: whole they give back what was put in, and any other bytes are refused."""

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis.strategies import binary, integers, lists, sampled_from, tuples

from protocol.backup import LENGTH_BYTES, MAGIC, SEALED_SEGMENT_BYTES, SEGMENT_BYTES
from protocol.errors import Corruption, Refused
from protocol.hpke import x25519_public
from storage.backup_file import BackupReader, BackupWriter, Contents, Entry, Kind, contents_of

SECRET = bytes(range(32))
CONTENTS = Contents(1, "Clinic", bytes(32), 1_800_000_000_000, with_payloads=False)
ROWS = (Kind.KEYS_ROW, Kind.LEDGER_ROW, Kind.CHUNK)


def written(entries: list[tuple[Kind, bytes, bytes]], seed: int = 1) -> bytes:
    writer = BackupWriter(x25519_public(SECRET), random.Random(seed).randbytes)
    parts = [writer.begin(CONTENTS), *(writer.add(*entry) for entry in entries), writer.finish()]
    return b"".join(parts)


def read(data: bytes, secret: bytes = SECRET) -> list[Entry]:
    return list(BackupReader(io.BytesIO(data), secret).entries())


def segments_of(data: bytes) -> tuple[bytes, list[bytes]]:
    start = len(MAGIC) + LENGTH_BYTES
    start += int.from_bytes(data[len(MAGIC) : start], "big")
    body = data[start:]
    return data[:start], [
        body[at : at + SEALED_SEGMENT_BYTES] for at in range(0, len(body), SEALED_SEGMENT_BYTES)
    ]


LONG = written([(Kind.CHUNK, bytes([n]) * 32, bytes([n]) * 1_000_000) for n in range(4)])


@given(lists(tuples(sampled_from(ROWS), binary(max_size=40), binary(max_size=200)), max_size=20))
def test_entries_come_back_in_order(entries: list[tuple[Kind, bytes, bytes]]) -> None:
    first, *others = read(written(entries))

    assert contents_of(first) == CONTENTS
    assert [(entry.kind, entry.key, entry.value) for entry in others] == entries


@settings(max_examples=25, deadline=None)
@given(lists(integers(0, SEGMENT_BYTES + 100), min_size=1, max_size=4), integers(-40, 40))
def test_entries_may_end_anywhere_in_a_segment(sizes: list[int], shift: int) -> None:
    # Lengths around whole segments are where an off-by-one hides.
    entries = [(Kind.CHUNK, b"c", bytes(max(0, size + shift))) for size in (*sizes, SEGMENT_BYTES)]

    data = written(entries)

    assert [len(entry.value) for entry in read(data)[1:]] == [len(value) for _, _, value in entries]
    assert all(len(segment) == SEALED_SEGMENT_BYTES for segment in segments_of(data)[1][:-1])


def test_a_file_that_fills_its_last_segment_is_whole() -> None:
    overhead = len(segments_of(written([(Kind.CHUNK, b"c", b"")]))[1][0]) - 16
    data = written([(Kind.CHUNK, b"c", bytes(SEGMENT_BYTES - overhead))])

    assert len(segments_of(data)[1]) == 1
    assert len(segments_of(data)[1][0]) == SEALED_SEGMENT_BYTES
    assert len(read(data)) == 2


@settings(max_examples=60, deadline=None)
@given(integers(0, len(LONG) - 1), integers(0, 7))
def test_a_changed_bit_is_noticed(position: int, bit: int) -> None:
    changed = bytearray(LONG)
    changed[position] ^= 1 << bit

    with pytest.raises((Corruption, Refused)):
        read(bytes(changed))


@settings(max_examples=60, deadline=None)
@given(integers(0, len(LONG) - 1))
def test_a_cut_file_is_noticed(length: int) -> None:
    with pytest.raises((Corruption, Refused)):
        read(LONG[:length])


def test_segments_cannot_be_dropped_swapped_repeated_or_added() -> None:
    head, segments = segments_of(LONG)
    one, two, *others = segments
    foreign = segments_of(written([(Kind.CHUNK, b"c", bytes(3_000_000))], seed=2))[1]

    for forged in (
        [two, one, *others],
        [one, *others],
        segments[:-1],
        segments[:1],
        [],
        [one, one, two, *others],
        [*segments, segments[-1]],
        [*segments, b"\0"],
        [one, foreign[1], *others],
    ):
        with pytest.raises(Corruption, match="nothing was restored"):
            read(head + b"".join(forged))


def test_what_is_no_backup_is_refused_as_such() -> None:
    with pytest.raises(Refused, match="not a carechain backup"):
        read(b"%PDF-1.4")
    with pytest.raises(Refused, match="not a carechain backup"):
        read(b"")
    with pytest.raises(Refused, match="newer version"):
        read(b"carechain-backup-2\nxxxx")
    with pytest.raises(Refused, match="another recovery key"):
        read(LONG, bytes(32))


def test_two_backups_of_the_same_show_nothing_in_common() -> None:
    entries = [(Kind.LEDGER_ROW, b"key", b"value" * 100)]

    one, other = segments_of(written(entries, 1))[1], segments_of(written(entries, 2))[1]

    assert one != other
    assert b"value" not in b"".join(one)


def test_a_newer_format_is_refused() -> None:
    writer = BackupWriter(x25519_public(SECRET), random.Random(3).randbytes)
    newer = Contents(2, "Clinic", bytes(32), 0, with_payloads=False)
    data = writer.begin(newer) + writer.finish()

    with pytest.raises(Refused, match="format 2"):
        contents_of(read(data)[0])


def test_no_value_shows_in_a_repr() -> None:
    assert "Ada" not in repr(Entry(Kind.KEYS_ROW, b"patient/Ada", b"Ada"))
