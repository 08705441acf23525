import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.limits import MIB
from protocol.passphrase import Hardness, WrongKeyError, key_of_passphrase, open_secret, seal_secret

QUICK = Hardness(operations=1, memory_bytes=MIB)
KEY, NONCE = bytes(range(32)), bytes(range(24))


def test_golden_key() -> None:
    # Argon2id v1.3, t = 1, m = 1 MiB, p = 1: changing this locks everybody out.
    assert (
        key_of_passphrase("correct horse", bytes(16), QUICK).hex()
        == "5af2246804fb436c83ede1dc2b9d2cee79b7c5d1e5c6ea8a6850e64a0ac0f730"
    )


def test_the_key_depends_on_passphrase_salt_and_hardness() -> None:
    keys = {
        key_of_passphrase("a", bytes(16), QUICK),
        key_of_passphrase("b", bytes(16), QUICK),
        key_of_passphrase("a", bytes([1]) * 16, QUICK),
        key_of_passphrase("a", bytes(16), Hardness(2, MIB)),
    }
    assert len(keys) == 4


def test_composed_and_decomposed_letters_are_one_passphrase() -> None:
    assert key_of_passphrase("\u00e9", bytes(16), QUICK) == key_of_passphrase("e\u0301", bytes(16), QUICK)


@given(secret=st.binary(max_size=200), name=st.binary(max_size=40))
def test_a_sealed_secret_opens(secret: bytes, name: bytes) -> None:
    sealed = seal_secret(KEY, NONCE, name, secret)
    assert len(sealed) == len(secret) + 16
    assert open_secret(KEY, NONCE, name, sealed) == secret


def test_nothing_else_opens_it() -> None:
    sealed = seal_secret(KEY, NONCE, b"name", b"secret")
    others = [
        (bytes(32), NONCE, b"name", sealed),
        (KEY, bytes(24), b"name", sealed),
        (KEY, NONCE, b"other", sealed),
        (KEY, NONCE, b"name", sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (KEY, NONCE, b"name", sealed[:10]),
        (KEY, b"", b"name", sealed),
    ]
    for other in others:
        with pytest.raises(WrongKeyError):
            open_secret(*other)
