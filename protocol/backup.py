r"""How a backup is sealed: to the facility's recovery key, in segments that neither move, nor go missing, nor are repeated.

    file     = "carechain-backup-1\n" ‖ u32be length ‖ BackupHeader ‖ segment 0 ‖ segment 1 ‖ … ‖ last segment
    segment  = AES-256-GCM(HKDF(file key, enc("carechain/v1/backup-segment", SHA-256(header), number, last)), plaintext)

Every segment but the last is of 1 MiB of plaintext (and 16 bytes of tag), the last one shorter or as long. Number and `last`
are part of each key: a file that was cut, also between two segments, lengthened, or put together anew does not open. The
file key is random and stands in the header, sealed to the recovery key (HPKE).

The recovery key is an X25519 secret that `init` makes and that no running node needs: it belongs on paper, or on a medium
in a safe. As text it is base32 of `secret[32] ‖ SHA-256(secret)[:4]` in groups of six; case, spaces, hyphens and lines that
begin with # do not matter, so that it can be typed in again.

Not a goal: telling who wrote a backup. Whoever knows the public recovery key can make a file that opens; it then holds no
keys of any member of the network.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Annotated

from protocol import codec, hpke
from protocol.codec import Bytes32, Size, pack, wire
from protocol.errors import Corruption, Invalid, Malformed, Refused
from protocol.identifiers import PublicKey
from protocol.key_derivation import KEY_BYTES, hkdf
from protocol.limits import MIB
from protocol.sealing import aead_open, aead_seal

MAGIC = b"carechain-backup-1\n"
SEGMENT_BYTES = MIB
"""Of plaintext: what is held in memory at once, and the least that is read before something can be believed."""
SEALED_SEGMENT_BYTES = SEGMENT_BYTES + 16
HEADER_BYTES_MAX = 1024
LENGTH_BYTES = 4

_SEGMENT = "carechain/v1/backup-segment"
_CHECK_BYTES = 4
_GROUP_CHARACTERS = 6
_TEXT_HEAD = """\
# The recovery key of a carechain facility. It opens every backup of this facility, and its keys without the passphrase.
# Keep it away from the facility's machines: on paper, or on a medium in a safe. Who has it and a backup has everything.
"""


@wire("backup-header")
@dataclass(frozen=True, slots=True)
class BackupHeader:
    """What stands before the segments: whom the file is for, and its key, sealed to them."""

    recovery_public: Bytes32
    sealed_key: Annotated[bytes, Size(KEY_BYTES + hpke.OVERHEAD_BYTES)]


class SegmentKeys:
    """Seals and opens the segments of one file."""

    def __init__(self, file_key: bytes, header: bytes) -> None:
        self._file_key = file_key
        self._header_hash = hashlib.sha256(header).digest()

    def seal(self, number: int, plaintext: bytes | bytearray | memoryview, *, last: bool) -> bytes:
        """Return segment `number`; each is sealed once."""
        return aead_seal(self._key(number, last=last), bytes(plaintext), b"")

    def open(self, number: int, sealed: bytes, *, last: bool) -> bytes:
        """Return the plaintext of segment `number`.

        Raises:
            Corruption: changed, moved, or the file does not end where it ended.
        """
        try:
            return aead_open(self._key(number, last=last), sealed, b"")
        except Invalid:
            raise Corruption(
                f"the backup is damaged or incomplete (part {number + 1}); nothing was restored, use another copy"
            ) from None

    def _key(self, number: int, *, last: bool) -> bytes:
        return hkdf(self._file_key, pack(_SEGMENT, self._header_hash, number, last))


def make_header(recovery_public: PublicKey, *, file_key: bytes, seed32: bytes) -> bytes:
    """Return the encoded header of a new file; `file_key` and `seed32` are 32 fresh random bytes each."""
    sealed = hpke.seal(recovery_public, _info(recovery_public), file_key, seed32=seed32)
    return codec.encode(BackupHeader(recovery_public, sealed))


def open_header(header: bytes, recovery_secret: bytes) -> SegmentKeys:
    """Return what opens the segments of a file.

    Raises:
        Refused: the file was sealed to another recovery key.
        Corruption: the header is damaged.
    """
    try:
        decoded = codec.decode(header, BackupHeader)
    except Malformed:
        raise _damaged_header() from None
    public = hpke.x25519_public(recovery_secret)
    if decoded.recovery_public != public:
        raise Refused(
            "the backup was sealed to another recovery key; find the one that was in use when it was made"
        )
    try:
        return SegmentKeys(hpke.open_sealed(recovery_secret, _info(public), decoded.sealed_key), header)
    except Invalid:
        raise _damaged_header() from None


def recovery_key_text(secret: bytes) -> str:
    """Return a recovery key as the text of a file, fit for printing."""
    checked = secret + hashlib.sha256(secret).digest()[:_CHECK_BYTES]
    letters = base64.b32encode(checked).decode().rstrip("=")
    groups = [
        letters[start : start + _GROUP_CHARACTERS] for start in range(0, len(letters), _GROUP_CHARACTERS)
    ]
    return f"{_TEXT_HEAD}{'-'.join(groups)}\n"


def parse_recovery_key(text: str) -> bytes:
    """Return the secret of a recovery key, as `recovery_key_text` wrote it or somebody typed it.

    Raises:
        Refused: not a recovery key, or mistyped.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    letters = "".join("".join(lines).replace("-", "").split()).upper()
    try:
        checked = base64.b32decode(letters + "=" * (-len(letters) % 8))
    except (binascii.Error, ValueError):
        checked = b""
    secret, check = checked[:-_CHECK_BYTES], checked[-_CHECK_BYTES:]
    if len(secret) != hpke.SECRET_BYTES or hashlib.sha256(secret).digest()[:_CHECK_BYTES] != check:
        raise Refused("this is no recovery key, or a letter of it is wrong; compare it with the original")
    return secret


def _info(recovery_public: bytes) -> bytes:
    return pack("carechain/v1/backup", recovery_public)


def _damaged_header() -> Corruption:
    return Corruption("the backup is damaged at its beginning; nothing was restored, use another copy")
