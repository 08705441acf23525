"""`carechain record erase`: listed first, agreed to, then gone from every facility, each of which gives its word."""

import sys
from typing import Annotated

import typer

from node.cli.client import Client
from node.cli.output import Document, say, shown_ids, table
from node.cli.session import HomeOption, JsonOption, Session
from node.cli.wallet import WalletOption, WalletPassphraseOption, wallet_fields
from protocol.errors import Refused

_PATH = "/v1/records/erase"
_NOT_REACHED = (
    "Not reached by an erasure: what readers copied or exported before, backups, copies outside of this network, and what "
    "facilities that have left it did not delete."
)
_COLUMNS = ("kind", "category", "state", "day", "erased")


def erase(
    *,
    record: Annotated[str, typer.Argument(metavar="RECORD")],
    only: Annotated[
        bool,
        typer.Option(
            "--only",
            help="This record alone; refused while its original, a view or a copy holds the same.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask (neither does --json).")] = False,
    wallet: WalletOption = None,
    wallet_passphrase_file: WalletPassphraseOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase a record for good: its original, views, copies and versions, listed first, on every facility.

    Every facility deletes what it holds and signs that it did; one that is away is listed as pending and does it when it
    is back (repeat the command to see who has). Not reached: what a reader copied, exported or printed before, backups made
    before (a restored one deletes again as soon as it meets the network), and copies outside. The ledger keeps that the
    record existed, who read it and that it was erased, without content. The same file may be added again afterwards.
    """
    session = Session.start(home, as_json)
    sealed = wallet_fields(wallet, wallet_passphrase_file)
    client = Client(session.home)

    def erased() -> Document:
        listed = client.post(_PATH, record=record, only=only, **sealed)
        if "attestations" in listed:
            return listed  # asked for before: this is how far it has come
        if not as_json:
            _show_records(listed)
            if not yes:
                _agree(len(listed["records"]))
        rids = [entry["record"] for entry in listed["records"]]
        return client.post(_PATH, record=record, only=only, listed=rids, **sealed)

    session.output.answer(erased, _show)
    session.output.notice(_NOT_REACHED)


def _agree(count: int) -> None:
    """Ask a person.

    Raises:
        Refused: nobody is there to ask, or the answer is no.
    """
    if not sys.stdin.isatty():
        raise Refused("nothing was erased: this cannot be undone, and nobody is here to ask; give --yes")
    sys.stdout.flush()
    if not typer.confirm(f"Erase {_counted(count)} for good, on every facility?", err=True):
        raise Refused("nothing was erased")


def _counted(count: int) -> str:
    return "this record" if count == 1 else f"these {count} records"


def _show(document: Document) -> None:
    _show_records(document)
    attestations, pending = document.get("attestations", []), document.get("pending", [])
    facilities = sorted(
        {entry["facility"] for entry in attestations} - {entry["facility"] for entry in pending}
    )
    if facilities:
        say(f"destroyed and attested by {', '.join(facilities)}")
    short = shown_ids(entry["record"] for entry in pending)
    if pending:
        rows = [(entry["facility"], short(entry["record"]), entry["reason"]) for entry in pending]
        table(("pending", "record", "reason"), rows, empty="")


def _show_records(document: Document) -> None:
    records = document["records"]
    short = shown_ids(entry["record"] for entry in records)
    known = [name for name in _COLUMNS if any(entry.get(name) for entry in records)]
    rows = [(short(entry["record"]), *(entry.get(name) for name in known)) for entry in records]
    table(("record", *known), rows, empty="No records.")
