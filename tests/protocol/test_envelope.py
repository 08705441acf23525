"""An envelope opens for the holder of the category key, in its own place, and nowhere else."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis.strategies import binary, integers

from protocol import hpke
from protocol.codec import pack, unpack
from protocol.envelope import (
    SUITE_LEG_ONE,
    Envelope,
    Label,
    check_envelope,
    envelope_hash,
    open_envelope,
    seal_envelope,
)
from protocol.errors import Corruption, Invalid, Malformed, RemoteFault
from protocol.identifiers import Cid, Digest, NetworkId, PublicKey, Rid, Vid
from protocol.key_derivation import h256, hkdf
from protocol.limits import ENVELOPE_BYTES_MAX
from protocol.sealing import aead_seal

VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "sealing.json").read_text())["envelopes"][0]
LABEL = Label(NetworkId(b"\x01" * 32), Vid(b"\x02" * 32), 3, Rid(b"\x04" * 32), PublicKey(b"\x05" * 32))
SECRET, DEK, S1, SEED = b"\x06" * 32, b"\x07" * 32, b"\x08" * 32, b"\x09" * 32
MANIFEST = Cid(b"\x0a" * 32)
SUITES = (SUITE_LEG_ONE,)
keys = binary(min_size=32, max_size=32)


def sealed(label: Label = LABEL) -> bytes:
    return seal_envelope(
        label, hpke.x25519_public(SECRET), dek=DEK, s1=S1, seed32=SEED, manifest_cid=MANIFEST
    )


@given(secret=keys, dek=keys, s1=keys, seed=keys, epoch=integers(0, 2**64 - 1))
def test_envelopes_round_trip(secret: bytes, dek: bytes, s1: bytes, seed: bytes, epoch: int) -> None:
    label = replace(LABEL, epoch=epoch)
    data = seal_envelope(
        label, hpke.x25519_public(secret), dek=dek, s1=s1, seed32=seed, manifest_cid=MANIFEST
    )

    opened = open_envelope(data, label, secret, suites=SUITES, env_hash=envelope_hash(data))

    assert (opened.dek, opened.manifest_cid) == (dek, MANIFEST)
    assert len(data) < 600
    assert check_envelope(data, label, suites=SUITES).encode() == data


def test_golden_envelope() -> None:
    data = sealed()

    assert data.hex() == VECTOR["envelope"]
    assert envelope_hash(data).hex() == VECTOR["env_hash"]
    assert open_envelope(data, LABEL, SECRET, suites=SUITES).dek.hex() == VECTOR["dek"]


def test_the_layout_is_that_of_the_design() -> None:
    data = sealed()
    label, wrap1, cap2, bgcap, bgct, commitment, wrapped_dek, manifest = unpack(data[1:])
    output = hkdf(S1, b"carechain/v1/kek", 64, salt=h256("label", label))

    assert data[0] == 0
    assert label == pack(
        "carechain/v1/label", b"\x01" * 32, b"\x02" * 32, 3, b"\x04" * 32, b"\x05" * 32, "rec"
    )
    assert hpke.open_sealed(SECRET, pack("carechain/v1/wrap1", label), wrap1) == S1
    assert cap2 == bgcap == bgct == b""
    assert commitment == output[32:]
    assert wrapped_dek == aead_seal(output[:32], DEK, label)
    assert manifest == MANIFEST


@given(position=integers(0, len(VECTOR["envelope"]) // 2 - 1), change=integers(1, 255))
def test_every_changed_byte_is_refused_or_leaves_the_key_alone(position: int, change: int) -> None:
    changed = bytearray(sealed())
    changed[position] ^= change
    data = bytes(changed)

    with pytest.raises(Corruption):
        check_envelope(data, LABEL, suites=SUITES, env_hash=envelope_hash(sealed()))
    if position >= len(data) - 32:
        # The manifest's id is bound by the hash on the ledger alone, and the manifest by the DEK.
        assert open_envelope(data, LABEL, SECRET, suites=SUITES).manifest_cid != MANIFEST
    else:
        with pytest.raises(RemoteFault):
            open_envelope(data, LABEL, SECRET, suites=SUITES)


@pytest.mark.parametrize(
    "change",
    [
        {"ledger_id": NetworkId(bytes(32))},
        {"vid": Vid(bytes(32))},
        {"epoch": 4},
        {"rid": Rid(bytes(32))},
        {"author": PublicKey(bytes(32))},
    ],
)
def test_an_envelope_of_another_place_is_refused(change: dict) -> None:
    with pytest.raises(Invalid, match="another record"):
        check_envelope(sealed(), replace(LABEL, **change), suites=SUITES)


def test_relabelling_does_not_help_a_thief() -> None:
    stolen = check_envelope(sealed(), LABEL, suites=SUITES)
    mine = replace(LABEL, rid=Rid(b"\x0b" * 32))
    relabelled = replace(stolen, label=mine.encode()).encode()

    assert check_envelope(relabelled, mine, suites=SUITES).label == mine.encode()
    with pytest.raises(Invalid):
        open_envelope(relabelled, mine, SECRET, suites=SUITES)


def test_the_key_of_another_epoch_is_refused() -> None:
    with pytest.raises(Invalid):
        open_envelope(sealed(), LABEL, b"\x0c" * 32, suites=SUITES)


def test_a_broken_commitment_is_refused_although_the_dek_would_unwrap() -> None:
    envelope = check_envelope(sealed(), LABEL, suites=SUITES)

    with pytest.raises(Invalid, match="commitment"):
        open_envelope(replace(envelope, key_commitment=bytes(32)).encode(), LABEL, SECRET, suites=SUITES)


@pytest.mark.parametrize("suites", [(), (1,), (1, 2)])
def test_a_suite_that_the_network_does_not_accept_is_refused(suites: tuple[int, ...]) -> None:
    with pytest.raises(Invalid, match="suite"):
        open_envelope(sealed(), LABEL, SECRET, suites=suites)


def test_a_suite_that_we_do_not_know_is_refused_even_if_accepted() -> None:
    with pytest.raises(Invalid, match="suite"):
        open_envelope(b"\x01" + sealed()[1:], LABEL, SECRET, suites=(0, 1))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x00" + pack(),
        b"\x00" + pack(LABEL.encode(), *[b""] * 7),
        b"\x00" + pack(LABEL.encode(), bytes(80), b"x", b"", b"", bytes(32), bytes(48), bytes(32)),
        b"\x00" + pack(LABEL.encode(), bytes(80), b"", b"", b"", bytes(32), bytes(48), "m" * 32),
        sealed() + b"\x00",
    ],
)
def test_other_bytes_are_no_envelope(data: bytes) -> None:
    with pytest.raises(Malformed):
        check_envelope(data, LABEL, suites=SUITES)


def test_an_envelope_over_its_bound_is_not_even_parsed() -> None:
    with pytest.raises(Malformed, match="8193 bytes"):
        check_envelope(bytes(ENVELOPE_BYTES_MAX + 1), LABEL, suites=SUITES)


def test_the_hash_is_that_of_the_bytes() -> None:
    assert envelope_hash(sealed()) == Digest(hashlib.sha256(sealed()).digest())


def test_repr_of_an_opened_envelope_shows_no_key() -> None:
    assert repr(open_envelope(sealed(), LABEL, SECRET, suites=SUITES)) == "OpenedEnvelope(hidden)"
    assert isinstance(check_envelope(sealed(), LABEL, suites=SUITES), Envelope)
