"""`carechain member list`. Ballots come with governance."""

from node.cli.client import Client
from node.cli.output import Document, table
from node.cli.session import HomeOption, JsonOption, Session, noun

app = noun("member", "The facilities of the network.")


@app.command("list")
def list_members(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the members of the network."""
    session = Session.start(home, as_json)
    session.output.document(Client(session.home).get("/v1/members"), _show)


def _show(document: Document) -> None:
    rows = [
        [member.get(name) for name in ("name", "kind", "role", "peer_id")] for member in document["members"]
    ]
    table(("name", "kind", "role", "peer id"), rows, empty="No members.")
