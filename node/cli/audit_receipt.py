"""`carechain audit receipt`: a file by which anyone can check that a transaction is in the certified history."""

import base64
from pathlib import Path
from typing import Annotated

import typer

from node.cli.client import Client
from node.cli.output import Document, facts, say
from node.cli.session import HomeOption, JsonOption, Session
from node.home import write_atomically


def receipt(
    transaction: Annotated[
        str, typer.Argument(metavar="TRANSACTION", help="Its id, or the beginning of it.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where to write the receipt.")
    ],
    leaf_only: Annotated[
        bool,
        typer.Option(
            "--leaf-only",
            help="Leave the transaction's bytes out: the receipt then proves their hash, to who has them already.",
        ),
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a self-contained receipt of a final transaction; carechain verify checks it without any daemon."""
    session = Session.start(home, as_json)
    document = Client(session.home).post("/v1/audit/receipt", transaction=transaction, leaf_only=leaf_only)
    data = base64.b64decode(document.pop("receipt"))
    # It is made to be shown around.
    write_atomically(output, data, mode=0o644)
    session.output.document({**document, "file": str(output), "bytes": len(data)}, _show)


def _show(document: Document) -> None:
    names = ("file", "bytes", "transaction", "height", "index", "verdict", "network")
    facts((name, document[name]) for name in names)
    say("Whether the ledger accepted it is this member's word; the receipt proves that it is in the history.")
