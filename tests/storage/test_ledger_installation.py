"""How the ledger store takes an installed snapshot: one batch, and what becomes of the blocks that were there (37, 38)."""

from collections.abc import Iterable

import pytest

from protocol.block import Block
from protocol.errors import Unavailable
from protocol.identifiers import Height
from protocol.merkle import Frontier
from protocol.raft.state import HardState
from storage.key_value import Batch
from storage.keyspace import STATE, STATE_OTHER
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore
from tests.node.snapshot_house import built
from tests.protocol import chain
from tests.protocol.chain import CONFIGURATION, certificate_of

AT = 10


def frontier_after(height: int) -> Frontier:
    frontier = Frontier()
    for block in built()[1 : height + 1]:
        frontier = frontier.append(block.leaves())
    return frontier


@pytest.fixture
def rows() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def store(rows: MemoryStore) -> LedgerStore:
    return LedgerStore(rows, CONFIGURATION)


def put(rows: MemoryStore, store: LedgerStore, blocks: Iterable[Block]) -> None:
    batch = Batch()
    store.put_blocks(batch, blocks)
    rows.write(batch, sync=True)


def install(rows: MemoryStore, store: LedgerStore, height: int = AT) -> None:
    batch = Batch()
    store.put_unused_state(batch, [(b"x", b"new"), (b"y", b"new")])
    rows.write(batch, sync=False)
    batch = Batch()
    store.put_installed(batch, built()[height], certificate_of(built()[height]), frontier_after(height))
    rows.write(batch, sync=True)
    store.refresh()


def held(rows: MemoryStore) -> list[int]:
    return [int.from_bytes(key[1:], "big") for key, _ in rows.scan(b"B", b"C")]


def rivals(first: int, last: int) -> list[Block]:
    """Blocks that another leader cut after the block below `first`, and that lost."""
    made: list[Block] = []
    for height in range(first, last + 1):
        before = made[-1] if made else built()[height - 1]
        made.append(chain.successor(before, frontier_after(first - 1), leader=1))
    return made


def test_the_installed_state_is_in_use_with_its_mark_block_and_certificate(
    rows: MemoryStore, store: LedgerStore
) -> None:
    batch = Batch()
    batch.put(STATE + b"x", b"old")
    batch.put(STATE + b"z", b"old")
    rows.write(batch, sync=True)
    install(rows, store)
    assert dict(store.state_rows()) == {b"x": b"new", b"y": b"new"}
    assert store.state(b"z") is None
    assert (store.applied().height, store.applied().frontier) == (AT, frontier_after(AT))
    assert store.certificate(Height(AT)) == certificate_of(built()[AT])
    assert (store.first(), store.history_height(), store.tip_height()) == (AT, 0, AT)
    reopened = LedgerStore(rows, CONFIGURATION)
    assert dict(reopened.state_rows()) == dict(store.state_rows())
    assert reopened.first() == AT


def test_the_state_put_aside_is_not_seen_before_it_is_in_use(rows: MemoryStore, store: LedgerStore) -> None:
    batch = Batch()
    store.put_unused_state(batch, [(b"x", b"new")])
    rows.write(batch, sync=True)
    assert store.state(b"x") is None
    assert list(LedgerStore(rows, CONFIGURATION).state_rows()) == []


def test_37_a_tail_that_lost_is_gone_as_a_whole(rows: MemoryStore, store: LedgerStore) -> None:
    put(rows, store, rivals(1, AT + 4))
    install(rows, store)
    assert held(rows) == [0, AT]
    put(rows, store, built()[AT + 1 : AT + 2])
    assert store.tip_height() == AT + 1


def test_38_newer_blocks_that_continue_the_installed_one_are_kept(
    rows: MemoryStore, store: LedgerStore
) -> None:
    put(rows, store, built()[1 : AT + 3])
    install(rows, store)
    assert held(rows) == [0, AT, AT + 1, AT + 2]
    assert store.block(Height(AT + 2)) == built()[AT + 2]


def test_37_of_a_tail_only_what_is_linked_is_kept(rows: MemoryStore, store: LedgerStore) -> None:
    put(rows, store, rivals(AT + 1, AT + 5))
    put(rows, store, built()[1 : AT + 2])
    install(rows, store)
    assert held(rows) == [0, AT, AT + 1]


def test_what_does_not_continue_an_applied_block_is_removed(rows: MemoryStore, store: LedgerStore) -> None:
    put(rows, store, rivals(4, 7))
    put(rows, store, built()[1:5])
    batch = Batch()
    store.put_unlinked_removal(batch, built()[4])
    rows.write(batch, sync=True)
    assert held(rows) == [0, 1, 2, 3, 4]


def test_a_second_installation_uses_the_first_prefix_again_after_it_was_emptied(
    rows: MemoryStore, store: LedgerStore
) -> None:
    install(rows, store)
    assert store.state_prefix == STATE_OTHER
    start: bytes | None = b""
    while start is not None:
        batch = Batch()
        start = store.put_unused_removal(batch, start, 1)
        rows.write(batch, sync=True)
    assert list(rows.scan(STATE, STATE_OTHER)) == []
    install(rows, store, 20)
    assert store.state_prefix == STATE
    assert (store.first(), store.history_height()) == (20, 0)


def test_blocks_of_the_gap_are_refused_until_the_history_is_whole(
    rows: MemoryStore, store: LedgerStore
) -> None:
    install(rows, store)
    with pytest.raises(Unavailable, match="still being fetched"):
        store.block(Height(AT - 1))
    batch = Batch()
    store.put_history(batch, built()[1:AT], None)
    rows.write(batch, sync=True)
    store.refresh()
    assert (store.first(), store.history, store.history_height()) == (0, None, AT)
    assert tuple(store.blocks(Height(0), Height(AT))) == built()[: AT + 1]


@pytest.mark.parametrize("is_installed", [False, True])
def test_37_that_a_tail_made_way_for_a_certified_block_is_remembered_in_the_same_batch(
    rows: MemoryStore, store: LedgerStore, is_installed: bool
) -> None:
    """Else the next start could not tell what was promised of it from what a disk has lost."""
    put(rows, store, [*built()[1:4], *rivals(4, AT + 2)])
    remember(rows, store)
    batch = Batch()
    if is_installed:
        store.put_installed(batch, built()[AT], certificate_of(built()[AT]), frontier_after(AT))
    else:
        store.put_unlinked_removal(batch, built()[AT])
    rows.write(batch, sync=True)
    assert store.hard_state() == HardState.initial().leaving(Height(AT))


def remember(rows: MemoryStore, store: LedgerStore) -> None:
    """Let a voter have taken part."""
    batch = Batch()
    store.put_hard_state(batch, HardState.initial())
    rows.write(batch, sync=True)


def test_38_a_tail_that_continues_the_certified_block_leaves_the_promises_as_they_are(
    rows: MemoryStore, store: LedgerStore
) -> None:
    put(rows, store, built()[1 : AT + 3])
    remember(rows, store)
    install(rows, store)
    assert store.hard_state() == HardState.initial()
