"""Ed25519 as RFC 8032 has it, one verdict on malleable spellings, and forms that cannot be confused."""

import pytest

from protocol import codec, signing
from protocol.identifiers import NetworkId

ORDER = 2**252 + 27742317777372353535851937790883648493
RFC8032 = [  # section 7.1, tests 1 to 3: seed, public key, message, signature
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]
NETWORK = NetworkId(b"\x05" * 32)


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC8032)
def test_the_vectors_of_rfc_8032_hold(seed, public, message, signature):
    key = signing.SigningKey(bytes.fromhex(seed))
    assert key.public.hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert signing.verify(key.public, bytes.fromhex(message), bytes.fromhex(signature))


def test_a_signature_with_s_raised_by_the_group_order_is_refused():
    key = signing.SigningKey(b"\x01" * 32)
    good = key.sign(b"message")
    malleable = good[:32] + (int.from_bytes(good[32:], "little") + ORDER).to_bytes(32, "little")
    assert signing.verify(key.public, b"message", good)
    assert not signing.verify(key.public, b"message", malleable)


@pytest.mark.parametrize(
    "point", ["01" + "00" * 31, "00" * 32, "ec" + "ff" * 30 + "7f", "ee" + "ff" * 30 + "7f"]
)
def test_small_order_and_non_canonical_public_keys_verify_nothing(point):
    identity = bytes([1]) + bytes(31)
    assert not signing.verify(bytes.fromhex(point), b"message", identity + bytes(32))


@pytest.mark.parametrize(
    ("public", "signature"),
    [(b"", bytes(64)), (bytes(32), b""), (bytes(31), bytes(64)), (bytes(32), bytes(65))],
)
def test_wrong_lengths_verify_nothing(public, signature):
    assert not signing.verify(public, b"message", signature)


def test_forms_differ_by_domain_network_and_the_borders_between_fields():
    forms = {
        signing.signed_form("ack", NETWORK, 1, b"ab", b"c"),
        signing.signed_form("ack", NETWORK, 1, b"a", b"bc"),
        signing.signed_form("vote", NETWORK, 1, b"ab", b"c"),
        signing.signed_form("ack", NetworkId(bytes(32)), 1, b"ab", b"c"),
        signing.signed_form("ack", NETWORK, 1, (b"ab", b"c")),
    }
    assert len(forms) == 5


def test_a_form_begins_with_its_domain_tag_and_network():
    assert codec.unpack(signing.signed_form("ack", NETWORK, 7)) == ("carechain/v1/ack", NETWORK, 7)


def test_a_key_does_not_show_its_secret():
    key = signing.SigningKey(b"\x07" * 32)
    assert (b"\x07" * 4).hex() not in repr(key)
    assert key.public.hex()[:16] in repr(key)
