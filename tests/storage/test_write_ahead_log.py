"""Golden bytes of LevelDB's log format, made by hand from its documentation."""

from hypothesis import given
from hypothesis import strategies as st

from storage import crc32c
from storage.write_ahead_log import BLOCK_BYTES, HEADER_BYTES, has_changed_length, is_whole_log

# masked crc32c(01 ‖ "hello") ‖ length 5 ‖ FULL ‖ "hello"
RECORD = bytes.fromhex("0bb95758") + b"\x05\x00\x01hello"


def with_length(record: bytes, length: int) -> bytes:
    return record[:4] + length.to_bytes(2, "little") + record[6:]


def test_an_intact_record_with_another_length_was_changed() -> None:
    assert not has_changed_length(RECORD)
    assert not has_changed_length(RECORD + RECORD)
    assert has_changed_length(with_length(RECORD, 0x8005))
    assert has_changed_length(with_length(RECORD, 6))
    assert has_changed_length(RECORD + with_length(RECORD, 0xFF) + RECORD)


@given(end=st.integers(0, 2 * len(RECORD)))
def test_a_torn_record_was_not_changed(end: int) -> None:
    assert not has_changed_length((RECORD + RECORD)[:end])


@given(end=st.integers(0, 2 * len(RECORD)))
def test_a_log_that_ends_in_a_torn_record_is_whole(end: int) -> None:
    assert is_whole_log((RECORD + RECORD)[:end])


@given(position=st.integers(0, len(RECORD) - 1), bit=st.integers(0, 7), before=st.booleans())
def test_a_log_with_a_changed_byte_is_not_whole(position: int, bit: int, before: bool) -> None:
    changed = RECORD[:position] + bytes([RECORD[position] ^ 1 << bit]) + RECORD[position + 1 :]

    assert not is_whole_log(RECORD + changed if before else changed + RECORD)


def test_what_fills_a_block_up_is_part_of_a_log() -> None:
    data = b"\x01" + bytes(BLOCK_BYTES - HEADER_BYTES - 3)
    stored = crc32c.masked(crc32c.extended(crc32c.START, data)).to_bytes(4, "little")
    long = stored + (len(data) - 1).to_bytes(2, "little") + data

    assert is_whole_log(long + bytes(3) + RECORD)
    assert not is_whole_log(long + b"\x00\x01\x00" + RECORD)


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_judged_without_an_error(block: bytes) -> None:
    assert has_changed_length(block) in (True, False)
