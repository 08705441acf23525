"""Seal bytes to an X25519 public key: RFC 9180 base mode, single shot.

Suite DHKEM(X25519, HKDF-SHA256) 0x0020, HKDF-SHA256 0x0001, AES-256-GCM 0x0002; the wire form is
`enc(32) ‖ ciphertext`; the additional data is always empty, what a ciphertext is bound to stands in `info`.

The ephemeral key comes from a seed that the caller draws, because the protocol draws no randomness itself:
`seal` runs the seed through the KEM's own DeriveKeyPair, so the published vectors (`ikmE`) apply as they are.
A seed must be 32 fresh unpredictable bytes and never be used twice.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.errors import Invalid
from protocol.identifiers import PublicKey
from protocol.key_derivation import hkdf_expand, hkdf_extract

SECRET_BYTES = 32
OVERHEAD_BYTES = 48
"""Bytes that sealing adds: the encapsulated key (32) and the tag (16)."""

_ENCAPSULATED_BYTES = 32
_TAG_BYTES = 16
_KEM_SUITE = b"KEM" + (0x0020).to_bytes(2, "big")
_SUITE = b"HPKE" + b"".join(code.to_bytes(2, "big") for code in (0x0020, 0x0001, 0x0002))
_MODE_BASE = b"\x00"


def x25519_public(secret: bytes) -> PublicKey:
    """Return the public key of a 32-byte X25519 secret (clamped at use, RFC 7748 section 5)."""
    return PublicKey(X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw())


def seal(public_key: bytes, info: bytes, plaintext: bytes, *, seed32: bytes) -> bytes:
    """Return `enc(32) ‖ ciphertext` of `plaintext`, readable with the secret of `public_key` only.

    `seed32` is 32 fresh random bytes, used for this one call.

    Raises:
        Invalid: `public_key` is not a usable X25519 key (length, small order).
    """
    ephemeral = _derive_key_pair(seed32)
    encapsulated = x25519_public(ephemeral)
    shared = _shared_secret(ephemeral, public_key, encapsulated + public_key)
    key, nonce = _key_schedule(shared, info)
    return encapsulated + AESGCM(key).encrypt(nonce, plaintext, None)


def open_sealed(secret_key: bytes, info: bytes, ciphertext: bytes) -> bytes:
    """Return the plaintext of `enc(32) ‖ ciphertext`.

    Raises:
        Invalid: sealed to another key, under another `info`, or changed on the way. Which one is not told.
    """
    if len(ciphertext) < OVERHEAD_BYTES:
        raise Invalid(f"a sealed message of {len(ciphertext)} bytes is shorter than its own overhead")
    encapsulated, sealed = ciphertext[:_ENCAPSULATED_BYTES], ciphertext[_ENCAPSULATED_BYTES:]
    shared = _shared_secret(secret_key, encapsulated, encapsulated + x25519_public(secret_key))
    key, nonce = _key_schedule(shared, info)
    try:
        return AESGCM(key).decrypt(nonce, sealed, None)
    except InvalidTag:
        raise Invalid("a sealed message does not open with this key in this place") from None


def _derive_key_pair(seed: bytes) -> bytes:
    """DeriveKeyPair of RFC 9180 section 7.1.3; returns the secret half."""
    assert len(seed) == SECRET_BYTES, "the ephemeral seed is 32 bytes"
    pseudorandom_key = _labeled_extract(_KEM_SUITE, b"", b"dkp_prk", seed)
    return _labeled_expand(_KEM_SUITE, pseudorandom_key, b"sk", b"", SECRET_BYTES)


def _shared_secret(secret_key: bytes, public_key: bytes, kem_context: bytes) -> bytes:
    """DH and ExtractAndExpand of RFC 9180 section 4.1; `kem_context` is enc ‖ recipient's public key."""
    try:
        # `exchange` refuses the all-zero result of small-order points, as RFC 9180 section 7.1.4 demands.
        product = X25519PrivateKey.from_private_bytes(secret_key).exchange(
            X25519PublicKey.from_public_bytes(public_key)
        )
    except ValueError:
        raise Invalid("not a usable X25519 public key") from None
    pseudorandom_key = _labeled_extract(_KEM_SUITE, b"", b"eae_prk", product)
    return _labeled_expand(_KEM_SUITE, pseudorandom_key, b"shared_secret", kem_context, 32)


def _key_schedule(shared_secret: bytes, info: bytes) -> tuple[bytes, bytes]:
    """KeySchedule of RFC 9180 section 5.1 in base mode: (key 32, base nonce 12). Sequence number 0 leaves it as it is."""
    psk_id_hash = _labeled_extract(_SUITE, b"", b"psk_id_hash", b"")
    info_hash = _labeled_extract(_SUITE, b"", b"info_hash", info)
    context = _MODE_BASE + psk_id_hash + info_hash
    secret = _labeled_extract(_SUITE, shared_secret, b"secret", b"")
    key = _labeled_expand(_SUITE, secret, b"key", context, 32)
    return key, _labeled_expand(_SUITE, secret, b"base_nonce", context, 12)


def _labeled_extract(suite: bytes, salt: bytes, label: bytes, input_key: bytes) -> bytes:
    return hkdf_extract(salt, b"HPKE-v1" + suite + label + input_key)


def _labeled_expand(suite: bytes, pseudorandom_key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    return hkdf_expand(
        pseudorandom_key, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, length
    )
