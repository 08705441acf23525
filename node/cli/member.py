"""`carechain member`: who is in the network, and its governance by ballot."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from node.cli.client import Client
from node.cli.consent import duration_ms
from node.cli.output import Document, facts, say, shown_ids, table
from node.cli.session import HomeOption, JsonOption, Session, noun
from protocol.errors import Refused

app = noun("member", "The facilities of the network, and governance by ballot.")

_CARD_BYTES_MAX = 1024 * 1024
ExpiresOption = Annotated[str, typer.Option("--expires", help="How long ballots are awaited: 90s, 12h, 30d.")]
RiskOption = Annotated[
    bool, typer.Option("--accept-risk", help="Accept what the change costs in safety, where it does.")
]


@app.command("list")
def list_members(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the members, the proposals, and what the network withstands."""
    session = Session.start(home, as_json)
    session.output.document(Client(session.home).get("/v1/members"), _show)


@app.command("propose")
def propose(
    what: Annotated[
        str | None, typer.Argument(metavar="CARD|NAME", help="A card file to add, or a member.")
    ] = None,
    *,
    role: Annotated[
        Literal["voter", "witness", "observer", "learner", "suspended"] | None,
        typer.Option("--role", help="The role to give; a voter begins as a learner."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Propose that the member leaves.")] = False,
    min_b: Annotated[
        int | None,
        typer.Option(
            "--min-b", min=0, metavar="N", help="Have the network tolerate at least N lying members."
        ),
    ] = None,
    expires: ExpiresOption = "30d",
    accept_risk: RiskOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Propose to add the facility of a card; to change a member's role, suspend, reinstate or remove it; or a new --min-b."""
    if (what is None) is (min_b is None):
        raise Refused("name a card file or a member, or --min-b alone")
    session = Session.start(home, as_json)
    fields = {
        "name": what,
        "card": None if what is None else _card_text(Path(what)),
        "role": role,
        "leaves": remove,
        "min_b": min_b,
        "expires_ms": duration_ms(expires),
        "accept_risk": accept_risk,
    }
    client = Client(session.home)
    session.output.answer(lambda: client.post("/v1/members/propose", **fields), _show_proposal)


@app.command("vote")
def vote(
    proposal: Annotated[str, typer.Argument(metavar="PROPOSAL")],
    ballot: Annotated[Literal["yes", "no"], typer.Argument(metavar="yes|no")],
    *,
    accept_risk: RiskOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cast this facility's ballot on a proposal."""
    session = Session.start(home, as_json)
    client = Client(session.home)
    session.output.answer(
        lambda: client.post(
            "/v1/members/vote", proposal=proposal, yes=ballot == "yes", accept_risk=accept_risk
        ),
        _show_proposal,
    )


@app.command("withdraw")
def withdraw(
    proposal: Annotated[str, typer.Argument(metavar="PROPOSAL")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back a proposal of this facility that is not in force yet."""
    session = Session.start(home, as_json)
    client = Client(session.home)
    session.output.answer(lambda: client.post("/v1/members/withdraw", proposal=proposal), _show_proposal)


@app.command("leave")
def leave(
    *,
    expires: ExpiresOption = "30d",
    accept_risk: RiskOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Propose that this facility leaves the network; the others decide."""
    session = Session.start(home, as_json)
    client = Client(session.home)
    fields = {"expires_ms": duration_ms(expires), "accept_risk": accept_risk}
    session.output.answer(lambda: client.post("/v1/members/leave", **fields), _show_proposal)


@app.command("rotate")
def rotate(
    *,
    governance: Annotated[bool, typer.Option("--governance", help="The key that signs ballots.")] = False,
    checkpoint: Annotated[bool, typer.Option("--checkpoint", help="The key that signs checkpoints.")] = False,
    node: Annotated[
        bool,
        typer.Option("--node", help="The key of its connections and its peer id; not while it signs blocks."),
    ] = False,
    expires: ExpiresOption = "30d",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Propose new keys for this facility, made now and signed for by its old ones; they are kept beside the old ones till then."""
    session = Session.start(home, as_json)
    client = Client(session.home)
    wanted = {"governance": governance, "checkpoint": checkpoint, "node": node}
    keys = [name for name, is_wanted in wanted.items() if is_wanted]
    session.output.answer(
        lambda: client.post("/v1/members/rotate", keys=keys, expires_ms=duration_ms(expires)), _show_proposal
    )


@app.command("ticket")
def ticket(
    who: Annotated[str, typer.Argument(metavar="CARD|NAME", help="The facility that was proposed.")],
    *,
    output: Annotated[Path, typer.Option("-o", metavar="FILE", help="Where to write the ticket.")],
    expires: Annotated[str, typer.Option("--expires", help="How long it may be used: 12h, 7d.")] = "7d",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the ticket by which a proposed facility joins: carechain run --ticket FILE, once."""
    from node.card_file import parse_card  # noqa: PLC0415  (not on the way to --help)
    from node.home import write_atomically  # noqa: PLC0415
    from protocol.identifiers import peer_id  # noqa: PLC0415

    session = Session.start(home, as_json)
    card = _card_text(Path(who))
    facility = who if card is None else peer_id(parse_card(card, source=who).member.node)
    made = Client(session.home).post("/v1/members/ticket", facility=facility, expires_ms=duration_ms(expires))
    write_atomically(output, made["ticket"].encode())
    session.output.document({"facility": who, "file": str(output)}, lambda document: facts(document.items()))


def _card_text(path: Path) -> str | None:
    """Return the text of a card file; None where there is no such file, and a member is meant."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            data = file.read(_CARD_BYTES_MAX + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise Refused(f"{path} cannot be read as a card; name the facility's card.json") from None
    if len(data) > _CARD_BYTES_MAX:
        raise Refused(f"{path} is too large for a card; name the facility's card.json")
    return text


def _show(document: Document) -> None:
    rows = [
        [member.get(name) for name in ("name", "kind", "role", "peer_id")] for member in document["members"]
    ]
    table(("name", "kind", "role", "peer id"), rows, empty="No members.")
    withstands = document.get("withstands")
    if withstands:
        say()
        _show_standing("withstands", withstands)
    for one in document.get("evidence", ()):
        say()
        say(
            f"! {one['member']} {one['meaning']}, at height {one['height']} ({one['kind']}; block {one['block']})"
        )
    proposals = [one for one in document["proposals"] if one["state"] in ("open", "accepted")]
    if proposals:
        say()
        short = shown_ids(one["proposal"] for one in document["proposals"])
        table(
            ("proposal", "action", "state", "yes", "no", "needed", "expires"),
            [
                (
                    short(one["proposal"]),
                    *(one[name] for name in ("action", "state", "yes", "no", "needed", "expires")),
                )
                for one in proposals
            ],
            empty="",
        )


def _show_proposal(document: Document) -> None:
    names = ("proposal", "action", "proposer", "state", "yes", "no", "needed", "expires", "risk")
    facts((name, document.get(name)) for name in names)
    for name in ("before", "after"):
        if name in document:
            _show_standing(name, document[name])


def _show_standing(name: str, standing: Document) -> None:
    say(
        f"{name}: {standing['signers']} signers, quorum {standing['certificate_quorum']}, "
        f"{standing['liars']} liars tolerated; ordering goes on after {standing['crashes_ordering']} failures, "
        f"final blocks after {standing['crashes_finality']}"
    )
