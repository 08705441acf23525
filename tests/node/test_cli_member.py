"""`carechain member`: what each command sends, and what a person sees of it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from node.card_file import card_text
from node.cli.main import main
from node.home import Home
from protocol.identifiers import peer_id
from tests.node.ledger_double import MemberDouble
from tests.node.web_services import TRANSACTION, Calls, serving

DAY = 86_400_000
Member = Callable[..., int]


@pytest.fixture
def calls() -> Iterator[tuple[Calls, Member]]:
    with TemporaryDirectory(dir="/tmp") as folder:
        home = Home(Path(folder) / "h")
        home.make()
        answering = Calls()

        def member(*arguments: object) -> int:
            return main(["--home", str(home.path), "member", *map(str, arguments)])

        with serving(home, answering):
            yield answering, member


def last(calls: Calls) -> object:
    """Return what was asked last."""
    return calls.asked[-1]


def test_a_card_file_is_sent_and_a_name_is_a_name(calls: tuple[Calls, Member], tmp_path: Path) -> None:
    answering, member = calls
    card = tmp_path / "card.json"
    card.write_text("a card")
    assert member("propose", card, "--role", "voter", "--expires", "2d", "--json") == 0
    assert last(answering) == ("propose", (str(card), "a card", "voter", False, 2 * DAY, False))
    assert member("propose", "clinic", "--remove", "--accept-risk", "--json") == 0
    assert last(answering) == ("propose", ("clinic", None, None, True, 30 * DAY, True))
    assert member("propose", "--min-b", "2", "--accept-risk", "--json") == 0
    assert last(answering) == ("propose", (2, 30 * DAY, True))
    for wrong in ((), ("clinic", "--min-b", "2")):
        assert member("propose", *wrong) == 1
    card.write_bytes(b"\xff\xfe")
    assert member("propose", card) == 1


def test_ballots_leaving_withdrawing_and_new_keys(calls: tuple[Calls, Member]) -> None:
    answering, member = calls
    for arguments, asked in (
        (("vote", "ab", "yes", "--accept-risk"), ("vote", ("ab", True, True))),
        (("vote", "ab", "no"), ("vote", ("ab", False, False))),
        (("withdraw", "ab"), ("withdraw", "ab")),
        (("leave", "--expires", "1d"), ("leave", (DAY, False))),
        (("rotate", "--governance", "--expires", "1d"), ("rotate", (["governance"], DAY))),
        (("rotate", "--node", "--checkpoint", "--expires", "1d"), ("rotate", (["checkpoint", "node"], DAY))),
    ):
        assert member(*arguments) == 0
        assert answering.asked[-1] == asked
    assert member("vote", "ab", "perhaps") == 2


def test_a_person_sees_what_a_change_does_before_and_after(
    calls: tuple[Calls, Member], capsys: pytest.CaptureFixture[str]
) -> None:
    _, member = calls
    assert member("vote", "ab", "yes") == 0
    out = capsys.readouterr().out
    assert TRANSACTION in out
    assert "it costs" in out
    assert "after: 4 signers, quorum 3, 1 liars tolerated" in out
    assert member("vote", "ab", "yes", "--json") == 0
    assert json.loads(capsys.readouterr().out)["after"]["liars"] == 1


def test_a_ticket_is_written_for_the_card_or_the_name(calls: tuple[Calls, Member], tmp_path: Path) -> None:
    answering, member = calls
    new = MemberDouble("house", "observer", "new")
    card, ticket = tmp_path / "card.json", tmp_path / "ticket.json"
    card.write_text(card_text(new.card))
    assert member("ticket", card, "-o", ticket, "--json") == 0
    assert answering.asked[-1] == ("ticket", (peer_id(new.member.node), 7 * DAY))
    assert ticket.read_text() == "{}\n"
    assert member("ticket", "house", "-o", ticket, "--expires", "1d") == 0
    assert answering.asked[-1] == ("ticket", ("house", DAY))
