"""`carechain backup` and `carechain restore`: a facility in one sealed file, and back onto an empty machine."""

import base64
import datetime as dt
import functools
import getpass
import os
import secrets
import sys
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from node.cli.client import Client
from node.cli.output import Document, facts, progress, say
from node.cli.session import (
    HomeOption,
    JsonOption,
    PassphraseFileOption,
    Session,
    find_passphrase,
    read_passphrase,
)
from node.home import Home, replacing, write_all
from protocol.errors import Refused, Unavailable

if typing.TYPE_CHECKING:
    from node.restore import Restored


def backup(
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Replaced only when all of it has come.")
    ],
    payloads: Annotated[
        bool,
        typer.Option(
            "--payloads", help="Take every stored chunk along, not only those that nobody else has."
        ),
    ] = False,
    new_recovery_key: Annotated[
        Path | None,
        typer.Option(
            "--new-recovery-key",
            metavar="FILE",
            help="Make another recovery key first, into a new file; it needs the passphrase of the keys.",
        ),
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the running facility, its keys and its ledger into one file that only the recovery key opens."""
    session = Session.start(home, as_json)
    client = Client(session.home)
    with replacing(output) as descriptor:
        if new_recovery_key is not None:
            _change_recovery_key(session.home, client, new_recovery_key, passphrase_file)
        document = _write(client, descriptor, with_payloads=payloads)
    session.output.document({"file": str(output), **document}, _show_backup)
    if session.home.recovery_key.exists():
        session.output.notice(
            f"the recovery key still lies in {session.home.recovery_key}: move it away from this machine, or it is lost with it"
        )
    if document["left_out"]:
        session.output.notice(
            f"{document['left_out']} damaged chunks are not in it; see carechain storage status"
        )


def restore(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What carechain backup has written.")],
    recovery_key: Annotated[
        Path | None,
        typer.Option(
            "--recovery-key", metavar="FILE", help="The facility's recovery key [default: asked for]."
        ),
    ] = None,
    new_passphrase_file: Annotated[
        Path | None,
        typer.Option(
            "--new-passphrase-file",
            metavar="FILE",
            help="Seal the keys under the passphrase in this file [default: what sealed them before].",
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a facility's home anew from a backup; it catches up with the others before it votes again."""
    from node.restore import restore as restored_from  # noqa: PLC0415  (brings databases along)

    session = Session.start(home, as_json)
    secret = _find_recovery_key(recovery_key)
    passphrase = read_passphrase(new_passphrase_file) if new_passphrase_file is not None else None
    # What libraries write (database files) has no mode of its own choosing: nobody but the owner reads it.
    os.umask(0o077)
    restored = restored_from(
        session.home,
        file,
        secret,
        passphrase=passphrase,
        entropy=secrets.token_bytes,
        now_ms=time.time_ns() // 1_000_000,
        started=functools.partial(progress, "Restoring", in_bytes=True),
    )
    session.output.document(_document(session.home, restored), _show_restored)


def _change_recovery_key(home: Home, client: Client, file: Path, passphrase_file: Path | None) -> None:
    from node.identity import needs_passphrase  # noqa: PLC0415
    from node.recovery_key import make_recovery_key  # noqa: PLC0415

    passphrase = find_passphrase(passphrase_file, new=False) if needs_passphrase(home) else None
    # The file first: a key that the daemon seals to and nobody has would open nothing.
    public = make_recovery_key(file, secrets.token_bytes)
    try:
        client.post("/v1/recovery-key", public=base64.b64encode(public).decode(), passphrase=passphrase)
    except Refused:
        file.unlink(missing_ok=True)
        raise
    # After any other failure the file stays: the daemon may have taken the key, and there is no other copy.


def _write(client: Client, descriptor: int, *, with_payloads: bool) -> Document:
    """Write the daemon's answer to a file; return its summary.

    Raises:
        Unavailable: the answer ended before the file did.
    """
    parts = client.records("/v1/backup", with_payloads=with_payloads)
    first, _ = next(parts)
    done, summary = 0, None
    with progress("Backing up", first["total"], in_bytes=True) as show:
        for header, body in parts:
            summary = header.get("summary")
            done += _write_body(descriptor, body)
            show(done)
    if summary is None:
        raise Unavailable(
            "the backup broke off before its end; repeat it, and see the daemon's log if it stays so"
        )
    return {"bytes": done, **summary}


def _write_body(descriptor: int, body: Iterator[bytes]) -> int:
    written = 0
    for piece in body:
        write_all(descriptor, piece)
        written += len(piece)
    return written


def _find_recovery_key(file: Path | None) -> bytes:
    from node.recovery_key import read_recovery_key  # noqa: PLC0415
    from protocol.backup import parse_recovery_key  # noqa: PLC0415

    if file is not None:
        return read_recovery_key(file)
    if not sys.stdin.isatty():
        raise Refused("no recovery key is given; name its file with --recovery-key")
    return parse_recovery_key(getpass.getpass("Recovery key: "))


def _document(home: Home, restored: "Restored") -> Document:
    return {
        "home": str(home.path),
        "facility": restored.contents.facility,
        "network": restored.contents.network.hex(),
        "made": dt.datetime.fromtimestamp(restored.contents.made_ms / 1000, dt.UTC).isoformat(),
        "height": restored.height,
        "bytes": restored.bytes,
        "chunks": restored.chunks,
    }


def _show_backup(document: Document) -> None:
    facts((name, document[name]) for name in ("file", "bytes", "height", "chunks"))


def _show_restored(document: Document) -> None:
    facts(document.items())
    say("Next: carechain run. It catches up with the other facilities, and votes again once it has.")
    say("The machine that this backup was made on must never run again with these keys.")
