"""Ed25519 with a domain tag and the network id in every signed form (RFC 8032; cryptography.md section 2).

A signed form is `pack("carechain/v1/" + domain, network, field, …)`: injective, so that nothing signed for one purpose
or one network can be passed off as another. Verification is libsodium's: it refuses non-canonical S, non-canonical and
small-order public keys, and small-order R, alike on every node.
"""

import hashlib
from typing import Any

from nacl import bindings
from nacl.exceptions import BadSignatureError

from protocol import codec
from protocol.identifiers import Digest, NetworkId, PublicKey


class SigningKey:
    """An Ed25519 key pair made from a 32-byte seed."""

    __slots__ = ("_secret", "public")

    def __init__(self, seed: bytes) -> None:
        public, self._secret = bindings.crypto_sign_seed_keypair(seed)
        self.public = PublicKey(public)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of `message`."""
        return bindings.crypto_sign(message, self._secret)[:64]

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()[:16]})"


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether `signature` (64 bytes) of `message` was made by `public` (32 bytes)."""
    if len(signature) != 64 or len(public) != 32:
        return False
    try:
        bindings.crypto_sign_open(signature + message, public)
    except BadSignatureError:
        return False
    return True


def signed_form(domain: str, network: NetworkId, *fields: Any) -> bytes:
    """Return the bytes to sign: the domain tag, the network, then the fields in wire order."""
    return codec.pack("carechain/v1/" + domain, network, *fields)


def sha256(data: bytes) -> Digest:
    """Return the SHA-256 digest of `data`."""
    return Digest(hashlib.sha256(data).digest())
