"""`carechain audit checkpoint`: the signed head of the ledger, for anybody who wants to hold us to it."""

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from node.cli.client import Client
from node.cli.output import Document, facts, say
from node.cli.session import HomeOption, JsonOption, Session
from node.home import write_atomically


def checkpoint(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the checkpoint there.")
    ] = None,
    witnessed: Annotated[
        bool, typer.Option("--witnessed", help="The newest that an outside witness has cosigned.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the newest checkpoint with every signature and cosignature on it (C2SP tlog-checkpoint).

    With --json also the keys that sign this ledger's checkpoints, which the operator of an outside witness needs, and the key
    of this node if it is a witness of logs itself.
    """
    session = Session.start(home, as_json)
    path = "/v1/audit/checkpoint" + ("?witnessed" if witnessed else "")
    document = Client(session.home).get(path)
    if output is not None:
        # It is made to be shown around.
        write_atomically(output, document["checkpoint"].encode(), mode=0o644)
        document["file"] = str(output)
    session.output.document(document, _show)


def _show(document: Document) -> None:
    if "file" not in document:
        for line in document["checkpoint"].removesuffix("\n").split("\n"):
            say(line)
        return
    facts(
        [
            ("checkpoint", document["file"]),
            ("transactions", document["tree_size"]),
            ("tree root", document["tree_root"]),
            ("signed by", ", ".join(document["signed_by"])),
            ("cosigned by", ", ".join(map(_cosigner, document["cosigned_by"]))),
        ]
    )


def _cosigner(cosignature: Document) -> str:
    when = dt.datetime.fromtimestamp(cosignature["time_s"], dt.UTC)
    return f"{cosignature['name']} ({when:%Y-%m-%d %H:%M:%SZ})"
