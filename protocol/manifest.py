"""The manifest of a sealed record: what it is, how long, and which chunks hold it.

Only here stand title, date, media type and category of a record: the manifest is sealed like the chunks
(`protocol/sealing.py`) and named by the envelope. Its plaintext, before padding, is

    enc(meta, total_bytes, id_0, id_1, …)

`total_bytes` counts what was sealed (after compression, before padding), so the number of chunks follows from it:
one for each 1,048,560 bytes, at least one. Up to 30,000 chunks (29 GiB) the ids are those of the chunks. Above, they are
those of *pages*, each `enc(id, …)` of the next 30,000 chunks, sealed like the manifest; whether a manifest is paged
follows from `total_bytes` too, so there is one form of every manifest.
"""

from dataclasses import dataclass
from typing import Annotated

from protocol import codec
from protocol.codec import Bytes32, Size
from protocol.errors import LocalFault, Malformed, Refused
from protocol.identifiers import Cid, Rid
from protocol.limits import CHUNK_PLAIN_BYTES, MANIFEST_PAGE_CIDS_MAX, RECORD_BYTES_MAX

KINDS = ("document", "original", "view")
"""A document of one category; the exact bytes of one that spans several; the part of an original in one category."""
COMPRESSIONS = ("none", "zstd")


@codec.wire("record-meta")
@dataclass(frozen=True, slots=True, repr=False)
class Meta:
    """What a record is. Personal data: lives in the sealed manifest only, and `repr` shows none of it.

    `part_of` is the original's id for a view, else empty. `plain_bytes` and `sha256` are those of the exact bytes received
    (before compression): whoever inflates must stop at `plain_bytes`. `identity_override` records that the author added it
    for a patient whom the document does not name.
    """

    media_type: Annotated[str, Size(0, 256)]
    title: Annotated[str, Size(0, 256)]
    date: Annotated[str, Size(0, 64)]  # FHIR date or dateTime of the document, "" when it has none
    kind: Annotated[str, Size(1, 16)]  # one of KINDS
    category: Annotated[str, Size(1, 32)]
    part_of: Annotated[bytes, Size(0, 32)]
    compression: Annotated[str, Size(1, 16)]  # one of COMPRESSIONS
    plain_bytes: int
    sha256: Bytes32
    identity_override: bool = False

    def __repr__(self) -> str:
        return "Meta(hidden)"

    def check(self) -> None:
        """Check what field types cannot say.

        Raises:
            Malformed: a kind or compression that is not defined, a wrong `part_of`, or a length over the limit.
        """
        if self.kind not in KINDS or self.compression not in COMPRESSIONS:
            raise Malformed("a manifest of an unknown kind or compression")
        if len(self.part_of) != (32 if self.kind == "view" else 0):
            raise Malformed("a manifest must name an original if, and only if, it is of a view")
        if self.plain_bytes > RECORD_BYTES_MAX:
            raise Malformed(f"a manifest of {self.plain_bytes} bytes is over the record limit")

    @property
    def original(self) -> Rid | None:
        """The record that this view was taken from."""
        return Rid(self.part_of) if self.part_of else None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked manifest. `listed` are the ids it holds: of the chunks, or of the pages when there are too many."""

    meta: Meta
    total_bytes: int
    listed: tuple[Cid, ...]

    @property
    def chunk_count(self) -> int:
        """How many chunks hold the record."""
        return chunk_count(self.total_bytes)

    @property
    def is_paged(self) -> bool:
        """Whether `listed` names pages."""
        return self.chunk_count > MANIFEST_PAGE_CIDS_MAX


def chunk_count(total_bytes: int) -> int:
    """Return the number of chunks of a record of so many sealed bytes."""
    return max(1, -(-total_bytes // CHUNK_PLAIN_BYTES))


def encode_manifest(manifest: Manifest) -> bytes:
    """Return `enc(meta, total_bytes, id, …)`.

    Raises:
        Refused: a field of `meta` is over its bounds.
        LocalFault: the manifest contradicts itself; it could not be read back.
    """
    meta = codec.to_plain(manifest.meta)
    try:
        codec.from_plain(meta, Meta)
    except Malformed:
        raise Refused("the media type, title, date or category of a record is too long") from None
    try:
        _check(manifest)
    except Malformed as fault:
        raise LocalFault(str(fault)) from None
    return codec.pack(meta, manifest.total_bytes, *manifest.listed)


def decode_manifest(data: bytes) -> Manifest:
    """Return the manifest that `encode_manifest` spelled.

    Raises:
        Malformed: any other bytes.
    """
    values = codec.unpack(data)
    if len(values) < 3 or type(values[0]) is not tuple or type(values[1]) is not int:
        raise Malformed("not a manifest")
    manifest = Manifest(codec.from_plain(values[0], Meta), values[1], _cids(values[2:]))
    _check(manifest)
    return manifest


def page_spans(count: int) -> tuple[tuple[int, int], ...]:
    """Return (first, end) of the chunks that each page of a manifest of `count` chunks lists."""
    starts = range(0, count, MANIFEST_PAGE_CIDS_MAX)
    return tuple((start, min(start + MANIFEST_PAGE_CIDS_MAX, count)) for start in starts)


def encode_page(cids: tuple[Cid, ...]) -> bytes:
    """Return `enc(id, …)`."""
    return codec.pack(*cids)


def decode_page(data: bytes, count: int) -> tuple[Cid, ...]:
    """Return the `count` ids of a page.

    Raises:
        Malformed: any other bytes or another number of ids.
    """
    cids = _cids(codec.unpack(data))
    if len(cids) != count:
        raise Malformed(f"a manifest page of {len(cids)} ids instead of {count}")
    return cids


def _cids(values: tuple[object, ...]) -> tuple[Cid, ...]:
    cids = tuple([Cid(value) for value in values if type(value) is bytes and len(value) == 32])
    if len(cids) != len(values):
        raise Malformed("a manifest lists something that is not a chunk id")
    return cids


def _check(manifest: Manifest) -> None:
    manifest.meta.check()
    if manifest.total_bytes > RECORD_BYTES_MAX:
        raise Malformed(f"a manifest of {manifest.total_bytes} sealed bytes is over the record limit")
    if manifest.meta.compression == "none" and manifest.meta.plain_bytes != manifest.total_bytes:
        raise Malformed("a manifest whose lengths contradict each other")
    count = manifest.chunk_count
    if len(manifest.listed) != (len(page_spans(count)) if manifest.is_paged else count):
        raise Malformed(f"a manifest of {manifest.total_bytes} bytes cannot list {len(manifest.listed)} ids")
