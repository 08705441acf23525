"""Recovery keys as text, and the sealing of a backup's segments."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis.strategies import binary, data, integers, sampled_from

from protocol import backup
from protocol.errors import Corruption, Refused
from protocol.hpke import x25519_public

SECRET = bytes(range(32))
OTHER = bytes(range(1, 33))
FILE_KEY = bytes([7]) * 32
VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "backup.json").read_text())
HEADER = backup.make_header(x25519_public(SECRET), file_key=FILE_KEY, seed32=bytes([9]) * 32)
secrets = binary(min_size=32, max_size=32)


def letters_of(text: str) -> str:
    return "".join(line for line in text.splitlines() if not line.startswith("#"))


def test_header_segment_and_recovery_key_have_the_golden_bytes() -> None:
    segment = backup.open_header(HEADER, SECRET).seal(1, b"plain", last=True)

    assert HEADER.hex() == VECTOR["header"]
    assert segment.hex() == VECTOR["segment_1_last"]
    assert letters_of(backup.recovery_key_text(SECRET)) == VECTOR["recovery_key"]


@given(secrets)
def test_a_recovery_key_is_read_back_however_it_is_typed(secret: bytes) -> None:
    text = backup.recovery_key_text(secret)
    letters = letters_of(text)

    for typed in (
        text,
        letters.lower(),
        letters.replace("-", " "),
        letters.replace("-", "\n"),
        f"  {letters}\n\n",
    ):
        assert backup.parse_recovery_key(typed) == secret


@given(secrets, data())
def test_a_mistyped_letter_is_noticed(secret: bytes, draw) -> None:
    letters = letters_of(backup.recovery_key_text(secret)).replace("-", "")
    # The last letter carries two bits that no byte uses; what they are decides nothing.
    position = draw.draw(integers(0, len(letters) - 2))
    wrong = draw.draw(
        sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567").filter(lambda x: x != letters[position])
    )

    with pytest.raises(Refused, match="letter of it is wrong"):
        backup.parse_recovery_key(letters[:position] + wrong + letters[position + 1 :])


@pytest.mark.parametrize("text", ["", "# only a comment", "hello", "A" * 58, "É" * 58])
def test_what_is_no_recovery_key_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="no recovery key"):
        backup.parse_recovery_key(text)


def test_another_recovery_key_opens_nothing() -> None:
    with pytest.raises(Refused, match="another recovery key"):
        backup.open_header(HEADER, OTHER)


@given(integers(0, len(HEADER) * 8 - 1))
def test_a_header_with_one_bit_changed_is_refused_or_opens_no_segment(bit: int) -> None:
    segment = backup.open_header(HEADER, SECRET).seal(0, b"plain", last=True)
    changed = bytearray(HEADER)
    changed[bit // 8] ^= 1 << bit % 8

    with pytest.raises((Corruption, Refused)):
        backup.open_header(bytes(changed), SECRET).open(0, segment, last=True)


@given(integers(0, 3), integers(0, 3), sampled_from([False, True]), sampled_from([False, True]))
def test_a_segment_opens_in_its_place_only(
    sealed_at: int, opened_at: int, was_last: bool, is_last: bool
) -> None:
    keys = backup.open_header(HEADER, SECRET)
    sealed = keys.seal(sealed_at, b"plain", last=was_last)

    if (sealed_at, was_last) == (opened_at, is_last):
        assert keys.open(opened_at, sealed, last=is_last) == b"plain"
    else:
        with pytest.raises(Corruption, match="damaged or incomplete"):
            keys.open(opened_at, sealed, last=is_last)


def test_a_segment_of_another_file_does_not_open() -> None:
    other = backup.make_header(x25519_public(SECRET), file_key=FILE_KEY, seed32=bytes([8]) * 32)
    sealed = backup.open_header(other, SECRET).seal(0, b"plain", last=True)

    assert hashlib.sha256(other).digest() != hashlib.sha256(HEADER).digest()
    with pytest.raises(Corruption):
        backup.open_header(HEADER, SECRET).open(0, sealed, last=True)
