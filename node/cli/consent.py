"""`carechain consent`: grant, list, revoke."""

import re
from typing import Annotated

import typer

from node.cli.client import Client
from node.cli.output import Document, say, shown_ids, table
from node.cli.session import HomeOption, JsonOption, Session, noun
from node.cli.wallet import WalletOption, WalletPassphraseOption, wallet_fields
from protocol.errors import Refused

app = noun("consent", "Who may read what, and why.")

EXPIRES_DEFAULT = "365d"
PURPOSE_DEFAULT = "TREAT"
_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_EXPOSES = (
    "all: {to} will be able to read every category of this patient, now and later: mental-health, substance-use and "
    "sexual-health records and whole documents (mixed) included"
)
_HONEST = (
    "From now on every facility's own daemon refuses this reader. This version has no release gate (suite 0x00): a modified "
    "daemon that held the grant could have kept its keys, and read without a trace what was sealed before."
)


@app.command()
def grant(
    *,
    patient: Annotated[str, typer.Option("--patient", metavar="P")],
    to: Annotated[
        str, typer.Option("--to", metavar="FACILITY", help="A name, a peer id, or a unique prefix.")
    ],
    category: Annotated[
        list[str], typer.Option("--category", metavar="C", help="A category, repeated for more; or all.")
    ],
    purpose: Annotated[
        list[str] | None, typer.Option("--purpose", metavar="U", help="Default TREAT.")
    ] = None,
    expires: Annotated[
        str, typer.Option("--expires", metavar="365d", help="A number and s, m, h or d.")
    ] = EXPIRES_DEFAULT,
    write: Annotated[bool, typer.Option("--write", help="The facility may also add records.")] = False,
    wallet: WalletOption = None,
    wallet_passphrase_file: WalletPassphraseOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a facility read categories of a patient's records."""
    session = Session.start(home, as_json)
    expires_ms = duration_ms(expires)
    sealed = wallet_fields(wallet, wallet_passphrase_file)
    if "all" in category:
        session.output.notice(_EXPOSES.format(to=to))
    fields = {"patient": patient, "to": to, "categories": category, "purposes": purpose or [PURPOSE_DEFAULT]}
    client = Client(session.home)
    session.output.answer(
        lambda: client.post("/v1/consent/grant", **fields, expires_ms=expires_ms, write=write, **sealed),
        _show_grant,
    )


@app.command("list")
def list_grants(
    patient: Annotated[str, typer.Option("--patient", metavar="P")],
    wallet: WalletOption = None,
    wallet_passphrase_file: WalletPassphraseOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the grants of a patient."""
    session = Session.start(home, as_json)
    sealed = wallet_fields(wallet, wallet_passphrase_file)
    session.output.document(
        Client(session.home).post("/v1/consent/list", patient=patient, **sealed), _show_grants
    )


@app.command()
def revoke(
    grant_id: Annotated[
        str, typer.Argument(metavar="GRANT", help="One grant, or the id of a bundle of them.")
    ],
    wallet: WalletOption = None,
    wallet_passphrase_file: WalletPassphraseOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a grant back."""
    session = Session.start(home, as_json)
    sealed = wallet_fields(wallet, wallet_passphrase_file)
    client = Client(session.home)
    session.output.answer(
        lambda: client.post("/v1/consent/revoke", grant=grant_id, **sealed),
        lambda revoked: _show_revoked(revoked, grant_id),
    )
    session.output.notice(_HONEST)


def duration_ms(text: str) -> int:
    """Return the milliseconds of a duration such as 90s, 15m, 12h or 365d.

    Raises:
        Refused: not one.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text, re.ASCII)
    if match is None:
        raise Refused(f"'{text}' is not a duration; give a whole number and a unit: 90s, 15m, 12h or 365d")
    return int(match[1]) * _UNIT_MS[match[2]]


def _show_grant(document: Document) -> None:
    short = shown_ids([document["grant"], *(row["grant"] for row in document["grants"])])
    say(f"grant {short(document['grant'])}")
    table(
        ("grant", "category"),
        [(short(row["grant"]), row["category"]) for row in document["grants"]],
        empty="",
    )


def _show_grants(document: Document) -> None:
    grants = document["grants"]
    short = shown_ids(row["grant"] for row in grants)
    known = [
        name
        for name in ("category", "to", "purposes", "expires", "write", "state")
        if any(name in row for row in grants)
    ]
    rows = [(short(row["grant"]), *(row.get(name) for name in known)) for row in grants]
    table(("grant", *known), rows, empty="No grants.")


def _show_revoked(document: Document, asked: str) -> None:
    say(f"revoked {document.get('grant', asked)}")
