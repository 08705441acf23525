"""`carechain record`: add, list, status, get, export, erase."""

from pathlib import Path
from typing import Annotated

import typer

from node.cli.client import Client
from node.cli.output import Document, facts, printable, say, shown_ids, table
from node.cli.record_erase import erase
from node.cli.record_export import export_records
from node.cli.record_get import fetch
from node.cli.record_upload import add_files
from node.cli.session import HomeOption, JsonOption, Session, noun

app = noun("record", "Records: add, find, read.")

PURPOSE_DEFAULT = "TREAT"
_COLUMNS = ("kind", "category", "state", "bytes", "duplicate", "day", "height")


@app.command()
def add(
    *,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE…", help="FHIR, HL7 v2, C-CDA, DICOM, PDF, or anything else.")
    ],
    patient: Annotated[
        str | None,
        typer.Option("--patient", metavar="P", help="Whose record it is [default: whom the document names]."),
    ] = None,
    category: Annotated[
        str | None, typer.Option("--category", metavar="C", help="Do not sort: put it into this category.")
    ] = None,
    media_type: Annotated[
        str | None,
        typer.Option("--media-type", metavar="T", help="What the file is, when its name does not say."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Keep it for --patient although it names somebody else; recorded.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Seal, replicate and commit files; returns when they are final.

    From when all of a file has been sealed the daemon goes on by itself, and pushes nothing again that others hold; interrupted
    before, nothing of it is kept and the command is to be repeated.
    """
    session = Session.start(home, as_json)
    options = {"patient": patient, "category": category, "media_type": media_type, "force": force}
    added = add_files(Client(session.home), files, options)
    if added.alone is not None:
        raise added.alone
    document: Document = {"records": added.records}
    if added.refused:
        document["refused"] = [{"file": str(file), "error": str(error)} for file, error in added.refused]
    if added.queued:
        document["ids"] = added.queued
    session.output.document(document, _show_records)
    for notice in added.notices:
        session.output.notice(notice)
    for file, error in added.refused:
        session.output.notice(f"{file}: {error}")
    if added.exit_code:
        if added.queued:
            session.output.notice(
                "safely queued, not final yet; it becomes final by itself, and repeating the command shows the same ids"
            )
        raise typer.Exit(added.exit_code)


@app.command("list")
def list_records(
    *,
    patient: Annotated[str, typer.Option("--patient", metavar="P")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a patient's records: id, category, day, state. Writes nothing to the ledger."""
    session = Session.start(home, as_json)
    session.output.document(Client(session.home).post("/v1/records/list", patient=patient), _show_records)


@app.command()
def status(
    *,
    record: Annotated[str, typer.Argument(metavar="ID")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the state of a record and its family. Writes nothing to the ledger."""
    session = Session.start(home, as_json)
    session.output.document(Client(session.home).post("/v1/records/status", record=record), _show_records)


@app.command()
def get(
    *,
    record: Annotated[str, typer.Argument(metavar="RECORD")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Replaced only when all of it has come.")
    ],
    purpose: Annotated[str, typer.Option("--purpose", metavar="U")] = PURPOSE_DEFAULT,
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="NAME", help="Who asks; sealed so that the patient alone sees it."),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a record; the reading is written to the ledger first. Repeated after an interruption, it goes on where it stood."""
    session = Session.start(home, as_json)
    client = Client(session.home)
    session.output.answer(
        lambda: fetch(client, output, record=record, purpose=purpose, user=user), _show_read
    )


@app.command()
def export(
    *,
    patient: Annotated[str, typer.Option("--patient", metavar="P")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="An empty folder, or one to be made.")
    ],
    purpose: Annotated[str, typer.Option("--purpose", metavar="U")] = PURPOSE_DEFAULT,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read everything readable of a patient into a folder."""
    session = Session.start(home, as_json)
    document = export_records(Client(session.home), patient=patient, purpose=purpose, folder=output)
    session.output.document(
        document, lambda done: facts((name, done[name]) for name in ("records", "folder", "bundle_resources"))
    )


app.command()(erase)


def _show_records(document: Document) -> None:
    records = document["records"]
    short = shown_ids(
        record[name] for record in records for name in ("record", "transaction") if record.get(name)
    )
    known = [name for name in _COLUMNS if any(name in record for record in records)]
    rows = [
        (
            short(record["record"]),
            *(record.get(name) for name in known),
            short(record.get("transaction") or "") or None,
        )
        for record in records
    ]
    table(("record", *known, "transaction"), rows, empty="No records.")


def _show_read(document: Document) -> None:
    facts(
        [
            (name, printable(str(document[name])))
            for name in ("bytes", "sha256", "transaction")
            if name in document
        ]
    )
    if "bytes" not in document:
        say("The reading is queued.")
