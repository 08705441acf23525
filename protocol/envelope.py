"""The envelope of a record: who may derive its key, and where its manifest is (cryptography.md section 4).

Off the ledger, erasable; the ledger holds its hash. Wire form, for suite 0x00 (leg 1 alone):

    0x00 ‖ enc(label, wrap1, cap2, bgcap, bgct, kc, wdek, manifest_id)

    label    = enc("carechain/v1/label", ledger_id, vid, epoch, rid, author_pk, "rec")
    wrap1    = HPKE(cat_pk(epoch), info = enc("carechain/v1/wrap1", label), S1)
    KEK ‖ kc = HKDF(salt = h256("label", label), ikm = S1, info = "carechain/v1/kek", 64)
    wdek     = AES-256-GCM(KEK, zero nonce, aad = label, DEK)
    cap2, bgcap, bgct are empty: they belong to the second leg and to break-glass, suite 0x01.

kc commits to the key, which AES-GCM does not: without it one envelope could open to two DEKs for two readers.
"""

import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass

from protocol import hpke
from protocol.codec import pack, unpack
from protocol.errors import Corruption, Invalid, Malformed
from protocol.identifiers import Cid, Digest, NetworkId, PublicKey, Rid, Vid
from protocol.key_derivation import KEY_BYTES, h256, hkdf
from protocol.limits import ENVELOPE_BYTES_MAX
from protocol.sealing import aead_open, aead_seal

SUITE_LEG_ONE = 0x00
"""Leg 1 alone: whoever holds the category key opens the record, without a release by the consortium."""

_WRAP_BYTES = KEY_BYTES + hpke.OVERHEAD_BYTES
_WDEK_BYTES = KEY_BYTES + 16
_FIELD_BYTES = (_WRAP_BYTES, 0, 0, 0, KEY_BYTES, _WDEK_BYTES, 32)  # those after the label


@dataclass(frozen=True, slots=True)
class Label:
    """What an envelope is bound to. Every reader rebuilds it from its own ledger state, never from the envelope."""

    ledger_id: NetworkId
    vid: Vid
    epoch: int
    rid: Rid
    author: PublicKey

    def encode(self) -> bytes:
        """Return the label's canonical bytes."""
        return pack("carechain/v1/label", self.ledger_id, self.vid, self.epoch, self.rid, self.author, "rec")


@dataclass(frozen=True, slots=True)
class Envelope:
    """A decoded envelope of suite 0x00. Nothing in it is secret; nothing in it is trusted before `open_envelope`."""

    suite: int
    label: bytes
    wrap1: bytes
    key_commitment: bytes
    wrapped_dek: bytes
    manifest_cid: Cid

    def encode(self) -> bytes:
        """Return the wire form."""
        empty = b""
        fields = (self.wrap1, empty, empty, empty, self.key_commitment, self.wrapped_dek, self.manifest_cid)
        return bytes([self.suite]) + pack(self.label, *fields)


@dataclass(frozen=True, slots=True, repr=False)
class OpenedEnvelope:
    """The key of a record's chunks and the id of its manifest. Drop it after use."""

    dek: bytes
    manifest_cid: Cid

    def __repr__(self) -> str:
        return "OpenedEnvelope(hidden)"


def seal_envelope(
    label: Label, category_public: bytes, *, dek: bytes, s1: bytes, seed32: bytes, manifest_cid: Cid
) -> bytes:
    """Return the envelope of a record, suite 0x00.

    `category_public` is the vault's category key of `label.epoch`, from the ledger. `s1` and `seed32` are 32 fresh random
    bytes each, used for this envelope alone; `dek` is the one that sealed the chunks.

    Raises:
        Invalid: `category_public` is not a usable X25519 key.
    """
    assert len(dek) == len(s1) == KEY_BYTES, "DEK and S1 are 32 bytes"
    spelled = label.encode()
    wrap1 = hpke.seal(category_public, _wrap_info(spelled), s1, seed32=seed32)
    kek, commitment = _derive_kek(spelled, s1)
    wrapped_dek = aead_seal(kek, dek, spelled)
    return Envelope(SUITE_LEG_ONE, spelled, wrap1, commitment, wrapped_dek, manifest_cid).encode()


def envelope_hash(data: bytes) -> Digest:
    """Return `env_hash` of RecordCommit: SHA-256 of the wire form."""
    return Digest(hashlib.sha256(data).digest())


def check_envelope(
    data: bytes, label: Label, *, suites: Collection[int], env_hash: Digest | None = None
) -> Envelope:
    """Return the decoded envelope when it belongs to `label`: what a member checks without any key before its receipt.

    `suites` are those that the genesis configuration accepts. `env_hash` is the ledger's, once there is one.

    Raises:
        Corruption: the bytes are not those that the ledger's hash names; ask another member.
        Malformed: no envelope.
        Invalid: of a suite that is not accepted, or sealed for another label (record, vault, epoch, author, network).
    """
    if env_hash is not None and envelope_hash(data) != env_hash:
        raise Corruption("an envelope does not have the bytes that the ledger names")
    if not data or len(data) > ENVELOPE_BYTES_MAX:
        raise Malformed(f"{len(data)} bytes are no envelope")
    suite = data[0]
    if suite not in suites or suite != SUITE_LEG_ONE:
        raise Invalid(f"an envelope of suite {suite:#04x} is not accepted here")
    values = unpack(data[1:])
    if any(type(value) is not bytes for value in values) or tuple(map(len, values[1:])) != _FIELD_BYTES:
        raise Malformed("not the fields of an envelope")
    spelled, wrap1, _, _, _, commitment, wrapped_dek, manifest_cid = values
    if spelled != label.encode():
        raise Invalid("an envelope is sealed for another record than the ledger says")
    return Envelope(suite, spelled, wrap1, commitment, wrapped_dek, Cid(manifest_cid))


def open_envelope(
    data: bytes,
    label: Label,
    category_secret: bytes,
    *,
    suites: Collection[int],
    env_hash: Digest | None = None,
) -> OpenedEnvelope:
    """Return the DEK and the manifest's id.

    `label` is rebuilt from the reader's own ledger state; `category_secret` is the category key of `label.epoch`.

    Raises:
        Corruption, Malformed, Invalid: as `check_envelope`; Invalid too when it does not open with this key, or the key
            commitment does not hold: then the author sealed rubbish, or the key is another epoch's.
    """
    envelope = check_envelope(data, label, suites=suites, env_hash=env_hash)
    s1 = hpke.open_sealed(category_secret, _wrap_info(envelope.label), envelope.wrap1)
    if len(s1) != KEY_BYTES:
        raise Invalid("an envelope wraps something that is not a key")
    kek, commitment = _derive_kek(envelope.label, s1)
    # Before unwrapping, in constant time: AES-GCM alone would accept a ciphertext made for two keys.
    if not hmac.compare_digest(commitment, envelope.key_commitment):
        raise Invalid("an envelope does not keep its key commitment")
    return OpenedEnvelope(aead_open(kek, envelope.wrapped_dek, envelope.label), envelope.manifest_cid)


def _wrap_info(label: bytes) -> bytes:
    return pack("carechain/v1/wrap1", label)


def _derive_kek(label: bytes, s1: bytes) -> tuple[bytes, bytes]:
    output = hkdf(s1, b"carechain/v1/kek", 64, salt=h256("label", label))
    return output[:KEY_BYTES], output[KEY_BYTES:]
