"""`carechain audit update`: a file that brings those who follow our network further, who need not believe us."""

import base64
from pathlib import Path
from typing import Annotated

import typer

from node.cli.client import Client
from node.cli.output import Document, facts, say
from node.cli.session import HomeOption, JsonOption, Session
from node.home import write_atomically


def update(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where to write the update.")
    ],
    since: Annotated[
        int, typer.Option("--since", metavar="HEIGHT", min=0, help="The height that they know already.")
    ] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what another network's members need to follow ours; they read it with carechain foreign update."""
    session = Session.start(home, as_json)
    document = Client(session.home).post("/v1/audit/update", since=since)
    data = base64.b64decode(document.pop("update"))
    # Headers, votes and hashes: made to be sent to others.
    write_atomically(output, data, mode=0o644)
    session.output.document({**document, "file": str(output), "bytes": len(data)}, _show)


def _show(document: Document) -> None:
    facts((name, document[name]) for name in ("file", "bytes", "since", "height"))
    say("They need our genesis.json as well, once, from somebody they trust.")
