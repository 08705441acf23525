import pytest

from protocol import codec, ledger_rows
from protocol.errors import Corruption
from protocol.identifiers import Digest, Height, NodeId, Rid, Term, Txid, Vid
from protocol.raft.state import HardState
from storage import keyspace
from storage.key_value import Batch
from storage.ledger_store import AppliedMark, LedgerStore
from storage.memory import MemoryStore
from tests.protocol import chain
from tests.protocol.chain import CONFIGURATION
from tests.protocol.ledgers import Ledger, configuration, grant_to, key, named, record_commit, vault_open

CHAIN = chain.build()


def filled(rows: MemoryStore) -> LedgerStore:
    store = LedgerStore(rows, CONFIGURATION)
    batch = Batch()
    store.put_blocks(batch, CHAIN[1:])
    rows.write(batch, sync=True)
    return store


def mark(height: int) -> AppliedMark:
    return AppliedMark(Height(height), CHAIN[height].hash, 0, 0, ())


def height_key(prefix: bytes, height: int) -> bytes:
    return prefix + height.to_bytes(8, "big")


def put(rows: MemoryStore, name: bytes, value: bytes) -> None:
    batch = Batch()
    batch.put(name, value)
    rows.write(batch, sync=True)


def test_a_new_ledger_begins_with_genesis_and_opens_again_as_it_was() -> None:
    rows = MemoryStore()
    for _ in range(2):
        store = LedgerStore(rows, CONFIGURATION)
        assert (store.tip_height(), store.applied().height, store.hard_state()) == (0, 0, None)
        assert store.block(Height(0)) == CHAIN[0]
        assert not store.is_rebuilt()


def test_a_ledger_of_another_network_is_not_opened() -> None:
    rows = MemoryStore()
    LedgerStore(rows, CONFIGURATION)
    with pytest.raises(Corruption, match="another network"):
        LedgerStore(rows, configuration("hospital"))


def test_blocks_come_back_in_order_and_a_missing_or_misplaced_one_is_named() -> None:
    rows = MemoryStore()
    store = filled(rows)
    assert tuple(store.blocks(Height(0), Height(3))) == CHAIN
    assert (store.tip_height(), store.header(Height(2)), store.hash(Height(2))) == (
        3,
        CHAIN[2].header,
        CHAIN[2].hash,
    )
    with pytest.raises(Corruption, match="block 4"):
        store.block(Height(4))
    put(rows, height_key(keyspace.BLOCK, 2), CHAIN[3].raw)
    with pytest.raises(Corruption, match="block 2 is stored as 3"):
        store.block(Height(2))
    put(rows, height_key(keyspace.BLOCK, 2), b"\xc1")
    with pytest.raises(Corruption, match="block 2"):
        store.block(Height(2))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (keyspace.APPLIED, lambda store: store.applied()),
        (keyspace.HARD_STATE, lambda store: store.hard_state()),
        (height_key(keyspace.CERTIFICATE, 2), lambda store: store.certificate(Height(2))),
        (height_key(keyspace.CERTIFICATE, 2), lambda store: store.certificate_at_or_above(Height(1))),
        (keyspace.STATE + ledger_rows.vault_key(Vid(bytes(32))), lambda store: store.vault(Vid(bytes(32)))),
        (
            keyspace.STATE + ledger_rows.receipt_key(Txid(bytes(32))),
            lambda store: store.receipt(Txid(bytes(32))),
        ),
    ],
)
def test_a_row_that_does_not_decode_is_damage_here_and_no_peers_fault(name, read) -> None:
    rows = MemoryStore()
    store = filled(rows)
    put(rows, name, b"\x91\xc3")
    with pytest.raises(Corruption):
        read(store)


def test_truncation_takes_everything_from_a_height_and_never_what_is_applied() -> None:
    rows = MemoryStore()
    store = filled(rows)
    batch = Batch()
    store.put_applied(batch, {}, mark(1), chain.linked_certificate(CHAIN))
    rows.write(batch, sync=True)
    batch = Batch()
    store.truncate(batch, Height(2))
    store.put_blocks(batch, CHAIN[2:3])
    rows.write(batch, sync=True)
    assert store.tip_height() == 2
    assert store.block(Height(2)) == CHAIN[2]
    with pytest.raises(AssertionError):
        store.truncate(Batch(), Height(1))


def test_certificates_are_found_from_both_sides() -> None:
    rows = MemoryStore()
    store = filled(rows)
    assert store.certificate(Height(3)) is None
    assert store.certificate_at_or_above(Height(0)) is None
    batch = Batch()
    store.put_applied(batch, {}, mark(2), chain.linked_certificate(CHAIN))
    rows.write(batch, sync=True)
    assert store.certificate(Height(1)) is None
    assert store.certificate(Height(2)) == store.certificate(Height(9)) == chain.linked_certificate(CHAIN)
    assert (
        store.certificate_at_or_above(Height(0))
        == store.certificate_at_or_above(Height(2))
        == chain.linked_certificate(CHAIN)
    )
    assert store.certificate_at_or_above(Height(3)) is None


def test_rows_mark_and_certificate_are_lost_together() -> None:
    rows = MemoryStore()
    store = filled(rows)
    batch = Batch()
    store.put_applied(batch, {b"xrow": b"value"}, mark(2), chain.linked_certificate(CHAIN))
    rows.write(batch, sync=False)
    assert (store.state(b"xrow"), store.applied().height) == (b"value", 2)
    rows.crash(0)
    assert (store.state(b"xrow"), store.applied().height, store.certificate(Height(2))) == (None, 0, None)


def test_a_row_written_as_none_is_deleted() -> None:
    rows = MemoryStore()
    store = filled(rows)
    for value in (b"value", None):
        batch = Batch()
        store.put_applied(batch, {b"xrow": value}, mark(2), chain.linked_certificate(CHAIN))
        rows.write(batch, sync=True)
        assert store.state(b"xrow") == value


def test_hard_state_round_trips_and_a_rebuild_ends_with_it_in_one_batch() -> None:
    rows = MemoryStore()
    LedgerStore.mark_rebuilt(rows)
    store = LedgerStore(rows, CONFIGURATION)
    assert store.is_rebuilt()
    state = HardState(
        0,
        0,
        Term(9),
        bytes(32),
        Term(0),
        Height(0),
        bytes(32),
        Height(0),
        bytes(32),
        Height(0),
        Digest(bytes(32)),
        Height(0),
    )
    batch = Batch()
    store.put_hard_state(batch, state)
    store.clear_rebuilt(batch)
    rows.write(batch, sync=True)
    assert (store.is_rebuilt(), store.hard_state()) == (False, state)


def test_vaults_list_their_own_records_and_events_in_ledger_order() -> None:
    ledger = Ledger(configuration("hospital", "clinic", "lab"))
    for name in ("vault", "other"):
        assert ledger.verdict(vault_open(ledger, name), name + "/auth", "hospital") == "accepted"
    grant = grant_to(ledger)
    assert ledger.verdict(grant, "vault/auth") == "accepted"
    for rid in ("z", "a", "m"):
        commit = record_commit(ledger, rid)
        assert ledger.verdict(commit, "hospital") == "accepted"
    rows = MemoryStore()
    store = LedgerStore(rows, ledger.genesis)
    batch = Batch()
    for row, value in ledger.rows.items():
        batch.put(keyspace.STATE + row, value)
    rows.write(batch, sync=True)
    vid = Vid(named("vault"))
    assert store.records_of(vid) == tuple(sorted(Rid(named(rid)) for rid in ("z", "a", "m")))
    events = store.events_of(vid)
    assert len(events) == 5
    assert [receipt.height for receipt in map(store.receipt, events) if receipt] == sorted(
        receipt.height for receipt in map(store.receipt, events) if receipt
    )
    assert store.events_of(Vid(b"\xff" * 32)) == ()
    vault, record, state = store.vault(vid), store.record(Rid(named("a"))), store.grant(ledger.txid(grant))
    assert vault is not None
    assert vault.custodian == NodeId(key("hospital").public)
    assert record is not None
    assert record.vid == vid
    assert state is not None
    assert state.grant == grant
    assert codec.decode(codec.encode(vault), type(vault)) == vault
