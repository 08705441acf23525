"""Grants and notes open for whom they are sealed to, in their own place, and tell nothing by their length."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis.strategies import builds, integers, lists, text

from protocol import codec, hpke
from protocol.errors import Invalid, Refused
from protocol.identifiers import PublicKey, Vid
from protocol.padding import pad
from protocol.person import Identifier, Person
from protocol.wraps import GrantContents, WhoNote, attachment_hash, open_grant, open_who, seal_grant, seal_who

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "wallet.json").read_text())
VID, OTHER = Vid(b"\x03" * 32), Vid(b"\x04" * 32)
PERSON = Person("Sample Patient", "1970-01-01", (Identifier("urn:example", "0001"),))
CONTENTS = GrantContents(b"\x05" * 32, 2, "labs", PERSON, b"\x06" * 32)
CATEGORY_PUBLIC = hpke.x25519_public(CONTENTS.category_secret)
GRANTEE = PublicKey(b"\x07" * 32)
KEX_SECRET, SEED = b"\x08" * 32, b"\x09" * 32
NOTE = WhoNote("Sample Nurse", "nurse", "17", "Sample Clinic")
people = builds(
    Person,
    text(max_size=40),
    text(max_size=10),
    lists(builds(Identifier, text(max_size=20), text(min_size=1, max_size=20)), max_size=3).map(tuple),
)


def wrap(contents: GrantContents = CONTENTS) -> bytes:
    return seal_grant(contents, VID, GRANTEE, hpke.x25519_public(KEX_SECRET), seed32=SEED)


@given(person=people, epoch=integers(0, 2**64 - 1))
def test_grants_round_trip(person: Person, epoch: int) -> None:
    contents = replace(CONTENTS, person=person, epoch=epoch)

    assert (
        open_grant(wrap(contents), VID, epoch, GRANTEE, KEX_SECRET, category_public=CATEGORY_PUBLIC)
        == contents
    )


def test_golden_wraps() -> None:
    note = seal_who(NOTE, VID, hpke.x25519_public(KEX_SECRET), seed32=SEED)

    assert wrap().hex() == VECTORS["grant_wrap"]
    assert note.hex() == VECTORS["who_note"]
    assert attachment_hash(note).hex() == VECTORS["who_hash"]


def test_a_grant_for_somebody_else_or_elsewhere_is_refused() -> None:
    for vid, epoch, grantee, secret in (
        (OTHER, 2, GRANTEE, KEX_SECRET),
        (VID, 3, GRANTEE, KEX_SECRET),
        (VID, 2, PublicKey(bytes(32)), KEX_SECRET),
        (VID, 2, GRANTEE, bytes(31) + b"\x01"),
    ):
        with pytest.raises(Invalid):
            open_grant(wrap(), vid, epoch, grantee, secret, category_public=CATEGORY_PUBLIC)


@given(position=integers(0, len(VECTORS["grant_wrap"]) // 2 - 1), change=integers(1, 255))
def test_every_changed_byte_of_a_grant_is_refused(position: int, change: int) -> None:
    changed = bytearray(wrap())
    changed[position] ^= change

    with pytest.raises(Invalid):
        open_grant(bytes(changed), VID, 2, GRANTEE, KEX_SECRET, category_public=CATEGORY_PUBLIC)


def test_a_grant_with_a_key_that_is_not_the_ledgers_is_refused() -> None:
    with pytest.raises(Invalid, match="ledger"):
        open_grant(wrap(), VID, 2, GRANTEE, KEX_SECRET, category_public=PublicKey(bytes(32)))


def test_a_grant_that_speaks_of_another_epoch_than_it_is_bound_to_is_refused() -> None:
    padded = pad(codec.encode(replace(CONTENTS, epoch=3)), overhead_bytes=hpke.OVERHEAD_BYTES)
    info = codec.pack("carechain/v1/grant", VID, 2, GRANTEE)
    forged = hpke.seal(hpke.x25519_public(KEX_SECRET), info, padded, seed32=SEED)

    with pytest.raises(Invalid, match="ledger"):
        open_grant(forged, VID, 2, GRANTEE, KEX_SECRET, category_public=CATEGORY_PUBLIC)


def test_the_length_of_a_wrap_does_not_tell_the_name() -> None:
    assert len(wrap()) == len(wrap(replace(CONTENTS, person=replace(PERSON, name="A"))))


def test_a_person_too_large_for_an_attachment_is_refused_without_being_named() -> None:
    person = replace(PERSON, identifiers=(Identifier("\U0001f9ec" * 256, "\U0001f9ec" * 256),) * 64)

    for too_large in (person, replace(PERSON, name="x" * 257)):
        with pytest.raises(Refused) as refusal:
            wrap(replace(CONTENTS, person=too_large))
        assert "Sample" not in str(refusal.value)


def test_notes_round_trip_for_their_vault_alone() -> None:
    sealed = seal_who(NOTE, VID, hpke.x25519_public(KEX_SECRET), seed32=SEED)

    assert open_who(sealed, VID, KEX_SECRET) == NOTE
    for vid, secret in ((OTHER, KEX_SECRET), (VID, bytes(31) + b"\x01")):
        with pytest.raises(Invalid):
            open_who(sealed, vid, secret)


def test_repr_shows_nobody() -> None:
    shown = [repr(value) for value in (PERSON, PERSON.identifiers[0], CONTENTS, NOTE)]

    assert all("hidden" in text and "Sample" not in text and "0001" not in text for text in shown)
