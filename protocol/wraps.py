"""What is sealed to a person's or facility's key and kept beside the ledger as an attachment: grants and "who read" notes.

The ledger holds the SHA-256 of each. Both are padded to a size bucket before sealing: lengths of names and identifiers,
the same in every vault of a patient, would otherwise join the vaults.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated

from protocol import codec, hpke
from protocol.codec import Bytes32, Size, pack
from protocol.errors import Invalid, Malformed, Refused
from protocol.identifiers import Digest, PublicKey, Vid
from protocol.limits import ATTACHMENT_BYTES_MAX
from protocol.padding import pad, unpad
from protocol.person import Person


@codec.wire("grant-contents")
@dataclass(frozen=True, slots=True, repr=False)
class GrantContents:
    """What a grant gives to its grantee beside the right: the category key, and whom it is about.

    `handle` is random, one for each patient and grantee: vaults of one patient share it, so the grantee lists one patient.
    """

    category_secret: Bytes32
    epoch: int
    category: Annotated[str, Size(1, 32)]
    person: Person
    handle: Bytes32

    def __repr__(self) -> str:
        return "GrantContents(hidden)"


def seal_grant(
    contents: GrantContents, vid: Vid, grantee: PublicKey, grantee_kex: PublicKey, *, seed32: bytes
) -> bytes:
    """Return the wrap of a Grant or EpochRotate, readable with the secret of `grantee_kex` only.

    `grantee` is the Ed25519 key that the Grant names, `seed32` 32 fresh random bytes.

    Raises:
        Invalid: `grantee_kex` is not a usable X25519 key.
        Refused: the person's name or identifiers are too long for an attachment.
    """
    info = _grant_info(vid, contents.epoch, grantee)
    return hpke.seal(grantee_kex, info, _padded(contents), seed32=seed32)


def open_grant(
    wrap: bytes, vid: Vid, epoch: int, grantee: PublicKey, kex_secret: bytes, *, category_public: PublicKey
) -> GrantContents:
    """Return what a wrap gives. `category_public` is the ledger's category key of the vault at `epoch`.

    Raises:
        Invalid: sealed for somebody else, another vault or epoch; or the category key inside is not the ledger's.
        Malformed: what was sealed is no grant.
    """
    opened = hpke.open_sealed(kex_secret, _grant_info(vid, epoch, grantee), wrap)
    contents = codec.decode(unpad(opened, overhead_bytes=hpke.OVERHEAD_BYTES), GrantContents)
    if contents.epoch != epoch or hpke.x25519_public(contents.category_secret) != category_public:
        raise Invalid("a grant does not hold the category key that the ledger names")
    return contents


@codec.wire("who")
@dataclass(frozen=True, slots=True, repr=False)
class WhoNote:
    """Who read, as the patient will see it: the person, their role, staff id and organisation."""

    name: Annotated[str, Size(0, 256)]
    role: Annotated[str, Size(0, 256)]
    staff_id: Annotated[str, Size(0, 256)]
    organisation: Annotated[str, Size(0, 256)]

    def __repr__(self) -> str:
        return "WhoNote(hidden)"


def seal_who(note: WhoNote, vid: Vid, audit_public: PublicKey, *, seed32: bytes) -> bytes:
    """Return the note sealed to the vault's audit key; `attachment_hash` of it is `who_hash` of Read.

    Raises:
        Invalid: `audit_public` is not a usable X25519 key.
        Refused: a field is too long.
    """
    return hpke.seal(audit_public, _who_info(vid), _padded(note), seed32=seed32)


def open_who(sealed: bytes, vid: Vid, audit_secret: bytes) -> WhoNote:
    """Return the note.

    Raises:
        Invalid: sealed to another key or for another vault.
        Malformed: what was sealed is no note.
    """
    return codec.decode(
        unpad(hpke.open_sealed(audit_secret, _who_info(vid), sealed), overhead_bytes=hpke.OVERHEAD_BYTES),
        WhoNote,
    )


def attachment_hash(data: bytes) -> Digest:
    """Return `wrap_hash`, `who_hash` or `link_hash`: SHA-256 of the attachment."""
    return Digest(hashlib.sha256(data).digest())


def _padded(value: GrantContents | WhoNote) -> bytes:
    data = codec.encode(value)
    try:
        codec.decode(data, type(value))
        fits = (
            len(padded := pad(data, overhead_bytes=hpke.OVERHEAD_BYTES)) + hpke.OVERHEAD_BYTES
            <= ATTACHMENT_BYTES_MAX
        )
    except Malformed:
        fits = False
    if not fits:
        raise Refused(
            "a name, role or identifier is too long, or there are too many of them, to be sealed to somebody"
        )
    return padded


def _grant_info(vid: Vid, epoch: int, grantee: PublicKey) -> bytes:
    return pack("carechain/v1/grant", vid, epoch, grantee)


def _who_info(vid: Vid) -> bytes:
    return pack("carechain/v1/who", vid)
