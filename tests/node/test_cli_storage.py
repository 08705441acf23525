"""`carechain storage`: what is printed, what is asked of the daemon, and exit codes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.cli.main import main
from node.cli.storage import size_text
from node.home import Home
from tests.node.web_services import Calls, serving

Run = Callable[..., tuple[int, str, str]]
WALK = {
    "bytes": 1024,
    "of_bytes": 4096,
    "seconds_left": 90,
    "bad": 0,
    "repaired": 0,
    "rate": 0,
    "ended_ms": None,
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    def command(*arguments: str, calls: Calls) -> tuple[int, str, str]:
        with serving(Home(tmp_path), calls):
            code = main(["storage", *arguments, "--home", str(tmp_path)])
        return code, *capsys.readouterr()

    return command


@pytest.mark.parametrize("verb", ["scrub", "repair", "reclaim"])
def test_each_prints_its_result_as_one_document(run: Run, verb: str) -> None:
    calls = Calls()

    code, out, _ = run(verb, "--json", calls=calls)

    assert code == 0
    assert json.loads(out)["ok"] is True
    assert calls.asked == [(verb, None)]


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("scrub", "on no member that answers now"),
        ("repair", "not whole here"),
        ("reclaim", "--rebuild payloads"),
    ],
)
def test_what_stays_wrong_is_one_sentence_and_exit_1(run: Run, verb: str, words: str) -> None:
    calls = Calls()
    calls.damaged = 1

    code, out, said = run(verb, "--json", calls=calls)

    assert code == 1
    assert json.loads(out)["ok"] is False
    assert words in said.strip().splitlines()[-1]


def test_who_could_not_help_is_named(run: Run) -> None:
    calls = Calls()
    calls.damaged = 1

    _, _, said = run("repair", calls=calls)

    assert "B could not help: not connected" in said


@pytest.mark.parametrize(("text", "rate"), [("50M/s", 50 << 20), ("2KiB/s", 2048), ("1000", 1000)])
def test_a_rate_is_bytes_per_second(run: Run, text: str, rate: int) -> None:
    calls = Calls()

    assert run("scrub", "--rate", text, calls=calls)[0] == 0
    assert calls.asked == [("scrub", rate)]


def test_what_is_no_rate_is_refused(run: Run) -> None:
    calls = Calls()

    code, _, said = run("scrub", "--rate", "fast", calls=calls)

    assert code == 1
    assert "'fast' is not a rate" in said
    assert calls.asked == []


def test_an_answer_that_breaks_off_is_told(run: Run) -> None:
    calls = Calls()
    calls.breaks_after = 0

    code, _, said = run("scrub", calls=calls)

    assert code == 1
    assert "stopping" in said


def test_status_is_a_table_for_people(run: Run) -> None:
    code, out, _ = run("status", calls=Calls())

    assert code == 0
    assert "under replicated\t0" in out
    assert "padding\t4.0% of our own records, at most 10.0% of all" in out
    assert (
        "compaction of payloads\tunder way; 5 files in level 0, 2 files in level 1; 24.0 MiB written" in out
    )


def test_status_names_who_could_not_prove_what_it_stores(run: Run) -> None:
    class Challenged(Calls):
        async def figures(self) -> dict[str, Any]:
            liar = {
                "facility": "B",
                "asked": 9,
                "lacking": 1,
                "silent": 4,
                "wrong": 2,
                "failed_ms": 1,
                "trusted": False,
            }
            return await super().figures() | {
                "challenges": [liar],
                "compared_ms": 1_800_000_000_000,
                "surplus": 3,
                "scrub": {"walk": WALK},
                "problems": ["B could not prove it"],
            }

    code, out, _ = run("status", calls=Challenged())

    assert code == 0
    assert "B\t9\t1\t4\t2\tno" in out
    assert "compared\t2027-01-15 08:00Z" in out
    assert "surplus chunks\t3" in out
    assert "1.0 KiB of 4.0 KiB, 0:01:30 left: 0 bad, 0 repaired" in out
    assert "! B could not prove it" in out


def test_sizes_are_written_for_people() -> None:
    assert [size_text(size) for size in (0, 1023, 1536, 5 << 30)] == [
        "0 bytes",
        "1023 bytes",
        "1.5 KiB",
        "5.0 GiB",
    ]
