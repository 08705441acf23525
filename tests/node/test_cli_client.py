"""The commands that talk to a daemon, over a real socket: what they send, print and write, and their exit codes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from node.cli.consent import duration_ms
from node.cli.main import main
from node.cli.output import printable, shown_ids
from node.home import Home
from protocol.errors import CarechainError, Forbidden, Unavailable
from tests.node.web_services import PIECE, RECORD, Calls, serving


class Terminal:
    """A daemon serving `calls`, and commands run against its home."""

    def __init__(self, home: Home, calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self.calls = calls
        self._capsys = capsys

    def run(self, *arguments: object) -> tuple[int, str, str]:
        code = main([*(str(argument) for argument in arguments), "--home", str(self.home.path)])
        return code, *self._capsys.readouterr()

    def document(self, *arguments: object, code: int = 0) -> dict[str, Any]:
        outcome = self.run(*arguments, "--json")
        assert outcome[0] == code, outcome[2]
        found = json.loads(outcome[1])
        assert isinstance(found, dict)
        return found

    def asked(self) -> Any:
        return self.calls.asked[-1][1]


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Iterator[Terminal]:
    with TemporaryDirectory(dir="/tmp") as folder:
        home = Home(Path(folder) / "h")
        home.make()
        calls = Calls()
        with serving(home, calls):
            yield Terminal(home, calls, capsys)


def test_status_is_printed_as_reported_and_readably(terminal: Terminal) -> None:
    assert terminal.document("status") == terminal.calls.report()
    code, out, _ = terminal.run("status")
    assert code == 0
    assert "leader            none" in out
    assert "without a trace" in out
    assert "! the clock is off" in out


def test_control_characters_of_other_facilities_do_not_reach_the_terminal(terminal: Terminal) -> None:
    _, out, _ = terminal.run("member", "list")
    assert "A�[31m" in out
    assert printable("a\x1b[2J\nb") == "a�[2J�b"


def test_record_add_sends_the_file_and_its_options(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "x.JSON").write_bytes(b"{}" * 1000)
    document = terminal.document("record", "add", tmp_path / "x.JSON", "--patient", "p", "--category", "labs")
    assert document["records"][0]["record"] == RECORD
    assert terminal.calls.received == 2000
    assert terminal.asked() == {
        "patient": "p", "category": "labs", "media_type": None, "file_suffix": ".json", "force": False,
    }  # fmt: skip


def test_record_add_refused_is_one_sentence_and_nothing_on_output(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(8 << 20))
    code, out, error = terminal.run("record", "add", tmp_path / "big", "--patient", "nobody", "--json")
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert terminal.run("record", "add", tmp_path / "absent", "--json")[:2] == (1, "")
    assert terminal.run("record", "add", tmp_path, "--json")[:2] == (1, "")


def test_record_add_queued_prints_the_ids_and_exits_3(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    document = terminal.document("record", "add", tmp_path / "x", "--patient", "queued", code=3)
    assert document["ids"] == [RECORD]
    assert document["records"][0]["state"] == "received"


def test_one_refused_file_does_not_keep_the_others_out(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    document = terminal.document("record", "add", tmp_path / "absent", tmp_path / "x", code=1)
    assert len(document["records"]) == 1
    assert document["refused"][0]["file"] == str(tmp_path / "absent")


def test_small_files_go_together_and_each_has_its_own_outcome(terminal: Terminal, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"bad" if name == "b" else name.encode())
    (tmp_path / "large").write_bytes(bytes(100_000))
    files = [tmp_path / name for name in ("a", "b", "large", "c", "absent")]

    document = terminal.document("record", "add", *files, "--patient", "p", "--category", "labs", code=1)

    assert [what for what, _ in terminal.calls.asked] == ["add_many", "add", "add"]
    assert len(document["records"]) == 3
    assert [one["file"] for one in document["refused"]] == [str(tmp_path / "b"), str(tmp_path / "absent")]
    assert "not what it says" in document["refused"][0]["error"]
    assert terminal.calls.asked[0][1] == {"patient": "p", "category": "labs", "force": False}


def test_small_files_that_wait_are_told_with_their_ids(terminal: Terminal, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())

    document = terminal.document(
        "record", "add", tmp_path / "a", tmp_path / "b", "--patient", "queued", code=3
    )

    assert document["ids"] == [RECORD]
    assert len(document["records"]) == 2


def test_record_get_writes_the_exact_bytes(terminal: Terminal, tmp_path: Path) -> None:
    document = terminal.document(
        "record", "get", "r", "-o", tmp_path / "answer", "--purpose", "ETREAT", "--user", "dr"
    )
    assert (tmp_path / "answer").read_bytes() == PIECE * 4
    assert (tmp_path / "answer").stat().st_mode & 0o777 == 0o600
    assert document["bytes"] == len(PIECE) * 4
    assert terminal.asked() == ("r", "ETREAT", "dr")


@pytest.mark.parametrize("trouble", ["refused", "broken", "altered"])
def test_record_get_keeps_the_old_file_when_it_fails(
    terminal: Terminal, tmp_path: Path, trouble: str
) -> None:
    (tmp_path / "answer").write_bytes(b"old")
    if trouble == "broken":
        terminal.calls.breaks_after = 2
    if trouble == "altered":
        terminal.calls.sha256 = "00" * 32
    outcome = terminal.run(
        "record", "get", "hidden" if trouble == "refused" else "r", "-o", tmp_path / "answer", "--json"
    )
    assert outcome[:2] == (1, "")
    assert outcome[2].count("\n") == 1
    assert (tmp_path / "answer").read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["answer"]


def interrupted(terminal: Terminal, file: Path) -> Path:
    """Read 40 pieces of which 30 come, and return what is left of it."""
    terminal.calls.pieces, terminal.calls.breaks_after = 40, 30
    assert terminal.run("record", "get", RECORD, "-o", file)[0] == 1
    terminal.calls.breaks_after = None
    (left,) = file.parent.glob(".*.part")
    return left


def test_an_interrupted_reading_goes_on_where_it_stood(terminal: Terminal, tmp_path: Path) -> None:
    left = interrupted(terminal, tmp_path / "answer")
    kept = left.stat().st_size

    document = terminal.document("record", "get", RECORD, "-o", tmp_path / "answer")

    assert left.name == f".answer.{RECORD}.part"
    assert 1 << 20 <= kept <= 30 * len(PIECE)
    assert terminal.calls.starts == [0, kept]
    assert (tmp_path / "answer").read_bytes() == PIECE * 40
    assert document["bytes"] == 40 * len(PIECE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["answer"]


def test_what_was_left_of_a_reading_is_read_anew_when_its_bytes_are_wrong(
    terminal: Terminal, tmp_path: Path
) -> None:
    left = interrupted(terminal, tmp_path / "answer")
    with left.open("r+b") as file:
        file.write(b"rot")

    terminal.document("record", "get", RECORD, "-o", tmp_path / "answer")

    assert len(terminal.calls.starts) == 3
    assert terminal.calls.starts[-1] == 0
    assert (tmp_path / "answer").read_bytes() == PIECE * 40
    assert [entry.name for entry in tmp_path.iterdir()] == ["answer"]


@pytest.mark.parametrize("trap", ["link", "readable"])
def test_a_hidden_file_that_somebody_else_may_read_is_not_gone_on_with(
    terminal: Terminal, tmp_path: Path, trap: str
) -> None:
    left = interrupted(terminal, tmp_path / "answer")
    if trap == "link":
        left.rename(tmp_path / "elsewhere")
        left.symlink_to(tmp_path / "elsewhere")
    else:
        left.chmod(0o644)

    terminal.document("record", "get", RECORD, "-o", tmp_path / "answer")

    assert terminal.calls.starts[-1] == 0
    assert (tmp_path / "answer").read_bytes() == PIECE * 40
    assert (tmp_path / "answer").stat().st_mode & 0o777 == 0o600


def test_a_reading_that_could_not_be_kept_is_never_asked_for(terminal: Terminal, tmp_path: Path) -> None:
    assert terminal.run("record", "get", "r", "-o", tmp_path)[0] == 1
    assert terminal.run("record", "get", "r", "-o", tmp_path / "absent" / "file")[0] == 1
    assert terminal.calls.asked == []


def test_record_export_names_files_by_id_and_wants_an_empty_folder(
    terminal: Terminal, tmp_path: Path
) -> None:
    document = terminal.document("record", "export", "--patient", "p", "-o", tmp_path / "out")
    assert document["records"] == 2
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == {
        RECORD,
        "ef" * 32,
        "bundle.json",
        "receipts.json",
    }
    assert (tmp_path / "out" / RECORD).read_bytes() == PIECE * 4
    assert json.loads((tmp_path / "out" / "bundle.json").read_text())["resourceType"] == "Bundle"
    code, _, error = terminal.run("record", "export", "--patient", "p", "-o", tmp_path / "out")
    assert (code, "not empty" in error) == (1, True)


@pytest.mark.parametrize("trouble", ["refused at once", "refused later", "broken", "altered"])
def test_record_export_tells_what_went_wrong(terminal: Terminal, tmp_path: Path, trouble: str) -> None:
    terminal.calls.breaks_after = 2 if trouble == "broken" else None
    terminal.calls.sha256 = "00" * 32 if trouble == "altered" else None
    terminal.calls.refusal = Forbidden("the grant has ended") if trouble == "refused later" else None
    patient = "nobody" if trouble == "refused at once" else "p"
    code, out, error = terminal.run(
        "record", "export", "--patient", patient, "-o", tmp_path / "out", "--json"
    )
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert not (tmp_path / "out" / "receipts.json").exists()


def test_patient_register_sends_the_file_and_warns_of_identifiers_on_the_command_line(
    terminal: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "p.json").write_bytes(b'{"resourceType":"Patient"}')
    code, out, error = terminal.run("patient", "register", "--from", tmp_path / "p.json", "--json")
    assert (code, json.loads(out), error) == (0, {"patient": "p1", "known": False}, "")
    assert terminal.asked()[0] == b'{"resourceType":"Patient"}'

    _, _, error = terminal.run(
        "patient", "register", "--identifier", "http://h.example/mrn|1|2", "--birth-date", "1970-01-01"
    )
    assert "command line" in error
    assert terminal.asked()[1]["identifiers"] == [("http://h.example/mrn|1", "2")]
    assert terminal.run("patient", "register")[0] == 1
    assert terminal.run("patient", "register", "--identifier", "1234")[0] == 1


def test_consent_grant_sends_what_was_asked_with_the_defaults(terminal: Terminal) -> None:
    arguments = (
        "consent",
        "grant",
        "--patient",
        "p",
        "--to",
        "B",
        "--category",
        "labs",
        "--category",
        "general",
    )
    document = terminal.document(*arguments)
    assert [row["category"] for row in document["grants"]] == ["labs", "general"]
    assert terminal.asked()["purposes"] == ["TREAT"]
    assert terminal.asked()["expires_ms"] == 365 * 86_400_000
    assert terminal.asked()["wallet"] is None


def test_granting_all_says_what_that_exposes(terminal: Terminal) -> None:
    _, out, error = terminal.run(
        "consent", "grant", "--patient", "p", "--to", "B", "--category", "all", "--json"
    )
    assert "mental-health" in error
    assert json.loads(out)["grant"]


def test_revoking_says_honestly_what_it_means(terminal: Terminal) -> None:
    code, out, error = terminal.run("consent", "revoke", "g1", "--json")
    assert (code, json.loads(out)) == (0, {"grant": "g1"})
    assert "modified daemon" in error


def test_a_wallet_travels_in_the_call_and_needs_its_passphrase(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"\0wallet")
    (tmp_path / "p").write_text("open\n")
    code, *_ = terminal.run(
        "audit",
        "log",
        "--patient",
        "p",
        "--wallet",
        tmp_path / "w",
        "--wallet-passphrase-file",
        tmp_path / "p",
    )
    wallet = terminal.asked()[1]
    assert (code, wallet.data, wallet.passphrase) == (0, b"\0wallet", b"open")
    assert "open" not in repr(wallet)
    assert terminal.run("audit", "log", "--patient", "p", "--wallet", tmp_path / "w")[0] == 1


def test_an_argument_that_is_not_utf_8_is_refused(terminal: Terminal) -> None:
    code, out, error = terminal.run("record", "list", "--patient", "\udcff")
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert "UTF-8" in error


def test_audit_log_shows_time_in_utc(terminal: Terminal) -> None:
    assert "2023-11-14 22:13:20Z" in terminal.run("audit", "log", "--patient", "p")[1]


def test_audit_verify_exits_1_when_something_is_wrong_and_prints_what(terminal: Terminal) -> None:
    assert terminal.document("audit", "verify")["ok"] is True
    assert terminal.document("audit", "verify", "--full", code=1)["problems"] == ["record x"]


@contextmanager
def handover_files(folder: Path) -> Iterator[tuple[Path, Path]]:
    (folder / "pass").write_text("their own")
    yield folder / "wallet", folder / "pass"


def test_handover_writes_the_wallet_before_the_facility_lets_go(terminal: Terminal, tmp_path: Path) -> None:
    with handover_files(tmp_path) as (wallet, passphrase):
        document = terminal.document(
            "patient", "handover", "p", "-o", wallet, "--wallet-passphrase-file", passphrase
        )
        assert document["wallet"] == str(wallet)
        assert wallet.read_bytes() == b"sealed wallet"
        assert terminal.calls.asked == [("prepare", ("p", b"their own")), ("complete", ("h1", True))]


@pytest.mark.parametrize(
    ("refusal", "stays"), [(Forbidden("not the custodian"), False), (Unavailable("no quorum"), True)]
)
def test_only_a_definite_refusal_takes_the_wallet_back(
    terminal: Terminal, tmp_path: Path, refusal: CarechainError, stays: bool
) -> None:
    terminal.calls.refusal = refusal
    with handover_files(tmp_path) as (wallet, passphrase):
        code, out, _ = terminal.run(
            "patient", "handover", "p", "-o", wallet, "--wallet-passphrase-file", passphrase, "--json"
        )
        assert (code, out) == (1, "")
        assert wallet.exists() is stays


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90_000), ("15m", 900_000), ("12h", 43_200_000), ("1d", 86_400_000)]
)
def test_durations_have_a_unit(text: str, expected: int) -> None:
    assert duration_ms(text) == expected


@pytest.mark.parametrize("text", ["", "5", "d", "-1d", "1w", "0d", "1.5h", "１d", "1d "])
def test_other_durations_are_refused(terminal: Terminal, text: str) -> None:
    code, _, error = terminal.run(
        "consent", "grant", "--patient", "p", "--to", "B", "--category", "labs", f"--expires={text}"
    )
    assert (code, "duration" in error) == (1, True)


def test_ids_are_shortened_on_a_terminal_only_and_stay_different(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ["ab" * 20 + "1", "ab" * 20 + "2", "cd" * 20]
    assert [shown_ids(ids)(text) for text in ids] == ids
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert len({shown_ids(ids)(text) for text in ids}) == 3
    assert shown_ids(ids[1:])(ids[2]) == "cdcdcdcdcdcd"
