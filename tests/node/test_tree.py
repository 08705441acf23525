"""The node's tree: whole after following, after a snapshot with its history, after damage, and for a ledger older than it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from node.damage_notice import DamageNotice
from node.ledger_audit import LedgerAudit
from node.tree import Tree
from protocol import merkle
from protocol.errors import Unavailable
from protocol.identifiers import Height, NodeId
from protocol.merkle import Head
from storage import keyspace
from storage.key_value import Batch
from storage.memory import MemoryStore
from storage.tree_store import TreeStore
from tests.node.ledger_double import DirectTransport, InlineWorkers
from tests.node.snapshot_house import BLOCKS_BUILT, Member, built, voters
from tests.node.test_history import filled_in, installed, segment, serving
from tests.protocol.chain import VOTERS

LEAVES = [leaf for block in built() for leaf in block.leaves()]


def tree_of(member: Member, damage: DamageNotice | None = None) -> Tree:
    return Tree(
        member.store,
        member.rows,
        disk=member.disk,
        workers=InlineWorkers(),
        clock=member.clock,
        log=member.log,
        damage=damage or DamageNotice(),
    )


@asynccontextmanager
async def running(tree: Tree) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        yield
        nursery.cancel_scope.cancel()


async def voter() -> Member:
    member = Member({}, VOTERS[0])
    await member.apply()
    return member


async def whole(member: Member) -> None:
    with trio.fail_after(300):
        while TreeStore(member.rows).fill() is not None:
            await trio.sleep(0.05)


def tree_rows(member: Member) -> dict[bytes, bytes]:
    return dict(member.rows.scan(*keyspace.prefix_range(keyspace.TREE)))


def check_whole(tree: Tree, count: int = len(LEAVES)) -> None:
    head = tree.head
    assert head == Head(count, merkle.root_of_leaves(LEAVES[:count]))
    for index in range(count):
        merkle.verify_inclusion(LEAVES[index], index, count, tree.inclusion_proof(index, head), head.root)
        old = merkle.root_of_leaves(LEAVES[:index])
        merkle.verify_consistency(index, count, old, head.root, tree.consistency_proof(index, head))
        assert tree.root(index) == old


async def test_what_is_applied_is_in_the_tree_at_once() -> None:
    tree = tree_of(await voter())
    check_whole(tree)
    with pytest.raises(Unavailable, match="yet, not"):
        tree.consistency_proof(1, Head(len(LEAVES) + 1, tree.head.root))


async def test_after_a_snapshot_the_nodes_below_come_with_the_history(autojump_clock) -> None:
    network: dict[NodeId, DirectTransport] = {}
    members = await voters(network)
    member = await installed(network)
    tree = tree_of(member)
    with pytest.raises(Unavailable):
        tree.inclusion_proof(0, tree.head)
    assert TreeStore(member.rows).fill() is None, "what is on its way is not computed"
    for one in members:
        serving(one, segment(1, BLOCKS_BUILT))
    await filled_in(member)
    check_whole(tree, tree.head.size)


async def test_a_ledger_older_than_its_tree_gets_its_nodes_in_the_background(autojump_clock) -> None:
    member = await voter()
    before = tree_rows(member)
    batch = Batch()
    for key in before:
        batch.delete(key)
    member.rows.write(batch, sync=False)
    tree = tree_of(member)
    with pytest.raises(Unavailable, match="computed again"):
        tree.consistency_proof(3, tree.head)
    async with running(tree):
        await whole(member)
    check_whole(tree)


@pytest.mark.parametrize("spoil", ["changed", "removed", "cut"])
async def test_a_damaged_node_is_named_by_the_audit_and_computed_again(spoil: str, autojump_clock) -> None:
    member = await voter()
    tree = tree_of(member)
    key, value = sorted(tree_rows(member).items())[7]
    batch = Batch()
    if spoil == "removed":
        batch.delete(key)
    else:
        batch.put(key, bytes(32) + value[32:] if spoil == "changed" else value[:-1])
    member.rows.write(batch, sync=False)
    audit = LedgerAudit(member.store, InlineWorkers(), tree=tree)
    async with running(tree):
        findings = audit.begin()
        assert [done async for done, _ in audit.verify(findings)]
        named = findings.problems.sentences()
        assert named
        assert named[0].startswith("node 7 of level 0 of the tree is not what the blocks say")
        with trio.fail_after(300):
            while True:
                await trio.sleep(1)
                again = audit.begin()
                assert [done async for done, _ in audit.verify(again)]
                if TreeStore(member.rows).fill() is None and not again.problems.any:
                    break
    check_whole(tree)
    assert sum(event.startswith("nodes of the tree are damaged") for event in member.events("warning")) == 1


async def test_a_proof_through_a_damaged_node_is_never_given(autojump_clock) -> None:
    member = await voter()
    tree = tree_of(member)
    key, _ = sorted(tree_rows(member).items())[2]
    batch = Batch()
    batch.put(key, bytes(32))
    member.rows.write(batch, sync=False)
    with pytest.raises(Unavailable, match="computed again"):
        tree.inclusion_proof(3, tree.head)
    async with running(tree):
        await trio.sleep(1)
        await whole(member)
    check_whole(tree)


async def test_computing_goes_on_after_a_restart_where_it_ended(autojump_clock, monkeypatch) -> None:
    monkeypatch.setattr("node.tree._BLOCKS_PER_PORTION", 4)
    member = await voter()
    batch = Batch()
    for key in tree_rows(member):
        batch.delete(key)
    member.rows.write(batch, sync=False)
    async with running(tree_of(member)):
        while (fill := TreeStore(member.rows).fill()) is not None and fill.height < 8:
            await trio.sleep(0.01)
    assert fill is not None
    assert 8 <= fill.height < BLOCKS_BUILT
    again = tree_of(member)
    async with running(again):
        await whole(member)
    check_whole(again)


async def test_a_block_that_cannot_be_read_is_waited_for(autojump_clock) -> None:
    member = await voter()
    key = keyspace.BLOCK + keyspace.sequence_key(9)
    raw = member.rows.get(key)
    assert raw is not None
    batch = Batch()
    batch.delete(key)
    for row in tree_rows(member):
        batch.delete(row)
    member.rows.write(batch, sync=False)
    tree = tree_of(member)
    async with running(tree):
        await trio.sleep(10)
        assert TreeStore(member.rows).fill() is not None
        mended = Batch()
        mended.put(key, raw)
        member.rows.write(mended, sync=False)
        await whole(member)
    check_whole(tree)
    assert member.store.block(Height(9)).raw == raw


async def test_bytes_that_cannot_be_read_are_told_to_whoever_mends_tables(autojump_clock) -> None:
    member, damage = await voter(), DamageNotice()
    tree = tree_of(member, damage)
    assert isinstance(member.rows, MemoryStore)
    member.rows.damage([sorted(tree_rows(member))[3]])
    with pytest.raises(Unavailable, match="computed again"):
        tree.inclusion_proof(5, tree.head)
    async with running(tree):
        with trio.fail_after(60):
            await damage.wait()
    assert TreeStore(member.rows).fill() is not None
