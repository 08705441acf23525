"""A witness of logs: nothing it has cosigned is ever contradicted, whatever comes at once and wherever it crashes."""

import contextlib
import random
from dataclasses import dataclass, replace

import pytest
import trio

from node.log_witness import LogWitness, cosigning_key, key_name
from protocol import merkle
from protocol.checkpoint import (
    Checkpoint,
    KeyKind,
    NoteKey,
    SignedCheckpoint,
    parse_signatures,
    sign_checkpoint,
)
from protocol.errors import Corruption, StorageFull
from protocol.identifiers import Digest, NodeId
from protocol.log_witness import AddCheckpoint, Declined, KnownLog
from protocol.merkle import Frontier
from protocol.passphrase import Hardness
from storage import keyspace
from storage.key_value import Batch
from storage.keystore import Keystore
from storage.memory import MemoryStore
from tests.node.ledger_double import DoubleClock, InlineDisk, SeededEntropy, SilentLog
from tests.node.snapshot_house import Member
from tests.node.test_tree import tree_of
from tests.protocol import test_log_witness as requests
from tests.protocol.chain import VOTERS, filled, key


class SlowDisk(InlineDisk):
    """Is on its way for a while before anything is written; what waits and what was synchronised is counted."""

    def __init__(self, rows: MemoryStore) -> None:
        super().__init__(rows)
        self.waiting = self.synced = 0
        self.fails = False

    async def commit(self, batch: Batch, *, sync: bool) -> None:
        self.waiting += 1
        await trio.sleep(1)
        if self.fails:
            raise StorageFull("no room")
        await super().commit(batch, sync=sync)
        self.synced += sync
        self.waiting -= 1


@dataclass
class House:
    rows: MemoryStore
    keys: MemoryStore
    disk: SlowDisk
    witness: LogWitness


def built(rows: MemoryStore | None = None, keys: MemoryStore | None = None) -> House:
    """A witness in its home, or the same one after a restart."""
    entropy = SeededEntropy("witness")
    rows = rows or MemoryStore()
    if keys is None:
        keys = MemoryStore()
        Keystore.create(keys, "secret", entropy.bytes, hardness=Hardness(1, 8192))
    member = Member({}, VOTERS[0])
    disk = SlowDisk(rows)
    witness = LogWitness(
        rows,
        name=key_name(NodeId(VOTERS[0].public)),
        secret=cosigning_key(rows, Keystore.unlock(keys, "secret", entropy.bytes), entropy),
        logs=lambda: (requests.LOG,),
        own=("carechain/own", tree_of(member)),
        disk=disk,
        clock=DoubleClock(),
        log=SilentLog(),
    )
    return House(rows, keys, disk, witness)


async def added(house: House, old: int, size: int) -> None:
    request = requests.request(old, size)
    lines = parse_signatures(await house.witness.add_checkpoint(request.encode()))
    note = SignedCheckpoint(request.note.checkpoint, lines)
    assert set(note.signed_by([house.witness.key])) == {house.witness.key}


async def refused(house: House, old: int, size: int) -> Declined:
    with pytest.raises(Declined) as refusal:
        await house.witness.add_checkpoint(requests.request(old, size).encode())
    return refusal.value


async def test_checkpoints_that_grow_are_cosigned_durably_under_the_key_of_the_witness(
    autojump_clock,
) -> None:
    house = built()
    await added(house, 0, 5)
    await added(house, 5, 8)
    assert house.disk.synced == 2
    await added(house, 8, 8)
    assert house.disk.synced == 2, "nothing new is written"
    assert house.witness.key.kind is KeyKind.COSIGNER


@pytest.mark.parametrize("sizes", [(8, 5), (5, 8), (8, 8)])
async def test_of_two_requests_at_once_the_second_is_judged_by_what_the_first_has_left(
    sizes: tuple[int, int], autojump_clock
) -> None:
    house = built()
    answers: dict[int, str] = {}

    async def ask(number: int, size: int) -> None:
        try:
            await added(house, 0, size)
        except Declined as refusal:
            answers[number] = f"{refusal.status} {refusal.size}"
        else:
            answers[number] = "cosigned"

    async with trio.open_nursery() as nursery:
        for number, size in enumerate(sizes):
            nursery.start_soon(ask, number, size)
    first = next(sizes[number] for number, answer in answers.items() if answer == "cosigned")
    assert sorted(answers.values()) == [f"409 {first}", "cosigned"]
    assert house.disk.synced == 1
    assert await size_on_record(house) == first


async def size_on_record(house: House) -> int | None:
    return (await refused(built(house.rows, house.keys), 39, 40)).size


async def test_another_log_does_not_wait_for_the_first(autojump_clock) -> None:
    house = built()
    start = trio.current_time()
    other = KnownLog(
        "log.example/two", tuple(replace(one, name="log.example/two") for one in requests.LOG.keys)
    )
    house.witness._logs = lambda: (requests.LOG, other)
    checkpoint = Checkpoint(other.origin, 3, requests.root(3))
    note = SignedCheckpoint(checkpoint, (sign_checkpoint(requests.SIGNERS[0], checkpoint),))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(added, house, 0, 5)
        nursery.start_soon(house.witness.add_checkpoint, AddCheckpoint(0, (), note).encode())
    assert trio.current_time() - start < 2


async def test_after_a_crash_between_storing_and_answering_the_same_request_leads_to_the_cosignature(
    autojump_clock,
) -> None:
    house = built()
    await added(house, 0, 5)  # and this answer is lost
    house.rows.crash(0)
    again = built(house.rows, house.keys)
    assert (await refused(again, 0, 5)).size == 5
    await added(again, 5, 5)
    assert (await refused(again, 0, 3)).size == 5


async def test_nothing_is_cosigned_before_it_is_durable(autojump_clock) -> None:
    house = built()
    house.disk.fails = True
    with pytest.raises(StorageFull):
        await added(house, 0, 5)
    house.disk.fails = False
    await added(house, 0, 3)


async def test_a_caller_that_goes_away_leaves_the_log_to_others(autojump_clock) -> None:
    house = built()
    with trio.move_on_after(0.5):
        await added(house, 0, 5)
    await added(house, 0, 5)


async def test_a_damaged_record_is_no_record_of_nothing(autojump_clock) -> None:
    house = built()
    await added(house, 0, 5)
    batch = Batch()
    for name, _ in house.rows.scan(keyspace.LOG_WITNESS + b"\0", keyspace.LOG_WITNESS + b"\xff" * 40):
        batch.put(name, b"\xc0")
    house.rows.write(batch, sync=True)
    with pytest.raises(Corruption):
        await added(house, 0, 3)


async def test_checkpoints_of_the_own_network_are_compared_with_the_own_ledger(autojump_clock) -> None:
    house, secret = built(), key("signer")
    member = Member({}, VOTERS[0])
    await member.apply()
    tree, origin = tree_of(member), "carechain/own"
    house.witness._own_tree = tree
    house.witness._logs = lambda: (KnownLog(origin, (NoteKey(origin, KeyKind.LOG, secret.public),)),)

    async def ask(size: int, root: Digest) -> int:
        checkpoint = Checkpoint(origin, size, root)
        note = SignedCheckpoint(checkpoint, (sign_checkpoint(secret, checkpoint),))
        try:
            await house.witness.add_checkpoint(AddCheckpoint(0, (), note).encode())
        except Declined as refusal:
            return refusal.status
        return 200

    assert await ask(7, Digest(filled("another history"))) == 422
    assert await ask(tree.head.size + 1, Digest(filled("later"))) == 503
    assert await ask(7, tree.root(7)) == 200


def test_a_witness_keeps_its_key_and_one_without_memory_gets_another() -> None:
    house = built()
    assert built(house.rows, house.keys).witness.key == house.witness.key
    forgetful = MemoryStore()
    other = cosigning_key(
        forgetful, Keystore.unlock(house.keys, "secret", SeededEntropy("b").bytes), SeededEntropy("c")
    )
    assert other.public != house.witness.key.public


async def test_a_body_that_is_no_request_is_400_and_an_unknown_log_404() -> None:
    house = built()
    with pytest.raises(Declined) as refusal:
        await house.witness.add_checkpoint(b"old 0\n\nnot a checkpoint\n")
    assert refusal.value.status == 400
    house.witness._logs = tuple
    assert (await refused(house, 0, 5)).status == 404


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_a_lying_log_asks_at_once_all_that_is_cosigned_is_one_history(
    seed: int, autojump_clock
) -> None:
    """Three histories that part somewhere, asked for in any order, with crashes between; the log has signed all of it."""
    draw = random.Random(seed)
    parts_at = [40, draw.randrange(1, 20), draw.randrange(1, 20)]
    histories = [
        [Digest(filled(f"leaf {n}" if n < at else f"{number} {n}")) for n in range(40)]
        for number, at in enumerate(parts_at)
    ]
    house, cosigned = built(), list[tuple[int, Digest]]()

    async def ask(history: list[Digest], old: int, size: int) -> None:
        await trio.sleep(draw.random() * 2)
        checkpoint = Checkpoint(requests.ORIGIN, size, Frontier().append(history[:size]).root())
        lines = tuple(sign_checkpoint(one, checkpoint) for one in requests.SIGNERS)
        proof = merkle.consistency_proof(
            old,
            size,
            lambda level, index: merkle.root_of_leaves(history[index << level : (index + 1) << level]),
        )
        with contextlib.suppress(Declined):
            await house.witness.add_checkpoint(
                AddCheckpoint(old, proof, SignedCheckpoint(checkpoint, lines)).encode()
            )
            cosigned.append((checkpoint.size, checkpoint.root))

    for _ in range(25):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                latest = cosigned[-1][0] if cosigned else 0
                size = draw.randrange(latest, min(latest + 6, 40) + 1)
                old = latest if draw.random() < 0.7 else draw.randrange(size + 1)
                nursery.start_soon(ask, draw.choice(histories), min(old, size), size)
            if draw.random() < 0.2:
                await trio.sleep(draw.random() * 3)
                nursery.cancel_scope.cancel()
        if draw.random() < 0.3:
            house.rows.crash(0)
            house = built(house.rows, house.keys)

    assert len(cosigned) > 5
    assert [size for size, _ in cosigned] == sorted(size for size, _ in cosigned)
    longest = max(cosigned)
    owners = [one for one in histories if Frontier().append(one[: longest[0]]).root() == longest[1]]
    assert all(Frontier().append(owners[0][:size]).root() == root for size, root in cosigned)
