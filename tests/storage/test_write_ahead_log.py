"""Golden bytes of LevelDB's log format, made by hand from its documentation."""

from hypothesis import given
from hypothesis import strategies as st

from storage.write_ahead_log import has_changed_length

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


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_judged_without_an_error(block: bytes) -> None:
    assert has_changed_length(block) in (True, False)
