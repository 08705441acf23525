"""`carechain verify`: with no daemon, no home and no network; and one sentence for everything that is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from node.bench.made_history import MadeHistory, transactions
from node.card_file import genesis_text
from node.cli.main import main
from protocol import receipt_file

Run = Callable[..., tuple[int, str, str]]

CHAIN = MadeHistory.of("one", "two", "three", "four")
CHAIN.rotate(3)
CHAIN.cut(*transactions(4, CHAIN.network))
HEIGHT = 4
RECEIPT = CHAIN.receipt(HEIGHT, 2)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("CARECHAIN_HOME", str(tmp_path / "no home"))

    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "receipt"
    path.write_bytes(receipt_file.encode(RECEIPT))
    return path


@pytest.fixture
def genesis(tmp_path: Path) -> Path:
    path = tmp_path / "genesis.json"
    path.write_text(genesis_text(CHAIN.genesis))
    return path


def test_a_receipt_of_the_trusted_network_is_verified(
    run: Run, file: Path, genesis: Path, tmp_path: Path
) -> None:
    code, out, error = run("verify", file, "--trust", genesis, "--json")

    document = json.loads(out)
    assert (code, error) == (0, "")
    assert document["ok"] is document["trusted"] is True
    assert (document["height"], document["index"], document["network"]) == (HEIGHT, 2, CHAIN.network.hex())
    assert document["time"] == "2023-11-14T22:13:20Z"
    assert document["transaction"] == CHAIN.blocks[HEIGHT].entries()[2][1].hex()
    assert not (tmp_path / "no home").exists()


def test_without_trust_it_says_whose_word_was_taken(run: Run, file: Path) -> None:
    code, out, error = run("verify", file, "--json")

    document = json.loads(out)
    assert code == 0
    assert (document["ok"], document["trusted"]) == (True, False)
    assert "compare the network id" in error


def test_people_read_what_is_and_what_is_not_proven(run: Run, file: Path, genesis: Path) -> None:
    code, out, _ = run("verify", file, "--trust", genesis)

    assert code == 0
    assert CHAIN.network.hex() in out
    assert "Whether the ledger accepted it, a receipt does not say." in out


def spoiled(data: bytes, name: str) -> bytes:
    match name:
        case "truncated":
            return data[: len(data) // 2]
        case "reordered":
            lines = data.split(b"\n")
            return b"\n".join([*lines[:-3], lines[-2], lines[-3], lines[-1]])
        case "unsigned text":
            return data.replace(b"\n\n", b"\nnote checked\n\n")
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("truncated", "the file is cut short"),
        ("reordered", ""),
        ("unsigned text", "proves nothing"),
    ],
)
def test_a_spoiled_file_is_refused_in_one_sentence_and_in_json(
    run: Run, file: Path, name: str, sentence: str
) -> None:
    file.write_bytes(spoiled(file.read_bytes(), name))

    code, out, error = run("verify", file, "--json")

    document = json.loads(out)
    assert code == 1
    assert (document["ok"], document["height"], document["time"]) == (False, None, None)
    assert error == document["error"] + "\n"
    assert f"{file} proves nothing: " in error
    assert sentence in error


def test_a_receipt_of_another_network_is_refused(run: Run, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(genesis_text(MadeHistory.of("one", nonce="other").genesis))

    code, out, error = run("verify", file, "--trust", other)

    assert (code, out) == (1, "")
    assert f"a receipt of another network: {CHAIN.network.hex()}" in error


def test_files_that_cannot_be_read_are_named(run: Run, file: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    code, out, error = run("verify", absent, "--json")
    assert code == 1
    assert json.loads(out)["ok"] is False
    assert f"{absent} cannot be read" in error

    code, out, error = run("verify", file, "--trust", absent, "--json")
    assert code == 1
    assert json.loads(out)["ok"] is False
    assert f"{absent} cannot be read" in error


def test_wrong_usage_is_told_apart(run: Run) -> None:
    assert run("verify")[0] == 2
    assert run("verify", "a", "b")[0] == 2


def test_a_time_beyond_the_calendar_does_not_break_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.bench.made_history.BEGIN_MS", 2**62)
    chain = MadeHistory.of("one", nonce="far future")
    chain.cut(*transactions(1, chain.network))
    path = tmp_path / "future"
    path.write_bytes(receipt_file.encode(chain.receipt(1)))

    code, out, _ = run("verify", path, "--json")

    assert code == 0
    assert json.loads(out)["time"] is None
    assert json.loads(out)["time_ms"] == 2**62


def test_a_newer_receipt_tells_what_a_recovery_has_given_up(run: Run, tmp_path: Path) -> None:
    names, body = ("one", "two", "three"), transactions(4, MadeHistory.of("one", "two", "three").network)
    recovered, left_behind = MadeHistory.of(*names), MadeHistory.of(*names)
    for history in (recovered, left_behind):
        history.cut(*body[:2])
    recovered.recover("three")
    recovered.cut(body[3])
    left_behind.cut(body[2])
    files = {name: tmp_path / name for name in ("before", "given-up", "newer")}
    for name, history, height in (
        ("before", left_behind, 1),
        ("given-up", left_behind, 2),
        ("newer", recovered, 3),
    ):
        files[name].write_bytes(receipt_file.encode(history.receipt(height)))
        assert run("verify", files[name])[0] == 0

    assert run("verify", files["before"], "--newer", files["newer"])[0] == 0
    code, _, error = run("verify", files["given-up"], "--newer", files["newer"])
    assert (code, "recovery into epoch 1 goes on from block 1" in error) == (1, True)
    files["newer"].write_bytes(b"nothing")
    code, _, error = run("verify", files["before"], "--newer", files["newer"])
    assert (code, f"{files['newer']} proves nothing" in error) == (1, True)
