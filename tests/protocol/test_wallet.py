"""A wallet opens with its passphrase, and says in one sentence why not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from protocol import codec
from protocol.errors import LocalFault, Refused
from protocol.identifiers import Vid
from protocol.person import Identifier, Person
from protocol.wallet import Wallet, WalletVault, open_wallet, seal_wallet

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "wallet.json").read_text())
VAULT = WalletVault(b"\x03" * 32, "labs", 1, 4, 2, (b"\x04" * 32, b"\x05" * 32))
PERSON = Person("Sample Patient", "1970-01-01", (Identifier("urn:example", "0001"),))
WALLET = Wallet(b"\x01" * 32, b"\x02" * 32, PERSON, (VAULT,))
SALT = bytes(range(16))


@pytest.fixture(scope="module")
def file() -> bytes:
    return seal_wallet(WALLET, "correct horse", salt=SALT)


def test_golden_wallet_contents() -> None:
    assert codec.encode(WALLET).hex() == VECTORS["wallet"]


def test_golden_wallet_file(file: bytes) -> None:
    assert file.hex() == VECTORS["wallet_file"]


def test_a_wallet_round_trips(file: bytes) -> None:
    assert open_wallet(file, "correct horse") == WALLET
    assert b"Sample" not in file


def test_a_wrong_passphrase_or_a_changed_byte_is_refused(file: bytes) -> None:
    for data, passphrase in ((file, "wrong horse"), (file[:-1] + bytes([file[-1] ^ 1]), "correct horse")):
        with pytest.raises(Refused, match="wrong passphrase"):
            open_wallet(data, passphrase)


def test_another_file_is_refused(file: bytes) -> None:
    for data in (b"", b"PK\x03\x04", file[:-1], file + b"\x00"):
        with pytest.raises(Refused, match="not a carechain wallet"):
            open_wallet(data, "correct horse")


def test_a_wallet_of_a_newer_format_is_named(file: bytes) -> None:
    tag, _, salt, sealed = codec.unpack(file)

    with pytest.raises(Refused, match="format 2"):
        open_wallet(codec.pack(tag, 2, salt, sealed), "correct horse")


def test_a_wallet_that_could_not_be_opened_again_is_not_written() -> None:
    with pytest.raises(LocalFault):
        seal_wallet(replace(WALLET, root=bytes(31)), "correct horse", salt=SALT)


def test_notes_of_every_former_root_can_be_opened() -> None:
    own = WALLET.keys.audit_secret(Vid(VAULT.vid))

    assert WALLET.audit_secrets(VAULT) == (own, b"\x05" * 32, b"\x04" * 32)


def test_repr_shows_nothing() -> None:
    assert [repr(WALLET), repr(VAULT), repr(WALLET.keys)] == [
        "Wallet(hidden)",
        "WalletVault(hidden)",
        "PatientKeys(hidden)",
    ]
