"""Our checkpoints at an outside witness: cosigned as they grow, and every other answer understood."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from node.http_client import Answer
from protocol.checkpoint import SignedCheckpoint
from protocol.errors import Invalid, Malformed, RemoteFault, Unavailable
from protocol.identifiers import Digest
from protocol.log_witness import SIZE_MEDIA_TYPE, AddCheckpoint
from tests.node.ledger_double import LedgerDouble
from tests.node.log_house import OutsideHouse, Signer, opened, order, signed_by, signer_of
from tests.protocol.chain import filled


class Story:
    """A network of one signer and a witness outside of it."""

    def __init__(self) -> None:
        self.ledger, self.outside = LedgerDouble(1), OutsideHouse()
        self.signer: Signer = signer_of(self.ledger, self.ledger.members[0], (self.outside.witness.key,))
        self.outside.trusts(self.signer)
        self.client = self.outside.client(self.signer)

    def newest(self) -> SignedCheckpoint:
        note = self.signer.checkpoints.newest()
        assert note is not None
        return note


@asynccontextmanager
async def begun(*numbers: int) -> AsyncIterator[Story]:
    story = Story()
    async with opened(story.ledger, story.signer):
        await order(story.ledger, *numbers)
        await trio.sleep(3)
        yield story


async def test_checkpoints_are_cosigned_as_the_ledger_grows(autojump_clock) -> None:
    async with begun(1, 2, 3) as story, trio.open_nursery() as nursery:
        nursery.start_soon(story.client.run)
        for number in range(10, 15):
            await trio.sleep(10)
            witnessed = story.signer.checkpoints.witnessed()
            assert witnessed == story.newest()
            assert witnessed.checkpoint.size == story.signer.tree.head.size
            await order(story.ledger, number, number + 100)
        nursery.cancel_scope.cancel()
    olds = [AddCheckpoint.parse(body).old for body in story.outside.asked]
    assert olds == [0, 3, 5, 7, 9]
    assert story.client.trouble == ""


async def test_after_a_restart_the_witness_says_where_it_is(autojump_clock) -> None:
    async with begun(1, 2, 3) as story:
        await story.client.push(story.newest())
        await order(story.ledger, 4)
        await trio.sleep(3)
        again = story.outside.client(story.signer)
        await again.push(story.newest())
        assert story.signer.checkpoints.witnessed() == story.newest()
    assert [AddCheckpoint.parse(body).old for body in story.outside.asked] == [0, 0, 3]


async def test_cosignatures_survive_a_restart_and_are_not_asked_for_again(autojump_clock) -> None:
    async with begun(1) as story:
        await story.client.push(story.newest())
        await trio.sleep(2)
        again = signer_of(story.ledger, story.ledger.members[0], (story.outside.witness.key,))
        again.checkpoints._load()
        assert again.checkpoints.witnessed() == story.newest()
        with trio.move_on_after(20):
            await story.outside.client(again).run()
    assert len(story.outside.asked) == 1


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (Answer(404, "text/plain", b""), Invalid, "does not know this ledger"),
        (Answer(403, "text/plain", b""), Invalid, "does not know the keys"),
        (Answer(422, "text/plain", b""), Invalid, "does not continue what it has cosigned"),
        (Answer(400, "text/plain", b""), Invalid, "does not understand us"),
        (Answer(302, "text/html", b""), Invalid, "answers 302"),
        (Answer(500, "text/html", b"<html>"), Invalid, "answers 500"),
        (Answer(409, "text/plain", b"3\n"), Malformed, "without a size"),
        (Answer(409, SIZE_MEDIA_TYPE, b"3"), Malformed, "without a size"),
        (Answer(409, SIZE_MEDIA_TYPE, b"03\n"), Malformed, "decimal"),
        (Answer(409, SIZE_MEDIA_TYPE, b"0\n"), Invalid, "another history"),
        (Answer(409, SIZE_MEDIA_TYPE, b"9\n"), Unavailable, "has seen 9"),
        (Answer(200, "text/plain", b""), Malformed, "signature lines"),
        (Answer(200, "text/plain", b"\xff\n"), Malformed, "no text"),
        (
            Answer(200, "text/plain", "— other.example AAAAAAA=\n".encode()),
            Invalid,
            "no signature by its key",
        ),
        (Unavailable("no answer within 10 s"), Unavailable, "no answer"),
    ],
)
async def test_every_other_answer_is_a_sentence(
    answer: Answer | Exception, kind: type[Exception], sentence: str, autojump_clock
) -> None:
    async with begun(1, 2, 3) as story:
        story.outside.answers = [answer]
        with pytest.raises(kind, match=sentence):
            await story.client.push(story.newest())
        assert story.signer.checkpoints.witnessed() is None


async def test_a_false_cosignature_is_refused(autojump_clock) -> None:
    async with begun(1) as story:
        good = await story.outside.witness.add_checkpoint(AddCheckpoint(0, (), story.newest()).encode())
        await order(story.ledger, 2)
        await trio.sleep(3)
        story.outside.answers = [Answer(200, "text/plain", good.encode())]
        with pytest.raises(Invalid, match="does not verify"):
            await story.client.push(story.newest())


async def test_a_witness_that_moves_its_size_for_ever_is_left_alone(autojump_clock) -> None:
    async with begun(1, 2, 3) as story:
        story.outside.answers = [Answer(409, SIZE_MEDIA_TYPE, b"%d\n" % (1 + n % 2)) for n in range(50)]
        with pytest.raises(Unavailable, match="brought checkpoints by others"):
            await story.client.push(story.newest())
        assert len(story.outside.asked) == 3


async def test_a_witness_that_is_away_is_asked_less_and_less_and_the_operator_told(autojump_clock) -> None:
    async with begun(1) as story, trio.open_nursery() as nursery:
        story.outside.answers = [Unavailable("no answer (ConnectError)") for _ in range(1_000)]
        nursery.start_soon(story.client.run)
        await trio.sleep(3_600)
        assert "no answer" in story.client.trouble
        assert len(story.outside.asked) < 25
        assert story.signer.events("warning") == ["a witness did not cosign"]
        story.outside.answers = []
        await trio.sleep(301)
        assert story.client.trouble == ""
        assert story.signer.checkpoints.witnessed() is not None
        nursery.cancel_scope.cancel()


async def test_a_witness_that_has_cosigned_another_history_of_ours_convicts_somebody(autojump_clock) -> None:
    async with begun(1, 2, 3) as story:
        fork = signed_by((story.signer,), 3, Digest(filled("another history")))
        await story.outside.witness.add_checkpoint(AddCheckpoint(0, (), fork).encode())
        with pytest.raises(RemoteFault, match="another history of 3 transactions"):
            await story.client.push(story.newest())
        await order(story.ledger, 4)
        await trio.sleep(3)
        with pytest.raises(RemoteFault, match="two histories may have been shown"):
            await story.outside.client(story.signer).push(story.newest())
