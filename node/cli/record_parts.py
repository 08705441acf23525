"""An answer that holds several records, taken apart: each a line of JSON, then as many bytes as the line says."""

import json
from collections.abc import Iterator

from node.cli.output import Document
from protocol.errors import Unavailable

HEADER_BYTES_MAX = 64 * 1024
"""What is told about a record is a few hundred bytes."""


class RecordParts:
    """Reads records one after the other. Each body must be read to its end before the next record is asked for."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._ahead = b""
        """What has come but belongs to a later part."""

    def __iter__(self) -> Iterator[tuple[Document, Iterator[bytes]]]:
        """Yield what is told about each record, and its bytes.

        Raises:
            Unavailable: the answer broke off.
        """
        while (header := self._header()) is not None:
            yield header, self._body(int(header.get("bytes", 0)))

    def _header(self) -> Document | None:
        while b"\n" not in self._ahead:
            piece = next(self._pieces, None)
            if piece is None and not self._ahead:
                return None
            if piece is None or len(self._ahead) > HEADER_BYTES_MAX:
                raise _broken()
            self._ahead += piece
        line, _, self._ahead = self._ahead.partition(b"\n")
        header: Document = json.loads(line)
        return header

    def _body(self, rest: int) -> Iterator[bytes]:
        while rest:
            piece = self._ahead or next(self._pieces, None)
            if piece is None:
                raise _broken()
            self._ahead = piece[rest:]
            rest -= len(piece[:rest])
            yield piece[: len(piece) - len(self._ahead)]


def _broken() -> Unavailable:
    return Unavailable("the daemon's answer broke off before its end; empty the folder and repeat")
