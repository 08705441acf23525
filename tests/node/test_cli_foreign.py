"""`carechain foreign` and its routes: what is sent, what is shown, what is refused before anything is sent."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.cli.foreign import UPDATE_BYTES_MAX
from node.cli.main import main
from node.home import Home
from node.web.answers import JSON_BODY_BYTES_MAX
from protocol.errors import NotFinal, Refused
from tests.node.web_services import Calls, serving

Run = Callable[..., tuple[int, str, str]]
NETWORK = "12" * 32
KNOWN = {
    "network": NETWORK,
    "height": 7,
    "tree_size": 5,
    "confirmed": "2026-01-01T00:00:00Z",
    "freshness": "fresh",
    "conflict": False,
}


class Networks(Calls):
    """The service `foreign`, recording what it is asked."""

    def networks(self) -> dict[str, Any]:
        return {"networks": [KNOWN]}

    async def add(self, genesis: str, policy: str) -> dict[str, Any]:  # type: ignore[override]
        return self._told("add", genesis, policy)

    async def update(self, data: bytes) -> dict[str, Any]:
        return self._told("update", data)

    async def confirm(self, network: str, newest: str) -> dict[str, Any]:
        return self._told("confirm", network, newest)

    def _told(self, *asked: Any) -> dict[str, Any]:
        self.asked.append((asked[0], asked[1:]))
        if self.refusal is not None:
            raise self.refusal
        return KNOWN


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], home: Home) -> Run:
    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in (*arguments, "--home", home.path)])
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {"genesis": b"{}", "policy": b"quorum none\n", "update": bytes(range(256))}
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    return {name: tmp_path / name for name in made}


def test_files_are_sent_whole(run: Run, home: Home, files: dict[str, Path]) -> None:
    calls = Networks()
    with serving(home, calls):
        added = run("foreign", "add", files["genesis"], "--policy", files["policy"], "--json")
        updated = run("foreign", "update", files["update"], "--json")
        confirmed = run("foreign", "confirm", NETWORK[:8].upper(), "ab" * 32, "--json")

    assert [json.loads(out) for _, out, _ in (added, updated, confirmed)] == [KNOWN] * 3
    assert calls.asked == [
        ("add", ("{}", "quorum none\n")),
        ("update", (bytes(range(256)),)),
        ("confirm", (NETWORK[:8], "ab" * 32)),
    ]


def test_status_is_a_table(run: Run, home: Home) -> None:
    with serving(home, Networks()):
        code, out, _ = run("foreign", "status")

    assert code == 0
    assert out.splitlines()[1].split("\t") == [NETWORK, "7", "5", KNOWN["confirmed"], "fresh", "no"]


def test_refusals_and_what_is_queued_keep_their_exit_codes(
    run: Run, home: Home, files: dict[str, Path]
) -> None:
    calls = Networks()
    with serving(home, calls):
        calls.refusal = Refused("the update does not hold: why; ask another member of the network")
        assert run("foreign", "update", files["update"]) == (1, "", f"{calls.refusal}\n")
        calls.refusal = NotFinal("it is queued", ("ab" * 32,), {"height": 7})
        code, out, _ = run("foreign", "update", files["update"], "--json")

    assert code == 3
    assert json.loads(out) == {"height": 7, "ids": ["ab" * 32]}


@pytest.mark.parametrize("verb", ["add", "update"])
def test_files_that_are_not_there_or_too_large_are_refused(run: Run, tmp_path: Path, verb: str) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(4 * 1024 * 1024))

    assert "cannot be read" in run("foreign", verb, tmp_path / "absent")[2]
    assert "too large" in run("foreign", verb, large)[2]


def test_an_update_of_the_longest_kind_fits_a_request() -> None:
    body = json.dumps({"update": base64.b64encode(bytes(UPDATE_BYTES_MAX)).decode()})

    assert len(body) <= JSON_BODY_BYTES_MAX
