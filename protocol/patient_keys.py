"""A patient's keys: two roots of 32 bytes, and everything derived from them (cryptography.md section 3).

    R  ─┬─ auth(v, g)   Ed25519 seed    signs the vault's transactions, generation g
        ├─ cat(v, e)    X25519 secret   opens leg 1 of the records of epoch e
        └─ audit(v)     X25519 secret   opens the "who read" notes
    RR ─── rec(v)       Ed25519 seed    outranks auth

Each is HKDF-SHA256 with an empty salt and info = enc("carechain/v1/<name>", vid, …): keys of different vaults are
unrelated to everybody who does not hold the root. A facility derives its actors' pairwise keys from its actor root in
the same way.
"""

from dataclasses import dataclass

from protocol.codec import pack
from protocol.identifiers import Vid
from protocol.key_derivation import hkdf
from protocol.sealing import aead_open, aead_seal


@dataclass(frozen=True, slots=True, repr=False)
class PatientKeys:
    """The roots R and RR, 32 random bytes each and unrelated, and the secrets derived from them, 32 bytes each."""

    root: bytes
    recovery_root: bytes

    def __post_init__(self) -> None:
        assert len(self.root) == len(self.recovery_root) == 32, "roots are 32 bytes"

    def __repr__(self) -> str:
        return "PatientKeys(hidden)"

    def auth_seed(self, vid: Vid, generation: int) -> bytes:
        """Return the Ed25519 seed that signs for the vault; RotateAuth moves to the next generation."""
        return hkdf(self.root, pack("carechain/v1/auth", vid, generation))

    def category_secret(self, vid: Vid, epoch: int) -> bytes:
        """Return the X25519 secret of the vault's records of `epoch`."""
        return hkdf(self.root, pack("carechain/v1/cat", vid, epoch))

    def audit_secret(self, vid: Vid) -> bytes:
        """Return the X25519 secret that the vault's "who read" notes are sealed to."""
        return hkdf(self.root, pack("carechain/v1/audit", vid))

    def recovery_seed(self, vid: Vid) -> bytes:
        """Return the Ed25519 seed that may replace every other key of the vault."""
        return hkdf(self.recovery_root, pack("carechain/v1/rec", vid))


def actor_seed(actor_root: bytes, vid: Vid, local_id: str, generation: int) -> bytes:
    """Return the Ed25519 seed of a facility's actor or team towards one vault, so that vaults cannot be joined by it."""
    return hkdf(actor_root, pack("carechain/v1/actor", vid, local_id, generation))


def actor_kex_secret(actor_root: bytes, vid: Vid, local_id: str, generation: int) -> bytes:
    """Return the X25519 secret that goes with `actor_seed`."""
    return hkdf(actor_root, pack("carechain/v1/actorkex", vid, local_id, generation))


def seal_epoch_link(vid: Vid, epoch: int, *, older: bytes, newer: bytes) -> bytes:
    """Return the link from epoch + 1 back to `epoch`: whoever holds `newer`, cat(v, epoch + 1), reaches `older`, cat(v, epoch).

    48 bytes, an attachment of EpochRotate. There is one link for each epoch, so its key seals nothing else.
    """
    return aead_seal(_link_key(newer), older, pack(vid, epoch))


def open_epoch_link(vid: Vid, epoch: int, link: bytes, *, newer: bytes) -> bytes:
    """Return cat(v, epoch) from the link and cat(v, epoch + 1).

    Raises:
        Invalid: not the link of this vault and epoch, or `newer` is another key.
    """
    return aead_open(_link_key(newer), link, pack(vid, epoch))


def _link_key(newer: bytes) -> bytes:
    return hkdf(newer, b"carechain/v1/link")
