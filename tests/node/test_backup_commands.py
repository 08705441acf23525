"""`init`'s recovery key, and what `backup` and `restore` send, write, refuse and leave behind."""

import json
import os
import stat
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest

from node.cli.main import main
from node.home import Home
from node.identity import opened_keystore
from node.recovery_key import make_recovery_key, read_recovery_key
from node.services import Services
from protocol.errors import Corruption, Refused
from protocol.hpke import x25519_public
from tests.node.web_services import Calls, serving

Run = Callable[..., tuple[int, str, str]]
PIECES = (b"carechain-backup-1\n", bytes(1_500_000), b"end")


class Facility:
    """A daemon whose backup is a few bytes."""

    total = 10

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.failure: Exception | None = None
        self.public = b""

    async def begin(self, *, with_payloads: bool) -> "Facility":
        self.asked.append(with_payloads)
        if not self.public:
            raise Refused("this facility has no recovery key yet; add --new-recovery-key FILE")
        return self

    async def pieces(self, _stream: "Facility") -> AsyncGenerator[bytes, None]:
        yield PIECES[0]
        if self.failure is not None:
            raise self.failure
        for piece in PIECES[1:]:
            yield piece

    def summary(self) -> dict[str, Any]:
        return {"height": 7, "chunks": 2, "left_out": 1}

    async def set_recovery_key(self, public: bytes, passphrase: str | None) -> None:
        if passphrase == "wrong":
            raise Refused("wrong passphrase: it does not open the keys of this home")
        self.public = public


class Daemon(Calls):
    """The services of `web_services`, and this backup."""

    def __init__(self, facility: Facility) -> None:
        super().__init__()
        self._facility = facility

    @property
    def services(self) -> Services:
        return replace(super().services, backup=cast("Any", self._facility))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("CARECHAIN_HOME", "CARECHAIN_PASSPHRASE_FILE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)

    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def home() -> Iterator[Home]:
    with TemporaryDirectory(dir="/tmp") as folder:
        made = Home(Path(folder) / "h")
        made.make()
        yield made


def test_init_makes_a_recovery_key_that_opens_the_keys(run: Run, tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("correct horse")
    key = tmp_path / "medium" / "recovery.key"
    key.parent.mkdir()
    code, out, _ = run(
        "init", "--name", "A", "--home", tmp_path / "h", "--passphrase-file", tmp_path / "passphrase",
        "--recovery-key", key, "--json",
    )  # fmt: skip

    with opened_keystore(Home(tmp_path / "h"), "correct horse", os.urandom) as keystore:
        assert keystore.recovery_key() == x25519_public(read_recovery_key(key))
    assert code == 0
    assert json.loads(out)["recovery_key"] == str(key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert not Home(tmp_path / "h").recovery_key.exists()


def test_init_that_cannot_write_the_recovery_key_leaves_nothing(run: Run, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for file in (taken, tmp_path / "absent" / "key"):
        code, _, error = run(
            "init", "--name", "A", "--home", tmp_path / "h", "--no-passphrase", "--recovery-key", file
        )
        assert code == 1
        assert "name another file" in error
        assert list((tmp_path / "h").iterdir()) == []
    assert taken.read_text() == "mine"


def test_a_backup_is_written_whole(run: Run, tmp_path: Path, home: Home) -> None:
    facility = Facility()
    facility.public = bytes(32)
    with serving(home, Daemon(facility)):
        code, out, error = run("backup", "-o", tmp_path / "b", "--payloads", "--home", home.path, "--json")

    document = json.loads(out)
    assert (code, facility.asked) == (0, [True])
    assert (tmp_path / "b").read_bytes() == b"".join(PIECES)
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600
    assert (document["bytes"], document["height"]) == (sum(map(len, PIECES)), 7)
    assert "1 damaged chunks" in error


def test_a_backup_that_fails_on_the_way_leaves_the_old_file_and_says_why(
    run: Run, tmp_path: Path, home: Home
) -> None:
    (tmp_path / "b").write_text("the backup of yesterday")
    facility = Facility()
    facility.public = bytes(32)
    facility.failure = Corruption("database ledger holds damaged bytes: run `carechain run --rebuild ledger`")
    with serving(home, Daemon(facility)):
        code, out, error = run("backup", "-o", tmp_path / "b", "--home", home.path)

    assert (code, out) == (1, "")
    assert error == "database ledger holds damaged bytes: run `carechain run --rebuild ledger`\n"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").read_text() == "the backup of yesterday"


def test_a_home_of_an_older_version_gets_its_recovery_key_with_a_backup(
    run: Run, tmp_path: Path, home: Home
) -> None:
    (home.path / "keystore.key").touch()
    facility = Facility()
    with serving(home, Daemon(facility)):
        refused = run("backup", "-o", tmp_path / "b", "--home", home.path)
        made = run(
            "backup", "-o", tmp_path / "b", "--new-recovery-key", tmp_path / "key", "--home", home.path
        )
        again = run(
            "backup", "-o", tmp_path / "b", "--new-recovery-key", tmp_path / "key", "--home", home.path
        )

    assert (refused[0], made[0], again[0]) == (1, 0, 1)
    assert "--new-recovery-key" in refused[2]
    assert "never overwritten" in again[2]
    assert facility.public == x25519_public(read_recovery_key(tmp_path / "key"))


def test_a_recovery_key_that_the_daemon_refused_is_not_kept(run: Run, tmp_path: Path, home: Home) -> None:
    (tmp_path / "passphrase").write_text("wrong")
    facility = Facility()
    with serving(home, Daemon(facility)):
        code, _, error = run(
            "backup", "-o", tmp_path / "b", "--new-recovery-key", tmp_path / "key",
            "--passphrase-file", tmp_path / "passphrase", "--home", home.path,
        )  # fmt: skip

    assert (code, facility.public) == (1, b"")
    assert "wrong passphrase" in error
    assert {path.name for path in tmp_path.iterdir()} == {"passphrase"}


def test_a_recovery_key_that_stays_on_the_machine_is_warned_of(run: Run, tmp_path: Path, home: Home) -> None:
    make_recovery_key(home.recovery_key, os.urandom)
    facility = Facility()
    facility.public = bytes(32)
    with serving(home, Daemon(facility)):
        code, _, error = run("backup", "-o", tmp_path / "b", "--home", home.path)

    assert code == 0
    assert "move it away from this machine" in error


@pytest.mark.parametrize("options", [(), ("--recovery-key", "/nonexistent"), ("--recovery-key", "b")])
def test_restore_without_its_key_is_refused_in_one_sentence(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b").write_text("no backup, and no key")
    with open(os.devnull) as nothing:  # noqa: PTH123
        monkeypatch.setattr("sys.stdin", nothing)
        code, out, error = run("restore", "b", *options, "--home", tmp_path / "h")

    assert (code, out) == (1, "")
    assert error.count("\n") == 1
    assert "recovery key" in error
    assert not (tmp_path / "h").exists()
