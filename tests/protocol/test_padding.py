"""Buckets hide lengths and lose nothing."""

import pytest
from hypothesis import given
from hypothesis.strategies import binary, integers

from protocol.errors import Malformed
from protocol.limits import CHUNK_BYTES_MAX
from protocol.padding import BUCKET_BYTES_MIN, bucket_bytes, pad, unpad


@given(size=integers(0, 80 * CHUNK_BYTES_MAX))
def test_a_bucket_is_the_least_allowed_size_that_holds_the_ciphertext(size: int) -> None:
    bucket = bucket_bytes(size)

    assert bucket >= max(size, BUCKET_BYTES_MIN)
    if bucket <= CHUNK_BYTES_MAX:
        assert bucket.bit_count() == 1
        assert bucket == BUCKET_BYTES_MIN or bucket < 2 * size
    else:
        assert bucket % CHUNK_BYTES_MAX == 0
        assert bucket - CHUNK_BYTES_MAX < size


@pytest.mark.parametrize(
    ("size", "bucket"), [(512, 512), (513, 1024), (1 << 20, 1 << 20), ((1 << 20) + 1, 2 << 20)]
)
def test_the_borders_of_buckets(size: int, bucket: int) -> None:
    assert bucket_bytes(size) == bucket


@given(data=binary(max_size=2000), overhead=integers(0, 64))
def test_padding_round_trips_and_fills_a_bucket(data: bytes, overhead: int) -> None:
    padded = pad(data, overhead_bytes=overhead)

    assert unpad(padded, overhead_bytes=overhead) == data
    assert bucket_bytes(len(padded) + overhead) == len(padded) + overhead


@pytest.mark.parametrize(
    "padded",
    [
        b"",
        b"\x00\x00\x00",
        pad(b"abc")[:-1],
        pad(b"abc") + b"\x00",
        pad(b"abc")[:-1] + b"\x01",
        b"\xff" * 496,
    ],
)
def test_every_other_spelling_is_refused(padded: bytes) -> None:
    with pytest.raises(Malformed):
        unpad(padded)
