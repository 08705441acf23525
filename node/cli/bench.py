"""`carechain bench`: figures of this machine, beside what its parts can do."""

import re
from typing import Annotated

import typer

from node.cli.output import Document, table
from node.cli.session import HomeOption, JsonOption, Session, noun
from protocol.errors import Refused

app = noun("bench", "Figures of this machine, beside what its parts can do.")

MinutesOption = Annotated[
    float | None, typer.Option("--minutes", metavar="N", min=0.05, max=1440.0, help="How long to measure.")
]
CompareOption = Annotated[
    bool, typer.Option("--compare", help="Also show each figure as a share of the machine's own.")
]
_UNIT_BYTES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


@app.command()
def consensus(
    minutes: MinutesOption = None,
    disk_delay: Annotated[
        float,
        typer.Option(
            "--disk-delay", metavar="MS", min=0, help="Let every synchronised write take so much longer."
        ),
    ] = 0,
    compare: CompareOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Order signed transactions with three voters: rate and latency."""
    from node.bench import consensus as measured  # noqa: PLC0415  (loads the daemon's code, not wanted on the way to --help)

    session = Session.start(home, as_json)
    _report(
        session,
        measured.measure(
            minutes=minutes, disk_delay_ms=disk_delay, compare=compare, show=session.output.notice
        ),
    )


@app.command()
def storage(
    minutes: MinutesOption = None,
    fill: Annotated[
        str | None,
        typer.Option(
            "--fill",
            metavar="SIZE",
            help="Only fill one store, for example 20G; three times that must be free.",
        ),
    ] = None,
    compare: CompareOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Seal, store and read records on one node, and copy them to three; with --compare, beside restic and borg too."""
    from node.bench import storage as measured  # noqa: PLC0415  (see above)
    from node.system import tune_interpreter  # noqa: PLC0415  (see above)

    session = Session.start(home, as_json)
    tune_interpreter()  # as a daemon's process is, for what is measured in this one
    fill_bytes = None if fill is None else size_bytes(fill)
    _report(
        session,
        measured.measure(minutes=minutes, fill_bytes=fill_bytes, compare=compare, show=session.output.notice),
    )


@app.command()
def catchup(
    fill: Annotated[
        str | None,
        typer.Option("--fill", metavar="SIZE", help="How much ledger is to be caught up, for example 40M."),
    ] = None,
    compare: CompareOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Catch up with three voters that went on: rate, and what it costs them."""
    from node.bench import catchup as measured  # noqa: PLC0415  (see above)

    session = Session.start(home, as_json)
    fill_bytes = None if fill is None else size_bytes(fill)
    _report(session, measured.measure(fill_bytes=fill_bytes, compare=compare, show=session.output.notice))


@app.command()
def verify(compare: CompareOption = False, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Check receipts behind many changes of configuration: processor time, and bytes."""
    from node.bench import receipts as measured  # noqa: PLC0415  (see above)

    session = Session.start(home, as_json)
    _report(session, measured.measure(compare=compare, show=session.output.notice))


def size_bytes(text: str) -> int:
    """Return the bytes of a size such as 512M, 2GiB or 1048576.

    Raises:
        Refused: not one.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,14})([kmg]?)(?:i?b)?", text.lower(), re.ASCII)
    if match is None:
        raise Refused(f"'{text}' is not a size; give a whole number and K, M or G, for example 512M")
    return int(match[1]) * _UNIT_BYTES[match[2]]


def _report(session: Session, document: Document) -> None:
    session.output.document(document, _show)


def _show(document: Document) -> None:
    rows = [
        (row["name"], row["value"], row["unit"], row["target"], row["met"]) for row in document["figures"]
    ]
    table(("figure", "value", "unit", "target", "met"), rows, empty="No figures.")
    for part in ("ingredients", "ratios"):
        if document.get(part):
            columns = list(document[part][0])
            table(columns, [[row.get(name) for name in columns] for row in document[part]], empty="")
