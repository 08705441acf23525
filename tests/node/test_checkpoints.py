"""Members sign the same heads, gather each other's signatures, and believe nobody."""

from dataclasses import replace

import pytest
import trio

from node.applier import Certified
from node.checkpoints import CHANNEL
from node.evidence import EvidenceDesk, convicted
from node.hearing import Hearing
from protocol.checkpoint import SignedCheckpoint
from protocol.errors import Invalid, RemoteFault, Unavailable
from protocol.identifiers import Digest, Height
from protocol.merkle import Head
from protocol.signing import SigningKey
from storage import keyspace
from storage.key_value import Batch
from tests.node.ledger_double import InlineWorkers, LedgerDouble
from tests.node.log_house import Signer, opened, order, other_root, signed_by, signer_of
from tests.protocol.chain import filled


def house(voters: int = 4, observers: int = 0) -> tuple[LedgerDouble, tuple[Signer, ...]]:
    ledger = LedgerDouble(voters, observers=observers)
    return ledger, tuple(signer_of(ledger, member) for member in ledger.members)


def newest(signer: Signer) -> SignedCheckpoint:
    note = signer.checkpoints.newest()
    assert note is not None
    return note


async def test_when_all_is_quiet_every_member_has_the_head_signed_by_all(autojump_clock) -> None:
    ledger, signers = house(4, observers=1)
    async with opened(ledger, *signers):
        await trio.sleep(3)
        assert all(signer.checkpoints.newest() is None for signer in signers), "an empty tree is not signed"
        await order(ledger, 1, 2, 3)
        await trio.sleep(15)
    notes = {newest(signer).encode() for signer in signers}
    assert len(notes) == 1, "the same bytes, whoever gathered them"
    assert signers[0].names(newest(signers[0])) == 4
    head = signers[0].tree.head
    assert newest(signers[-1]).checkpoint.size == head.size == 3
    assert newest(signers[-1]).checkpoint.root == head.root


async def test_under_load_all_sign_the_same_heads_and_at_most_one_a_second(autojump_clock) -> None:
    ledger, signers = house(4)
    sizes: set[int] = set()
    async with opened(ledger, signers[0]), trio.open_nursery() as nursery:
        for late, signer in enumerate(signers[1:], start=1):
            await trio.sleep(0.2 * late)
            nursery.start_soon(signer.checkpoints.run)
        for number in range(100):
            await order(ledger, number)
            await trio.sleep(0.1)
            sizes |= set(signers[0].checkpoints._book.sizes)
            if number > 40:
                assert signers[0].names(newest(signers[0])) >= 3
                assert newest(signers[0]).checkpoint.size > number - 30
        nursery.cancel_scope.cancel()
    assert len(sizes) <= 13


async def test_a_member_that_was_away_learns_all_signatures(autojump_clock) -> None:
    ledger, signers = house(4)
    signers[3].member.transport.is_up = False
    async with opened(ledger, *signers[:3]):
        await order(ledger, 1)
        await trio.sleep(5)
        assert signers[0].names(newest(signers[0])) == 3
        signers[3].member.transport.is_up = True
        store = ledger.members[0].store
        blocks, certificate = (
            tuple(store.blocks(Height(1), store.tip_height())),
            store.certificate(store.tip_height()),
        )
        assert certificate is not None
        await signers[3].member.applier.apply(Certified(blocks, certificate, is_stored=False))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(signers[3].checkpoints.run)
            await trio.sleep(15)
            nursery.cancel_scope.cancel()
    assert signers[3].names(newest(signers[3])) == 4
    assert signers[0].names(newest(signers[0])) == 4


async def test_without_a_quorum_of_signatures_nothing_is_shown(autojump_clock) -> None:
    ledger, signers = house(4)
    async with opened(ledger, *signers[:2]):
        await order(ledger, 1)
        await trio.sleep(15)
        assert signers[0].checkpoints.newest() is None


async def test_an_observer_gathers_and_signs_nothing(autojump_clock) -> None:
    ledger, signers = house(1, observers=1)
    async with opened(ledger, *signers):
        await order(ledger, 1)
        await trio.sleep(15)
    assert signers[1].names(newest(signers[1])) == 1


async def test_after_a_restart_the_checkpoint_is_there_and_no_smaller_head_is_signed(autojump_clock) -> None:
    ledger, signers = house(1)
    async with opened(ledger, *signers):
        await order(ledger, 1, 2)
        await trio.sleep(5)
    again = signer_of(ledger, signers[0].member)
    again.checkpoints._load()
    assert newest(again).encode() == newest(signers[0]).encode()
    assert again.checkpoints._sign(again.checkpoints._due()) == 0
    again.member.applier.second = Head(1, again.tree.root(1))
    assert again.checkpoints._sign(again.checkpoints._due()) == 0


async def test_false_foreign_and_forked_notes_are_refused_and_a_fork_is_kept(autojump_clock) -> None:
    ledger, signers = house(4)
    async with opened(ledger, *signers):
        await order(ledger, 1, 2, 3)
        await trio.sleep(5)
        good, mine = newest(signers[0]), signers[0].checkpoints
        with pytest.raises(Invalid, match="does not verify"):
            mine.add(other_root(good))
        with pytest.raises(Invalid, match="not a checkpoint of this network"):
            mine.add(replace(good, checkpoint=replace(good.checkpoint, origin="carechain/other")))
        with pytest.raises(Invalid, match="not a checkpoint of this network"):
            mine.add(replace(good, checkpoint=replace(good.checkpoint, extensions=("more",))))
        assert not mine.add(good)
        with pytest.raises(Unavailable):
            mine.add(signed_by(signers, 4, Digest(filled("ahead"))))
        assert not mine.trouble
        fork = signed_by(signers[1:2], 3, Digest(filled("another history")))
        with pytest.raises(Invalid, match="another ledger"):
            mine.add(fork)
        assert mine.conflict == fork
        assert "two histories" in mine.trouble
        assert newest(signers[0]).encode() == good.encode()


async def test_what_strangers_sign_is_passed_over(autojump_clock) -> None:
    ledger, signers = house(1)
    stranger = house(1)[1][0]
    async with opened(ledger, *signers):
        await order(ledger, 1)
        await trio.sleep(5)
        note = newest(signers[0])
        alien = LedgerDouble(1, seed="alien")
        by_alien = signed_by((signer_of(alien, alien.members[0]),), 1, note.checkpoint.root).signatures
        assert not signers[0].checkpoints.add(SignedCheckpoint(note.checkpoint, by_alien))
        assert newest(signers[0]).encode() == note.encode()
    assert stranger.checkpoints.newest() is None


async def test_a_member_that_answers_rubbish_is_counted_and_harms_nobody(autojump_clock) -> None:
    ledger, signers = house(4)

    async def rubbish(_peer: object, _body: bytes) -> bytes:
        return b"rubbish"

    async with opened(ledger, *signers[:3]):
        await trio.sleep(1)
        signers[3].member.transport.serve(CHANNEL, rubbish)
        await order(ledger, 1)
        await trio.sleep(15)
        with pytest.raises(RemoteFault):
            await signers[0].member.transport.call(
                signers[1].member.member.node, CHANNEL, b"rubbish", timeout_ms=1_000
            )
    assert signers[0].names(newest(signers[0])) == 3
    assert "peer broke the protocol" in signers[0].events("warning")


async def test_few_checkpoints_are_kept_in_memory_and_on_disk(autojump_clock) -> None:
    ledger, signers = house(1)
    async with opened(ledger, *signers):
        for number in range(40):
            await order(ledger, number)
            await trio.sleep(1)
        assert len(signers[0].checkpoints._book.sizes) <= 17
        kept = list(signers[0].member.rows.scan(*keyspace.prefix_range(keyspace.CHECKPOINT)))
        assert len(kept) == 1


async def test_a_member_that_hangs_keeps_nobody_from_signing_together(autojump_clock) -> None:
    ledger, signers = house(4)

    async def hangs(_peer: object, _body: bytes) -> bytes:
        await trio.sleep_forever()
        return b""

    async with opened(ledger, *signers[:3]):
        await trio.sleep(1)
        signers[3].member.transport.serve(CHANNEL, hangs)
        for number in range(60):
            await order(ledger, number)
            await trio.sleep(0.2)
        assert signers[0].names(newest(signers[0])) == 3
        assert newest(signers[0]).checkpoint.size > 45


async def test_a_member_that_signs_every_size_costs_little_and_hinders_nobody(autojump_clock) -> None:
    ledger, signers = house(4)
    flooder = signers[3]
    async with opened(ledger, *signers[:3]):
        for number in range(150):
            await order(ledger, number)
            await trio.sleep(0.1)
            size = flooder.tree.head.size
            for at in range(max(1, size - 20), size + 1):
                note = signed_by((flooder,), at, flooder.tree.root(at))
                await flooder.member.transport.call(
                    signers[0].member.member.node, CHANNEL, note.encode(), timeout_ms=1_000
                )
            assert len(signers[0].checkpoints._book.sizes) <= 4 * 16 + 1
        assert newest(signers[0]).checkpoint.size > 125


async def test_a_damaged_node_of_ours_is_no_fork_of_others(autojump_clock) -> None:
    ledger, signers = house(4)
    async with opened(ledger, signers[0]):
        await order(ledger, *range(5))
        root = signers[1].tree.root(3)
        rows = signers[0].member.rows
        batch = Batch()
        batch.put(next(key for key, _ in rows.scan(*keyspace.prefix_range(keyspace.TREE))), bytes(5 * 32))
        rows.write(batch, sync=False)
        with pytest.raises(Unavailable, match="computed again"):
            signers[0].checkpoints.add(signed_by(signers[1:2], 3, root))
    assert not signers[0].checkpoints.trouble


async def test_a_signer_of_two_histories_is_convicted_on_the_ledger(autojump_clock) -> None:
    ledger = LedgerDouble(4)
    member = ledger.members[0]
    desk = EvidenceDesk(
        key=SigningKey(member.identity.node),
        hearing=Hearing(),
        store=member.store,
        rows=member.rows,
        disk=member.disk,
        submitter=member.submitter,
        transport=member.transport,
        workers=InlineWorkers(),
        clock=ledger.clock,
        log=member.log,
    )
    signers = (
        signer_of(ledger, member, evidence=desk),
        *(signer_of(ledger, one) for one in ledger.members[1:]),
    )
    async with opened(ledger, *signers), trio.open_nursery() as nursery:
        nursery.start_soon(desk.run)
        nursery.start_soon(member.submitter.run)
        await order(ledger, 1, 2, 3)
        await trio.sleep(15)
        assert not desk._pending, "what honest members sign is no evidence"
        fork = signed_by(signers[1:2], 3, Digest(filled("another history")))
        with pytest.raises(Invalid, match="another ledger"):
            signers[0].checkpoints.add(fork)
        with trio.fail_after(60):
            while not convicted(member.store):
                await trio.sleep(1)
        nursery.cancel_scope.cancel()
    found = convicted(member.store)
    assert [(one.kind, one.node) for one in found] == [("E6", ledger.members[1].member.node)]
