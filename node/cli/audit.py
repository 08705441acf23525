"""`carechain audit`: the log of accesses, and the verification of the ledger."""

import datetime as dt
import itertools
from collections.abc import Iterator
from typing import Annotated

import typer

from node.cli.audit_checkpoint import checkpoint
from node.cli.audit_receipt import receipt
from node.cli.audit_update import update
from node.cli.client import Client
from node.cli.output import Document, facts, progress, say, shown_ids, table
from node.cli.session import HomeOption, JsonOption, Session, noun
from node.cli.wallet import WalletOption, WalletPassphraseOption, wallet_fields
from protocol.errors import Unavailable

app = noun("audit", "Every certified access, and the proof of the whole ledger.")

app.command("checkpoint")(checkpoint)
app.command("receipt")(receipt)
app.command("update")(update)
_COLUMNS = ("time", "action", "facility", "purpose", "category", "record", "actor", "transaction", "height")


@app.command()
def log(
    patient: Annotated[str, typer.Option("--patient", metavar="P")],
    wallet: WalletOption = None,
    wallet_passphrase_file: WalletPassphraseOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who did what with a patient's records."""
    session = Session.start(home, as_json)
    sealed = wallet_fields(wallet, wallet_passphrase_file)
    session.output.document(Client(session.home).post("/v1/audit/log", patient=patient, **sealed), _show_log)


@app.command()
def verify(
    full: Annotated[
        bool, typer.Option("--full", help="Also read every stored chunk and every table.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute chain, tree and certificates; exit 1 when anything is wrong."""
    session = Session.start(home, as_json)
    result = _followed(Client(session.home).lines("/v1/audit/verify", full=full))
    session.output.document(result, _show_verification)
    if not result["ok"]:
        raise typer.Exit(1)


def _followed(lines: Iterator[Document]) -> Document:
    """Show the progress of each part on a terminal, and return the result.

    Raises:
        Unavailable: the answer ended before its result.
    """
    for part, group in itertools.groupby(lines, key=lambda line: line.get("progress", {}).get("part", "")):
        first = next(group)
        if "result" in first:
            result: Document = first["result"]
            return result
        with progress(f"Verifying {part}".strip(), first["progress"].get("total")) as show:
            for line in itertools.chain([first], group):
                show(int(line.get("progress", {}).get("done", 0)))
    raise Unavailable(
        "the verification broke off before its end; repeat it, and see the daemon's log if it stays so"
    )


def _show_log(document: Document) -> None:
    entries = document["entries"]
    short = shown_ids(
        entry[name] for entry in entries for name in ("record", "transaction", "grant") if entry.get(name)
    )
    rows = []
    for entry in entries:
        cells = {**entry, "time": _time(entry.get("time"))}
        for name in ("record", "transaction"):
            cells[name] = short(cells[name]) if cells.get(name) else None
        rows.append(cells)
    known = [name for name in _COLUMNS if any(row.get(name) for row in rows)]
    table(known, [[row.get(name) for name in known] for row in rows], empty="Nothing yet.")


def _time(value: object) -> object:
    """Return ledger time (Unix milliseconds) in UTC; a text as it is."""
    if isinstance(value, int):
        return dt.datetime.fromtimestamp(value / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return value


def _show_verification(document: Document) -> None:
    facts(
        [("verified", document["ok"]), ("height", document["height"]), ("tree root", document["tree_root"])]
    )
    for problem in document["problems"]:
        say(f"! {problem.get('text', problem) if isinstance(problem, dict) else problem}")
