"""HPKE against the RFC's vector for this suite, and against `cryptography`'s implementation in both directions."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import example, given
from hypothesis.strategies import binary, integers

from protocol import hpke
from protocol.errors import Invalid

RFC_9180 = {
    name: value if name == "source" else bytes.fromhex(value)
    for name, value in json.loads((Path(__file__).parents[1] / "vectors" / "hpke.json").read_text())[
        "rfc9180"
    ].items()
}
ORACLE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
SECRET = bytes(range(32))
PUBLIC = hpke.x25519_public(SECRET)
seeds = binary(min_size=32, max_size=32)


def test_key_pairs_derive_as_in_rfc_9180() -> None:
    assert hpke._derive_key_pair(RFC_9180["ikmE"]) == RFC_9180["skEm"]
    assert hpke.x25519_public(RFC_9180["skEm"]) == RFC_9180["pkEm"] == RFC_9180["enc"]
    assert hpke._derive_key_pair(RFC_9180["ikmR"]) == RFC_9180["skRm"]
    assert hpke.x25519_public(RFC_9180["skRm"]) == RFC_9180["pkRm"]


def test_key_schedule_and_ciphertext_are_those_of_rfc_9180() -> None:
    vector = RFC_9180
    context = vector["enc"] + vector["pkRm"]

    shared = hpke._shared_secret(vector["skRm"], vector["enc"], context)
    key, nonce = hpke._key_schedule(shared, vector["info"])

    assert shared == hpke._shared_secret(vector["skEm"], vector["pkRm"], context) == vector["shared_secret"]
    assert (key, nonce) == (vector["key"], vector["base_nonce"])
    assert AESGCM(key).encrypt(nonce, vector["plaintext"], vector["aad"]) == vector["ciphertext"]


@given(secret=seeds, seed=seeds, info=binary(max_size=100), plaintext=binary(max_size=300))
def test_what_we_seal_the_oracle_opens(secret: bytes, seed: bytes, info: bytes, plaintext: bytes) -> None:
    sealed = hpke.seal(hpke.x25519_public(secret), info, plaintext, seed32=seed)

    assert ORACLE.decrypt(sealed, X25519PrivateKey.from_private_bytes(secret), info) == plaintext
    assert hpke.open_sealed(secret, info, sealed) == plaintext
    assert len(sealed) == len(plaintext) + hpke.OVERHEAD_BYTES


@given(secret=seeds, info=binary(max_size=100), plaintext=binary(max_size=300))
def test_what_the_oracle_seals_we_open(secret: bytes, info: bytes, plaintext: bytes) -> None:
    public = X25519PublicKey.from_public_bytes(hpke.x25519_public(secret))

    assert hpke.open_sealed(secret, info, ORACLE.encrypt(plaintext, public, info)) == plaintext


@given(position=integers(0, 47 + 7), change=integers(1, 255))
@example(position=31, change=0x80)  # the bit that X25519 ignores is bound by the key schedule
def test_every_changed_byte_is_refused(position: int, change: int) -> None:
    sealed = bytearray(hpke.seal(PUBLIC, b"info", b"message", seed32=bytes(32)))
    sealed[position] ^= change

    with pytest.raises(Invalid):
        hpke.open_sealed(SECRET, b"info", bytes(sealed))


def test_another_key_info_or_length_is_refused() -> None:
    sealed = hpke.seal(PUBLIC, b"info", b"message", seed32=bytes(32))

    for secret, info, data in (
        (bytes(31) + b"\x01", b"info", sealed),
        (SECRET, b"inf", sealed),
        (SECRET, b"info", sealed[:-1]),
        (SECRET, b"info", sealed + b"\x00"),
        (SECRET, b"info", sealed[:47]),
        (SECRET, b"info", b""),
    ):
        with pytest.raises(Invalid):
            hpke.open_sealed(secret, info, data)


@pytest.mark.parametrize(
    "point",
    [
        bytes(32),
        b"\x01" + bytes(31),
        bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
        bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    ],
)
def test_points_of_small_order_are_refused_by_both_sides(point: bytes) -> None:
    with pytest.raises(Invalid):
        hpke.seal(point, b"", b"message", seed32=bytes(32))
    with pytest.raises(Invalid):
        hpke.open_sealed(SECRET, b"", point + bytes(16))


def test_a_public_key_of_another_length_is_refused() -> None:
    with pytest.raises(Invalid):
        hpke.seal(PUBLIC[:-1], b"", b"message", seed32=bytes(32))


def test_two_seeds_give_unrelated_ciphertexts() -> None:
    first, second = (hpke.seal(PUBLIC, b"", b"message", seed32=bytes([n]) * 32) for n in (1, 2))

    assert first[:32] != second[:32]
    assert first[32:] != second[32:]
