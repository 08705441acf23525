"""`carechain recover`: going on after the loss of a majority (ledger.md 7.4). No member can do it alone."""

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from node.cli.client import Client
from node.cli.output import Document, facts, say
from node.cli.session import HomeOption, JsonOption, PassphraseFileOption, Session, find_passphrase, noun
from node.home import Home, write_atomically
from protocol.errors import Refused

app = noun("recover", "Going on after the loss of a majority: collect, propose, sign, apply.")

_FILE_BYTES_MAX = 16 * 1024 * 1024
OutputOption = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="Where to write the result.")
]
PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN", help="What recover propose has written.")]


@app.command("collect")
def collect(
    statements: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="STATEMENTS…", help="Files of earlier runs, here or at other members, to merge."
        ),
    ] = None,
    *,
    output: OutputOption,
    freeze: Annotated[
        bool,
        typer.Option(
            "--freeze", help="Stop this member first: it signs nothing more until a recovery is applied."
        ),
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Collect freeze statements of all members that can be reached, and tell from which block one may go on.

    Every member is frozen by its own operator; one that is not says so. Repeat it until as many as possible have answered.
    """
    session = Session.start(home, as_json)
    texts = [_text(path) for path in statements or ()]
    document = Client(session.home).post("/v1/recovery/collect", files=texts, freeze=freeze)
    write_atomically(output, str(document.pop("statements")).encode(), mode=0o644)
    session.output.document({**document, "file": str(output)}, _show_collected)


@app.command("propose")
def propose(
    statements: Annotated[list[Path], typer.Argument(metavar="STATEMENTS…")],
    *,
    output: OutputOption,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why; it stands in the ledger for ever.")
    ],
    lost: Annotated[
        list[str] | None,
        typer.Option(
            "--lost", metavar="NAME", help="An organisation that is lost: it leaves, and has no say."
        ),
    ] = None,
    gone: Annotated[
        list[str] | None,
        typer.Option(
            "--gone",
            metavar="NAME",
            help="A member whose node is gone: it leaves, and its organisation has a say.",
        ),
    ] = None,
    card: Annotated[
        list[Path] | None,
        typer.Option(
            "--card", metavar="CARD", help="A facility that comes in; as a learner if it is to vote."
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a plan for the organisations to sign: the block to go on from, and who is left."""
    session = Session.start(home, as_json)
    document = Client(session.home).post(
        "/v1/recovery/propose",
        files=[_text(path) for path in statements],
        lost=list(lost or ()),
        gone=list(gone or ()),
        cards=[_text(path) for path in card or ()],
        reason=reason,
    )
    write_atomically(output, str(document.pop("plan")).encode(), mode=0o644)
    session.output.document({**document, "file": str(output)}, _show_plan)


@app.command("sign")
def sign(
    plan: PlanArgument,
    *,
    output: OutputOption,
    instead_of: Annotated[
        str | None,
        typer.Option(
            "--instead-of",
            metavar="DIGEST",
            help="The other plan of this epoch that was signed here: it is sure that nobody will apply that one.",
        ),
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write this organisation's consent to a plan. It needs the keys of the home, and neither its daemon nor its ledger."""
    session = Session.start(home, as_json)
    text = _text(plan)
    if session.home.is_held():
        document = Client(session.home).post("/v1/recovery/sign", plan=text, instead_of=instead_of)
    else:
        document = _signed_here(session.home, text, instead_of, passphrase_file)
    write_atomically(output, str(document.pop("consent")).encode(), mode=0o644)
    session.output.document({**document, "file": str(output)}, _show_plan)


@app.command("apply")
def apply(
    plan: PlanArgument,
    consents: Annotated[
        list[Path], typer.Argument(metavar="SIGNATURE…", help="What recover sign has written.")
    ],
    *,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Begin the next epoch at this member, with the consent of enough organisations; every member that is left does it."""
    session = Session.start(home, as_json)
    document = Client(session.home).post(
        "/v1/recovery/apply", plan=_text(plan), consents=[_text(path) for path in consents]
    )
    session.output.document(document, _show_plan)


@app.command("cancel")
def cancel(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Let this member take part again, while nobody can hold its freeze statement."""
    session = Session.start(home, as_json)
    session.output.document(
        Client(session.home).post("/v1/recovery/cancel"), lambda _: say("This member takes part.")
    )


def _signed_here(home: Home, text: str, instead_of: str | None, passphrase_file: Path | None) -> Document:
    """Sign with the keys of a home whose daemon does not run."""
    from node import identity  # noqa: PLC0415  (key code is not on the way to --help)
    from node.card_file import read_genesis  # noqa: PLC0415
    from node.key_rotation import KeyRotation  # noqa: PLC0415
    from node.recovery_file import Plan, parse_file  # noqa: PLC0415
    from node.recovery_plan import Custodian  # noqa: PLC0415
    from protocol.configuration import network_id  # noqa: PLC0415

    home.require()
    if not home.genesis.exists():
        raise Refused("this facility has joined no network; sign in the home of a member")
    plan = parse_file(text, Plan, network_id(read_genesis(home.genesis)))
    with home.lock():
        passphrase = find_passphrase(passphrase_file, new=False) if identity.needs_passphrase(home) else None
        with identity.opened_keystore(home, passphrase, secrets.token_bytes) as keystore:
            keys = identity.Identity.load(keystore)
            rotation = KeyRotation(keystore, keys, secrets.token_bytes)
            custodian = Custodian(keystore, rotation.governance_key, keys.node_id)
            return custodian.consent(plan, instead_of=instead_of)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise Refused(f"{path} cannot be read; name a file that carechain recover has written") from None
    if len(data) > _FILE_BYTES_MAX:
        raise Refused(f"{path} is too large; name a file that carechain recover has written")
    return text


def _show_collected(document: Document) -> None:
    facts((name, document[name]) for name in ("file", "epoch"))
    say(f"frozen: {_listed(document['frozen'])}")
    for one in document["missing"]:
        say(f"missing: {one['name']}: {one['why']}")
    if document["settled"]:
        say(f"The network can go on from block {document['base_height']}; {_given_up(document)}.")
    else:
        say(f"Not settled: {document['why']}")


def _show_plan(document: Document) -> None:
    names = ("file", "digest", "height", "epoch", "base_height", "base", "reason", "consents_needed", "risk")
    facts((name, document[name]) for name in names if name in document)
    for name in ("lost", "leaving", "joining", "may_sign"):
        say(f"{name.replace('_', ' ')}: {_listed(document[name])}")
    if document["earlier"] is not None:
        earlier = document["earlier"]
        say(
            f"No certificate of the last change of members was found: {earlier['consents_needed']} of those before it have to "
            f"consent too: {_listed(earlier['may_sign'])}"
        )
    say(f"{_given_up(document)}.")
    after = document["after"]
    say(
        f"after: {after['signers']} signers, quorum {after['certificate_quorum']}, {after['liars']} liars tolerated; "
        f"final blocks after {after['crashes_finality']} failures"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nobody"


def _given_up(document: Document) -> str:
    count = len(document["discarded"])
    if not count:
        return "no known block is given up"
    return "1 uncertified block is given up" if count == 1 else f"{count} uncertified blocks are given up"
