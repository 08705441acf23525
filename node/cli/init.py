"""`carechain init`: make a facility's keys, settings and card."""

import os
import secrets
import shutil
import typing
from pathlib import Path
from typing import Annotated

import typer

from node.cli.output import Document, facts, say
from node.cli.session import HomeOption, JsonOption, PassphraseFileOption, Session, find_passphrase

if typing.TYPE_CHECKING:
    # Loaded at run time only when a home is really made: they bring keys and databases with them.
    from node.config import Config
    from node.home import Home


def init(
    *,
    name: Annotated[str, typer.Option("--name", help="The facility's name in the network.")],
    kind: Annotated[
        str, typer.Option("--kind", help="hospital, clinic, lab, insurer, regulator or patient.")
    ] = "hospital",
    role: Annotated[str, typer.Option("--role", help="voter, witness or observer.")] = "voter",
    listen: Annotated[
        list[str] | None,
        typer.Option("--listen", metavar="MULTIADDR", help="Where to listen [default: /ip4/0.0.0.0/tcp/0]."),
    ] = None,
    announce: Annotated[
        list[str] | None, typer.Option("--announce", metavar="MULTIADDR", help="What to tell others instead.")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", metavar="MULTIADDR", help="A facility to dial besides those found."),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option("--http", metavar="HOST:PORT", help="Answer /healthz, /metrics and /checkpoint here."),
    ] = None,
    no_passphrase: Annotated[
        bool, typer.Option("--no-passphrase", help="Keep the key that opens the keys in a file of the home.")
    ] = False,
    recovery_key: Annotated[
        Path | None,
        typer.Option(
            "--recovery-key",
            metavar="FILE",
            help="Where to write the key that opens backups, at best on a medium kept elsewhere [default: recovery.key in the home].",
        ),
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a facility's keys, config.toml and card.json in a new home."""
    from node.config import LISTEN_DEFAULT, Config  # noqa: PLC0415  (see the head of this module)

    session = Session.start(home, as_json)
    config = Config(
        name=name,
        # The literal types hold after check(), which refuses every other text.
        kind=typing.cast("typing.Any", kind),
        role=typing.cast("typing.Any", role),
        listen=tuple(listen or LISTEN_DEFAULT),
        announce=tuple(announce or ()),
        peers=tuple(peer or ()),
        http=http,
    )
    config.check()
    session.home.make()
    document = _make(session.home, config, passphrase_file, recovery_key, sealed=not no_passphrase)
    session.output.document(document, _show)


def _make(
    home: "Home", config: "Config", passphrase_file: Path | None, recovery_file: Path | None, *, sealed: bool
) -> Document:
    from node.card_file import card_text  # noqa: PLC0415
    from node.config import render  # noqa: PLC0415
    from node.home import write_atomically  # noqa: PLC0415
    from node.identity import create_keystore  # noqa: PLC0415
    from node.recovery_key import make_recovery_key  # noqa: PLC0415
    from protocol.identifiers import peer_id  # noqa: PLC0415

    # What libraries write (database files) has no mode of its own choosing: nobody but the owner reads it.
    os.umask(0o077)
    made = [home.config, home.card, home.key_file]
    try:
        passphrase = find_passphrase(passphrase_file, new=True) if sealed else None
        recovery_file = recovery_file or home.recovery_key
        recovery = make_recovery_key(recovery_file, secrets.token_bytes)
        made.append(recovery_file)
        identity = create_keystore(home, passphrase, secrets.token_bytes, recovery=recovery)
        card = identity.card(config)
        write_atomically(home.card, card_text(card).encode(), mode=0o644)
        # The settings come last: a home without them was not finished, and no other command takes it.
        write_atomically(home.config, render(config).encode())
    except BaseException:
        # The home was empty before: nothing but what we have just made is lost.
        for path in made:
            path.unlink(missing_ok=True)
        shutil.rmtree(home.keys, ignore_errors=True)
        raise
    return {
        "facility": config.name,
        "peer_id": peer_id(card.member.node),
        "card": str(home.card),
        "recovery_key": str(recovery_file),
    }


def _show(document: Document) -> None:
    facts(
        (name.replace("_", " "), document[name]) for name in ("facility", "peer_id", "card", "recovery_key")
    )
    say("Next: give card.json to whoever runs carechain genesis.")
    say("Keep the recovery key away from this machine, on paper or in a safe: without it no backup opens.")
