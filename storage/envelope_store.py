"""Envelopes and attachments (wraps, links, chunk lists) by the SHA-256 of their bytes, in the ledger database.

An envelope opens a record and is small; an attachment is what a transaction refers to by hash. Both are checked
against their hash whenever they are read. Writes are staged in a `Batch` that the caller commits with what refers to
them, or before it.
"""

import hashlib
from collections.abc import Iterator

from protocol import limits
from protocol.errors import Corruption, Invalid
from protocol.identifiers import Digest, Rid
from storage.key_value import Batch, KeyValue
from storage.keyspace import ATTACHMENT, ENVELOPE, ENVELOPE_OF_RECORD, prefix_range


class EnvelopeStore:
    """Reads and stages envelopes and attachments of one ledger database. Holds nothing itself; any thread may read."""

    def __init__(self, ledger: KeyValue) -> None:
        self._ledger = ledger

    def put_envelope(self, batch: Batch, rid: Rid, envelope: bytes) -> Digest:
        """Stage a record's envelope, replacing an earlier one of that record; return its hash.

        Raises:
            Invalid: larger than `limits.ENVELOPE_BYTES_MAX`.
        """
        digest = _checked_size("envelope", envelope, limits.ENVELOPE_BYTES_MAX)
        self._delete_older(batch, rid, digest)
        batch.put(ENVELOPE + digest, envelope)
        batch.put(ENVELOPE_OF_RECORD + rid, digest)
        return digest

    def envelope(self, digest: Digest) -> bytes | None:
        """Return the envelope of a hash, or None.

        Raises:
            Corruption: the stored bytes do not have that hash.
        """
        return self._verified(ENVELOPE, digest, "envelope")

    def envelope_of(self, rid: Rid) -> bytes | None:
        """Return a record's envelope, or None.

        Raises:
            Corruption: the envelope named by the record's row is missing or does not have its hash.
        """
        digest = self._ledger.get(ENVELOPE_OF_RECORD + rid)
        if digest is None:
            return None
        envelope = self.envelope(Digest(digest))
        if envelope is None:
            raise Corruption(f"the envelope of record {rid.hex()} is missing: fetch it from another member")
        return envelope

    def delete_envelope(self, batch: Batch, rid: Rid) -> None:
        """Stage that a record's envelope is forgotten; no error when there is none."""
        self._delete_older(batch, rid, None)
        batch.delete(ENVELOPE_OF_RECORD + rid)

    def put_attachment(self, batch: Batch, attachment: bytes) -> Digest:
        """Stage an attachment; return its hash.

        Raises:
            Invalid: larger than `limits.ATTACHMENT_BYTES_MAX`.
        """
        digest = _checked_size("attachment", attachment, limits.ATTACHMENT_BYTES_MAX)
        batch.put(ATTACHMENT + digest, attachment)
        return digest

    def attachment(self, digest: Digest) -> bytes | None:
        """Return the attachment of a hash, or None.

        Raises:
            Corruption: the stored bytes do not have that hash.
        """
        return self._verified(ATTACHMENT, digest, "attachment")

    def delete_attachment(self, batch: Batch, digest: Digest) -> None:
        """Stage that an attachment is forgotten (a revoked wrap); no error when there is none."""
        batch.delete(ATTACHMENT + digest)

    def records(self) -> Iterator[tuple[Rid, Digest]]:
        """Yield (record, hash of its envelope), in the order of record ids."""
        for key, digest in self._ledger.scan(*prefix_range(ENVELOPE_OF_RECORD)):
            yield Rid(key[1:]), Digest(digest)

    def attachments(self) -> Iterator[Digest]:
        """Yield the hashes of all attachments, sorted."""
        for key, _ in self._ledger.scan(*prefix_range(ATTACHMENT)):
            yield Digest(key[1:])

    def _verified(self, prefix: bytes, digest: Digest, what: str) -> bytes | None:
        data = self._ledger.get(prefix + digest)
        if data is not None and hashlib.sha256(data).digest() != digest:
            raise Corruption(f"{what} {digest.hex()} does not match its hash: fetch it from another member")
        return data

    def _delete_older(self, batch: Batch, rid: Rid, kept: Digest | None) -> None:
        older = batch.writes.get(ENVELOPE_OF_RECORD + rid) or self._ledger.get(ENVELOPE_OF_RECORD + rid)
        if older is not None and older != kept:
            batch.delete(ENVELOPE + older)


def _checked_size(what: str, data: bytes, bytes_max: int) -> Digest:
    if len(data) > bytes_max:
        raise Invalid(f"an {what} of {len(data)} bytes is over the limit of {bytes_max}")
    return Digest(hashlib.sha256(data).digest())
