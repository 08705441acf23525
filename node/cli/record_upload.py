"""Sending files to the daemon: piece by piece, one after the other, each with its own outcome."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from node.cli.client import BODY_PIECE_BYTES, Client
from node.cli.output import progress
from protocol.errors import CarechainError, NotFinal, Refused


@dataclass(slots=True)
class Added:
    """What became of the files of one command. `alone` is the error of the only file, told as the command's own."""

    records: list[object] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    queued: list[str] = field(default_factory=list)
    refused: list[tuple[Path, CarechainError]] = field(default_factory=list)
    alone: CarechainError | None = None

    @property
    def exit_code(self) -> int:
        """1 when a file was refused, else 3 when one is not final, else 0."""
        return 1 if self.refused else 3 if self.queued else 0


def add_files(client: Client, files: Sequence[Path], options: Mapping[str, object]) -> Added:
    """Send files in order. One that is refused does not keep the others out.

    Raises:
        Unavailable: no daemon runs; nothing more is tried.
    """
    added = Added()
    for file in files:
        try:
            with (
                _opened(file) as opened,
                progress(file.name, file.stat().st_size, in_bytes=True) as show,
            ):
                suffix = file.suffix.lower()
                answer = client.upload("/v1/records", _pieces(opened, show), file_suffix=suffix, **options)
            added.records += answer["records"]
            added.notices += [answer["notice"]] if "notice" in answer else []
        except NotFinal as queued:
            records = queued.details.get("records", [])
            added.records += records if isinstance(records, list) else []
            added.queued += queued.ids
        except CarechainError as error:
            if len(files) == 1 or client.home.socket_path() is None:
                added.alone = error
                return added
            added.refused.append((file, error))
    return added


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise Refused(f"{file} cannot be read ({error.strerror}); name another file") from None


def _pieces(opened: BinaryIO, show: Callable[[int], None]) -> Iterator[bytes]:
    done = 0
    while piece := opened.read(BODY_PIECE_BYTES):
        yield piece
        done += len(piece)
        show(done)
