"""`carechain storage status`. Scrubbing, repair and reclaiming come with storage operations."""

from node.cli.client import Client
from node.cli.output import Document, facts
from node.cli.session import HomeOption, JsonOption, Session, noun

app = noun("storage", "Stored chunks: their replication and health.")


@app.command()
def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show how many chunks are stored here, and how many are under-replicated or corrupt."""
    session = Session.start(home, as_json)
    session.output.document(Client(session.home).get("/v1/storage"), _show)


def _show(document: Document) -> None:
    facts((name.replace("_", " "), value) for name, value in document.items())
