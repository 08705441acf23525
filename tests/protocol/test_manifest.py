"""Manifests have one form each and refuse what contradicts itself."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis.strategies import binary, integers, sampled_from, text

from protocol.codec import pack, to_plain
from protocol.errors import LocalFault, Malformed, Refused
from protocol.identifiers import Cid
from protocol.limits import CHUNK_PLAIN_BYTES, MANIFEST_PAGE_CIDS_MAX, RECORD_BYTES_MAX
from protocol.manifest import (
    KINDS,
    Manifest,
    Meta,
    chunk_count,
    decode_manifest,
    decode_page,
    encode_manifest,
    encode_page,
    page_spans,
)

META = Meta(
    "application/fhir+json", "Blood count", "2024-05-01", "document", "labs", b"", "zstd", 5000, b"\x05" * 32
)


def cids(count: int) -> tuple[Cid, ...]:
    return tuple(Cid(number.to_bytes(32, "big")) for number in range(count))


@given(
    title=text(max_size=256),
    kind=sampled_from(KINDS),
    part=binary(min_size=32, max_size=32),
    plain=integers(0, 2**36),
)
def test_manifests_round_trip(title: str, kind: str, part: bytes, plain: int) -> None:
    meta = replace(META, title=title, kind=kind, part_of=part if kind == "view" else b"", plain_bytes=plain)
    manifest = Manifest(meta, 3_000_000, cids(3))

    assert decode_manifest(encode_manifest(manifest)) == manifest
    assert (meta.original == part) is (kind == "view")


@pytest.mark.parametrize(
    ("total", "chunks"),
    [(0, 1), (1, 1), (CHUNK_PLAIN_BYTES, 1), (CHUNK_PLAIN_BYTES + 1, 2), (RECORD_BYTES_MAX, 65_538)],
)
def test_the_number_of_chunks_follows_from_the_length(total: int, chunks: int) -> None:
    assert chunk_count(total) == chunks


def test_a_record_of_64_gib_is_listed_by_three_pages() -> None:
    spans = page_spans(chunk_count(RECORD_BYTES_MAX))
    manifest = Manifest(META, RECORD_BYTES_MAX, cids(3))

    assert spans == ((0, 30_000), (30_000, 60_000), (60_000, 65_538))
    assert manifest.is_paged
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_a_full_page_and_a_full_manifest_fit_a_chunk() -> None:
    listed = cids(MANIFEST_PAGE_CIDS_MAX)
    longest = replace(META, title="\U0001f9ec" * 256, media_type="\U0001f9ec" * 256)
    manifest = encode_manifest(Manifest(longest, MANIFEST_PAGE_CIDS_MAX * CHUNK_PLAIN_BYTES, listed))

    assert max(len(encode_page(listed)), len(manifest)) + 4 <= CHUNK_PLAIN_BYTES
    assert decode_page(encode_page(listed), len(listed)) == listed


def test_a_page_with_another_number_of_ids_is_refused() -> None:
    with pytest.raises(Malformed):
        decode_page(encode_page(cids(3)), 4)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "letter"},
        {"compression": "lzma"},
        {"kind": "view"},
        {"part_of": bytes(32)},
        {"plain_bytes": RECORD_BYTES_MAX + 1},
        {"compression": "none", "plain_bytes": 1},
    ],
)
def test_a_manifest_that_contradicts_itself_is_neither_written_nor_read(change: dict) -> None:
    meta = replace(META, **change)

    with pytest.raises(LocalFault):
        encode_manifest(Manifest(meta, 5000, cids(1)))
    with pytest.raises(Malformed):
        decode_manifest(pack(to_plain(meta), 5000, *cids(1)))


@pytest.mark.parametrize(
    "values", [(), (1, 2, 3), (to_plain(META), "5", bytes(32)), (to_plain(META), 5000, bytes(31))]
)
def test_other_values_are_no_manifest(values: tuple) -> None:
    with pytest.raises(Malformed):
        decode_manifest(pack(*values))


def test_another_number_of_ids_than_the_length_needs_is_refused() -> None:
    with pytest.raises(Malformed):
        decode_manifest(pack(to_plain(META), 5000, *cids(2)))
    with pytest.raises(Malformed):
        decode_manifest(pack(to_plain(META), 5000, *cids(1), "more"))
    with pytest.raises(Malformed):
        decode_manifest(pack(to_plain(META), RECORD_BYTES_MAX + 1, *cids(3)))


def test_a_title_too_long_is_refused_with_a_reason() -> None:
    with pytest.raises(Refused, match="too long"):
        encode_manifest(Manifest(replace(META, title="x" * 257), 5000, cids(1)))


def test_repr_shows_nothing() -> None:
    assert repr(META) == "Meta(hidden)"
    assert "Blood" not in repr(Manifest(META, 5000, cids(1)))
