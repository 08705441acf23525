import hashlib

import pytest

from protocol import limits
from protocol.errors import Corruption, Invalid
from protocol.identifiers import Digest, Rid
from storage.envelope_store import EnvelopeStore
from storage.key_value import Batch
from storage.keyspace import ATTACHMENT, ENVELOPE
from storage.memory import MemoryStore

RID = Rid(b"\7" * 32)


def committed(ledger: MemoryStore, batch: Batch) -> None:
    ledger.write(batch, sync=True)


def test_an_envelope_is_found_by_hash_and_by_record() -> None:
    ledger, batch = MemoryStore(), Batch()
    store = EnvelopeStore(ledger)
    digest = store.put_envelope(batch, RID, b"envelope")
    assert store.envelope(digest) is None
    committed(ledger, batch)

    assert digest == hashlib.sha256(b"envelope").digest()
    assert store.envelope(digest) == store.envelope_of(RID) == b"envelope"
    assert list(store.records()) == [(RID, digest)]
    assert store.envelope_of(Rid(bytes(32))) is None


@pytest.mark.parametrize("same_batch", [True, False])
def test_a_new_envelope_replaces_the_old_one_of_its_record(same_batch: bool) -> None:
    ledger, batch = MemoryStore(), Batch()
    store = EnvelopeStore(ledger)
    old = store.put_envelope(batch, RID, b"old")
    if not same_batch:
        committed(ledger, batch)
        batch = Batch()
    new = store.put_envelope(batch, RID, b"new")
    committed(ledger, batch)
    assert (store.envelope(old), store.envelope(new)) == (None, b"new")

    batch = Batch()
    store.delete_envelope(batch, RID)
    committed(ledger, batch)
    assert list(ledger.scan(b"", b"\xff")) == []


def test_attachments_come_and_go() -> None:
    ledger, batch = MemoryStore(), Batch()
    store = EnvelopeStore(ledger)
    digest = store.put_attachment(batch, b"wrap")
    committed(ledger, batch)
    assert store.attachment(digest) == b"wrap"
    assert list(store.attachments()) == [digest]
    batch = Batch()
    store.delete_attachment(batch, digest)
    committed(ledger, batch)
    assert store.attachment(digest) is None


def test_what_is_too_large_is_refused() -> None:
    store = EnvelopeStore(MemoryStore())
    with pytest.raises(Invalid, match="over the limit"):
        store.put_envelope(Batch(), RID, bytes(limits.ENVELOPE_BYTES_MAX + 1))
    with pytest.raises(Invalid, match="over the limit"):
        store.put_attachment(Batch(), bytes(limits.ATTACHMENT_BYTES_MAX + 1))


def test_bytes_under_a_wrong_hash_and_a_missing_envelope_are_corruption() -> None:
    ledger, batch = MemoryStore(), Batch()
    store = EnvelopeStore(ledger)
    digest = store.put_envelope(batch, RID, b"envelope")
    batch.put(ATTACHMENT + bytes(32), b"x")
    batch.put(ENVELOPE + digest, b"changed")
    committed(ledger, batch)
    with pytest.raises(Corruption, match=digest.hex()):
        store.envelope_of(RID)
    with pytest.raises(Corruption, match="does not match its hash"):
        store.attachment(Digest(bytes(32)))
    batch = Batch()
    batch.delete(ENVELOPE + digest)
    committed(ledger, batch)
    with pytest.raises(Corruption, match="is missing"):
        store.envelope_of(RID)
