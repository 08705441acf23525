"""A member that lies about having stored is found by its proofs, told, and not counted on."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from node.chunk_holder import ChunkHolder
from node.standings import Standings
from protocol import chunk_exchange as exchange
from protocol import codec, limits, possession
from protocol.errors import RemoteFault, Unavailable
from protocol.identifiers import Cid, NodeId, Rid
from tests.node.record_house import houses
from tests.node.storage_house import CaredFacility, let_store

Clock = trio.testing.MockClock
ROUND_S = limits.CHALLENGE_PERIOD_S


@asynccontextmanager
async def challenged(voters: int) -> AsyncIterator[tuple[list[CaredFacility], Rid]]:
    """Members with one record of a few chunks, whose author challenges the others."""
    async with houses(voters, facility=CaredFacility) as running, trio.open_nursery() as nursery:
        facilities = [one for one in running if isinstance(one, CaredFacility)]
        patient = await facilities[0].admit()
        answer = await facilities[0].add(os.urandom(2_500_000), patient=patient)
        await trio.sleep(90)
        nursery.start_soon(facilities[0].challenges.run)
        yield facilities, Rid(bytes.fromhex(answer["records"][0]["record"]))
        nursery.cancel_scope.cancel()


class Lying(ChunkHolder):
    """Gives its word for whatever it is asked about."""

    def confirm(self, cids: tuple[Cid, ...]) -> exchange.StorageReceipt:
        return exchange.storage_receipt(cids, self._key, self._network)


def lie(liar: CaredFacility, rid: Rid) -> None:
    """Have a member throw its chunks away, go on giving receipts for them, and make proofs up."""
    liar.chunks.delete(liar.cids_of(rid))
    liar.holder.__class__ = Lying

    async def answer_proofs(_sender: NodeId, body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        asked = codec.decode(body, possession.Prove)
        return codec.encode(possession.Proofs((bytes(32),) * len(asked.cids)))

    liar.member.transport.serve(possession.POSSESSION_CHANNEL, answer_proofs)


def holders(cid: Cid, facilities: list[CaredFacility]) -> list[CaredFacility]:
    return [one for one in facilities if one.chunks.has(cid)]


async def test_members_that_have_what_they_say_are_trusted_and_told(autojump_clock: Clock) -> None:
    async with challenged(3) as (facilities, _):
        await trio.sleep(6 * ROUND_S + 1)

        rows = (await facilities[0].care.figures())["challenges"]

        assert [row["facility"] for row in rows] == ["clinic", "laboratory"]
        assert [(row["asked"], row["lacking"], row["wrong"], row["trusted"]) for row in rows] == [
            (3, 0, 0, True)
        ] * 2


async def test_a_liar_is_told_and_its_replicas_are_placed_with_others(autojump_clock: Clock) -> None:
    async with challenged(5) as (facilities, rid):
        hospital, *others = facilities
        storing = hospital.store.configuration.storing
        placed = hospital.holder.placed(rid)
        assert placed is not None
        liar = max(others, key=lambda one: len(placed.share_of(one.me, storing)))
        lie(liar, rid)

        await trio.sleep(8 * ROUND_S)

        assert all(len(holders(cid, facilities)) == 3 for cid in placed.cids)
        figures = await hospital.care.figures()
        (row,) = (row for row in figures["challenges"] if not row["trusted"])
        assert row["facility"] == liar.member.name
        assert row["wrong"] >= 1
        assert any(liar.member.name in problem for problem in figures["problems"])
        assert figures["replicas"] == {"3": len(placed.cids)}
        assert figures["under_replicated"] == 0


async def test_where_there_is_nobody_else_a_liars_replicas_count_as_missing(autojump_clock: Clock) -> None:
    async with challenged(3) as (facilities, rid):
        lie(facilities[1], rid)

        await trio.sleep(4 * ROUND_S)

        figures = await facilities[0].care.figures()
        chunks = len(facilities[0].cids_of(rid))
        assert figures["replicas"] == {"2": chunks}
        assert figures["under_replicated"] == chunks


async def test_a_liar_stays_distrusted_over_a_restart_and_until_it_has_proved_enough(
    autojump_clock: Clock,
) -> None:
    async with challenged(3) as (facilities, rid):
        hospital, clinic, _ = facilities
        lie(clinic, rid)
        await trio.sleep(4 * ROUND_S)
        assert Standings(hospital.member.rows, hospital.disk, hospital.member.clock).distrusted == {clinic.me}

        clinic.holder.__class__ = ChunkHolder
        clinic.challenges.serve()
        await hospital.repair.note_unconfirmed({rid: (clinic.me,)})
        await trio.sleep((2 * possession.TRUST_AGAIN + 4) * ROUND_S)

        assert not hospital.standings.distrusted
        assert clinic.chunks.has(clinic.cids_of(rid)[0])


async def test_who_lacks_a_chunk_and_says_so_is_brought_it_and_stays_trusted(autojump_clock: Clock) -> None:
    async with challenged(3) as (facilities, rid):
        hospital, clinic, _ = facilities
        cids = clinic.cids_of(rid)
        clinic.chunks.delete(cids)

        await trio.sleep(4 * ROUND_S)

        assert all(map(clinic.chunks.has, cids))
        standing = hospital.standings.of(clinic.me)
        assert (standing.lacking, standing.wrong, standing.is_trusted) == (1, 0, True)


async def test_questions_that_make_no_sense_are_refused(autojump_clock: Clock) -> None:
    async with challenged(3) as (facilities, rid):
        hospital, clinic, _ = facilities
        strange = (
            b"",
            codec.pack("prove", bytes(32), ()),
            codec.pack("prove", bytes(31), (bytes(32),)),
            codec.pack("prove", bytes(32), (bytes(32),) * (possession.PROOFS_PER_MESSAGE_MAX + 1)),
        )

        for body in strange:
            with pytest.raises(RemoteFault):
                await hospital.member.transport.call(
                    clinic.me, possession.POSSESSION_CHANNEL, body, timeout_ms=1_000
                )

        unknown = codec.encode(possession.Prove(bytes(32), (Cid(bytes(32)), clinic.cids_of(rid)[0])))
        raw = await hospital.member.transport.call(
            clinic.me, possession.POSSESSION_CHANNEL, unknown, timeout_ms=1_000
        )
        assert [len(digest) for digest in codec.decode(raw, possession.Proofs).digests] == [0, 32]


async def test_who_is_away_is_not_held_to_have_lied(autojump_clock: Clock) -> None:
    async with challenged(3) as (facilities, _):
        facilities[1].member.transport.is_up = False

        await trio.sleep(4 * ROUND_S)

        assert facilities[0].standings.of(facilities[1].me).asked == 0


async def test_who_is_here_and_never_answers_is_distrusted_in_the_end(autojump_clock: Clock) -> None:
    async with challenged(3) as (facilities, _):
        hospital, clinic, _ = facilities

        async def refuse(_sender: NodeId, _body: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            raise Unavailable("not today")

        clinic.member.transport.serve(possession.POSSESSION_CHANNEL, refuse)
        await trio.sleep(4 * ROUND_S)
        assert hospital.standings.of(clinic.me).is_trusted

        await trio.sleep(4 * ROUND_S)

        standing = hospital.standings.of(clinic.me)
        assert (standing.silent >= possession.STRIKES_MAX, standing.is_trusted) == (True, False)


async def test_nothing_is_deleted_on_the_word_of_a_liar(autojump_clock: Clock) -> None:
    async with challenged(5) as (facilities, rid):
        others = facilities[1:]
        leaver = max(others, key=lambda one: one.chunks.statistics().chunks)
        let_store(facilities, *(one for one in facilities if one is not leaver))
        for one in others:
            if one is not leaver:
                lie(one, rid)
        held = set(leaver.chunks.cids())
        assert held

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leaver.anti_entropy.run)
            await trio.sleep(120)
            nursery.cancel_scope.cancel()

        assert set(leaver.chunks.cids()) == held
        assert leaver.surplus.count == len(held)
