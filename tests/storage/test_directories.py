from pathlib import Path

from storage.directories import move_aside


def test_a_database_is_moved_aside_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "payloads"
    for content in ("first", "second"):
        path.mkdir()
        (path / "CURRENT").write_text(content)
        assert move_aside(path) is not None
        assert not path.exists()

    assert move_aside(path) is None
    assert (tmp_path / "payloads.damaged-1" / "CURRENT").read_text() == "first"
    assert (tmp_path / "payloads.damaged-2" / "CURRENT").read_text() == "second"
