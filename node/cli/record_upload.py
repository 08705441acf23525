"""Sending files to the daemon: large ones piece by piece, small ones together; in order, each with its own outcome."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from node.cli.client import BODY_PIECE_BYTES, Client
from node.cli.output import Document, progress
from protocol.errors import CarechainError, NotFinal, Refused

_TOGETHER_BYTES = 3 * 1024 * 1024
"""Of files in one request: below what the daemon takes, and what it answers in a second or two."""


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

    def take(self, answer: Document) -> None:
        """Take the daemon's answer about one file."""
        self.records += answer["records"]
        self.notices += [answer["notice"]] if "notice" in answer else []


def add_files(client: Client, files: Sequence[Path], options: Mapping[str, object]) -> Added:
    """Send files in order. One that is refused does not keep the others out.

    Raises:
        Unavailable: no daemon runs; nothing more is tried.
    """
    added = Added()
    groups = list(_groups(files))
    title = files[0].name if len(files) == 1 else f"Adding {len(files)} files"
    total = sum(_size(file) or 0 for file in files)
    with progress(title, total, enabled=len(files) == 1 or len(groups) > 1, in_bytes=True) as show:
        done = 0
        for group in groups:
            try:
                if len(group) == 1:
                    _add_one(client, group[0], options, added, functools.partial(_show_more, show, done))
                else:
                    _add_together(client, group, options, added)
            except CarechainError as error:
                if len(files) == 1 or client.home.socket_path() is None:
                    added.alone = error
                    return added
                added.refused += [(file, error) for file in group]
            done += sum(_size(file) or 0 for file in group)
            show(done)
    return added


def _show_more(show: Callable[[int], None], before: int, done: int) -> None:
    show(before + done)


def _groups(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield the files in order: runs of small ones together, every other one alone."""
    from node.small_files import FILES_MAX, SMALL_BYTES_MAX  # noqa: PLC0415  (msgpack, not wanted on the way to --help)

    group: list[Path] = []
    size = 0
    for file in files:
        file_bytes = _size(file)
        is_small = file_bytes is not None and file_bytes <= SMALL_BYTES_MAX
        if group and (not is_small or len(group) == FILES_MAX or size + (file_bytes or 0) > _TOGETHER_BYTES):
            yield group
            group, size = [], 0
        if is_small:
            group.append(file)
            size += file_bytes or 0
        else:
            yield [file]
    if group:
        yield group


def _add_one(
    client: Client, file: Path, options: Mapping[str, object], added: Added, show: Callable[[int], None]
) -> None:
    try:
        with _opened(file) as opened:
            suffix = file.suffix.lower()
            added.take(client.upload("/v1/records", _pieces(opened, show), file_suffix=suffix, **options))
    except NotFinal as queued:
        records = queued.details.get("records", [])
        added.records += records if isinstance(records, list) else []
        added.queued += queued.ids


def _add_together(client: Client, files: list[Path], options: Mapping[str, object], added: Added) -> None:
    from node.small_files import SMALL_BYTES_MAX, SmallFile, encode_files  # noqa: PLC0415  (see above)

    said = dict(options)
    media_type = str(said.pop("media_type", None) or "")
    small, sent = list[SmallFile](), list[Path]()
    for file in files:
        try:
            with _opened(file) as opened:
                # A file that has grown meanwhile is refused rather than cut short.
                data = opened.read(SMALL_BYTES_MAX + 1)
            if len(data) > SMALL_BYTES_MAX:
                raise Refused(f"{file} is being written to; add it when it is complete")
        except Refused as error:
            added.refused.append((file, error))
            continue
        small.append(SmallFile(data, media_type, file.suffix.lower()))
        sent.append(file)
    if not small:
        return
    try:
        answer: Mapping[str, object] = client.upload("/v1/records/many", [encode_files(tuple(small))], **said)
    except NotFinal as queued:
        answer = queued.details
        added.queued += queued.ids
    outcomes = answer.get("files", [])
    for file, outcome in zip(sent, outcomes if isinstance(outcomes, list) else [], strict=False):
        if "error" in outcome:
            added.refused.append((file, Refused(outcome["error"])))
        else:
            added.take(outcome)


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None  # opening it says why


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
