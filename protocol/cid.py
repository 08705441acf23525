"""Content ids as others write them: CIDv1, codec raw, multihash sha2-256, multibase base32 (`bafkrei…`).

Source: multiformats CID v1 (github.com/multiformats/cid), multicodec table, RFC 4648 base32 without padding, lower
case. Inside carechain a content id is the 32 bytes of the digest; text appears only towards people and other tools.
"""

import base64
import hashlib

from protocol.identifiers import Cid

_PREFIX = bytes.fromhex("01551220")  # version 1, codec raw 0x55, hash sha2-256 0x12, length 32
_TEXT_CHARACTERS = 59


def cid_of(data: bytes) -> Cid:
    """Return the content id of stored bytes: their SHA-256."""
    return Cid(hashlib.sha256(data).digest())


def cid_text(cid: Cid) -> str:
    """Return a content id as other IPFS tools read it, 59 characters, `bafkrei…`."""
    return "b" + base64.b32encode(_PREFIX + cid).decode("ascii").rstrip("=").lower()


def parse_cid(text: str) -> Cid:
    """Return the content id that a text spells.

    Raises:
        ValueError: not a CIDv1 of raw bytes under sha2-256 in lower-case base32.
    """
    if len(text) == _TEXT_CHARACTERS and text.isascii():
        try:
            raw = base64.b32decode(text[1:].upper() + "======")
        except ValueError:
            raw = b""
        cid = Cid(raw[len(_PREFIX) :])
        # Comparing spellings also refuses upper case and stray bits after the last byte.
        if len(cid) == hashlib.sha256().digest_size and cid_text(cid) == text:
            return cid
    raise ValueError(f"not a content id (bafkrei…): {text[:64]}")
