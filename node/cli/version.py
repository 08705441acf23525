"""`carechain version`."""

from node.cli.output import Document, facts
from node.cli.session import HomeOption, JsonOption, Session

WIRE_VERSION = 1
"""The number at the end of every protocol id."""


def version(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Print the versions of program, wire and store format."""
    from importlib.metadata import version as installed  # noqa: PLC0415  (reads the installed distribution: only this command)

    from storage.leveldb import FORMAT_VERSION as STORE_VERSION  # noqa: PLC0415

    document = {"version": installed("carechain"), "wire": WIRE_VERSION, "store": STORE_VERSION}
    Session.start(home, as_json).output.document(document, _show)


def _show(document: Document) -> None:
    facts([("carechain", document["version"]), ("wire", document["wire"]), ("store", document["store"])])
