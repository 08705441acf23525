"""Printing: one JSON document with `--json`; otherwise readable text, with colour and bars only on a terminal.

Results go to standard output, everything else (progress, notices, refusals) to standard error.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from protocol.errors import NotFinal

# Any: documents are JSON values as the daemon made them; commands only pass them on and print them.
Document = dict[str, Any]

ID_CHARACTERS_SHOWN = 12
"""48 bits of an id: unambiguous among the ids of one facility; longer where two shown ids agree so far."""


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command prints."""

    as_json: bool

    def document(self, document: Document, show: Callable[[Document], None]) -> None:
        """Print a result: as one JSON document, or as `show` writes it for people."""
        if self.as_json:
            sys.stdout.write(json.dumps(document) + "\n")
        else:
            show(document)
        sys.stdout.flush()

    def answer(self, call: Callable[[], Document], show: Callable[[Document], None]) -> None:
        """Print what `call` returns; when it is queued but not final, print what is known of it and pass NotFinal on."""
        try:
            document = call()
        except NotFinal as queued:
            if queued.details or self.as_json:
                # Without the full answer only --json has a form for what is left of it: the ids.
                self.document(
                    {**queued.details, "ids": list(queued.ids)}, show if queued.details else _show_nothing
                )
            raise
        self.document(document, show)

    def notice(self, sentence: str) -> None:
        """Tell a person something that is not part of the result."""
        sys.stderr.write(printable(sentence) + "\n")
        sys.stderr.flush()


def _show_nothing(_document: Document) -> None:
    """Print nothing: the sentence on standard error says it all."""


def say(line: str = "") -> None:
    """Print one line of a result for people."""
    sys.stdout.write(printable(line) + "\n")


def printable(text: str) -> str:
    """Return `text` without control characters: names come from other facilities, and a terminal obeys escape codes."""
    return "".join(character if character.isprintable() else "�" for character in text)


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values in two columns; empty values are left out."""
    rows = [(name, _cell(value)) for name, value in pairs if value not in (None, "", [], ())]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print rows under column headings: a drawn table on a terminal, tab-separated text in a pipe."""
    cells = [[printable(_cell(value)) for value in row] for row in rows]
    if not cells:
        say(empty)
    elif sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415  (only a terminal pays for loading it)
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            # On a narrow terminal a cell goes on below; cut short, an id would name nothing.
            drawn.add_column(column, overflow="fold")
        for row in cells:
            drawn.add_row(*(Text(cell) for cell in row))
        Console().print(drawn)
    else:
        for row in ([*columns], *cells):
            sys.stdout.write("\t".join(row) + "\n")  # the cells are printable already; the tab is ours


def shown_ids(ids: Iterable[str]) -> Callable[[str], str]:
    """Return how to show each of `ids`: in full in a pipe, shortened on a terminal as far as they stay different."""
    known = sorted(set(ids))
    if not sys.stdout.isatty():
        return str
    length = ID_CHARACTERS_SHOWN
    for first, second in itertools.pairwise(known):
        alike = next(
            (at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), len(first)
        )
        length = max(length, alike + 1)
    return lambda text: text[:length]


@contextmanager
def progress(
    title: str, total: int | None, *, enabled: bool = True, in_bytes: bool = False
) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the amount done so far; draws a bar on a terminal's standard error, else nothing.

    The bar shows the time left, how much is done, and how much is done in a second.
    """
    if not enabled or not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console  # noqa: PLC0415  (only a terminal pays for loading it)
    from rich.progress import (  # noqa: PLC0415
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TransferSpeedColumn,
    )
    from rich.text import Text  # noqa: PLC0415

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")

    amounts = (
        (DownloadColumn(binary_units=True), TransferSpeedColumn())
        if in_bytes
        else (MofNCompleteColumn(), Rate())
    )
    with Progress(
        *Progress.get_default_columns(), *amounts, console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task(printable(title), total=total)
        yield lambda done: bar.update(task, completed=done)


def _cell(value: object) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(_cell(item) for item in value)
        case _:
            return str(value)
