"""`carechain verify`: check a receipt with no daemon, no home and no network."""

import datetime as dt
import typing
from pathlib import Path
from typing import Annotated

import typer

from node.cli.output import Document, facts, say
from node.cli.session import HomeOption, JsonOption, Session
from protocol import limits
from protocol.errors import Refused, RemoteFault

if typing.TYPE_CHECKING:
    from protocol.receipt_file import ReceiptFile


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A receipt of carechain audit receipt.")],
    trust: Annotated[
        Path | None,
        typer.Option(
            "--trust",
            metavar="GENESIS",
            help="The genesis.json of the network that is meant; without it only the receipt's own is known.",
        ),
    ] = None,
    newer: Annotated[
        Path | None,
        typer.Option(
            "--newer",
            metavar="RECEIPT",
            help="A newer receipt of the same network: what a recovery known to it has given up is refused.",
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that a transaction is in a network's certified history; exit 1 when anything about the receipt is wrong.

    Without --trust the receipt is checked against the network that it names itself, `trusted` is false, and the
    network id is what remains to be compared.
    """
    session = Session.start(home, as_json)
    try:
        document = checked(file, trust, newer)
    except Refused as refusal:
        if as_json:
            failed = {"ok": False, "height": None, "time": None, "trusted": False, "error": str(refusal)}
            session.output.document(failed, _show)
        raise
    session.output.document(document, _show)
    if not document["trusted"]:
        session.output.notice(
            "note: the receipt brings its own genesis; compare the network id with one you trust, or name --trust genesis.json"
        )


def checked(file: Path, trust: Path | None, newer: Path | None = None) -> Document:
    """Return what a receipt proves; `newer` is a receipt that may know of a later epoch.

    Raises:
        Refused: which check failed, or a file that cannot be read.
    """
    from node.card_file import read_genesis  # noqa: PLC0415  (these load signing keys' code)
    from protocol import receipt_file  # noqa: PLC0415
    from protocol.configuration import network_id  # noqa: PLC0415

    trusted = None if trust is None else network_id(read_genesis(trust))
    data = _read(file)
    try:
        receipt = receipt_file.decode(data)
        finding = receipt_file.check(receipt, trusted)
    except RemoteFault as fault:
        raise Refused(f"{file} proves nothing: {fault}") from None
    if newer is not None:
        _compare(file, receipt, newer)
    return {
        "ok": True,
        "network": finding.network.hex(),
        "trusted": trusted is not None,
        "epoch": finding.epoch,
        "height": finding.height,
        "time": _iso_time(finding.time_ms),
        "time_ms": finding.time_ms,
        "index": finding.index,
        "transaction": finding.txid and finding.txid.hex(),
        "kind": finding.kind,
        "leaf": finding.leaf.hex(),
        "configuration_changes": len(receipt.proof.changes),
        "votes": len(receipt.proof.certificate.votes),
        "signers": len(finding.in_force.configuration.signers),
        "bytes": len(data),
    }


def _compare(file: Path, receipt: "ReceiptFile", newer: Path) -> None:
    """Check that a receipt is not of a branch that a recovery has given up, by the proof in a newer one."""
    from protocol import change_proof, receipt_file  # noqa: PLC0415
    from protocol.configuration import network_id  # noqa: PLC0415

    try:
        known = receipt_file.decode(_read(newer))
        receipt_file.check(known, network_id(receipt.proof.genesis))
    except RemoteFault as fault:
        raise Refused(f"{newer} proves nothing: {fault}") from None
    try:
        change_proof.check_not_given_up(receipt.proof.header, known.proof.changes)
    except RemoteFault as fault:
        raise Refused(f"{file}: {fault}") from None


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(limits.RECEIPT_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise Refused(f"{file} cannot be read ({error.strerror}); name a receipt") from None


def _iso_time(time_ms: int) -> str | None:
    """Return Unix milliseconds as UTC; None beyond the calendar, which a made-up network may sign."""
    try:
        return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return None


def _show(document: Document) -> None:
    names = (
        "network",
        "trusted",
        "epoch",
        "height",
        "time",
        "index",
        "transaction",
        "kind",
        "configuration_changes",
    )
    facts((name.replace("_", " "), document[name]) for name in names)
    say(
        f"In the certified history: {document['votes']} of {document['signers']} signers vouch for it. "
        "Whether the ledger accepted it, a receipt does not say."
    )
