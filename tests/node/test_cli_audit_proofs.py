"""`carechain audit receipt` and `audit update`: what is asked of the daemon, and the files that are written."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.bench.made_history import MadeHistory, transactions
from node.cli.main import main
from node.home import Home
from protocol import receipt_file
from protocol.errors import Refused
from tests.node.web_services import Calls, serving

Run = Callable[..., tuple[int, str, str]]
HISTORY = MadeHistory.of("one", "two")
HISTORY.cut(*transactions(2, HISTORY.network))
RECEIPT = HISTORY.receipt(1, 1)


class Proofs(Calls):
    """The services `receipts` and `updates`, recording what they are asked."""

    async def make_receipt(self, transaction: str, *, told: bool) -> Any:
        self.asked.append((transaction, told))
        if self.refusal is not None:
            raise self.refusal
        finding = receipt_file.check(RECEIPT)
        verdict = SimpleNamespace(txid=finding.txid, verdict="accepted")
        return SimpleNamespace(data=receipt_file.encode(RECEIPT), finding=finding, receipt=verdict)

    def make(self, *asked: Any, **options: Any) -> Any:
        """`receipts.make` is awaited and told by its options; `updates.make` takes a height."""
        if options:
            return self.make_receipt(*asked, **options)
        self.asked.append(("since", *asked))
        return 7, b"an update"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in (*arguments, "--home", tmp_path)])
        return code, *capsys.readouterr()

    return command


@pytest.mark.parametrize("leaf_only", [False, True])
def test_a_receipt_is_written_whole(run: Run, tmp_path: Path, leaf_only: bool) -> None:
    calls, file = Proofs(), tmp_path / "receipt"
    with serving(Home(tmp_path), calls):
        code, out, _ = run(
            "audit", "receipt", "abcd", "-o", file, "--json", *(["--leaf-only"] if leaf_only else [])
        )

    document = json.loads(out)
    assert code == 0
    assert calls.asked == [("abcd", not leaf_only)]
    assert receipt_file.decode(file.read_bytes()) == RECEIPT
    assert (document["file"], document["height"], document["verdict"]) == (str(file), 1, "accepted")
    assert "receipt" not in document
    assert run("verify", file)[0] == 0


def test_a_refusal_leaves_the_old_file(run: Run, tmp_path: Path) -> None:
    calls, file = Proofs(), tmp_path / "receipt"
    file.write_text("old")
    calls.refusal = Refused("no transaction that begins with abcd is final here")
    with serving(Home(tmp_path), calls):
        assert run("audit", "receipt", "abcd", "-o", file) == (1, "", f"{calls.refusal}\n")

    assert file.read_text() == "old"


def test_an_update_is_written_since_a_height(run: Run, tmp_path: Path) -> None:
    calls, file = Proofs(), tmp_path / "update"
    with serving(Home(tmp_path), calls):
        code, out, _ = run("audit", "update", "-o", file, "--since", "3", "--json")

    assert code == 0
    assert json.loads(out) == {"since": 3, "height": 7, "file": str(file), "bytes": 9}
    assert file.read_bytes() == b"an update"
    assert calls.asked == [("since", 3)]
    assert run("audit", "update", "-o", file, "--since", "-1")[0] == 2
