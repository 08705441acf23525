"""Several small files in one request to the local socket, as the command line sends them and the route reads them."""

from dataclasses import dataclass
from typing import Annotated

from protocol import codec, limits
from protocol.codec import Size, wire

SMALL_BYTES_MAX = 64 * limits.KIB
"""Above, a file is sent alone: there is little to be gained."""
FILES_MAX = 256
BODY_BYTES_MAX = 4 * limits.MIB
"""The whole request."""


@wire("small-file")
@dataclass(frozen=True, slots=True, repr=False)
class SmallFile:
    """A whole file, and what its sender says about it; an empty media type says nothing."""

    data: Annotated[bytes, Size(0, SMALL_BYTES_MAX)]
    media_type: Annotated[str, Size(0, 256)]
    file_suffix: Annotated[str, Size(0, 256)]

    def __repr__(self) -> str:
        return f"SmallFile({len(self.data)} bytes)"


@wire("small-files")
@dataclass(frozen=True, slots=True)
class SmallFiles:
    """What is added together."""

    files: Annotated[tuple[SmallFile, ...], Size(1, FILES_MAX)]


def encode_files(files: tuple[SmallFile, ...]) -> bytes:
    """Return the body of a request."""
    return codec.encode(SmallFiles(files))


def decode_files(body: bytes) -> tuple[SmallFile, ...]:
    """Return the files of a body.

    Raises:
        Malformed: it is none.
    """
    return codec.decode(body, SmallFiles).files
