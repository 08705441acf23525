"""HKDF against RFC 5869's own cases and against `cryptography`'s."""

import hashlib

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis.strategies import binary, integers

from protocol.codec import pack
from protocol.key_derivation import h256, hkdf, hkdf_extract


def test_rfc_5869_case_1() -> None:
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))

    output = hkdf(b"\x0b" * 22, info, 42, salt=salt)

    assert hkdf_extract(salt, b"\x0b" * 22).hex().startswith("077709362c2e32df0ddc3f0dc47bba63")
    assert output.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_rfc_5869_case_3_without_salt_and_info() -> None:
    assert hkdf(b"\x0b" * 22, b"", 42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


@given(
    key=binary(min_size=1, max_size=80),
    info=binary(max_size=80),
    salt=binary(max_size=80),
    length=integers(1, 200),
)
def test_hkdf_agrees_with_an_independent_implementation(
    key: bytes, info: bytes, salt: bytes, length: int
) -> None:
    assert hkdf(key, info, length, salt=salt) == HKDF(SHA256(), length, salt, info).derive(key)


def test_hkdf_refuses_more_than_255_blocks() -> None:
    with pytest.raises(AssertionError):
        hkdf(b"key", b"", 255 * 32 + 1)


def test_h256_hashes_the_tagged_encoding() -> None:
    assert h256("label", b"x", 7, "y") == hashlib.sha256(pack("carechain/v1/label", b"x", 7, "y")).digest()
