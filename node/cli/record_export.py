"""Exporting a patient's records into a folder whose file names are ids.

DIR/<record id>     every readable document and original, byte for byte; a view only where its original is not readable
DIR/bundle.json     one FHIR collection Bundle of the resources in those files, each in its own text
DIR/receipts.json   per file what was told about it: category, digest, the transaction and height of its reading
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from node.cli.client import BODY_PIECE_BYTES, Client
from node.cli.output import Document, progress
from node.home import replacing, sync_directory, write_all, write_atomically
from protocol import limits
from protocol.errors import Refused, Unavailable


def export_records(client: Client, *, patient: str, purpose: str, folder: Path) -> Document:
    """Read everything readable of a patient into an empty folder.

    Raises:
        Refused: the folder is not empty or cannot be made, or the patient is not known.
        CarechainError: a reading was refused; what came before stays in the folder.
    """
    _make_empty(folder)
    receipts: list[Document] = []
    for info, body in client.records("/v1/records/export", patient=patient, purpose=purpose, user=None):
        if not str(info["record"]).isalnum():
            raise Refused("the daemon named a record that is no id; is carechain of another version running?")
        keep_body(folder / info["record"], info, body)
        receipts.append(info)
    resources = _write_bundle(folder, [folder / str(receipt["record"]) for receipt in _once(receipts)])
    write_atomically(folder / "receipts.json", (json.dumps(receipts, indent=2) + "\n").encode())
    sync_directory(folder)
    return {"records": len(receipts), "folder": str(folder), "bundle_resources": resources}


def keep_body(file: Path, info: Document, body: Iterator[bytes]) -> None:
    """Write a record's body to a file that is replaced only once every byte has come and the digest is right.

    Raises:
        Unavailable: the body broke off or was altered; the old file stays.
    """
    digest, done = hashlib.sha256(), 0
    with replacing(file) as descriptor, progress("Reading", info["bytes"], in_bytes=True) as show:
        for piece in body:
            write_all(descriptor, piece)
            digest.update(piece)
            done += len(piece)
            show(done)
        if digest.hexdigest() != info["sha256"] or done != info["bytes"]:
            raise Unavailable(
                f"the answer has {done} bytes and another digest than the record; nothing was replaced, read again"
            )


def _once(records: list[Document]) -> Iterator[Document]:
    """Yield what holds each resource once: documents and originals, and views whose original is not among them."""
    whole = {record["record"] for record in records if record.get("kind") != "view"}
    for record in records:
        if record["record"] in whole or record.get("part_of") not in whole:
            yield record


def _make_empty(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise Refused(f"the folder {folder} cannot be made ({error.strerror}); choose another") from None
    if taken:
        raise Refused(
            f"the folder {folder} is not empty; choose an empty one, so that nothing of it is mixed up"
        )


def _write_bundle(folder: Path, files: list[Path]) -> int:
    """Splice the resources of all FHIR files into one Bundle, and return how many there are."""
    from protocol.health.document_kind import HEAD_BYTES, Kind, detect  # noqa: PLC0415  (large tables that only an export needs)
    from protocol.health.fhir import lines_of, parse_document, resources_of_line  # noqa: PLC0415
    from protocol.health.views import ViewWriter  # noqa: PLC0415

    writer, count = ViewWriter(), 0
    with replacing(folder / "bundle.json") as descriptor:
        for file in files:
            with file.open("rb") as opened:
                head = opened.read(HEAD_BYTES)
                opened.seek(0)
                try:
                    kind = detect(None, head, "")
                except Refused:
                    # An empty file: exported as it is, no resource in it.
                    continue
                if kind is Kind.FHIR_JSON and file.stat().st_size <= limits.SORTED_BYTES_MAX:
                    groups = iter([parse_document(opened.read()).resources])
                elif kind is Kind.NDJSON:
                    blocks = iter(lambda: opened.read(BODY_PIECE_BYTES), b"")
                    groups = (
                        resources_of_line(line)
                        for line in lines_of(blocks, line_bytes_max=limits.SORTED_BYTES_MAX)
                    )
                else:
                    continue
                for resources in groups:
                    for resource in resources:
                        for piece in writer.add(resource):
                            write_all(descriptor, piece)
                        count += 1
        write_all(descriptor, writer.finish())
    return count
