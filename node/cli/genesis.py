"""`carechain genesis`: found a network from its founding members' cards."""

import secrets
from pathlib import Path
from typing import Annotated

import typer

from node.cli.output import Document, facts, say, table
from node.cli.session import HomeOption, JsonOption, Session

VOTERS_FOR_FAULTS = 3


def genesis(
    cards: Annotated[
        list[Path], typer.Argument(metavar="CARD…", help="The card.json of every founding member.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where to write genesis.json.")
    ],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the genesis configuration of a new network from the founding members' cards."""
    from node.card_file import genesis_text, read_card  # noqa: PLC0415  (these load signing keys' code)
    from node.home import write_atomically  # noqa: PLC0415
    from protocol.configuration import found, network_id  # noqa: PLC0415
    from protocol.identifiers import peer_id  # noqa: PLC0415

    session = Session.start(home, as_json)
    configuration = found(tuple(read_card(path) for path in cards), nonce=secrets.token_bytes(32))
    write_atomically(output, genesis_text(configuration).encode(), mode=0o644)
    if len(configuration.voters) < VOTERS_FOR_FAULTS:
        session.output.notice(
            f"warning: voters: {len(configuration.voters)}; with fewer than {VOTERS_FOR_FAULTS} the network stops when one is away"
        )
    document = {
        "network": network_id(configuration).hex(),
        "members": [
            {"name": member.name, "kind": member.kind, "role": member.role, "peer_id": peer_id(member.node)}
            for member in configuration.members
        ],
        "file": str(output),
    }
    session.output.document(document, _show)


def _show(document: Document) -> None:
    facts([("network", document["network"]), ("file", document["file"])])
    rows = [
        (member["name"], member["kind"], member["role"], member["peer_id"]) for member in document["members"]
    ]
    table(("name", "kind", "role", "peer id"), rows, empty="no members")
    say("Next: give the file to every member, who starts with carechain run --genesis FILE.")
