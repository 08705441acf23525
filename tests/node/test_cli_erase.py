"""`record erase` on the command line: what it lists, whom it asks, what it sends, and what it tells afterwards."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import NotFinal
from tests.node.test_cli_client import Terminal, terminal
from tests.node.web_services import RECORD

__all__ = ["terminal"]


class Keyboard(io.StringIO):
    """Somebody at a terminal, typing."""

    def isatty(self) -> bool:
        return True


def listed_in(terminal: Terminal) -> Iterator[list[str]]:
    return (fields["listed"] for what, (_, fields) in terminal.calls.asked if what == "erase")


def test_json_lists_first_and_erases_what_was_listed(terminal: Terminal) -> None:
    document = terminal.document("record", "erase", "abab", "--only")

    assert list(listed_in(terminal)) == [[], [RECORD]]
    assert terminal.asked() == ("abab", {"only": True, "listed": [RECORD], "wallet": None})
    assert (document["erased"], len(document["attestations"]), len(document["pending"])) == (True, 1, 1)


def test_with_nobody_to_ask_nothing_is_erased(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))

    code, out, error = terminal.run("record", "erase", "abab")

    assert code == 1
    assert RECORD in out
    assert "give --yes" in error
    assert list(listed_in(terminal)) == [[]]


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_a_person_is_asked(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, typed: str, code: int
) -> None:
    monkeypatch.setattr("sys.stdin", Keyboard(typed))

    ran = terminal.run("record", "erase", "abab")

    assert ran[0] == code
    assert "Erase this record for good, on every facility?" in ran[2]
    assert len(list(listed_in(terminal))) == (2 if code == 0 else 1)


def test_yes_answers_and_the_rest_is_told(terminal: Terminal) -> None:
    code, out, error = terminal.run("record", "erase", "abab", "--yes")

    assert code == 0
    assert "destroyed and attested by A" in out
    assert "not connected: it deletes when it is back" in out
    assert "Not reached by an erasure" in error


def test_what_was_asked_for_before_is_shown_without_asking(terminal: Terminal) -> None:
    code, out, _ = terminal.run("record", "erase", "known")

    assert code == 0
    assert "2026-11-23T05:02:40Z" in out
    assert list(listed_in(terminal)) == [[]]


def test_queued_is_told_with_the_records_and_exit_code_3(terminal: Terminal) -> None:
    rows = [{"record": RECORD, "kind": "document", "category": "labs", "state": "received", "erased": None}]
    terminal.calls.refusal = NotFinal("the erasure is not final yet", (RECORD,), {"records": rows})

    document = terminal.document("record", "erase", "abab", code=3)

    assert document["ids"] == [RECORD]
    assert document["records"] == rows


def test_a_wallet_travels_with_both_calls(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "wallet").write_bytes(b"sealed")
    (tmp_path / "secret").write_text("words\n")

    terminal.document(
        "record", "erase", "abab", "--wallet", tmp_path / "wallet", "--wallet-passphrase-file", tmp_path / "secret"
    )  # fmt: skip

    wallets = [fields["wallet"] for what, (_, fields) in terminal.calls.asked if what == "erase"]
    assert [(wallet.data, wallet.passphrase) for wallet in wallets] == [(b"sealed", b"words")] * 2
