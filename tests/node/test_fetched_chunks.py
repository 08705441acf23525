"""A member that answers for chunks with other bytes: they are never taken, and whoever is next is asked."""

from collections.abc import Callable

import pytest

from protocol import chunk_exchange as exchange
from protocol import codec, placement
from protocol.errors import Unavailable
from protocol.identifiers import Cid, NodeId
from storage.key_value import Batch
from storage.keyspace import LACKING
from tests.node.record_house import Facility, houses
from tests.node.test_replication import added, everywhere, lost_byte

Answer = tuple[bytes, ...]


def flipped(chunks: Answer) -> Answer:
    first, *others = chunks
    return (first[:-1] + bytes([first[-1] ^ 1]), *others)


def cut_short(chunks: Answer) -> Answer:
    return (chunks[0][:-1], *chunks[1:])


def another_chunk(chunks: Answer) -> Answer:
    return (chunks[-1], *chunks[1:])


class Asker:
    """A member's fetching side: `liars` answer it with changed bytes, and `asked` is whom it asked for which chunks."""

    def __init__(self, facility: Facility, lie: Callable[[Answer], Answer]) -> None:
        self.liars: frozenset[NodeId] = frozenset()
        self.asked: list[tuple[NodeId, tuple[Cid, ...]]] = []
        self._lie = lie
        self._call = facility.member.transport.call
        facility.member.transport.call = self._changed  # type: ignore[method-assign]  # lies, else the same

    async def _changed(self, peer: NodeId, channel: str, body: bytes, *, timeout_ms: int) -> bytes:
        answer = await self._call(peer, channel, body, timeout_ms=timeout_ms)
        if channel != exchange.CHUNKS_CHANNEL or codec.unpack(body)[0] != "get-chunks":
            return answer
        self.asked.append((peer, codec.decode(body, exchange.GetChunks).cids))
        if peer not in self.liars:
            return answer
        changed = self._lie(codec.decode(answer, exchange.Chunks).chunks)
        return codec.encode_large(exchange.Chunks(changed))


async def placed_everywhere(facilities: list[Facility]) -> exchange.PlacedChunks:
    """Add a record of a few chunks, and return where they are: with every member."""
    rid = await added(facilities[0])
    await everywhere(facilities, rid)
    placed = facilities[0].holder.placed(rid)
    assert placed is not None
    assert 2 < len(placed.cids) <= exchange.CHUNKS_PER_MESSAGE_MAX
    assert all(facility.chunks.has(cid) for facility in facilities for cid in placed.cids)
    return placed


def stored_bytes(facility: Facility) -> int:
    return sum(len(value) for _, value in facility.payloads.scan(b"", b"\xff" * 9))


@pytest.mark.parametrize("lie", [flipped, cut_short, another_chunk])
async def test_other_bytes_than_a_chunks_id_names_are_left_and_the_next_holders_are_taken(
    autojump_clock, lie: Callable[[Answer], Answer]
):
    async with houses(3) as facilities:
        placed = await placed_everywhere(facilities)
        hospital, clinic, _ = facilities
        good = tuple(hospital.chunks.get(cid) for cid in placed.cids)
        storing = clinic.store.configuration.storing
        liar, honest = (node for node in placement.by_weight(placed.cids[0], storing) if node != clinic.me)
        for cid in placed.cids:
            lost_byte(clinic, cid)
        asker = Asker(clinic, lie)
        asker.liars = frozenset({liar})

        received = await clinic.retrieval.chunks(placed.cids, placed.author)

        assert received == good
        assert tuple(clinic.chunks.get(cid) for cid in placed.cids) == good
        # What the first one answered truly is not asked for again.
        assert asker.asked == [(liar, placed.cids), (honest, placed.cids[:1])]


async def test_a_chunk_that_only_a_liar_has_is_unavailable_and_nothing_is_stored(autojump_clock):
    async with houses(3) as facilities:
        placed = await placed_everywhere(facilities)
        hospital, clinic, laboratory = facilities
        hospital.member.transport.is_up = False
        lost_byte(clinic, placed.cids[0])
        before = stored_bytes(clinic)
        asker = Asker(clinic, flipped)
        asker.liars = frozenset({laboratory.me})

        with pytest.raises(Unavailable):
            await clinic.retrieval.chunks(placed.cids[:1], placed.author)

        assert asker.asked == [(laboratory.me, placed.cids[:1])]
        assert not clinic.chunks.has(placed.cids[0])
        assert stored_bytes(clinic) == before
        asker.liars = frozenset()
        (received,) = await clinic.retrieval.chunks(placed.cids[:1], placed.author)
        assert received == hospital.chunks.get(placed.cids[0])


async def test_repair_stores_nothing_of_what_a_liar_answers(autojump_clock):
    async with houses(3) as facilities:
        placed = await placed_everywhere(facilities)
        hospital, clinic, laboratory = facilities
        damaged, *missing = placed.cids
        (rid,) = hospital.index.rids()
        clinic.chunks.quarantine(damaged)
        clinic.chunks.delete(missing)
        batch = Batch()
        batch.put(LACKING + rid, b"")
        clinic.member.rows.write(batch, sync=True)
        before = stored_bytes(clinic)
        asker = Asker(clinic, lambda chunks: tuple([flipped((chunk,))[0] for chunk in chunks]))
        asker.liars = frozenset({hospital.me, laboratory.me})

        await clinic.repair.look()

        assert {cid for _, cids in asker.asked for cid in cids} == set(placed.cids)
        assert not any(clinic.chunks.has(cid) for cid in placed.cids)
        assert stored_bytes(clinic) == before
        assert clinic.member.rows.get(LACKING + rid) is not None  # still to be brought here
        asker.liars = frozenset({hospital.me})
        await clinic.repair.look()
        assert all(clinic.chunks.get(cid) == hospital.chunks.get(cid) for cid in placed.cids)
