"""Seal a record into chunks of ciphertext, and open them again (cryptography.md section 4).

    DEK ── HKDF "carechain/v1/chunk" ────► k_chunk   chunk i   AES-256-GCM, nonce = 000000 ‖ u64be(i) ‖ last(1)  (STREAM)
        └─ HKDF "carechain/v1/manifest" ─► k_man     manifest  nonce = 12 zero bytes
                                                     page j    nonce = 000000 ‖ u64be(j + 1) ‖ 00

aad = enc("carechain/v1/chunk", rid) everywhere. A chunk holds 1,048,560 bytes of plaintext; the last one is filled with
zeros up to its bucket (`protocol/padding.py`). An id is the SHA-256 of the ciphertext. Every record has its own random
DEK, drawn by the caller: equal documents never give equal chunks, and no nonce is ever used twice under a key.

Order of calls: `RecordSealer.write`… then `finish` once; `RecordOpener` with the manifest, then `add_page` for each of
`pages` in order (none below 29 GiB), then `open_chunk` in any order, from any thread.
"""

import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.codec import pack
from protocol.errors import Corruption, Invalid, Refused
from protocol.identifiers import Cid, Rid
from protocol.key_derivation import KEY_BYTES, hkdf
from protocol.limits import CHUNK_PLAIN_BYTES, RECORD_BYTES_MAX
from protocol.manifest import (
    Manifest,
    Meta,
    decode_manifest,
    decode_page,
    encode_manifest,
    encode_page,
    page_spans,
)
from protocol.padding import PREFIX_BYTES, TAG_BYTES, bucket_bytes, pad, unpad

Bytes = bytes | bytearray | memoryview

_ZERO_NONCE = bytes(12)
_CHUNK = "carechain/v1/chunk"
_MANIFEST = b"carechain/v1/manifest"


def aead_seal(key: bytes, plaintext: bytes, additional: bytes) -> bytes:
    """Return AES-256-GCM(key, zero nonce, plaintext), 16 bytes longer. The key must never seal anything else."""
    return AESGCM(key).encrypt(_ZERO_NONCE, plaintext, additional)


def aead_open(key: bytes, ciphertext: bytes, additional: bytes) -> bytes:
    """Return what `aead_seal` sealed.

    Raises:
        Invalid: wrong key, wrong additional data, or changed bytes.
    """
    return _decrypt(AESGCM(key), _ZERO_NONCE, ciphertext, additional)


@dataclass(frozen=True, slots=True, repr=False)
class SealedChunk:
    """One ciphertext, at most 1 MiB, and its id."""

    cid: Cid
    data: bytes

    def __repr__(self) -> str:
        return f"SealedChunk({self.cid.hex()[:16]}, {len(self.data)} bytes)"


@dataclass(frozen=True, slots=True)
class SealedRecord:
    """The end of a sealed record: its last chunks, still to be stored, and what names all of them.

    `last_chunks` are the last chunk of data, then pages if any, then the manifest. `cids` are all ids of the record in the
    order in which they were handed out, the manifest's last. `padding_bytes` are the zeros in all of them.
    """

    last_chunks: tuple[SealedChunk, ...]
    manifest_cid: Cid
    cids: tuple[Cid, ...]
    padding_bytes: int


class RecordSealer:
    """Turns a stream of bytes into chunks; holds at most one chunk of plaintext. For one record and one thread.

    `dek` is 32 fresh random bytes, never used for another record: nonces are counters.
    """

    def __init__(self, dek: bytes, rid: Rid) -> None:
        assert len(dek) == KEY_BYTES, "a DEK is 32 bytes"
        self._chunk_key, self._manifest_key = _record_keys(dek)
        self._additional = _additional(rid)
        self._pending = (
            bytearray()
        )  # grows to one chunk, then is written over: a fresh one for each chunk is slow
        self._pending_bytes = 0
        self._cids: list[Cid] = []
        self._total_bytes = self._padding_bytes = 0
        self._finished = False

    @property
    def total_bytes(self) -> int:
        """How many bytes were written."""
        return self._total_bytes

    def write(self, data: Bytes) -> list[SealedChunk]:
        """Take the next bytes and return the chunks they complete: one for each 1,048,560 bytes.

        Up to a whole chunk stays pending, because only `finish` knows which one is the last.

        Raises:
            Refused: the record passes 64 GiB.
        """
        assert not self._finished, "a finished record takes no more bytes"
        view = memoryview(data).cast("B")
        if self._total_bytes + len(view) > RECORD_BYTES_MAX:
            raise Refused(f"a record may have at most {RECORD_BYTES_MAX >> 30} GiB")
        self._total_bytes += len(view)
        sealed = []
        while len(view):
            if self._pending_bytes == CHUNK_PLAIN_BYTES:
                sealed.append(self._seal_chunk(self._pending, last=False))
                self._pending_bytes = 0
            if not self._pending_bytes and len(view) > CHUNK_PLAIN_BYTES:
                # Straight from the caller's memory: large writes are never copied.
                sealed.append(self._seal_chunk(view[:CHUNK_PLAIN_BYTES], last=False))
                view = view[CHUNK_PLAIN_BYTES:]
            else:
                view = self._keep(view)
        return sealed

    def finish(self, meta: Meta) -> SealedRecord:
        """Seal what is pending and the manifest. `meta.plain_bytes` and `meta.sha256` are the uncompressed document's.

        Raises:
            Refused: a field of `meta` is over its bounds.
            LocalFault: `meta` contradicts itself or the number of bytes written.
        """
        assert not self._finished, "a record is finished once"
        self._finished = True
        del self._pending[self._pending_bytes :]
        padding = bytes(_last_chunk_bytes(self._total_bytes) - TAG_BYTES - self._pending_bytes)
        self._padding_bytes += len(padding)
        self._pending.extend(padding)
        sealed = [self._seal_chunk(self._pending, last=True)]
        self._pending = bytearray()
        listed = data_cids = tuple(self._cids)
        manifest = Manifest(meta, self._total_bytes, listed)
        if manifest.is_paged:
            pages = [
                self._seal_listing(encode_page(data_cids[first:end]), _page_nonce(number))
                for number, (first, end) in enumerate(page_spans(len(data_cids)))
            ]
            sealed += pages
            manifest = Manifest(meta, self._total_bytes, tuple([page.cid for page in pages]))
        sealed.append(self._seal_listing(encode_manifest(manifest), _ZERO_NONCE))
        return SealedRecord(tuple(sealed), sealed[-1].cid, tuple(self._cids), self._padding_bytes)

    def _keep(self, view: memoryview) -> memoryview:
        """Move into the pending chunk what it has room for; return the rest."""
        kept = view[: CHUNK_PLAIN_BYTES - self._pending_bytes]
        start, self._pending_bytes = self._pending_bytes, self._pending_bytes + len(kept)
        if len(self._pending) < self._pending_bytes:
            del self._pending[start:]
            self._pending += kept
        else:
            with memoryview(self._pending) as pending:
                pending[start : self._pending_bytes] = kept
        return view[len(kept) :]

    def _seal_chunk(self, plaintext: Bytes, *, last: bool) -> SealedChunk:
        nonce = _chunk_nonce(len(self._cids), last=last)
        return self._hand_out(self._chunk_key.encrypt(nonce, plaintext, self._additional))

    def _seal_listing(self, data: bytes, nonce: bytes) -> SealedChunk:
        padded = pad(data)
        self._padding_bytes += len(padded) - PREFIX_BYTES - len(data)
        return self._hand_out(self._manifest_key.encrypt(nonce, padded, self._additional))

    def _hand_out(self, ciphertext: bytes) -> SealedChunk:
        cid = Cid(hashlib.sha256(ciphertext).digest())
        self._cids.append(cid)
        return SealedChunk(cid, ciphertext)


class RecordOpener:
    """Opens the chunks of one record, each checked against the manifest: id, place, length, last or not, padding.

    Two refusals, two remedies. Corruption: these are not the bytes that the author's manifest names; ask another replica.
    Invalid or Malformed: they are, and they do not open; the author sealed rubbish (or the DEK is another record's).
    """

    def __init__(self, dek: bytes, rid: Rid, manifest_cid: Cid, manifest_ciphertext: Bytes) -> None:
        self._chunk_key, self._manifest_key = _record_keys(dek)
        self._additional = _additional(rid)
        self.manifest = decode_manifest(self._open_listing(manifest_cid, manifest_ciphertext, _ZERO_NONCE))
        self._cids = [] if self.manifest.is_paged else list(self.manifest.listed)
        self._spans = page_spans(self.manifest.chunk_count) if self.manifest.is_paged else ()
        self._pages_added = 0

    @property
    def meta(self) -> Meta:
        """What the record is."""
        return self.manifest.meta

    @property
    def pages(self) -> tuple[Cid, ...]:
        """The pages still to be added, in order; chunks can be opened when there are none."""
        return self.manifest.listed[self._pages_added :] if self.manifest.is_paged else ()

    @property
    def cids(self) -> tuple[Cid, ...]:
        """The ids of the chunks in order, as far as they are known."""
        return tuple(self._cids)

    def add_page(self, ciphertext: Bytes) -> None:
        """Take the first of `pages`.

        Raises:
            Corruption: not the bytes that the manifest names.
            Invalid, Malformed: the author sealed something else.
        """
        first, end = self._spans[self._pages_added]
        page = self._open_listing(self.pages[0], ciphertext, _page_nonce(self._pages_added))
        self._cids += decode_page(page, end - first)
        self._pages_added += 1

    def open_chunk(self, index: int, ciphertext: Bytes) -> bytes:
        """Return the plaintext of chunk `index`, padding removed.

        Raises:
            Corruption: not the bytes that the manifest names.
            Invalid: the author sealed something else, or did not pad the last chunk to its bucket with zeros.
        """
        _check_cid(self._cids[index], ciphertext)
        total, last = self.manifest.total_bytes, index == self.manifest.chunk_count - 1
        length = _last_chunk_bytes(total) if last else CHUNK_PLAIN_BYTES + TAG_BYTES
        if len(ciphertext) != length:
            raise Invalid(f"chunk {index} has {len(ciphertext)} bytes instead of {length}")
        nonce = _chunk_nonce(index, last=last)
        plaintext = _decrypt(self._chunk_key, nonce, ciphertext, self._additional)
        if not last:
            return plaintext
        used = total - index * CHUNK_PLAIN_BYTES
        if plaintext.count(0, used) != len(plaintext) - used:
            raise Invalid("the padding of a record is not zeros")
        return plaintext[:used]

    def _open_listing(self, cid: Cid, ciphertext: Bytes, nonce: bytes) -> bytes:
        _check_cid(cid, ciphertext)
        return unpad(_decrypt(self._manifest_key, nonce, ciphertext, self._additional))


def _record_keys(dek: bytes) -> tuple[AESGCM, AESGCM]:
    return AESGCM(hkdf(dek, _CHUNK.encode())), AESGCM(hkdf(dek, _MANIFEST))


def _additional(rid: Rid) -> bytes:
    return pack(_CHUNK, rid)


def _chunk_nonce(index: int, *, last: bool) -> bytes:
    return index.to_bytes(11, "big") + (b"\x01" if last else b"\x00")


def _page_nonce(number: int) -> bytes:
    # From 1 on, because the manifest itself has the zero nonce under the same key.
    return (number + 1).to_bytes(11, "big") + b"\x00"


def _last_chunk_bytes(total_bytes: int) -> int:
    """Size of the last ciphertext: its bucket, or a whole chunk where others precede it."""
    if total_bytes > CHUNK_PLAIN_BYTES:
        return CHUNK_PLAIN_BYTES + TAG_BYTES
    return bucket_bytes(total_bytes + TAG_BYTES)


def _check_cid(cid: Cid, ciphertext: Bytes) -> None:
    if hashlib.sha256(ciphertext).digest() != cid:
        raise Corruption(f"chunk {cid.hex()[:16]} does not have the bytes that its id names")


def _decrypt(key: AESGCM, nonce: bytes, ciphertext: Bytes, additional: bytes) -> bytes:
    try:
        return key.decrypt(nonce, ciphertext, additional)
    except InvalidTag:
        raise Invalid("a ciphertext does not open with this key in this place") from None
