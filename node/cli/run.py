"""`carechain run`: the daemon, in the foreground."""

import functools
import os
import secrets
import typing
from pathlib import Path
from typing import Annotated, Literal

import typer

from node.cli.session import HomeOption, JsonOption, PassphraseFileOption, Session, find_passphrase
from protocol.errors import CarechainError, Refused

if typing.TYPE_CHECKING:
    from node.home import Home
    from protocol.configuration import Configuration
    from protocol.identifiers import NodeId


def run(
    *,
    genesis: Annotated[
        Path | None,
        typer.Option("--genesis", metavar="FILE", help="Join the network of this genesis.json (once)."),
    ] = None,
    rebuild: Annotated[
        Literal["payloads", "ledger"] | None,
        typer.Option("--rebuild", help="Move a damaged database aside and refill it."),
    ] = None,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option("--log-level")] = "info",
    log_format: Annotated[Literal["text", "json"], typer.Option("--log-format")] = "text",
    passphrase_file: PassphraseFileOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the facility's daemon until SIGTERM or Ctrl-C."""
    from node import config, identity  # noqa: PLC0415  (loaded by the daemon only, not on the way to --help)

    place = Session.start(home, as_json).home
    place.require()
    # What libraries write (database files) has no mode of its own choosing: nobody but the owner reads it.
    os.umask(0o077)
    settings = config.load(place.config)
    with place.lock():
        configuration, joins = _network(place, genesis)
        passphrase = find_passphrase(passphrase_file, new=False) if identity.needs_passphrase(place) else None
        with identity.opened_keystore(place, passphrase, secrets.token_bytes) as keystore:
            keys = identity.Identity.load(keystore)
            _check_membership(configuration, keys.node_id)
            if joins:
                _join(place, configuration)
            import trio  # noqa: PLC0415

            from node import daemon  # noqa: PLC0415

            serve = functools.partial(
                daemon.serve,
                place,
                settings,
                keys,
                configuration,
                keystore=keystore,
                rebuild=rebuild,
                log_level=log_level,
                log_format=log_format,
            )
            try:
                trio.run(serve)
            except BaseExceptionGroup as group:
                raise first_fault(group) from None


def first_fault(group: BaseException) -> BaseException:
    """Return what a user should hear of a failed nursery: our own refusal if there is one, else the first other error."""
    leaves: list[BaseException] = []
    pending = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            leaves.append(error)
    return next((leaf for leaf in leaves if isinstance(leaf, CarechainError)), leaves[0])


def _network(home: "Home", given: Path | None) -> "tuple[Configuration, bool]":
    """Return the network to serve, and whether this home joins it only now."""
    from node.card_file import read_genesis  # noqa: PLC0415
    from protocol.configuration import network_id  # noqa: PLC0415

    joined = read_genesis(home.genesis) if home.genesis.exists() else None
    if given is None:
        if joined is None:
            raise Refused(
                "this facility has joined no network yet; start it once with carechain run --genesis FILE"
            )
        return joined, False
    offered = read_genesis(given)
    if joined is not None and network_id(joined) != network_id(offered):
        raise Refused(
            f"this home belongs to network {network_id(joined).hex()[:16]} and {given} founds {network_id(offered).hex()[:16]}; "
            "make another home for another network"
        )
    return offered, joined is None


def _check_membership(genesis: "Configuration", node: "NodeId") -> None:
    if node not in genesis.by_node:
        raise Refused(
            "the genesis does not name this facility's card; make it again with this home's card.json among the cards"
        )


def _join(home: "Home", genesis: "Configuration") -> None:
    from node.card_file import genesis_text  # noqa: PLC0415
    from node.home import write_atomically  # noqa: PLC0415

    write_atomically(home.genesis, genesis_text(genesis).encode())
