r"""Checkpoints: the head of a log as a signed note (C2SP tlog-checkpoint, signed-note, tlog-cosignature).

    carechain/<network id>                                   the origin: which log
    20852163                                                 how many leaves
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=             the RFC 9162 root over them

    — <key name> base64(key id[4] ‖ signature)               one line a signature

    key id = SHA-256(key name ‖ 0x0A ‖ type ‖ public key)[:4]
    type 0x01  Ed25519 over the text                          the log's own, key name = origin
    type 0x04  u64be time ‖ Ed25519 over "cosignature/v1\ntime <time>\n" ‖ text     a witness's, time in seconds

Every text has one spelling: what is parsed here encodes to the very bytes it came in, or is refused. No key signs in two
roles: the type 0x04 does not cover the key's name.
"""

import base64
import binascii
import enum
import hashlib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

from protocol import limits
from protocol.errors import Invalid, Malformed
from protocol.identifiers import Digest, NetworkId, PublicKey
from protocol.signing import SigningKey, verify

HASH_BYTES = 32
_KEY_ID_BYTES = 4
_SIGNATURE_BYTES = 64
_TIME_BYTES = 8
_TIME_MAX = 2**63 - 1
_SIZE_MAX = 2**63 - 1
_DASH = "— "
_DECIMAL = re.compile(r"0|[1-9][0-9]*")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


class KeyKind(enum.IntEnum):
    """What a key's signatures are over: the type byte of C2SP signed-note."""

    LOG = 1
    COSIGNER = 4


@dataclass(frozen=True)
class NoteKey:
    """A key that signs notes, with the name it signs under."""

    name: str
    kind: KeyKind
    public: PublicKey

    @cached_property
    def id(self) -> bytes:
        """The 4 bytes by which a signature line names the key: no hash that anything rests on."""
        material = self.name.encode() + b"\n" + bytes([self.kind]) + self.public
        return hashlib.sha256(material).digest()[:_KEY_ID_BYTES]

    @property
    def text(self) -> str:
        """The key as others are configured with it: `name+id in hex+base64(type ‖ key)` (C2SP, verifier key)."""
        return f"{self.name}+{self.id.hex()}+{_base64(bytes([self.kind]) + self.public)}"

    @staticmethod
    def parse(text: str) -> "NoteKey":
        """Return the key that a verifier key spells.

        Raises:
            Malformed: it is none, or of a kind that is not known here.
        """
        name, plus, rest = text.partition("+")
        identity, plus_too, material = rest.partition("+")
        if not plus or not plus_too or not is_key_name(name):
            raise Malformed("a verifier key is name+id+key")
        raw = _bytes_of(material)
        if len(raw) != 1 + HASH_BYTES or raw[0] not in tuple(KeyKind):
            raise Malformed("a verifier key is of a kind that is not known here")
        key = NoteKey(name, KeyKind(raw[0]), PublicKey(raw[1:]))
        if key.id.hex() != identity:
            raise Malformed("the id in a verifier key is not that of its name and key")
        return key


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line: by the key of that name and id, as it says."""

    name: str
    key_id: bytes
    value: bytes

    @property
    def line(self) -> str:
        """The line, with its newline."""
        return f"{_DASH}{self.name} {_base64(self.key_id + self.value)}\n"

    @property
    def time_s(self) -> int:
        """When a cosignature was made, in seconds since 1970; only for one that verifies as of `KeyKind.COSIGNER`."""
        return int.from_bytes(self.value[:_TIME_BYTES], "big")

    @staticmethod
    def parse(line: str) -> "Signature":
        """Return the signature that a line (without its newline) spells.

        Raises:
            Malformed: it is none.
        """
        if not line.startswith(_DASH):
            raise Malformed("a signature line begins with an em dash and a space")
        name, space, encoded = line[len(_DASH) :].partition(" ")
        if not space or not is_key_name(name):
            raise Malformed("a signature line names its key, without spaces or plus signs")
        raw = _bytes_of(encoded)
        if len(raw) <= _KEY_ID_BYTES:
            raise Malformed("a signature line holds a key id and a signature")
        return Signature(name, raw[:_KEY_ID_BYTES], raw[_KEY_ID_BYTES:])

    def is_named(self, key: NoteKey) -> bool:
        """Return whether it claims to be by `key`."""
        return (self.name, self.key_id) == (key.name, key.id)

    def holds(self, key: NoteKey, text: str) -> bool:
        """Return whether it is a signature of a note's text by `key`."""
        match key.kind:
            case KeyKind.LOG:
                return verify(key.public, text.encode(), self.value)
            case KeyKind.COSIGNER:
                if len(self.value) != _TIME_BYTES + _SIGNATURE_BYTES or self.time_s > _TIME_MAX:
                    return False
                return verify(key.public, _cosigned(text, self.time_s), self.value[_TIME_BYTES:])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log. `extensions` are lines that other logs may add; ours has none, for nobody could audit them."""

    origin: str
    size: int
    root: Digest
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What is signed."""
        lines = (self.origin, str(self.size), _base64(self.root), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    @staticmethod
    def parse(text: str) -> "Checkpoint":
        """Return the checkpoint that a note's text spells.

        Raises:
            Malformed: it is none.
        """
        *lines, last = text.split("\n")
        if last or len(lines) < 3 or not all(lines):
            raise Malformed("a checkpoint is three lines or more, none of them empty")
        origin, size, root, *extensions = lines
        checkpoint = Checkpoint(origin, parse_size(size), Digest(parse_hash(root)), tuple(extensions))
        assert checkpoint.text == text, "each part has one spelling"
        return checkpoint


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint and signature lines, which may be anybody's: `signed_by` says whose they are."""

    checkpoint: Checkpoint
    signatures: tuple[Signature, ...]

    def encode(self) -> bytes:
        """Return the note."""
        lines = "".join(signature.line for signature in self.signatures)
        return f"{self.checkpoint.text}\n{lines}".encode()

    @staticmethod
    def parse(note: bytes) -> "SignedCheckpoint":
        """Return the checkpoint and the signatures that a note spells. No signature is verified.

        Raises:
            Malformed: it is no such note.
        """
        if len(note) > limits.NOTE_BYTES_MAX:
            raise Malformed(f"a note of more than {limits.NOTE_BYTES_MAX} bytes")
        text, blank, lines = _text_of(note).rpartition("\n\n")
        if not blank or not lines.endswith("\n"):
            raise Malformed("a note is a text, an empty line and signature lines")
        signatures = parse_signatures(lines)
        return SignedCheckpoint(Checkpoint.parse(text + "\n"), signatures)

    def signed_by(self, keys: Collection[NoteKey]) -> dict[NoteKey, Signature]:
        """Return the first signature of each of `keys` that has signed. Signatures by others are passed over.

        Raises:
            Invalid: one that claims to be by one of `keys` does not verify.
        """
        text, found = self.checkpoint.text, dict[NoteKey, Signature]()
        for signature in self.signatures:
            named = [key for key in keys if signature.is_named(key)]
            holding = [key for key in named if signature.holds(key, text)]
            if named and not holding:  # ids are short: two keys may share one
                raise Invalid(f"a signature by {signature.name} of a checkpoint does not verify")
            for key in holding:
                found.setdefault(key, signature)
        return found


def log_key(network: NetworkId, public: PublicKey) -> NoteKey:
    """Return a member's checkpoint key as it signs the checkpoints of its network."""
    return NoteKey(origin_of(network), KeyKind.LOG, public)


def origin_of(network: NetworkId) -> str:
    """Return the origin line of a network's checkpoints."""
    return f"carechain/{network.hex()}"


def sign_checkpoint(secret: SigningKey, checkpoint: Checkpoint) -> Signature:
    """Return the log's own signature by one of its keys. The log must never sign two checkpoints that do not agree."""
    key = NoteKey(checkpoint.origin, KeyKind.LOG, secret.public)
    return Signature(key.name, key.id, secret.sign(checkpoint.text.encode()))


def cosign_checkpoint(secret: SigningKey, name: str, checkpoint: Checkpoint, time_s: int) -> Signature:
    """Return a witness's signature: at that time, this was the largest head of that log, and nothing in it was rewritten."""
    key = NoteKey(name, KeyKind.COSIGNER, secret.public)
    signature = secret.sign(_cosigned(checkpoint.text, time_s))
    return Signature(key.name, key.id, time_s.to_bytes(_TIME_BYTES, "big") + signature)


def parse_signatures(lines: str) -> tuple[Signature, ...]:
    """Return the signatures of lines that each end in a newline.

    Raises:
        Malformed: one is none, there are too many, or one stands there twice.
    """
    signatures = tuple(map(Signature.parse, lines[:-1].split("\n"))) if lines.endswith("\n") else ()
    if not 1 <= len(signatures) <= limits.NOTE_SIGNATURES_MAX:
        raise Malformed(f"a note has 1 to {limits.NOTE_SIGNATURES_MAX} signature lines")
    if len(set(signatures)) != len(signatures):
        raise Malformed("a signature line stands in a note twice")
    return signatures


def parse_size(text: str) -> int:
    """Return a number in ASCII decimal without leading zeros.

    Raises:
        Malformed: it is spelt otherwise, or larger than 2^63 - 1.
    """
    if not _DECIMAL.fullmatch(text) or len(text) > 19 or int(text) > _SIZE_MAX:
        raise Malformed("a tree size is a decimal number without leading zeros")
    return int(text)


def parse_hash(text: str) -> bytes:
    """Return the 32 bytes of a hash in base64.

    Raises:
        Malformed: it is none.
    """
    raw = _bytes_of(text)
    if len(raw) != HASH_BYTES:
        raise Malformed("a hash is 32 bytes in base64")
    return raw


def encode_hashes(hashes: Iterable[bytes]) -> str:
    """Return hashes as lines of base64."""
    return "".join(f"{_base64(one)}\n" for one in hashes)


def is_key_name(name: str) -> bool:
    """Return whether a text may name a key: not empty, without Unicode spaces and plus signs."""
    return bool(name) and not any(character.isspace() or character == "+" for character in name)


def _cosigned(text: str, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()


def _text_of(note: bytes) -> str:
    try:
        text = note.decode()
    except UnicodeDecodeError:
        raise Malformed("a note is UTF-8") from None
    if _CONTROL.search(text):
        raise Malformed("a note has no control characters but newlines")
    return text


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes_of(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("not base64") from None
    if _base64(raw) != text:
        raise Malformed("base64 with bits that say nothing")  # the same bytes spelt twice
    return raw
