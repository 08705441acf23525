"""`carechain recover` and its routes: what is sent, what is written, what a person sees."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from node.cli.main import main
from node.home import Home
from protocol.errors import Refused
from tests.node.web_services import Calls, serving

Run = Callable[..., tuple[int, str, str]]
STANDING = {"signers": 1, "certificate_quorum": 1, "liars": 0, "crashes_finality": 0}
PLAN = {
    "digest": "ef" * 32, "earlier": {"consents_needed": 2, "may_sign": ["mill"]}, "epoch": 1, "base_height": 7, "base": "ab" * 32, "lost": ["lab"], "leaving": ["clinic", "lab"], "joining": [],
    "discarded": ["cd" * 32], "reason": "fire", "consents_needed": 2, "may_sign": ["clinic", "hospital"], "risk": "none",
    "before": STANDING, "after": STANDING,
}  # fmt: skip


class Desk(Calls):
    """The service `recovery`, recording what it is asked."""

    async def collect(self, files: Iterable[str], *, freeze: bool) -> dict[str, Any]:
        self.asked.append(("collect", (list(files), freeze)))
        missing = [{"name": "lab", "why": "not reachable"}]
        told = {"statements": "S", "epoch": 0, "frozen": ["hospital"], "missing": missing}
        if freeze:
            settled: dict[str, Any] = {
                "settled": True,
                "why": None,
                "base_height": 7,
                "base": "ab" * 32,
                "discarded": [],
            }
            return {**told, **settled}
        return {**told, "settled": False, "why": "two histories"}

    def propose(self, files: Iterable[str], **fields: Any) -> dict[str, Any]:  # type: ignore[override]
        self.asked.append(("propose", (list(files), fields)))
        return {"plan": "P", **PLAN}

    def sign(self, plan: str, *, instead_of: str | None = None) -> dict[str, Any]:
        self.asked.append(("sign", (plan, instead_of)))
        return {"consent": "C", **PLAN}

    async def apply(self, plan: str, consents: Iterable[str]) -> dict[str, Any]:
        self.asked.append(("apply", (plan, list(consents))))
        return {**PLAN, "height": 8}

    async def cancel(self) -> dict[str, Any]:
        raise Refused("it has left")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], home: Home) -> Run:
    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in ("recover", *arguments, "--home", home.path)])
        return code, *capsys.readouterr()

    return command


def test_files_travel_as_text_and_results_are_written(run: Run, home: Home, tmp_path: Path) -> None:
    calls, earlier, out = Desk(), tmp_path / "earlier", tmp_path / "out"
    earlier.write_text("E")
    with serving(home, calls):
        code, said, _ = run("collect", earlier, "-o", out)
        assert (code, out.read_text(), calls.asked[-1]) == (0, "S", ("collect", (["E"], False)))
        assert "missing: lab: not reachable" in said
        assert "Not settled: two histories" in said
        code, said, _ = run("collect", "--freeze", "-o", out)
        assert (code, calls.asked[-1]) == (0, ("collect", ([], True)))
        assert "go on from block 7; no known block is given up" in said
        code, said, _ = run(
            "propose", earlier, "--lost", "lab", "--gone", "clinic", "--reason", "fire", "-o", out
        )
        fields = {"lost": ["lab"], "gone": ["clinic"], "cards": [], "reason": "fire"}
        assert (code, out.read_text(), calls.asked[-1]) == (0, "P", ("propose", (["E"], fields)))
        assert "may sign: clinic, hospital" in said
        assert "2 of those before it have to consent too: mill" in said
        assert "1 uncertified block is given up" in said
        code, said, _ = run("apply", earlier, earlier, out)
        assert (code, calls.asked[-1]) == (0, ("apply", ("E", ["E", "P"])))
        assert run("cancel") == (1, "", "it has left\n")


def test_what_cannot_be_read_or_signed_is_refused(run: Run, home: Home, tmp_path: Path) -> None:
    absent, plan = tmp_path / "absent", tmp_path / "plan"
    plan.write_bytes(b"\xff")
    for path in (absent, plan):
        code, _, error = run("sign", path, "-o", tmp_path / "signature")
        assert (code, "cannot be read" in error) == (1, True)
    plan.write_text("{}")
    code, _, error = run("sign", plan, "-o", tmp_path / "signature")
    assert (code, "no facility at" in error) == (1, True)  # no daemon, and no home either
    assert not home.config.exists()
