import pytest
import trio
import trio.testing

from node.applier import AppliedHeight, Applier, Certified
from node.receipts import Receipts
from protocol.errors import LocalFault, StorageFull
from protocol.identifiers import Height, Txid
from protocol.merkle import Frontier
from storage.key_value import Batch
from storage.ledger_store import LedgerStore
from storage.memory import MemoryStore
from tests.node.ledger_double import InlineDisk
from tests.protocol import chain
from tests.protocol.chain import CONFIGURATION, certificate_of

CHAIN = chain.build()


def certified(first: int, last: int, *, is_stored: bool = False) -> Certified:
    certificate = certificate_of(CHAIN[last])
    return Certified(CHAIN[first : last + 1], certificate, is_stored)


def applier_on(rows: MemoryStore, receipts: Receipts | None = None) -> Applier:
    return Applier(LedgerStore(rows, CONFIGURATION), InlineDisk(rows), receipts or Receipts())


def contents(rows: MemoryStore) -> dict[bytes, bytes]:
    return dict(rows.scan(b"", b"\xff" * 40))


async def test_blocks_rows_mark_and_proof_become_visible_together() -> None:
    rows = MemoryStore()
    applier = applier_on(rows)
    await applier.apply(certified(1, 3))
    store = LedgerStore(rows, CONFIGURATION)
    assert (store.applied().height, store.applied().hash) == (3, CHAIN[3].hash)
    assert store.applied().tree_size == len(CHAIN[2].transactions)
    assert store.block(Height(2)) == CHAIN[2]
    certificate = store.certificate(Height(3))
    assert certificate is not None
    assert certificate.header == CHAIN[3].header


async def test_applying_again_changes_nothing() -> None:
    rows = MemoryStore()
    applier = applier_on(rows)
    await applier.apply(certified(1, 2))
    before = contents(rows)
    await applier.apply(certified(1, 2))
    await applier.apply(certified(1, 1))
    assert contents(rows) == before
    await applier.apply(certified(1, 3))
    assert applier.height.value == 3


@pytest.mark.parametrize("keep", [0, 1])
async def test_a_crash_at_any_batch_gives_the_same_state_after_applying_again(keep: int) -> None:
    whole, broken = MemoryStore(), MemoryStore()
    await applier_on(whole).apply(certified(1, 2))
    await applier_on(whole).apply(certified(3, 3))

    blocks = Batch()
    LedgerStore.put_blocks(blocks, CHAIN[1:])
    first = applier_on(broken)
    broken.write(blocks, sync=True)
    await first.apply(certified(1, 2, is_stored=True))
    await first.apply(certified(3, 3, is_stored=True))
    assert broken.unsynced == 2
    broken.crash(keep)
    again = applier_on(broken)
    assert again.mark.height == (2 if keep else 0)
    await again.apply(certified(1, 2, is_stored=True))
    await again.apply(certified(3, 3, is_stored=True))
    assert contents(broken) == contents(whole)


async def test_a_gap_or_another_chain_is_never_applied() -> None:
    applier = applier_on(MemoryStore())
    with pytest.raises(LocalFault):
        await applier.apply(certified(2, 3))
    assert applier.height.value == 0
    await applier.apply(certified(1, 1))
    with pytest.raises(LocalFault):
        await applier.apply(certified(3, 3))
    assert applier.height.value == 1


async def test_what_could_not_be_written_is_not_applied_and_resolves_nobody() -> None:
    class FullDisk(InlineDisk):
        async def commit(self, batch: Batch, *, sync: bool) -> None:
            raise StorageFull("full")

    rows, receipts = MemoryStore(), Receipts()
    applier = Applier(LedgerStore(rows, CONFIGURATION), FullDisk(rows), receipts)
    txid = Txid(bytes(32))
    with receipts.expect((txid,)) as waiter, pytest.raises(StorageFull):
        await applier.apply(certified(1, 2))
    assert (applier.mark.height, applier.height.value, waiter.receipts) == (0, 0, {})


async def test_everybody_who_waits_for_a_height_wakes_and_nobody_early(autojump_clock) -> None:
    height = AppliedHeight(Height(3))
    woken: list[tuple[int, int]] = []

    async def wait(above: int) -> None:
        woken.append((above, await height.wait_above(Height(above))))

    async with trio.open_nursery() as nursery:
        for above in (2, 3, 4):
            nursery.start_soon(wait, above)
        await trio.testing.wait_all_tasks_blocked()
        assert woken == [(2, 3)]
        height.advance(Height(4))
        await trio.testing.wait_all_tasks_blocked()
        assert woken == [(2, 3), (3, 4)]
        height.advance(Height(9))
    assert woken[-1] == (4, 9)


async def test_37_blocks_that_lost_do_not_stay_above_what_a_voter_applies_while_it_follows() -> None:
    rows = MemoryStore()
    applier = applier_on(rows)
    rival = chain.successor(CHAIN[1], Frontier(), leader=0)
    above = chain.successor(rival, Frontier(), leader=0)
    tail = Batch()
    LedgerStore.put_blocks(tail, (*CHAIN[1:2], rival, above))
    rows.write(tail, sync=True)

    await applier.apply(certified(1, 2))

    assert LedgerStore(rows, CONFIGURATION).tip_height() == 2
