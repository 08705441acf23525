"""From a passphrase to a key (Argon2id, RFC 9106), and secrets sealed under a key (XChaCha20-Poly1305).

Salts and nonces come from the caller, who owns the entropy. Keys are 32 bytes, salts 16, nonces 24: long enough to
be drawn at random for ever (draft-irtf-cfrg-xchacha, 3.1).
"""

import unicodedata
from dataclasses import dataclass

import nacl.exceptions
import nacl.pwhash.argon2id
import nacl.secret

from protocol.limits import MIB

KEY_BYTES = 32
SALT_BYTES = 16
NONCE_BYTES = 24


@dataclass(frozen=True, slots=True)
class Hardness:
    """What one guess costs: passes over the memory, and the memory in bytes (RFC 9106 `t` and `m`, one lane)."""

    operations: int
    memory_bytes: int


STANDARD = Hardness(operations=8, memory_bytes=64 * MIB)
"""0.2 to 0.4 s and 64 MiB, given back at once. RFC 9106's second choice is t = 3 with this memory."""


class WrongKeyError(ValueError):
    """What was sealed does not open: another key, another name, or changed bytes."""


def key_of_passphrase(passphrase: str, salt: bytes, hardness: Hardness = STANDARD) -> bytes:
    """Return the 32-byte key of a passphrase; it is normalised to NFC, so that every keyboard spells it alike (RFC 8265)."""
    text = unicodedata.normalize("NFC", passphrase).encode()
    return nacl.pwhash.argon2id.kdf(
        KEY_BYTES, text, salt, opslimit=hardness.operations, memlimit=hardness.memory_bytes
    )


def seal_secret(key: bytes, nonce: bytes, name: bytes, secret: bytes) -> bytes:
    """Return the secret sealed under a key, bound to its name: ciphertext ‖ tag[16]. A nonce is used once per key."""
    return nacl.secret.Aead(key).encrypt(secret, name, nonce).ciphertext


def open_secret(key: bytes, nonce: bytes, name: bytes, sealed: bytes) -> bytes:
    """Return the secret.

    Raises:
        WrongKeyError: the key or the name is another, or bytes were changed.
    """
    try:
        return nacl.secret.Aead(key).decrypt(sealed, name, nonce)
    except (nacl.exceptions.CryptoError, ValueError):
        raise WrongKeyError("a sealed secret does not open under this key") from None
