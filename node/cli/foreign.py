"""`carechain foreign`: other networks, followed by their headers and recorded on our ledger."""

import base64
from pathlib import Path
from typing import Annotated

import typer

from node.cli.client import Client
from node.cli.output import Document, facts, table
from node.cli.session import HomeOption, JsonOption, Session, noun
from protocol import limits
from protocol.errors import Refused

app = noun("foreign", "Other networks: followed by their headers, recorded on our ledger.")

_COLUMNS = ("network", "height", "tree_size", "confirmed", "freshness", "conflict")
UPDATE_BYTES_MAX = 3 * limits.MIB - limits.KIB
"""In base64 within the longest body of a request; an update over 100 changes has half a MiB."""


@app.command()
def add(
    genesis: Annotated[
        Path, typer.Argument(metavar="GENESIS", help="The other network's genesis.json, agreed out of band.")
    ],
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            metavar="FILE",
            help="Whose word counts beside their certificates, as in C2SP tlog-policy.",
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Begin to follow another network; repeated, take another policy."""
    session = Session.start(home, as_json)
    fields = {
        "genesis": _text(genesis, limits.MIB),
        "policy": "" if policy is None else _text(policy, limits.POLICY_BYTES_MAX),
    }
    session.output.document(Client(session.home).post("/v1/foreign/add", **fields), _show)


@app.command()
def update(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="What a member of the network made with carechain audit update."),
    ],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check an update, come further with it, and record the network's newest header on our ledger."""
    session = Session.start(home, as_json)
    encoded = base64.b64encode(_read(file, UPDATE_BYTES_MAX)).decode()
    client = Client(session.home)
    session.output.answer(lambda: client.post("/v1/foreign/update", update=encoded), _show)


@app.command()
def confirm(
    network: Annotated[str, typer.Argument(metavar="NETWORK", help="Its id, or the beginning of it.")],
    newest: Annotated[
        str,
        typer.Argument(
            metavar="HASH", help="The hash of the newest header known here, as its members know it."
        ),
    ],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say that members of the network confirm its newest header known here, when it was not heard of for too long."""
    session = Session.start(home, as_json)
    document = Client(session.home).post("/v1/foreign/confirm", network=network.lower(), hash=newest)
    session.output.document(document, _show)


@app.command()
def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show how far each network is known, and how fresh that is."""
    session = Session.start(home, as_json)
    session.output.document(Client(session.home).get("/v1/foreign"), _show_all)


def _show(document: Document) -> None:
    facts((name.replace("_", " "), value) for name, value in document.items())


def _show_all(document: Document) -> None:
    rows = [[network[name] for name in _COLUMNS] for network in document["networks"]]
    table([name.replace("_", " ") for name in _COLUMNS], rows, empty="No other network is followed.")


def _read(file: Path, most: int) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(most + 1)
    except OSError as error:
        raise Refused(f"{file} cannot be read ({error.strerror}); name another file") from None
    if len(data) > most:
        raise Refused(f"{file} is too large for what it should be; name another file")
    return data


def _text(file: Path, most: int) -> str:
    try:
        return _read(file, most).decode()
    except UnicodeDecodeError:
        raise Refused(f"{file} is not text; name another file") from None
