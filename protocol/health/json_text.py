"""Where the values of a JSON text stand, found by the C scanner of the standard library (RFC 8259).

The text is scanned as Latin-1: every byte is one character, so that positions are byte positions and a 64 MiB text
never takes more than 64 MiB beside the original bytes. Structure is ASCII in UTF-8, therefore spans are exact;
strings met on the way are mojibake outside ASCII and are only compared with ASCII names. A value that is read in
earnest is decoded anew from its own bytes (`read`).

Refused, beyond what RFC 8259 forbids: duplicate names in an object (two readers would see two documents), NaN and
Infinity, nesting deeper than the interpreter's stack, bytes that are not UTF-8.
"""

import codecs
import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from protocol.errors import Refused

_BOM = b"\xef\xbb\xbf"
_VALIDATE_BYTES = 1 << 20
_blank = re.compile(r"[ \t\n\r]*")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _DuplicateNameError
    return members


def _no_constant(_name: str) -> NoReturn:
    raise ValueError


class _DuplicateNameError(ValueError):
    """Two members of one object share a name."""


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of bytes."""

    start: int
    end: int

    def of(self, data: bytes) -> bytes:
        """Return the bytes of `data` in this range."""
        return data[self.start : self.end]


class JsonText:
    """A JSON text whose values are found by position. Holds the text; never a parsed copy of the whole.

    Raises:
        Refused: empty, or not UTF-8.
    """

    def __init__(self, data: bytes) -> None:
        _check_utf8(data)
        self._text = data.decode("latin-1")
        self.start = self.skip_blank(len(_BOM) if data.startswith(_BOM) else 0)
        if self.start == len(self._text):
            raise Refused("the file is empty: check that it was written completely and add it again")

    def __repr__(self) -> str:
        return f"JsonText({len(self._text)} bytes)"

    def skip_blank(self, position: int) -> int:
        """Return the position of the first character that is not JSON white space."""
        match = _blank.match(self._text, position)
        assert match is not None, "a pattern that may be empty always matches"
        return match.end()

    def is_at(self, position: int, character: str) -> bool:
        """Say whether `character` stands at `position`."""
        return self._text.startswith(character, position)

    def value(self, position: int) -> tuple[Any, Span]:
        """Scan the value at `position`; Any: JSON is untyped until its reader has looked.

        Raises:
            Refused: no JSON value stands there.
        """
        try:
            found, end = _decoder.raw_decode(self._text, position)
        except _DuplicateNameError:
            raise Refused(
                f"the JSON value at {self.place(position)} repeats a name within one object, so that readers would "
                "disagree about it: export it again"
            ) from None
        except json.JSONDecodeError as error:
            raise self.refusal(error.pos) from None
        except RecursionError:
            raise _too_deep() from None
        except ValueError:  # NaN, Infinity, or an integer of thousands of digits
            raise self.refusal(position) from None
        return found, Span(position, end)

    def expect(self, position: int, character: str) -> int:
        """Return the position after `character`, blanks on both sides skipped; refuse anything else."""
        position = self.skip_blank(position)
        if not self.is_at(position, character):
            raise self.refusal(position)
        return self.skip_blank(position + 1)

    def name(self, position: int) -> tuple[str, int]:
        """Scan a member's name and its colon; return it and the position of the value."""
        if not self.is_at(position, '"'):
            raise self.refusal(position)
        found, span = self.value(position)
        return str(found), self.expect(span.end, ":")

    def next_or_end(self, position: int, closing: str) -> tuple[int, bool]:
        """After a value: step over a comma (next value, False) or over `closing` (position after it, True)."""
        position = self.skip_blank(position)
        if self.is_at(position, closing):
            return position + 1, True
        return self.expect(position, ","), False

    def end(self, position: int) -> None:
        """Refuse anything but blanks from `position` on."""
        position = self.skip_blank(position)
        if position != len(self._text):
            raise Refused(
                f"the JSON goes on after its end at {self.place(position)}: a file of one resource a line is added "
                "with the suffix .ndjson"
            )

    def place(self, position: int) -> str:
        """Name a position for a person: line and column, counted from 1."""
        line = self._text.count("\n", 0, position) + 1
        return f"line {line} column {position - self._text.rfind(chr(10), 0, position)}"

    def refusal(self, position: int) -> Refused:
        """Return the refusal of a text that is not JSON at `position`."""
        return Refused(
            f"the file is not valid JSON at {self.place(position)}: export it again, or add it with "
            "--media-type application/octet-stream to keep it as it is"
        )


def read(data: bytes) -> Any:
    """Return the value of a text that `JsonText` has scanned; Any: JSON is untyped until its reader has looked.

    Raises:
        Refused: nested too deeply for the stack of this caller.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise _too_deep() from None


def _too_deep() -> Refused:
    return Refused("the JSON is nested too deeply to be a FHIR document: check the file")


def _check_utf8(data: bytes) -> None:
    """Refuse bytes that are not UTF-8, holding no second copy of a large text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(data)
    try:
        for start in range(0, len(data), _VALIDATE_BYTES):
            decoder.decode(view[start : start + _VALIDATE_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise Refused(
            "the file is not UTF-8 text, which FHIR JSON has to be: export it again as UTF-8"
        ) from None
