"""Records come out as they went in, or not at all."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis.strategies import binary, integers, lists

from protocol.codec import pack
from protocol.errors import Corruption, Invalid, LocalFault, Refused
from protocol.identifiers import Cid, Rid
from protocol.key_derivation import hkdf
from protocol.limits import CHUNK_BYTES_MAX, CHUNK_PLAIN_BYTES, MANIFEST_PAGE_CIDS_MAX, RECORD_BYTES_MAX
from protocol.manifest import Manifest, Meta, encode_manifest
from protocol.padding import bucket_bytes
from protocol.sealing import RecordOpener, RecordSealer, SealedChunk, SealedRecord, aead_open, aead_seal

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "sealing.json").read_text())
DEK = b"\x01" * 32
RID = Rid(b"\x02" * 32)
THREE_MIB = bytes(range(256)) * (3 * 4096 + 17)


def meta_of(data: bytes) -> Meta:
    digest = hashlib.sha256(data).digest()
    return Meta("text/plain", "title", "2024", "document", "labs", b"", "none", len(data), digest)


def seal(data: bytes, write_bytes: int = 1 << 20) -> tuple[list[SealedChunk], SealedRecord]:
    """Return all chunks in order (the manifest's last), and the record."""
    sealer = RecordSealer(DEK, RID)
    chunks = []
    for start in range(0, len(data), write_bytes):
        chunks += sealer.write(memoryview(data)[start : start + write_bytes])
    record = sealer.finish(meta_of(data))
    return [*chunks, *record.last_chunks], record


def open_all(chunks: list[SealedChunk], dek: bytes = DEK, rid: Rid = RID) -> bytes:
    opener = RecordOpener(dek, rid, chunks[-1].cid, chunks[-1].data)
    return b"".join(opener.open_chunk(index, chunk.data) for index, chunk in enumerate(chunks[:-1]))


@given(data=binary(max_size=3000))
def test_small_records_round_trip_and_fill_a_bucket(data: bytes) -> None:
    chunks, record = seal(data)

    assert open_all(chunks) == data
    assert [chunk.cid for chunk in chunks] == list(record.cids)
    assert record.manifest_cid == chunks[-1].cid
    assert len(chunks[0].data) == bucket_bytes(len(data) + 16)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        (0, [512]),
        (1, [512]),
        (496, [512]),
        (497, [1024]),
        (CHUNK_PLAIN_BYTES - 1, [1 << 20]),
        (CHUNK_PLAIN_BYTES, [1 << 20]),
        (CHUNK_PLAIN_BYTES + 1, [1 << 20, 1 << 20]),
        (3 * CHUNK_PLAIN_BYTES, [1 << 20] * 3),
    ],
)
def test_the_borders_of_buckets_and_chunks(size: int, sizes: list[int]) -> None:
    data = THREE_MIB[:size]
    chunks, _ = seal(data)

    assert [len(chunk.data) for chunk in chunks[:-1]] == sizes
    assert open_all(chunks) == data
    assert all(hashlib.sha256(chunk.data).digest() == chunk.cid for chunk in chunks)


@settings(max_examples=15, deadline=None)
@given(cuts=lists(integers(0, len(THREE_MIB)), max_size=12))
def test_how_the_bytes_arrive_does_not_matter(cuts: list[int]) -> None:
    whole, _ = seal(THREE_MIB, len(THREE_MIB))
    sealer = RecordSealer(DEK, RID)
    chunks = []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(THREE_MIB)], strict=True):
        chunks += sealer.write(THREE_MIB[start:end])

    chunks += sealer.finish(meta_of(THREE_MIB)).last_chunks

    assert [chunk.cid for chunk in chunks] == [chunk.cid for chunk in whole]
    assert sealer.total_bytes == len(THREE_MIB)


def test_chunks_are_what_the_design_says() -> None:
    """An independent reading of the layout, from the primitives alone."""
    chunks, record = seal(THREE_MIB)
    additional = pack("carechain/v1/chunk", RID)
    key, manifest_key = (
        AESGCM(hkdf(DEK, info)) for info in (b"carechain/v1/chunk", b"carechain/v1/manifest")
    )

    plain = b"".join(
        key.decrypt(bytes(3) + index.to_bytes(8, "big") + bytes([index == 3]), chunk.data, additional)
        for index, chunk in enumerate(chunks[:4])
    )
    manifest = manifest_key.decrypt(bytes(12), chunks[4].data, additional)

    assert plain.startswith(THREE_MIB)
    assert not any(plain[len(THREE_MIB) :])
    assert int.from_bytes(manifest[:4], "big") == len(manifest[4:].rstrip(b"\x00"))
    assert manifest[4:].endswith(bytes(8))
    assert pack(len(THREE_MIB), *record.cids[:4])[1:] in manifest


@given(position=integers(0, 511), change=integers(1, 255))
def test_every_changed_byte_of_a_chunk_or_manifest_is_refused(position: int, change: int) -> None:
    chunks, _ = seal(b"a finding")
    opener = RecordOpener(DEK, RID, chunks[1].cid, chunks[1].data)
    for chunk, reopen in (
        (chunks[0], lambda data: opener.open_chunk(0, data)),
        (chunks[1], lambda data: RecordOpener(DEK, RID, chunks[1].cid, data)),
    ):
        changed = bytearray(chunk.data)
        changed[position] ^= change
        with pytest.raises(Corruption):
            reopen(changed)
        # The same bytes under their own id, as a dishonest author would name them.
        with pytest.raises(Invalid):
            RecordOpener(DEK, RID, Cid(hashlib.sha256(changed).digest()), changed)


def test_reordered_swapped_and_truncated_chunks_are_refused() -> None:
    chunks, _ = seal(THREE_MIB)
    opener = RecordOpener(DEK, RID, chunks[-1].cid, chunks[-1].data)

    for index, data in ((0, chunks[1].data), (3, chunks[0].data), (0, chunks[0].data[:-1]), (0, b"")):
        with pytest.raises(Corruption):
            opener.open_chunk(index, data)
    with pytest.raises(IndexError):
        opener.open_chunk(4, chunks[3].data)


def forge(total: int, plaintexts: list[tuple[int, bool, bytes]]) -> tuple[RecordOpener, list[bytes]]:
    """Return what a dishonest author wrote: a manifest of `total` bytes over chunks made at will, and those chunks."""
    sealer = RecordSealer(DEK, RID)
    chunks = [
        sealer._hand_out(
            sealer._chunk_key.encrypt(
                index.to_bytes(11, "big") + bytes([last]), plaintext, sealer._additional
            )
        ).data
        for index, last, plaintext in plaintexts
    ]
    listing = encode_manifest(Manifest(replace(meta_of(b""), plain_bytes=total), total, tuple(sealer._cids)))
    manifest = sealer._seal_listing(listing, bytes(12))
    return RecordOpener(DEK, RID, manifest.cid, manifest.data), chunks


@pytest.mark.parametrize(
    ("total", "plaintexts"),
    [
        (CHUNK_PLAIN_BYTES + 1, [(1, False, bytes(CHUNK_PLAIN_BYTES)), (0, True, bytes(CHUNK_PLAIN_BYTES))]),
        (CHUNK_PLAIN_BYTES + 1, [(0, True, bytes(CHUNK_PLAIN_BYTES)), (1, True, bytes(CHUNK_PLAIN_BYTES))]),
        (10, [(0, False, bytes(496))]),
        (10, [(0, True, bytes(1008))]),
        (10, [(0, True, bytes(495) + b"\x01")]),
        (500, [(0, True, bytes(496))]),
    ],
    ids=["order", "last too early", "not last", "bucket too large", "padding not zero", "longer than it is"],
)
def test_a_dishonest_author_is_found_out(total: int, plaintexts: list[tuple[int, bool, bytes]]) -> None:
    opener, chunks = forge(total, plaintexts)

    with pytest.raises(Invalid):
        opener.open_chunk(0, chunks[0])


def test_another_dek_or_record_opens_nothing() -> None:
    chunks, _ = seal(b"a finding")

    for dek, rid in ((bytes(32), RID), (DEK, Rid(bytes(32)))):
        with pytest.raises(Invalid):
            open_all(chunks, dek, rid)


def test_a_chunk_is_no_manifest_and_a_manifest_no_chunk() -> None:
    chunks, _ = seal(b"a finding")

    with pytest.raises(Invalid):
        RecordOpener(DEK, RID, chunks[0].cid, chunks[0].data)


def paged_record() -> tuple[RecordSealer, SealedRecord, Meta]:
    """Return the end of a record of 60,001 chunks; the ids of the first 60,000 are made up, for they take 58 GiB."""
    sealer = RecordSealer(DEK, RID)
    sealer._cids = [Cid(number.to_bytes(32, "big")) for number in range(2 * MANIFEST_PAGE_CIDS_MAX)]
    sealer._total_bytes = 2 * MANIFEST_PAGE_CIDS_MAX * CHUNK_PLAIN_BYTES
    sealer.write(b"end")
    meta = replace(meta_of(b""), plain_bytes=sealer.total_bytes)
    return sealer, sealer.finish(meta), meta


def test_a_record_too_long_for_one_manifest_is_listed_by_pages() -> None:
    _, record, meta = paged_record()
    last, *pages, manifest = record.last_chunks
    opener = RecordOpener(DEK, RID, record.manifest_cid, manifest.data)

    assert [chunk.cid.hex() for chunk in record.last_chunks] == VECTORS["paged_last_cids"]
    assert opener.meta == meta
    assert opener.pages == tuple(page.cid for page in pages)
    assert all(len(page.data) <= CHUNK_BYTES_MAX for page in pages)
    for page in pages:
        opener.add_page(page.data)
    assert opener.pages == ()
    assert opener.cids == record.cids[: 2 * MANIFEST_PAGE_CIDS_MAX + 1]
    assert opener.open_chunk(2 * MANIFEST_PAGE_CIDS_MAX, last.data) == b"end"


def test_pages_in_another_order_are_refused() -> None:
    _, record, _ = paged_record()
    opener = RecordOpener(DEK, RID, record.manifest_cid, record.last_chunks[-1].data)

    with pytest.raises(Corruption):
        opener.add_page(record.last_chunks[2].data)


def test_a_record_over_64_gib_is_refused() -> None:
    sealer = RecordSealer(DEK, RID)
    sealer._total_bytes = RECORD_BYTES_MAX

    with pytest.raises(Refused):
        sealer.write(b"x")


def test_a_length_that_was_not_written_is_our_own_fault() -> None:
    sealer = RecordSealer(DEK, RID)
    sealer.write(b"four")

    with pytest.raises(LocalFault):
        sealer.finish(meta_of(b"fives"))


def test_single_use_aead_round_trips_and_refuses() -> None:
    sealed = aead_seal(DEK, b"secret", b"place")

    assert aead_open(DEK, sealed, b"place") == b"secret"
    for key, data, additional in (
        (DEK, sealed, b"other"),
        (bytes(32), sealed, b"place"),
        (DEK, sealed[:-1], b"place"),
    ):
        with pytest.raises(Invalid):
            aead_open(key, data, additional)


@pytest.mark.parametrize("data", [b"", bytes(15)])
def test_a_ciphertext_shorter_than_its_tag_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid):
        aead_open(DEK, data, b"")


@pytest.mark.parametrize("vector", VECTORS["records"], ids=lambda vector: str(vector["bytes"]))
def test_golden_records(vector: dict) -> None:
    data = THREE_MIB[: vector["bytes"]]
    chunks, record = seal(data)

    assert [cid.hex() for cid in record.cids] == vector["cids"]
    assert chunks[-1].data.hex() == vector["manifest"]
    assert open_all(chunks) == data


def test_repr_of_a_chunk_is_short() -> None:
    assert len(repr(SealedChunk(Cid(bytes(32)), bytes(512)))) < 80
