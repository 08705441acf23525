"""Size buckets: what is sealed is padded so that its length tells little (cryptography.md section 4).

A bucket counts *ciphertext* bytes (16 of them are the AES-GCM tag): the next power of two from 512 bytes to 1 MiB,
then multiples of 1 MiB.

Short plaintexts that are read whole (manifests, grants, notes) carry their length in front:
`u32be(length) ‖ data ‖ zeros`.
"""

from protocol.errors import Malformed
from protocol.limits import CHUNK_BYTES_MAX

TAG_BYTES = 16
BUCKET_BYTES_MIN = 512
"""The smallest bucket: below it, every length would be told by its power of two."""

PREFIX_BYTES = 4
"""In front of a short plaintext stands its length."""


def bucket_bytes(ciphertext_bytes: int) -> int:
    """Return the size of the bucket that holds so many bytes of ciphertext."""
    if ciphertext_bytes <= BUCKET_BYTES_MIN:
        return BUCKET_BYTES_MIN
    if ciphertext_bytes <= CHUNK_BYTES_MAX:
        return 1 << (ciphertext_bytes - 1).bit_length()
    return -(-ciphertext_bytes // CHUNK_BYTES_MAX) * CHUNK_BYTES_MAX


def pad(data: bytes, *, overhead_bytes: int = TAG_BYTES) -> bytes:
    """Return `u32be(length) ‖ data ‖ zeros`, so long that sealing (which adds `overhead_bytes`) fills a bucket."""
    size = bucket_bytes(PREFIX_BYTES + len(data) + overhead_bytes) - overhead_bytes
    return (len(data).to_bytes(PREFIX_BYTES, "big") + data).ljust(size, b"\x00")


def unpad(padded: bytes, *, overhead_bytes: int = TAG_BYTES) -> bytes:
    """Return the data that `pad` was given.

    Raises:
        Malformed: any other bytes; there is one padded form of every value.
    """
    length = int.from_bytes(padded[:PREFIX_BYTES], "big")
    data = padded[PREFIX_BYTES : PREFIX_BYTES + length]
    if len(padded) < PREFIX_BYTES or pad(data, overhead_bytes=overhead_bytes) != padded:
        raise Malformed("not the padded form of any value")
    return data
