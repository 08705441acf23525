"""The home directory: one daemon, private, and never half a file."""

import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from node.home import Home, replacing, write_all, write_atomically
from protocol.errors import Refused


def test_a_new_home_is_for_its_owner_only(tmp_path: Path) -> None:
    Home(tmp_path / "a" / "b").make()
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_a_directory_that_is_no_home_keeps_its_mode(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    theirs.chmod(0o755)
    (theirs / "file").touch()

    with pytest.raises(Refused, match="not empty"):
        Home(theirs).make()

    assert stat.S_IMODE(theirs.stat().st_mode) == 0o755


def test_nothing_that_exists_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="not empty"):
        Home(tmp_path).make()
    with pytest.raises(Refused):
        Home(tmp_path / "file").make()


def test_home_is_found_from_option_then_environment_then_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CARECHAIN_HOME", raising=False)
    assert Home.locate(None).path == tmp_path / ".carechain"
    monkeypatch.setenv("CARECHAIN_HOME", str(tmp_path / "env"))
    assert Home.locate(None).path == tmp_path / "env"
    assert Home.locate(Path("here")).path == Path.cwd() / "here"


def test_a_second_holder_is_refused_and_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with home.lock(), pytest.raises(Refused, match="already running"), home.lock():
        pass
    process = multiprocessing.get_context("fork").Process(target=_die_holding, args=(home,))
    process.start()
    process.join()
    with home.lock():
        assert process.exitcode == 7


def _die_holding(home: Home) -> None:
    with home.lock():
        os._exit(7)


def test_the_old_file_stays_when_writing_fails(tmp_path: Path) -> None:
    file = tmp_path / "answer"
    file.write_bytes(b"old")
    with pytest.raises(OSError), replacing(file) as descriptor:
        _write_then_break_off(descriptor)
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["answer"]


def _write_then_break_off(descriptor: int) -> None:
    write_all(descriptor, b"new")
    write_all(-1, b"more")


def test_a_written_file_is_whole_and_private(tmp_path: Path) -> None:
    write_atomically(tmp_path / "answer", b"new" * 1000)
    assert (tmp_path / "answer").read_bytes() == b"new" * 1000
    assert stat.S_IMODE((tmp_path / "answer").stat().st_mode) == 0o600


def test_a_device_or_directory_is_never_replaced(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null"), tmp_path / "absent" / "file"):
        with pytest.raises(Refused):
            write_atomically(path, b"x")
    assert Path("/dev/null").is_char_device()
