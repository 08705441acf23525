"""`carechain status`."""

from node.cli.client import Client
from node.cli.output import Document, facts, say, table
from node.cli.session import HomeOption, JsonOption, Session


def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show role, leader, heights, peers and problems of the running daemon."""
    session = Session.start(home, as_json)
    session.output.document(Client(session.home).get("/v1/status"), _show)


def _show(document: Document) -> None:
    facts(
        [
            ("facility", document["facility"]),
            ("network", document["network"]),
            ("role", document["role"]),
            ("leader", document["leader"] or "none"),
            ("term", document["term"]),
            ("height", document["height"]),
            ("ordered height", document["ordered_height"]),
            ("certified height", document["certified_height"]),
            ("history height", document["history_height"]),
            ("tree", f"{document['tree_size']} transactions, root {document['tree_root']}"),
            ("voters", document["voters"]),
            ("quorum", document["quorum"]),
            ("release gate", document["release_gate"]),
            ("addresses", document["addresses"]),
            ("http", document["http"]),
        ]
    )
    if not document["release_gate"]:
        say(
            "Reads are refused by each facility's own daemon; a modified daemon that holds a grant could read without a trace."
        )
    say()
    rows = [
        (
            peer["name"],
            "connected" if peer["connected"] else "away",
            peer["address"],
            peer["found_by"],
            peer["peer_id"],
        )
        for peer in document["peers"]
    ]
    table(("peer", "state", "address", "found by", "peer id"), rows, empty="No other members.")
    for problem in document["problems"]:
        say(f"! {_sentence(problem)}")


def _sentence(problem: object) -> str:
    return str(problem.get("text", problem)) if isinstance(problem, dict) else str(problem)
