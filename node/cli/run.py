"""`carechain run`: the daemon, in the foreground."""

import functools
import os
import secrets
import time
import typing
from pathlib import Path
from typing import Annotated, Literal

import typer

from node.cli.session import HomeOption, JsonOption, PassphraseFileOption, Session, find_passphrase
from protocol.errors import CarechainError, Refused

if typing.TYPE_CHECKING:
    from node.home import Home
    from node.ticket import Invitation
    from protocol.configuration import Configuration
    from protocol.identifiers import NodeId


def run(
    *,
    genesis: Annotated[
        Path | None,
        typer.Option("--genesis", metavar="FILE", help="Join the network of this genesis.json (once)."),
    ] = None,
    ticket: Annotated[
        Path | None,
        typer.Option("--ticket", metavar="FILE", help="Join the network that this ticket leads to (once)."),
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
    from node.key_rotation import first_node_id  # noqa: PLC0415

    place = Session.start(home, as_json).home
    place.require()
    # What libraries write (database files) has no mode of its own choosing: nobody but the owner reads it.
    os.umask(0o077)
    settings = config.load(place.config)
    with place.lock():
        configuration, joins = (
            _network(place, genesis) if ticket is None else _ticketed_network(place, genesis, ticket)
        )
        passphrase = find_passphrase(passphrase_file, new=False) if identity.needs_passphrase(place) else None
        with identity.opened_keystore(place, passphrase, secrets.token_bytes) as keystore:
            keys = identity.Identity.load(keystore)
            invitation = _invitation(place, ticket, first_node_id(keys, keystore), configuration)
            if joins and invitation is None:
                _join(place, configuration)
            import trio  # noqa: PLC0415

            from node import daemon  # noqa: PLC0415

            serve = functools.partial(
                daemon.serve,
                place,
                settings,
                configuration,
                invitation=invitation,
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


def _ticketed_network(home: "Home", genesis: Path | None, ticket: Path) -> "tuple[Configuration, bool]":
    """Return the network that a ticket leads to, and whether this home joins it only now."""
    from node.card_file import read_genesis  # noqa: PLC0415
    from node.ticket import read_ticket  # noqa: PLC0415

    if genesis is not None:
        raise Refused("a ticket brings its own genesis; name --ticket or --genesis, not both")
    offered, _ = read_ticket(ticket)
    joined = read_genesis(home.genesis) if home.genesis.exists() else None
    if joined is not None and joined.digest != offered.genesis.digest:
        raise Refused(
            f"this home belongs to network {joined.digest.hex()[:16]} and {ticket} leads to "
            f"{offered.network.hex()[:16]}; make another home for another network"
        )
    return offered.genesis, joined is None


def _invitation(
    home: "Home", given: Path | None, node: "NodeId", genesis: "Configuration"
) -> "Invitation | None":
    """Return the ticket by which this home joins or has joined; None for a founding member.

    Raises:
        Refused: a ticket that cannot be used here, or neither founder nor ticket.
    """
    from node.home import write_atomically  # noqa: PLC0415
    from node.ticket import Invitation, check_ticket, read_ticket, ticket_text  # noqa: PLC0415

    if node in genesis.by_node:
        return None
    if home.ticket.exists():
        held, nonce = read_ticket(home.ticket)
        if given is None or home.genesis.exists() or read_ticket(given)[0] == held:
            return Invitation(held, nonce)
    if given is None:
        raise Refused(
            "the genesis does not name this facility's card; make it again with this home's card.json among the cards, "
            "or ask a member for a ticket and start with carechain run --ticket FILE"
        )
    ticket, _ = read_ticket(given)
    check_ticket(ticket, node, time.time_ns() // 1_000_000)
    nonce = secrets.token_bytes(32)
    # Kept before it is redeemed: whoever crashes in between repeats it with the same nonce.
    write_atomically(home.ticket, ticket_text(ticket, nonce).encode())
    return Invitation(ticket, nonce)


def _join(home: "Home", genesis: "Configuration") -> None:
    from node.card_file import genesis_text  # noqa: PLC0415
    from node.home import write_atomically  # noqa: PLC0415

    write_atomically(home.genesis, genesis_text(genesis).encode())
