"""A patient's keys are derived as the design says and are unrelated between vaults."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis.strategies import binary, integers

from protocol.codec import pack
from protocol.errors import Invalid
from protocol.identifiers import Vid
from protocol.patient_keys import PatientKeys, actor_kex_secret, actor_seed, open_epoch_link, seal_epoch_link

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "wallet.json").read_text())
KEYS = PatientKeys(b"\x01" * 32, b"\x02" * 32)
VID, OTHER = Vid(b"\x03" * 32), Vid(b"\x04" * 32)


def derived() -> dict[str, bytes]:
    return {
        "auth": KEYS.auth_seed(VID, 0),
        "auth_next": KEYS.auth_seed(VID, 1),
        "category": KEYS.category_secret(VID, 0),
        "category_next": KEYS.category_secret(VID, 1),
        "audit": KEYS.audit_secret(VID),
        "recovery": KEYS.recovery_seed(VID),
        "actor": actor_seed(b"\x05" * 32, VID, "team", 0),
        "actor_kex": actor_kex_secret(b"\x05" * 32, VID, "team", 0),
        "other_vault": KEYS.category_secret(OTHER, 0),
    }


def test_golden_derivations() -> None:
    assert {name: key.hex() for name, key in derived().items()} == VECTORS["derivations"]


def test_every_derived_key_is_another_one() -> None:
    assert len(set(derived().values())) == len(derived())


@given(root=binary(min_size=32, max_size=32), epoch=integers(0, 2**64 - 1))
def test_category_keys_are_hkdf_of_root_and_info(root: bytes, epoch: int) -> None:
    expected = HKDF(SHA256(), 32, None, pack("carechain/v1/cat", VID, epoch)).derive(root)

    assert PatientKeys(root, bytes(32)).category_secret(VID, epoch) == expected


def test_recovery_keys_depend_on_the_recovery_root_alone() -> None:
    assert PatientKeys(b"\x09" * 32, KEYS.recovery_root).recovery_seed(VID) == KEYS.recovery_seed(VID)


def test_an_epoch_link_leads_back_one_epoch() -> None:
    older, newer = KEYS.category_secret(VID, 0), KEYS.category_secret(VID, 1)
    link = seal_epoch_link(VID, 0, older=older, newer=newer)

    assert link.hex() == VECTORS["epoch_link"]
    assert open_epoch_link(VID, 0, link, newer=newer) == older


def test_a_link_of_another_vault_epoch_key_or_byte_is_refused() -> None:
    newer = KEYS.category_secret(VID, 1)
    link = seal_epoch_link(VID, 0, older=KEYS.category_secret(VID, 0), newer=newer)

    for vid, epoch, data, key in (
        (OTHER, 0, link, newer),
        (VID, 1, link, newer),
        (VID, 0, link, bytes(32)),
        (VID, 0, link[:-1] + bytes([link[-1] ^ 1]), newer),
    ):
        with pytest.raises(Invalid):
            open_epoch_link(vid, epoch, data, newer=key)


def test_repr_shows_no_key() -> None:
    assert repr(KEYS) == "PatientKeys(hidden)"
