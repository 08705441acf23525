"""HKDF-SHA256 and the tagged hashes: how every key and salt of the system is derived.

`hkdf` is RFC 5869. Salts are `h256(tag, …)` or empty; infos are literal `carechain/v1/…` strings or `enc(…)` of such
a string and identifiers, so no two uses of one key can ever meet.
"""

import hashlib
import hmac

from protocol.codec import pack
from protocol.identifiers import Digest

KEY_BYTES = 32
DOMAIN = "carechain/v1/"
"""Prefix of every domain-separation string."""

_HASH_BYTES = 32
_OUTPUT_BYTES_MAX = 255 * _HASH_BYTES


def hkdf(input_key: bytes, info: bytes, length: int = KEY_BYTES, *, salt: bytes = b"") -> bytes:
    """Return `length` bytes derived from `input_key` (RFC 5869 with SHA-256)."""
    return hkdf_expand(hkdf_extract(salt, input_key), info, length)


def hkdf_extract(salt: bytes, input_key: bytes) -> bytes:
    """Return the 32-byte pseudorandom key (RFC 5869 section 2.2). An empty salt equals 32 zero bytes."""
    return hmac.digest(salt, input_key, "sha256")


def hkdf_expand(pseudorandom_key: bytes, info: bytes, length: int) -> bytes:
    """Return `length` bytes, at most 8,160 (RFC 5869 section 2.3)."""
    assert 0 < length <= _OUTPUT_BYTES_MAX, "HKDF gives at most 255 blocks"
    output = block = b""
    counter = 0
    while len(output) < length:
        counter += 1
        block = hmac.digest(pseudorandom_key, block + info + bytes([counter]), "sha256")
        output += block
    return output[:length]


def h256(tag: str, *parts: bytes | int | str) -> Digest:
    """Return SHA-256(enc("carechain/v1/" + tag, parts…)), the tagged hash of cryptography.md section 2."""
    return Digest(hashlib.sha256(pack(DOMAIN + tag, *parts)).digest())
