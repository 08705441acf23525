"""`carechain demo`: the whole story on sample data, with real daemons on this machine."""

from collections.abc import Callable
from typing import Annotated

import typer

from node.cli.output import Document, facts, say, table
from node.cli.session import HomeOption, JsonOption, Session

FACILITIES_MIN = 3


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the daemons running and print their addresses.")
    ] = False,
    facilities: Annotated[
        int, typer.Option("--facilities", metavar="N", min=FACILITIES_MIN, max=16)
    ] = FACILITIES_MIN,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a consortium of real daemons, play the whole story on sample data, and check each step."""
    from node import demo as story  # noqa: PLC0415  (loads the daemon's code, not wanted on the way to --help)

    session = Session.start(home, as_json)
    document = story.run(facilities=facilities, keep=keep, show=_step_shown(session))
    session.output.document(document, _show)
    if not document["ok"]:
        raise typer.Exit(1)


def _step_shown(session: Session) -> Callable[[Document], None]:
    def show(step: Document) -> None:
        mark = "ok" if step["ok"] else "FAILED"
        session.output.notice(f"{mark:>6}  {step['seconds']:6.1f} s  {step['name']}: {step['detail']}")

    return show


def _show(document: Document) -> None:
    rows = [
        (step["name"], step["ok"], f"{step['seconds']:.1f}", step["detail"]) for step in document["steps"]
    ]
    table(("step", "ok", "seconds", "what happened"), rows, empty="Nothing was done.")
    facts((name, value) for name, value in document.items() if name not in ("ok", "steps"))
    say("Everything held." if document["ok"] else "Something did not hold; see above.")
