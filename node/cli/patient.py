"""`carechain patient`: register, list, hand over."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from node.cli.client import BODY_PIECE_BYTES, Client
from node.cli.handover import hand_over
from node.cli.output import Document, facts, say, shown_ids, table
from node.cli.session import HomeOption, JsonOption, Session, find_passphrase, noun, read_passphrase
from protocol.errors import Refused

app = noun("patient", "Patients of this facility, and those who granted it access.")


@app.command()
def register(
    *,
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="FILE|-", help="A FHIR Patient or a Bundle with one; - reads standard input."
        ),
    ] = None,
    identifier: Annotated[
        list[str] | None,
        typer.Option("--identifier", metavar="SYSTEM|VALUE", help="An identifier; others can see it here."),
    ] = None,
    birth_date: Annotated[
        str | None, typer.Option("--birth-date", metavar="YYYY-MM-DD", help="Others can see it here.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Others can see it here.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a patient; a known identifier returns the same patient."""
    session = Session.start(home, as_json)
    if source is None and not identifier and not (name and birth_date):
        raise Refused(
            "nothing identifies the patient; give --from FILE with a FHIR Patient, or --identifier 'SYSTEM|VALUE'"
        )
    if identifier or birth_date or name:
        session.output.notice(
            "warning: others on this machine can see what stands on a command line; --from FILE keeps it from them"
        )
    options = {
        "identifiers": [_identifier(text) for text in identifier or ()],
        "name": name,
        "birth_date": birth_date,
    }
    document = Client(session.home).upload("/v1/patients", _pieces(source), **options)
    session.output.document(
        document, lambda found: facts([("patient", found["patient"]), ("known before", found["known"])])
    )


@app.command("list")
def list_patients(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List own patients and those who granted this facility access."""
    session = Session.start(home, as_json)
    session.output.document(Client(session.home).get("/v1/patients"), _show)


@app.command()
def handover(
    *,
    patient: Annotated[str, typer.Argument(metavar="PATIENT", help="The patient's local handle.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="WALLET", help="Where to write the wallet file.")
    ],
    wallet_passphrase_file: Annotated[
        Path | None,
        typer.Option(
            "--wallet-passphrase-file",
            metavar="FILE",
            help="The passphrase the patient chose for the wallet.",
        ),
    ] = None,
    no_grant: Annotated[
        bool, typer.Option("--no-grant", help="Do not grant this facility access back.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand custody to the patient: a wallet file under the patient's own passphrase; this facility's copy is deleted."""
    session = Session.start(home, as_json)
    client = Client(session.home)
    if wallet_passphrase_file is not None:
        passphrase = read_passphrase(wallet_passphrase_file)
    elif sys.stdin.isatty():
        passphrase = find_passphrase(None, new=True)
    else:
        raise Refused("no passphrase for the wallet is given; name its file with --wallet-passphrase-file")
    session.output.answer(
        lambda: hand_over(
            client, session.output, patient=patient, wallet=output, passphrase=passphrase, grant=not no_grant
        ),
        _show_wallet,
    )


def _show_wallet(document: Document) -> None:
    facts([("wallet", document["wallet"])])
    say("The patient keeps this file and its passphrase; nobody can replace either.")


def _show(document: Document) -> None:
    patients = document["patients"]
    short = shown_ids(patient["patient"] for patient in patients)
    rows = [
        (
            short(patient["patient"]),
            patient["name"],
            patient["custody"],
            patient["granted_by"],
            patient["categories"],
        )
        for patient in patients
    ]
    table(
        ("patient", "name", "custody", "granted by", "categories"),
        rows,
        empty="No patients yet; carechain patient register adds one.",
    )


def _identifier(text: str) -> list[str]:
    system, bar, value = text.rpartition("|")
    if not bar or not system or not value:
        raise Refused(
            "an identifier is SYSTEM|VALUE, for example 'http://hospital.example/mrn|123'; quote it for the shell"
        )
    return [system, value]


def _pieces(source: str | None) -> Iterator[bytes]:
    """Yield the bytes of a file, or of standard input for `-`; opened before the first piece is asked for."""
    if source is None:
        return iter(())
    try:
        file = sys.stdin.buffer if source == "-" else Path(source).open("rb")  # noqa: SIM115  (closed by the generator below)
    except OSError as error:
        raise Refused(f"{source} cannot be read ({error.strerror}); name another file") from None

    def pieces() -> Iterator[bytes]:
        with contextlib.closing(file):
            while piece := file.read(BODY_PIECE_BYTES):
                yield piece

    return pieces()
